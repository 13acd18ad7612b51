"""Whose votes count how much: the reward of the raters as they are beside that of raters weighted to a target.

The weights come from outside, one a rater (raking is the feedback room's work); here is only what they change. Knows
differences of features, votes and weights; knows nothing about where weights come from.

Dimension letters: C comparisons, P pairs, d features, U people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from karat.errors import InputError
from karat.records import Estimate
from karat.resampling import FEW_CLUSTERS, jackknife_interval, percentile_interval
from karat.reward.linear_votes import LinearFit, LinearVotes, fit_linear

MOST_FLIPS = 20
"""Pairs that are named of those that flip."""


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Two fits of the same votes, and what they disagree about."""

    unweighted: LinearFit
    """Every vote counts alike."""
    weighted: LinearFit
    """Every vote counts by its rater's weight."""
    flips: tuple[int, ...]
    """Positions of the pairs whose preferred response changes, the largest change first."""
    flip_share: Estimate
    """Share of the pairs that flip, interval over raters drawn with replacement (of fewer than ten the jackknife's),
    both fits redone."""
    noise_share: float | None
    """Share that flips between the unweighted fit and its own redraws: what chance alone would flip."""


def side_by_side(
    votes: LinearVotes,
    weights: np.ndarray,
    pairs: np.ndarray,
    rng: np.random.Generator,
    *,
    prior_mean: np.ndarray | float = 0.0,
    precision: np.ndarray | float = 1.0,
    n_draws: int = 100,
) -> SideBySide:
    """Fit once with every rater alike and once weighted, and name the preferences that flip.

    Args:
        weights: [U] of each rater, mean about 1.    pairs: [P, d] differences of features whose signs are compared.
        rng: draws raters.
    Raises: InputError for another number of weights than raters, or negative ones.
    """
    weights = np.asarray(weights, dtype=float)
    if weights.shape != (votes.n_users,) or (weights < 0).any():
        raise InputError(
            f"side_by_side: found {weights.shape} weights for {votes.n_users} raters; expected one ≥ 0 each"
        )
    prior = {"prior_mean": prior_mean, "precision": precision}
    plain = fit_linear(votes, **prior)
    raked = fit_linear(votes, weights=weights[votes.user], start=plain, **prior)
    before, after = pairs @ plain.theta, pairs @ raked.theta
    changed = np.flatnonzero(before * after < 0)
    order = changed[np.argsort(-np.abs(before - after)[changed], kind="stable")]

    def redone(times: np.ndarray) -> tuple[float, float]:
        """Shares that flip by the weights, and between the unweighted fits, where each rater is there so many times."""
        one = fit_linear(votes, weights=times[votes.user], start=plain, **prior)
        two = fit_linear(votes, weights=(times * weights)[votes.user], start=raked, **prior)
        scores = pairs @ one.theta
        flips = (scores * (pairs @ two.theta) < 0, before * scores < 0)
        return (float(flips[0].mean()), float(flips[1].mean())) if len(pairs) else (math.nan, math.nan)

    n = votes.n_users
    draws = np.array([redone(rng.multinomial(n, np.full(n, 1 / n)).astype(float)) for _ in range(n_draws)])
    share = float((before * after < 0).mean()) if len(pairs) else 0.0
    what = "share of pairs whose preference flips when raters are weighted to the target"
    if n < FEW_CLUSTERS:
        without = np.array([redone(times)[0] for times in 1 - np.eye(n)])
        found = jackknife_interval(share, without, level=0.95, what=what, within=(0.0, 1.0))
    else:
        found = percentile_interval(share, draws[:, 0], n, level=0.95, what=what)
    noise = float(draws[:, 1].mean()) if len(pairs) else None
    return SideBySide(plain, raked, tuple(order.tolist()), found, noise)


def named_flips(
    side: SideBySide, pairs: np.ndarray, names: Sequence[Mapping[str, str]], most: int
) -> list[dict[str, Any]]:
    """The largest flips in words: what each pair is called, and its difference of rewards, a − b, in both fits.

    Args:
        pairs: as given to `side_by_side`.    names: of every pair: prompt, a and b.    most: how many are named.
    """
    rows = []
    for place in side.flips[:most]:
        before, after = float(pairs[place] @ side.unweighted.theta), float(pairs[place] @ side.weighted.theta)
        rows.append({**names[place], "unweighted": round(before, 4), "weighted": round(after, 4)})
    return rows
