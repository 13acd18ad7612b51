"""People with tastes of their own: a hierarchical low-rank reward, with a full posterior of every person.

    r_u(x, y) = (θ + Vᵀ·w_u)·φ(x, y)        w_u ~ N(μ_g, Σ), g the group of u (one group where none is declared)

What all share is θ; V holds the few directions in which people differ. `karat.reward.user_em` fits the population; here
is what it says of a person: the Laplace posterior of her w_u, θ and V taken as known. Knows differences of frozen features and who
voted; knows nothing about texts or models.

Dimension letters: C comparisons, d features, r rank, U people, G groups, K levels.

Differs: competence is no parameter of its own here: who perceives all differences half as well has a w_u that halves θ,
    where V spans it. Lapses are not modelled; a side bias enters as an offset that is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karat.errors import ConvergenceError
from karat.reward.linear_votes import LinearVotes, edges, level_probs, slopes

NEWTON_STEPS = 60


@dataclass(frozen=True, eq=False)
class UserModel:
    """The population: what is shared, how people differ, and by how much."""

    shared: np.ndarray
    """[d] θ, the mean of all people included."""
    basis: np.ndarray
    """[r, d] V, rows orthonormal, from the direction in which people differ most."""
    mean: np.ndarray
    """[G, r] μ of each group; over people they average to 0."""
    mean_cov: np.ndarray
    """[G, r, r] covariance of μ from the people there are."""
    cov: np.ndarray
    """[r, r] Σ within groups."""
    steps: np.ndarray
    """Steps of the cutpoints."""
    n_levels: int
    """Levels of the scale."""
    groups: tuple[str, ...]
    """Names of the groups; ("all",) where none is declared."""
    bound: tuple[float, ...]
    """The bound after each iteration; it never falls."""

    @property
    def rank(self) -> int:
        """r, 0 = one reward for all."""
        return self.basis.shape[0]

    @property
    def cuts(self) -> np.ndarray:
        """Cutpoints with their infinite ends."""
        return edges(self.steps, self.n_levels)


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is known of some people: Gaussians in the coordinates of V."""

    mean: np.ndarray
    """[U, r] most probable w_u."""
    cov: np.ndarray
    """[U, r, r] inverse curvature there."""
    n_votes: np.ndarray
    """[U] votes it rests on; 0 = the group's prior."""

    def __len__(self) -> int:
        return len(self.mean)


def posterior_of(model: UserModel, votes: LinearVotes, group: np.ndarray | int = 0) -> Posterior:
    """The Laplace posterior of every person's w_u, given the population and her votes.

        log N(w; μ_g, Σ) + Σ_c log P(y_c | (θ + Vᵀw)·x_c)        mean = its maximum, cov = inverse curvature there

    Args:
        group: [U] index of each person's group, or one for all.
    Returns: the prior where a person has no votes.
    Raises: ConvergenceError where Newton's method does not reach the maximum of the (concave) log posterior.
    """
    r, n = model.rank, votes.n_users
    prior_mean = model.mean[np.broadcast_to(group, (n,))]
    counts = np.bincount(votes.user, minlength=n)
    if r == 0:
        return Posterior(np.zeros((n, 0)), np.zeros((n, 0, 0)), counts)
    z, base = votes.x @ model.basis.T, votes.x @ model.shared + votes.offset
    sharp, w = np.linalg.inv(model.cov), prior_mean.copy()

    def value(at: np.ndarray) -> np.ndarray:
        fit = slopes(base + (z * at[votes.user]).sum(1), votes.level, model.cuts).loglik
        off = at - prior_mean
        return np.bincount(votes.user, fit, n) - 0.5 * np.einsum("ui,ij,uj->u", off, sharp, off)

    now = value(w)
    for _ in range(NEWTON_STEPS):
        found = slopes(base + (z * w[votes.user]).sum(1), votes.level, model.cuts)
        gradient = sum_by_user(z * found.first[:, None], votes.user, n) - (w - prior_mean) @ sharp
        curvature = sharp - sum_outer_by_user(z, found.second, votes.user, n)
        move = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        if float((gradient * move).sum(1).max(initial=0.0)) < 1e-16 * (1 + float(np.abs(now).max(initial=0.0))) + 1e-14:
            cov = np.linalg.inv(curvature)
            return Posterior(w, (cov + cov.transpose(0, 2, 1)) / 2, counts)
        size = np.ones(n)
        for _ in range(30):
            new = value(w + size[:, None] * move)
            worse = new < now - 1e-12 * (1 + np.abs(now))
            if not worse.any():
                break
            size = np.where(worse, size / 2, size)
        w = w + size[:, None] * move
        now = value(w)
    raise ConvergenceError(f"posterior_of: after {NEWTON_STEPS} Newton steps a person's maximum is not reached")


def predicted_probs(model: UserModel, people: Posterior, votes: LinearVotes) -> np.ndarray:
    """[C, K] probability of every level for the person of each row, her posterior integrated.

    η ~ N(offset + (θ + Vᵀm_u)·x, (V·x)ᵀ·S_u·(V·x))
    """
    z = votes.x @ model.basis.T
    mean = votes.offset + votes.x @ model.shared + (z * people.mean[votes.user]).sum(1)
    var = np.einsum("ci,cij,cj->c", z, people.cov[votes.user], z)
    return level_probs(mean, var, model.cuts)


def evidence(model: UserModel, votes: LinearVotes, group: np.ndarray | int = 0) -> float:
    """log P(all votes | population), each person integrated by Laplace's method.

        Σ_u log P(votes | m_u) + log N(m_u; μ_g, Σ) + ½·log|2π·S_u|

    Source: Tierney & Kadane 1986, JASA 81, pp. 82–86.
    """
    people = posterior_of(model, votes, group)
    z = votes.x @ model.basis.T
    eta = votes.offset + votes.x @ model.shared + (z * people.mean[votes.user]).sum(1)
    total = float(slopes(eta, votes.level, model.cuts).loglik.sum())
    if not model.rank:
        return total
    off = people.mean - model.mean[np.broadcast_to(group, (len(people),))]
    total -= 0.5 * float(np.einsum("ui,ij,uj->", off, np.linalg.inv(model.cov), off))
    return total + 0.5 * float((np.linalg.slogdet(people.cov)[1] - np.linalg.slogdet(model.cov)[1]).sum())


def sum_by_user(values: np.ndarray, user: np.ndarray, n: int) -> np.ndarray:
    """[U, r] sums over each person's rows."""
    return np.stack([np.bincount(user, column, n) for column in values.T], axis=-1)


def sum_outer_by_user(z: np.ndarray, weight: np.ndarray, user: np.ndarray, n: int) -> np.ndarray:
    """[U, r, r] Σ weight·z·zᵀ of each person."""
    r = z.shape[1]
    found = np.empty((n, r, r))
    for i in range(r):
        for j in range(i + 1):
            found[:, i, j] = found[:, j, i] = np.bincount(user, weight * z[:, i] * z[:, j], n)
    return found
