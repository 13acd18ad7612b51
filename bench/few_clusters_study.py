"""Do intervals of statistics that are not means hold what they say over few clusters?

    python -m bench.few_clusters_study [--worlds 1000] [--drawn 100] [--only AUROC …] [--out FILE]

A world has G clusters of 5 to 39 rows; what the clusters share makes their rows alike. Its truth is the statistic of one
world of 20,000 clusters. Of the worlds of one G, numbered from 0: the share whose 95 % interval holds the truth, by the
percentile bootstrap of 300 draws (of the first `--drawn` worlds: it takes long) and by the jackknife that
`karat.resampling` has below ten clusters. One thread, four processor minutes.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from karat.errors import ConvergenceError
from karat.forecasts import auroc, calibration_slope, ece, spearman
from karat.records import Estimate
from karat.resampling import jackknife_interval, percentile_interval
from karat.reward.distance import epic_distance

CLUSTERS = (3, 4, 5, 6, 8, 9)
N_DRAWS, N_TRUTH = 300, 20_000
Rows = tuple[np.ndarray, ...]
Draw = Callable[[np.random.Generator, np.ndarray, int], Rows]
Statistic = Callable[..., float]


def expit(z: np.ndarray) -> np.ndarray:
    """1/(1 + e^{−z})."""
    return 1 / (1 + np.exp(-z))


def ranked(g: np.random.Generator, c: np.ndarray, n: int) -> Rows:
    """Scores and outcomes: clusters differ in how high they score and in how often the outcome is 1."""
    y = g.random(len(c)) < expit(g.normal(0, 0.7, n))[c]
    return g.normal(0, 0.7, n)[c] + y + g.normal(size=len(c)), y.astype(float)


def forecast(g: np.random.Generator, c: np.ndarray, n: int) -> Rows:
    """Probabilities and outcomes: clusters differ in how overconfident the forecast is."""
    logit = g.normal(0, 1.5, len(c))
    return expit(logit), (g.random(len(c)) < expit(g.normal(0.8, 0.4, n)[c] * logit + g.normal(0, 0.4, n)[c])).astype(
        float
    )


def related(g: np.random.Generator, c: np.ndarray, n: int) -> Rows:
    """Two numbers a row: clusters differ in the first and in how the second follows it."""
    x = g.normal(size=len(c)) + g.normal(0, 0.7, n)[c]
    return x, g.normal(0.6, 0.3, n)[c] * x + g.normal(size=len(c))


def skewed(g: np.random.Generator, c: np.ndarray, n: int) -> Rows:
    """Lognormal numbers, half of whose log-variance is the clusters'."""
    return (np.exp(0.6 * (g.normal(size=n)[c] + g.normal(size=len(c)))),)


def _value(figure: Callable[..., Estimate]) -> Statistic:
    def of(*columns: np.ndarray) -> float:
        value = figure(*columns[:2]).value
        return float("nan") if value is None else value

    return of


WORLDS: dict[str, tuple[Draw, Statistic]] = {
    "AUROC": (ranked, _value(auroc)),
    "calibration slope": (forecast, _value(calibration_slope)),
    "ECE": (forecast, _value(ece)),
    "Spearman": (related, _value(spearman)),
    "EPIC distance": (related, lambda x, y, c: epic_distance(x, y, c)),
    "median": (skewed, lambda x, _: float(np.median(x))),
    ".9-quantile": (skewed, lambda x, _: float(np.quantile(x, 0.9))),
}


def world(name: str, g: np.random.Generator, n: int) -> tuple[list[np.ndarray], Callable[[np.ndarray], float]]:
    """The rows of each cluster of a world, and the statistic of some rows; NaN where it is not defined."""
    draw, statistic = WORLDS[name]
    c = np.repeat(np.arange(n), g.integers(5, 40, n))
    columns = (*draw(g, c, n), c)

    def of(rows: np.ndarray) -> float:
        try:
            return statistic(*(column[rows] for column in columns))
        except ConvergenceError:
            return float("nan")

    return np.split(np.arange(len(c)), np.cumsum(np.bincount(c))[:-1]), of


def by_bootstrap(
    value: float, members: list[np.ndarray], of: Callable[[np.ndarray], float], g: np.random.Generator
) -> Estimate:
    """The percentile interval of whole clusters drawn with replacement."""
    n = len(members)
    draws = np.array([of(np.concatenate([members[k] for k in g.integers(0, n, n)])) for _ in range(N_DRAWS)])
    return percentile_interval(value, draws, n, level=0.95, what="")


def by_jackknife(value: float, members: list[np.ndarray], of: Callable[[np.ndarray], float]) -> Estimate:
    """The interval that statistics of few clusters have."""
    without = np.array([of(np.concatenate(members[:k] + members[k + 1 :])) for k in range(len(members))])
    return jackknife_interval(value, without, level=0.95, what="")


@functools.cache
def truth_of(name: str) -> float:
    """The statistic of one world of many clusters."""
    members, of = world(name, np.random.default_rng(12345), N_TRUTH)
    return of(np.concatenate(members))


def measured(name: str, n: int, *, worlds: int, drawn: int) -> dict[str, Any]:
    """Coverage and median width of both intervals over so many clusters."""
    truth = truth_of(name)
    found: dict[str, list[Estimate]] = {"bootstrap": [], "jackknife": []}
    for number in range(worlds):
        g = np.random.default_rng([number, n])
        members, of = world(name, g, n)
        value = of(np.concatenate(members))
        if not np.isfinite(value):
            continue
        found["jackknife"].append(by_jackknife(value, members, of))
        if number < drawn:
            found["bootstrap"].append(by_bootstrap(value, members, of, g))
    row: dict[str, Any] = {"statistic": name, "clusters": n, "truth": round(truth, 4)}
    for rule, every in found.items():
        known = [one for one in every if one.low is not None and one.high is not None]
        row[rule] = {
            "covers": round(float(np.mean([one.low <= truth <= one.high for one in known])), 3),
            "width": round(float(np.median([one.high - one.low for one in known])), 3),
            "n": len(known), "without": len(every) - len(known),
        }  # fmt: skip
    return row


def main() -> None:
    """Print a line for each statistic and number of clusters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--drawn", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.only:
        for n in CLUSTERS:
            rows.append(measured(name, n, worlds=options.worlds, drawn=options.drawn))
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
