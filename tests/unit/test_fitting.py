"""An answer that does not fit what was asked is refused where it is stored; one that lies there already is named."""

import dataclasses
import json

import pytest

from karat.errors import InputError, StoreError
from karat.feedback import misfits as module
from karat.feedback import submission
from karat.feedback.documents import add_questions
from karat.feedback.exchange.events import event_rows, import_event_rows
from karat.feedback.snapshot import write_snapshot
from karat.feedback.store import open_store
from karat.feedback.tasks import answer
from karat.feedback.web.forms import Asked, answer_of
from karat.fitting import check_asked, check_inside, check_targets
from karat.questions import Choice, Question
from karat.records import Annotator, Response, Task, user_prompt
from karat.rowfiles import read_rows

RATING = Question(kind="rating", low=1, high=7, attributes=(Choice("helpful"),))
OVERALL = Question(kind="rating", low=1, high=7)
LABEL = Question(kind="label", flags=(Choice("spam"),))
CRITIQUE = Question(kind="critique", aspects=(Choice("wordy"),))
SPANS = Question(kind="span_marks", granularity="span", span_classes=(Choice("wrong"),))
STEPS = Question(kind="step_marks", granularity="step")
FITS = [
    (Question(n_levels=5), {"level": 2, "n_levels": 5}),
    (RATING, {"scores": {"helpful": 7}, "low": 1, "high": 7}),
    (OVERALL, {"score": 1, "low": 1.0, "high": 7.0}),
    (LABEL, {"good": True, "flags": ["spam"]}),
    (CRITIQUE, {"text": "x", "aspects": ["wordy"]}),
    (SPANS, {"spans": [{"response": 0, "start": 0, "end": 4, "class": "wrong"}]}),
    (STEPS, {"steps": [{"start": 0, "end": 4, "mark": 1}]}),
]
MISFITS = [
    (Question(n_levels=7), {"level": 2, "n_levels": 5}, "found 5 levels; expected the question's 7"),
    (OVERALL, {"score": 90, "low": 1, "high": 100}, "found the scale 1–100; expected the question's 1–7"),
    (OVERALL, {"scores": {"kind": 3}, "low": 1, "high": 7}, "expected the one score that was asked"),
    (RATING, {"scores": {"kind": 3}, "low": 1, "high": 7}, "the attribute 'kind'; expected some of helpful"),
    (RATING, {"score": 3, "low": 1, "high": 7}, "the attribute 'score'"),
    (LABEL, {"good": True, "flags": ["rude"]}, "the flag 'rude'; expected some of spam"),
    (CRITIQUE, {"text": "x", "aspects": ["rude"]}, "the aspect 'rude'"),
    (SPANS, {"spans": [{"response": 0, "start": 0, "end": 2, "class": "odd"}]}, "the class 'odd'"),
    (SPANS, {"spans": [{"response": 0, "start": 0, "end": 500, "class": "wrong"}]}, "of a response of 4 characters"),
    (STEPS, {"steps": [{"start": 0, "end": 5, "mark": 1}]}, "marks 0–5 of a response of 4 characters"),
]


@pytest.mark.parametrize(("question", "value"), FITS)
def test_what_was_asked_fits(question, value):
    check_asked(question, question.kind, value)
    check_inside(question.kind, value, ["four", "more"])


def test_a_rating_is_of_one_response_and_a_missing_answer_always_fits():
    with pytest.raises(InputError, match="rating x: judges 2 responses; expected 1"):
        check_targets("rating x", "rating", 2)
    check_asked(LABEL, "rating", {"missing": "cannot judge"})
    with pytest.raises(InputError, match="a question that asks for a label"):
        check_asked(LABEL, "critique", {"text": "x"})


def stored(path, question, value, *, kind=None):
    store = open_store(path)
    prompt = user_prompt("?")
    responses = [Response(prompt.id, text, "policy", n) for n, text in enumerate(("four", "more"))]
    responses = responses[: 2 if question.kind == "comparison" else 1]
    task = Task(prompt.id, tuple(one.id for one in responses), kind or question.kind, question=question.id)
    store.add_prompts([prompt])
    store.add_responses(responses)
    store.add_annotators([Annotator("a", "person")])
    add_questions(store, [question])
    store.add_tasks([task])
    given = answer(
        task, value, annotator="a", shown_order=tuple(range(len(responses))), created_at="2026-03-04T05:06:07Z",
        submission="s", shown={"question": question.id},
    )  # fmt: skip
    return store, given


@pytest.mark.parametrize(("question", "value", "message"), MISFITS)
def test_what_does_not_fit_is_refused_by_the_store_and_named_in_an_old_one(
    tmp_path, monkeypatch, question, value, message
):
    store, given = stored(tmp_path / "k.db", question, value)
    with pytest.raises(StoreError, match=message) as refused:
        store.submit(given)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(submission, "check_fits", lambda *_: None)  # as stores of before took it
    store.submit(given)
    snapshot = write_snapshot(store, tmp_path / "snap")
    assert list(snapshot.misfits) == [given.id]
    assert message in snapshot.misfits[given.id]


def test_another_scale_of_an_experiment_and_a_question_nobody_kept_are_no_misfits(tmp_path):
    store, given = stored(tmp_path / "k.db", Question(n_levels=7), {"level": 2, "n_levels": 5})
    other = dataclasses.replace(given, shown={"question": "of an experiment"})
    store.submit(other)
    assert write_snapshot(store, tmp_path / "snap").misfits == {}
    assert "misfits" not in json.loads((tmp_path / "snap" / "snapshot.json").read_text())


def test_a_correction_that_changes_nothing_is_named(tmp_path):
    store, given = stored(tmp_path / "k.db", Question(kind="correction"), {"text": "four"})
    store.submit(given)
    with store.connection() as connection:
        assert module.misfits(connection, {given.id: given}) == {
            given.id: "correction: the text it gives equals the original (number 1 of the store, task "
            f"{given.task_id}, by 'a')"
        }


def test_a_misfit_of_a_file_is_found_by_file_and_line(tmp_path, monkeypatch):
    value = {"level": 2, "n_levels": 5}
    store, given = stored(tmp_path / "k.db", Question(n_levels=5), value)
    store.submit(given)
    with monkeypatch.context() as patch:
        patch.setattr(submission, "check_fits", lambda *_: None)
        store.submit(dataclasses.replace(given, value={**value, "n_levels": 9}, submission="t"))
    file = tmp_path / "hand.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in event_rows(store)), encoding="utf-8")
    other = open_store(tmp_path / "other.db")
    with pytest.raises(StoreError, match=r"^hand\.jsonl:2: judgement of task .* by 'a': .*found 9 levels"):
        import_event_rows(other, read_rows(file))
    monkeypatch.setattr(submission, "check_fits", lambda *_: None)
    import_event_rows(other, read_rows(file))
    (reason,) = write_snapshot(other, tmp_path / "snap").misfits.values()
    assert "(hand.jsonl:2, number 2 of the store, task " in reason


def test_the_page_takes_no_flag_that_it_did_not_offer():
    fields = {"good": ["good"], "flags": ["rude"]}
    given = answer_of(Asked(LABEL, ("four",), (0,)), fields)
    assert given.value is None or "rude" not in given.value.get("flags", ())
