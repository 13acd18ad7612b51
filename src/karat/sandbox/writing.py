"""What the people of the sandbox write and how they use scales: corrections, demonstrations, ratings, labels.

Knows a world and its people; knows nothing about questions, stores or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from karat.records import Annotator, Prompt
from karat.sandbox.marking import true_marks
from karat.sandbox.raters import RaterPopulation

N_DRAFTS = 3
"""Answers a rater thinks of before she writes one down."""
N_TYPICAL, N_ASKED = 48, 8
"""Prompts, and raters, whose utilities say what is typical."""


@dataclass(frozen=True)
class Scale:
    """How one rater uses scales, in logits of her utility."""

    middle: float
    """The utility of a typical answer, the middle of every scale."""
    spread: float
    """sd of the utilities of typical answers."""
    gain: float
    """How far she spreads her ratings; 1 = as most do."""
    offset: float
    """How kind she is."""
    noise: float
    """sd of a rating's noise."""
    threshold: float
    """Logits above the middle from which half her labels are "good"."""


class Scales:
    """The scales of a population: one middle and spread for all, the rest each rater's own."""

    def __init__(self, population: RaterPopulation) -> None:
        self._population = population
        rng = np.random.default_rng((population.seed, 4))
        world, asked = population.world, population.annotators()[:N_ASKED]
        answers = [(prompt, world.demonstration(prompt, rng)) for prompt in world.prompts(N_TYPICAL, rng)]
        typical = [population.mean_utility(who, *answer) for who in asked for answer in answers]
        self._middle, self._spread = float(np.mean(typical)), max(float(np.std(typical)), 1e-6)
        self._place = {who.id: index for index, who in enumerate(population.annotators())}

    def of(self, annotator: Annotator) -> Scale:
        """A rater's scale; the same in every round."""
        config = self._population.config.scales
        gain, offset, threshold = np.random.default_rng(
            (self._population.seed, 5, self._place[annotator.id])
        ).standard_normal(3)
        return Scale(
            self._middle, self._spread, float(np.exp(config.gain_sd * gain)),
            config.offset_sd * float(offset), config.noise, config.threshold_sd * float(threshold),
        )  # fmt: skip


def demonstrated(
    population: RaterPopulation, annotator: Annotator, prompt: Prompt, rng: np.random.Generator, *, time: float = 0.0
) -> str:
    """A rater's own answer: of a few drafts, as the demonstrator writes them, the one that she likes best.

    Who sees no difference (clicks at random) hands in the first.
    """
    drafts = [population.world.demonstration(prompt, rng) for _ in range(N_DRAFTS)]
    return drafts[_liked(population, annotator, prompt, drafts, rng, time)]


def corrected(
    population: RaterPopulation, annotator: Annotator, prompt: Prompt, text: str, rng: np.random.Generator, *,
    time: float = 0.0,
) -> str | None:  # fmt: skip
    """A response edited for the better as one rater sees it; None = she likes none of her edits better.

    With probability attention she checks the response: what is wrong then goes, and the right answer comes where there is
    none. Unchecked she sees only what needs no check. Or one sentence is left out that is neither right nor wrong.
    """
    checked = bool(rng.random() < population.attention(prompt))
    marks = true_marks(population.world, prompt, text)
    seen = [one.mark if checked or not one.needs_check else 0 for one in marks]
    sentences = [text[one.start : one.end] for one in marks]
    kept = [sentence for sentence, mark in zip(sentences, seen, strict=True) if mark >= 0]
    answered = any(mark > 0 for mark in seen)
    ideal = [population.world.ideal(prompt)] if checked and not answered else []
    edits = [[*ideal, *kept]]
    edits += [[*ideal, *kept[:i], *kept[i + 1 :]] for i in range(len(kept)) if len(kept) + len(ideal) > 1]
    options = [text, *dict.fromkeys(edit for parts in edits if (edit := " ".join(parts)) and edit != text)]
    chosen = options[_liked(population, annotator, prompt, options, rng, time)]
    return None if chosen == text else chosen


def _liked(
    population: RaterPopulation, annotator: Annotator, prompt: Prompt, texts: Sequence[str], rng: np.random.Generator,
    time: float,
) -> int:  # fmt: skip
    """Which of some texts a rater likes best at this moment; the first of equals."""
    utilities = np.asarray(population.utilities(annotator, prompt, texts, rng, time=time))
    return int(np.argmax(population.rater_params(annotator).competence * utilities))
