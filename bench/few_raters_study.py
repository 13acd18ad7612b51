"""Do a plan's intervals hold what they say where the pilot had few raters or few items?

    python -m bench.few_raters_study [--pilots 300] [--out FILE]

A pilot asks each item three times; items differ by Beta(1.2, 0.8), raters' mean seconds by Gamma(4, 10). Its truth is the
plan for ±0.1 at overlap 1 in a world of 4,000 items, at 40 seconds a vote. Of the pilots, numbered from 0: the share whose
95 % interval holds the truth, by the rule that `karat.feedback.quality.planning` has and by its bootstrap alone. One
thread, three processor minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from unittest import mock

import numpy as np

from karat.feedback.quality import planning
from karat.feedback.quality.planning import VotePlan, plan_votes, vote_spread, votes_for_half_width
from karat.records import Estimate

PILOTS = ((60, 3), (60, 5), (60, 8), (6, 60), (8, 60), (8, 5))
"""Items and raters."""
HALF_WIDTH, SECONDS, SHAPE = 0.1, 40.0, 4.0
MANY = 10**6
"""Raters that will vote, so that their own leanings are no limit."""


def votes(g: np.random.Generator, n_items: int, n_raters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcome, item and rater of three votes an item."""
    p = g.beta(1.2, 0.8, n_items)
    item = np.repeat(np.arange(n_items), 3)
    rater = np.concatenate([g.choice(n_raters, 3, replace=False) for _ in range(n_items)])
    return (g.random(len(item)) < p[item]).astype(float), item, rater


def plan(n_items: int, n_raters: int, number: int) -> VotePlan:
    """The plan of one pilot."""
    g = np.random.default_rng([number, n_items, n_raters])
    y, item, rater = votes(g, n_items, n_raters)
    seconds = g.gamma(SHAPE, SECONDS / SHAPE, n_raters)[rater]
    return plan_votes(y, item, rater, HALF_WIDTH, g, seconds=seconds, n_raters=MANY, overlaps=(1,))[0]


def covers(found: list[Estimate], truth: float) -> dict[str, float]:
    """Coverage and median width of the intervals that there are."""
    ends = [(one.low, one.high) for one in found if one.low is not None and one.high is not None]
    return {
        "covers": round(float(np.mean([low <= truth <= high for low, high in ends])), 3),
        "width": round(float(np.median([(high - low) / truth for low, high in ends])), 2),
        "without": len(found) - len(ends),
    }


def main() -> None:
    """Print a line for each size of a pilot and each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pilots", type=int, default=300)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    spread = vote_spread(*votes(np.random.default_rng(0), 4000, 60))
    items = votes_for_half_width(spread, HALF_WIDTH, overlap=1) or float("nan")
    rows = []
    for n_items, n_raters in PILOTS:
        for rule, few in (("bootstrap", 0), ("karat", planning.FEW_CLUSTERS)):
            with mock.patch.object(planning, "FEW_CLUSTERS", few):
                found = [plan(n_items, n_raters, number) for number in range(options.pilots)]
            row = {"items": n_items, "raters": n_raters, "rule": rule}
            row |= {"items needed": covers([one.items for one in found], items)}
            row |= {"hours needed": covers([one.hours for one in found], items * SECONDS / 3600)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
