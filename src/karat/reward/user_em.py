"""How a population of people is fitted: variational EM for the hierarchical low-rank reward of `karat.reward.users`.

Every step is closed form and none lowers the bound (Jaakkola and Jordan's, in `karat.reward.bound`). That bound makes
people look more alike than they are; so at the end the size of Σ is set by the Laplace evidence, its shape kept. Knows
differences of frozen features and who voted; knows nothing about texts or models.

Dimension letters: C comparisons, d features, r rank, U people, G groups, K levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize_scalar

from karat.errors import ConvergenceError, InputError
from karat.records import Estimate
from karat.resampling import cluster_sums, ratio_bootstrap
from karat.reward.bound import Expected, best_steps, expected_terms
from karat.reward.linear_votes import LinearFit, LinearVotes, edges, fit_linear, slopes, step_log_prior
from karat.reward.users import UserModel, evidence, posterior_of, predicted_probs, sum_by_user, sum_outer_by_user

SMALLEST_SPREAD = 1e-3
"""Σ is inverted: a direction in which nobody differs keeps this sd."""
LOG_SIZE = (-1.0, 2.0)
"""Range in which the size of Σ is looked for, on the scale of log variance, around what the bound gave."""


@dataclass(frozen=True)
class UserPriors:
    """What is believed before the first vote."""

    shared_mean: tuple[float, ...] = ()
    """Mean of each shared weight; () = 0. A reward model's own score among the features has mean 1."""
    shared_precision: float = 1.0
    """Precision of the shared weights around it."""
    basis_precision: float = 1.0
    """Precision of the entries of V around 0, at Σ = 1: by how much people may differ along a feature of sd 1."""

    def __post_init__(self) -> None:
        if min(self.shared_precision, self.basis_precision) <= 0:
            raise InputError(f"UserPriors: found {self}; expected precisions > 0")


@dataclass(frozen=True)
class RankChoice:
    """How well each rank predicts held-out votes of people whose other votes it was fitted to."""

    rank: int
    """The smallest rank whose likelihood is not told from the best's."""
    loglik: tuple[Estimate, ...]
    """Mean held-out log-likelihood a vote of rank 0, 1, …, interval over people."""
    gain: tuple[Estimate, ...]
    """The best rank's minus each rank's, pair by pair, interval over people."""


def fit_users(
    votes: LinearVotes,
    rank: int,
    *,
    priors: UserPriors | None = None,
    group: np.ndarray | None = None,
    groups: Sequence[str] = ("all",),
    tol: float = 1e-5,
    max_iter: int = 2000,
) -> UserModel:
    """The population at a maximum of the variational bound.

        max_{θ, V, μ, s} Σ_u max_q E_q[log P(votes of u | w)] − KL(q ‖ N(μ_g, 1)) + log prior(θ, V, s)

    Args:
        rank: r ≥ 0.    group: [U] index into `groups` of each person; None = all in the first.
        tol: it has converged when an iteration raises the bound by less than this for each vote.
    Returns: in canonical form: rows of V orthonormal, pooled mean 0, largest spread first, signs fixed.
    Raises: InputError for no votes, a rank above the features, a group without people; ConvergenceError.
    Source: Jaakkola & Jordan 2000, Statistics and Computing 10, pp. 25–37 (the bound); Cho, Wang, Zhang & Xu 2021, BJMSP
        74, pp. 52–85 (EM for the same model of tests); low-rank rewards of people: Bose et al. 2025, arXiv:2504.14439.
    Differs: an ordinal link (two bounds a vote); Gaussian weights instead of a simplex; group means.
    """
    priors, d = priors or UserPriors(), votes.x.shape[1]
    code = np.zeros(votes.n_users, dtype=np.int64) if group is None else np.asarray(group, dtype=np.int64)
    if not len(votes) or not 0 <= rank <= d:
        raise InputError(f"fit_users: found {len(votes)} votes, rank {rank}; expected votes and a rank in 0 … {d}")
    if code.shape != (votes.n_users,) or set(code.tolist()) != set(range(len(groups))):
        raise InputError(
            f"fit_users: found groups {sorted(set(code.tolist()))} of {len(code)} people for the names {list(groups)}; "
            "expected every person in one group and nobody's group empty"
        )
    em = _EM(votes, rank, priors, code, len(groups))
    bound = [em.value()]
    for _ in range(max_iter if rank else 1):
        em.iterate()
        bound.append(em.value())
        if bound[-1] - bound[-2] < tol * len(votes):
            return respread(em.canonical(tuple(groups), tuple(bound)), votes, code)
    if not rank:
        return em.canonical(tuple(groups), tuple(bound))
    raise ConvergenceError(
        f"fit_users: after {max_iter} iterations the bound still rises by {bound[-1] - bound[-2]:.2g}; give more "
        "iterations, a lower rank, or a larger basis_precision"
    )


