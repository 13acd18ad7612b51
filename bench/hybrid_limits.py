"""What can be known of ratings so soon: how sure their worth is after some readings, and whether they mean something else.

    python bench/hybrid_limits.py [--quick] [--out bench/results/hybrid_limits.json]

Beside `bench/hybrid_study.py`, on its worlds, with seeds from 1000 on. *Worth* is log(information of ratings/of comparisons)
for a reading, as the allocator estimates it, against what is true. *Apart* is χ² = dᵀ(Σ_c + Σ_r)⁻¹d of the difference d between
the rewards that comparisons and ratings give each by itself (24 degrees of freedom), and the evidence, in nats, of one
reward over two, all at the raters and the prior precision of the joint fit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.hybrid_study import Collected, break_even, log_worth
from bench.worlds.hybrid import WORLDS, HybridWorld, draw_pool

from karat.choice import RaterParams, VoteBatch
from karat.feedback_columns import RatingBatch
from karat.reward.last_layer import comparison_observations, fit_last_layer
from karat.reward.rated_layer import RatedLayer, rating_observations
from karat.seeding import numpy_generator

FIRST_SEED = 1000
WORTH = ((25, 37), (50, 25), (100, 50), (200, 100), (40, 180))
"""Ratings and comparisons after which their worth is looked at."""
APART = ((100, 50), (200, 100), (400, 100), (600, 60))
"""And whether they are apart."""


def collected(world: HybridWorld, seed: int, asked: tuple[int, int], beyond: float, what: tuple) -> Collected:
    """So many ratings and comparisons at an ICC so far from break-even."""
    pool = draw_pool(world, numpy_generator(seed, "hybrid", world.name, "pool"))
    found = Collected(world, pool, world.rating_sd(break_even(world)[0] + beyond), numpy_generator(seed, *what))
    n_ratings, n_pairs = asked
    found.ask(n_ratings + 2 * n_pairs, n_ratings / (n_ratings + 2 * n_pairs))
    return found


def worth(world: HybridWorld, seed: int, asked: tuple[int, int], beyond: float) -> float:
    """The estimate of one seed."""
    one = collected(world, seed, asked, beyond, ("est", *asked, str(beyond)))
    return log_worth(one.pool, one.fit(), world, one.rng)


def apart(world: HybridWorld, seed: int, asked: tuple[int, int]) -> tuple[float, float]:
    """χ² and evidence of one seed, .10 above break-even."""
    one = collected(world, seed, asked, 0.1, ("halo", *asked))
    n = len(one.level)
    votes = VoteBatch(
        *map(torch.from_numpy, one.pairs.T.copy()), torch.from_numpy(one.level), torch.zeros(n),
        torch.zeros(n, dtype=torch.long), 2,
    )  # fmt: skip
    raters = RaterParams(torch.ones(1), torch.zeros(1), torch.zeros(1), torch.zeros(1))
    compared = comparison_observations(votes, raters)
    ratings = RatingBatch(*map(torch.from_numpy, (one.rated, one.value, one.rater)))
    fitted: RatedLayer = one.fit()
    rated = rating_observations(ratings, fitted.params)
    joint, by_pairs, by_ratings = (
        fit_last_layer(
            one.pool.features, answers, prior_precision=fitted.posterior.prior_precision, start=fitted.posterior.mean,
            tolerance=1e-6,
        )
        for answers in ([compared, rated], [compared], [rated])
    )  # fmt: skip
    gap, spread = by_pairs.mean - by_ratings.mean, by_pairs.covariance + by_ratings.covariance
    evidence = joint.log_evidence - by_pairs.log_evidence - by_ratings.log_evidence
    return float(gap @ np.linalg.solve(spread, gap)), evidence


def study(*, quick: bool) -> dict:
    """Both, for every world and design."""
    n_worth, n_apart = (2, 2) if quick else (30, 20)
    rows: dict = {"worth": [], "apart": []}
    for world in WORLDS[:3]:
        at = break_even(world)[0]
        for asked in WORTH:
            for beyond in (-0.1, 0, 0.1):
                found = [worth(world, FIRST_SEED + i, asked, beyond) for i in range(n_worth)]
                truth = math.log((1 / at - 1) / (1 / (at + beyond) - 1))
                figures = {"truth": truth, "mean": float(np.mean(found)), "sd": float(np.std(found))}
                row = {"world": world.name, "ratings, comparisons": asked, "beyond": beyond, "seeds": n_worth}
                rows["worth"].append(row | {name: round(value, 2) for name, value in figures.items()})
    for world in WORLDS:
        for asked in APART:
            columns = np.array([apart(world, FIRST_SEED + i, asked) for i in range(n_apart)]).T
            row = {"world": world.name, "ratings, comparisons": asked, "seeds": n_apart}
            for name, column in zip(("chi2", "evidence"), columns, strict=True):
                row[name] = dict(
                    zip(("least", "median", "most"), np.quantile(column, [0, 0.5, 1]).round(1).tolist(), strict=True)
                )
            rows["apart"].append(row)
    return rows


def main() -> None:
    """Run it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found = study(quick=options.quick)
    text = "\n".join(json.dumps(row, ensure_ascii=False) for part in found.values() for row in part)
    if options.out is not None:
        options.out.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
