"""A Bayesian last layer: a normal posterior over the weights of a linear head, from the likelihood's own curvature.

    log p(w | votes) ≈ log p(ŵ | votes) − (w − ŵ)ᵀH(w − ŵ)/2        H = Σ_c κ_c·Δφ_cΔφ_cᵀ + λI

ŵ is the mode, κ the exact curvature of each answer's log-likelihood there, λ the prior precision that makes the answers
most likely. Differences Δφ are never held all at once. Knows features, answers as columns and fixed rater parameters;
knows nothing about trunks, texts or files.

Dimension letters: C answers, N texts, d features, S draws.

Source: MacKay 1992, Neural Computation 4(3), pp. 415–447 (evidence for the prior precision); Tierney & Kadane 1986,
    JASA 81, pp. 82–86 (Laplace's approximation).
Differs: the ordinal likelihood with lapses instead of a logistic; one trunk's features are taken as given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.optimize import minimize_scalar

from karat.choice import RaterParams, VoteBatch
from karat.errors import ConvergenceError, InputError, PosteriorError
from karat.reward.linear_answers import Answers, Derivatives, LinearAnswers, Observations

WARM_ABOVE = 20_000
"""With more answers than this the first steps are taken on every tenth one: they only have to find the neighbourhood."""
SKETCHED_EVERY, NEAR = 4, 1e-5
"""Then steps with all slopes but the curvature of every fourth answer lead within so many nats of the mode: what is left to
do with the whole curvature, which is nearly all of the cost, is done once or twice."""
MAX_ROUNDS, MAX_LAMBDA_ROUNDS, MAX_CHORDS = 80, 12, 12
DAMPED_EVERY = 8
"""Rounds after which the steps of the spread are halved, twice at most."""
SPREAD_STEP = 1e-3  # relative to the largest spread
LAMBDA_STEP = 0.01  # relative; the evidence is flat at its maximum


@dataclass(frozen=True, eq=False)
class LastLayer:
    """A normal posterior over the weights of a linear head."""

    mean: np.ndarray
    """ŵ, [d]."""
    covariance: np.ndarray
    """H⁻¹, [d, d]."""
    prior_precision: float
    """λ."""
    log_evidence: float
    """Laplace's approximation of log P(answers | λ), nats."""
    n_effective: float
    """Directions that the answers determine: d − λ·tr H⁻¹ (MacKay's γ)."""

    def draws(self, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        """Joint draws of the weights [S, d], in pairs ŵ ± z, so that their mean is ŵ exactly.

        Raises: InputError for an odd or non-positive number.
        """
        if n_draws < 2 or n_draws % 2:
            raise InputError(f"last layer: found {n_draws} draws; expected an even number ≥ 2, they come in pairs")
        factor = linalg.cholesky(self.covariance, lower=True)
        z = rng.standard_normal((n_draws // 2, len(self.mean))) @ factor.T
        return np.concatenate([self.mean + z, self.mean - z])

    def variance(self, delta: np.ndarray) -> np.ndarray:
        """Posterior variance of Δφ·w for rows of Δφ [n, d], logits²."""
        return np.einsum("nd,nd->n", delta @ self.covariance, delta)

    def observe(self, delta: np.ndarray, first: float, curvature: float) -> LastLayer:
        """The posterior after one more answer: a Newton step and a rank-1 update (Sherman–Morrison), O(d²).

            Σ' = Σ − κ·ΣΔφΔφᵀΣ/(1 + κ·ΔφᵀΣΔφ)        ŵ' = ŵ + Σ'Δφ·∂

        Exact for a quadratic log-likelihood. A negative κ and −∂ take an answer out again.

        Args:
            delta: slope·Δφ, [d].    first: ∂ log P/∂η at ŵ.    curvature: κ there.
        Returns: evidence and effective directions are those of the last fit.
        Raises: PosteriorError when what is left is not positive definite.
        """
        direction = self.covariance @ delta
        gain = 1 + curvature * float(delta @ direction)
        if gain <= 1e-12:
            raise PosteriorError(
                f"last layer: an answer of curvature {curvature:.3g} leaves a posterior that is not positive definite; "
                "fit again from all answers"
            )
        covariance = self.covariance - np.outer(direction, direction) * (curvature / gain)
        mean = self.mean + direction * (first / gain)
        return LastLayer(mean, covariance, self.prior_precision, self.log_evidence, self.n_effective)


def ordinal_derivatives(eta: np.ndarray, level: np.ndarray, lapse: np.ndarray, cutpoints: np.ndarray) -> Derivatives:
    """Value, slope and curvature of log P(y = level | η) with lapses, exact in the tails.

        q = σ(u) − σ(l), u = c_{y+1} − η, l = c_y − η        P = (1 − ε)·q + ε/K        s = (1 − ε)·q/P
        ∂ = s·g, g = σ(u) + σ(l) − 1        κ = s·(σ'(u) + σ'(l)) − s·(1 − s)·g²

    Args:
        eta, level, lapse: [C].    cutpoints: ascending, [K − 1].
    Returns: the last one, s·(σ'(u) + σ'(l)), is the curvature if it were known which answers are lapses.
    """
    n_levels = len(cutpoints) + 1
    padded = np.concatenate([[-np.inf], cutpoints, [np.inf]])
    u, lower = padded[level + 1] - eta, padded[level] - eta
    upper_p, lower_p = _sigmoid(u), _sigmoid(lower)
    with np.errstate(invalid="ignore"):
        gap = np.where(np.isinf(u) | np.isinf(lower), np.inf, u - lower)
    log_q = -np.logaddexp(0, -u) - np.logaddexp(0, lower) + np.log(-np.expm1(-gap))
    with np.errstate(divide="ignore"):
        log_p = np.logaddexp(np.log1p(-lapse) + log_q, np.log(lapse) - math.log(n_levels))
    attentive = np.exp(np.log1p(-lapse) + log_q - log_p)
    g = upper_p + lower_p - 1
    working = attentive * (upper_p * _sigmoid(-u) + lower_p * _sigmoid(-lower))
    return log_p, attentive * g, working - attentive * (1 - attentive) * g**2, working


def comparison_observations(votes: VoteBatch, raters: RaterParams) -> Observations:
    """Comparisons by raters whose parameters are taken as given."""
    level, who = votes.level.numpy(), votes.annotator
    lapse = raters.lapse[who].double().numpy()
    cutpoints = raters.cutpoints.double().numpy()
    return Observations(
        a=votes.a.numpy(),
        b=votes.b.numpy(),
        slope=raters.competence[who].double().numpy(),
        offset=(raters.side_bias[who].double() * votes.side.double()).numpy(),
        derivatives=lambda eta, rows: ordinal_derivatives(eta, level[rows], lapse[rows], cutpoints),
    )


def centred_raters(raters: RaterParams) -> RaterParams:
    """The same raters with a mean competence of 1, as their prior says.

    Twice the scores and half of every competence are the same votes. Fitted by turns, the prior that holds the weights
    small would move their size into the competences, and every difference would come out too small.

    Raises: ConvergenceError where the mean competence is not clearly positive: most raters vote against the scores.
    """
    mean = float(raters.competence.mean())
    if not mean > 0.05:
        raise ConvergenceError(
            f"last layer: the raters' mean competence is {mean:.3g}; expected it clearly above 0. Look at the raters"
        )
    return dataclasses.replace(raters, competence=raters.competence / mean)


def fit_last_layer(
    features: np.ndarray,
    observations: Sequence[Answers],
    *,
    prior_precision: float | None = None,
    start: np.ndarray | None = None,
    averaged: bool = False,
    tolerance: float | None = None,
) -> LastLayer:
    """The posterior, with the prior precision of the highest evidence if none is given.

        max_λ ∫ P(answers | w)·N(w; 0, I/λ) dw        by Newton steps on w and exact steps on λ by turns

    Args:
        features: φ of every text, [N, d].    observations: one a kind of feedback, of one number or of several scores.
        prior_precision: λ > 0; None = chosen by marginal likelihood.    start: where to begin, [d]; None = 0.
        averaged: False = mode and curvature there (Laplace). True = slopes and curvatures are averaged over the
            posterior itself, which gives the normal distribution of the smallest KL divergence from it (Opper &
            Archambeau 2009, Neural Computation 21(3)): few answers make the posterior skewed, and its mode lies too
            near to 0. Costs some ten Hessians.
        tolerance: nats of log-posterior left to gain at which the mode counts as found; None = 1e-10, or 1e-4 for more
            than 20,000 answers (an error of at most √(2·1e-4) = 0.014 posterior standard deviations).
    Raises: InputError for no answers or features that are not finite; PosteriorError where the exact curvature is not
        positive definite (lapses can make it so); ConvergenceError when the steps do not settle.
    """
    features = np.ascontiguousarray(features, dtype=np.float64)
    n_answers = sum(map(len, observations))
    if features.ndim != 2 or not np.isfinite(features).all() or not n_answers:
        raise InputError(
            f"last layer: found features {features.shape} and {n_answers} answers; expected finite [N, d] and at least 1"
        )
    if prior_precision is not None and not prior_precision > 0:
        raise InputError(f"last layer: found prior precision {prior_precision}; expected > 0")
    w = np.zeros(features.shape[1]) if start is None else np.array(start, dtype=np.float64)
    problem, first = LinearAnswers(features, observations), math.nan
    if n_answers > WARM_ABOVE:
        w = _climb(LinearAnswers(features, observations, every=10), w, prior_precision, tolerance=1e-2).w
        if SKETCHED_EVERY * len(features) >= 2 * n_answers:  # with fewer texts the whole curvature is cheap
            near = _climb(problem, w, prior_precision, tolerance=NEAR, every=SKETCHED_EVERY, n_rounds=2)
            w, first = near.w, near.precision
    chosen = (1e-4 if n_answers > WARM_ABOVE else 1e-10) if tolerance is None else tolerance
    mode = _climb(problem, w, prior_precision, averaged=averaged, tolerance=chosen, first_precision=first)
    return _posterior(problem, mode)


@dataclass(frozen=True, eq=False)
class _Mode:
    w: np.ndarray
    precision: float
    hessian: np.ndarray
    """Exact, of the answers alone."""


def _climb(
    problem: LinearAnswers,
    w: np.ndarray,
    prior_precision: float | None,
    *,
    tolerance: float,
    averaged: bool = False,
    every: int = 1,
    first_precision: float = math.nan,
    n_rounds: int | None = None,
) -> _Mode:
    """The mode, by Newton steps and a precision of the highest evidence by turns.

    Args:
        every: above 1 the curvature is estimated from every so manieth answer; slopes are always everyone's.
        first_precision: λ to begin from where it is to be found.    n_rounds: stop after so many, found or not.
    """
    settled, precision = prior_precision is not None, prior_precision or first_precision
    for number in range(n_rounds or MAX_ROUNDS):
        value, first, exact, working = problem.at(w)
        hessian = problem.hessian(exact, every=every)
        eigenvalues, basis = linalg.eigh(hessian)
        is_exact = eigenvalues[0] >= 0
        if not is_exact:
            eigenvalues, basis = linalg.eigh(problem.hessian(working, every=every))
            eigenvalues = eigenvalues.clip(min=0)
        gradient = problem.gradient(first)
        if prior_precision is None:
            best = _best_precision(eigenvalues, basis.T @ gradient + eigenvalues * (basis.T @ w))
            # evidence can have two maxima that the mode leads to in turn: then the last one is kept
            settled = abs(best - precision) <= LAMBDA_STEP * best or number >= MAX_LAMBDA_ROUNDS
            precision = precision if settled else best
        w, gained = _chords(problem, w, value.sum(), gradient, precision, (eigenvalues, basis), tolerance)
        steady = not averaged
        if averaged:
            spread = problem.spread_under(basis / np.sqrt(eigenvalues + precision))
            steady = number > 0 and float(np.abs(spread - problem.spread).max()) <= SPREAD_STEP * float(spread.max())
            if not steady:
                # spread and weights can swing around their common solution: then less of a swing is taken
                share = 0.5 ** min(number // DAMPED_EVERY, 2)
                problem.spread = (
                    spread if problem.spread is None else problem.spread + share * (spread - problem.spread)
                )
        if (settled and steady and gained <= tolerance) or number + 1 == n_rounds:
            return _Mode(w, precision, hessian)
    raise ConvergenceError(
        f"last layer: the mode was not found in {MAX_ROUNDS} rounds; expected it in a few. Look for features that "
        "are not finite or very large, or give a prior precision"
    )


def _chords(
    problem: LinearAnswers,
    w: np.ndarray,
    loglik: float,
    gradient: np.ndarray,
    precision: float,
    spectrum: tuple[np.ndarray, np.ndarray],
    tolerance: float,
) -> tuple[np.ndarray, float]:
    """Newton steps with one Hessian: a step costs a pass over the features, a Hessian a matrix product.

    Returns: the new weights, and how many nats the first step promised (0.5·gᵀH⁻¹g).
    """
    eigenvalues, basis = spectrum
    promised, value = 0.0, loglik - precision * float(w @ w) / 2
    for number in range(MAX_CHORDS):
        slope = gradient - precision * w
        step = basis @ ((basis.T @ slope) / (eigenvalues + precision))
        gain = float(slope @ step) / 2
        promised = gain if number == 0 else promised
        if (gain <= tolerance and number > 0) or gain <= 0:  # the first step is cheap, and w may still be exactly 0
            break
        size = 1.0
        while size > 1e-6:
            tried = w + size * step
            logliks, first, _, _ = problem.at(tried, curved=False)
            reached = float(logliks.sum()) - precision * float(tried @ tried) / 2
            if reached >= value + 1e-4 * size * gain:
                break
            size /= 2
        else:
            break
        w, value, gradient = tried, reached, problem.gradient(first)
    return w, promised


def _best_precision(eigenvalues: np.ndarray, b: np.ndarray) -> float:
    """λ of the highest evidence under the quadratic with these eigenvalues α and linear term b in their basis.

    2·log evidence = Σ_i b_i²/(α_i + λ) + log λ − log(α_i + λ)
    """
    middle = math.log(max(float(eigenvalues.mean()), 1e-12))

    def loss(log_precision: np.ndarray) -> np.ndarray:
        total = eigenvalues + np.exp(log_precision)
        return (np.log(total) - log_precision - b**2 / total).sum(-1)

    grid = middle + np.linspace(-16, 12, 113)
    best = int(np.argmin(loss(grid[:, None])))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return math.exp(float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4}).x))


def _posterior(problem: LinearAnswers, mode: _Mode) -> LastLayer:
    w, precision, d = mode.w, mode.precision, len(mode.w)
    value, _, exact, _ = problem.at(w)
    hessian = mode.hessian + precision * np.eye(d)
    factor = _factor(hessian)
    covariance = linalg.cho_solve((factor, True), np.eye(d))
    reached = float(value.sum()) - precision * float(w @ w) / 2
    if problem.spread is not None:  # −KL(q‖prior) instead of log prior(ŵ): the bound on the evidence
        reached += (d - precision * float(np.trace(covariance))) / 2
    log_evidence = reached + d / 2 * math.log(precision) - float(np.log(np.diag(factor)).sum())
    if any(one.raters is not None for one, _ in [*problem.parts, *problem.choices]):  # the evidence takes them as known
        covariance = covariance + _of_raters(problem, w, problem.positive(exact), precision)
    return LastLayer(w, (covariance + covariance.T) / 2, precision, log_evidence, d - precision * np.trace(covariance))


def _of_raters(problem: LinearAnswers, w: np.ndarray, curvature: np.ndarray, precision: float) -> np.ndarray:
    """What raters who are known only so well add to the covariance: (P − lost)⁻¹ − P⁻¹.

    Lapses bend the likelihood of answers that surprise upwards. What few such answers of one rater say of her parameters would have
    no inverse, so that P counts only what bends downwards.
    """
    d = len(w)
    whole = problem.hessian(curvature) + precision * np.eye(d)
    freed, fixed = (
        linalg.cho_solve((_factor(one), True), np.eye(d))
        for one in (whole - problem.lost_to_raters(w, curvature), whole)
    )
    return freed - fixed


def _factor(hessian: np.ndarray) -> np.ndarray:
    """Its Cholesky factor. Raises: PosteriorError where it has none."""
    try:
        return linalg.cholesky(hessian, lower=True)
    except linalg.LinAlgError:
        smallest = float(linalg.eigvalsh(hessian)[0])
        raise PosteriorError(
            f"last layer: the posterior is not positive definite (smallest eigenvalue {smallest:.3g}); expected > 0. "
            "Give a larger prior precision, or fit raters without lapses"
        ) from None


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
