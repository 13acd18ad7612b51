"""Slow oracles for the sampler: Philox word by word, truncation and the inverse distribution token by token.

Written from Salmon et al. 2011 §3.2 (Philox) and from the definitions of top-k and nucleus sampling (Holtzman et al.
2020, arXiv 1904.09751 §3.1) in plain Python.
"""

from __future__ import annotations

import math
from fractions import Fraction


def philox_4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block of Philox-4×32 with ten rounds."""
    mask = 2**32 - 1
    x = list(counter)
    k = list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(second >> 32) ^ x[1] ^ k[0], second & mask, (first >> 32) ^ x[3] ^ k[1], first & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return x[0], x[1], x[2], x[3]


def uniform(seed: int, key: int, sample: int, position: int) -> Fraction:
    """53 bits of the block as an exact fraction of one."""
    mask = 2**32 - 1
    words = philox_4x32_10((position, sample, key & mask, (key >> 32) & mask), (seed & mask, (seed >> 32) & mask))
    return Fraction((words[0] << 21) + (words[1] >> 11), 2**53)


def softmax(logits: list[float]) -> list[float]:
    """Probabilities of one row."""
    peak = max(logits)
    weights = [math.exp(logit - peak) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def pick(probabilities: list[float], u: float) -> int:
    """The first token whose exact cumulative probability exceeds u of the total."""
    exact = [Fraction(probability) for probability in probabilities]
    target, running = Fraction(u) * sum(exact), Fraction(0)
    for token, probability in enumerate(exact):
        running += probability
        if running > target:
            return token
    raise AssertionError("u is not below one")


def truncated(probabilities: list[float], top_k: int, top_p: float) -> list[float]:
    """Renormalised probabilities of the k likeliest, then of the shortest head that holds p of what is left."""
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    if top_k:
        order = order[:top_k]
    total = math.fsum(probabilities[token] for token in order)
    kept, held = [], 0.0
    for token in order:
        if held >= top_p:
            break
        kept.append(token)
        held += probabilities[token] / total
    mass = math.fsum(probabilities[token] for token in kept)
    return [probabilities[token] / mass if token in kept else 0.0 for token in range(len(probabilities))]
