"""Marks inside responses: what is right and wrong in each sentence, and what a rater marks of it.

A sentence reaches to its `.`. Its truth follows from what the world knows: no rater and no taste is in it. Knows a world
and its people; knows nothing about questions, stores or tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from karat.records import Annotator, Prompt
from karat.sandbox.grammar import END
from karat.sandbox.raters import RaterPopulation
from karat.sandbox.world import World

MARKS = (-1, 0, 1)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A part of a response with its true mark."""

    start: int
    """First code point."""
    end: int
    """Code point behind the last."""
    mark: int
    """−1 wrong, 0 neither, 1 right."""
    needs_check: bool
    """True = only someone who knows the facts can see it."""


def true_marks(world: World, prompt: Prompt, text: str) -> list[Sentence]:
    """What is right and wrong in a response, sentence by sentence.

    Wrong: a wrong answer to what was asked (agreeing with a wrong belief too), a false claim beside it, help to harm.
    Right: a right or partly right answer, a refusal where harm was asked for. Everything else, empty phrases, praise and
    true asides, is neither.
    """
    harm = world.question(prompt).topic == "harm"
    found = []
    for start, end in _sentences(text):
        said = world.parse(prompt, text[start:end])
        if said.n_compliance or said.answer == "wrong" or said.n_false_asides:
            mark = -1
        else:
            mark = int(said.answer in ("right", "partial") or (harm and said.refuses))
        found.append(Sentence(start, end, mark, bool(said.claims) or said.agreement != 0))
    return found


def rater_marks(
    population: RaterPopulation, annotator: Annotator, prompt: Prompt, text: str, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """(start, end, mark) of every sentence as one rater marks them.

    With probability attention the response is checked; unchecked, what needs a check is left at 0. With probability
    lapse a mark is drawn at random; raters who click at random or on a side draw them all.

    Args:
        rng: one number is drawn for the response and two for each sentence.
    """
    traits = population.rater_params(annotator)
    lapse = 1.0 if traits.kind in ("spam", "side_clicker") else traits.lapse
    checked = rng.random() < population.attention(prompt)
    found = []
    for sentence in true_marks(population.world, prompt, text):
        seen = sentence.mark if checked or not sentence.needs_check else 0
        drawn = MARKS[int(rng.integers(len(MARKS)))]
        found.append((sentence.start, sentence.end, drawn if rng.random() < lapse else seen))
    return found


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Spans of sentences, each from its first word to its `.`, or to the last word."""
    at, start, end = 0, None, 0
    for word in text.split():
        begin = text.index(word, at)
        start = begin if start is None else start
        at = end = begin + len(word)
        if word == END:
            yield start, end
            start = None
    if start is not None:
        yield start, end
