"""What a rater has entered and not yet submitted, and what she submitted lately and may still change.

A change is a new judgement that supersedes the old one (`Judgement.supersedes`); sealed ones are changed no more.
Knows drafts as JSON; knows nothing about what the fields of a page mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, select

from karat.errors import InputError, LeaseError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.prepared import Prepared
from karat.feedback.schema import StoredJudgement, stored_judgement, task_of
from karat.feedback.store import Store
from karat.feedback.submission import judgement_question
from karat.feedback.upserts import put
from karat.identity import canonical_json
from karat.records import Task

MOST_BYTES = 400_000
"""Size of one draft's JSON."""


_DRAFT = Prepared(
    select(people.drafts).where(
        people.drafts.c.task_id == bindparam("task"), people.drafts.c.annotator == bindparam("who")
    )
)


@dataclass(frozen=True)
class Draft:
    """What a rater has entered so far."""

    task_id: str
    """Task.id, for the server only."""
    annotator: str
    """Annotator.id."""
    body: Mapping[str, Any]
    """The fields as the page sent them."""
    saved_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Submitted:
    """One of a rater's own last submissions."""

    record: StoredJudgement
    """The judgement; its id is what a correction supersedes."""
    task: Task
    """What was asked."""
    lease_id: str | None
    """Opaque id of the page; None where it was submitted without a lease."""
    sealed: bool
    """True = it is in a sealed batch and can be changed no more."""


def save_draft(store: Store, task_id: str, annotator: str, body: Mapping[str, Any], *, now: float) -> Draft:
    """Keep what a rater has entered; the newest draft of a task replaces the one before.

    Raises: LeaseError where she never held a lease on the task; InputError for a draft that is too large or no JSON.
    """
    text = canonical_json(dict(body)).decode()
    if len(text.encode()) > MOST_BYTES:
        raise InputError(f"draft: found {len(text.encode())} bytes; expected at most {MOST_BYTES}")
    row = {"task_id": task_id, "annotator": annotator, "body": text, "saved_at": now}

    def write(connection: Connection) -> None:
        columns = tables.assignments.c
        held = select(columns.state).where(columns.task_id == task_id, columns.annotator == annotator)
        if connection.execute(held).first() is None:
            raise LeaseError(f"draft: found no lease of {annotator!r} on that task; ask for the next task")
        put(connection, people.drafts, row)

    store.write(write)
    return Draft(task_id, annotator, json.loads(text), now)


def draft(store: Store, task_id: str, annotator: str) -> Draft | None:
    """The draft of this rater for this task; None where there is none."""
    with store.connection() as connection:
        return read_draft(connection, task_id, annotator)


def read_draft(connection: Connection, task_id: str, annotator: str) -> Draft | None:
    """`draft` inside a transaction."""
    row = _DRAFT.first(connection, task=task_id, who=annotator)
    return None if row is None else Draft(row.task_id, row.annotator, json.loads(row.body), row.saved_at)


def drop_draft(store: Store, task_id: str, annotator: str) -> None:
    """Forget a draft: after its submission, or because the rater wants to."""
    here = (people.drafts.c.task_id == task_id) & (people.drafts.c.annotator == annotator)
    store.write(lambda connection: connection.execute(people.drafts.delete().where(here)))


def history(store: Store, annotator: str, n: int, *, sealed: bool = False) -> list[Submitted]:
    """A rater's last n submissions, newest first, without those that she superseded.

    Args:
        sealed: True = also those that can be changed no more; without it, undo may take any that is returned.
    """
    later = tables.judgements.alias("later")
    replaced = (
        select(later.c.id)
        .where(later.c.supersedes == tables.judgements.c.id)
        .where(later.c.task_id == tables.judgements.c.task_id, later.c.annotator == annotator)
    )
    question = (
        judgement_question()
        .add_columns(tables.assignments.c.lease_id)
        .outerjoin(
            tables.assignments,
            (tables.assignments.c.task_id == tables.judgements.c.task_id)
            & (tables.assignments.c.annotator == annotator),
        )
        .where(tables.judgements.c.annotator == annotator, ~replaced.exists())
        .order_by(tables.judgements.c.seq.desc())
        .limit(n)
    )
    with store.connection() as connection:
        last = connection.execute(select(sa.func.max(people.seals.c.last_judgement))).scalar() or 0
        rows = [row for row in connection.execute(question) if sealed or row.seq > last]
        wanted = tables.tasks.c.id.in_([row.task_id for row in rows])
        tasks = {row.id: task_of(row) for row in connection.execute(select(tables.tasks).where(wanted))}
    return [Submitted(stored_judgement(row), tasks[row.task_id], row.lease_id, row.seq <= last) for row in rows]
