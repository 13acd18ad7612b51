"""The joint posterior of scores, cutpoints and raters as a function of one vector, its gradient and its curvature.

What `karat.feedback.quality.reliability` maximises. Raters enter the curvature as blocks of two, so that they can be eliminated
before anything is solved. Knows columns of numbers only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from karat.errors import InputError
from karat.feedback.quality.ordinal import Comparisons, Derivatives, derivatives
from karat.feedback.quality.trust_region import minimise

MOST_DENSE = 3000
"""Scores up to which the joint curvature is solved and inverted as a dense matrix: 72 MB."""
NEAR = 0.1
"""Largest slope at which the whole curvature is used for a step."""
MOST_ROUGH = 20
"""Steps by the rough curvature at most: where it is too flat they overshoot to and fro, and never come near."""
LAPSE_BOUNDS = (1e-4, 0.5)
"""A fitted lapse stays inside: at 0 it could never be seen, above one half the levels say nothing."""


Curvature = tuple[sparse.csr_matrix, sparse.csr_matrix, np.ndarray]
"""Second derivatives: scores and steps [G, G], these with raters [G, 2W], raters' own blocks [W, 2, 2]."""


@dataclass(frozen=True)
class Priors:
    """What is believed of responses and raters before the first vote."""

    competence_sd: float = 0.5
    """τ of the competence, N(1, τ²): fixes scale and sign of the scores."""
    side_bias_sd: float = 0.5
    """τ_b of the side bias in logits, N(0, τ_b²)."""
    score_sd: float = 3.0
    """Spread of the scores in logits, N(0, s²): weak; it places each connected component at mean 0."""
    lapse: float | None = 0.05
    """ε of every rater; None = each rater's own is fitted under Beta(1, 19), whose mean is 0.05."""
    step_sd: float = 2.0
    """Spread of the logarithm of the steps between cutpoints, N(0, ·): bounds a scale on which a level never occurs."""

    def __post_init__(self) -> None:
        spreads = (self.competence_sd, self.side_bias_sd, self.score_sd, self.step_sd)
        if min(spreads) <= 0 or (self.lapse is not None and not 0 <= self.lapse < 1):
            raise InputError(f"Priors: found {self}; expected spreads above 0 and a lapse in [0, 1)")


