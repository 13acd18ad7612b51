"""Comparisons read through frozen features: the ordinal link on a linear reward, and its weighted maximum.

    η = x·θ + offset,  x = φ_a − φ_b        P(y ≤ k) = σ(c_k − η)        c = J·s, steps s > 0, antisymmetric

With c linear in s the log-likelihood is jointly concave in (θ, s): Newton's method finds its one maximum. Knows arrays
of differences of features and who voted; knows nothing about texts, models, or what a person is.

Dimension letters: C comparisons, d features, K levels, U people.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, log_expit

from karat.errors import ConvergenceError, InputError

STEP_SHAPE, STEP_RATE = 2.0, 2.0
"""Gamma prior of each step between cutpoints, mode at half a logit: a level that nobody used must not close its gap."""
HALVINGS = 40
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True, eq=False)
class LinearVotes:
    """Comparisons as columns of differences of features."""

    x: np.ndarray
    """[C, d] φ_a − φ_b."""
    level: np.ndarray
    """[C] 0 = b much better … n_levels − 1 = a much better."""
    n_levels: int
    """Levels of the scale, ≥ 2."""
    user: np.ndarray
    """[C] index of the person who voted."""
    n_users: int
    """People there are; those without a vote keep their prior."""
    offset: np.ndarray | None = None
    """[C] logits known beforehand (a side bias times the side); None = 0."""

    def __post_init__(self) -> None:
        x = np.asarray(self.x, dtype=float)
        level, user = (np.asarray(column, dtype=np.int64) for column in (self.level, self.user))
        offset = np.zeros(len(level)) if self.offset is None else np.asarray(self.offset, dtype=float)
        if x.ndim != 2 or not len(x) == len(level) == len(user) == len(offset):
            raise InputError(
                f"LinearVotes: found x {x.shape}, {len(level)} levels, {len(user)} users, {len(offset)} offsets; "
                "expected [C, d] and one of each a row"
            )
        if self.n_levels < 2 or (len(level) and not 0 <= level.min() <= level.max() < self.n_levels):
            raise InputError(
                f"LinearVotes: found levels outside 0 … {self.n_levels - 1}; expected a scale of ≥ 2 levels"
            )
        if len(user) and not 0 <= user.min() <= user.max() < self.n_users:
            raise InputError(f"LinearVotes: found users {user.min()} … {user.max()}; expected 0 … {self.n_users - 1}")
        if not (np.isfinite(x).all() and np.isfinite(offset).all()):
            raise InputError(
                "LinearVotes: found features or offsets that are not finite; look at the texts behind them"
            )
        for name, column in (("x", x), ("level", level), ("user", user), ("offset", offset)):
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.level)

    def select(self, rows: np.ndarray) -> LinearVotes:
        """The comparisons at some rows (or where a mask is True); people keep their indices."""
        assert self.offset is not None
        return replace(
            self, x=self.x[rows], level=self.level[rows], user=self.user[rows], offset=self.offset[rows]
        )  # fmt: skip

    def swapped(self) -> LinearVotes:
        """The same comparisons with a and b exchanged; their likelihood is the same."""
        assert self.offset is not None
        return replace(self, x=-self.x, level=self.n_levels - 1 - self.level, offset=-self.offset)


@dataclass(frozen=True, eq=False)
class Slopes:
    """log P of each comparison and its derivatives in η."""

    loglik: np.ndarray
    """log P(y = level)."""
    first: np.ndarray
    """∂/∂η."""
    second: np.ndarray
    """∂²/∂η², never above 0."""


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A linear reward at the maximum of its posterior."""

    theta: np.ndarray
    """[d] weights on the features."""
    steps: np.ndarray
    """[(K − 1) // 2] steps of the cutpoints, > 0."""
    cov: np.ndarray
    """[d, d] inverse curvature of θ, the steps integrated."""
    log_posterior: float
    """At the maximum, up to a constant."""


def step_matrix(n_levels: int) -> np.ndarray:
    """J, [K + 1, (K − 1) // 2]: the cutpoints −∞, c_1 … c_{K−1}, ∞ as sums of steps; rows of infinite ends are 0."""
    half = (n_levels - 1) // 2
    above = np.tril(np.ones((half, half)))
    middle = np.zeros(((n_levels + 1) % 2, half))
    end = np.zeros((1, half))
    return np.concatenate([end, -above[::-1], middle, above, end])


def edges(steps: np.ndarray, n_levels: int) -> np.ndarray:
    """[K + 1] cutpoints with their infinite ends."""
    cuts = step_matrix(n_levels) @ np.asarray(steps, dtype=float)
    cuts[0], cuts[-1] = -np.inf, np.inf
    return cuts


def steps_of(cutpoints: np.ndarray) -> np.ndarray:
    """The steps of finite, antisymmetric cutpoints: the inverse of `edges`.

    >>> steps_of(np.array([-1.5, -0.5, 0.5, 1.5])).tolist()
    [0.5, 1.0]
    """
    half = len(cutpoints) // 2
    return np.diff(np.asarray(cutpoints, dtype=float)[len(cutpoints) - half :], prepend=0.0)


def slopes(eta: np.ndarray, level: np.ndarray, cuts: np.ndarray) -> Slopes:
    """Log-likelihood of levels and its derivatives in η, exact in the tails.

    log P = log σ(u − η) + log σ(η − l) + log(1 − e^{l − u}),  u and l the cutpoints around the level
    """
    upper, lower = cuts[level + 1], cuts[level]
    with np.errstate(over="ignore"):
        loglik = log_expit(upper - eta) + log_expit(eta - lower) + np.log1p(-np.exp(lower - upper))
    above, below = expit(eta - upper), expit(lower - eta)
    return Slopes(loglik, below - above, -above * (1 - above) - below * (1 - below))


