"""Silent checks as people write them down: one JSON object a line, with texts of its own or a task of the store.

A check must look like the work, so whatever a line does not say about how it is asked is taken from the newest work
of its kind. Knows rows, texts and the store; knows nothing about when a check is handed out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select

from karat.answers import is_int
from karat.errors import InputError
from karat.feedback.documents import add_questions, question_of
from karat.feedback.openings import CHECK
from karat.feedback.schema import task_of, tasks
from karat.feedback.store import Store
from karat.feedback.work.checks import Item, check_version
from karat.feedback.work.matching import COMPARABLE, check_expected
from karat.questions import Question
from karat.records import Prompt, Response, Task
from karat.rowfiles import Row, prompt_in, text_fault, texts_in

FIELDS = ("task", "prompt", "responses", "kind", "question", "guideline", "expected", "within")
"""What a line may say: a `task` of the store, or `prompt` and `responses`, optionally `kind`, `question` (an object)
and `guideline`; the right answer as `expected`; for a rating, `within` how many points it is right."""
SOURCE = "check"
"""Response.source of texts that a line brings with it."""
MOST_ITEMS = 5_000

_QUESTION = TypeAdapter(Question)


@dataclass(frozen=True)
class ReadItems:
    """Checks that were read, and what has to be in the store before they are put into use."""

    items: tuple[Item, ...]
    """Tasks with their right answers."""
    prompts: tuple[Prompt, ...]
    """Prompts that the lines bring with them."""
    responses: tuple[Response, ...]
    """Responses that the lines bring with them."""
    questions: tuple[Question, ...]
    """How they are asked, where a line says so."""


def read_items(store: Store, rows: Sequence[Row]) -> ReadItems:
    """Checks from rows (`FIELDS`); nothing is stored yet.

    Raises: InputError naming the line, for an unknown field, a task that is not in the store, texts that are missing,
        or a right answer that does not fit the question.
    """
    if len(rows) > MOST_ITEMS:
        raise InputError(f"checks: found {len(rows):,} lines; expected at most {MOST_ITEMS:,}")
    items, prompts, responses, questions = [], [], [], []
    likeness: dict[str, Task | None] = {}
    for row in rows:
        row.refuse_unknown(FIELDS)
        if row.values.get("expected") is None:
            row.need("expected", (dict, list, str, int, float, bool))
        with row.named():
            _refuse_what_no_database_holds(row)
            if row.values.get("task") is not None:
                task = _stored_task(store, row)
                question = question_of(store, task)
            else:
                prompt, texts = prompt_in(row), _texts(row)
                task, question = _new_task(store, row, prompt, texts, likeness)
                prompts.append(prompt)
                responses += texts
                questions += [question] if row.values.get("question") is not None else []
            expected = expected_of(row.values["expected"], question)
            if row.values.get("within") is not None:
                expected["within"] = _within(row)
            check_expected(task.kind, expected, len(task.response_ids))
            items.append((task, expected))
    return ReadItems(tuple(items), tuple(prompts), tuple(responses), tuple(questions))


def store_texts(store: Store, read: ReadItems) -> None:
    """Store what the lines brought with them; what is there already stays as it is."""
    add_questions(store, read.questions)
    store.add_prompts(read.prompts)
    store.add_responses(read.responses)


def put_items(store: Store, rows: Sequence[Row], *, version: str) -> tuple[Item, ...]:
    """The checks of these rows, whose texts are in the store now: for `checks.add_gold` and `checks.add_qualification`.

    Raises: InputError as `read_items`, or for a version that names no set; then nothing is stored.
    """
    read = read_items(store, rows)
    check_version(version)
    store_texts(store, read)
    return read.items


def expected_of(said: Any, question: Question) -> dict[str, Any]:
    """The right answer as a value of the question's kind.

    A person may say a comparison's as `a`, `b`, `tie`, `both good` or `both bad`, a best response by its letter, a
    label as `good` or `bad`, a rating as a number or an object of numbers by attribute, a ranking as a list of ranks;
    letters name responses in the order in which the line has them. Everything else must be a value already.

    Raises: InputError where it is neither.
    """
    kind = question.kind
    word = said.strip().lower() if isinstance(said, str) else said
    if kind == "comparison" and word in ("a", "b", "tie", "both good", "both bad"):
        level = {"a": 2, "b": 0}.get(word, 1)
        both = {"both": word.removeprefix("both ")} if word.startswith("both ") else {}
        return {"level": level, "n_levels": 3, **both}
    if kind == "best_of" and isinstance(word, str) and len(word) == 1 and "a" <= word <= "z":
        return {"best": ord(word) - ord("a")}
    if kind == "label" and word in ("good", "bad"):
        return {"good": word == "good"}
    if kind == "ranking" and isinstance(said, list):
        return {"ranks": said}
    scale = {"low": question.low, "high": question.high}
    if kind == "rating" and (is_int(said) or isinstance(said, float)):
        return {"score": said, **scale}
    if kind == "rating" and isinstance(said, Mapping) and not {"score", "scores", "missing"} & set(said):
        return {"scores": dict(said), **scale}
    if not isinstance(said, Mapping):
        ways = {
            "comparison": "a, b, tie, both good or both bad", "best_of": "the letter of a response",
            "label": "good or bad", "ranking": "a list of ranks", "rating": "a number",
        }.get(kind, "an object")  # fmt: skip
        raise InputError(f"{kind}: found the right answer {json.dumps(said)[:60]}; expected {ways}, or a whole value")
    return dict(said)


def _within(row: Row) -> float:
    points = row.need("within", (int, float))
    if not (math.isfinite(points) and points >= 0):
        raise InputError(f"found within: {points}; expected a number of points, 0 or more")
    return points


def _refuse_what_no_database_holds(row: Row) -> None:
    try:
        json.dumps(dict(row.values), allow_nan=False)
    except (ValueError, RecursionError):
        raise InputError("found a number that is no JSON; expected finite numbers") from None
    if fault := next(filter(None, map(text_fault, texts_in(row.values))), ""):
        raise InputError(fault)


def _stored_task(store: Store, row: Row) -> Task:
    task_id = row.need("task", str)
    if more := [name for name in ("prompt", "responses", "kind", "question", "guideline") if name in row.values]:
        raise InputError(f"found {more[0]!r} beside a task; expected only its id and the right answer")
    with store.connection() as connection:
        found = connection.execute(select(tasks).where(tasks.c.id == task_id)).first()
    if found is None:
        raise InputError(f"found the task {task_id[:60]!r}, which is not in the store; its page under Queue names it")
    return task_of(found)


def _texts(row: Row) -> list[Response]:
    texts = row.need("responses", list)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{row.at}: found responses {str(texts)[:60]}; expected a list of texts")
    prompt_id = prompt_in(row).id
    return [Response(prompt_id, text, SOURCE) for text in texts]


def _new_task(
    store: Store, row: Row, prompt: Prompt, texts: Sequence[Response], likeness: dict[str, Task | None]
) -> tuple[Task, Question]:
    """The task of a line with texts, asked as the newest work of its kind unless the line says otherwise."""
    own = row.get("question", dict)
    usual = "comparison" if len(texts) == 2 else ""
    kind = row.get("kind", str, (own or {}).get("kind", usual))
    if kind not in COMPARABLE:
        raise InputError(f"found the kind {kind!r}; expected one that can be compared: {', '.join(COMPARABLE)}")
    if kind not in likeness:
        likeness[kind] = _newest_work(store, kind)
    like = likeness[kind] or Task(prompt.id, tuple(one.id for one in texts), kind=kind)
    question = question_of(store, like) if own is None else _question({**own, "kind": kind})
    task = replace(
        like,
        prompt_id=prompt.id,
        response_ids=tuple(one.id for one in texts),
        guideline=row.get("guideline", str, like.guideline),
        question=like.question if own is None else question.id,
        strategy="random",
        propensity=1.0,
    )
    return task, question


def _question(said: Mapping[str, Any]) -> Question:
    if unknown := set(said) - {one.name for one in fields(Question)}:
        raise InputError(f"question: found the unknown field {min(unknown)[:40]!r}; expected those of `Question`")
    try:
        return _QUESTION.validate_python(dict(said))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "question"
        raise InputError(f"question: {where}: {first['msg']}") from None


def _newest_work(store: Store, kind: str) -> Task | None:
    newest = select(tasks).where(tasks.c.kind == kind, tasks.c.state != CHECK, tasks.c.audience == "annotator")
    with store.connection() as connection:
        row = connection.execute(newest.order_by(tasks.c.seq.desc()).limit(1)).first()
    return None if row is None else task_of(row)
