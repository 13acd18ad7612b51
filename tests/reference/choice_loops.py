"""Slow, direct forms of the response models, written from the papers with plain loops and 60 decimal digits."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, getcontext

getcontext().prec = 60


def exact_logistic(x: float) -> Decimal:
    """1/(1 + e^{−x}) to 60 digits."""
    return 1 / (1 + (-Decimal(x)).exp())


def ordinal_probs(eta: float, cutpoints: list[float], lapse: float = 0.0) -> list[Decimal]:
    """P(y ≤ k) = σ(c_k − η), differenced directly; then the lapse mixture."""
    upto = [Decimal(0), *(exact_logistic(float(Decimal(c) - Decimal(eta))) for c in cutpoints), Decimal(1)]
    n_levels = len(cutpoints) + 1
    return [(1 - Decimal(lapse)) * (upto[k + 1] - upto[k]) + Decimal(lapse) / n_levels for k in range(n_levels)]


def rao_kupper(delta: float, theta: float) -> tuple[float, float, float]:
    """P(b preferred), P(tie), P(a preferred) with worths π = e^r: π_a/(π_a + θπ_b). Rao & Kupper 1967."""
    worth_a, worth_b = math.exp(delta), 1.0
    a_wins = worth_a / (worth_a + theta * worth_b)
    b_wins = worth_b / (worth_b + theta * worth_a)
    tie = (theta**2 - 1) * worth_a * worth_b / ((worth_a + theta * worth_b) * (worth_b + theta * worth_a))
    return b_wins, tie, a_wins


def plackett_luce(scores: list[float], order: list[int]) -> float:
    """Product over stages of the winner's share among those left."""
    left, prob = list(order), 1.0
    while left:
        prob *= math.exp(scores[left[0]]) / sum(math.exp(scores[j]) for j in left)
        left = left[1:]
    return prob


def davidson_luce(scores: list[float], ranks: list[int], tie: list[float]) -> float:
    """Product over stages of the chosen set's share among all sets of those left; tie = [δ₂, δ₃, …]."""
    delta = [1.0, *tie]

    def weight(subset: tuple[int, ...]) -> float:
        return delta[len(subset) - 1] * math.prod(math.exp(scores[i]) for i in subset) ** (1 / len(subset))

    prob, left = 1.0, list(range(len(scores)))
    for rank in sorted(set(ranks)):
        chosen = tuple(i for i in left if ranks[i] == rank)
        total = sum(
            weight(subset)
            for size in range(1, min(len(delta), len(left)) + 1)
            for subset in itertools.combinations(left, size)
        )
        prob *= weight(chosen) / total
        left = [i for i in left if i not in chosen]
    return prob


def weak_orders(n: int) -> list[list[int]]:
    """Every ranking with ties of n candidates, as dense ranks."""
    return [list(r) for r in itertools.product(range(1, n + 1), repeat=n) if set(r) == set(range(1, max(r) + 1))]


def normal_average(function, mean: float, sd: float, n_steps: int = 4000) -> float:
    """E[f(x)] for x ~ N(mean, sd²) by the trapezoidal rule over ±10 sd."""
    if sd == 0:
        return function(mean)
    total = 0.0
    for i in range(n_steps + 1):
        z = -10 + 20 * i / n_steps
        total += function(mean + sd * z) * math.exp(-z * z / 2)
    return total * 20 / n_steps / math.sqrt(2 * math.pi)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def entropy_bits(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def bald_bits(mean: float, variance: float) -> float:
    """h(E σ) − E h(σ)."""
    sd = math.sqrt(variance)
    marginal = normal_average(logistic, mean, sd)
    return entropy_bits(marginal) - normal_average(lambda x: entropy_bits(logistic(x)), mean, sd)
