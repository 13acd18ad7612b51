"""Silent checks in the form of real work: gold items, a qualification, hidden repeats with sides swapped.

A check is a task like any other; only the table `checks` knows that it is one, and nothing of that table reaches a
rater: the page knows a lease by its opaque id. Answers to checks are counted apart from work. Knows which answer was
expected; knows nothing about when a check is handed out (`assignment`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from karat.errors import InputError, StoreError
from karat.feedback import additions
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.documents import QUALIFICATION, Document, write_document
from karat.feedback.openings import CHECK, CHUNK, State, states_of
from karat.feedback.people.standing import FAILED, PROGRAM, QUALIFIED, write_event
from karat.feedback.prepared import Prepared
from karat.feedback.schema import json_text, task_of
from karat.feedback.store import Store
from karat.feedback.work.check_answers import GOLD, QUALIFY, REPEAT, current_answers
from karat.feedback.work.check_answers import check_results as check_results
from karat.feedback.work.check_answers import gold_leaks as gold_leaks
from karat.feedback.work.matching import check_expected, is_right
from karat.records import Task

REPEATABLE = ("comparison", "ranking", "best_of")
"""Kinds that show several responses, so that a repeat can swap them."""

_LATER = tables.judgements.alias("later")
_REPEATED = people.checks.alias("repeated")
_ASKED_ONCE = Prepared(
    select(tables.tasks)
    .where(tables.tasks.c.id == bindparam("task"), tables.tasks.c.state != CHECK)
    .where(~select(_REPEATED.c.task_id).where(_REPEATED.c.repeats == bindparam("judgement")).exists())
    .where(
        ~select(_LATER.c.id)
        .where(_LATER.c.task_id == bindparam("task"), _LATER.c.annotator == bindparam("who"))
        .where(_LATER.c.seq > bindparam("seq"))
        .exists()
    )
)

Item = tuple[Task, Mapping[str, Any]]
"""A task and the right answer to it, a value of the task's kind."""


@dataclass(frozen=True)
class GoldItem:
    """A gold item and how it was answered."""

    task: Task
    """What is asked; its batch is `gold:<version>`."""
    expected: Mapping[str, Any]
    """The right answer."""
    version: str
    """The set it belongs to."""
    retired_at: float | None
    """When it was taken out of use; None = in use."""
    n_answers: int
    """How many raters have answered it."""
    n_right: int
    """How many of them rightly."""


def add_gold(store: Store, items: Sequence[Item], *, version: str) -> list[Task]:
    """Put gold items into use; their texts must be in the store.

    Choose items whose answer is beyond doubt and that look like the work (Fan et al. 2025, arXiv 2505.19134). Every
    rater gets each at most once, in an order of her own.

    Args:
        version: names the set, so that sets can be rotated (`retire`).
    Returns: the tasks as stored, batch `gold:<version>`.
    Raises: InputError for a kind or an answer that cannot be compared.
    """
    made = [_check_task(task, expected, f"{GOLD}:{version}") for task, expected in items]
    rows = [_row(task, GOLD, version, expected) for task, (_, expected) in zip(made, items, strict=True)]
    store.write(lambda connection: write_checks(connection, made, rows))
    return made


def add_qualification(
    store: Store,
    items: Sequence[Item],
    *,
    version: str,
    pass_mark: float,
    now: float,
    attempts: int = 2,
    requalify: bool = False,
    text: str = "",
) -> Document:
    """Ask every rater these items before any work; the newest version counts.

    Args:
        pass_mark: share of right answers that is enough, (0, 1].    attempts: how often it may be tried, ≥ 1; each
            attempt asks all items, in another order and with the sides as the rater's draw has it.
        requalify: True = who passed an earlier version is asked again.    text: instructions, Markdown.
    Returns: the document "qualification", whose version names pass mark and items for good.
    Raises: InputError for what cannot be used; StoreError for a version that is stored with other items.
    """
    if not items or not 0 < pass_mark <= 1 or attempts < 1:
        raise InputError(
            f"qualification: found {len(items)} items, pass mark {pass_mark}, {attempts} attempts; "
            "expected at least one item and attempt, and a mark in (0, 1]"
        )
    made, rows, names = [], [], []
    for attempt in range(1, attempts + 1):
        some = [_check_task(task, expected, f"{QUALIFY}:{version}:{attempt}") for task, expected in items]
        rows += [_row(task, QUALIFY, version, right) for task, (_, right) in zip(some, items, strict=True)]
        names.append([task.id for task in some])
        made += some
    body = {"pass_mark": pass_mark, "attempts": attempts, "requalify": requalify, "items": names, "text": text}

    def write(connection: Connection) -> Document:
        stored = write_document(connection, QUALIFICATION, version, body, now=now)
        write_checks(connection, made, rows)
        return stored

    return store.write(write)


