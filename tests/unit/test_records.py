"""Records refuse what cannot be, and name the same content the same."""

import pytest

from karat.errors import InputError
from karat.identity import content_id
from karat.records import Judgement, Prompt, Response, Task, Turn, user_prompt, vote_of


def judgement(**changes):
    fields = {
        "task_id": "task:1",
        "kind": "comparison",
        "prompt_id": "prompt:1",
        "response_ids": ("response:a", "response:b"),
        "value": {"level": 2, "n_levels": 3},
        "annotator": "rater-1",
        "shown_order": (1, 0),
        "guideline": "v1",
        "created_at": "2026-01-01T00:00:00Z",
    }
    return Judgement(**(fields | changes))


def test_identity_is_content():
    assert user_prompt("hi").id == Prompt((Turn("user", "hi"),), topic="greetings").id
    assert Response("p", "yes", "sft").id == Response("p", "yes", "ppo", 3).id
    assert judgement().id != judgement(active_s=3.0).id


@pytest.mark.parametrize(("order", "side"), [((0, 1), 1), ((1, 0), -1), ((), 0)])
def test_a_vote_knows_which_side_was_shown_first(order, side):
    vote = vote_of(judgement(shown_order=order), topic="t")
    assert (vote.level, vote.n_levels, vote.side, vote.tags) == (2, 3, side, {"topic": "t"})


def test_cannot_judge_is_missing_not_a_tie():
    assert vote_of(judgement(value={"missing": "cannot judge"})) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": {"level": 3, "n_levels": 3}}, "level in 0 … n_levels − 1"),
        ({"value": {"level": 1.0, "n_levels": 3}}, "level in 0 … n_levels − 1"),
        ({"shown_order": (0, 0)}, "expected an order of 0 … 1"),
        ({"active_s": -1.0}, "expected seconds ≥ 0"),
        ({"origin": "bot"}, "expected one of person"),
        ({"kind": "ranking", "value": {"ranks": [1]}}, "one rank ≥ 1 for each"),
        ({"kind": "best_of", "value": {"best": 2}}, "an index below 2"),
        ({"kind": "label", "value": {"good": 1}}, "good: true or false"),
        ({"kind": "rating", "value": {"score": 9, "low": 1, "high": 5}}, "low ≤ score ≤ high"),
        ({"kind": "rating", "value": {"scores": {"helpful": 9}, "low": 1, "high": 5}}, "low ≤ score ≤ high"),
        ({"kind": "rating", "value": {"scores": {}, "low": 1, "high": 5}}, "expected numbers for score"),
        ({"kind": "rating", "value": {"score": float("nan"), "low": 1, "high": 5}}, "expected numbers for score"),
        ({"kind": "label", "value": {"flags": "spam"}}, "a list of names"),
        ({"kind": "label", "value": {"flags": [], "escalate": 1}}, "expected true or false"),
        ({"value": {"level": 0, "n_levels": 3, "both": "good"}}, "with the level of a tie"),
        ({"value": {"missing": True}}, "expected the reason as text"),
        ({"kind": "critique", "value": {"text": "  "}}, "expected something written"),
        (
            {"kind": "span_marks", "value": {"spans": [{"response": 0, "start": 4, "end": 4, "class": "x"}]}},
            "start < end",
        ),
        ({"kind": "span_marks", "value": {"spans": [{"response": 2, "start": 0, "end": 4, "class": "x"}]}}, "response"),
        ({"kind": "step_marks", "value": {"steps": [{"start": 0, "end": 4, "mark": 1}]}}, "expected 1 response"),
    ],
)
def test_an_impossible_judgement_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        judgement(**changes)


def test_steps_are_marked_in_order():
    steps = [{"start": 0, "end": 4, "mark": 1}, {"start": 4, "end": 9, "mark": -1}]
    one = {"kind": "step_marks", "response_ids": ("response:a",), "shown_order": (0,)}
    assert judgement(**one, value={"steps": steps}).value["steps"] == steps
    with pytest.raises(InputError, match="in order without overlap"):
        judgement(**one, value={"steps": steps[::-1]})
    with pytest.raises(InputError, match="expected −1, 0 or 1"):
        judgement(**one, value={"steps": [{"start": 0, "end": 4, "mark": 2}]})


def test_the_identity_of_a_judgement_says_nothing_about_its_words():
    assert judgement(reason="because").id == judgement().id
    said = {"kind": "critique", "response_ids": ("response:a",), "shown_order": (0,)}
    assert judgement(**said, value={"text": "dull"}).id == judgement(**said, value={"text": "bright"}).id
    assert judgement(**said, value={"missing": "cannot judge"}).id != judgement(**said, value={"text": "dull"}).id


def test_what_was_shown_is_part_of_the_event_and_absent_where_it_is_not_known():
    assert judgement(shown={"page": "1"}).id != judgement().id
    assert "shown" not in judgement().event


def test_a_task_is_named_by_its_question_only_where_it_has_one():
    plain = Task("p", ("a", "b"))
    assert plain.id == content_id("task", ["p", ["a", "b"], "comparison", "v1", "main"])
    others = [Task("p", ("a", "b"), question="question:1"), Task("p", ("a", "b"), audience="expert")]
    assert len({plain.id, *(task.id for task in others), Task("p", ("a", "b"), reserved_for="r").id}) == 4


def test_a_prompt_ends_before_the_assistant_speaks():
    with pytest.raises(InputError, match="last turn is the assistant's"):
        Prompt((Turn("user", "a"), Turn("assistant", "b")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"response_ids": ("a",)}, "names 1 responses; expected 2"),
        ({"response_ids": ("a", "a")}, "same response occurs twice"),
        ({"response_ids": ("a", "b"), "propensity": 0.0}, r"probability in \(0, 1\]"),
        ({"response_ids": ("a", "b"), "overlap": 0}, "expected ≥ 1"),
    ],
)
def test_an_impossible_task_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Task("prompt:1", **arguments)
