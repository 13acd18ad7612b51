"""Who answers what, and until when: leases on tasks, inside a transaction that somebody else has opened.

A task may be held by as many raters as it still needs answers. A lease runs out; the task is then offered again, and
the answer of the first rater is still taken when it comes, marked late. Knows assignments; knows nothing about what
a judgement says, about clocks (the time is an argument) or about how a transaction begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection, and_, func, select

from karat.errors import LeaseError, StoreError
from karat.feedback.schema import assignments, task_of, tasks
from karat.identity import content_id
from karat.records import Task

CHUNK = 400
"""Identifiers in one IN list: below the limit of every engine, and of every SQLite build (999)."""


@dataclass(frozen=True)
class Lease:
    """The right of one rater to answer one task until a moment."""

    id: str
    """Names this lease; a renewed one keeps its name, a new one after expiry gets another."""
    task: Task
    """What is asked."""
    annotator: str
    """Annotator.id of the holder."""
    expires_at: float
    """Seconds since the epoch, UTC."""


@dataclass(frozen=True)
class _State:
    state: str
    lease_id: str | None
    n_leases: int
    expires_at: float | None


def next_lease(
    connection: Connection, annotator: str, *, now: float, lease_s: float, batch: str | None
) -> Lease | None:
    """The rater's own live lease, else a new one on the first task that needs answers, else None."""
    mine = assignments.alias("mine")
    held = (
        select(tasks)
        .join(mine, mine.c.task_id == tasks.c.id)
        .where(mine.c.annotator == annotator, mine.c.state == "leased", mine.c.expires_at > now)
    )
    others = (
        select(func.count())
        .select_from(assignments)
        .where(
            assignments.c.task_id == tasks.c.id,
            assignments.c.annotator != annotator,
            assignments.c.state == "leased",
            assignments.c.expires_at > now,
        )
        .scalar_subquery()
    )
    answered = (
        select(mine.c.task_id)
        .where(mine.c.task_id == tasks.c.id, mine.c.annotator == annotator, mine.c.state.in_(("submitted", "skipped")))
        .exists()
    )
    open_ = select(tasks).where(
        tasks.c.n_answers < tasks.c.overlap, ~answered, tasks.c.n_answers + others < tasks.c.overlap
    )
    for question in (held, open_):
        if batch is not None:
            question = question.where(tasks.c.batch == batch)
        # SKIP LOCKED lets raters pass each other on PostgreSQL; SQLite has one writer and ignores it
        question = question.order_by(tasks.c.seq).limit(1).with_for_update(of=tasks, skip_locked=True)
        row = connection.execute(question).first()
        if row is not None:
            return _grant(connection, [(row, annotator)], now=now, lease_s=lease_s)[0]
    return None


def lease_pairs(
    connection: Connection, pairs: Sequence[tuple[str, str]], *, now: float, lease_s: float
) -> list[Lease | None]:
    """Leases on named (task, rater) pairs: None where the task is full or this rater has answered or skipped it.

    Raises: StoreError for a task that the store does not know.
    """
    task_ids = sorted({task_id for task_id, _ in pairs})
    rows = {row.id: row for row in _rows_in(connection, select(tasks), tasks.c.id, task_ids)}
    for task_id in task_ids:
        if task_id not in rows:
            raise StoreError(f"lease: found the unknown task {task_id}; add the task before it is leased")
    states = states_of(connection, task_ids)
    holders: dict[str, set[str]] = {task_id: set() for task_id in task_ids}
    for (task_id, annotator), state in states.items():
        if state.state == "leased" and (state.expires_at or 0) > now:
            holders[task_id].add(annotator)
    granted: list[tuple[int, tuple[sa.Row, str]]] = []
    for i, (task_id, annotator) in enumerate(pairs):
        state = states.get((task_id, annotator))
        if state is not None and state.state != "leased":
            continue
        row, others = rows[task_id], holders[task_id] - {annotator}
        if row.n_answers + len(others) < row.overlap:
            holders[task_id].add(annotator)
            granted.append((i, (row, annotator)))
    leases: list[Lease | None] = [None] * len(pairs)
    made = _grant(connection, [pair for _, pair in granted], now=now, lease_s=lease_s)
    for (i, _), lease in zip(granted, made, strict=True):
        leases[i] = lease
    return leases


def extend_lease(connection: Connection, lease_id: str, annotator: str, *, now: float, lease_s: float) -> float:
    """The new expiry of a live lease. Raises: LeaseError where it is unknown, expired or somebody else's."""
    expires_at = now + lease_s
    here = and_(
        assignments.c.lease_id == lease_id,
        assignments.c.annotator == annotator,
        assignments.c.state == "leased",
        assignments.c.expires_at > now,
    )
    if connection.execute(assignments.update().where(here).values(expires_at=expires_at)).rowcount != 1:
        raise LeaseError(f"lease {lease_id}: found no live lease of {annotator!r} by that name; ask for the next task")
    return expires_at


