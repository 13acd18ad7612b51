"""Data of the offline methods: comparisons, labels and scored responses, as texts and then as trees.

Knows records and tokenizers; knows nothing about losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from karat.errors import InputError
from karat.lm.chat import check_fits, prompt_tokens, response_tokens
from karat.lm.load import LoadedLM
from karat.lm.trees import Tree
from karat.records import Prompt
from karat.seeding import torch_generator


@dataclass(frozen=True)
class Preference:
    """One decided comparison."""

    prompt: Prompt
    """What was answered."""
    better: str
    """The response that won."""
    worse: str
    """The other."""

    def __post_init__(self) -> None:
        if self.better == self.worse:
            raise InputError(f"Preference: found the same response twice for {self.prompt.id}; expected two texts")


@dataclass(frozen=True)
class ScoredResponse:
    """One response and what it was worth."""

    prompt: Prompt
    """What was answered."""
    text: str
    """The response."""
    score: float
    """Paid at its end."""


@dataclass(frozen=True)
class LabelledResponse:
    """One response that was judged by itself."""

    prompt: Prompt
    """What was answered."""
    text: str
    """The response."""
    good: bool
    """True = good."""


def labelled(preferences: Sequence[Preference]) -> list[LabelledResponse]:
    """Each comparison as two labels: the better response good, the worse one bad."""
    return [
        LabelledResponse(one.prompt, text, good)
        for one in preferences
        for text, good in ((one.better, True), (one.worse, False))
    ]


def tree_of(lm: LoadedLM, prompt: Prompt, *texts: str) -> Tree:
    """A prompt with some responses, each ended by the end token.

    Raises: InputError where one does not fit the context.
    """
    asked = prompt_tokens(lm.tokenizer, prompt.turns)
    branches = [response_tokens(lm.tokenizer, text, lm.eos_ids[0]) for text in texts]
    check_fits(asked, max(map(len, branches)), lm.context_length)
    return Tree(tuple(asked), tuple(map(tuple, branches)))


def dealt(n_examples: int, batch_size: int, *, seed: int, shuffle: bool) -> Callable[[int], list[int]]:
    """A function from a step to its minibatch: each epoch is a fresh seeded shuffle, read on where the last step ended.

    Args:
        n_examples: ≥ 1.    shuffle: False = always the order given.
    """

    def minibatch(step: int) -> list[int]:
        chosen: list[int] = []
        order: list[int] = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, offset = divmod(position, n_examples)
            if not order or offset == 0:
                generator = torch_generator(seed, "offline", "epoch", epoch)
                order = torch.randperm(n_examples, generator=generator).tolist() if shuffle else [*range(n_examples)]
            chosen.append(order[offset])
        return chosen

    return minibatch
