"""Does mixing ratings with comparisons save raters' time? Pools of bench/worlds/hybrid.py, a Bayesian last layer.

    python bench/hybrid_study.py [--quick] [--seeds 48] [--first-seed 0] [--minutes 2] [--out bench/results/hybrid_study.json]

A rating costs the reading of one response, a comparison that of two; the unit of time is one response read. Four ways to
spend 800 of them, in eight rounds of 100 where something is decided on the way:

    comparisons   nothing else, also for half to eight times the time: the curve that the others are measured on
    ratings       nine tenths of the time on ratings, whatever they are worth
    hybrid        the first round a quarter on ratings, then `feedback.allocation` with the noise estimated so far: 95 %
                  of the time to the better kind, 5 % to the other
    raw           as `ratings`, but the raters' offsets and gains are not modelled

All are fitted by `reward.rated_layer`; accuracy is that of the sign on fresh pairs of a prompt. The saving of a way is
1 − 800/t, t being the time at which comparisons alone are as accurate.

Where to break even. A comparison of a and b adds E[p(1 − p)]·ΔφΔφᵀ to the information about the weights. The sign of
Δφ·ŵ depends only on the directions across w, and there Δφ is independent of p: E[ΔφΔφᵀ] = 2·Var(φ), so a comparison
adds 2κ·Var(φ), κ = E[p(1 − p)]. A rating adds Var(φ)/s², s² = σ² + τ² being all that is left of it around the score when
the likelihood knows no levels of prompts. In the time of a comparison two are made, so they break even at

    s² = 1/κ        ICC* = T²/(T² + 1/κ − τ²)        T² = Var(r + level + halo)

twice the noise of σ² = 1/(2κ), which holds where sums say nothing (`feedback.allocation.break_even_sd`). The halo is
not in this: no formula knows that ratings are about something else.

Every finished seed is kept in the file; the same command goes on where it stopped.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.by_seed import by_seed
from bench.worlds.hybrid import WORLDS, HybridPool, HybridWorld, compared, draw_pool, rated

from karat.choice import RaterParams, VoteBatch
from karat.feedback.allocation import KindRate, allocation, break_even_sd, kind_rates
from karat.feedback_columns import RatingBatch
from karat.reward.last_layer import comparison_observations
from karat.reward.rated_layer import RatedLayer, fit_rated_layer
from karat.reward.raters import RaterPriors
from karat.seeding import numpy_generator

SECONDS = {"comparison": 2.0, "rating": 1.0}
"""In responses read."""
TIME, ROUND = 800, 100
TIMES = (400, 600, 800, 1000, 1200, 1600, 2400, 3200, 4800, 6400)
LOG_TIMES = np.log(TIMES)
BEYOND = (-0.10, -0.05, 0.0, 0.05, 0.10, 0.20)
"""ICCs, as distances from break-even."""
KINDS = ("comparison", "rating")
FIRST_SHARE, EXPLORE, RATED_SHARE = 0.25, 0.05, 0.9
N_DRAWS, N_PAIRS = 32, 400
N_RESAMPLED = 2000
WAYS = {"ratings": 2, "hybrid": 1, "raw": 1}
"""Ways to spend the time, and how often a seed tries each; what is compared with most is measured most often."""
N_CURVES, N_SEEDS = 4, 48


def break_even(world: HybridWorld) -> tuple[float, float]:
    """ICC and σ (logits) at which ratings and comparisons say as much for their time."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    delta = np.repeat(np.sqrt(2) * world.reward_sd * nodes, np.round(weights / weights.sum() * 1e6).astype(int))
    left = break_even_sd(delta, level_sd=0.0)
    sd2 = left**2 - world.level_sd**2
    if sd2 <= 0:
        raise SystemExit(f"{world.name}: levels alone are noisier than break-even; expected level_sd < {left:.2f}")
    return world.true_sd**2 / (world.true_sd**2 + sd2), float(np.sqrt(sd2))


