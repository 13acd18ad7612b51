"""Judgements that do not fit what their task asked: refused where they are stored, named where they lie already.

Knows an open connection, questions and texts; transactions are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, select

from karat.errors import InputError, StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.openings import rows_in
from karat.feedback.question_rows import question_in
from karat.fitting import check_asked, check_inside, check_targets
from karat.questions import Question
from karat.records import Judgement

MARKED = ("span_marks", "step_marks")
REWRITTEN = ("correction",)


def check_fits(
    connection: Connection, judgements: Sequence[Judgement], asked: Mapping[str, str], places: Mapping[str, str]
) -> None:
    """Refuse judgements that do not fit the question or the texts of their tasks.

    Args:
        asked: Task.id → its question's id, "" where it names none: then a value's own scale and names hold.
        places: Judgement.submission → file and line that it was read from, where it was.
    Raises: StoreError for the first that does not fit, in one line.
    """
    for index, reason in _reasons(connection, judgements, asked):
        one = judgements[index]
        place = f"{places[one.submission]}: " if one.submission in places else ""
        raise StoreError(f"{place}judgement of task {one.task_id} by {one.annotator!r}: {reason}")


def misfits(connection: Connection, judgements: Mapping[str, Judgement]) -> dict[str, str]:
    """Which stored judgements do not fit, by id, why, and where to find them; also corrections that change nothing."""
    ids = {one.task_id for one in judgements.values()}
    asked = {
        row.id: row.question or "" for row in rows_in(connection, select(tables.tasks), tables.tasks.c.id, sorted(ids))
    }
    ordered = list(judgements)
    values = [judgements[one] for one in ordered]
    found = {ordered[index]: reason for index, reason in _reasons(connection, values, asked)}
    rewritten = [one for one in ordered if judgements[one].kind in REWRITTEN and one not in found]
    texts = _texts(connection, [judgements[one] for one in rewritten])
    for one in rewritten:
        value, (response_id,) = judgements[one].value, judgements[one].response_ids
        if "missing" not in value and value["text"] == texts[response_id]:
            found[one] = "correction: the text it gives equals the original"
    places = _places(connection, sorted(found))
    return {
        one: f"{reason} ({places[one]}, task {judgements[one].task_id}, by {judgements[one].annotator!r})"
        for one, reason in found.items()
    }


def _places(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """Where a person finds stored judgements: the number of the record, and the file and line of those that were imported."""
    numbers = rows_in(connection, select(tables.judgements.c.id, tables.judgements.c.seq), tables.judgements.c.id, ids)
    places = {row.id: f"number {row.seq} of the store" for row in numbers}
    for row in rows_in(connection, select(tables.provenance), tables.provenance.c.judgement_id, ids):
        places[row.judgement_id] = f"{row.file}:{row.line}, {places[row.judgement_id]}"
    return places


def _reasons(
    connection: Connection, judgements: Sequence[Judgement], asked: Mapping[str, str]
) -> Iterable[tuple[int, str]]:
    questions = _questions(connection, judgements, asked)
    texts = _texts(connection, [one for one in judgements if one.kind in MARKED])
    for index, one in enumerate(judgements):
        try:
            if "missing" in one.value:
                continue
            check_targets(one.kind, one.kind, len(one.response_ids))
            question = _question(one, questions, asked[one.task_id])
            if question is not None:
                check_asked(question, one.kind, one.value)
            if one.kind in MARKED:
                check_inside(one.kind, one.value, [texts[response] for response in one.response_ids])
        except InputError as error:
            yield index, str(error)


def _question(judgement: Judgement, questions: Mapping[str, Question], asked: str) -> Question | None:
    """What the rater saw; None = nobody knows, or an experiment asked with other levels than the task's question."""
    shown = str(judgement.shown.get("question", ""))
    if shown and shown not in questions and judgement.kind == "comparison":
        return None
    return questions.get(shown) or questions.get(asked)


def _questions(
    connection: Connection, judgements: Sequence[Judgement], asked: Mapping[str, str]
) -> dict[str, Question]:
    ids = {str(one.shown.get("question", "")) for one in judgements} | {asked[one.task_id] for one in judgements}
    rows = rows_in(connection, select(people.questions), people.questions.c.id, sorted(ids - {""}))
    return {row.id: question_in(row.body) for row in rows}


def _texts(connection: Connection, judgements: Sequence[Judgement]) -> dict[str, str]:
    ids = {response for one in judgements for response in one.response_ids}
    return {
        row.id: row.text for row in rows_in(connection, select(tables.responses), tables.responses.c.id, sorted(ids))
    }
