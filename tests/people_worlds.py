"""Planted populations for the tests of users, kinds and persons: tastes on features, votes by the ordinal link."""

import numpy as np

from karat.reward.linear_votes import LinearVotes, edges


def planted_people(
    n_users: int = 60,
    n_votes: int = 40,
    d: int = 6,
    rank: int = 2,
    *,
    n_levels: int = 3,
    spread: float = 1.5,
    seed: int = 0,
    group_shift: float = 0.0,
) -> tuple[LinearVotes, np.ndarray, np.ndarray, np.ndarray]:
    """Votes, each person's weights [U, d], the planted basis [rank, d], and a group of each person (0 or 1)."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.7, d)
    basis = np.linalg.qr(rng.normal(size=(d, max(rank, 1))))[0].T[:rank]
    group = (np.arange(n_users) % 3 == 0).astype(int)
    tastes = rng.normal(size=(n_users, rank)) * spread
    if rank:
        tastes[:, 0] += group_shift * (group - group.mean())
    theta = shared + tastes @ basis
    user = np.repeat(np.arange(n_users), n_votes)
    x = rng.normal(size=(len(user), d))
    return (
        LinearVotes(x, answers(rng, (x * theta[user]).sum(1), n_levels), n_levels, user, n_users),
        theta,
        basis,
        group,
    )


def answers(rng: np.random.Generator, eta: np.ndarray, n_levels: int) -> np.ndarray:
    """Levels drawn by the ordinal link with steps of 0.4 and 0.8."""
    cuts = edges(np.array([0.4, 0.8])[: (n_levels - 1) // 2], n_levels)
    return ((rng.logistic(size=len(eta)) + eta)[:, None] > cuts[1:-1]).sum(1)
