"""Marks inside responses: their truth on sentences written by hand, and what raters with and without faults mark."""

from dataclasses import replace

import numpy as np
import pytest

from karat.feedback.simulated import collect_simulated_marks
from karat.feedback.store import open_store
from karat.feedback.tasks import random_tasks
from karat.reading import statements_of
from karat.records import Response
from karat.sandbox import (
    RaterPopulation,
    World,
    WorldConfig,
    careful_population,
    default_population,
    rater_marks,
    true_marks,
    unchecked_facts,
)

WORLD = World(WorldConfig(), 0)
PROMPTS = WORLD.prompts(600, np.random.default_rng(1))
HARM = next(prompt for prompt in PROMPTS if prompt.topic == "harm")
WRONG_BELIEF = next(prompt for prompt in PROMPTS if WORLD.question(prompt).belief_is_wrong)
UNKNOWABLE = next(prompt for prompt in PROMPTS if prompt.topic == "unknowable")


def marks_of(prompt, text):
    return [(text[one.start : one.end], one.mark, one.needs_check) for one in true_marks(WORLD, prompt, text)]


def test_the_truth_of_every_sentence_is_known():
    asked = WORLD.question(WRONG_BELIEF)
    text = f"what a great question . yes . it is {asked.belief} . no . it is {asked.truth} . well"
    assert [(mark, check) for _, mark, check in marks_of(WRONG_BELIEF, text)] == [
        (0, False), (-1, True), (-1, True), (1, True), (1, True), (0, False),
    ]  # fmt: skip
    assert [part for part, _, _ in marks_of(WRONG_BELIEF, text)][1:3] == ["yes .", f"it is {asked.belief} ."]
    harm = WORLD.question(HARM)
    text = f"i can not help with that . you can {harm.subject} {harm.entity} with a rope ."
    assert [mark for _, mark, _ in marks_of(HARM, text)] == [1, -1]
    assert [mark for _, mark, _ in marks_of(WRONG_BELIEF, "i can not help with that .")] == [0]
    assert [mark for _, mark, _ in marks_of(UNKNOWABLE, "nobody can know that . it is gold .")] == [1, -1]
    # a claim beside the question: wrong is wrong, right is neither
    entity, attribute = next(key for key in WORLD.facts if key[0] != asked.entity)
    fact = WORLD.facts[entity, attribute]
    other = next(value for value in WORLD.grammar.values[attribute] if value != fact)
    aside = [marks_of(WRONG_BELIEF, f"the {attribute} of {entity} is {value} .")[0][1] for value in (fact, other)]
    assert aside == [0, -1]
    assert marks_of(HARM, "") == []
    assert [part for part, _, _ in marks_of(HARM, "  a  a . ")] == ["a  a ."]


def test_careful_raters_mark_the_truth_and_those_who_check_nothing_see_only_what_is_plain():
    asked, harm = WORLD.question(WRONG_BELIEF), WORLD.question(HARM)
    cases = [
        (WRONG_BELIEF, f"yes . it is {asked.truth} ."),
        (HARM, f"you can {harm.subject} {harm.entity} with a rope ."),
    ]
    rng = np.random.default_rng(0)
    for config, expected in ((careful_population(), [[-1, 1], [-1]]), (unchecked_facts(), [[0, 0], [-1]])):
        people = RaterPopulation(WORLD, replace(config, lapse=0.0), 0)
        for annotator in people.annotators()[:5]:
            found = [[mark for *_, mark in rater_marks(people, annotator, *case, rng)] for case in cases]
            assert found == expected


@pytest.mark.parametrize(
    "config", [replace(careful_population(), lapse=1.0), replace(careful_population(), spam_frac=1.0)]
)
def test_lapses_and_spam_are_drawn_at_random(config):
    people, rng = RaterPopulation(WORLD, config, 0), np.random.default_rng(0)
    (annotator, *_) = people.annotators()
    drawn = [rater_marks(people, annotator, HARM, "i will not do that .", rng)[0][2] for _ in range(600)]
    # a third each, standard error 0.019
    assert all(abs(drawn.count(mark) / 600 - 1 / 3) < 0.08 for mark in (-1, 0, 1))


def asked_store(path):
    store = open_store(str(path))
    prompts = PROMPTS[:12]
    rng = np.random.default_rng(3)
    responses = [Response(p.id, WORLD.demonstration(p, rng), "demo", i) for p in prompts for i in range(3)]
    responses.append(Response(HARM.id, "", "demo", 9))
    store.add_prompts([*prompts, HARM])
    store.add_responses(responses)
    by_prompt: dict = {}
    for one in responses:
        by_prompt.setdefault(one.prompt_id, []).append(one.id)
    for kind in ("step_marks", "span_marks"):
        store.add_tasks(random_tasks(by_prompt, kind, 100, np.random.default_rng(0), overlap=2))
    return store


def test_simulated_raters_answer_what_asks_for_marks_and_a_repeated_call_adds_nothing(tmp_path):
    people = RaterPopulation(WORLD, default_population(), 0)

    def marks(*rest):
        return rater_marks(people, *rest)

    with asked_store(tmp_path / "a.db") as store, asked_store(tmp_path / "b.db") as again:
        assert collect_simulated_marks(store, people.annotators(), marks, seed=1) == 4 * 37
        assert collect_simulated_marks(store, people.annotators(), marks, seed=1) == 4 * 37
        collect_simulated_marks(again, people.annotators(), marks, seed=1)
        given, prompts, responses = list(store.judgements()), store.prompts(), store.responses()
        assert [one.value for one in given] == [one.value for one in again.judgements()]
    assert len(given) == 4 * 37
    assert {one.origin for one in given} == {"simulated"}
    blank = [one.value for one in given if responses[one.response_ids[0]].text == ""]
    assert sorted(map(str, blank)) == ["{'missing': 'nothing to mark'}"] * 2 + ["{'spans': []}"] * 2
    read = statements_of([], given, responses)
    by_kind = {kind: [mark for mark in read.marks if mark.kind == kind] for kind in ("step_marks", "span_marks")}
    assert {name for mark in by_kind["span_marks"] for name in mark.names} == {"wrong", "good"}
    right = [
        part.mark == {(one.start, one.end): one.mark for one in true_marks(WORLD, prompts[mark.prompt_id], responses[mark.response_ids[0]].text)}[part.start, part.end]
        for mark in by_kind["step_marks"] for part in mark.parts
    ]  # fmt: skip
    # attention .75 and some hidden facts: most marks are the truth, not all
    assert 0.7 < np.mean(right) < 1.0
