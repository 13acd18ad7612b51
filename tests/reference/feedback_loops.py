"""Likelihoods of every kind of feedback, statement by statement with plain loops, from docs/reward.md and the papers."""

from __future__ import annotations

import itertools
import math

from reference.choice_loops import davidson_luce, plackett_luce, weak_orders
from reference.reward_loops import ordinal_prob, sigmoid


def comparison(scores, a, b, level, side, rater, cutpoints):
    """rater = (competence, side bias, lapse)."""
    return ordinal_prob(level, scores[a] - scores[b], side, *rater, cutpoints)


def ranking(scores, ranks, rater, tie):
    """With lapse, a uniform draw among all rankings with ties of at most 1 + len(tie)."""
    competence, _, lapse = rater
    own = [competence * score for score in scores]
    n = len(scores)
    if not tie:
        order = sorted(range(n), key=lambda i: ranks[i])
        return (1 - lapse) * plackett_luce(own, order) + lapse / math.factorial(n)
    allowed = [one for one in weak_orders(n) if max(one.count(rank) for rank in one) <= 1 + len(tie)]
    return (1 - lapse) * davidson_luce(own, ranks, tie) + lapse / len(allowed)


def best_of(scores, best, rater):
    competence, _, lapse = rater
    weights = [math.exp(competence * score) for score in scores]
    return (1 - lapse) * weights[best] / sum(weights) + lapse / len(scores)


def gaussian_rating(score, value, offset, gain, sd):
    """Density of N(offset + gain·r, sd²)."""
    return math.exp(-(((value - offset - gain * score) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))


def ordinal_rating(score, level, offset, gain, cutpoints):
    below = [0.0, *(sigmoid(cut - gain * score - offset) for cut in cutpoints), 1.0]
    return below[level + 1] - below[level]


def label(score, good, threshold, gain):
    p = sigmoid(gain * score - threshold)
    return p if good else 1 - p


def normal_mean(function, mean, sd, n_steps=2001):
    """E f(x) for x ~ N(mean, sd²), by the trapezoidal rule over ± 10 sd."""
    if sd == 0:
        return function(mean)
    points = [-10 + 20 * i / (n_steps - 1) for i in range(n_steps)]
    weights = [math.exp(-z * z / 2) for z in points]
    return sum(w * function(mean + sd * z) for w, z in zip(weights, points, strict=True)) / sum(weights)


def comparison_information(delta, n_group, competence=1.0):
    """Fisher information of a vote without ties about differences of scores: E‖P·∇‖² with P = I − 11ᵀ/n."""
    total = 0.0
    for won in (True, False):
        p = sigmoid(competence * delta) if won else sigmoid(-competence * delta)
        slope = competence * (1 - sigmoid(competence * delta)) if won else -competence * sigmoid(competence * delta)
        gradient = [slope, -slope] + [0.0] * (n_group - 2)
        mean = sum(gradient) / n_group
        total += p * sum((one - mean) ** 2 for one in gradient)
    return total


def all_rankings(n, largest):
    """Every ranking with ties of n candidates in which at most `largest` share a rank."""
    every = (list(one) for one in itertools.product(range(1, n + 1), repeat=n))
    dense = [one for one in every if set(one) == set(range(1, max(one) + 1))]
    return [one for one in dense if max(one.count(rank) for rank in one) <= largest]
