"""Records refuse what cannot be, and name the same content the same."""

import pytest

from karat.errors import InputError
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
    ],
)
def test_an_impossible_judgement_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        judgement(**changes)


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
