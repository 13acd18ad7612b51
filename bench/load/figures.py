"""From what happened to figures: percentiles with intervals over raters, failures, and answers that are not there.

Knows neither servers nor clocks. A request that failed by waiting too long, or was still waiting at the end, counts with
the time that it had taken by then (its true time is longer); one that was refused has no time and counts as an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from karat.stats import quantile_estimate

KINDS = ("next", "submit")
TIMED = ("ok", "timeout", "cut")
N_DRAWS = 500


def latencies(events: Sequence[Sequence[Any]], kind: str, *, after: float) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds and rater of every timed request of one kind that began at or after a time.

    Args:
        events: (rater, kind, begin in seconds, seconds, how it ended).    after: seconds.
    """
    chosen = [(event[3], event[0]) for event in events if event[1] == kind and event[2] >= after and event[4] in TIMED]
    return np.array([seconds * 1000 for seconds, _ in chosen]), np.array([rater for _, rater in chosen], dtype=int)


def percentiles(ms: np.ndarray, raters: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """p50, p95 and p99 in milliseconds, each with a 95 % interval from raters drawn with replacement; none of fewer than ten."""
    found: dict[str, Any] = {"n": int(ms.size)}
    for q in (50, 95, 99):
        estimate = quantile_estimate(ms, q / 100, raters, rng, n_draws=N_DRAWS)
        found[f"p{q}_ms"] = _short(estimate.value)
        found[f"p{q}_interval"] = None if estimate.low is None else [_short(estimate.low), _short(estimate.high)]
    return found


def summary(outcome: Mapping[str, Any], *, warm: float, seconds: float, rng: np.random.Generator) -> dict[str, Any]:
    """The figures of one run.

    Args:
        outcome: what the crowd wrote.    warm, seconds: how long was not measured, and how long was.
    """
    events = outcome["events"]
    counted = [event for event in events if event[2] >= warm]
    figures: dict[str, Any] = {}
    for kind in KINDS:
        ends = Counter(event[4] for event in counted if event[1] == kind)
        figures[kind] = percentiles(*latencies(events, kind, after=warm), rng) | {
            name: ends[how]
            for name, how in (("refused", "error"), ("timed_out", "timeout"), ("cut", "cut"), ("empty", "empty"))
        }
    lags = outcome["lags"]
    return figures | {
        "answers_per_second": _short(sum(event[1] == "submit" and event[4] == "ok" for event in counted) / seconds),
        "acknowledged": len(outcome["acknowledged"]),
        "errors": outcome["errors"],
        "crowd": {
            "late_p99_ms": _short(lags[int(0.99 * (len(lags) - 1))] * 1000) if lags else None,
            "cpu_seconds": _short(outcome["cpu_seconds"]),
            "peak_mib": round(outcome["peak_mib"]),
            "signing_in_seconds": _short(outcome["signing_in_seconds"]),
        },
    }


def kept(acknowledged: Iterable[Sequence[Any]], stored: Iterable[Sequence[Any]]) -> dict[str, int]:
    """What became of the answers: those acknowledged and not there, and items that two raters answered.

    Args:
        acknowledged, stored: (rater, item); the queue asks for one answer an item.
    """
    there = Counter(tuple(pair) for pair in stored)
    told = {tuple(pair) for pair in acknowledged}
    by_item = Counter(item for _, item in there)
    return {
        "stored": sum(there.values()),
        "lost": len(told - set(there)),
        "stored_twice": sum(n - 1 for n in there.values()),
        "items_answered_too_often": sum(n > 1 for n in by_item.values()),
    }


def ratios(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float | None]:
    """Their p95 over ours, for both kinds; larger is better, None where one side has no figure."""
    pairs = {kind: (ours[kind]["p95_ms"], theirs[kind]["p95_ms"]) for kind in KINDS}
    return {kind: _short(b / a) if a and b else None for kind, (a, b) in pairs.items()}


def costs(peak_mib: float, cpu_seconds: float, n_answers: int) -> dict[str, float | None]:
    """What a server used: resident memory at its highest, processor seconds, and those of one answer, milliseconds."""
    each = 1000 * cpu_seconds / n_answers if n_answers else None
    return {"peak_mib": round(peak_mib), "cpu_seconds": _short(cpu_seconds), "cpu_ms_an_answer": _short(each)}


def over(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> float | None:
    """Their server's use over ours; larger is better, None where one side has no figure."""
    a, b = ours["server"][name], theirs["server"][name]
    return _short(b / a) if a and b else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
