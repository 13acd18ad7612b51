"""A population of tastes: the last layer of raters who do not all want the same, and what that does to its certainty.

    w_rater = w + u, u ~ N(0, τ²I)        a vote of one drawn rater: η ~ N(a·Δφ·w + offset, a²τ²‖Δφ‖²)

A likelihood of one taste reads the disagreement of several as noise, draws their mean towards 0, and counts many votes
of one rater as if they were of many. Knows features, answers with their raters, and a fitted last layer.

Dimension letters: C answers, N texts, A annotators, d features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from karat.reward.last_layer import Derivatives, LastLayer, Observations, fit_last_layer

N_NODES = 21
N_TURNS = 3
"""Fits of the mean taste with estimates of τ in between; τ² changes by a few per cent after the third."""


@dataclasses.dataclass(frozen=True, eq=False)
class TasteFit:
    """The posterior of the mean taste, and how far tastes spread around it."""

    posterior: LastLayer
    """Of w, the population's mean; its covariance says how far the raters who were asked may be from the others."""
    taste_sd: float
    """τ: standard deviation of a rater's weights around the mean, in each feature."""


def fit_population(
    features: np.ndarray,
    observations: Observations,
    annotator: np.ndarray,
    *,
    prior_precision: float | None = None,
    averaged: bool = True,
) -> TasteFit:
    """The last layer of a population, by turns with τ.

        Σ = H⁻¹ + τ²·H⁻¹(Σ_w I_w²)H⁻¹        I_w = Σ_{c by w} κ_c·Δφ_cΔφ_cᵀ

    The second term is what the drawing of the raters adds.

    Args:
        features: φ of every text, [N, d]; τ is one number, so features should have comparable scales.
        observations: answers of one kind.    annotator: index of the rater of each, [C].
    Raises: what `fit_last_layer` raises.
    """
    tau2, start = 0.0, None
    for turn in range(N_TURNS):
        last = turn + 1 == N_TURNS
        spread = np.sqrt(tau2 * _squared_length(features, observations))
        answers = overdispersed(observations, spread)
        fit = fit_last_layer(
            features, [answers], prior_precision=prior_precision, start=start, averaged=averaged and last,
            tolerance=1e-6 if last else 1e-3,
        )  # fmt: skip
        start = fit.mean
        if not last:
            tau2 = taste_variance(features, observations, annotator, fit.mean)
    _, _, exact, working = answers.derivatives(_eta(features, answers, fit.mean), np.arange(len(answers)))
    curvature = np.where(exact > 0, exact, working)
    middle = np.zeros_like(fit.covariance)
    for rows, delta in _by_rater(features, observations, annotator):
        information = delta.T @ (delta * curvature[rows, None])
        middle += information @ information
    covariance = fit.covariance + tau2 * fit.covariance @ middle @ fit.covariance
    return TasteFit(dataclasses.replace(fit, covariance=(covariance + covariance.T) / 2), float(np.sqrt(tau2)))


def taste_variance(features: np.ndarray, observations: Observations, annotator: np.ndarray, mean: np.ndarray) -> float:
    """τ² by moments: raters whose answers lean together away from the mean taste, beyond what noise does.

        g_w = Σ_{c by w} ∂_c·Δφ_c        E‖g_w‖² = tr I_w + τ²·tr I_w²        τ² = Σ_w (‖g_w‖² − tr I_w) / Σ_w tr I_w²

    Own squares are left out of both sums, so that a wrong curvature of single answers cancels:
    ‖g_w‖² − Σ_c ‖∂_cΔφ_c‖² against tr I_w² − Σ_c κ_c²‖Δφ_c‖⁴.

    Returns: ≥ 0; 0 where no rater gave two answers.
    Source: Commenges & Jacqmin-Gadda 1997, JRSS B 59(1), pp. 157–171 (score test of a variance component).
    """
    rows_all = np.arange(len(observations))
    _, first, _, working = observations.derivatives(_eta(features, observations, mean), rows_all)
    above, below = 0.0, 0.0
    for rows, delta in _by_rater(features, observations, annotator):
        gram = delta @ delta.T
        score = first[rows]
        above += float(score @ gram @ score - (score**2 * np.diag(gram)).sum())
        weighted = working[rows, None] * gram**2 * working[rows]
        below += float(weighted.sum() - np.trace(weighted))
    return max(above / below, 0.0) if below > 0 else 0.0


def overdispersed(observations: Observations, spread: np.ndarray) -> Observations:
    """The same answers, each by somebody whose η is drawn: P̄(y) = ∫ P(y | η + s·z) dN(z).

        ∂ = Σ_k ω_k·∂_k        κ = Σ_k ω_k·(κ_k − ∂_k²) + ∂²        ω_k ∝ weight_k·P_k, by Gauss–Hermite quadrature

    Args:
        spread: s of each answer, [C], logits.
    """
    if not spread.any():
        return observations
    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    log_weights = np.log(weights / weights.sum())

    def derivatives(eta: np.ndarray, rows: np.ndarray) -> Derivatives:
        found = [observations.derivatives(eta + node * spread[rows], rows) for node in nodes]
        value, first, exact, working = (np.stack(column) for column in zip(*found, strict=True))
        joint = value + log_weights[:, None]
        top = joint.max(0)
        log_p = top + np.log(np.exp(joint - top).sum(0))
        share = np.exp(joint - log_p)
        slope = (share * first).sum(0)
        curvature = (share * (exact - first**2)).sum(0) + slope**2
        return log_p, slope, curvature, np.maximum((share * working).sum(0), curvature)

    return dataclasses.replace(observations, derivatives=derivatives)


def _delta(features: np.ndarray, observations: Observations, rows: np.ndarray) -> np.ndarray:
    delta = features[observations.a[rows]].copy()
    paired = observations.b[rows] >= 0
    delta[paired] -= features[observations.b[rows][paired]]
    return delta * observations.slope[rows, None]


def _eta(features: np.ndarray, observations: Observations, w: np.ndarray) -> np.ndarray:
    score = features @ w
    subtracted = np.where(observations.b >= 0, score[observations.b], 0.0)
    return observations.slope * (score[observations.a] - subtracted) + observations.offset


def _squared_length(features: np.ndarray, observations: Observations) -> np.ndarray:
    parts = np.array_split(np.arange(len(observations)), max(1, len(observations) // 8192))
    return np.concatenate([(_delta(features, observations, rows) ** 2).sum(1) for rows in parts])


def _by_rater(
    features: np.ndarray, observations: Observations, annotator: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and slope·Δφ of each rater's answers."""
    for who in np.unique(annotator):
        rows = np.flatnonzero(annotator == who)
        yield rows, _delta(features, observations, rows)
