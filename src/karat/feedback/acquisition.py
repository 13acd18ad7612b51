"""Which questions to ask: those whose answers are expected to say most, without losing sight of the others.

A batch has a random arm, from which alone held-out figures come, and a chosen arm: slot by slot the pair of the highest
information, given what the slots before will say, mixed with a uniform draw so that every pair has a propensity. Knows
means and factors of the covariance of differences; knows nothing about texts, stores or models.

Dimension letters: C pairs that could be asked, R rows of the factor (draws, or features), S draws.

Source: Houlsby et al. 2011, arXiv:1112.5745 (BALD); Farquhar, Gal & Rainforth 2021, arXiv:2101.11665 (`pool_weights`).
Differs: within a batch the belief is conditioned on the information, not on the answer, of what is already chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from karat.choice import bald
from karat.errors import InputError, InvariantError
from karat.feedback.strategies import LEAST_RANDOM, Strategy

LAZY = 64
"""Pairs whose worth is computed again at a time."""


@dataclass(frozen=True, eq=False)
class PairBelief:
    """What is believed about the differences of the pairs that could be asked: Δ ~ N(mean, factorᵀ·factor)."""

    mean: np.ndarray
    """E[Δ], logits, [C]."""
    factor: np.ndarray
    """[R, C]; columns' inner products are covariances."""

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.factor.ndim != 2 or self.factor.shape[1] != len(self.mean):
            raise InputError(
                f"PairBelief: found mean {self.mean.shape}, factor {self.factor.shape}; expected [C] and [R, C]"
            )

    @property
    def variance(self) -> np.ndarray:
        """Var[Δ], logits², [C]."""
        return (self.factor**2).sum(0)


@dataclass(frozen=True)
class Choice:
    """One question of a batch."""

    pair: int
    """Which of the pairs, 0 … C − 1."""
    strategy: str
    """random, or how it was chosen."""
    propensity: float
    """random: n_random/C, the probability of being in the random arm; else that of being drawn in its slot."""
    bits: float
    """Information expected of its answer, given the slots before it."""


def pairs_from_draws(delta: np.ndarray) -> PairBelief:
    """The belief in joint draws of the differences [S, C]: their mean, and their deviations over √(S − 1).

    Of S draws the covariance has rank S − 1: after as many different questions a few heads believe to know everything.

    Raises: InputError for fewer than two draws.
    """
    if delta.ndim != 2 or len(delta) < 2:
        raise InputError(f"pairs_from_draws: found draws {delta.shape}; expected [S, C] with at least 2 draws")
    mean = delta.mean(0)
    return PairBelief(mean, (delta - mean) / math.sqrt(len(delta) - 1))


def information(mean: np.ndarray, variance: np.ndarray, strategy: Strategy) -> np.ndarray:
    """What one answer is worth, [C]: bits about Δ (bald), or its variance in logits² (variance)."""
    if strategy == "variance":
        return variance
    if strategy != "bald":
        raise InputError(f"information: found strategy {strategy!r}; expected bald or variance")
    return bald(torch.from_numpy(mean), torch.from_numpy(variance)).numpy()


def answered(belief: PairBelief, pair: int) -> PairBelief:
    """The belief once a two-level vote on a pair is in, whatever it says: a rank-1 downdate.

        Cov' = Cov − κ·kkᵀ/(1 + κ·v)        k = Cov's column of the pair, v = its variance, κ = E[p·(1 − p)]

    The mean stays, because the answer is not known yet.
    """
    column = belief.factor[:, pair]
    variance = float(column @ column)
    if variance <= 0:
        return belief
    curvature = expected_curvature(belief.mean[pair : pair + 1], np.array([variance]))[0]
    share = curvature * variance / (1 + curvature * variance)
    shrunk = (1 - math.sqrt(1 - share)) / variance * (column @ belief.factor)
    return PairBelief(belief.mean, belief.factor - np.outer(column, shrunk))


