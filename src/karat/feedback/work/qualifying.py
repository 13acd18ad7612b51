"""Failed qualifications, for a person to review: what was asked, what was answered, and what she decides.

A program counts right answers and hands out nothing further; only a person ends or goes on with anybody's work. She gives
another attempt, admits the rater, or lets the result stand, with a reason that the rater reads; the rater can ask for it.
Every step is an event that is never changed. Knows checks and standing; knows nothing about pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from karat.errors import InputError, StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.documents import QUALIFICATION, Document, document, read_document
from karat.feedback.people.standing import (
    ADMITTED,
    FAILED,
    KEPT,
    PROGRAM,
    RETRY,
    REVIEW,
    Standing,
    read_standing,
    words_of,
    write_event,
)
from karat.feedback.schema import task_of
from karat.feedback.store import Store
from karat.feedback.work.check_answers import QUALIFY, current_answers
from karat.feedback.work.checks import items_of, write_further_attempt
from karat.feedback.work.matching import is_right
from karat.records import Task

DECISIONS = (RETRY, ADMITTED, KEPT)
"""What a person may decide; the actions of the events."""


@dataclass(frozen=True)
class FailedTest:
    """A rater whom the qualification in force keeps from work."""

    annotator: str
    """Annotator.id."""
    standing: Standing
    """How she stands, with all events."""
    version: str
    """Of the qualification."""

    @property
    def asks(self) -> bool:
        """True = she has asked for a review, and nobody has decided since."""
        about = [one.action for one in self.standing.events if one.action in (REVIEW, *DECISIONS)]
        return about[-1:] == [REVIEW]

    @property
    def waits(self) -> bool:
        """True = she can do nothing more, and nobody has let the result stand since she failed."""
        about = [one.action for one in self.standing.events if one.action in (FAILED, REVIEW, *DECISIONS)]
        return not self.standing.attempts_left and about[-1:] != [KEPT]


@dataclass(frozen=True)
class AttemptAnswer:
    """One item of an attempt and what the rater answered."""

    attempt: int
    """Which attempt, 1 for the first."""
    task: Task
    """What was asked."""
    expected: Mapping[str, Any]
    """The right answer."""
    value: Mapping[str, Any] | None
    """Hers, in identity order; None = skipped, or not answered yet."""
    shown_order: tuple[int, ...]
    """Identity indices in the order in which she saw the responses; as stored where she did not answer."""
    right: bool
    """Whether hers counts as right."""


def failed_tests(store: Store) -> list[FailedTest]:
    """Raters with a failed attempt at the qualification in force who have not passed it nor been admitted, those who ask
    for a review first, then those who wait for somebody to look, then who has failed longest ago.
    """
    test = document(store, QUALIFICATION)
    if test is None:
        return []
    said = people.standing.c
    question = select(said.annotator).where(said.action == FAILED, said.by == PROGRAM + test.version).distinct()
    with store.connection() as connection:
        names = sorted(connection.execute(question).scalars())
        found = [FailedTest(name, read_standing(connection, name), test.version) for name in names]
    waiting = [one for one in found if not one.standing.qualified]
    return sorted(waiting, key=lambda one: (not one.asks, not one.waits, one.standing.events[-1].at, one.annotator))


def attempt_answers(store: Store, annotator: str) -> list[AttemptAnswer]:
    """Everything that a rater was asked in the attempts at the qualification in force, attempt after attempt."""
    with store.connection() as connection:
        test, standing = _in_force(connection), read_standing(connection, annotator)
        given = {one.task_id: one for one in current_answers(connection, QUALIFY, annotator)}
        found = []
        for attempt in range(1, standing.attempts_failed + min(standing.attempts_left, 1) + 1):
            ids = items_of(connection, test, attempt)
            asked = select(tables.tasks, people.checks.c.expected).join(
                people.checks, people.checks.c.task_id == tables.tasks.c.id
            )
            rows = {row.id: row for row in connection.execute(asked.where(tables.tasks.c.id.in_(ids)))}
            if attempt > standing.attempts_failed and not any(one in given for one in ids):
                continue  # not begun
            for task_id in ids:
                row, answer = rows[task_id], given.get(task_id)
                expected, task = json.loads(row.expected), task_of(row)
                right = answer is not None and is_right(task.kind, expected, answer.value)
                order = answer.shown_order if answer is not None else ()
                found.append(
                    AttemptAnswer(attempt, task, expected, answer.value if answer else None,
                               order or tuple(range(len(task.response_ids))), right)
                )  # fmt: skip
    return found


def decide(store: Store, annotator: str, decision: str, *, reason: str, by: str, now: float) -> None:
    """What a person decides on a failed qualification: RETRY, ADMITTED or KEPT.

    RETRY gives one more attempt, which asks all items again; ADMITTED lets her work as if she had passed the version in
    force; KEPT changes nothing and tells her why. She reads the reason.

    Args:
        by: Account.id of the person.
    Raises: StoreError where she has not failed, or RETRY is given to somebody who has an attempt left; InputError for
        another decision or no reason.
    """
    if decision not in DECISIONS:
        raise InputError(f"qualification: found the decision {decision[:40]!r}; expected one of {', '.join(DECISIONS)}")

    def write(connection: Connection) -> None:
        standing = read_standing(connection, annotator)
        if standing.qualified or not standing.attempts_failed:
            raise StoreError(f"{annotator!r} has no failed qualification; there is nothing to decide")
        if decision == RETRY and standing.attempts_left:
            raise StoreError(f"{annotator!r} has an attempt left already; she finds it under Work")
        test, attempt = _in_force(connection), standing.attempts_failed + 1
        if decision == RETRY and attempt > len(test.body["items"]):
            write_further_attempt(connection, test, attempt)
        write_event(connection, annotator, decision, words_of("reason", reason), by=by, now=now)

    store.write(write)


def _in_force(connection: Connection) -> Document:
    test = read_document(connection, QUALIFICATION)
    if test is None:
        raise StoreError("found no qualification in force; there is nothing to review")
    return test
