"""From paired turns to a row of the bench: medians, spread, memory, machine.

A ratio is larger-is-better throughout: theirs ÷ ours for seconds and bytes, ours ÷ theirs for rates.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.turns import Worker

from karat.devices import processor_listing

TARGETS = {
    "reward": 5.0, "ppo": 3.0, "ppo-k4": 5.5, "ppo-bf16": 6.0, "ppo-k4-bf16": 10.0, "rloo": 4.0, "grpo": 4.0, "dpo": 4.0,
    "dpo-both": 4.0, "sft": 1.3, "sample": 5.0, "sample-150k": 3.0, "efficiency-reward": 0.6, "efficiency-ppo": 0.6,
    "memory-ppo": 2.0, "memory-ppo-k4": 2.0, "memory-rloo": 2.0, "ranking": 3.0,
}  # fmt: skip
"""Of the ratio of each row, in the order of the tables."""


@dataclass(frozen=True)
class Turn:
    """One unit of work done by both sides, one after the other."""

    ours: dict[str, Any]
    """Our worker's report: seconds, units and what else it said."""
    theirs: dict[str, Any]
    """The peer's."""

    @property
    def ratio(self) -> float:
        """Our rate over theirs, both in units a second."""
        return rate(self.ours) / rate(self.theirs)

    @property
    def cpu_ratio(self) -> float:
        """The same in processor seconds of all threads: what remains meaningful on a busy machine."""
        ours, theirs = (report["units"] / report["cpu_seconds"] for report in (self.ours, self.theirs))
        return ours / theirs


def rate(report: dict[str, Any]) -> float:
    """Units a second of one report."""
    return report["units"] / report["seconds"]


def take_turns(ours: Worker, theirs: Worker, *, n_warm: int, n_turns: int, label: str) -> list[Turn]:
    """Let both sides do n_warm + n_turns units, in alternating order; all turns, the warm ones first."""
    for worker in (ours, theirs):
        worker.wait_ready()
    turns: list[Turn] = []
    started = time.perf_counter()
    for number in range(n_warm + n_turns):
        if number % 2:
            second = theirs.turn()
            first = ours.turn()
        else:
            first = ours.turn()
            second = theirs.turn()
        turns.append(Turn(first, second))
        kind = "warm-up" if number < n_warm else f"{turns[-1].ratio:.2f} × (cpu {turns[-1].cpu_ratio:.2f} ×)"
        print(
            f"{label} {number + 1}/{n_warm + n_turns}: ours {rate(first):.4g}/s, theirs {rate(second):.4g}/s, {kind}, "
            f"{time.perf_counter() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    for worker in (ours, theirs):
        worker.close()
    return turns


def row(
    work: str,
    unit: str,
    turns: Sequence[Turn],
    ours: Worker,
    theirs: Worker,
    *,
    threads: int,
    target: float | None = None,
) -> dict[str, Any]:
    """The JSON object of one row; figures are medians over turns, the ratio is the median of the turns' ratios.

    Args: target: of the ratio; None = that of `TARGETS`.
    """
    target = TARGETS[work] if target is None else target
    ratios = [turn.ratio for turn in turns]
    rates = {"ours": [rate(t.ours) for t in turns], "theirs": [rate(t.theirs) for t in turns]}
    ratio = statistics.median(ratios)
    return {
        "work": work,
        "unit": unit,
        **{side: _short(statistics.median(values)) for side, values in rates.items()},
        "ratio": _short(ratio),
        "target": target,
        "met": ratio >= target,
        "ratio_cpu": _short(statistics.median(turn.cpu_ratio for turn in turns)),
        "ratio_of_totals": _short(_total_rate(turns, "ours") / _total_rate(turns, "theirs")),
        "peak_mib_ours": round(ours.peak_mib),
        "peak_mib_theirs": round(theirs.peak_mib),
        "ratio_memory": _short(theirs.peak_mib / ours.peak_mib),
        "resident_mib": {"ours": round(ours.resident_mib), "theirs": round(theirs.resident_mib)},
        "ratio_memory_of_work": _short((theirs.peak_mib - theirs.resident_mib) / (ours.peak_mib - ours.resident_mib)),
        "versions": {"ours": ours.versions, "theirs": theirs.versions},
        "threads": threads,
        "machine": machine(),
        "measured": time.strftime("%Y-%m-%d"),
        "n_repeats": len(turns),
        "spread": {name: _quartiles(values) for name, values in (*rates.items(), ("ratio", ratios))},
    }


def equal_steps(name: str, turns: Sequence[Turn]) -> float:
    """Optimiser steps an iteration, from the first turn on.

    Raises: SystemExit where the two sides did not make as many.
    """
    steps = {
        "ours": sum(turn.ours["n_steps"] for turn in turns) / len(turns),
        "theirs": turns[-1].theirs["n_steps_so_far"] / len(turns),
    }
    if steps["ours"] != steps["theirs"]:
        raise SystemExit(f"bench: {name} made {steps} optimiser steps an iteration; expected the same on both sides")
    return steps["ours"]


def beside_the_faster(rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The row of the peer that was faster, with the figures of all of them.

    Args: rows: by the dtype that the peer trained in.
    """
    faster = max(rows, key=lambda peer: rows[peer]["theirs"])
    about = {peer: {key: one[key] for key in ("ours", "theirs", "ratio", "spread")} for peer, one in rows.items()}
    return rows[faster] | {"peer_dtype": faster, "beside": about}


def machine() -> dict[str, Any]:
    """Processor, cores and how busy the machine was over the last minute."""
    return {"processor": _processor(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def _processor() -> str:
    lines = processor_listing()
    if not lines:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {name.strip(): value.strip() for name, value in fields.items()}
    # makers name whole series alike, and within a family models differ in what they can compute
    numbers = ", ".join(
        f"{name} {found.get(field, '?')}" for name, field in (("family", "cpu family"), ("model", "model"))
    )
    return f"{found.get('model name', platform.machine())}, {numbers}"


def _total_rate(turns: Sequence[Turn], side: str) -> float:
    reports = [getattr(turn, side) for turn in turns]
    return sum(r["units"] for r in reports) / sum(r["seconds"] for r in reports)


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    low, _, high = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    return {name: _short(v) for name, v in {"min": ordered[0], "q25": low, "q75": high, "max": ordered[-1]}.items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
