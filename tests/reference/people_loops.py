"""Slow, plain versions of what `karat.reward` computes about people: loops from the definitions, no shared code."""

import math
from itertools import combinations


def sigmoid(t):
    """1/(1 + e^−t) without overflow."""
    return 1 / (1 + math.exp(-t)) if t >= 0 else math.exp(t) / (1 + math.exp(t))


def level_prob(eta, level, cuts):
    """P(y = level): differences of P(y ≤ k) = σ(c_k − η)."""
    n_levels = len(cuts) + 1
    below = sigmoid(cuts[level - 1] - eta) if level > 0 else 0.0
    upto = sigmoid(cuts[level] - eta) if level < n_levels - 1 else 1.0
    return upto - below


def log_posterior(w, rows, levels, shared, basis, mean, precision, cuts):
    """log N(w; mean, precision⁻¹) + Σ log P(y | (shared + basisᵀw)·x), the Gaussian up to its constant."""
    total = 0.0
    for i in range(len(w)):
        for j in range(len(w)):
            total -= 0.5 * (w[i] - mean[i]) * precision[i][j] * (w[j] - mean[j])
    for x, level in zip(rows, levels, strict=True):
        eta = sum(
            (shared[k] + sum(basis[i][k] * w[i] for i in range(len(w)))) * x[k] for k in range(len(x))
        )  # fmt: skip
        total += math.log(level_prob(eta, level, cuts))
    return total


def mutual_information(mean, sd, cuts, n=20001):
    """Bits between a vote and η ~ N(mean, sd²), by a sum over a fine grid of ± 8 sd."""
    n_levels = len(cuts) + 1
    points = [mean + sd * (-8 + 16 * i / (n - 1)) for i in range(n)]
    weights = [math.exp(-0.5 * ((p - mean) / sd) ** 2) for p in points]
    total = sum(weights)
    mixed, known = [0.0] * n_levels, 0.0
    for point, weight in zip(points, weights, strict=True):
        for level in range(n_levels):
            p = level_prob(point, level, cuts)
            mixed[level] += weight / total * p
            if p > 0:
                known -= weight / total * p * math.log2(p)
    return -sum(p * math.log2(p) for p in mixed if p > 0) - known


def median(values):
    """The middle, or the mean of the two in the middle."""
    ordered = sorted(values)
    n = len(ordered)
    return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2


def on_common_scale(scores, prompts):
    """Each person's scores less her mean for the prompt, over the pooled within-prompt sd (n − 1 a prompt)."""
    found = []
    for row in scores:
        out, squares, free = [0.0] * len(row), 0.0, 0
        for prompt in sorted(set(prompts)):
            own = [i for i in range(len(row)) if prompts[i] == prompt]
            mean = sum(row[i] for i in own) / len(own)
            free += len(own) - 1
            for i in own:
                out[i] = row[i] - mean
                squares += out[i] ** 2
        sd = math.sqrt(squares / free)
        found.append([value / sd for value in out])
    return found


def borda_count(scores):
    """Mean over people of how many candidates each candidate beats, a tie ½."""
    n = len(scores[0])
    return [
        sum((row[i] > row[j]) + 0.5 * (row[i] == row[j]) for row in scores for j in range(n) if j != i) / len(scores)
        for i in range(n)
    ]


def condorcet_winner(scores):
    """Who beats everybody by strict majority of those who prefer one; None without."""
    n = len(scores[0])
    for i in range(n):
        if all(
            sum(row[i] > row[j] for row in scores) > sum(row[j] > row[i] for row in scores) for j in range(n) if j != i
        ):  # fmt: skip
            return i
    return None


def changed_pairs(jury, mean, prompts):
    """Share of pairs of one prompt on which two rows of scores differ in sign; half a change where one ties."""
    changes = []
    for i, j in combinations(range(len(mean)), 2):
        if prompts[i] == prompts[j]:
            said, wanted = ((r[i] > r[j]) - (r[i] < r[j]) for r in (jury, mean))
            changes.append(abs(said - wanted) / 2)
    return sum(changes) / len(changes)


def lowest_tenth(right, person):
    """Mean accuracy of the ⌈U/10⌉ people with the lowest accuracy."""
    by = {}
    for one, who in zip(right, person, strict=True):
        by.setdefault(who, []).append(one)
    ordered = sorted(sum(values) / len(values) for values in by.values())
    n = math.ceil(len(ordered) / 10)
    return sum(ordered[:n]) / n
