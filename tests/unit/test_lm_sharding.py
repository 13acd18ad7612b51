"""Two processes that hold shards of weights, gradients and moments do what one process does that holds them whole."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import two_processes
from karat.lm import freed_memory, parallel, sharding
from karat.lm.load import load_lm
from karat.sft.train import train_sft
from policy_toys import toy_lm
from process_runs import agree, alone_and_together, rows
from two_processes import HALVES, SHOWN

BRIEF = ("sft", "reward", "ppo", "dpo", "ppo-critic", "parts", "resumed")
OTHERS = [name for name in two_processes.RECIPES if name not in (*BRIEF, "words")]
TRAINED = BRIEF[:5]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """What one process left behind, and what two did in shards."""
    return alone_and_together(tmp_path_factory.mktemp("shards"), BRIEF, in_shards=True)


@pytest.fixture(scope="module")
def other_places(tmp_path_factory) -> tuple[Path, Path]:
    """The same for the recipes of `make test-long`."""
    return alone_and_together(tmp_path_factory.mktemp("other-shards"), OTHERS, in_shards=True)


@pytest.mark.parametrize("recipe", TRAINED)
def test_in_shards_two_processes_train_as_one(places, recipe):
    agree(*places, recipe)


@pytest.mark.long
@pytest.mark.parametrize("recipe", OTHERS)
def test_in_shards_two_processes_train_as_one_by_the_other_methods(other_places, recipe):
    agree(*other_places, recipe)


def test_each_process_holds_half_and_reads_the_whole(places):
    one, two = places
    alone = json.loads((one / "parts-0").read_text())
    held = [json.loads((two / f"parts-{rank}").read_text()) for rank in (0, 1)]
    n = alone["weights"]
    for what in ("weights", "gradients", "moments"):
        assert alone[what] == n == sum(own[what] for own in held)
        assert all(own[what] <= 0.55 * n for own in held)
    assert [own["whole"] for own in held] == [own["after"] for own in held] == [n, n]


def test_a_loss_that_is_no_number_in_one_process_is_skipped_by_all(places):
    for place, ranks in zip(places, ([0], [0, 1]), strict=True):
        for rank in ranks:
            own = json.loads((place / f"parts-{rank}").read_text())
            assert (own["steps"], own["skipped"]) == (1, 1)


def test_gradients_are_clipped_by_the_norm_over_all_shards(places):
    one, two = places
    alone, together = ([row["grad_norm"] for row in rows(place / "sft" / "metrics.jsonl")] for place in (one, two))
    assert together == pytest.approx(alone, abs=1e-5)
    assert max(alone) > 1  # or nothing was clipped, and the weights would not tell


def test_what_was_saved_in_shards_loads_in_one_process(places):
    _, two = places
    saved = load_lm(two / "ppo" / "watcher" / "best").model
    trained = load_file(two / "ppo-0")  # of the policy and the value head; the best policy was the last
    found = {name: p for name, p in saved.named_parameters() if f"0.{name}" in trained}
    assert len(found) > 5
    assert all(torch.equal(p, trained[f"0.{name}"]) for name, p in found.items())


def test_a_checkpoint_of_shards_is_that_of_one_process(places):
    one, two = (next((place / "sft" / "loop").glob("step-*")) for place in places)
    for name in ("policy.module", "policy.optimiser"):
        whole, together = load_file(one / name), load_file(two / name)
        assert whole.keys() == together.keys()
        assert all(torch.allclose(whole[key], together[key], atol=1e-4) for key in whole)


def test_one_process_continues_what_two_began_in_shards(places, tmp_path):
    _, two = places
    shutil.copytree(two / "resumed" / "left", tmp_path / "loop")
    lm = toy_lm()
    train_sft(lm, SHOWN, HALVES, seed=5, directory=tmp_path / "loop")
    continued = load_file(two / "resumed-0")
    own = dict(lm.model.named_parameters())
    assert max(float((own[key] - continued[key]).abs().max().detach()) for key in continued) < 1e-4


def test_alone_nothing_is_in_shards():
    items = [1, 2, 3]
    assert not parallel.in_shards()
    with sharding.sharded({"m": torch.nn.Linear(2, 2)}, {}) as shards, sharding.whole():
        assert shards is None
        assert sharding.even_share(items, lambda: 0) == items


FREED = """
import torch
from karat.lm.freed_memory import give_memory_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

print(give_memory_back(), end=" ")
torch.zeros(6_000_000)  # freed: from now on glibc keeps blocks of up to as many bytes
before = resident()
held = [(torch.zeros(1_500_000), torch.zeros(20_000)) for _ in range(20)]
full = resident()
pins = [small for _, small in held]  # between them in the heap: what is below stays
del held
print(full - before > 80, resident() - before < 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_blocks_that_were_gathered_go_back_to_the_system():
    assert freed(None) == ["True", "True", "True"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_who_has_told_the_allocator_is_not_overruled():
    assert freed("99000000")[0] == "False"  # what glibc then keeps is its own affair, and differs from run to run


def freed(variable):
    """What a process that holds and frees large blocks says: whether it told its allocator, held them, gave them back."""
    environment = {k: v for k, v in os.environ.items() if k != freed_memory.THRESHOLD_VARIABLE}
    environment |= {freed_memory.THRESHOLD_VARIABLE: variable} if variable else {}
    command = [sys.executable, "-c", FREED]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_whoever_trains_in_shards_gives_memory_back(places):
    assert [json.loads((places[1] / f"parts-{rank}").read_text())["gave_back"] for rank in (0, 1)] == [True, True]
    assert json.loads((places[0] / "parts-0").read_text())["gave_back"] is False
