"""Which kind of feedback to ask for: information about a difference of rewards for a second of a person's time.

Two responses compared cost the reading of both; rated or labelled one by one, each is read once. Noise and ties are
estimated from the answers that came in. Knows numbers; knows nothing about texts, stores or models.

    comparison: E[I(Δ)]        ratings of both: ½·(1/σ² + 1/(σ² + 2τ²))        labels of both: g²·E[p(1 − p)]/2

I(Δ) is the Fisher information of a comparison with ties, σ the noise of a rating in logits, p the share of "good" and g how
steeply it rises with the score: 1/g is the scale of a label's noise. Two
ratings say something of the difference of the responses, with noise 2σ², and of their sum, with noise 2σ² + 4τ², τ being
the sd of what all ratings of one prompt share besides the scores. A sum helps where the reward is learnt from features
that all responses share; it says nothing where every prompt has a level of its own (τ = ∞), and then 1/(2σ²) is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from karat.errors import InputError
from karat.records import Estimate
from karat.stats import not_estimable

PRICED = ("comparison", "rating", "label")
"""Kinds whose information has a formula here; the others are asked for what they say besides."""


FEWEST_LABELS, THRESHOLD_SD = 8, 1.0
"""Labels below which nothing is said of their noise; sd of raters' thresholds, logits (the prior of the reward's labels)."""
MOST_STEPS, LONGEST_STEP = 100, 4.0
"""Newton's: a step is cut where separable labels would throw it far."""


@dataclass(frozen=True)
class KindRate:
    """What a kind of feedback says for its time."""

    kind: str
    """comparison, rating or label."""
    information: float
    """Expected Fisher information about one difference Δ, 1/logits²."""
    seconds: float
    """Seconds for what gives it: one comparison, or two ratings or labels."""

    @property
    def rate(self) -> float:
        """Information for a second."""
        return self.information / self.seconds


def comparison_fisher(delta: np.ndarray, tie_width: float) -> np.ndarray:
    """Fisher information about Δ of a comparison with ties at ± tie_width, [C]; 0 = no ties, p·(1 − p).

    I = Σ_k (∂P_k/∂Δ)²/P_k        P(b) = σ(−c − Δ), P(a) = σ(Δ − c), P(tie) = the rest
    """
    b_p, a_p = _sigmoid(-tie_width - delta), _sigmoid(delta - tie_width)
    b_slope, a_slope = b_p * (1 - b_p), a_p * (1 - a_p)
    if tie_width == 0:
        return a_slope
    # P(tie) = σ(c − Δ)·σ(c + Δ)·(1 − e^{−2c}) keeps its precision where it is small
    tie = _sigmoid(tie_width - delta) * _sigmoid(tie_width + delta) * -math.expm1(-2 * tie_width)
    return b_slope * (1 - b_p) + a_slope * (1 - a_p) + (b_slope - a_slope) ** 2 / np.maximum(tie, 1e-300)


def kind_rates(
    delta: np.ndarray,
    scores: np.ndarray,
    seconds: Mapping[str, float],
    *,
    tie_width: float = 0.0,
    rating_sd: float | None = None,
    level_sd: float | None = None,
    label_threshold: float | None = None,
    label_gain: float = 1.0,
) -> list[KindRate]:
    """Information and time of each kind that can be priced, best first.

    Args:
        delta: differences of the pairs that could be asked, logits, draws of the belief included, any shape.
        scores: scores of the responses, logits, on the zero of `label_threshold`.    seconds: of one answer, by kind.
        tie_width: half-width of ties, logits.    rating_sd: σ, noise of a rating in logits; None = not known.
        level_sd: τ, sd of what a prompt's ratings share besides the scores, logits; None = unlimited: nothing is learnt
            from sums. 0 where a model without levels is fitted and σ is its whole residual.
        label_threshold: score at which half say "good"; None = not known.    label_gain: g, logits of a label for one of score.
    Raises: InputError for a time that is not positive.
    """
    if any(not value > 0 for value in seconds.values()):
        raise InputError(f"kind_rates: found seconds {dict(seconds)}; expected all > 0")
    found = []
    if "comparison" in seconds:
        worth = float(comparison_fisher(np.asarray(delta), tie_width).mean())
        found.append(KindRate("comparison", worth, seconds["comparison"]))
    if "rating" in seconds and rating_sd is not None:
        found.append(KindRate("rating", _ratings_fisher(rating_sd, level_sd), 2 * seconds["rating"]))
    if "label" in seconds and label_threshold is not None:
        p = _sigmoid(label_gain * (np.asarray(scores) - label_threshold))
        found.append(KindRate("label", label_gain**2 * float((p * (1 - p)).mean()) / 2, 2 * seconds["label"]))
    return sorted(found, key=lambda one: -one.rate)


