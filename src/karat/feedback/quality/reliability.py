"""How reliable each rater is: scores of responses, competence and side bias of raters, from comparisons at once.

The likelihood of `karat.feedback.quality.ordinal` with the priors of the design, its maximum and the curvature there. A rater
is never dropped or averaged away: competence at or below 0 is an answer. Knows columns of numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import optimize, sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from karat.errors import ConvergenceError, InputError
from karat.feedback.quality.joint_posterior import (
    LAPSE_BOUNDS,
    MOST_DENSE,
    JointPosterior,
    Priors,
    block_diagonal,
    newton,
    rater_blocks,
)
from karat.feedback.quality.ordinal import Comparisons

MOST_FILLED = 20_000_000
"""Cells of the curvature of scores, all components filled, up to which it is factorised: 160 MB."""
BEFORE_NEWTON = 15
"""Iterations of L-BFGS before Newton's method; on 61,193 votes of 3,772 raters it then needs a dozen steps."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Scores and raters at the maximum of the posterior, with standard errors from its curvature."""

    scores: np.ndarray
    """Of each response, in logits; comparable within a component only."""
    score_cov: np.ndarray | None
    """Their covariance, all else integrated; None above 3,000 scores."""
    score_precision: sparse.csr_matrix | None
    """Their curvature, all else as it is, where there is no covariance."""
    component: np.ndarray
    """Which connected component of the comparisons each response belongs to."""
    competence: np.ndarray
    """a_w of each rater; 1 typical, 0 a coin, below 0 against; the prior's 1 without votes."""
    side_bias: np.ndarray
    """b_w in logits, above 0 favours what is shown first."""
    rater_cov: np.ndarray
    """Covariance of (a_w, b_w), one 2 × 2 block a rater; the prior's without votes."""
    lapse: np.ndarray
    """ε_w of each rater, given or fitted."""
    cutpoints: dict[int, np.ndarray]
    """Of each scale by its number of levels."""
    n_votes: np.ndarray
    """Comparisons of each rater."""
    log_posterior: float
    """At the maximum, up to a constant."""
    errors: Literal["profiled", "conditional"]
    """profiled = raters' errors include the uncertainty of scores and cutpoints; conditional = these taken as known."""
    priors: Priors
    """What it was fitted under."""

    @property
    def competence_sd(self) -> np.ndarray:
        """Standard error of each competence."""
        return np.sqrt(self.rater_cov[:, 0, 0])

    @property
    def side_bias_sd(self) -> np.ndarray:
        """Standard error of each side bias."""
        return np.sqrt(self.rater_cov[:, 1, 1])

    def difference(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Δ = s_a − s_b and its variance.

        Above 3,000 scores the variance takes the other responses and the raters as known: right for a pair that is
        compared with nothing else and has careful raters, too small otherwise.

        Raises: InputError where two responses were never compared, directly or through others.
        """
        if (self.component[a] != self.component[b]).any():
            raise InputError("Reliability.difference: found responses of two components; no vote connects them")
        if self.score_cov is None:
            assert self.score_precision is not None
            own = self.score_precision.diagonal()
            between = np.asarray(self.score_precision[a, b]).ravel()
            spread, sharp = own[a] + own[b] + 2 * between, own[a] * own[b] - between**2
            same = np.asarray(a) == np.asarray(b)
            return self.scores[a] - self.scores[b], np.where(same, 0.0, spread / np.where(same, 1.0, sharp))
        var = self.score_cov[a, a] + self.score_cov[b, b] - 2 * self.score_cov[a, b]
        return self.scores[a] - self.scores[b], np.maximum(var, 0)


def fit_reliability(
    votes: Comparisons,
    priors: Priors | None = None,
    *,
    start: Reliability | None = None,
    tol: float = 1e-4,
    max_iter: int = 3000,
) -> Reliability:
    """Scores, competence, side bias, cutpoints (and lapses) at the maximum of their joint posterior.

        Σ log P(y) − Σ s²/2s₀² − Σ (a − 1)²/2τ² − Σ b²/2τ_b² − Σ ρ²/2σ_ρ² (+ 18·Σ log(1 − ε))

    L-BFGS with analytic gradients, then Newton steps (L-BFGS alone where lapses are fitted).

    Args:
        start: an earlier fit of the same responses, raters and scales, when votes or priors have changed a little.
        tol: largest entry of the gradient at the end, in log-posterior per unit of the parameter.
        max_iter: iterations of L-BFGS.
    Returns: see `Reliability`; a rater without votes has the prior's mean and covariance.
    Raises: InputError without votes; ConvergenceError when the gradient stays above `tol`.
    Source: design of karat section 3; Rao & Kupper 1967 and McCullagh 1980 for the link; Chen et al. 2013, WSDM, for
        raters with a competence that may be negative.
    Differs: Gaussian instead of Beta competence; the side is a parameter of the rater.
    """
    if not len(votes):
        raise InputError("fit_reliability: found no comparisons; expected at least one")
    priors = priors or Priors()
    problem = JointPosterior(votes, priors)
    low, high = problem.bounds()
    # with Newton steps to follow, L-BFGS need only come near; lapses, which Newton leaves alone, need all of it
    newton_follows = not problem.fits_lapse
    n_iter = (0 if start else BEFORE_NEWTON) if newton_follows else max_iter
    found = optimize.minimize(
        problem.value_and_gradient, _start(problem, start), jac=True, method="L-BFGS-B", bounds=optimize.Bounds(low, high),
        options={"maxiter": n_iter, "maxfun": 2 * n_iter, "maxcor": 20, "ftol": 1e-15, "gtol": tol / 10},
    )  # fmt: skip
    x = np.asarray(found.x)
    if newton_follows:
        x = newton(problem, x, tol)
    gradient = problem.free_gradient(x)
    if not np.abs(gradient).max() < tol:
        raise ConvergenceError(
            f"fit_reliability: after {found.nit} iterations the gradient is {np.abs(gradient).max():.2g}, above {tol}; "
            "narrow the priors, or give more iterations"
        )
    return _result(problem, x)


def rescaled(fit: Reliability) -> Reliability:
    """The same fit with the common scale of scores and competences where the raters are integrated out, not at their mode.

        s → f·s,  a → a/f        max_f −f²·Σs²/2s₀² − Σ((a/f − 1)² + Var(a)/f²)/2τ² − W·log f

    Every answer stays as likely with any f. The mode makes the scores too large, because competences that are all small lie
    close together, and their density is high where there is least room: the errors come out too small for the mistakes.

    Returns: scores and competences, with their errors, of raters with votes; log_posterior is what it is there.
    Source: MacKay 1999, Neural Computation 11(5), pp. 1035–1068: integrate over the many, maximise over what is left.
    Differs: one direction only, by the normal approximation at the mode; scores stay at their mode.
    """
    voted, tau2 = fit.n_votes > 0, fit.priors.competence_sd**2
    a, spread = fit.competence[voted], float(fit.rater_cov[voted, 0, 0].sum())
    size = float(fit.scores @ fit.scores) / fit.priors.score_sd**2

    def loss(log_factor: float) -> float:
        f = np.exp(log_factor)
        raters = (((a / f - 1) ** 2).sum() + spread / f**2) / tau2
        return float(f**2 * size + raters) / 2 + len(a) * log_factor

    f = float(np.exp(optimize.minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
    competence, cov = np.where(voted, fit.competence / f, fit.competence), fit.rater_cov.copy()
    cov[voted] /= np.array([[f**2, f], [f, 1.0]])
    lost = (f**2 - 1) * size + float(((competence - 1) ** 2 - (fit.competence - 1) ** 2).sum()) / tau2
    return replace(
        fit,
        scores=fit.scores * f,
        score_cov=None if fit.score_cov is None else fit.score_cov * f**2,
        score_precision=None if fit.score_precision is None else fit.score_precision / f**2,
        competence=competence,
        rater_cov=cov,
        log_posterior=fit.log_posterior - lost / 2,
    )


def fit_priors(votes: Comparisons, priors: Priors | None = None, *, n_rounds: int = 15) -> tuple[Priors, Reliability]:
    """The spreads τ and τ_b that the raters themselves show, and the fit under them.

        τ² ← mean of (a_w − 1)² + Var(a_w),  τ_b² ← mean of b_w² + Var(b_w)        over raters with votes

    Source: Laplace EM; Dempster, Laird & Rubin 1977, section 4.7, with the posterior taken as normal.
    Returns: spreads are kept between 0.02 and 3; after `n_rounds` they are what they are: no maximum is claimed.
    """
    priors = priors or Priors()
    fit = fit_reliability(votes, priors)
    for _ in range(n_rounds):
        seen = fit.n_votes > 0
        spread = [
            float(np.sqrt(np.mean((mean[seen] - centre) ** 2 + sd[seen] ** 2)))
            for mean, centre, sd in ((fit.competence, 1.0, fit.competence_sd), (fit.side_bias, 0.0, fit.side_bias_sd))
        ]
        tau, tau_b = np.clip(spread, 0.02, 3.0).tolist()
        moved = max(abs(tau / priors.competence_sd - 1), abs(tau_b / priors.side_bias_sd - 1))
        priors = replace(priors, competence_sd=tau, side_bias_sd=tau_b)
        fit = fit_reliability(votes, priors, start=fit)
        if moved < 0.01:
            break
    return priors, fit


def _start(problem: JointPosterior, earlier: Reliability | None) -> np.ndarray:
    if earlier is None:
        return problem.start()
    votes = problem.votes
    if (len(earlier.scores), len(earlier.competence)) != (votes.n_scores, votes.n_annotators) or set(
        earlier.cutpoints
    ) != set(votes.scales.n_levels):
        raise InputError("fit_reliability: `start` is a fit of other responses, raters or scales; leave it out")
    lapse = np.clip(earlier.lapse, *LAPSE_BOUNDS) if problem.fits_lapse else np.empty(0)
    steps = votes.scales.log_steps(earlier.cutpoints)
    return np.concatenate([earlier.scores, steps, earlier.competence, earlier.side_bias, lapse])


def _result(problem: JointPosterior, x: np.ndarray) -> Reliability:
    votes = problem.votes
    scores, steps, a, b, lapse = problem.parts(x)
    edges = sparse.csr_matrix((np.ones(len(votes)), (votes.a, votes.b)), (votes.n_scores, votes.n_scores))
    component = connected_components(edges, directed=False)[1]
    score_cov, rater_cov, errors = _covariances(problem, x, component)
    return Reliability(
        scores=scores,
        score_cov=score_cov,
        score_precision=None if problem.dense else problem.curvature(x)[0][: problem.n, : problem.n],
        component=component,
        competence=a,
        side_bias=b,
        rater_cov=rater_cov,
        lapse=lapse,
        cutpoints=votes.scales.named(steps),
        n_votes=np.bincount(votes.annotator, minlength=votes.n_annotators),
        log_posterior=-problem.value_and_gradient(x)[0],
        errors=errors,
        priors=problem.priors,
    )


def _covariances(
    problem: JointPosterior, x: np.ndarray, component: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray, Literal["profiled", "conditional"]]:
    """Covariance of the scores, that of each rater's two parameters, and whether these are profiled."""
    if problem.dense:
        top, cross, blocks = problem.curvature(x)
        inner = np.linalg.inv(blocks)
        inverse = block_diagonal(inner)
        covariance = np.linalg.inv((top - cross @ inverse @ cross.T).toarray())
        return covariance[: problem.n, : problem.n], inner + _profile_blocks(cross @ inverse, covariance), "profiled"
    n_rest = problem.n_steps + 2 * problem.w
    if n_rest > MOST_DENSE or (np.bincount(component).astype(float) ** 2).sum() > MOST_FILLED:
        return None, np.linalg.inv(rater_blocks(problem, x)), "conditional"
    top, cross, blocks = problem.curvature(x)
    n = problem.n
    whole = sparse.bmat([[top, cross], [cross.T, block_diagonal(blocks)]], format="csc")
    factor = splu(whole[:n, :n], permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    reach, rest = whole[:n, n:], whole[n:, n:].toarray()
    for start in range(0, n_rest, 64):
        part = slice(start, start + 64)
        rest[:, part] -= reach.T @ factor.solve(reach[:, part].toarray())
    covariance = np.linalg.inv(rest)[problem.n_steps :, problem.n_steps :]
    place = 2 * np.arange(problem.w)[:, None, None]
    return None, covariance[place + np.array([[0, 0], [1, 1]]), place + np.array([[0, 1], [0, 1]])], "profiled"


def _profile_blocks(reach: sparse.csr_matrix, covariance: np.ndarray, chunk: int = 512) -> np.ndarray:
    """Each rater's block of reachᵀ·C·reach, some raters at a time."""
    columns = reach.tocsc()
    n_raters = columns.shape[1] // 2
    found = np.empty((n_raters, 2, 2))
    for start in range(0, n_raters, chunk):
        mine = columns[:, 2 * start : 2 * min(start + chunk, n_raters)]
        spread = covariance @ mine.toarray()
        for i in (0, 1):
            for j in (0, 1):
                inside = mine[:, i::2].multiply(spread[:, j::2]).sum(axis=0)
                found[start : start + chunk, i, j] = np.asarray(inside).ravel()
    return found
