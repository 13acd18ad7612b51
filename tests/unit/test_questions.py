"""A question is named by its content, and offers only what its scale can say."""

import dataclasses

import pytest

from karat.errors import InputError
from karat.questions import WAYS_OUT, Choice, Question, plain_question
from karat.records import KINDS


def test_every_kind_has_a_plain_question_of_its_own():
    questions = [plain_question(kind) for kind in KINDS]
    assert [question.kind for question in questions] == list(KINDS)
    assert len({question.id for question in questions}) == len(KINDS)


@pytest.mark.parametrize("field", ["instruction", "principle", "content_warning"])
def test_other_words_are_another_question(field):
    assert dataclasses.replace(Question(), **{field: "words"}).id != Question().id


def test_a_scale_without_a_middle_offers_no_tie():
    assert Question(n_levels=7).offers == WAYS_OUT
    assert Question(n_levels=6).offers == ("cannot_judge", "none_fits")
    assert Question(kind="ranking").offers == ("cannot_judge", "none_fits")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_levels": 1}, "expected ≥ 2"),
        ({"kind": "stars"}, "a known kind"),
        ({"low": 3, "high": 3}, "expected low < high"),
        ({"ways_out": ("shrug",)}, "found 'shrug'"),
        ({"flags": (Choice("a"), Choice("a"))}, "a name twice"),
        ({"kind": "span_marks"}, "at least one class"),
    ],
)
def test_an_impossible_question_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Question(**changes)


def test_a_choice_has_a_name():
    with pytest.raises(InputError, match="expected a short name"):
        Choice(" ")