def allocation(rates: list[KindRate], kinds: tuple[str, ...], *, explore: float = 0.05) -> dict[str, float]:
    """Shares of the time of each kind: nearly all to the best, a little to the others, so that they stay known.

    Args:
        kinds: all that may be asked; one without a rate yet gets its share of exploration.
        explore: share of each kind that is not the best, [0, 1/len(kinds)].
    Raises: InputError where nothing has a rate, or the exploration does not fit.
    """
    if not rates or not 0 <= explore <= 1 / len(kinds):
        raise InputError(
            f"allocation: found {len(rates)} rates, explore={explore}; expected at least 1 and at most {1 / len(kinds):g}"
        )
    best = max(rates, key=lambda one: one.rate).kind
    return {kind: explore if kind != best else 1 - explore * (len(kinds) - 1) for kind in kinds}


def break_even_sd(
    delta: np.ndarray, *, seconds_ratio: float = 2.0, tie_width: float = 0.0, level_sd: float | None = None
) -> float:
    """Noise σ of a rating, logits, below which two ratings say more for their time than one comparison.

        ½·(1/σ² + 1/(σ² + 2τ²))/(2·s_rating) = E[I(Δ)]/s_comparison

    With q = E[I(Δ)]·s_rating/s_comparison: τ = ∞: σ² = 1/(4q); τ = 0: σ² = 1/(2q), twice as much noise.

    Args:
        seconds_ratio: seconds of a comparison over those of a rating; 2 = reading is all that costs.
        level_sd: τ, see `kind_rates`.
    """
    q = float(comparison_fisher(np.asarray(delta), tie_width).mean()) / seconds_ratio
    if level_sd is None:
        return math.sqrt(1 / (4 * q))
    # 4q·σ²·(σ² + 2τ²) = 2σ² + 2τ², the positive root of a quadratic in σ²
    t = 2 * level_sd**2
    middle = 4 * q * t - 2
    return math.sqrt((-middle + math.sqrt(middle**2 + 16 * q * t)) / (8 * q))


def rating_noise(ratings: np.ndarray, scores: np.ndarray, annotator: np.ndarray) -> Estimate:
    """Noise σ of ratings in logits: each rater's residual around her own offset plus one gain, over the gain.

        y = o_w + g·r + e, e ~ N(0, s²)        σ = s/g

    Args:
        ratings: y, [C].    scores: r of the rated responses, logits.    annotator: index of the rater.
    Returns: with a 90 % interval from the standard error of g and s (delta method); None where ratings do not rise
        with the scores or there are too few.
    """
    _, who = np.unique(annotator, return_inverse=True)
    n_raters, n = who.max() + 1 if len(who) else 0, len(ratings)
    free = n - n_raters - 1
    if free < 2:
        return not_estimable(f"found {n} ratings by {n_raters} raters; expected at least 3 more than raters", n)
    counts = np.bincount(who)
    x = scores - (np.bincount(who, scores) / counts)[who]
    y = ratings - (np.bincount(who, ratings) / counts)[who]
    gain = float(x @ y / max(x @ x, 1e-300))
    s2 = float(((y - gain * x) ** 2).sum()) / free
    gain_se = math.sqrt(s2 / max(float(x @ x), 1e-300))
    if gain <= 1.645 * gain_se:
        return not_estimable("ratings do not rise with the scores", n)
    value = math.sqrt(s2) / gain
    log_se = math.sqrt(1 / (2 * free) + (gain_se / gain) ** 2)
    half = math.exp(1.645 * log_se)
    method = "residual of ratings around each rater's offset, over the common gain; delta method, 90 %"
    return Estimate(value, value / half, value * half, n, method)


