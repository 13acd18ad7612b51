"""Forms of every kind: value → fields → value, bad input named where it stands, screen and identity kept apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.answers import check_value
from karat.feedback.web.forms import (
    MOST_REASON,
    MOST_WORDS,
    Asked,
    answer_of,
    fields_of,
    first_fields,
    letter,
    needs_position,
    strengths,
)
from karat.questions import Choice, Question, plain_question

TEXTS = ("alpha one two two", "beta is here", "gamma", "delta")
STEPS = "First we add.\n\nThen we divide.\n\nSo it is 4."
SPANS = Question(kind="span_marks", granularity="span", span_classes=(Choice("wrong"), Choice("good:very")))
RATING = Question(kind="rating", attributes=(Choice("truth", "True"), Choice("tone")), low=1, high=5)
LABEL = Question(kind="label", flags=(Choice("unsafe"), Choice("spam")))
CRITIQUE = Question(kind="critique", aspects=(Choice("facts"), Choice("tone")))


def asked(question: Question, n: int = 2, order: tuple[int, ...] | None = None) -> Asked:
    return Asked(question, TEXTS[:n], order or tuple(range(n)))


def step_asked() -> Asked:
    return Asked(plain_question("step_marks"), (STEPS,), (0,))


def steps(*marks: int) -> dict:
    edges = [(0, 13), (15, 30), (32, 43)]
    return {"steps": [{"start": s, "end": e, "mark": m} for (s, e), m in zip(edges, marks, strict=False)]}


EVERY_VALUE = [
    *[(asked(Question(n_levels=n), 2, order), {"level": level, "n_levels": n})
      for n in (2, 3, 4, 7, 9) for level in range(n) for order in ((0, 1), (1, 0))],
    *[(asked(Question(), 2, order), {"level": 3, "n_levels": 7, "both": both})
      for both in ("good", "bad") for order in ((0, 1), (1, 0))],
    *[(asked(Question(kind="ranking"), 4, order), {"ranks": ranks})
      for order in ((0, 1, 2, 3), (2, 0, 3, 1)) for ranks in ([1, 2, 3, 4], [1, 1, 2, 2], [2, 1, 3, 1])],
    *[(asked(Question(kind="best_of"), 3, order), {"best": best})
      for order in ((0, 1, 2), (2, 0, 1)) for best in range(3)],
    *[(asked(plain_question("rating"), 1), {"score": score, "low": 1, "high": 7}) for score in (1, 4, 7)],
    (asked(RATING, 1), {"scores": {"truth": 5, "tone": 1}, "low": 1, "high": 5}),
    *[(asked(LABEL, 1), {"good": good, "flags": flags, **more})
      for good in (True, False) for flags in ([], ["unsafe"], ["unsafe", "spam"]) for more in ({}, {"escalate": True})],
    (asked(LABEL, 1), {"flags": ["spam"]}),
    (asked(Question(kind="label"), 1), {"good": True}),
    (asked(Question(kind="correction"), 1), {"text": "alpha, one\n two"}),
    (asked(Question(kind="demonstration"), 2), {"text": "  kept as typed \n"}),
    (asked(Question(kind="critique"), 1), {"text": "wrong"}),
    (asked(CRITIQUE, 1), {"text": "wrong", "aspects": ["tone"]}),
    (asked(SPANS, 2), {"spans": []}),
    *[(asked(SPANS, 2, order), {"spans": [
        {"response": 0, "start": 0, "end": 5, "class": "good:very"},
        {"response": 0, "start": 3, "end": 9, "class": "wrong"},
        {"response": 1, "start": 5, "end": 7, "class": "wrong"}]}) for order in ((0, 1), (1, 0))],
    (step_asked(), steps(1, 1, 1)),
    (step_asked(), steps(1, -1)),
    (step_asked(), steps(0, -1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("about", "value"), EVERY_VALUE)
def test_every_value_comes_back_from_its_fields(about: Asked, value: dict):
    check_value(about.question.kind, value, len(about.texts))
    fields = fields_of(about, value, "because")
    answer = answer_of(about, fields)
    assert (answer.value, answer.reason, dict(answer.messages)) == (value, "because", {})


@pytest.mark.parametrize("about", {about.question.id: about for about, _ in EVERY_VALUE}.values())
@pytest.mark.parametrize("way", ["cannot judge", "none fits"])
def test_every_kind_has_its_ways_out(about: Asked, way: str):
    fields = fields_of(about, {"missing": way})
    if way.replace(" ", "_") in about.question.offers:
        assert answer_of(about, fields).value == {"missing": way}


def test_escalation_is_a_flag_of_a_label_and_a_missing_answer_elsewhere():
    assert answer_of(asked(LABEL, 1), {"way": ["escalate"]}).value == {"flags": [], "escalate": True}
    assert answer_of(asked(Question()), {"way": ["escalate"]}).value == {"missing": "escalated"}


def test_a_way_out_that_is_not_offered_is_refused():
    about = asked(Question(ways_out=("tie",)))
    answer = answer_of(about, {"choice": ["cannot_judge"]})
    assert answer.value is None
    assert "does not offer" in answer.messages[""]
    assert answer_of(about, {"choice": ["both_good"]}).messages == {
        "choice": "Choose which response is better, and by how much."
    }


def test_left_on_the_screen_is_whoever_was_shown_first():
    for order, level in (((0, 1), 6), ((1, 0), 0)):
        assert answer_of(asked(Question(), 2, order), {"choice": ["0"]}).value == {"level": level, "n_levels": 7}


def test_ranks_are_made_dense():
    about = asked(Question(kind="ranking"), 3, (2, 0, 1))
    fields = {"rank-0": ["3"], "rank-1": ["1"], "rank-2": ["3"]}
    assert answer_of(about, fields).value == {"ranks": [1, 2, 2]}


@pytest.mark.parametrize(
    ("about", "fields", "field", "said"),
    [
        (asked(Question()), {}, "choice", "Choose which"),
        (asked(Question()), {"choice": ["7"]}, "choice", "Choose which"),
        (asked(Question()), {"choice": ["-1"]}, "choice", "Choose which"),
        (asked(Question()), {"choice": ["１"]}, "choice", "Choose which"),
        (asked(Question(ways_out=())), {"choice": ["3"]}, "choice", "Choose which"),
        (asked(Question(kind="ranking"), 3), {"rank-0": ["1"], "rank-2": ["4"]}, "rank-1", "without one: B, C"),
        (asked(Question(kind="best_of"), 3), {"choice": ["3"]}, "choice", "Choose the best"),
        (asked(RATING, 1), {"score-0": ["5"], "score-1": ["6"]}, "score-1", "from 1 to 5 for “tone”"),
        (asked(plain_question("rating"), 1), {}, "score-0", "from 1 to 7"),
        (asked(LABEL, 1), {"flag": ["unknown"]}, "good", "raise a flag"),
        (asked(Question(kind="correction"), 1), {"text": ["  \n"]}, "text", "is empty"),
        (asked(Question(kind="demonstration"), 0), {"text": ["x" * (MOST_WORDS + 1)]}, "text", "20,001 characters"),
        (asked(Question(kind="critique"), 1), {}, "text", "right or wrong"),
        (asked(Question(kind="demonstration"), 0), {"text": ["\u200b \u2060\n"]}, "text", "as it should be"),
        (asked(SPANS, 2), {}, "span", "Nothing to mark"),
        (asked(SPANS, 2), {"span": ["0:0:99:wrong"]}, "span", "does not fit"),
        (asked(SPANS, 2), {"span": ["0:3:3:wrong"]}, "span", "does not fit"),
        (asked(SPANS, 2), {"span": ["2:0:1:wrong"]}, "span", "does not fit"),
        (asked(SPANS, 2), {"span": ["0:0:1:other"]}, "span", "does not fit"),
        (asked(SPANS, 2), {"span": ["nonsense"]}, "span", "does not fit"),
        (asked(SPANS, 2), {"quote-0": ["two"], "quote-class-0": ["wrong"]}, "quote-0", "is there 2 times"),
        (asked(SPANS, 2), {"quote-1": ["three"], "quote-class-1": ["wrong"]}, "quote-1", "is not in the text"),
        (asked(SPANS, 2), {"quote-2": ["one"]}, "quote-class-2", "Choose what"),
        (step_asked(), {"step-0": ["1"]}, "step-1", "without a mark: 2, 3"),
        (step_asked(), {"step-1": ["-1"]}, "step-0", "without a mark: 1"),
        (Asked(plain_question("step_marks"), ("",), (0,)), {}, "step-0", "Mark every step"),
        (asked(Question(rationale="required")), {"choice": ["0"], "reason": [" "]}, "reason", "why"),
        (asked(Question(rationale="required")), {"choice": ["0"], "reason": ["\u200d"]}, "reason", "why"),
        (asked(Question()), {"choice": ["0"], "reason": ["x" * (MOST_REASON + 1)]}, "reason", "5,001 characters"),
    ],
)  # fmt: skip
def test_bad_input_is_named_where_it_stands(about: Asked, fields: dict, field: str, said: str):
    answer = answer_of(about, fields)
    assert answer.value is None
    assert list(answer.messages) == [field]
    assert said in answer.messages[field]


def test_a_reason_is_not_asked_of_who_cannot_judge():
    assert answer_of(asked(Question(rationale="required")), {"choice": ["cannot_judge"]}).value == {
        "missing": "cannot judge"
    }


def test_a_quote_is_found_in_the_response_it_was_copied_from():
    about = asked(SPANS, 2, (1, 0))
    fields = {"quote-0": ["one two"], "quote-in-0": ["1"], "quote-class-0": ["wrong"]}
    assert answer_of(about, fields).value == {"spans": [{"response": 0, "start": 6, "end": 13, "class": "wrong"}]}


def test_a_correction_that_changes_nothing_says_so_whatever_the_browser_does_to_line_ends():
    about = Asked(Question(kind="correction"), ("one\r\ntwo\n",), (0,))
    fresh = first_fields(about)["text"][0]
    assert answer_of(about, {"text": [fresh.replace("\r\n", "\n").replace("\n", "\r\n")]}).unchanged
    assert not answer_of(about, {"text": ["one\r\ntwo, three\r\n"]}).unchanged


def test_scales_name_both_sides_alike():
    for n in (2, 3, 4, 5, 7, 9, 12):
        names = strengths(Question(n_levels=n))
        mirrored = [name.replace("A ", "# ").replace("B ", "A ").replace("# ", "B ") for name in reversed(names)]
        assert list(names) == mirrored
        assert len(set(names)) == n
    assert strengths(Question(n_levels=3, anchors=("right", "same", "left"))) == ("left", "same", "right")
    assert [needs_position(Question(n_levels=3, ways_out=()), i) for i in range(3)] == [True, False, True]
    assert [letter(i) for i in (0, 25, 26)] == ["A", "Z", "27"]


names = st.sampled_from(
    ["choice", "way", "reason", "text", "good", "flag", "aspect", "escalate", "span", "nothing", "quote-0",
     "quote-class-0", "quote-in-0", *[f"{k}-{i}" for k, i in itertools.product(("rank", "score", "step"), range(4))]]
)  # fmt: skip
values = st.sampled_from(["", "0", "1", "2", "3", "-1", "99999999999", "yes", "both_good", "wrong", "0:0:3:wrong",
                          "::::", "٣", "cannot_judge", "one"]) | st.text(max_size=20)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    about=st.sampled_from(list({about.question.id: about for about, _ in EVERY_VALUE}.values())),
    fields=st.dictionaries(names, st.lists(values, min_size=1, max_size=3), max_size=8),
)
def test_whatever_is_posted_gives_a_checked_value_or_a_message(about: Asked, fields: dict):
    answer = answer_of(about, fields)
    assert (answer.value is None) == bool(answer.messages)
    if answer.value is not None:
        check_value(about.question.kind, answer.value, len(about.texts))
        if "missing" not in answer.value:
            assert answer_of(about, fields_of(about, answer.value, answer.reason)).value == answer.value
