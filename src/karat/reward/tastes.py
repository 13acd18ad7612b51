"""A population of tastes: the last layer of raters who do not all want the same, and what that does to its certainty.

    w_rater = w + u, u ~ N(0, τ²I)        a vote of one drawn rater: η ~ N(a·Δφ·w + offset, a²τ²‖Δφ‖²)

A likelihood of one taste reads the disagreement of several as noise, draws their mean towards 0, and counts many votes
of one rater as if they were of many. Knows features, answers with their raters, and a fitted last layer.

Dimension letters: C answers, N texts, A annotators, d features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from karat.errors import ConvergenceError
from karat.reward.last_layer import Derivatives, LastLayer, Observations, fit_last_layer

N_NODES = 21
N_TURNS = 4
"""Fits of the mean taste with estimates of τ and of competences in between; they change by a few per cent after that."""

N_EM = 40
"""Rounds in which competences and their spread are found; EM is slow where the spread is small, and then it matters little."""
FIRST_VARIANCE, LONGEST_STEP = 0.25, 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class TasteFit:
    """The posterior of the mean taste, and how far raters spread around it."""

    posterior: LastLayer
    """Of w, the population's mean; its covariance says how far the raters who were asked may be from the others."""
    taste_sd: float
    """τ: standard deviation of a rater's weights around the mean, in each feature."""
    competence_sd: float
    """Standard deviation of competence around 1; 0 where competences were taken as known."""


@dataclasses.dataclass(frozen=True, eq=False)
class Competences:
    """How much of a difference each rater perceives, by her own answers and everybody's."""

    mean: np.ndarray
    """E a of each rater, in units of the population's mean, [A]."""
    sd: np.ndarray
    """How well that is known, [A]."""
    population_sd: float
    """σ: of competences around 1."""
    slope: np.ndarray
    """E a of each answer's rater by her other answers, [C]: the answer must not speak for itself."""
    doubt: np.ndarray
    """Standard deviation of a·Δφ·w of each answer by them, logits, [C]."""


def fit_population(
    features: np.ndarray,
    observations: Observations,
    annotator: np.ndarray,
    *,
    prior_precision: float | None = None,
    averaged: bool = True,
    competence_known: bool = False,
    n_taste: int | None = None,
) -> TasteFit:
    """The last layer of a population, by turns with τ and with what is known of each rater's competence.

        η ~ N(a·Δφ·w + offset, a²τ²‖Δφ‖² + s²(Δφ·w)²)
        Σ = H⁻¹ + τ²·H⁻¹(Σ_w I_w²)H⁻¹ + (σ²/A)·w wᵀ        I_w = Σ_{c by w} κ_c·Δφ_cΔφ_cᵀ

    a and s are mean and sd of the rater's competence. A competence fitted to few answers and then taken as known draws w
    towards 0 as much as a neglected taste does. The later terms of Σ are what the drawing of the raters adds.

    Args:
        features: φ of every text, [N, d]; τ is one number, so features should have comparable scales.
        observations: answers of one kind; their slopes are first guesses of the competences.
        annotator: index of the rater of each, [C].    competence_known: True = the slopes are taken as they are.
        n_taste: raters differ in so many of the first features, and agree on the others (effects of single texts); None = all.
    Raises: what `fit_last_layer` and `competences` raise.
    """
    tau2, start, doubt, sigma = 0.0, None, np.zeros(len(observations)), 0.0
    n_people = len(np.unique(annotator))
    tasted = features[:, :n_taste]
    for turn in range(N_TURNS):
        last = turn + 1 == N_TURNS
        spread = np.sqrt(tau2 * _squared_length(tasted, observations) + doubt**2)
        answers = overdispersed(observations, spread)
        fit = fit_last_layer(
            features, [answers], prior_precision=prior_precision, start=start, averaged=averaged and last,
            tolerance=1e-6 if last else 1e-3,
        )  # fmt: skip
        start = fit.mean
        if not last:
            tau2 = taste_variance(features, observations, annotator, fit.mean, n_taste=n_taste)
        if not last and not competence_known:
            found = competences(features, observations, annotator, fit.mean)
            sigma = found.population_sd
            observations, doubt = dataclasses.replace(observations, slope=found.slope), found.doubt
    _, _, exact, working = answers.derivatives(_eta(features, answers, fit.mean), np.arange(len(answers)))
    curvature = np.where(exact > 0, exact, working)
    n = tasted.shape[1]
    middle = np.zeros((n, n))
    for rows, delta in _by_rater(tasted, observations, annotator):
        information = delta.T @ (delta * curvature[rows, None])
        middle += information @ information
    covariance = fit.covariance + tau2 * fit.covariance[:, :n] @ middle @ fit.covariance[:n]
    covariance += sigma**2 / n_people * np.outer(fit.mean, fit.mean)
    posterior = dataclasses.replace(fit, covariance=(covariance + covariance.T) / 2)
    return TasteFit(posterior, float(np.sqrt(tau2)), sigma)


