"""Several kinds of people: a mixture of linear rewards, by EM from several starts.

    P(votes of u) = Σ_m π_m·Π_c P(y_c | θ_m·x_c)        every person is of one kind, which kind is not known

The kinds are what the votes ask for, not what anybody declared. Knows differences of frozen features and who voted;
knows nothing about texts, models or declared groups.

Dimension letters: C comparisons, d features, U people, M kinds.

Source: Chakraborty et al. 2024, arXiv:2402.08925 (MaxMin-RLHF), algorithm 2.
Differs: soft instead of hard assignment, an ordinal link, a ridge, and several starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from karat.errors import ConvergenceError, InputError
from karat.records import Estimate
from karat.reward.linear_votes import LinearFit, LinearVotes, edges, fit_linear, level_probs, slopes, step_log_prior
from karat.reward.user_em import held_out_mask, person_mean
from karat.reward.users import sum_by_user

SHARE_PRIOR = 1.0
"""People that the prior adds to each kind: a share never becomes 0."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Kinds of people, the most frequent first."""

    fits: tuple[LinearFit, ...]
    """The reward of each kind."""
    shares: np.ndarray
    """[M] π, falling."""
    membership: np.ndarray
    """[U, M] probability that a person is of each kind, given her votes; the shares without any."""
    n_levels: int
    """Levels of the scale."""
    path: tuple[float, ...]
    """Log posterior after each iteration of the best start; it never falls."""
    starts: tuple[float, ...]
    """Log posterior at the end of every start, in the order tried."""

    @property
    def theta(self) -> np.ndarray:
        """[M, d] the weights of each kind."""
        return np.stack([fit.theta for fit in self.fits])


@dataclass(frozen=True)
class KindsChoice:
    """How well each number of kinds predicts held-out votes of the same people."""

    n_kinds: int
    """The smallest number whose likelihood is not told from the best's."""
    loglik: tuple[Estimate, ...]
    """Mean held-out log-likelihood a vote of each number, interval over people."""
    gain: tuple[Estimate, ...]
    """The best number's minus each number's, interval over people."""


def fit_mixture(
    votes: LinearVotes,
    n_kinds: int,
    rng: np.random.Generator,
    *,
    prior_mean: np.ndarray | float = 0.0,
    precision: np.ndarray | float = 1.0,
    n_starts: int = 5,
    max_iter: int = 500,
) -> Mixture:
    """The best of several starts of EM.

    Args:
        n_kinds: M ≥ 1.    rng: draws the starts.    prior_mean, precision: of the weights, see `fit_linear`.
    Returns: kinds by falling share; the same whatever the order in which a start numbered them.
    Raises: InputError for no votes, more kinds than people; ConvergenceError where the best start still rises by more
        than 10⁻⁷ nats a vote after `max_iter` iterations.
    """
    if not len(votes) or not 1 <= n_kinds <= votes.n_users:
        raise InputError(
            f"fit_mixture: found {len(votes)} votes, {n_kinds} kinds of {votes.n_users} people; expected votes and a "
            "number of kinds from 1 to the people there are"
        )
    d = votes.x.shape[1]
    prior = np.broadcast_to(prior_mean, d).astype(float), np.broadcast_to(precision, d).astype(float)
    gradients = _residual_directions(votes, prior)
    starts = [_start(gradients, n_kinds, rng) for _ in range(n_starts if n_kinds > 1 else 1)]
    found = [fit_from(votes, start, prior, max_iter) for start in starts]
    paths = [path for _, _, path, _ in found]
    best = int(np.argmax([path[-1] for path in paths]))
    fits, shares, path, converged = found[best]
    if not converged:
        raise ConvergenceError(
            f"fit_mixture: after {max_iter} iterations the best of {len(found)} starts still rises by "
            f"{path[-1] - path[-2]:.2g}; give more iterations, fewer kinds or a larger precision"
        )
    order = sorted(range(n_kinds), key=lambda m: (-shares[m], tuple(fits[m].theta)))
    fits, shares = tuple(fits[m] for m in order), shares[order]
    return Mixture(
        fits, shares, membership_of(fits, shares, votes), votes.n_levels, tuple(path), tuple(p[-1] for p in paths)
    )  # fmt: skip


def fit_from(
    votes: LinearVotes, membership: np.ndarray, prior: tuple[np.ndarray, np.ndarray], max_iter: int
) -> tuple[list[LinearFit], np.ndarray, list[float], bool]:
    """EM from given memberships [U, M]: rewards, shares, the path of the log posterior, and whether it converged."""
    mean, precision = prior
    n_kinds = membership.shape[1]
    fits: list[LinearFit | None] = [None] * n_kinds
    path: list[float] = []
    for _ in range(max_iter):
        fits = [
            fit_linear(
                votes, prior_mean=mean, precision=precision, weights=membership[votes.user, m], start=fits[m],
                tol=1e-9 * len(votes) + 1e-8,  # a step that rises is enough: the next round goes on from it
            )
            for m in range(n_kinds)
        ]  # fmt: skip
        people = membership.sum(0) + SHARE_PRIOR
        shares = people / people.sum()
        joint = np.log(shares) + _user_loglik(fits, votes)
        total = logsumexp(joint, axis=1)
        membership = np.exp(joint - total[:, None])
        prior_value = SHARE_PRIOR * float(np.log(shares).sum()) + sum(_log_prior(fit, mean, precision) for fit in fits)
        path.append(float(total.sum()) + prior_value)
        if len(path) > 1 and path[-1] - path[-2] < 1e-7 * len(votes):
            return fits, shares, path, True
    return fits, shares, path, False


