"""The training loop: exact resume, accumulation, skipped steps, and checkpoints that refuse strangers."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from karat.errors import InvariantError, LedgerError
from karat.lm.checksums import SUMS
from karat.lm.loop import (
    JsonlReporter,
    LoopConfig,
    TrainState,
    check_skipped,
    linear_warmup_decay,
    optimiser_step,
    run_loop,
)  # fmt: skip
from karat.lm.sharding import clip_gradients
from karat.seeding import torch_generator


def test_weights_that_the_last_step_broke_end_the_run():
    state = fresh_state()

    def step(index):
        with torch.no_grad():  # the gradients of the step were finite
            next(state.modules["m"].parameters()).view(-1)[index] = math.inf
        state.n_stepped += 1
        return {}

    with pytest.raises(InvariantError, match=r"m: 0\.weight is not finite after training; .* Lower the learning rate"):
        run_loop(state, step, LoopConfig(1))


class Counter:
    """A controller: adds up what it sees."""

    def __init__(self):
        self.total = 0.0

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


def fresh_state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return TrainState({"m": model}, {"m": torch.optim.AdamW(model.parameters(), lr=1e-2)}, {"c": Counter()})


def step_of(state):
    def step(index):
        x = torch.randn(16, 4, generator=torch_generator(7, "step", index))
        loss = (state.modules["m"](x).squeeze(-1) - x.sum(1)).square().mean()
        norm = optimiser_step(state, "m", [loss], max_grad_norm=1.0, learning_rate=1e-2 / (index + 1))
        state.controllers["c"].total += float(loss.detach())
        return {"loss": float(loss.detach()), "norm": norm}

    return step


def everything(state):
    optimiser = state.optimisers["m"].state_dict()["state"]
    return [*state.modules["m"].parameters(), *(entry[key] for entry in optimiser.values() for key in sorted(entry))]


@pytest.mark.parametrize("kill_after", [1, 3, 5])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, kill_after):
    whole = fresh_state()
    run_loop(whole, step_of(whole), LoopConfig(6))

    class Killed(Exception):
        pass

    def dies_after(index, _):
        if index == kill_after + 1:
            raise Killed
        return

    first = fresh_state()
    with pytest.raises(Killed):
        run_loop(first, step_of(first), LoopConfig(6, 1), directory=tmp_path, fingerprint="x", should_stop=dies_after)
    second = fresh_state()
    run_loop(second, step_of(second), LoopConfig(6, 1), directory=tmp_path, fingerprint="x")
    assert second.step == 6
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(second), strict=True))
    assert whole.controllers["c"].total == second.controllers["c"].total


def test_a_finished_run_does_nothing_more(tmp_path):
    state = fresh_state()
    run_loop(state, step_of(state), LoopConfig(2, 1), directory=tmp_path, fingerprint="x")

    def never(index):
        raise AssertionError(index)

    run_loop(fresh_state(), never, LoopConfig(2, 1), directory=tmp_path, fingerprint="x")


def test_a_stop_is_remembered(tmp_path):
    state = fresh_state()
    reason = run_loop(
        state,
        step_of(state),
        LoopConfig(9, 5),
        directory=tmp_path,
        should_stop=lambda i, _: "enough" if i == 2 else None,
    )
    assert (reason, state.step) == ("enough", 2)
    assert run_loop(fresh_state(), step_of(state), LoopConfig(9, 5), directory=tmp_path) == "enough"


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    state = fresh_state()
    run_loop(state, step_of(state), LoopConfig(1, 1), directory=tmp_path, fingerprint="one")
    with pytest.raises(LedgerError, match="found one, expected two"):
        run_loop(fresh_state(), step_of(state), LoopConfig(2, 1), directory=tmp_path, fingerprint="two")


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    state = fresh_state()
    run_loop(state, step_of(state), LoopConfig(2, 1), directory=tmp_path, fingerprint="x")
    (tmp_path / ".partial-00000009").mkdir()
    again = fresh_state()
    run_loop(again, step_of(again), LoopConfig(3, 1), directory=tmp_path, fingerprint="x")
    assert again.step == 3


@pytest.mark.parametrize("name", ["m.module", "m.optimiser"])
def test_a_checkpoint_that_is_cut_off_is_named(name, tmp_path):
    state = fresh_state()
    run_loop(state, step_of(state), LoopConfig(2, 1), directory=tmp_path, fingerprint="x")
    file = tmp_path / "step-00000002" / name
    file.with_name(SUMS).unlink()  # as of an older karat
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(
        LedgerError, match=rf"step-00000002: not readable as a checkpoint .*{name}: truncated or unreadable"
    ):
        run_loop(fresh_state(), step_of(state), LoopConfig(3, 1), directory=tmp_path, fingerprint="x")


def test_what_a_kill_left_beside_the_newest_checkpoint_is_removed_on_resume(tmp_path):
    state = fresh_state()
    run_loop(state, step_of(state), LoopConfig(2, 1), directory=tmp_path, fingerprint="x")
    (tmp_path / ".partial-00000009").mkdir()
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000001")
    run_loop(fresh_state(), step_of(state), LoopConfig(2, 1), directory=tmp_path, fingerprint="x")
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("name", ["m.module", "m.optimiser"])
def test_a_checkpoint_of_other_shapes_is_not_repeated_into_place(name, tmp_path):
    state = fresh_state()
    run_loop(state, step_of(state), LoopConfig(2, 1), directory=tmp_path, fingerprint="x")
    file = tmp_path / "step-00000002" / name
    file.with_name(SUMS).unlink()  # as of an older karat
    found = {key: one[:1].clone() if one.ndim else one for key, one in load_file(file).items()}
    save_file(found, file)
    with pytest.raises(LedgerError, match=r"not readable as a checkpoint .* of shape \(1"):
        run_loop(fresh_state(), step_of(state), LoopConfig(3, 1), directory=tmp_path, fingerprint="x")


def test_micro_batches_add_up_to_the_batch():
    x = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def updated(cuts):
        state = fresh_state()
        model = state.modules["m"].double()
        optimiser_step(state, "m", [model(part).square().sum() / 12 for part in cuts], max_grad_norm=1.0)
        assert all(p.grad is None for p in model.parameters())  # no memory for them until the next step
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.allclose(updated([x]), updated([x[:2], x[2:9], x[9:]]), atol=1e-12)


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted():
    state = fresh_state()
    before = [p.clone() for p in state.modules["m"].parameters()]
    norm = optimiser_step(state, "m", [state.modules["m"](torch.full((1, 4), math.inf)).sum()], max_grad_norm=1.0)
    assert math.isnan(norm)
    assert state.n_skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state.modules["m"].parameters(), strict=True))
    state.n_skipped = 3
    with pytest.raises(InvariantError, match="3 of 20 optimiser steps"):
        check_skipped(state, 20)


@pytest.mark.parametrize("n_bad", [1, 3])
def test_training_in_which_few_steps_were_made_does_not_end_as_if_it_had_learnt(tmp_path, n_bad):
    def run(n_steps):
        state = fresh_state()

        def step(i):
            x = torch.full((1, 4), math.inf if i < n_bad else 1.0)
            return {"norm": optimiser_step(state, "m", [state.modules["m"](x).sum()], max_grad_norm=1.0)}

        run_loop(state, step, LoopConfig(n_steps, checkpoint_every=1), directory=tmp_path)
        return state

    with pytest.raises(InvariantError, match=f"all {n_bad} optimiser steps"):
        run(n_bad)
    if n_bad > 1:
        with pytest.raises(InvariantError, match=f"{n_bad} of {n_bad + 1} optimiser steps"):
            run(n_bad + 1)
    resumed = run(2 * n_bad)  # goes on from the checkpoint
    assert (resumed.n_skipped, resumed.n_stepped) == (n_bad, n_bad)


def test_gradients_are_clipped_over_all_parameters():
    weight = nn.Linear(3, 1, bias=False)
    state = TrainState({"m": weight}, {"m": torch.optim.SGD(weight.parameters(), lr=1.0)})
    before = weight.weight.detach().clone()
    norm = optimiser_step(state, "m", [weight(torch.tensor([[3.0, 0.0, 4.0]])).sum()], max_grad_norm=1.0)
    assert norm == pytest.approx(5.0)
    assert torch.allclose(before - weight.weight, torch.tensor([[0.6, 0.0, 0.8]]), atol=1e-5)


@pytest.mark.parametrize("limit", [4.999, 5.0, 5.0000009, 5.000002, 6.0])
def test_gradients_are_those_of_pytorchs_clipping_on_either_side_of_the_limit(limit):
    ours, theirs = (nn.Linear(3, 1, bias=False) for _ in range(2))
    for one in (ours, theirs):
        one.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    assert clip_gradients([ours.weight], limit) == float(nn.utils.clip_grad_norm_([theirs.weight], limit)) == 5.0
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


def test_the_learning_rate_rises_and_falls_linearly():
    rates = [linear_warmup_decay(i, n_steps=10, peak=1.0, n_warmup=2) for i in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[-1] == pytest.approx(1 / 8)
    assert linear_warmup_decay(10, n_steps=10, peak=1.0, n_warmup=2, final_frac=0.1) == pytest.approx(0.1)


def test_metric_lines_beyond_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    reporter = JsonlReporter(path)
    for i in (1, 2, 3):
        reporter.log(i, {"loss": float("nan") if i == 2 else i})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    JsonlReporter(path, resumed_step=2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, "nan")]


def test_whoever_begins_anew_says_step_0_once(tmp_path):
    path = tmp_path / "m.jsonl"
    for _ in range(2):
        JsonlReporter(path, resumed_step=0).log(0, {"a": 1.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0]


def test_whoever_asks_sees_the_weights_just_before_they_change_and_not_before_a_step_that_is_skipped():
    layer = nn.Linear(2, 1)
    state = TrainState({"m": layer}, {"m": torch.optim.Adam(layer.parameters(), lr=0.1)})
    seen, expected = [], []
    for factor in (1.0, math.inf, 1.0):
        start = layer.weight.detach().clone()
        loss = (layer(torch.ones(1, 2)) * factor).sum()
        optimiser_step(
            state, "m", [loss], max_grad_norm=1.0, before_step=lambda: seen.append(layer.weight.detach().clone())
        )
        assert torch.equal(layer.weight.detach(), start) is (factor == math.inf)
        expected += [start] if factor == 1.0 else []
    assert len(seen) == 2
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
