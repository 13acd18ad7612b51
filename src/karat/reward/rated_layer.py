"""One linear reward from comparisons and ratings together: its posterior, and each rater's offset, gain and noise.

    comparison: P(a ≻ b) by the ordinal link        rating: y = o_u + g_u·r + s·e        r = φ·w

The weights' posterior is that of `reward.last_layer`, whose curvature for a rating is (g/s)². Offsets and gains are
normal around the population's, and fitted by turns with the weights (EM): a score that is known only so well adds its
variance to the noise, instead of being taken as known. Knows features and columns; knows nothing about trunks or texts.

Dimension letters: C answers, N texts, d features, A raters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from karat.errors import ConvergenceError, InputError
from karat.feedback_columns import RatingBatch
from karat.ratings import RatingParams
from karat.reward.last_layer import Derivatives, LastLayer, Observations, fit_last_layer
from karat.reward.latents import LEAST_NOISE, LOG_GAIN_SD, RATING_GAIN, RATING_NOISE
from karat.reward.raters import RaterPriors
from karat.reward.tastes import differences

MAX_ROUNDS = 100
SETTLED = 1e-3
"""Relative change of noise over gain at which the raters count as found: a tenth of its error at 5,000 ratings."""
MOST_SWING = 2e-2
"""Relative distance between two values of the noise that take turns for ever, at which that counts as found too: the
scale of few comparisons is looked for beside the weights, and the two searches may answer each other."""
MODE_TOLERANCE = 1e-4
N_NODES = 5
"""Gauss–Hermite; log P of a comparison is smooth, and nearly straight in its tails."""


@dataclass(frozen=True, eq=False)
class RatedLayer:
    """The weights' posterior with the raters that it was fitted with."""

    posterior: LastLayer
    """Of w, in logits."""
    params: RatingParams
    """Of each rater, in rating units; raters without a rating are at the population's."""
    gain: float
    """The population's gain, rating units for a logit."""

    @property
    def noise(self) -> float:
        """σ = s/g of a typical rater's rating, logits: what `feedback.allocation` prices ratings by."""
        return float(self.params.sd[0]) / self.gain


def rating_observations(ratings: RatingBatch, params: RatingParams) -> Observations:
    """Gaussian ratings by raters whose parameters are taken as given, for `fit_last_layer`.

        η = (g_u·r + o_u)/s_u        log P = −(y/s_u − η)²/2 − log s_u − log(2π)/2        κ = 1

    Raises: InputError for ratings on an ordinal scale, which this does not know.
    """
    if ratings.n_levels is not None:
        raise InputError(
            f"rating_observations: found ratings on {ratings.n_levels} ordinal steps; expected Gaussian ones (n_levels=None)"
        )
    who = ratings.annotator
    sd = params.sd[who].double().numpy()
    target = ratings.value.double().numpy() / sd
    constant = -np.log(sd) - 0.5 * math.log(2 * math.pi)

    def derivatives(eta: np.ndarray, rows: np.ndarray) -> Derivatives:
        gap, ones = target[rows] - eta, np.ones(len(rows))
        return constant[rows] - gap**2 / 2, gap, ones, ones

    return Observations(
        a=ratings.response.numpy(),
        b=np.full(len(who), -1),
        slope=params.gain[who].double().numpy() / sd,
        offset=params.offset[who].double().numpy() / sd,
        derivatives=derivatives,
    )


def fit_rated_layer(
    features: np.ndarray,
    comparisons: Sequence[Observations],
    ratings: RatingBatch,
    n_raters: int,
    priors: RaterPriors,
    *,
    start: RatedLayer | None = None,
) -> RatedLayer:
    """Weights, offsets, gains and noise that make comparisons and ratings most likely together.

        o_u ~ N(o, offset_sd²)        g_u ~ N(g, (gain_sd·g)²)        log g ~ N(log 0.15, 0.7²)

    Args:
        features: φ of every text, [N, d], measured from their mean: ratings depend on where zero is.
        comparisons: see `comparison_observations`; without any the gain stays 0.15 and fixes the scale.
        ratings: on the unit scale; may be empty.    start: an earlier fit of the same raters, to begin from.
    Raises: InputError for a rater outside 0 … n_raters − 1, and for no answers at all; ConvergenceError where the
        noise does not settle.
    Source: Dempster, Laird & Rubin 1977, JRSS B 39(1) (EM), sped up along the scale; the weights' posterior is Laplace's.
    Differs: `reward.latents` takes the scores as known, and gives each rater a noise of her own.
    """
    who = ratings.annotator.numpy()
    if len(who) and not 0 <= who.min() <= who.max() < n_raters:
        raise InputError(f"rated layer: found raters {who.min()} … {who.max()}; expected 0 … {n_raters - 1}")
    free_gain = any(len(one) for one in comparisons)
    params, gain = (start.params, start.gain) if start else _typical(ratings, n_raters)
    w, noises = start.posterior.mean if start else None, [math.nan, math.nan]
    rated = ratings.response.numpy()
    for _ in range(MAX_ROUNDS):
        answers = [*comparisons, *([rating_observations(ratings, params)] if len(who) else [])]
        posterior = fit_last_layer(features, answers, start=w, tolerance=MODE_TOLERANCE)
        w = posterior.mean
        if not len(who):
            return RatedLayer(posterior, params, gain)
        scores, variance = features[rated] @ w, posterior.variance(features[rated])
        value = ratings.value.double().numpy()
        params, gain = _raters(value, scores, variance, who, params, gain, priors, free_gain=free_gain)
        noises.append(float(params.sd[0]) / gain)
        if _settled(*noises[-3:]):
            return RatedLayer(posterior, params, gain)
        # few comparisons hold the scale loosely, and turns alone would creep along it
        factor = _scale(features, posterior, comparisons, gain) if free_gain else 1.0
        gain, w = gain / factor, w * factor
        params = RatingParams(params.offset, params.gain / factor, params.sd)
    raise ConvergenceError(
        f"rated layer: the noise of ratings did not settle in {MAX_ROUNDS} rounds (last {noises[-2]:.4g}, "
        f"{noises[-1]:.4g} logits); give more comparisons, which fix the scale"
    )