def membership_of(fits: Sequence[LinearFit], shares: np.ndarray, votes: LinearVotes) -> np.ndarray:
    """[U, M] probability that each person is of each kind, given the votes."""
    joint = np.log(shares) + _user_loglik(fits, votes)
    return np.exp(joint - logsumexp(joint, axis=1, keepdims=True))


def mixture_probs(mixture: Mixture, membership: np.ndarray, votes: LinearVotes) -> np.ndarray:
    """[C, K] probability of every level for the person of each row, her kind integrated."""
    found = np.zeros((len(votes), votes.n_levels))
    for m, fit in enumerate(mixture.fits):
        probs = level_probs(votes.x @ fit.theta + votes.offset, 0.0, edges(fit.steps, votes.n_levels))
        found += membership[votes.user, m][:, None] * probs
    return found


def choose_kinds(
    votes: LinearVotes,
    numbers: Sequence[int],
    rng: np.random.Generator,
    *,
    prior_mean: np.ndarray | float = 0.0,
    precision: np.ndarray | float = 1.0,
    n_starts: int = 5,
    holdout_frac: float = 0.25,
    eligible: np.ndarray | None = None,
) -> KindsChoice:
    """The number of kinds that held-out votes ask for.

    Args:
        numbers: of kinds, ascending.    rng: which votes are held out, the starts and the bootstrap.
        eligible: [C] votes that may be held out, on questions drawn at random; None = all.
    Returns: the smallest number whose difference to the best has an interval that touches 0.
    Raises: InputError where nobody has two votes.
    """
    held = held_out_mask(votes.user, holdout_frac, rng, eligible)
    if not held.any():
        raise InputError(
            "choose_kinds: nobody has two votes, one of them drawn at random; expected people with several, or give the number"
        )
    train, test = votes.select(~held), votes.select(held)
    rows = []
    for number in numbers:
        mixture = fit_mixture(train, number, rng, prior_mean=prior_mean, precision=precision, n_starts=n_starts)
        probs = mixture_probs(mixture, mixture.membership, test)
        rows.append(np.log(np.maximum(probs[np.arange(len(test)), test.level], 1e-300)))
    best = int(np.argmax([one.mean() for one in rows]))
    loglik = tuple(person_mean(one, test.user, rng, "log-likelihood a vote") for one in rows)
    gain = tuple(person_mean(rows[best] - one, test.user, rng, "gain of the best number") for one in rows)
    near = [i for i, one in enumerate(gain) if i == best or one.low is None or one.low <= 0]
    return KindsChoice(int(numbers[near[0]]), loglik, gain)


def _user_loglik(fits: Sequence[LinearFit | None], votes: LinearVotes) -> np.ndarray:
    columns = []
    for fit in fits:
        assert fit is not None
        columns.append(slopes(votes.x @ fit.theta + votes.offset, votes.level, edges(fit.steps, votes.n_levels)).loglik)
    return sum_by_user(np.stack(columns, axis=-1), votes.user, votes.n_users)


def _log_prior(fit: LinearFit | None, mean: np.ndarray, precision: np.ndarray) -> float:
    assert fit is not None
    return -0.5 * float(precision @ (fit.theta - mean) ** 2) + step_log_prior(fit.steps)


def _residual_directions(votes: LinearVotes, prior: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """[U, d] where each person's votes pull away from one reward for all, features on one scale."""
    one = fit_linear(votes, prior_mean=prior[0], precision=prior[1])
    pull = slopes(votes.x @ one.theta + votes.offset, votes.level, edges(one.steps, votes.n_levels)).first
    scale = np.sqrt((votes.x**2).mean(0)) + 1e-12
    counts = np.bincount(votes.user, minlength=votes.n_users)
    sums = sum_by_user(votes.x / scale * pull[:, None], votes.user, votes.n_users)
    return sums / np.maximum(counts, 1)[:, None] ** 0.5


def _start(gradients: np.ndarray, n_kinds: int, rng: np.random.Generator) -> np.ndarray:
    """Everybody with the nearest of some people drawn far apart (k-means++ on the residual directions)."""
    chosen = [int(rng.integers(len(gradients)))]
    while len(chosen) < n_kinds:
        near = np.min([((gradients - gradients[c]) ** 2).sum(1) for c in chosen], axis=0)
        weight = near / near.sum() if near.sum() > 0 else np.full(len(near), 1 / len(near))
        chosen.append(int(rng.choice(len(gradients), p=weight)))
    distance = np.stack([((gradients - gradients[c]) ** 2).sum(1) for c in chosen], axis=1)
    return np.where(np.arange(n_kinds) == distance.argmin(1)[:, None], 0.9, 0.1 / max(n_kinds - 1, 1))
