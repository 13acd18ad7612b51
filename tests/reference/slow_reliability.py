"""The ordinal comparison model written out vote by vote, from its equation; no derivatives, no arrays."""

import math


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def cutpoints(steps, n_levels):
    """c_1 … c_{K−1} from the positive steps of the upper half."""
    positive, total = [], 0.0
    for step in steps:
        total += step
        positive.append(total)
    middle = [0.0] if n_levels % 2 == 0 else []
    return [-c for c in reversed(positive)] + middle + positive


def vote_probability(level, n_levels, delta, side, competence, side_bias, lapse, cuts):
    """(1 − ε)·(P(y ≤ level) − P(y ≤ level − 1)) + ε / K."""
    eta = competence * delta + side_bias * side
    at_most = 1.0 if level == n_levels - 1 else sigmoid(cuts[level] - eta)
    below = 0.0 if level == 0 else sigmoid(cuts[level - 1] - eta)
    return (1 - lapse) * (at_most - below) + lapse / n_levels


def negative_log_posterior(votes, scores, log_steps, competence, side_bias, lapse, priors):
    """votes: (a, b, level, n_levels, side, annotator); log_steps and lapse by scale and by rater; priors: a dict of sds."""
    total = 0.0
    for a, b, level, n_levels, side, w in votes:
        cuts = cutpoints([math.exp(s) for s in log_steps[n_levels]], n_levels)
        p = vote_probability(level, n_levels, scores[a] - scores[b], side, competence[w], side_bias[w], lapse[w], cuts)
        total -= math.log(p)
    total += sum(s * s for s in scores) / (2 * priors["score"] ** 2)
    total += sum((a - 1) ** 2 for a in competence) / (2 * priors["competence"] ** 2)
    total += sum(b * b for b in side_bias) / (2 * priors["side"] ** 2)
    total += sum(s * s for each in log_steps.values() for s in each) / (2 * priors["step"] ** 2)
    return total
