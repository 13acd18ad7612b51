"""Two processes do what one does: the same losses and weights, and the same bits in both."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import two_processes
from children import WAIT_S, context
from karat.lm import parallel
from karat.lm.loop import newest_step

CONTEXT = context()


def run(place: Path, n: int) -> None:
    place.mkdir()
    work = [CONTEXT.Process(target=two_processes.fine_tune, args=(str(place), rank, n)) for rank in range(n)]
    for process in work:
        process.start()
    for process in work:
        process.join(WAIT_S)
    assert [process.exitcode for process in work] == [0] * n


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_train_as_one(tmp_path):
    run(tmp_path / "one", 1)
    run(tmp_path / "two", 2)
    alone, together = (rows(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    for name in ("nll_per_token", "grad_norm"):
        assert [row[name] for row in together] == pytest.approx([row[name] for row in alone], abs=1e-5)
    first, second = (load_file(tmp_path / "two" / f"weights-{rank}") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    whole = load_file(tmp_path / "one" / "weights-0")
    assert max(float((whole[key] - first[key]).abs().max()) for key in whole) < 1e-4
    assert any(not torch.equal(whole[key], first[key]) for key in whole)  # they did share the work
    assert [int(path.read_text()) for path in sorted((tmp_path / "two").glob("micro-batches-*"))] == [8, 8]
    assert newest_step(tmp_path / "two" / "loop") == 8


def test_alone_everything_is_the_identity():
    parameter = torch.nn.Parameter(torch.ones(2))
    parallel.sum_gradients([parameter])
    assert parameter.grad is None
    assert (parallel.rank(), parallel.count(), parallel.is_main()) == (0, 1, True)
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
    assert parallel.budget(100, 7) == 100
    assert parallel.total(1.5) == 1.5
    assert not parallel.everywhere(False)
