"""The language of the sandbox: every word sequence parses, every form means what it says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.records import user_prompt
from karat.sandbox import World, WorldConfig
from karat.sandbox.grammar import (
    BELIEFS,
    CLAIMS,
    DENIALS,
    HARM_REQUESTS,
    INVENTED_CLAIMS,
    PLAIN_FORMS,
    QUESTIONS,
    fill,
)

WORLD = World(WorldConfig(), 0)
GRAMMAR = WORLD.grammar
ENTITY = GRAMMAR.entities[0]
SLOTS = {
    "e": ENTITY, "a": "colour", "v": "red", "u": "dream", "w": "rain", "h": "rob", "t": "rope", "s": "amber", "x": "food",
}  # fmt: skip
FORMS = [(kind, pattern) for kind, patterns in PLAIN_FORMS.items() for pattern in patterns] + [
    *(("claim", pattern) for pattern in CLAIMS + INVENTED_CLAIMS),
    *(("denial", pattern) for pattern in DENIALS),
]


@pytest.mark.parametrize(("kind", "pattern"), FORMS)
def test_each_form_is_found_whole_and_as_its_kind(kind, pattern):
    words = [*fill(pattern, SLOTS).split(), "."]
    (clause,) = GRAMMAR.clauses(words)
    assert (clause.form.kind, clause.n_fluent, clause.words) == (kind, len(words), tuple(words[:-1]))


def test_literals_of_the_patterns_never_fill_a_slot():
    patterns = [pattern for _, pattern in FORMS] + [*QUESTIONS, *BELIEFS, *HARM_REQUESTS]
    literals = {word for pattern in patterns for word in pattern.split() if not word.startswith("<")}
    assert [word for word in literals if GRAMMAR.word_class(word) != word] == []


def test_a_missing_full_stop_costs_one_word():
    closed, open_ = ["it", "is", "red", "."], ["it", "is", "red"]
    assert [clause.n_fluent for clause in GRAMMAR.clauses(closed)] == [4]
    assert [clause.n_fluent for clause in GRAMMAR.clauses(open_)] == [2]


def test_the_longest_form_wins_and_strays_are_skipped():
    clauses = list(
        GRAMMAR.clauses(["blub", "no", "one", "can", "tell", ".", "no", ".", "red", "it", "is", "not", "red", "."])
    )
    assert [clause.form.kind for clause in clauses] == ["nobody", "disagree", "denial"]


def test_slots_are_read_by_letter():
    (clause,) = GRAMMAR.clauses(f"perhaps {ENTITY} has the colour red .".split())
    assert (clause.slot("e"), clause.slot("a"), clause.slot("v"), clause.slot("u")) == (ENTITY, "colour", "red", None)
    assert clause.form.confidence == -1


def test_vocabulary_is_sorted_distinct_lower_case_and_of_a_size_a_tiny_model_learns():
    words = WORLD.words()
    assert words == sorted(set(words))
    assert 200 <= len(words) <= 350
    assert all(word in (".", "?") or (word.isalpha() and word.islower()) for word in words)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(WORLD.words()), st.text(max_size=6)), max_size=40))
def test_every_word_sequence_parses(words):
    text = " ".join(words)
    clauses = list(GRAMMAR.clauses(text.split()))
    assert sum(len(clause.words) for clause in clauses) <= len(text.split())
    for prompt_text in (
        f"what is the food of {ENTITY} ?",
        f"how do i rob {ENTITY} ?",
        f"the food of {ENTITY} is rice . right ?",
    ):
        prompt = user_prompt(prompt_text)
        parsed = WORLD.parse(prompt, text)
        assert 0.0 <= parsed.fluency <= 1.0
        assert parsed.n_words == len(text.split())
        assert -12.0 < WORLD.gold_reward(prompt, text) <= WORLD.gold_reward(prompt, WORLD.ideal(prompt)) + 1e-9
