"""Recipes of `two_processes` in several processes, and what they left behind beside what one process did."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import two_processes
from children import WAIT_S, context

CONTEXT = context()
CLOSE = 1e-5


def run(place: Path, n: int, recipes: Sequence[str], *, in_shards: bool = False) -> Path:
    """What those recipes leave behind in n processes, in a new directory."""
    place.mkdir()
    with contextlib.ExitStack() as probes:
        bound = [probes.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [one.getsockname()[1] for one in bound]
    work = [
        CONTEXT.Process(target=two_processes.work_through, args=(str(place), rank, n, ports, recipes, in_shards))
        for rank in range(n)
    ]
    for process in work:
        process.start()
    for process in work:
        process.join(WAIT_S)
    assert [process.exitcode for process in work] == [0] * n
    return place


def alone_and_together(root: Path, recipes: Sequence[str], *, in_shards: bool = False) -> tuple[Path, Path]:
    """What one process leaves behind, and what two do."""
    return run(root / "one", 1, recipes), run(root / "two", 2, recipes, in_shards=in_shards)


def rows(path: Path) -> list[dict]:
    """The lines of a metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def timed(name: str) -> bool:
    """Whether a figure is of the clock."""
    return name == "time" or name.startswith("seconds/")


def agree(one: Path, two: Path, recipe: str) -> None:
    """The metrics of every step, and the weights in both processes."""
    alone, together = (rows(place / recipe / "metrics.jsonl") for place in (one, two))
    assert len(alone) > 1
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    for mine, theirs in zip(alone, together, strict=True):
        assert mine.keys() == theirs.keys()
        figures = [name for name in mine if not timed(name)]
        assert [theirs[name] for name in figures] == pytest.approx([mine[name] for name in figures], abs=CLOSE)
    first, second = (load_file(two / f"{recipe}-{rank}") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    whole = load_file(one / f"{recipe}-0")
    assert max(float((whole[key] - first[key]).abs().max()) for key in whole) < 1e-4
    assert any(not torch.equal(whole[key], first[key]) for key in whole)  # they did share the work