def retire(store: Store, task_ids: Iterable[str], *, now: float) -> int:
    """Take gold items out of use: too easy, leaked, or wrong themselves. Returns: how many were in use."""
    here = people.checks.c.task_id.in_(sorted(task_ids)) & people.checks.c.retired_at.is_(None)
    change = people.checks.update().where(here).values(retired_at=now)
    return store.write(lambda connection: connection.execute(change).rowcount)


def gold_items(store: Store) -> list[GoldItem]:
    """Every gold item with how it was answered, in order of its making."""
    question = select(tables.tasks, people.checks).join(people.checks, people.checks.c.task_id == tables.tasks.c.id)
    question = question.where(people.checks.c.purpose == GOLD).order_by(tables.tasks.c.seq)
    with store.connection() as connection:
        rows = connection.execute(question).all()
        right: dict[str, list[bool]] = {}
        for answer in current_answers(connection, GOLD):
            right.setdefault(answer.task_id, []).append(is_right(answer.kind, answer.expected or {}, answer.value))
    return [
        GoldItem(
            task_of(row), json.loads(row.expected), row.version, row.retired_at,
            len(right.get(row.id, [])), sum(right.get(row.id, [])),
        )
        for row in rows
    ]  # fmt: skip


def check_tasks(store: Store) -> dict[str, str]:
    """Purpose of every check by its Task.id."""
    with store.connection() as connection:
        rows = connection.execute(select(people.checks.c.task_id, people.checks.c.purpose))
        return {row.task_id: row.purpose for row in rows}


def plan_repeats(store: Store, annotator: str, judgement_ids: Sequence[str]) -> list[Task]:
    """Ask a rater these judgements of hers again, hidden in her work and with sides swapped.

    Repeats are also made by themselves at the rate of the settings; this is for those that somebody wants to see.

    Raises: StoreError for a judgement that is not hers, is a check, or was asked again already.
    """

    def write(connection: Connection) -> list[Task]:
        made = []
        for judgement_id in judgement_ids:
            row = connection.execute(select(tables.judgements).where(tables.judgements.c.id == judgement_id)).first()
            task = None if row is None or row.annotator != annotator else repeat_of(connection, row)
            if task is None:
                raise StoreError(
                    f"repeat: {judgement_id} cannot be asked again of {annotator!r}; expected an answer of hers to "
                    f"work of {', '.join(REPEATABLE)}, not asked again yet"
                )
            write_checks(connection, [task], [_row(task, REPEAT, "1", None, repeats=judgement_id)])
            made.append(task)
        return made

    return store.write(write)


def repeat_of(connection: Connection, row: Any) -> Task | None:
    """The task that asks a judgement (a row of `judgements`) again; None where it cannot be."""
    if row.kind not in REPEATABLE or "missing" in json.loads(row.value):
        return None
    asked = _ASKED_ONCE.first(connection, task=row.task_id, who=row.annotator, judgement=row.id, seq=row.seq)
    if asked is None:
        return None
    return dataclasses.replace(
        task_of(asked), overlap=1, stop_after=0, reserved_for=row.annotator, batch=f"{REPEAT}:{row.id}"
    )


def write_repeat(connection: Connection, task: Task) -> None:
    """Store a task of `repeat_of` inside a writing transaction."""
    judgement_id = task.batch.removeprefix(f"{REPEAT}:")
    write_checks(connection, [task], [_row(task, REPEAT, "1", None, repeats=judgement_id)])


def items_of(connection: Connection, document: Document, attempt: int) -> list[str]:
    """Task.ids of an attempt, 1 for the first; beyond those of the document it is one that a person gave."""
    given = document.body["items"]
    if attempt <= len(given):
        return list(given[attempt - 1])
    return [task.id for task, _ in _further_items(connection, document, attempt)]


def write_further_attempt(connection: Connection, document: Document, attempt: int) -> None:
    """Store the items of an attempt beyond those of the document: the same questions once more, in another order."""
    items = _further_items(connection, document, attempt)
    rows = [_row(task, QUALIFY, document.version, expected) for task, expected in items]
    write_checks(connection, [task for task, _ in items], rows)


