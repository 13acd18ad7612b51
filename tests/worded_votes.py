"""Votes that a few words explain, for the tests of what can be learned by counting words."""

from __future__ import annotations

import numpy as np

GOOD, BAD, PLAIN = ("clear", "true", "kind"), ("vague", "false", "rude"), ("the", "a", "and", "of", "to", "in")


def crowd(n_prompts: int, rng: np.random.Generator, *, noise: float = 0.1):
    """Two texts a prompt; the one with more good words wins, but for some noise."""
    texts, winner, loser, prompt = [], [], [], []
    for i in range(n_prompts):
        values = []
        for _ in range(2):
            n_good = int(rng.integers(0, 4))
            words = [*rng.choice(GOOD, n_good), *rng.choice(BAD, 3 - n_good), *rng.choice(PLAIN, 6)]
            texts.append(" ".join(rng.permutation(words)))
            values.append(n_good)
        first = values[0] > values[1] or (values[0] == values[1] and rng.random() < 0.5)
        first ^= rng.random() < noise
        winner.append(2 * i + (not first))
        loser.append(2 * i + first)
        prompt.append(f"prompt {i}")
    return texts, winner, loser, prompt
