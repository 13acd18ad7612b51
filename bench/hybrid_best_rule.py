"""How well could any rule part the time between ratings and comparisons? A bound, and the best rule for two states.

    python bench/hybrid_best_rule.py [--quick] [--x 0.1] [--out bench/results/hybrid_best_rule.json]

Beside `bench/hybrid_study.py`, on its worlds of honest ratings: 800 readings in eight rounds, ratings' ICC either x below
break-even (state −) or x above it (state +). A rule sets the share s_k of round k from what came in before, H_{k−1}. So
E₊[s_k] − E₋[s_k] ≤ TV(P₊(H_{k−1}), P₋(H_{k−1})), and for the mean share of the time, f,

    f(+) − f(−) ≤ ⅛ Σ_k TV_{k−1}        TV_0 = 0

The rule is given more than any rule can have: that the state is one of these two, the world, the size of the reward, each
rater's gain beside the others'. Degrees of knowledge:

    all        weights, offsets and the ratings' scale too: residuals are N(0, σ²) with one of two σ; exact (χ²)
    weights    the ratings' common gain is not known: log g ~ N(log 0.15, 0.7²), as `reward.latents` believes; exact but for
               the average over draws
    scale      the gain is known; w ~ N(0, R²/d·I) and offsets ~ N(0, 1) are not. Ratings have an exact Gaussian
               likelihood, comparisons a Laplace one
    nothing    neither is known: what a real rule has
    middle     as `nothing`, but the gain happens to lie in the middle of what is believed of it, as in the study's worlds:
               no bound (who bets on the middle has `scale`), but what the best rule for `nothing` comes to there

TV = E|tanh(L/2)|, L the log likelihood ratio, over draws from both states by halves. In the bound all time so far went to
whatever mix tells most. In the first two that is all to ratings, which hold what any rule could have seen; in the others it is the
best of SHARES, and a rule that chooses its mix by what it sees might pass it a little. Levels of prompts are noise here, σ² + τ².

The best rule for two states. L is taken as Gaussian, N(±J/2, J) with J(time, ratings) from TV = 2Φ(√J/2) − 1; a share f
gives 1 + f(ρ − 1) times the information of comparisons alone, ρ = (1/κ)/(σ² + τ²), and mean accuracy rises with the logarithm
of time, so that the saving is 1 − exp(−E log(1 + f(ρ − 1))). Dynamic programming over rounds, ratings so far and L
gives the rule of the largest p·E₊ + (1 − p)·E₋ for prior odds of every size: what a saving at + x costs at − x, about.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.special import logsumexp
from scipy.stats import chi2, norm

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.hybrid_study import ROUND, TIME, break_even
from bench.worlds.hybrid import WORLDS, HybridWorld

from karat.reward.latents import LOG_GAIN_SD
from karat.seeding import numpy_generator

SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the time so far, on ratings: where TV is measured."""
STEPS = (0, 10, 20, 30, 40, 50, 70, 100)
"""Ratings that the best rule may make in a round; it counts them in tens."""
KNOWLEDGE = ("all", "weights", "scale", "nothing", "middle")
PLAYED = ("nothing", "middle")
"""Degrees for which the best rule is looked for."""
N_DRAWN = 300
WANTED = 0.30
"""The saving that is aimed at."""
LOG_GAINS = np.linspace(-3, 3, 41) * LOG_GAIN_SD
GRID, MOST_L = 61, 10.0
LOG_ODDS = np.linspace(-2, 2, 9)


@dataclass(frozen=True)
class States:
    """Two states of a world."""

    world: HybridWorld
    x: float

    @property
    def sds(self) -> tuple[float, float]:
        """Noise of a rating, levels included, in logits: state −, state +."""
        at, level = break_even(self.world)[0], self.world.level_sd
        low, high = (math.hypot(self.world.rating_sd(at + sign * self.x), level) for sign in (-1, 1))
        return low, high

    @property
    def worth(self) -> tuple[float, float]:
        """ρ: information of ratings over that of comparisons, for a reading."""
        even = break_even(self.world)[1] ** 2 + self.world.level_sd**2
        return even / self.sds[0] ** 2, even / self.sds[1] ** 2


def saved(share: float, worth: float) -> float:
    """1 − 1/(1 + f(ρ − 1))."""
    return 1 - 1 / (1 + share * (worth - 1))


def share_for(saving: float, worth: float) -> float:
    """The share of the time on ratings that saves so much; above 1 where no share does."""
    return saving / (1 - saving) / (worth - 1)