class Collected:
    """Answers that came in, as columns."""

    def __init__(self, world: HybridWorld, pool: HybridPool, sd: float, rng: np.random.Generator) -> None:
        self.world, self.pool, self.sd, self.rng = world, pool, sd, rng
        self.pairs, self.level = np.zeros((0, 2), int), np.zeros(0, int)
        self.rated, self.rater, self.value = np.zeros(0, int), np.zeros(0, int), np.zeros(0)

    def ask(self, units: float, rating_share: float) -> None:
        """Spend some time, a share of it on ratings."""
        n_ratings = round(units * rating_share / SECONDS["rating"])
        n_pairs = int((units - n_ratings) / SECONDS["comparison"])
        k, n = self.world.n_responses, len(self.pool.features)
        a = self.rng.integers(0, n, n_pairs)
        b = a // k * k + (a + self.rng.integers(1, k, n_pairs)) % k
        self.pairs = np.concatenate([self.pairs, np.stack([a, b], 1)])
        self.level = np.concatenate([self.level, compared(self.pool, a, b, self.rng)])
        chosen, rater = self.rng.integers(0, n, n_ratings), self.rng.integers(0, self.world.n_raters, n_ratings)
        self.rated, self.rater = np.concatenate([self.rated, chosen]), np.concatenate([self.rater, rater])
        self.value = np.concatenate([self.value, rated(self.pool, chosen, rater, self.sd, self.rng)])

    def fit(self, start: RatedLayer | None = None, *, modelled: bool = True) -> RatedLayer:
        """The reward of everything so far."""
        n = len(self.level)
        raters = RaterParams(torch.ones(1), torch.zeros(1), torch.zeros(1), torch.zeros(1))
        votes = VoteBatch(
            *map(torch.from_numpy, self.pairs.T.copy()), torch.from_numpy(self.level), torch.zeros(n),
            torch.zeros(n, dtype=torch.long), 2,
        )  # fmt: skip
        columns = RatingBatch(*map(torch.from_numpy, (self.rated, self.value, self.rater)))
        priors = RaterPriors(modelled=modelled)
        return fit_rated_layer(
            self.pool.features,
            [comparison_observations(votes, raters)],
            columns,
            self.world.n_raters,
            priors,
            start=start,
        )