class JointPosterior:
    """The negative log posterior as a function of one vector: scores, steps, competence, side bias (, lapse)."""

    def __init__(self, votes: Comparisons, priors: Priors) -> None:
        self.votes, self.priors = votes, priors
        self.n, self.n_steps, self.w = votes.n_scores, votes.scales.n_steps, votes.n_annotators
        self.n_global = self.n + self.n_steps
        self.size = self.n_global + 2 * self.w
        self.fits_lapse = priors.lapse is None
        upper, lower = votes.bounds
        self.upper, self.lower = upper, lower
        self.upper_jacobian, self.lower_jacobian = votes.scales.jacobian[upper], votes.scales.jacobian[lower]

    @property
    def dense(self) -> bool:
        """True = the curvature of scores and steps fits into memory as it stands."""
        return self.n <= MOST_DENSE

    def start(self) -> np.ndarray:
        """Where nothing is known: equal scores, raters at their prior mean."""
        lapse = np.full(self.w, 0.05) if self.fits_lapse else np.empty(0)
        steps = np.full(self.n_steps, np.log(0.7))
        return np.concatenate([np.zeros(self.n), steps, np.ones(self.w), np.zeros(self.w), lapse])

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest value of each parameter: only lapses have any."""
        low, high = np.full(len(self.start()), -np.inf), np.full(len(self.start()), np.inf)
        low[self.size :], high[self.size :] = LAPSE_BOUNDS
        return low, high

    def parts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scores, log steps, competence, side bias and lapse in a vector."""
        scores, steps, a, b, lapse = np.split(x, np.cumsum([self.n, self.n_steps, self.w, self.w]))
        return scores, steps, a, b, lapse if self.fits_lapse else np.full(self.w, float(self.priors.lapse or 0.0))

    def likelihood(self, x: np.ndarray, *, curved: bool = True) -> tuple[Derivatives, np.ndarray]:
        """Log-likelihood of every comparison with its derivatives, and the differences of scores."""
        scores, steps, a, b, lapse = self.parts(x)
        votes = self.votes
        delta = scores[votes.a] - scores[votes.b]
        cuts = votes.scales.cutpoints(steps)
        eta = a[votes.annotator] * delta + b[votes.annotator] * votes.side
        lapses = lapse[votes.annotator]
        found = derivatives(eta, cuts[self.upper], cuts[self.lower], lapses, votes.n_levels, curved=curved)
        return found, delta

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log posterior, up to a constant, and its slope in every parameter."""
        votes, priors = self.votes, self.priors
        scores, steps, a, b, lapse = self.parts(x)
        found, delta = self.likelihood(x, curved=False)
        pull = found.eta * a[votes.annotator]
        step_slope = (self.upper_jacobian.T @ found.upper + self.lower_jacobian.T @ found.lower) * np.exp(steps)
        slopes = [
            np.bincount(votes.a, pull, self.n) - np.bincount(votes.b, pull, self.n) - scores / priors.score_sd**2,
            step_slope - steps / priors.step_sd**2,
            np.bincount(votes.annotator, found.eta * delta, self.w) - (a - 1) / priors.competence_sd**2,
            np.bincount(votes.annotator, found.eta * votes.side, self.w) - b / priors.side_bias_sd**2,
        ]
        value = found.loglik.sum() - 0.5 * (
            (scores @ scores) / priors.score_sd**2
            + (steps @ steps) / priors.step_sd**2
            + ((a - 1) @ (a - 1)) / priors.competence_sd**2
            + (b @ b) / priors.side_bias_sd**2
        )
        if self.fits_lapse:
            value += 18 * np.log1p(-lapse).sum()
            slopes.append(np.bincount(votes.annotator, found.lapse, self.w) - 18 / (1 - lapse))
        return -float(value), -np.concatenate(slopes)

    def free_gradient(self, x: np.ndarray) -> np.ndarray:
        """The gradient, but for lapses that a bound holds."""
        _, gradient = self.value_and_gradient(x)
        low, high = self.bounds()
        held = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
        return np.where(held, 0.0, gradient)

    def curvature(self, x: np.ndarray, *, rough: bool = False) -> Curvature:
        """Second derivatives of the negative log posterior: scores and steps [G, G], with raters [G, 2W], raters' blocks
        [W, 2, 2]. Lapses are taken as known.

        Args:
            rough: True = the part that can only be that of a maximum (Gauss and Newton's, with the answers' chances of
                being lapses held): for steps far away, where the whole curvature misleads.
        """
        votes, priors = self.votes, self.priors
        _, steps, a, _, _ = self.parts(x)
        found, delta = self.likelihood(x)
        if rough:
            found = found.rough()
        slope, side, second = a[votes.annotator], votes.side.astype(float), found.second
        top = self._global_curvature(found, slope, steps)
        # ∂²/∂s∂a = ±(a·Δ·L'' + L'), ∂²/∂s∂b = ±a·side·L''
        by_a, by_b = second["ee"] * slope * delta + found.eta, second["ee"] * slope * side
        rows = [votes.a, votes.b, votes.a, votes.b]
        columns = [2 * votes.annotator, 2 * votes.annotator, 2 * votes.annotator + 1, 2 * votes.annotator + 1]
        values = [by_a, -by_a, by_b, -by_b]
        with_steps = self._step_slopes(second["eu"], second["el"], steps)
        for place in range(self.n_steps):
            rows += [np.full(len(votes), self.n + place)] * 2
            columns += [2 * votes.annotator, 2 * votes.annotator + 1]
            values += [with_steps[:, place] * delta, with_steps[:, place] * side]
        cross = sparse.csr_matrix(
            (-np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (self.n_global, 2 * self.w)
        )
        blocks = np.empty((self.w, 2, 2))
        blocks[:, 0, 0] = 1 / priors.competence_sd**2 - np.bincount(votes.annotator, second["ee"] * delta**2, self.w)
        blocks[:, 1, 1] = 1 / priors.side_bias_sd**2 - np.bincount(votes.annotator, second["ee"] * side**2, self.w)
        blocks[:, 0, 1] = blocks[:, 1, 0] = -np.bincount(votes.annotator, second["ee"] * delta * side, self.w)
        return top, cross, blocks

    def _step_slopes(self, upper: np.ndarray, lower: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return (upper[:, None] * self.upper_jacobian + lower[:, None] * self.lower_jacobian) * np.exp(steps)

    def _global_curvature(self, found: Derivatives, slope: np.ndarray, steps: np.ndarray) -> sparse.csr_matrix:
        votes, second, n = self.votes, found.second, self.n
        bend = second["ee"] * slope**2
        precision = np.repeat([self.priors.score_sd**-2, self.priors.step_sd**-2], [n, self.n_steps])
        place = np.arange(self.n_global)
        rows, columns = [votes.a, votes.b, votes.a, votes.b, place], [votes.a, votes.b, votes.b, votes.a, place]
        values = [-bend, -bend, bend, bend, precision]
        with_scores = self._step_slopes(second["eu"] * slope, second["el"] * slope, steps)
        for step in range(self.n_steps):
            mixed = np.bincount(votes.b, with_scores[:, step], n) - np.bincount(votes.a, with_scores[:, step], n)
            one = np.full(n, n + step)
            rows, columns, values = [*rows, place[:n], one], [*columns, one, place[:n]], [*values, mixed, mixed]
        u, low = self.upper_jacobian * np.exp(steps), self.lower_jacobian * np.exp(steps)
        both = u.T @ (low * second["ul"][:, None])
        inner = u.T @ (u * second["uu"][:, None]) + low.T @ (low * second["ll"][:, None]) + both + both.T
        inner += np.diag(u.T @ found.upper + low.T @ found.lower)
        corner = np.indices(inner.shape) + n
        rows, columns, values = [*rows, corner[0].ravel()], [*columns, corner[1].ravel()], [*values, -inner.ravel()]
        cells = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return sparse.csr_matrix(cells, (self.n_global, self.n_global))


def newton(problem: JointPosterior, x: np.ndarray, tol: float, n_steps: int = 200) -> np.ndarray:
    """Newton steps on all but the lapses; exact where the curvature is dense, else in a trust region.

    Where the dense curvature is not that of a maximum, or a step does not climb, a multiple of its diagonal is added
    (Levenberg and Marquardt) until it does. What these steps leave unfinished, a trust region ends.
    """
    if problem.dense:
        x = _damped(problem, x, tol, n_steps)
        if np.abs(problem.value_and_gradient(x)[1][: problem.size]).max() < tol:
            return x
    return _in_trust_region(problem, x, tol)


def _damped(problem: JointPosterior, x: np.ndarray, tol: float, n_steps: int) -> np.ndarray:
    value, gradient = problem.value_and_gradient(x)
    damping = 0.0
    for number in range(n_steps):
        slope = np.abs(gradient[: problem.size]).max()
        if slope < tol / 100:
            break
        curvature = problem.curvature(x, rough=slope > NEAR and number < MOST_ROUGH)
        while damping < 1e8:
            step = _step(problem, curvature, gradient, damping)
            if step is not None:
                new_value, new_gradient = problem.value_and_gradient(x - step)
                if new_value <= value + 1e-9:
                    break
            damping = max(10 * damping, 1e-3)
        else:
            break
        x, value, gradient = x - step, new_value, new_gradient
        damping = damping / 10 if damping > 1e-3 else 0.0
    return x


def _in_trust_region(problem: JointPosterior, x: np.ndarray, tol: float) -> np.ndarray:
    """Newton steps by products with the whole curvature, which far from the maximum may bend either way."""
    size, n, known = problem.size, problem.n_global, x[problem.size :]
    # in the curvature a rater's two parameters lie side by side; in x all competences come first
    place = np.concatenate([np.arange(n), n + np.arange(2 * problem.w).reshape(2, -1).T.ravel()])

    def value(free: np.ndarray) -> tuple[float, np.ndarray]:
        found, gradient = problem.value_and_gradient(np.concatenate([free, known]))
        return found, gradient[:size]

    def curve(free: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
        top, cross, blocks = problem.curvature(np.concatenate([free, known]))
        back, own, diagonal = cross.T, block_diagonal(blocks), np.empty(size)
        diagonal[place] = np.concatenate([top.diagonal(), own.diagonal()])

        def product(z: np.ndarray) -> np.ndarray:
            ahead, raters = np.split(z[place], [n])
            found = np.empty(size)
            found[place] = np.concatenate([top @ ahead + cross @ raters, back @ ahead + own @ raters])
            return found

        return product, diagonal

    return np.concatenate([minimise(value, curve, x[:size], tol=tol / 10), known])


def _step(problem: JointPosterior, curvature: Curvature, gradient: np.ndarray, damping: float) -> np.ndarray | None:
    """A damped Newton step, None where the damped curvature is not that of a maximum."""
    top, cross, blocks = curvature
    # lapses can bend the likelihood the wrong way: sizes, not signs, say how much is much
    blocks = blocks + damping * np.eye(2) * (1 + np.abs(blocks))
    if (np.linalg.det(blocks) <= 0).any() or (blocks[:, 0, 0] <= 0).any():
        return None
    top = top + sparse.diags(damping * (1 + np.abs(top.diagonal())))
    ahead = gradient[: problem.n_global]
    raters = gradient[problem.n_global : problem.size].reshape(2, -1).T.ravel()
    inverse = block_diagonal(np.linalg.inv(blocks))
    found = _eliminated(top, cross, inverse, np.concatenate([ahead, raters]))
    if found is None:
        return None
    global_step, rater_step = found[: problem.n_global], found[problem.n_global :]
    step = np.zeros_like(gradient)
    step[: problem.size] = np.concatenate([global_step, rater_step[0::2], rater_step[1::2]])
    return step


def _eliminated(
    top: sparse.csr_matrix, cross: sparse.csr_matrix, inverse: sparse.csr_matrix, slope: np.ndarray
) -> np.ndarray | None:
    n = top.shape[0]
    try:
        factor = linalg.cho_factor((top - cross @ inverse @ cross.T).toarray())
    except linalg.LinAlgError:
        return None
    found = linalg.cho_solve(factor, slope[:n] - cross @ (inverse @ slope[n:]))
    return np.concatenate([found, inverse @ (slope[n:] - cross.T @ found)])


def rater_blocks(problem: JointPosterior, x: np.ndarray) -> np.ndarray:
    """Each rater's 2 × 2 block of the curvature, scores and cutpoints taken as known: [W, 2, 2]."""
    found, delta = problem.likelihood(x)
    votes, side = problem.votes, problem.votes.side
    sums = [
        np.bincount(votes.annotator, found.second["ee"] * factor, problem.w)
        for factor in (delta**2, delta * side, side**2)
    ]
    precision = np.array([problem.priors.competence_sd**-2, 0.0, problem.priors.side_bias_sd**-2])
    aa, ab, bb = precision[:, None] - np.array(sums)
    return np.stack([np.stack([aa, ab], -1), np.stack([ab, bb], -1)], -2)


def block_diagonal(blocks: np.ndarray) -> sparse.csr_matrix:
    """[W, 2, 2] blocks as one sparse matrix, a rater's competence and side bias beside one another."""
    w = len(blocks)
    rows = 2 * np.arange(w)[:, None, None] + np.array([[0, 0], [1, 1]])
    columns = 2 * np.arange(w)[:, None, None] + np.array([[0, 1], [0, 1]])
    return sparse.csr_matrix((blocks.ravel(), (rows.ravel(), columns.ravel())), (2 * w, 2 * w))