def tv_of_noise(n: int, sds: tuple[float, float]) -> float:
    """TV of n draws of N(0, σ₋²) and of N(0, σ₊²), exactly."""
    if n == 0:
        return 0.0
    low, high = sds[0] ** 2, sds[1] ** 2
    cut = n * math.log(low / high) / (1 / high - 1 / low)
    return float(chi2.cdf(cut / high, n) - chi2.cdf(cut / low, n))


@dataclass(frozen=True, eq=False)
class Drawn:
    """Answers of many worlds at once, B: the part that is the same in all states."""

    design: np.ndarray
    """γ_u·φ and the rater, [B, n, d + A]."""
    coefficients: np.ndarray
    """w and offsets, [B, d + A]."""
    precision: np.ndarray
    """What is known of them before the ratings, [B, d + A, d + A]."""
    mean: np.ndarray
    """[B, d + A]."""
    noise: np.ndarray
    """e, [B, n]."""
    log_gain: np.ndarray
    """log g around its middle, [B]."""


def drawn(world: HybridWorld, n_ratings: int, n_pairs: int, rng: np.random.Generator, n_drawn: int) -> Drawn:
    """Worlds with so many ratings and comparisons, the belief from comparisons by Laplace."""
    d, n_raters = world.n_features, world.n_raters
    prior = d / world.reward_sd**2
    w = rng.standard_normal((n_drawn, d)) / math.sqrt(prior)
    delta = math.sqrt(2) * rng.standard_normal((n_drawn, n_pairs, d))
    won = rng.random((n_drawn, n_pairs)) < 1 / (1 + np.exp(-np.einsum("bnd,bd->bn", delta, w)))
    mean, precision = laplace(delta, won.astype(float), prior)
    who = rng.integers(0, n_raters, (n_drawn, n_ratings))
    gain = (1 + world.gain_sd * rng.standard_normal((n_drawn, n_raters))).clip(min=0.2)
    phi = rng.standard_normal((n_drawn, n_ratings, d)) * np.take_along_axis(gain, who, 1)[..., None]
    full = np.zeros((n_drawn, d + n_raters, d + n_raters))
    full[:, :d, :d] = precision
    full[:, range(d, d + n_raters), range(d, d + n_raters)] = 1 / world.offset_sd**2
    return Drawn(
        np.concatenate([phi, np.eye(n_raters)[who]], 2),
        np.concatenate([w, world.offset_sd * rng.standard_normal((n_drawn, n_raters))], 1),
        full,
        np.concatenate([mean, np.zeros((n_drawn, n_raters))], 1),
        rng.standard_normal((n_drawn, n_ratings)),
        LOG_GAIN_SD * rng.standard_normal(n_drawn),
    )


