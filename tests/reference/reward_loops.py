"""The weighted ordinal loss of an ensemble, vote by vote and head by head, from the formula in docs/reward.md."""

import math


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def ordinal_prob(level, delta, side, competence, side_bias, lapse, cutpoints):
    """P(y = level): σ(c_k − a·Δ − b·side) by differences, mixed with a uniform level."""
    below = [0.0, *(sigmoid(c - competence * delta - side_bias * side) for c in cutpoints), 1.0]
    return (1 - lapse) * (below[level + 1] - below[level]) + lapse / (len(cutpoints) + 1)


def ensemble_loss(scores, votes, raters, weights):
    """Mean over heads and votes of −ω·log P.

    Args:
        scores: one list a head.    votes: (a, b, level, side, rater).
        raters: (competence, side_bias, lapse) of each rater, and the cutpoints.    weights: one list a head.
    """
    parameters, cutpoints = raters
    total = 0.0
    for head, own in zip(scores, weights, strict=True):
        for a, b, level, side, rater in votes:
            total -= own[rater] * math.log(ordinal_prob(level, head[a] - head[b], side, *parameters[rater], cutpoints))
    return total / (len(scores) * len(votes))