def expected_curvature(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """E[σ(Δ)·(1 − σ(Δ))] of Δ ~ N(mean, variance): the Fisher information of a two-level vote, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(32)
    delta = mean[:, None] + np.sqrt(variance.clip(min=0))[:, None] * nodes
    p = np.exp(-np.logaddexp(0, -delta))
    return (p * (1 - p)) @ (weights / weights.sum())


def choose_batch(
    belief: PairBelief,
    n: int,
    rng: np.random.Generator,
    *,
    strategy: Strategy = "bald",
    clusters: Sequence[str] | None = None,
    random_frac: float = 0.2,
    explore: float = 0.05,
) -> list[Choice]:
    """A batch of questions: the random arm first, then the chosen arm slot by slot.

        slot t draws pair c of the remaining R_t with q_t(c) = explore/|R_t| + (1 − explore)·[c = argmax score]
        score = information(c) · 1/(1 + questions already in c's cluster)

    The random arm is a uniform sample of all pairs without replacement; the chosen arm takes from the rest. Every
    question drawn shrinks the belief that the next slot looks at.

    Args:
        n: questions, 1 … C.    strategy: random = the whole batch is the random arm.
        clusters: a name a pair (topic, prompt); coverage weights keep the chosen arm from staying in one of them.
        random_frac: share of the random arm, [0.1, 1].    explore: ε of the mixture in the chosen arm, (0, 1].
    Raises: InputError for a count, share or ε outside its range; InvariantError if probabilities do not sum to 1.
    """
    n_pairs = len(belief.mean)
    if not 1 <= n <= n_pairs:
        raise InputError(f"choose_batch: found {n_pairs} pairs for {n} questions; expected at least as many")
    if not LEAST_RANDOM <= random_frac <= 1 or not 0 < explore <= 1:
        raise InputError(
            f"choose_batch: found random_frac={random_frac}, explore={explore}; expected {LEAST_RANDOM} … 1 and (0, 1]"
        )
    if clusters is not None and len(clusters) != n_pairs:
        raise InputError(f"choose_batch: found {len(clusters)} clusters for {n_pairs} pairs; expected one a pair")
    n_random = n if strategy == "random" else min(n, math.ceil(random_frac * n))
    cluster = np.zeros(n_pairs, int) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    n_asked = np.zeros(cluster.max() + 1)
    free = np.ones(n_pairs, dtype=bool)
    worth = np.zeros(0) if strategy == "random" else information(belief.mean, belief.variance, strategy)
    found: list[Choice] = []
    for slot in range(n):
        if slot < n_random:
            pair, propensity, how = int(rng.choice(np.flatnonzero(free))), n_random / n_pairs, "random"
        else:
            weights = 1 / (1 + n_asked[cluster]) if clusters is not None else np.ones(n_pairs)
            worth = _refreshed(worth, weights, free, belief, strategy)
            q = mixture(worth * weights, free, explore)
            pair, how = int(rng.choice(n_pairs, p=q)), strategy
            propensity = float(q[pair])
        bits = float(information(belief.mean[[pair]], belief.variance[[pair]], "bald")[0])
        found.append(Choice(pair, how, propensity, bits))
        free[pair] = False
        n_asked[cluster[pair]] += 1
        belief = answered(belief, pair)
    return found


def bits_of_more_random(
    belief: PairBelief, asked: Sequence[int], n: int, rng: np.random.Generator, *, n_draws: int = 40
) -> np.ndarray:
    """What n more questions drawn at random would be expected to tell, in bits a question: its mean in each draw.

    They are asked one after another behind those asked already, as the chosen arm is, so that the two can be held
    against each other: the first questions of a batch tell more than later ones, whoever chose them.

    Args:
        belief: before the batch.    asked: its random arm.    n: as many as were chosen; fewer where fewer are left.
    """
    free = np.setdiff1d(np.arange(len(belief.mean)), np.asarray(asked, dtype=int))
    means = []
    for _ in range(n_draws):
        drawn = rng.choice(free, size=min(n, len(free)), replace=False)
        some = np.concatenate([np.asarray(asked, dtype=int), drawn])
        part, told = PairBelief(belief.mean[some], belief.factor[:, some]), []
        for i in range(len(some)):
            if i >= len(asked):
                told.append(float(information(part.mean[[i]], part.variance[[i]], "bald")[0]))
            part = answered(part, i)
        means.append(np.mean(told))
    return np.array(means)


def _refreshed(
    worth: np.ndarray, weights: np.ndarray, free: np.ndarray, belief: PairBelief, strategy: Strategy
) -> np.ndarray:
    """The same worths with the best ones made current: enough to find the best of all.

    A variance, and with it the information at a fixed mean, only falls as questions are added, so what was computed
    before is an upper bound (Minoux 1978, Optimization Techniques 7, pp. 234–243).
    """
    worth, stale = worth.copy(), free.copy()
    while stale.any():
        score = worth * weights
        top = np.flatnonzero(stale)
        top = top[np.argsort(-score[top])[:LAZY]]
        fresh = free & ~stale
        if fresh.any() and score[fresh].max() >= score[top[0]]:
            break
        worth[top] = information(belief.mean[top], (belief.factor[:, top] ** 2).sum(0), strategy)
        stale[top] = False
    return worth


def mixture(scores: np.ndarray, free: np.ndarray, explore: float) -> np.ndarray:
    """q(c) = explore/n_free + (1 − explore)·[c is the best free one], 0 where not free.

    Raises: InvariantError if it does not sum to 1 within 1e-9.
    """
    q = np.where(free, explore / free.sum(), 0.0)
    q[int(np.argmax(np.where(free, scores, -np.inf)))] += 1 - explore
    if abs(float(q.sum()) - 1) > 1e-9 or (q < 0).any():
        raise InvariantError(f"mixture: probabilities sum to {float(q.sum())!r}; expected 1")
    return q


def pool_weights(propensities: Sequence[float], n_pool: int) -> np.ndarray:
    """Weights that make the mean over questions, drawn one by one without replacement, unbiased for the pool's.

        v_m = 1 + (N − M)/(N − m)·(1/((N − m + 1)·q_m) − 1)        mean of the pool ≈ (1/M)·Σ_m v_m·f_m

    Args:
        propensities: q_m of the m-th question at its slot, in order.    n_pool: N, what the first slot could draw from.
    Raises: InputError where more questions than pairs are claimed.
    Source: Farquhar, Gal & Rainforth 2021, arXiv:2101.11665 eq. 8 (R_LURE).
    """
    q = np.asarray(propensities, dtype=np.float64)
    n_drawn, m = len(q), np.arange(1, len(q) + 1)
    if not 1 <= n_drawn <= n_pool or (q <= 0).any() or (q > 1).any():
        raise InputError(f"pool_weights: found {n_drawn} propensities for a pool of {n_pool}; expected 1 … N in (0, 1]")
    if n_drawn == n_pool:  # the sample is the pool, and the factor is 0/0 for the last
        return np.ones(n_drawn)
    return 1 + (n_pool - n_drawn) / (n_pool - m) * (1 / ((n_pool - m + 1) * q) - 1)
