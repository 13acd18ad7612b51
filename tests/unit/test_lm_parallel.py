"""Two processes do what one does: the same losses and weights, and the same bits in both."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch

import two_processes
from karat import ranks
from karat.errors import ConfigError
from karat.lm import parallel
from karat.lm.checkpoints import newest_step
from process_runs import agree, alone_and_together

BRIEF = two_processes.BRIEF
OF_SHARDS = ("parts", "resumed")
OTHERS = [name for name in two_processes.RECIPES if name not in (*BRIEF, *OF_SHARDS)]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """What one process left behind, and what two did."""
    return alone_and_together(tmp_path_factory.mktemp("processes"), BRIEF)


@pytest.fixture(scope="module")
def other_places(tmp_path_factory) -> tuple[Path, Path]:
    """The same for the recipes of `make test-long`."""
    return alone_and_together(tmp_path_factory.mktemp("other-processes"), OTHERS)


@pytest.mark.parametrize("recipe", BRIEF[1:])
def test_two_processes_train_as_one(places, recipe):
    agree(*places, recipe)


@pytest.mark.long
@pytest.mark.parametrize("recipe", OTHERS)
def test_two_processes_train_as_one_by_the_other_methods(other_places, recipe):
    agree(*other_places, recipe)


def test_each_does_its_part_and_the_first_writes(places):
    _, two = places
    assert [int(path.read_text()) for path in sorted(two.glob("micro-batches-*"))] == [8, 8]
    assert newest_step(two / "sft" / "loop") == 8
    assert newest_step(two / "ppo" / "loop") == 3
    assert (two / "ppo" / "watcher" / "best" / "config.json").is_file()


def test_collectives_give_all_the_same_and_what_one_process_would(places):
    one, two = places
    alone = json.loads((one / "words-0").read_text())
    first, second = (json.loads((two / f"words-{rank}").read_text()) for rank in (0, 1))
    assert first["samples"] == second["samples"] == alone["samples"]
    assert [len(groups) for groups in first["samples"]] == [4, 1, 0]
    assert first["samples"][0][0] != first["samples"][0][2]  # equal prompts, other draws
    assert first["gradients"] == second["gradients"] == alone["gradients"] == [[2.0] * 3, [1.0] * 3, None]
    assert (first["alone inside"], first["from"], second["alone inside"], second["from"]) == (1, 0, 1, 0)
    assert first["ranks"] == second["ranks"] == [10, 21, 30, 41, 50]
    assert (first["failed"], second["failed"]) == ("InputError: no", "_Followed: ")
    assert (alone["after"], first["after"], second["after"]) == (1.0, 2.0, 2.0)


def test_of_those_that_fail_one_says_why(places):
    one, two = places
    said = [json.loads((two / f"failures-{rank}").read_text()) for rank in (0, 1)]
    error, silence = "InputError: the same text is wrong", "ProcessError: "
    assert sorted(own[0] for own in said) == [error, silence]
    assert [own[1] for own in said] == [silence, error]
    assert json.loads((one / "failures-0").read_text()) == [error, "nothing"]


def test_alone_everything_is_the_identity():
    parameter = torch.nn.Parameter(torch.ones(2))
    parallel.sum_gradients([parameter])
    assert parameter.grad is None
    assert (parallel.rank(), parallel.count(), parallel.is_main()) == (0, 1, True)
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
    assert parallel.budget(100, 7) == 100
    assert parallel.total(1.5) == 1.5
    assert not parallel.everywhere(False)
    item = object()
    assert parallel.gathered(item) == [item]
    assert parallel.agreed(item) is item


def test_a_number_of_processes_without_a_place_to_meet_is_one_line(monkeypatch):
    for name in (*ranks.RANK, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="found 2 of them and no rank"), parallel.joined():
        pass
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="no MASTER_ADDR and MASTER_PORT"), parallel.joined():
        pass
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="found the rank 2 among 2"), parallel.joined():
        pass
    assert not torch.distributed.is_initialized()
    assert os.environ["WORLD_SIZE"] == "2"


def test_a_process_whose_others_do_not_come_says_where_it_waits(monkeypatch, capsys):
    def alone(*_: object, **__: object) -> None:
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
        raise RuntimeError("enough waited")

    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel, "ALONE_S", 0.0)
    monkeypatch.setattr(torch.distributed, "init_process_group", alone)
    with pytest.raises(RuntimeError, match="enough waited"), parallel.joined():
        pass
    assert "process 1 of 2 waits for the others at node0:29500" in capsys.readouterr().err