def _settled(earlier: float, before: float, noise: float) -> bool:
    """Whether the noise stands still, or goes to and fro between two values that are close."""
    swings = abs(noise - earlier) <= SETTLED * noise and abs(noise - before) <= MOST_SWING * noise
    return abs(noise - before) <= SETTLED * noise or swings


def _typical(ratings: RatingBatch, n_raters: int) -> tuple[RatingParams, float]:
    middle = float(ratings.value.double().mean()) if len(ratings.value) else 0.5
    full = torch.full((n_raters,), 1.0, dtype=torch.float64)
    return RatingParams(middle * full, RATING_GAIN * full, RATING_NOISE * full), RATING_GAIN


def _raters(
    value: np.ndarray,
    scores: np.ndarray,
    variance: np.ndarray,
    who: np.ndarray,
    before: RatingParams,
    gain: float,
    priors: RaterPriors,
    *,
    free_gain: bool,
) -> tuple[RatingParams, float]:
    """One M-step: the population's gain, each rater around it, and the noise that is left."""
    n_raters, s2 = len(before.sd), float(before.sd[0]) ** 2
    count = np.bincount(who, minlength=n_raters).astype(float)
    present = count > 0

    def total(column: np.ndarray) -> np.ndarray:
        return np.bincount(who, column, n_raters)

    # 1. the population: its gain within raters, its offset between them
    if free_gain:
        x = scores - (total(scores) / count.clip(1))[who]
        y = value - (total(value) / count.clip(1))[who]
        gain = _population_gain(float(x @ y), float(x @ x + (variance * (1 - 1 / count[who])).sum()), s2)
    middle = float((total(value - gain * scores)[present] / count[present]).mean())
    if not priors.modelled:
        residual = value - middle - gain * scores
        s2 = float((residual**2 + gain**2 * variance).mean())
        return _params(np.full(n_raters, middle), np.full(n_raters, gain), s2), gain
    # 2. each rater: ridge regression on (1, r), shrunk to the population
    precision = np.array([1 / priors.offset_sd**2, 1 / (priors.gain_sd * gain) ** 2])
    normal = np.zeros((n_raters, 2, 2))
    normal[:, 0, 0] = count / s2 + precision[0]
    normal[:, 0, 1] = normal[:, 1, 0] = total(scores) / s2
    normal[:, 1, 1] = total(scores**2 + variance) / s2 + precision[1]
    right = np.stack([total(value) / s2 + precision[0] * middle, total(value * scores) / s2 + precision[1] * gain], 1)
    covariance = np.linalg.inv(normal)
    offset, own_gain = np.einsum("aij,aj->ia", covariance, right)
    # 3. the noise: what is left, and what is not known of scores and raters
    residual = value - offset[who] - own_gain[who] * scores
    row = np.stack([np.ones_like(scores), scores], 1)
    unknown = np.einsum("ci,cij,cj->c", row, covariance[who], row)
    s2 = float((residual**2 + (own_gain[who] ** 2 + covariance[who, 1, 1]) * variance + unknown).mean())
    return _params(offset, own_gain, s2), gain


def _scale(features: np.ndarray, posterior: LastLayer, comparisons: Sequence[Observations], gain: float) -> float:
    """The factor on all weights, and its inverse on gains, that comparisons and the prior on the gain like best.

        max_f Σ_c E[log P(answer | f·η_c)] + log prior(g/f)        η_c ~ N(mean, variance) by the posterior

    Ratings are as likely with any f, and so are the weights under the prior precision that their size asks for.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    weights = weights / weights.sum()
    scores = features @ posterior.mean
    seen = []
    for one in comparisons:
        delta, eta = differences(one, features), one.slope * differences(one, scores)
        seen.append((one, np.arange(len(one)), eta + nodes[:, None] * one.slope * np.sqrt(posterior.variance(delta))))

    def loss(log_factor: float) -> float:
        factor = math.exp(log_factor)
        loglik = sum(
            weight * float(one.derivatives(factor * eta + one.offset, rows)[0].sum())
            for one, rows, etas in seen
            for weight, eta in zip(weights, etas, strict=True)
        )
        return ((math.log(gain / RATING_GAIN) - log_factor) / LOG_GAIN_SD) ** 2 / 2 - loglik

    found = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))


def _population_gain(xy: float, xx: float, s2: float) -> float:
    """max_g (g·Σxy − g²·Σxx/2)/s² − (log g − log 0.15)²/(2·0.7²)."""

    def loss(log_gain: float) -> float:
        g = math.exp(log_gain)
        return -(g * xy - g * g * xx / 2) / s2 + ((log_gain - math.log(RATING_GAIN)) / LOG_GAIN_SD) ** 2 / 2

    middle = math.log(RATING_GAIN)
    found = minimize_scalar(loss, bounds=(middle - 4, middle + 4), method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def _params(offset: np.ndarray, gain: np.ndarray, s2: float) -> RatingParams:
    sd = np.full(len(offset), max(math.sqrt(s2), LEAST_NOISE))
    return RatingParams(torch.from_numpy(offset), torch.from_numpy(gain), torch.from_numpy(sd))
