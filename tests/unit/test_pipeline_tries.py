"""A stage that was stopped and is tried under other settings needs nobody's hands: the first try steps aside, and goes on
where its settings come back."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch

from karat.errors import LedgerError
from karat.identity import content_id
from karat.ledger.manifest import read_manifest, verify_run
from karat.lm.loop import LoopConfig, TrainState, run_loop
from karat.pipeline.stages import Output, Run, StageResult, Workplace, training_reporters
from karat.progress import open_progress

N_STEPS = 4


def trained(place: Workplace, rate: float, stop_at: int | None) -> StageResult:
    """Training that keeps a checkpoint at every step; `stop_at` = the step in which Ctrl-C comes."""
    weights = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(weights.weight)
    optimiser = torch.optim.SGD(weights.parameters(), lr=rate)

    def step(index: int) -> dict[str, float]:
        if index == stop_at:
            raise KeyboardInterrupt
        weights.weight.grad = torch.ones_like(weights.weight)
        optimiser.step()
        return {"weight": float(weights.weight.detach())}

    identity = {"rate": rate}
    with training_reporters(place, "toy", N_STEPS) as reporters:
        run_loop(
            TrainState({"toy": weights}, {"toy": optimiser}), step, LoopConfig(N_STEPS, checkpoint_every=1),
            directory=place.training, fingerprint=content_id("toy", identity), identity=identity, reporters=reporters,
        )  # fmt: skip
    model = place.model_directory("toy")
    model.mkdir(parents=True, exist_ok=True)
    (model / "weight").write_text(f"{float(weights.weight.detach()):.2f}", encoding="utf-8")
    return StageResult([Output("model", model, "model")])


def tried(directory: Path, rate: float, *plain: object, stop_at: int | None = None) -> str:
    """One try; returns what was said. plain: values among the settings that have no key there."""
    said = io.StringIO()
    with open_progress(stream=said) as progress:
        run = Run(directory, 0, progress)
        settings = [{"toy": {"rate": rate}}, *plain]
        with contextlib.nullcontext() if stop_at is None else pytest.raises(KeyboardInterrupt):
            run.stage("toy", inputs=(), config=settings, work=lambda place: trained(place, rate, stop_at))
    return said.getvalue()


def steps(directory: Path) -> list[float]:
    lines = (directory / "metrics/toy.jsonl").read_text(encoding="utf-8").splitlines()
    return [round(json.loads(line)["weight"], 2) for line in lines]


@pytest.mark.parametrize("finished_before", [False, True], ids=["never done", "done before"])
def test_three_settings_one_after_another_need_no_hands(tmp_path, finished_before):
    if finished_before:
        tried(tmp_path, 0.05)
    tried(tmp_path, 0.1, stop_at=3)
    assert "toy.rate: 0.1 there, 0.2 here" in tried(tmp_path, 0.2, stop_at=2)
    assert "toy.rate: 0.2 there, 0.01 here" in tried(tmp_path, 0.01)
    assert verify_run(tmp_path) == []
    assert (tmp_path / "models/toy/weight").read_text() == "0.96"
    assert steps(tmp_path) == [0.99, 0.98, 0.97, 0.96]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_differs_is_named_where_settings_hold_plain_values(tmp_path):
    """As `pipeline.told` hands over an aggregator, what is allowed, and a score function with the hash of its file."""
    tried(tmp_path, 0.1, "mean_score", True, "mine:first", "score:12", stop_at=3)
    said = tried(tmp_path, 0.1, "lower_bound:0.05", False, "mine:first", "score:13", stop_at=3)
    named = "aggregator: mean_score there, lower_bound:0.05 here; allow_ungated_reward: True there, False here"
    assert f"({named}; another file of the score or cost function)" in said
    said = tried(tmp_path, 0.1, "lower_bound:0.05", False, stop_at=3)
    assert "(score: mine:first there, absent here; another file of the score or cost function)" in said


def test_a_try_that_stepped_aside_goes_on_when_its_settings_come_back(tmp_path):
    tried(tmp_path, 0.1, stop_at=3)
    tried(tmp_path, 0.2, stop_at=1)
    said = tried(tmp_path, 0.1, stop_at=3)  # stopped in the very step it begins with: it did no other
    assert "goes on" in said
    assert "is set aside" in said
    tried(tmp_path, 0.1)
    assert steps(tmp_path) == [0.9, 0.8, 0.7, 0.6]
    assert read_manifest(tmp_path, "toy").config == {"settings": [{"toy": {"rate": 0.1}}]}
    assert verify_run(tmp_path) == []
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_try_that_had_not_begun_is_not_kept_and_nothing_is_said(tmp_path):
    with open_progress(silent=True) as progress, pytest.raises(LedgerError, match="refused"):
        Run(tmp_path, 0, progress).stage("toy", inputs=(), config="a", work=refused)
    assert "aside" not in tried(tmp_path, 0.1, stop_at=1)
    assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["toy"]


def test_figures_of_a_try_without_checkpoints_are_not_taken_for_those_of_another(tmp_path):
    (tmp_path / "metrics").mkdir()

    def written(place: Workplace) -> StageResult:
        place.metrics_path.write_text('{"step": 1}\n', encoding="utf-8")
        raise LedgerError("refused")

    with open_progress(silent=True) as progress:
        run = Run(tmp_path, 0, progress)
        with pytest.raises(LedgerError, match="refused"):
            run.stage("toy", inputs=(), config="a", work=written)
        done = run.stage("toy", inputs=(), config="b", work=lambda _: StageResult([]))
    assert done.outputs == ()


def refused(place: Workplace) -> StageResult:
    raise LedgerError(f"refused {place.identity}")
