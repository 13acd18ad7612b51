"""Best-of-n and diversity by enumeration, written from their definitions."""

from __future__ import annotations

import itertools
import math


def best_of_n_distribution(probs: list[float], scores: list[float], n: int) -> list[float]:
    """Probability that each response is returned: all n-tuples of draws, a uniformly random one among the best."""
    result = [0.0] * len(probs)
    for draws in itertools.product(range(len(probs)), repeat=n):
        weight = math.prod(probs[i] for i in draws)
        top = max(scores[i] for i in draws)
        winners = [i for i in draws if scores[i] == top]
        for i in winners:
            result[i] += weight / len(winners)
    return result


def kl(q: list[float], p: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)


def best_of_subsets(scores: list[float], values: list[float], n: int) -> float:
    """Mean over all n-subsets of the value of the best; several best share."""
    total, count = 0.0, 0
    for subset in itertools.combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        winners = [values[i] for i in subset if scores[i] == top]
        total += sum(winners) / len(winners)
        count += 1
    return total / count


def self_bleu(texts: list[str]) -> float:
    """Mean BLEU-4 of each text against the others; add-one smoothing above unigrams, nearest reference length."""
    total = 0.0
    for i, text in enumerate(texts):
        words = text.split()
        others = [other.split() for j, other in enumerate(texts) if j != i]
        log_sum = 0.0
        for n in (1, 2, 3, 4):
            grams = [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
            matched = 0
            for gram in set(grams):
                most = max(sum(1 for k in range(len(o) - n + 1) if tuple(o[k : k + n]) == gram) for o in others)
                matched += min(grams.count(gram), most)
            extra = 0 if n == 1 else 1
            ratio = (matched + extra) / (len(grams) + extra)
            log_sum += math.log(ratio) / 4 if ratio > 0 else -math.inf
        nearest = sorted((abs(len(o) - len(words)), len(o)) for o in others)[0][1]
        penalty = 1.0 if len(words) >= nearest else math.exp(1 - nearest / len(words))
        total += penalty * math.exp(log_sum)
    return total / len(texts)
