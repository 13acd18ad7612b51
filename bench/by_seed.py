"""A study of worlds and seeds that goes on where it stopped: every finished seed is kept in its result file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from karat.stats import mean_estimate


class World(Protocol):
    """What a study needs to know of its worlds."""

    @property
    def name(self) -> str:
        """How the tables call it."""
        ...


W = TypeVar("W", bound=World)


def by_seed(
    worlds: Sequence[W],
    seeds: Sequence[int],
    one_seed: Callable[[W, int], Any],
    summary: Callable[[W, list[Any]], Any],
    *,
    about: Mapping[str, Any],
    out: Path | None,
    minutes: float,
) -> dict[str, Any]:
    """All worlds and seeds that are not there yet, until the time is over; then the summaries of what there is.

    Args:
        one_seed: figures of one world and seed, plain JSON values.    summary: of all seeds of a world.
        about: what holds for the whole study; stands first in the file.
        out: result file, whose other worlds stay as they are; None = nothing is kept.    minutes: no further seed is begun after these.
    Returns: about, and {complete: whether every seed asked for is there, worlds: {name: {summary, rows by seed}}}.
    """
    there = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.is_file() else {"worlds": {}}
    rows: dict[str, dict[str, Any]] = {name: one["rows"] for name, one in there["worlds"].items()}
    began = time.monotonic()

    def found(own: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
        return {**about, "complete": complete, "worlds": own}

    for seed in seeds:
        for world in worlds:
            done = rows.setdefault(world.name, {})
            if str(seed) in done or time.monotonic() - began > 60 * minutes:
                continue
            done[str(seed)] = one_seed(world, seed)
            print(f"{world.name} {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            _write(out, found({name: {"rows": own} for name, own in rows.items()}, complete=False))
    names = {world.name for world in worlds}
    summed = {name: one for name, one in there["worlds"].items() if name not in names} | {
        world.name: {"summary": summary(world, list(own.values())), "rows": own}
        for world in worlds
        if (own := rows.get(world.name))
    }
    complete = all(str(seed) in rows.get(world.name, {}) for world in worlds for seed in seeds)
    result = found(summed, complete=complete)
    _write(out, result)
    return result


def _write(out: Path | None, found: Mapping[str, Any]) -> None:
    """Whole or not at all, so that what is done stays if the rest is killed."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_suffix(".part")
    beside.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(out)


def interval(column: np.ndarray) -> list[float | None]:
    """Mean with the 95 % t interval over seeds; one seed has none."""
    found = mean_estimate(column)
    return [None if one is None else round(one, 4) for one in (found.value, found.low, found.high)]


def seed_options(description: str | None, *, n_seeds: int, quick: str, first: str) -> argparse.Namespace:
    """What every such study is asked on the command line.

    Args: quick, first: help of --quick and --first-seed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--seeds", type=int, default=n_seeds)
    parser.add_argument("--first-seed", type=int, default=0, help=first)
    parser.add_argument("--minutes", type=float, default=600, help="start no further seed after these")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--tables", action="store_true", help="write what was found into the page, and stop")
    return parser.parse_args()
