"""What no rule can do: how much time ratings must get where they do not pay, if they are to get it where they do.

    python bench/hybrid_bound.py [--quick] [--out bench/results/hybrid_bound.jsonl]

Two states of a world of `bench/worlds/hybrid.py`: the ratings' ICC is x below break-even, or x above it. Comparisons are the same
in both, so that only ratings tell which one it is. Let p_n and q_n be the chances below and above that an n-th rating is
asked within the time of 800, so that the shares of ratings are f(−) = mean p_n, f(+) = mean q_n. Whether it is asked depends on the n − 1
before it and on what is the same in both states; so, by Neyman and Pearson, p_n is at least the size of the likelihood-ratio
test of power q_n, h_n(q_n). Both fall with n, and h_n is convex with slope 1/c_n, c_n being the test's threshold. Among falling q
of mean f(+), Σ h_n(q_n) is least for q_n = f(+) throughout if the slopes up to no n are smaller on average than
all of them (Abel's summation; *checked* in every row, small n decide little and have slopes near 1):

    f(−) ≥ mean_n P₋(Λ_{n−1} ≥ c_n)        P₊(Λ_{n−1} ≥ c_n) = f(+)        and        f(+) − f(−) ≤ mean_n TV_{n−1}

No rule does better, sequential, random or omniscient, with what it is told, in the mean over what it is not told. It is
told x, the world, and

    all          weights, raters and the unit of ratings, .15 of the scale for a logit: what is left are residuals of one of two sizes
    unit         the unit, and 400 comparisons, as many as the time buys, for nothing, before the first rating; not weights and offsets
    weights      weights and raters; not the unit, whose logarithm is N(log .15, .7²): the prior of `reward.rated_layer`
    comparisons  400 comparisons only: neither weights nor offsets nor the unit

Weights are N(0, sd²/d), offsets N(0, 1) logits, gains 1. Λ is exact where the weights are told; else their posterior after the
comparisons is Laplace's and the ratings' likelihood under it exact.

What can be had lies between this and *stopping*, a rule with the same gifts that rates until Λ < c, then never again. Prompts'
levels count as noise of each rating by itself. Every figure is given for the share f(+) that a saving of .30 needs, and for the one that
`bench/results/hybrid_study.json` has; intervals of 95 %, data sets drawn with replacement.

Saving of a share f: information is 1 + f·(ρ − 1) times that of comparisons alone, ρ = s₀²/s² at equal time, s all that is
left of a rating around the score; saving = 1 − 1/(1 + f·(ρ − 1)).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.hybrid_study import BEYOND, TIME, break_even
from bench.worlds.hybrid import UNIT, WORLDS, HybridWorld

from karat.choice import RaterParams, VoteBatch
from karat.reward.last_layer import LastLayer, comparison_observations, fit_last_layer
from karat.reward.latents import LOG_GAIN_SD
from karat.seeding import numpy_generator

X = (0.05, 0.10, 0.20)
TOLD = ("all", "unit", "weights", "comparisons")
AT = (0, 2, 4, 6, 8, 11, 15, 20, 25, 30, 40, 50, 65, 80, 100, 125, 150, 200, 250, 300, 400, 500, 650, 800)
"""Ratings after which Λ is looked at; in between it is taken from the next, which knows more."""
SPANS = np.array([1, *np.diff(AT)[:-1], TIME - 1 - AT[-2]])
"""How many n − 1 of 0 … 799 each stands for."""
N_DRAWN, N_RESAMPLED, N_UNITS, WANTED = 150, 200, 41, 0.30
"""Data sets a state; resamples; nodes for the unit; the saving that is aimed at."""
THRESHOLDS = np.linspace(-8, 8, 161)
"""Of log Λ."""


@cache
def rated_sd(world: HybridWorld, beyond: float) -> float:
    """All that is left of a rating around the score, levels included, logits."""
    return math.hypot(world.rating_sd(break_even(world)[0] + beyond), world.level_sd)


def rate_ratio(world: HybridWorld, beyond: float) -> float:
    """ρ: information of ratings over that of comparisons for the same time."""
    return (rated_sd(world, 0.0) / rated_sd(world, beyond)) ** 2


def saved(share: float, ratio: float) -> float:
    """Saving of a share of the time on ratings; negative = a loss."""
    return 1 - 1 / (1 + share * (ratio - 1))


def share_for(saving: float, ratio: float) -> float:
    """The share that saves so much; above 1 where no share does."""
    return saving / (1 - saving) / (ratio - 1)


@dataclass(frozen=True, eq=False)
class Ratings:
    """Sums over the first n ratings y of rows φ: all that a normal likelihood asks of them."""

    n: int
    yy: float
    by: np.ndarray
    """Φᵀy, [d]."""
    gram: np.ndarray
    """ΦᵀΦ, [d, d]."""


def log_marginals(
    seen: Ratings, mean: np.ndarray, root: np.ndarray, sds: np.ndarray, log_unit: np.ndarray, log_weight: np.ndarray
) -> np.ndarray:
    """log P(ratings) in each state, weights and unit integrated out, [states].

        y = g·(φ·w + s·e)        w ~ N(m, LLᵀ)        y/g ~ N(Φm, s²I + ΦLLᵀΦᵀ)

    Args: mean, root: m [d], L [d, k].    sds: s by state.    log_unit, log_weight: nodes of log g and their log-weights.
    """
    a, basis = np.linalg.eigh(root.T @ seen.gram @ root)
    turn, unit = basis.T @ root.T, np.exp(log_unit)[:, None]
    gram_mean = seen.gram @ mean
    left = seen.yy / unit[:, 0] ** 2 - 2 * float(mean @ seen.by) / unit[:, 0] + float(mean @ gram_mean)
    along = (seen.by / unit - gram_mean) @ turn.T
    found = []
    for s2 in sds**2:
        squares = (left - (along**2 / (s2 + a)).sum(-1)) / s2
        each = -seen.n * log_unit - (seen.n * math.log(2 * math.pi * s2) + np.log1p(a / s2).sum() + squares) / 2
        found.append(np.logaddexp.reduce(each + log_weight))
    return np.array(found)


def units(told: str) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of log g and their log-weights: one node where the unit is known."""
    if told in ("all", "unit"):
        return np.array([math.log(UNIT)]), np.zeros(1)
    z = np.linspace(-4, 4, N_UNITS)
    return math.log(UNIT) + LOG_GAIN_SD * z, -(z**2) / 2 - np.logaddexp.reduce(-(z**2) / 2)