def skip_lease(connection: Connection, lease_id: str, annotator: str, *, reason: str) -> None:
    """Give a task back for good, with the reason. Raises: LeaseError where the lease is not this rater's."""
    here = and_(
        assignments.c.lease_id == lease_id, assignments.c.annotator == annotator, assignments.c.state == "leased"
    )
    change = assignments.update().where(here).values(state="skipped", skip_reason=reason, expires_at=None)
    if connection.execute(change).rowcount != 1:
        raise LeaseError(f"lease {lease_id}: found no open lease of {annotator!r} by that name; nothing was skipped")


def close_leases(connection: Connection, pairs: Sequence[tuple[str, str]], *, now: float) -> list[bool]:
    """Mark (task, rater) pairs as answered; True = that pair's lease had expired.

    The first answer of a rater counts towards the task's overlap; a correction does not count again.
    """
    states = states_of(connection, sorted({task_id for task_id, _ in pairs}))
    late: list[bool] = []
    new: list[dict] = []
    known: list[dict] = []
    n_answers: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for task_id, annotator in pairs:
        state = states.get((task_id, annotator))
        leased = state is not None and state.state == "leased" and state.expires_at is not None
        late.append(leased and state.expires_at <= now)  # type: ignore[union-attr, operator]
        if (task_id, annotator) in seen or (state is not None and state.state == "submitted"):
            continue
        seen.add((task_id, annotator))
        n_answers[task_id] = n_answers.get(task_id, 0) + 1
        if state is None:
            new.append(
                {"task_id": task_id, "annotator": annotator, "state": "submitted", "n_leases": 0}
                | {"lease_id": None, "expires_at": None, "skip_reason": None}
            )
        else:
            known.append({"at_task": task_id, "by": annotator})
    if new:
        connection.execute(assignments.insert(), new)
    if known:
        here = and_(assignments.c.task_id == sa.bindparam("at_task"), assignments.c.annotator == sa.bindparam("by"))
        connection.execute(assignments.update().where(here).values(state="submitted", expires_at=None), known)
    if n_answers:
        connection.execute(
            tasks.update()
            .where(tasks.c.id == sa.bindparam("at_task"))
            .values(n_answers=tasks.c.n_answers + sa.bindparam("n")),
            [{"at_task": task_id, "n": n} for task_id, n in n_answers.items()],
        )
    return late


def states_of(connection: Connection, task_ids: Sequence[str]) -> dict[tuple[str, str], _State]:
    """Every assignment of these tasks, by (task, rater)."""
    columns = assignments.c
    question = select(
        columns.task_id, columns.annotator, columns.state, columns.lease_id, columns.n_leases, columns.expires_at
    )
    return {
        (row.task_id, row.annotator): _State(row.state, row.lease_id, row.n_leases, row.expires_at)
        for row in _rows_in(connection, question, columns.task_id, task_ids)
    }


def _rows_in(connection: Connection, question: sa.Select, column: sa.Column, keys: Sequence[str]) -> Iterable[sa.Row]:
    for start in range(0, len(keys), CHUNK):
        yield from connection.execute(question.where(column.in_(keys[start : start + CHUNK])))


def _grant(connection: Connection, wanted: Sequence[tuple[sa.Row, str]], *, now: float, lease_s: float) -> list[Lease]:
    states = states_of(connection, sorted({row.id for row, _ in wanted}))
    new: list[dict] = []
    known: list[dict] = []
    leases: list[Lease] = []
    for row, annotator in wanted:
        state = states.get((row.id, annotator))
        live = state is not None and state.expires_at is not None and state.expires_at > now
        n_leases = 1 if state is None else state.n_leases + (0 if live else 1)
        lease_id = content_id("lease", [row.id, annotator, n_leases])
        leases.append(Lease(lease_id, task_of(row), annotator, now + lease_s))
        if state is None:
            new.append(
                {"task_id": row.id, "annotator": annotator, "state": "leased", "lease_id": lease_id}
                | {"n_leases": 1, "expires_at": now + lease_s, "skip_reason": None}
            )
        else:
            known.append({"at_task": row.id, "by": annotator, "lease": lease_id, "n": n_leases, "until": now + lease_s})
    if new:
        connection.execute(assignments.insert(), new)
    if known:
        here = and_(assignments.c.task_id == sa.bindparam("at_task"), assignments.c.annotator == sa.bindparam("by"))
        change = assignments.update().where(here)
        change = change.values(
            lease_id=sa.bindparam("lease"), n_leases=sa.bindparam("n"), expires_at=sa.bindparam("until")
        )
        connection.execute(change, known)
    return leases
