"""Edits of the sandbox keep what a text is worth."""

from __future__ import annotations

import numpy as np

from karat.sandbox import World, WorldConfig
from karat.sandbox.rewording import meaning_preserving, reordered, reworded, slips

WORLD = World(WorldConfig(), 1)
RNG = np.random.default_rng(0)
PROMPTS = WORLD.prompts(120, RNG)
TEXTS = [WORLD.demonstration(prompt, RNG) for prompt in PROMPTS]


def gold(texts):
    return np.array([WORLD.gold_reward(prompt, text) for prompt, text in zip(PROMPTS, texts, strict=True)])


def test_rewording_and_reordering_change_texts_and_not_their_gold():
    for edit in meaning_preserving(WORLD.grammar)[:2]:
        changed = edit.apply(TEXTS, np.random.default_rng(2))
        assert np.mean([old != new for old, new in zip(TEXTS, changed, strict=True)]) > 0.5
        assert np.array_equal(gold(TEXTS), gold(changed))
        assert changed == edit.apply(TEXTS, np.random.default_rng(2))
        parses = [
            (WORLD.parse(p, old), WORLD.parse(p, new)) for p, old, new in zip(PROMPTS, TEXTS, changed, strict=True)
        ]
        assert all((a.answer, a.confidence, a.n_words) == (b.answer, b.confidence, b.n_words) for a, b in parses)


def test_a_slip_says_one_word_twice_and_is_never_better():
    changed = slips(TEXTS, np.random.default_rng(3))
    assert all(len(new.split()) == len(old.split()) + 1 for old, new in zip(TEXTS, changed, strict=True))
    assert (gold(changed) < gold(TEXTS)).all()


def test_strays_unclosed_clauses_and_empty_texts_stay_as_they_are():
    rng = np.random.default_rng(0)
    odd = ["", "red red", "the colour", ". .", "zz it is"]
    assert reworded(WORLD.grammar, odd, rng) == odd
    assert slips([""], rng) == [""]
    assert reordered(["", "yes", "yes . no"], rng) == ["", "yes", "yes . no"]
    assert sorted(reordered(["yes . i think . maybe"], rng)[0].split()) == sorted(
        ["yes", ".", "i", "think", ".", "maybe"]
    )
    assert reordered(["yes . i think . maybe"], rng)[0].endswith("maybe")