def competences(
    features: np.ndarray, observations: Observations, annotator: np.ndarray, mean: np.ndarray
) -> Competences:
    """Each rater's competence by empirical Bayes: its mode under a ~ N(m, σ²), with m and σ those of all raters.

        a_w ← a_w + (Σ_c ∂_c·e_c − (a_w − m)/σ²)·s_w²        s_w² = 1/(1/σ² + Σ_c κ_c·e_c²)        e = Δφ·w
        m ← mean a_w        σ² ← mean (a_w − m)² + s_w²
        without answer c:   1/s_w² − κ_c·e_c² in place of 1/s_w², and a_w − ∂_c·e_c/(1/s_w² − κ_c·e_c²) in place of a_w

    Returns: in units of m, so that their mean is 1 as the sandbox's and the priors' is.
    Raises: ConvergenceError where m is not clearly positive: most raters vote against the scores.
    Source: Dempster, Laird & Rubin 1977, JRSS B 39(1), pp. 1–38 (σ²), with Laplace's approximation of each rater.
    """
    people, who = np.unique(annotator, return_inverse=True)
    rows, n = np.arange(len(observations)), len(people)
    difference = differences(observations, features @ mean)
    a = np.bincount(who, observations.slope, minlength=n) / np.bincount(who, minlength=n)
    middle, variance = float(a.mean()), FIRST_VARIANCE

    def by_answer() -> tuple[np.ndarray, np.ndarray]:
        """∂_c·e_c and κ_c·e_c² at the competences so far."""
        _, first, _, working = observations.derivatives(a[who] * difference + observations.offset, rows)
        return first * difference, working * difference**2

    for _ in range(N_EM):
        pull, information = by_answer()
        known = 1 / (1 / variance + np.bincount(who, information, minlength=n))
        step = (np.bincount(who, pull, minlength=n) - (a - middle) / variance) * known
        a = a + np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        middle = float(a.mean())
        variance = max(float(((a - middle) ** 2 + known).mean()), 1e-6)
    if not middle > 0.05:
        raise ConvergenceError(
            f"last layer: the raters' mean competence is {middle:.3g}; expected it clearly above 0. Look at the raters"
        )
    pull, information = by_answer()
    others = 1 / known[who] - information
    slope, doubt = a[who] - pull / others, np.abs(difference) / np.sqrt(others)
    return Competences(
        a / middle, np.sqrt(known) / middle, math.sqrt(variance) / middle, slope / middle, doubt / middle
    )


def taste_variance(
    features: np.ndarray,
    observations: Observations,
    annotator: np.ndarray,
    mean: np.ndarray,
    *,
    n_taste: int | None = None,
) -> float:
    """τ² by moments: raters whose answers lean together away from the mean taste, beyond what noise does.

        g_w = Σ_{c by w} ∂_c·Δφ_c        E‖g_w‖² = tr I_w + τ²·tr I_w²        τ² = Σ_w (‖g_w‖² − tr I_w) / Σ_w tr I_w²

    Own squares are left out of both sums, so that a wrong curvature of single answers cancels:
    ‖g_w‖² − Σ_c ‖∂_cΔφ_c‖² against tr I_w² − Σ_c κ_c²‖Δφ_c‖⁴.

    Args:
        n_taste: as `fit_population` has it.
    Returns: ≥ 0; 0 where no rater gave two answers.
    Source: Commenges & Jacqmin-Gadda 1997, JRSS B 59(1), pp. 157–171 (score test of a variance component).
    """
    rows_all = np.arange(len(observations))
    _, first, _, working = observations.derivatives(_eta(features, observations, mean), rows_all)
    above, below = 0.0, 0.0
    for rows, delta in _by_rater(features[:, :n_taste], observations, annotator):
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


def differences(observations: Observations, values: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """values_a − values_b of the answers at these rows, values_a alone where nothing is subtracted.

    Args:
        values: one number or row of features a text, [N, …].
    """
    b = observations.b[rows]
    found, paired = values[observations.a[rows]].copy(), b >= 0
    found[paired] -= values[b[paired]]
    return found


def _delta(features: np.ndarray, observations: Observations, rows: np.ndarray) -> np.ndarray:
    return differences(observations, features, rows) * observations.slope[rows, None]


def _eta(features: np.ndarray, observations: Observations, w: np.ndarray) -> np.ndarray:
    return observations.slope * differences(observations, features @ w) + observations.offset


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