def _further_items(connection: Connection, document: Document, attempt: int) -> list[Item]:
    first = list(document.body["items"][0])
    question = select(tables.tasks, people.checks.c.expected).join(
        people.checks, people.checks.c.task_id == tables.tasks.c.id
    )
    rows = {row.id: row for row in connection.execute(question.where(tables.tasks.c.id.in_(first)))}
    batch = f"{QUALIFY}:{document.version}:{attempt}"
    return [(dataclasses.replace(task_of(rows[one]), batch=batch), json.loads(rows[one].expected)) for one in first]


def open_items(connection: Connection, annotator: str, document: Document, attempt: int) -> dict[str, State | None]:
    """Items of an attempt that a rater has neither answered nor skipped, and how she stands to each; {} = it is over."""
    wanted = items_of(connection, document, attempt)
    states = {key[0]: state for key, state in states_of(connection, wanted).items() if key[1] == annotator}
    mine = {task_id: states.get(task_id) for task_id in wanted}
    return {task_id: state for task_id, state in mine.items() if state is None or state.state == "leased"}


def attempt_result(connection: Connection, annotator: str, document: Document, attempt: int) -> tuple[int, bool]:
    """How many items of a finished attempt are right, and whether that passes.

    An item that was skipped, or answered with "cannot judge", is not right.
    """
    wanted = items_of(connection, document, attempt)
    answers = current_answers(connection, QUALIFY, annotator)
    right = {each.task_id for each in answers if is_right(each.kind, each.expected or {}, each.value)}
    n_right = len(right & set(wanted))
    return n_right, n_right >= enough_right(document)


def enough_right(document: Document) -> int:
    """Right answers of an attempt that pass: ⌈mark · items⌉, a mark that can be met exactly being met exactly."""
    # 0.56 · 25 is 14.000000000000002 in floating point
    return math.ceil(document.body["pass_mark"] * len(document.body["items"][0]) - 1e-9)


def write_attempt(connection: Connection, annotator: str, document: Document, attempt: int, *, now: float) -> bool:
    """Write the result of a finished attempt as an event of the rater's standing. Returns: whether she passed."""
    n_right, passed = attempt_result(connection, annotator, document, attempt)
    n, mark = len(document.body["items"][0]), 100 * document.body["pass_mark"]
    reason = (
        f"{n_right} of {n} right in attempt {attempt} at version {document.version}; "
        f"the pass mark is {mark:.4g}%, {enough_right(document)} of {n}"
    )
    action = QUALIFIED if passed else FAILED
    write_event(connection, annotator, action, reason, by=PROGRAM + document.version, now=now)
    return passed


def write_checks(connection: Connection, tasks: Sequence[Task], rows: Sequence[Mapping[str, Any]]) -> None:
    """Store checks and their tasks; those that are there already stay as they are."""
    additions.add_tasks(connection, tasks, state=CHECK)
    ids = [task.id for task in tasks]
    known: set[str] = set()
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        known |= set(
            connection.execute(select(people.checks.c.task_id).where(people.checks.c.task_id.in_(some))).scalars()
        )
        connection.execute(tables.tasks.update().where(tables.tasks.c.id.in_(some)).values(state=CHECK))
    new = {row["task_id"]: dict(row) for row in rows if row["task_id"] not in known}
    if new:
        connection.execute(people.checks.insert(), list(new.values()))


def check_version(version: str) -> None:
    """Raise InputError unless a set of checks can be named so."""
    if not 0 < len(version) <= 40 or not version.isprintable():
        raise InputError(f"checks: found the version {version!r}; expected 1 to 40 characters")


def attempts_at(store: Store, version: str) -> tuple[int, int]:
    """How many attempts at a version of the qualification were passed, and how many were not."""
    said = people.standing.c
    question = select(said.action, func.count()).where(said.by == PROGRAM + version).group_by(said.action)
    with store.connection() as connection:
        n = dict(map(tuple, connection.execute(question)))
    return n.get(QUALIFIED, 0), n.get(FAILED, 0)


def _check_task(task: Task, expected: Mapping[str, Any], batch: str) -> Task:
    check_expected(task.kind, expected, len(task.response_ids))
    return dataclasses.replace(task, batch=batch, audience="annotator", reserved_for=None, overlap=1, stop_after=0)


def _row(
    task: Task, purpose: str, version: str, expected: Mapping[str, Any] | None, repeats: str | None = None
) -> dict[str, Any]:
    check_version(version)
    right = None if expected is None else json_text(dict(expected))
    row = {"task_id": task.id, "purpose": purpose, "expected": right, "repeats": repeats}
    return row | {"version": version, "retired_at": None}