def laplace(delta: np.ndarray, won: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Mode and precision of w after comparisons, for B worlds at once."""
    n_drawn, _, d = delta.shape
    at, ridge = np.zeros((n_drawn, d)), prior * np.eye(d)
    for _ in range(12):
        p = 1 / (1 + np.exp(-(delta @ at[..., None])[..., 0]))
        precision = (delta * (p * (1 - p))[..., None]).transpose(0, 2, 1) @ delta + ridge
        slope = (delta * (won - p)[..., None]).sum(1) - prior * at
        at = at + np.linalg.solve(precision, slope[..., None])[..., 0]
    return at, precision


def log_likelihoods(one: Drawn, rating: np.ndarray, sd: float, *, known: bool) -> tuple[np.ndarray, np.ndarray]:
    """log P(ratings | σ), the gain at its middle and integrated over its prior, but for what no σ changes, [B] each.

    known: weights and offsets are taken as given, instead of integrated out.
    """
    gram, n = one.design.transpose(0, 2, 1) @ one.design, rating.shape[1]
    middle = one.coefficients if known else one.mean
    b = (one.design.transpose(0, 2, 1) @ rating[..., None])[..., 0]
    gm = (gram @ middle[..., None])[..., 0]
    zz, mb, mgm = (rating**2).sum(1), (middle * b).sum(1), (middle * gm).sum(1)
    log_det = np.zeros(len(rating))
    if not known:
        inner = sd**2 * one.precision + gram
        solved = np.linalg.solve(inner, np.stack([b, gm], 2))
        zz, mb, mgm = (
            zz - (b * solved[..., 0]).sum(1),
            mb - (gm * solved[..., 0]).sum(1),
            mgm - (gm * solved[..., 1]).sum(1),
        )
        d = inner.shape[1]
        log_det = np.linalg.slogdet(inner)[1] - d * math.log(sd**2)  # det(I + P⁻¹G/σ²) but for det P
    gain = np.exp(LOG_GAINS)[:, None]
    quadratic = (zz / gain**2 - 2 * mb / gain + mgm) / sd**2
    found = -0.5 * quadratic - n * np.log(gain) - n * math.log(sd) - 0.5 * log_det
    weight = -0.5 * (LOG_GAINS / LOG_GAIN_SD) ** 2
    return found[len(LOG_GAINS) // 2], logsumexp(found + (weight - logsumexp(weight))[:, None], axis=0)


def tv_measured(one: Drawn, sds: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """TV of all data by degree of knowledge: E|tanh(L/2)|, and P₊(L > 0) − P₋(L > 0), which agree where L is right."""
    ratios: dict[str, list[np.ndarray]] = {name: [] for name in KNOWLEDGE[1:]}
    for sd in sds:
        score = (one.design @ one.coefficients[..., None])[..., 0] + sd * one.noise
        free = np.exp(one.log_gain)[:, None] * score
        for name, rating, known, which in (
            ("weights", free, True, 1), ("scale", score, False, 0), ("nothing", free, False, 1), ("middle", score, False, 1)
        ):  # fmt: skip
            low, high = (log_likelihoods(one, rating, each, known=known)[which] for each in sds)
            ratios[name].append(high - low)
    found = {}
    for name, (in_low, in_high) in ratios.items():
        both = np.concatenate([in_low, in_high])
        power = float((in_high > 0).mean() - (in_low > 0).mean())
        # in the middle of its prior the likelihood ratio of `nothing` is a statistic like others
        found[name] = (power if name == "middle" else float(np.abs(np.tanh(both / 2)).mean()), power)
    return found


def measured(world: HybridWorld, xs: tuple[float, ...], n_drawn: int) -> dict[float, dict[str, np.ndarray]]:
    """TV after each round by share of the time on ratings: {x: {knowledge: [rounds 0 … 7, SHARES]}}."""
    n_rounds = TIME // ROUND
    found = {x: {name: np.zeros((n_rounds, len(SHARES))) for name in (*KNOWLEDGE, "check")} for x in xs}
    for k in range(1, n_rounds):
        for j, share in enumerate(SHARES[1:], 1):
            n_ratings = round(k * ROUND * share)
            rng = numpy_generator(0, "hybrid bound", world.name, k, str(share))
            one = drawn(world, n_ratings, (k * ROUND - n_ratings) // 2, rng, n_drawn)
            for x in xs:
                sds = States(world, x).sds
                found[x]["all"][k, j] = tv_of_noise(n_ratings, sds)
                for name, (value, check) in tv_measured(one, sds).items():
                    found[x][name][k, j] = value
                    if name == "nothing":
                        found[x]["check"][k, j] = check
    return found


def told(tv: np.ndarray) -> RegularGridInterpolator:
    """J over rounds and share of the time on ratings; draws' errors may not make more data tell less."""
    j = (2 * norm.ppf((1 + tv.clip(0, 1 - 1e-6)) / 2)) ** 2
    return RegularGridInterpolator((np.arange(len(j)), np.array(SHARES)), np.maximum.accumulate(j, 0))


def best_rule(states: States, tv: np.ndarray, log_odds: float) -> dict[str, float]:
    """Of the rule with the largest p·E₊ + (1 − p)·E₋ of log information: shares and savings in both states."""
    ten, n_rounds = 10, TIME // ROUND
    counts, line = np.arange(0, TIME + 1, ten), np.linspace(-MOST_L, MOST_L, GRID)
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    weights = weights / weights.sum()
    information = told(tv)
    belief = 1 / (1 + np.exp(-(line + log_odds)))
    # of the end, in state − and in +: log information, share
    worth = np.array(states.worth)[:, None]
    ends = np.stack([np.log1p(counts / TIME * (worth - 1)), np.broadcast_to(counts / TIME, (2, len(counts)))])
    value = np.broadcast_to(ends[..., None], (*ends.shape, GRID)).copy()  # [2 figures, 2 states, counts, L]
    for k in reversed(range(n_rounds)):
        value = one_round(value, k, information, belief, (nodes, weights), line)
    start = value[:, :, 0, GRID // 2]
    return {
        "f-": float(start[1, 0]), "f+": float(start[1, 1]),
        "saving-": float(-np.expm1(-start[0, 0])), "saving+": float(-np.expm1(-start[0, 1])),
    }  # fmt: skip


def one_round(
    value: np.ndarray,
    k: int,
    information: RegularGridInterpolator,
    belief: np.ndarray,
    rule: tuple[np.ndarray, np.ndarray],
    line: np.ndarray,
) -> np.ndarray:
    """One step back: of all numbers of ratings in round k, the one with the best belief-weighted log information."""
    nodes, weights = rule
    before = value.copy()
    for n in range(0, k * ROUND // 10 + 1):
        now = float(information([(k, n * 10 / (k * ROUND))])[0]) if k else 0.0
        best = np.full(len(line), -np.inf)
        for step in STEPS:
            after = n + step // 10
            # after the last round nothing is asked any more
            then = float(information([(k + 1, after * 10 / ((k + 1) * ROUND))])[0]) if k + 1 < TIME // ROUND else now
            grown = max(then - now, 0.0)
            moved = np.empty((2, 2, len(line)))
            for state, sign in enumerate((-1, 1)):
                at = line[:, None] + sign * grown / 2 + math.sqrt(grown) * nodes
                for figure in range(2):
                    moved[figure, state] = np.interp(at, line, value[figure, state, after]) @ weights
            worth = belief * moved[0, 1] + (1 - belief) * moved[0, 0]
            better = worth > best
            best = np.where(better, worth, best)
            before[:, :, n] = np.where(better, moved, before[:, :, n])
    return before


def frontier(states: States, tv: np.ndarray) -> list[dict[str, float]]:
    """The best rules for all prior odds, from never to always on ratings."""
    return [best_rule(states, tv, float(one)) for one in LOG_ODDS]


def least_loss(rules: list[dict[str, float]], saving: float) -> dict[str, float] | None:
    """The loss and share in state − that go with a saving in state +, mixing neighbouring rules; None = out of reach."""
    rules = sorted(rules, key=lambda one: one["saving+"])
    gains = [one["saving+"] for one in rules]
    if gains[-1] < saving:
        return None
    return {name: float(np.interp(saving, gains, [one[name] for one in rules])) for name in ("f-", "f+", "saving-")}


def ours(world: HybridWorld, x: float) -> dict[str, float]:
    """What the study found of the allocator, where it looked."""
    path = Path(__file__).parent / "results" / "hybrid_study.json"
    summary = json.loads(path.read_text(encoding="utf-8"))["worlds"][world.name]["summary"]
    at, found = [round(icc - summary["break_even"]["theory_icc"], 2) for icc in summary["icc"]], {}
    for sign, name in ((-x, "-"), (x, "+")):
        if round(sign, 2) in at:
            i = at.index(round(sign, 2))
            found |= {f"f{name}": summary["hybrid"]["share"][i], f"saving{name}": summary["hybrid"]["saving"][i][0]}
    return found


def row(states: States, tv: dict[str, np.ndarray]) -> dict:
    """Bound, best rule and ours for one pair of states."""
    worth_low, worth_high = states.worth
    needed = share_for(WANTED, worth_high)
    found: dict = {
        "world": states.world.name, "x": states.x, "worth": [worth_low, worth_high],
        "needed": needed, "ours": ours(states.world, states.x), "by": {},
    }  # fmt: skip
    for name in KNOWLEDGE:
        most = tv[name].max(1)
        low = max(needed - float(most.mean()), 0.0)
        found["by"][name] = {
            "tv": most.tolist(), "bound": float(most.mean()), "f- by the bound": low,
            "saving- by the bound": saved(low, worth_low),
        }  # fmt: skip
        if name in PLAYED:
            rules = frontier(states, tv[name])
            found["by"][name] |= {"best": least_loss(rules, WANTED), "frontier": rules}
    error = tv["nothing"] - tv["check"]
    found["tv less power"] = {"mean": float(error[1:, 1:].mean()), "most": float(np.abs(error).max())}
    return found


def study(xs: tuple[float, ...], *, quick: bool) -> list[dict]:
    """Every world of honest ratings, every pair of states that there is."""
    rows = []
    for world in WORLDS[:1] if quick else WORLDS[:4]:
        found = measured(world, tuple(one for one in xs if one < break_even(world)[0]), 20 if quick else N_DRAWN)
        rows += [row(States(world, x), tv) for x, tv in found.items()]
        print(world.name, file=sys.stderr, flush=True)
    return rows


def rounded(value: object) -> object:
    """Three digits are more than the draws know."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Run it and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one world, few draws: does it run?")
    parser.add_argument("--x", type=float, nargs="+", default=[0.10], help="distances from break-even, ICC")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found = rounded(study(tuple(options.x), quick=options.quick))
    if options.out is not None:
        options.out.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(found, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