def level_probs(mean: np.ndarray, var: np.ndarray | float, cuts: np.ndarray) -> np.ndarray:
    """[C, K] probability of every level for η ~ N(mean, var), by 32 Gauss–Hermite nodes."""
    eta = np.asarray(mean)[:, None] + np.sqrt(np.maximum(var, 0.0))[..., None] * NODES
    below = expit(cuts[None, None, :] - eta[:, :, None])
    return np.einsum("cnk,n->ck", np.diff(below, axis=-1), WEIGHTS)


def fit_linear(
    votes: LinearVotes,
    *,
    prior_mean: np.ndarray | float = 0.0,
    precision: np.ndarray | float = 1.0,
    weights: np.ndarray | None = None,
    start: LinearFit | None = None,
    tol: float = 1e-8,
    max_iter: int = 100,
) -> LinearFit:
    """One linear reward and its cutpoints at the maximum of the posterior, by Newton's method.

        max Σ_c ω_c·log P(y_c) − Σ_j π_j·(θ_j − μ_j)²/2 + Σ_k log Gamma(s_k; 2, 2)

    Args:
        prior_mean: μ.    precision: π > 0 of each weight.    weights: ω ≥ 0 of each vote; None = 1.
        tol: largest Newton decrement (half the gain still to be had, in nats) at the end.
    Raises: InputError without votes; ConvergenceError where the maximum is not reached.
    Source: McCullagh 1980, JRSS B 42(2), pp. 109–142; Pratt 1981, JASA 76, pp. 103–106 for its concavity.
    """
    if not len(votes):
        raise InputError("fit_linear: found no votes; expected at least one")
    d, jacobian = votes.x.shape[1], step_matrix(votes.n_levels)
    omega = np.ones(len(votes)) if weights is None else np.asarray(weights, dtype=float)
    mean, pi = np.broadcast_to(prior_mean, d).astype(float), np.broadcast_to(precision, d).astype(float)
    if (pi <= 0).any() or (omega < 0).any():
        raise InputError("fit_linear: found a precision ≤ 0 or a weight < 0; expected precisions > 0, weights ≥ 0")
    theta = mean.copy() if start is None else start.theta.copy()
    steps = np.full(jacobian.shape[1], 0.5) if start is None else start.steps.copy()
    for _ in range(max_iter):
        value, gradient, curvature = _objective(votes, omega, mean, pi, theta, steps)
        move = np.linalg.solve(curvature, gradient)
        if float(gradient @ move) / 2 < tol:
            cov = np.linalg.inv(curvature)[:d, :d]
            return LinearFit(theta, steps, (cov + cov.T) / 2, value)
        size = 1.0
        for _ in range(HALVINGS):
            new = theta + size * move[:d], steps + size * move[d:]
            if (new[1] > 0).all() and _value(votes, omega, mean, pi, *new) >= value:
                break
            size /= 2
        theta, steps = new
    raise ConvergenceError(
        f"fit_linear: after {max_iter} Newton steps the maximum is not reached; raise the precision, or look for features "
        "that are not on a common scale"
    )


def _value(
    votes: LinearVotes, omega: np.ndarray, mean: np.ndarray, pi: np.ndarray, theta: np.ndarray, steps: np.ndarray
) -> float:
    eta = votes.x @ theta + votes.offset
    found = slopes(eta, votes.level, edges(steps, votes.n_levels)).loglik
    return float(omega @ found - 0.5 * pi @ (theta - mean) ** 2 + step_log_prior(steps))


def step_log_prior(steps: np.ndarray) -> float:
    """Σ log Gamma(s; 2, 2), up to a constant."""
    return float(((STEP_SHAPE - 1) * np.log(steps) - STEP_RATE * steps).sum())


def _objective(
    votes: LinearVotes, omega: np.ndarray, mean: np.ndarray, pi: np.ndarray, theta: np.ndarray, steps: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """The log posterior, its gradient and its negative curvature in (θ, s)."""
    cuts, jacobian = edges(steps, votes.n_levels), step_matrix(votes.n_levels)
    eta = votes.x @ theta + votes.offset
    upper, lower = cuts[votes.level + 1], cuts[votes.level]
    of_upper, of_lower = jacobian[votes.level + 1], jacobian[votes.level]
    above, below = expit(eta - upper), expit(lower - eta)
    with np.errstate(over="ignore", divide="ignore"):
        inverse = 1 / np.expm1(upper - lower)
    value = _value(votes, omega, mean, pi, theta, steps)
    pull = omega * (below - above)
    by_step = of_upper.T @ (omega * (above + inverse)) - of_lower.T @ (omega * (below + inverse))
    gradient = np.concatenate(
        [votes.x.T @ pull - pi * (theta - mean), by_step + (STEP_SHAPE - 1) / steps - STEP_RATE]
    )  # fmt: skip
    at_upper, at_lower = omega * above * (1 - above), omega * below * (1 - below)
    gap = of_upper - of_lower
    corner = of_upper.T @ (at_upper[:, None] * of_upper) + of_lower.T @ (at_lower[:, None] * of_lower)
    corner += gap.T @ ((omega * inverse * (1 + inverse))[:, None] * gap) + np.diag((STEP_SHAPE - 1) / steps**2)
    cross = -votes.x.T @ (at_upper[:, None] * of_upper + at_lower[:, None] * of_lower)
    top = votes.x.T @ ((at_upper + at_lower)[:, None] * votes.x) + np.diag(pi)
    return value, gradient, np.block([[top, cross], [cross.T, corner]])
