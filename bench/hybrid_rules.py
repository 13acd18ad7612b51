"""Other rules for the time of ratings and comparisons, on fresh seeds, beside the one in place.

    python bench/hybrid_rules.py [--quick] [--minutes 20] [--out bench/results/hybrid_rules.json]

The `hybrid` way of `bench/hybrid_study.py`, seeds 2000 to 2035, three worlds, ICC −.10, 0 and +.10 from break-even.

    place     a quarter of the first round on ratings, then 95 % to the better kind
    fifths    two fifths first, then the same
    half      half first, then the share σ(9z) but at least 2 % to each kind; z = log worth/se, se² = 15/ratings +
              5/comparisons, which fits the errors that `bench/hybrid_limits.py` found

`half` is the shape of the best rule for two states (`bench/hybrid_best_rule.py`): a large first look, all to one kind where
the estimate is a third of its error away from even, and something between where it is nearer.

Said before any run: a rule takes the place of the one in place if its savings, summed over the nine cells, are larger with a 95 %
interval above 0 (pools of a world drawn with replacement, all rules on the same pools), and no cell's own interval lies below 0.
Beside it stands what the shares alone would have made of it, Σ 1 − exp(−mean log(1 + f(ρ − 1))), which has less noise and
decides nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.by_seed import by_seed
from bench.hybrid_best_rule import States
from bench.hybrid_study import (
    EXPLORE,
    FIRST_SHARE,
    N_CURVES,
    N_RESAMPLED,
    ROUND,
    TIME,
    Collected,
    break_even,
    compared_only,
    log_worth,
    saving,
)
from bench.worlds.hybrid import WORLDS, HybridWorld, draw_pool

from karat.seeding import numpy_generator

FIRST_SEED, N_SEEDS = 2000, 36
TRIED = (WORLDS[1], WORLDS[2], WORLDS[3])
BEYOND = (-0.10, 0.0, 0.10)
LEAST, STEEP = 0.02, 9.0
Share = Callable[[float, int, int], float]
"""Share of the next round, from log worth and the numbers of ratings and comparisons."""


def mostly(log_worth: float, _n_ratings: int, _n_pairs: int) -> float:
    """95 % to the better kind."""
    return 1 - EXPLORE if log_worth > 0 else EXPLORE


def steep(log_worth: float, n_ratings: int, n_pairs: int) -> float:
    """σ(9z), at least 2 % each."""
    z = log_worth / math.sqrt(15 / max(n_ratings, 1) + 5 / max(n_pairs, 1))
    return min(max(1 / (1 + math.exp(-STEEP * z)), LEAST), 1 - LEAST)


RULES: dict[str, tuple[float, Share]] = {"place": (FIRST_SHARE, mostly), "fifths": (0.4, mostly), "half": (0.5, steep)}


def spent(world: HybridWorld, rule: str, beyond: float, seed: int) -> tuple[float, float]:
    """Accuracy after 800 units, and the share of the time that went to ratings."""
    pool = draw_pool(world, numpy_generator(seed, "hybrid", world.name, "pool"))
    rng = numpy_generator(seed, "hybrid rules", world.name, rule)
    collected = Collected(world, pool, world.rating_sd(break_even(world)[0] + beyond), rng)
    share, by_rule = RULES[rule]
    fitted, on_ratings = None, 0.0
    for _ in range(TIME // ROUND):
        collected.ask(ROUND, share)
        on_ratings += share * ROUND
        fitted = collected.fit(fitted)
        share = by_rule(log_worth(pool, fitted, world, rng), len(collected.value), len(collected.level))
    assert fitted is not None
    return pool.accuracy(fitted.posterior.mean), on_ratings / TIME


def one_seed(world: HybridWorld, seed: int) -> dict:
    """The curve of comparisons, and every rule's accuracies and shares at each ICC."""
    curves = [compared_only(world, seed, repeat) for repeat in range(N_CURVES)]
    found: dict = {"comparisons": np.mean(curves, 0).round(5).tolist()}
    for rule in RULES:
        accuracy, share = zip(*[spent(world, rule, beyond, seed) for beyond in BEYOND], strict=True)
        found[rule] = {"accuracy": np.round(accuracy, 5).tolist(), "share": np.round(share, 5).tolist()}
    return found


def drawn_savings(world: HybridWorld, rows: list[dict]) -> dict[str, np.ndarray]:
    """Savings of each rule, [1 + N_RESAMPLED, BEYOND], measured and by shares alone (`… by shares`)."""
    n = len(rows)
    rng = numpy_generator(0, "hybrid rules", "intervals", world.name)
    weights = np.concatenate([np.full((1, n), 1 / n), rng.multinomial(n, np.full(n, 1 / n), N_RESAMPLED) / n])
    curves = weights @ np.array([row["comparisons"] for row in rows])
    worth = np.array([States(world, abs(one)).worth[int(one > 0)] for one in BEYOND])
    found = {}
    for rule in RULES:
        accuracy = weights @ np.array([row[rule]["accuracy"] for row in rows])
        found[rule] = np.stack([saving(curve, own) for curve, own in zip(curves, accuracy, strict=True)])
        shares = np.array([row[rule]["share"] for row in rows])
        found[f"{rule} by shares"] = -np.expm1(-weights @ np.log1p(shares * (worth - 1)))
    return found


def interval(drawn: np.ndarray) -> list[float]:
    """The first with the others' 95 % percentile interval."""
    return [round(float(one), 3) for one in (drawn[0], *np.quantile(drawn[1:], [0.025, 0.975]))]


def summary(world: HybridWorld, rows: list[dict]) -> dict:
    """Savings and shares of every rule, and its advantage over the one in place, by cell."""
    drawn = drawn_savings(world, rows)
    found: dict = {"seeds": len(rows)}
    for rule in RULES:
        found[rule] = {
            "share": np.mean([row[rule]["share"] for row in rows], 0).round(3).tolist(),
            "saving": [interval(one) for one in drawn[rule].T],
            "more than place": [interval(one) for one in (drawn[rule] - drawn["place"]).T],
        }
    return found


def sums(by_world: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Each rule's advantage summed over all cells: measured, and by shares alone."""
    drawn = {world.name: drawn_savings(world, by_world[world.name]) for world in TRIED if by_world.get(world.name)}
    return {
        rule + more: interval(sum(one[rule + more].sum(1) - one["place" + more].sum(1) for one in drawn.values()))
        for rule in RULES if rule != "place" for more in ("", " by shares")
    }  # fmt: skip


def main() -> None:
    """Run it, write it down, and say who won."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds: does it run?")
    parser.add_argument("--minutes", type=float, default=600, help="start no further seed after these")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    seeds = list(range(FIRST_SEED, FIRST_SEED + (2 if options.quick else N_SEEDS)))
    about = {"time": TIME, "round": ROUND, "beyond": BEYOND}
    found = by_seed(TRIED, seeds, one_seed, summary, about=about, out=options.out, minutes=options.minutes)
    found["sums"] = sums({name: list(one["rows"].values()) for name, one in found["worlds"].items()})
    if options.out is not None:
        options.out.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = {name: one["summary"] for name, one in found["worlds"].items()} | {"sums": found["sums"]}
    print(json.dumps(shown, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