class Drawn:
    """One data set of a state: weights, unit, comparisons and ratings as they come."""

    def __init__(self, world: HybridWorld, sd: float, told: str, unit: float, rng: np.random.Generator) -> None:
        d, k, n_pairs = world.n_features, world.n_raters, TIME // 2
        self.world, self.told = world, told
        self.w = world.reward_sd / math.sqrt(d) * rng.standard_normal(d)
        self.pairs = rng.standard_normal((2 * n_pairs, d))
        delta = (self.pairs[:n_pairs] - self.pairs[n_pairs:]) @ self.w
        self.level = (rng.random(n_pairs) < 1 / (1 + np.exp(-delta))).astype(int)
        self.rows = rng.standard_normal((TIME, d))
        score = self.rows @ self.w
        if told in ("unit", "comparisons"):
            who = rng.integers(0, k, TIME)
            score = score + world.offset_sd * rng.standard_normal(k)[who]
            self.rows = np.concatenate([self.rows, np.eye(k)[who]], 1)
        self.y = unit * (score + sd * rng.standard_normal(TIME))

    def first(self, n: int) -> Ratings:
        """The first n ratings."""
        rows, y = self.rows[:n], self.y[:n]
        return Ratings(n, float(y @ y), rows.T @ y, rows.T @ rows)

    def belief(self, n_pairs: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and root of the covariance of what multiplies a row, after the first comparisons."""
        d, n_raters = len(self.w), self.rows.shape[1] - len(self.w)
        if not n_raters:
            return self.w, np.zeros((d, 1))
        fitted = self.compared(n_pairs)
        root = self.world.offset_sd * np.eye(d + n_raters)
        root[:d, :d] = np.linalg.cholesky(fitted.covariance)
        return np.concatenate([fitted.mean, np.zeros(n_raters)]), root

    def compared(self, n_pairs: int) -> LastLayer:
        """Laplace's posterior of the weights under the prior that they come from."""
        a = np.arange(n_pairs)
        votes = VoteBatch(
            *map(torch.from_numpy, (a, len(self.level) + a, self.level[:n_pairs])), torch.zeros(n_pairs),
            torch.zeros(n_pairs, dtype=torch.long), 2,
        )  # fmt: skip
        raters = RaterParams(torch.ones(1), torch.zeros(1), torch.zeros(1), torch.zeros(1))
        return fit_last_layer(
            self.pairs, [comparison_observations(votes, raters)], tolerance=1e-6,
            prior_precision=len(self.w) / self.world.reward_sd**2,
        )  # fmt: skip


def log_ratios(world: HybridWorld, x: float, told: str, *, above: bool, n_drawn: int) -> np.ndarray:
    """log Λ = log P₊ − log P₋ after each of AT ratings, drawn in one of the states, [data sets, AT]."""
    sds = np.array([rated_sd(world, -x), rated_sd(world, x)])
    nodes, found = units(told), np.zeros((n_drawn, len(AT)))
    for i in range(n_drawn):
        rng = numpy_generator(i, "bound", world.name, told, str(x), above)
        unit = UNIT * math.exp(LOG_GAIN_SD * rng.standard_normal() if told in ("weights", "comparisons") else 0.0)
        drawn = Drawn(world, float(sds[int(above)]), told, unit, rng)
        belief = drawn.belief(TIME // 2)
        for j, n in enumerate(AT[1:], 1):
            below, on_top = log_marginals(drawn.first(n), *belief, sds, *nodes)
            found[i, j] = on_top - below
    return found


def bound(below: np.ndarray, above: np.ndarray, wanted: float) -> float:
    """Least f(−) of any rule with this f(+); Λ after AT[j] ratings stands for all n − 1 in (AT[j − 1], AT[j]]."""
    sizes = [wanted]  # before any rating the chances are the same
    for own_below, own_above in zip(below.T[1:], above.T[1:], strict=True):
        sizes.append(float((own_below >= np.quantile(own_above, 1 - wanted)).mean()))
    return float(np.array(sizes) @ SPANS) / TIME


def constant_is_best(above: np.ndarray, wanted: float) -> bool:
    """Whether slopes 1/c_n up to no n are smaller on average than all of them, so that `bound` is one."""
    slopes = np.exp(-np.quantile(above, 1 - wanted, axis=0))  # before any rating log Λ = 0
    so_far = np.cumsum(slopes * SPANS) / np.cumsum(SPANS)
    return bool((so_far >= so_far[-1] * (1 - 1e-9)).all())


def stopping(below: np.ndarray, above: np.ndarray, threshold: float) -> np.ndarray:
    """f(−), f(+) of the rule that rates until Λ is seen below the threshold."""
    found = []
    for one in (below, above):
        out = one[:, :-1] < threshold
        found.append(np.where(out.any(1), np.array(AT)[out.argmax(1)], TIME).mean() / TIME)
    return np.array(found)


def least_below(pairs: np.ndarray, wanted: float) -> float | None:
    """Least f(−) among mixtures of (f(−), f(+)) pairs whose f(+) is as wanted; None where none has it."""
    pairs = np.concatenate([pairs, [[0.0, 0.0], [1.0, 1.0]]])
    best = math.inf
    enough, less = pairs[pairs[:, 1] >= wanted], pairs[pairs[:, 1] < wanted]
    for one in enough:
        share = (wanted - less[:, 1]) / (one[1] - less[:, 1])  # of this one, the rest of each of the others
        best = min(best, float(one[0]), float((less[:, 0] + share * (one[0] - less[:, 0])).min(initial=math.inf)))
    return best if math.isfinite(best) else None


def bounded(below: np.ndarray, above: np.ndarray, wanted: float, ratio: float) -> dict:
    """The bound on f(−) with its interval, what stopping has, and the losses that they mean."""
    rng, n = numpy_generator(0, "bound", "intervals"), len(below)
    drawn = [bound(below[rng.integers(n, size=n)], above[rng.integers(n, size=n)], wanted) for _ in range(N_RESAMPLED)]
    stopped = least_below(np.array([stopping(below, above, c) for c in THRESHOLDS]), wanted)
    least = bound(below, above, wanted)
    low, high = (float(v) for v in np.quantile(drawn, [0.025, 0.975]))
    found: dict = {
        "bound": [round(v, 4) for v in (least, low, high)],
        "saving": round(saved(least, ratio), 3),
        "checked": constant_is_best(above, wanted),
    }
    if stopped is not None:
        found |= {"stopping": round(stopped, 4), "stopping's saving": round(saved(stopped, ratio), 3)}
    return found


def one_case(world: HybridWorld, x: float, ours: tuple[float, float] | None, n_drawn: int) -> dict:
    """A world and x: shares and savings below break-even, by what is told."""
    ratios = rate_ratio(world, -x), rate_ratio(world, x)
    wanted = {f"saves {WANTED}": share_for(WANTED, ratios[1])}
    row: dict = {"world": world.name, "x": x, "data sets": n_drawn, "rho": [round(v, 3) for v in ratios]}
    if ours is not None:
        wanted["ours"] = ours[1]
        savings = [round(saved(share, ratio), 3) for share, ratio in zip(ours, ratios, strict=True)]
        row["ours"] = {"shares": ours, "savings by share": savings}
    row["f(+)"] = {name: round(share, 3) for name, share in wanted.items()}
    for told in TOLD:
        below, above = (log_ratios(world, x, told, above=state, n_drawn=n_drawn) for state in (False, True))
        tv = ((above >= 0).mean(0) - (below >= 0).mean(0)) * (np.array(AT) > 0)
        row[told] = {"f(+) - f(-), at most": round(float(tv @ SPANS) / TIME, 3)} | {
            name: bounded(below, above, share, ratios[0]) for name, share in wanted.items() if share <= 1
        }
    return row


def our_shares(world: HybridWorld, x: float) -> tuple[float, float] | None:
    """Mean shares of ratings that the study has at −x and +x; None where it was not there."""
    if -x not in BEYOND or x not in BEYOND:
        return None
    path = Path(__file__).parent / "results" / "hybrid_study.json"
    share = json.loads(path.read_text(encoding="utf-8"))["worlds"][world.name]["summary"]["hybrid"]["share"]
    return share[BEYOND.index(-x)], share[BEYOND.index(x)]


def study(*, quick: bool) -> list[dict]:
    """All worlds of honest ratings, and all x that leave an ICC above 0."""
    cases = [(world, x) for world in WORLDS[:4] for x in X if break_even(world)[0] > x]
    return [one_case(world, x, our_shares(world, x), 20 if quick else N_DRAWN) for world, x in cases]


def main() -> None:
    """Run it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twenty data sets: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = study(quick=options.quick)
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