def spent(world: HybridWorld, way: str, icc: float, seed: int, repeat: int) -> dict[str, float]:
    """Accuracy after 800 units of one way, and the share of the time that went to ratings."""
    pool = draw_pool(world, numpy_generator(seed, "hybrid", world.name, "pool"))
    rng = numpy_generator(seed, "hybrid", world.name, way, repeat)
    collected = Collected(world, pool, world.rating_sd(icc), rng)
    if way != "hybrid":
        collected.ask(TIME, RATED_SHARE)
        fitted = collected.fit(modelled=way != "raw")
        return {"accuracy": pool.accuracy(fitted.posterior.mean), "share": RATED_SHARE, "noise": fitted.noise}
    fitted, share, on_ratings = None, FIRST_SHARE, 0.0
    for _ in range(TIME // ROUND):
        collected.ask(ROUND, share)
        on_ratings += share * ROUND
        fitted = collected.fit(fitted)
        share = rating_share(pool, fitted, world, rng)
    assert fitted is not None
    return {"accuracy": pool.accuracy(fitted.posterior.mean), "share": on_ratings / TIME, "noise": fitted.noise}


def rating_share(pool: HybridPool, fitted: RatedLayer, world: HybridWorld, rng: np.random.Generator) -> float:
    """What the allocator gives to ratings, by the information that both kinds are expected to give for a second."""
    return allocation(rates_of(pool, fitted, world, rng), KINDS, explore=EXPLORE)["rating"]


def log_worth(pool: HybridPool, fitted: RatedLayer, world: HybridWorld, rng: np.random.Generator) -> float:
    """log(information of ratings/of comparisons) for a second, as the allocator takes it."""
    rates = {kind.kind: kind.rate for kind in rates_of(pool, fitted, world, rng)}
    return math.log(rates["rating"] / rates["comparison"])


def rates_of(pool: HybridPool, fitted: RatedLayer, world: HybridWorld, rng: np.random.Generator) -> list[KindRate]:
    """What each kind is expected to say for its time, by what was learnt so far, over random pairs of a prompt."""
    a = rng.integers(0, len(pool.features), N_PAIRS)
    b = a // world.n_responses * world.n_responses + (a + 1) % world.n_responses
    delta = fitted.posterior.draws(N_DRAWS, rng) @ (pool.features[a] - pool.features[b]).T
    return kind_rates(delta, np.zeros(1), SECONDS, rating_sd=fitted.noise, level_sd=0.0)


def compared_only(world: HybridWorld, seed: int, repeat: int) -> list[float]:
    """Accuracy of comparisons alone at each of TIMES."""
    pool = draw_pool(world, numpy_generator(seed, "hybrid", world.name, "pool"))
    collected = Collected(world, pool, 1.0, numpy_generator(seed, "hybrid", world.name, "comparisons", repeat))
    found, so_far, fitted = [], 0, None
    for units in TIMES:
        collected.ask(units - so_far, 0.0)
        so_far, fitted = units, collected.fit(fitted)
        found.append(pool.accuracy(fitted.posterior.mean))
    return found


def one_seed(world: HybridWorld, seed: int) -> dict:
    """Everything of one seed, means over its repeats: the curve of comparisons, and each way at each ICC."""
    at = break_even(world)[0]
    curves = [compared_only(world, seed, repeat) for repeat in range(N_CURVES)]
    found: dict = {"comparisons": np.mean(curves, 0).round(5).tolist()}
    for way, n_repeats in WAYS.items():
        tried = [[spent(world, way, at + beyond, seed, i) for beyond in BEYOND] for i in range(n_repeats)]
        found[way] = {
            name: np.mean([[one[name] for one in row] for row in tried], 0).round(5).tolist() for name in tried[0][0]
        }
    return found


def saving(curve: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """1 − 800/t, t where a mean curve of comparisons reaches an accuracy, linear in log t; held at the curve's ends."""
    rising = np.maximum.accumulate(curve) + 1e-12 * np.arange(len(curve))
    return 1 - TIME / np.exp(np.interp(accuracy, rising, LOG_TIMES))


def crossing(savings: np.ndarray, icc: np.ndarray) -> float:
    """ICC at which the savings of the fixed mix first pass 0, linear between ICCs; the nearest end where they do not."""
    above = np.flatnonzero(savings > 0)
    if not len(above):
        return float(icc[-1])
    i = int(above[0])
    if i == 0:
        return float(icc[0])
    return float(icc[i - 1] + (icc[i] - icc[i - 1]) * -savings[i - 1] / (savings[i] - savings[i - 1]))


def summary(world: HybridWorld, rows: list[dict]) -> dict:
    """Savings by ICC and the break-even found, with 95 % percentile intervals over seeds drawn with replacement."""
    n = len(rows)
    at, sd = break_even(world)
    icc = at + np.array(BEYOND)
    rng = numpy_generator(0, "hybrid", "intervals")
    weights = np.concatenate([np.full((1, n), 1 / n), rng.multinomial(n, np.full(n, 1 / n), N_RESAMPLED) / n])
    curves = weights @ np.array([row["comparisons"] for row in rows])

    def interval(drawn: np.ndarray) -> list[float]:
        return [round(float(v), 3) for v in (drawn[0], *np.quantile(drawn[1:], [0.025, 0.975]))]

    found: dict = {
        "why": world.why, "seeds": n, "icc": np.round(icc, 3).tolist(),
        "break_even": {"theory_icc": round(at, 3), "theory_sd": round(sd, 3)},
        "comparisons": dict(zip(map(str, TIMES), curves[0].round(4).tolist(), strict=True)),
    }  # fmt: skip
    for way in WAYS:
        means = {name: weights @ np.array([row[way][name] for row in rows]) for name in rows[0][way]}
        savings = np.stack([saving(curve, own) for curve, own in zip(curves, means["accuracy"], strict=True)])
        found[way] = {name: value[0].round(4).tolist() for name, value in means.items()}
        found[way]["saving"] = [interval(column) for column in savings.T]
        if way == "ratings":
            found["break_even"]["found_icc"] = interval(np.array([crossing(own, icc) for own in savings]))
    return found


def study(seeds: list[int], out: Path | None, minutes: float) -> dict:
    """All worlds and seeds that are not there yet, until the time is over; then the summaries of what there is."""
    about = {"time": TIME, "round": ROUND, "explore": EXPLORE}
    return by_seed(WORLDS, seeds, one_seed, summary, about=about, out=out, minutes=minutes)


def hybrid_row(*, quick: bool) -> dict:
    """The study as a row of `python -m bench --long`: the summaries of all worlds."""
    out = Path(__file__).parent / "results" / "hybrid_study.json"
    found = study([0, 1], None, 60) if quick else study(list(range(N_SEEDS)), out, 600)
    return {"work": "hybrid", "complete": found["complete"]} | {k: v["summary"] for k, v in found["worlds"].items()}


def main() -> None:
    """Run the study and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds: does it run?")
    parser.add_argument("--seeds", type=int, default=N_SEEDS)
    parser.add_argument("--first-seed", type=int, default=0, help="settings were tried on seeds from 1000 on")
    parser.add_argument("--minutes", type=float, default=600, help="start no further seed after these")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    n_seeds = 2 if options.quick else options.seeds
    found = study(list(range(options.first_seed, options.first_seed + n_seeds)), options.out, options.minutes)
    print(json.dumps({name: one["summary"] for name, one in found["worlds"].items()}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