def respread(model: UserModel, votes: LinearVotes, group: np.ndarray) -> UserModel:
    """The same population with Σ multiplied by the factor that makes the votes most likely, people integrated.

    Args:
        group: [U] index of each person's group.
    Differs: the bound alone gives sds of .7 of the truth from 10 two-level votes a person; with this about .9.
    """
    if not model.rank:
        return model

    def loss(log_size: float) -> float:
        return -evidence(replace(model, cov=model.cov * math.exp(log_size)), votes, group)

    found = minimize_scalar(loss, bounds=LOG_SIZE, method="bounded", options={"xatol": 0.02})
    size = math.exp(float(found.x))
    return replace(model, cov=model.cov * size, mean_cov=model.mean_cov * size)


def choose_rank(
    votes: LinearVotes,
    ranks: Sequence[int],
    rng: np.random.Generator,
    *,
    holdout_frac: float = 0.25,
    priors: UserPriors | None = None,
    group: np.ndarray | None = None,
    groups: Sequence[str] = ("all",),
    eligible: np.ndarray | None = None,
) -> RankChoice:
    """The rank that held-out votes ask for, each rank fitted to the other votes of the same people.

    Args:
        ranks: ascending, 0 (one reward for all) among them.    rng: which votes are held out, and the bootstrap.
        holdout_frac: share of each person's votes held out, those with one vote keep it.
        eligible: [C] votes that may be held out, on questions drawn at random; None = all.
    Returns: the smallest rank whose difference to the best has an interval that touches 0.
    Raises: InputError where nobody has two votes.
    """
    held = held_out_mask(votes.user, holdout_frac, rng, eligible)
    if not held.any():
        raise InputError(
            "choose_rank: nobody has two votes, one of them drawn at random; expected people with several, or give the rank"
        )
    train, test = votes.select(~held), votes.select(held)
    found = []
    for rank in ranks:
        model = fit_users(train, rank, priors=priors, group=group, groups=groups)
        people = posterior_of(model, train, 0 if group is None else group)
        probs = predicted_probs(model, people, test)
        found.append(np.log(np.maximum(probs[np.arange(len(test)), test.level], 1e-300)))
    best = int(np.argmax([rows.mean() for rows in found]))
    loglik = tuple(person_mean(rows, test.user, rng, "log-likelihood a vote") for rows in found)
    gain = tuple(person_mean(found[best] - rows, test.user, rng, "gain of the best rank") for rows in found)
    near = [i for i, one in enumerate(gain) if i == best or one.low is None or one.low <= 0]
    return RankChoice(int(ranks[near[0]]), loglik, gain)


