"""How good the policy was at every look, from a panel's votes at all of them: a posterior over the whole curve.

A look's share of votes has a standard error of .05 with 96 of them; a policy moves little from look to look, so that all
looks together know the curve much better than each its point. Knows steps, shares and numbers of votes; knows nothing about
policies, and asks nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import expit, log_expit

from karat.errors import ConvergenceError, InputError
from karat.overopt import StopDecision

SLOPES, BENDS = (1.2, 4.0), (0.8, 2.4, 8.0, 24.0)
"""Priors that are averaged by their evidence: standard deviation of the curve's slope at the start, logits in a whole run,
and of the change of slope in one. From a curve that is all but straight to one that turns back many times."""
N_DRAWS = 1000
"""Curves drawn; a probability of .9 then has a standard error of .01."""
TOLERANCE, MOST_STEPS = 1e-8, 100


@dataclass(frozen=True)
class VoteCurve:
    """Posterior of the logit of the share of votes for the policy against its reference, at the start and at each look."""

    draws: NDArray[np.float64]
    """[L + 1, N] curves; row 0 is the start, 0 in each of them."""
    weights: tuple[float, ...]
    """Posterior probability of each pair of SLOPES × BENDS."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """[L + 1] logits."""
        return np.asarray(self.draws.mean(1))

    def near_top(self, of_top: float, rows: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """[L + 1, N] True = in this curve, this look has at least that part of what the best of all looks gained.

        Args:
            of_top: (0, 1].
            rows: looks that are compared with one another, [len(rows), N]; None = all. Where all of them lost, the best only.
        """
        some = self.draws if rows is None else self.draws[list(rows)]
        top = some.max(0)
        return np.asarray(some >= np.where(top > 0, of_top * top, top))


def vote_curve(
    steps: ArrayLike, shares: ArrayLike, n_votes: ArrayLike, *, run_steps: int, rng: np.random.Generator
) -> VoteCurve:
    """The posterior of a smooth curve of logits f, given votes at L looks; at the start policy and reference are one.

        f(0) = 0        f′(0) ~ N(0, s²)        f″ = white noise of spectral density b²        votes ~ Binomial(n, σ(f))

    so that Cov(f(u), f(v)) = s²uv + b²(u³/3 + u²(v − u)/2) for u ≤ v: a random walk of order two. Laplace's approximation for
    each of SLOPES × BENDS, mixed by its evidence. u is the part of the run that was done, so that the same way is as smooth however
    often it is looked at.

    Args:
        steps: of the looks, rising, > 0.    shares: of the votes for the policy, ties as halves.    n_votes: > 0.
        run_steps: of the whole run, as planned, ≥ 1.
        rng: draws the curves.
    Raises: InputError for steps that do not rise, shares outside [0, 1] or counts ≤ 0.
    Source: Wahba 1978, JRSS B 40, pp. 364–372 (the prior); Rasmussen & Williams 2006, algorithms 3.1 and 3.2.
    Differs: not over √KL: the KL of a look is an estimate of the policy one update earlier, and errors in it tear
        neighbours apart (docs/decisions/0026).
    """
    u, share, n = (np.asarray(x, dtype=float) for x in (steps, shares, n_votes))
    if not (u.ndim == 1 and u.shape == share.shape == n.shape and (np.diff(u, prepend=0) > 0).all()):
        raise InputError(f"vote_curve: found steps {u.tolist()}; expected them rising from above 0, one for each share")
    if run_steps < 1:
        raise InputError(f"vote_curve: found run_steps {run_steps}; expected ≥ 1")
    if not (((share >= 0) & (share <= 1)).all() and (n > 0).all() and np.isfinite(n).all()):
        raise InputError("vote_curve: found shares or numbers of votes out of range; expected [0, 1] and > 0")
    noise = rng.standard_normal((len(u), N_DRAWS))
    if not len(u):
        return VoteCurve(np.zeros((1, N_DRAWS)), ())
    u = u / run_steps
    fits = [_laplace(_covariance(u, s, b), share, n) for s, b in itertools.product(SLOPES, BENDS)]
    evidence = np.array([fit[2] for fit in fits])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    # as many curves of each prior as it weighs
    ends = np.round(np.cumsum(weights) * N_DRAWS).astype(int)
    parts = [
        mode[:, None] + cholesky(spread, lower=True) @ noise[:, first:last]
        for (mode, spread, _), first, last in zip(fits, [0, *ends[:-1]], ends, strict=True)
    ]
    return VoteCurve(np.vstack([np.zeros(N_DRAWS), np.hstack(parts)]), tuple(weights.tolist()))


def covering(near_top: NDArray[np.bool_], n: int) -> list[int]:
    """The n rows that together are near the top in most curves, each next one adding most: which policies are worth keeping.

    The look that is best alone is always among them; two looks beside it would say the same as it does.

    Args: near_top: [K, N] of the rows that there are to choose from.    n: ≥ 1.
    Returns: at most n indices, rising.
    Source: greedy maximum coverage, within 1 − 1/e of the best set (Nemhauser, Wolsey & Fisher 1978).
    """
    alone = near_top.sum(1)
    kept: list[int] = []
    covered = np.zeros(near_top.shape[1], dtype=bool)
    for _ in range(min(n, len(near_top))):
        added = (near_top & ~covered).sum(1)
        left = [i for i in range(len(near_top)) if i not in kept]
        # where none adds anything: the likelier, then the later, whose neighbours are still to come
        best = max(left, key=lambda i: (added[i], alone[i], i))
        kept.append(best)
        covered |= near_top[best]
    return sorted(kept)


def fallen_rule(near_top: NDArray[np.bool_], *, of_top: float, sure: float) -> StopDecision:
    """Stop when the policy of the last row is, with a probability above `sure`, below that part of the top's gain.

    Missing a fall costs c times what a false alarm costs: the expected cost is least with sure = 1/(1 + c).
    """
    fallen = float((~near_top[-1]).mean())
    said = f"with probability {fallen:.2f} below {of_top:g} of the highest gain so far, by all votes; limit {sure:g}"
    return StopDecision(fallen > sure, "panel", said)


def likeliest(near_top: NDArray[np.bool_], among: Sequence[int]) -> int:
    """Of some rows the one that is near the top in most curves, the earliest of equals."""
    return max(among, key=lambda row: (int(near_top[row].sum()), -row))


def _covariance(u: NDArray[np.float64], slope: float, bend: float) -> NDArray[np.float64]:
    low, high = np.minimum.outer(u, u), np.maximum.outer(u, u)
    return np.asarray(slope**2 * low * high + bend**2 * (low**3 / 3 + low**2 * (high - low) / 2))


def _laplace(
    prior: NDArray[np.float64], share: NDArray[np.float64], n: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mode, covariance and log evidence, by Newton's method with halved steps."""

    def told(f: NDArray[np.float64]) -> float:
        return float((n * (share * log_expit(f) + (1 - share) * log_expit(-f))).sum())

    f, height = np.zeros(len(n)), told(np.zeros(len(n)))
    pull = np.zeros(len(n))  # prior⁻¹·f
    for _ in range(MOST_STEPS):
        p = expit(f)
        root = np.sqrt(n * p * (1 - p))
        lower = cholesky(np.eye(len(n)) + root[:, None] * prior * root, lower=True)
        wanted = root**2 * f + n * (share - p)
        goal = wanted - root * cho_solve((lower, True), root * (prior @ wanted))
        length, before = 1.0, height
        while True:
            tried = pull + length * (goal - pull)
            at = prior @ tried
            height = told(at) - 0.5 * float(tried @ at)
            if height >= before - TOLERANCE or length < TOLERANCE:
                break
            length /= 2
        moved, f, pull = float(np.abs(at - f).max()), at, tried
        if moved < TOLERANCE**0.5:
            p = expit(f)
            root = np.sqrt(n * p * (1 - p))
            lower = cholesky(np.eye(len(n)) + root[:, None] * prior * root, lower=True)
            half = solve_triangular(lower, root[:, None] * prior, lower=True)
            spread = prior - half.T @ half
            # a share of 0 or 1 by many votes leaves a variance near 0, which rounding may take below
            spread += 1e-9 * max(1.0, float(prior.diagonal().max())) * np.eye(len(n))
            return f, spread, height - float(np.log(np.diag(lower)).sum())
    raise ConvergenceError(
        f"vote_curve: found no mode in {MOST_STEPS} steps; expected votes that a smooth curve can give"
    )