def tie_width(delta: np.ndarray, tied: np.ndarray) -> Estimate:
    """Half-width c of ties in logits that makes the ties most likely: P(tie) = σ(c − Δ) − σ(−c − Δ).

    Args:
        delta: differences of the compared pairs, logits.    tied: True = a tie.
    Returns: with a 90 % interval from the curvature; None without comparisons.
    """
    n = len(tied)
    if n < 2:
        return not_estimable(f"found {n} comparisons; expected at least 2", n)

    def loss(log_width: float) -> float:
        c = math.exp(log_width)
        tie = np.log(-np.expm1(-2 * c)) - np.logaddexp(0, delta - c) - np.logaddexp(0, -delta - c)
        p = np.exp(tie).clip(1e-300, 1 - 1e-15)
        return -float(np.where(tied, tie, np.log1p(-p)).sum())

    found = minimize_scalar(loss, bounds=(-9.0, 3.0), method="bounded", options={"xatol": 1e-6})
    at, h = float(found.x), 1e-3
    curvature = (loss(at + h) - 2 * loss(at) + loss(at - h)) / h**2
    if curvature <= 0 or not tied.any():
        return Estimate(0.0 if not tied.any() else math.exp(at), None, None, n, "maximum likelihood; no interval")
    half = 1.645 / math.sqrt(curvature)
    return Estimate(
        math.exp(at), math.exp(at - half), math.exp(at + half), n, "maximum likelihood of ties, Wald on log c, 90 %"
    )


def label_link(good: np.ndarray, scores: np.ndarray, annotator: np.ndarray) -> tuple[Estimate, float | None]:
    """Noise scale 1/g of labels in logits of score, and the score at which half of them are good.

        P(good) = σ(g·r − t − u_w), u_w ~ N(0, THRESHOLD_SD²)        1/g, t/g

    Args:
        good: the labels, [C].    scores: r of the labelled responses, logits.    annotator: who labelled.
    Returns: 1/g with a 90 % interval from the curvature (delta method on its log), and t/g; (None, None) where labels do not
        rise with the scores or there are too few.
    """
    _, who = np.unique(annotator, return_inverse=True)
    n, n_raters = len(good), int(who.max()) + 1 if len(who) else 0
    if n < FEWEST_LABELS or bool(np.all(good)) or not bool(np.any(good)):
        return not_estimable(
            f"found {n} labels, {int(np.sum(good))} of them good; expected {FEWEST_LABELS} of both", n
        ), None
    design = np.concatenate([scores[:, None], -np.ones((n, 1)), -np.eye(n_raters)[who]], axis=1)
    ridge = np.concatenate([[1e-6, 1e-6], np.full(n_raters, THRESHOLD_SD**-2.0)])
    at = np.zeros(len(ridge))
    for _ in range(MOST_STEPS):
        p = _sigmoid(design @ at)
        slope = design.T @ (good - p) - ridge * at
        curvature = (design * (p * (1 - p))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        at += step * min(1.0, LONGEST_STEP / max(float(np.abs(step).max()), 1e-300))
        if float(np.abs(step).max()) < 1e-8:
            break
    gain, se = float(at[0]), math.sqrt(float(np.linalg.inv(curvature)[0, 0]))
    if gain <= 1.645 * se:
        return not_estimable("labels do not rise with the scores", n), None
    half = math.exp(1.645 * se / gain)
    method = "logistic fit of labels with each rater's threshold, one over the gain; delta method, 90 %"
    return Estimate(1 / gain, 1 / gain / half, half / gain, n, method), float(at[1] / gain)


def _ratings_fisher(rating_sd: float, level_sd: float | None) -> float:
    """½·(1/σ² + 1/(σ² + 2τ²)), of two ratings."""
    of_sum = 0.0 if level_sd is None else 1 / (rating_sd**2 + 2 * level_sd**2)
    return (1 / rating_sd**2 + of_sum) / 2


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