def held_out_mask(
    user: np.ndarray, frac: float, rng: np.random.Generator, eligible: np.ndarray | None = None
) -> np.ndarray:
    """True for a share of each person's votes, drawn at random; at least one stays with everybody.

    Args:
        eligible: [C] votes that may be held out; a person with fewer of them than the share has all of these held out.
    """
    may = np.ones(len(user), dtype=bool) if eligible is None else np.asarray(eligible, dtype=bool)
    order = rng.permutation(len(user))
    held = np.zeros(len(user), dtype=bool)
    by_user = order[np.lexsort((~may[order], user[order]))]
    counts = np.bincount(user)
    place = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    n_held = np.minimum(np.round(frac * counts), counts - 1)
    n_held = np.minimum(n_held, np.bincount(user[may], minlength=len(counts)))
    held[by_user] = place < np.repeat(n_held, counts)
    return held


def person_mean(rows: np.ndarray, user: np.ndarray, rng: np.random.Generator, what: str) -> Estimate:
    """The mean of one figure a vote, with an interval over people."""
    sums, counts = cluster_sums("person_mean", rows, user)
    return ratio_bootstrap(sums, counts, rng, level=0.95, n_draws=500, what=what)


class _EM:
    """The state of one fit. Σ is 1 and V carries the spread until the end."""

    def __init__(self, votes: LinearVotes, rank: int, priors: UserPriors, group: np.ndarray, n_groups: int) -> None:
        self.votes, self.rank, self.priors, self.group = votes, rank, priors, group
        d = votes.x.shape[1]
        self.shared_mean = np.zeros(d) if not priors.shared_mean else np.asarray(priors.shared_mean, dtype=float)
        order = np.argsort(votes.user, kind="stable")
        counts = np.bincount(votes.user, minlength=votes.n_users)
        self.rows = np.split(order, np.cumsum(counts)[:-1])
        start = fit_linear(votes, prior_mean=self.shared_mean, precision=priors.shared_precision)
        self.theta, self.steps = start.theta, start.steps
        self.mean = np.zeros((n_groups, rank))
        self.m, self.s = np.zeros((votes.n_users, rank)), np.tile(np.eye(rank), (votes.n_users, 1, 1))
        self.basis = self._first_basis(start)
        self._expect()
        for _ in range(3):
            self._people()

    def _first_basis(self, start: LinearFit) -> np.ndarray:
        """Where people's residuals under one reward point: right singular vectors of their gradients, a tenth long."""
        votes = self.votes
        eta = votes.x @ start.theta + votes.offset
        pull = slopes(eta, votes.level, edges(start.steps, votes.n_levels)).first
        gradients = np.stack([votes.x[rows].T @ pull[rows] / max(len(rows), 1) ** 0.5 for rows in self.rows])
        scale = np.sqrt((votes.x**2).mean(0)) + 1e-12
        return 0.3 * np.linalg.svd(gradients / scale, full_matrices=False)[2][: self.rank] / scale

    def _eta(self) -> tuple[np.ndarray, np.ndarray]:
        z = self.votes.x @ self.basis.T
        mean = self.votes.offset + self.votes.x @ self.theta + (z * self.m[self.votes.user]).sum(1)
        return mean, np.einsum("ci,cij,cj->c", z, self.s[self.votes.user], z)

    def _expect(self) -> None:
        """The tightest bound at the current q: ξ² = E[(u − η)²] and E[(η − l)²]."""
        self.terms: Expected = expected_terms(*self._eta(), self.votes.level, edges(self.steps, self.votes.n_levels))

    def _people(self) -> None:
        """q(w_u) in closed form, then the bound tightened to it."""
        votes, terms, n = self.votes, self.terms, self.votes.n_users
        if self.rank:
            z = votes.x @ self.basis.T
            rest = terms.linear - terms.weight * (votes.offset + votes.x @ self.theta)
            sharp = np.eye(self.rank) + sum_outer_by_user(z, terms.weight, votes.user, n)
            self.s = np.linalg.inv(sharp)
            pull = self.mean[self.group] + sum_by_user(z * rest[:, None], votes.user, n)
            self.m = np.einsum("uij,uj->ui", self.s, pull)
        self._expect()

    def _weights(self) -> None:
        """θ and V together: one linear system of (r + 1)·d unknowns."""
        votes, terms, r, d = self.votes, self.terms, self.rank, self.votes.x.shape[1]
        ahead = np.concatenate([np.ones((votes.n_users, 1)), self.m], axis=1)
        second = ahead[:, :, None] * ahead[:, None, :]
        second[:, 1:, 1:] += self.s
        pull = (terms.linear - terms.weight * votes.offset)[:, None] * votes.x
        system, right = np.zeros(((r + 1) ** 2, d * d)), np.zeros((r + 1, d))
        for u, rows in enumerate(self.rows):
            if len(rows):
                x = votes.x[rows]
                system += np.outer(second[u].ravel(), (x.T @ (terms.weight[rows, None] * x)).ravel())
                right += np.outer(ahead[u], pull[rows].sum(0))
        size = (r + 1) * d
        system = system.reshape(r + 1, r + 1, d, d).transpose(0, 2, 1, 3).reshape(size, size)
        precision = np.repeat([self.priors.shared_precision, self.priors.basis_precision], [d, r * d])
        prior = np.concatenate([self.priors.shared_precision * self.shared_mean, np.zeros(r * d)])
        found = np.linalg.solve(system + np.diag(precision), right.ravel() + prior).reshape(r + 1, d)
        self.theta, self.basis = found[0], found[1:]

    def iterate(self) -> None:
        """One round: people, weights, groups, cutpoints; none of them lowers the bound."""
        self._people()
        self._weights()
        self._expect()
        if self.rank:
            counts = np.bincount(self.group, minlength=len(self.mean))
            self.mean = sum_by_user(self.m, self.group, len(self.mean)) / counts[:, None]
        mean, _ = self._eta()
        self.steps = best_steps(self.steps, mean, self.terms, self.votes.level, self.votes.n_levels)
        self._expect()

    def value(self) -> float:
        """The bound with its priors, up to a constant."""
        off = self.m - self.mean[self.group]
        trace = np.trace(self.s, axis1=1, axis2=2)
        kl = 0.5 * (trace + (off**2).sum(1) - self.rank - np.linalg.slogdet(self.s)[1]).sum()
        prior = -0.5 * self.priors.shared_precision * ((self.theta - self.shared_mean) ** 2).sum()
        prior -= 0.5 * self.priors.basis_precision * (self.basis**2).sum()
        return float(self.terms.value.sum() - kl + prior + step_log_prior(self.steps))

    def canonical(self, groups: tuple[str, ...], bound: tuple[float, ...]) -> UserModel:
        """Orthonormal V, pooled mean 0, spreads in falling order, the largest entry of each direction positive."""
        share = np.bincount(self.group, minlength=len(groups)) / len(self.group)
        centre = share @ self.mean
        shared, mean = self.theta + self.basis.T @ centre, self.mean - centre
        left, spread, basis = np.linalg.svd(self.basis.T, full_matrices=False)
        spread = np.maximum(spread, SMALLEST_SPREAD)
        turn = spread[:, None] * basis  # w in the new coordinates = turn · w in the old
        sign = np.sign(left[np.abs(left).argmax(0), np.arange(left.shape[1])]) if self.rank else np.ones(0)
        turn = sign[:, None] * turn
        # what a person says about her group's mean: with D from her votes, (1 + D⁻¹)⁻¹ = 1 − S
        said = np.eye(self.rank) - self.s
        precision = np.stack([said[self.group == g].sum(0) for g in range(len(groups))])
        precision += 1e-9 * np.eye(self.rank)
        mean_cov = np.einsum("ij,gjk,lk->gil", turn, np.linalg.inv(precision), turn)
        return UserModel(
            shared=shared, basis=(left * sign).T, mean=mean @ turn.T, mean_cov=mean_cov, cov=turn @ turn.T,
            steps=self.steps, n_levels=self.votes.n_levels, groups=groups, bound=bound,
        )  # fmt: skip
