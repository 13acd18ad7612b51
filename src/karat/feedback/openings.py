"""Which tasks have room for another answer: said in each task's own row, so that nobody counts leases of full ones.

Whoever changes the leases or answers of a task locks its row first and settles it afterwards. Knows assignments,
answers and overlap; knows nothing about who is offered what.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, select

from karat.feedback.prepared import Prepared
from karat.feedback.schema import annotators, assignments, judgements, tasks
from karat.feedback.work.matching import agreed

CHUNK = 400
"""Identifiers in one IN list: below the limit of every engine, and of every SQLite build (999)."""

OPEN, HELD, CLOSED, PULLED, CHECK, LATER = "open", "held", "closed", "pulled", "check", "later"
"""States of a task: needs answers, all of them being given, has them, taken out, silent check; not offered to anybody
yet, though raters who are named for it (simulated ones) may answer.

A task that was held is never open again: given back, it is held with a place that is free. So what is open has been so since
it was queued, and a rater who has passed it by needs not look at it again (`waiting`)."""

LAPSED = 0.0
"""Expiry of a lease whose place somebody else was given: no heartbeat brings it back, its answer is late. As `free_at` of a
held task: it has room now."""

QUEUE_LOCK = 0x6B61726175
"""Names the lock under which one transaction at a time queues tasks on PostgreSQL: "karau" in ASCII."""


Asked = tuple[str, ...]
"""What a task asks, whatever its batch and the order of its responses: prompt, kind and responses."""


Order = tuple[int, ...]
"""Identity indices of responses in the order in which they are shown."""


def asked_of(row: Any) -> Asked:
    """What a row with these columns of a task asks: equal for two tasks that a rater would take for one."""
    return (row.prompt_id, row.kind, *sorted(json.loads(row.response_ids)))


def needs_answers() -> sa.ColumnElement[bool]:
    """That a task is in the queue and has fewer answers than it wants, whoever may be giving them."""
    return sa.and_(tasks.c.state.in_((OPEN, HELD)), tasks.c.n_answers < tasks.c.overlap)


def is_live(now: Any) -> sa.ColumnElement[bool]:
    """That an assignment is a lease that has not run out; now: seconds since the epoch, or their parameter."""
    return sa.and_(assignments.c.state == "leased", assignments.c.expires_at > now)


def open_to(who: sa.BindParameter[str]) -> sa.ColumnElement[bool]:
    """That a task is reserved for nobody else, in words whose selectivity PostgreSQL estimates rightly; SQLite would
    leave the index of states for them."""
    return sa.or_(tasks.c.reserved_for.is_(None), tasks.c.reserved_for == who)


@dataclass(frozen=True)
class State:
    """How one rater stands to one task."""

    state: str
    """leased, submitted or skipped."""
    lease_id: str | None
    """Name of her newest lease on it."""
    n_leases: int
    """How many she has had."""
    expires_at: float | None
    """End of the newest; None once it was answered or skipped."""
    shown_order: str | None
    """Column of the assignment: in which order she sees the responses."""

    def live(self, now: float) -> bool:
        """True = her lease has not run out."""
        return self.state == "leased" and (self.expires_at or LAPSED) > now


_STATES = select(
    assignments.c.task_id, assignments.c.annotator, assignments.c.state,
    assignments.c.lease_id, assignments.c.n_leases, assignments.c.expires_at, assignments.c.shown_order,
)  # fmt: skip
_OF_TASK = _STATES.where(assignments.c.task_id == bindparam("task"))
_STATES_OF_TASK = Prepared(_OF_TASK)
_STATE_OF_PAIR = Prepared(_OF_TASK.where(assignments.c.annotator == bindparam("who")))
_ROW = Prepared(select(tasks).where(tasks.c.id == bindparam("task")).with_for_update())
_SET_STATE = (
    tasks.update()
    .where(tasks.c.id == bindparam("at_task"))
    .values(state=bindparam("new_state"), free_at=bindparam("new_free_at"))
)
_SET_ONE_STATE = Prepared(_SET_STATE)
_SET_ANSWERED = Prepared(_SET_STATE.values(n_answers=bindparam("new_n")))


def settle(connection: Connection, task_ids: Sequence[str], *, now: float) -> None:
    """Write down of each task whether it needs answers, is fully held, or has all it needs.

    A task is closed when it has as many answers as its overlap, or `stop_after` of them and all of them say the same
    (`matching.gist`; a rater who gave no answer is not of the same opinion). Stopping early saves answers where they
    would change nothing, and makes plain agreement over such tasks too high: report it over the others.
    """
    rows = {key: row for key, row in locked_rows(connection, task_ids).items() if row.state in (OPEN, HELD, CLOSED)}
    wanting = sorted(key for key, row in rows.items() if row.n_answers < row.overlap)
    ends: dict[str, list[float]] = {key: [] for key in wanting}
    for (key, _), state in states_of(connection, wanting).items():
        if state.live(now):
            ends[key].append(state.expires_at or LAPSED)
    changes: list[dict] = []
    for key, row in rows.items():
        wanted, free_at = _opening(connection, row, row.n_answers, ends.get(key, ()))
        if (wanted, free_at) != (row.state, row.free_at):
            changes.append({"at_task": key, "new_state": wanted, "new_free_at": free_at})
    if changes:
        connection.execute(_SET_STATE, changes)


def settle_answered(connection: Connection, row: Any, annotator: str, *, counts: bool, now: float) -> None:
    """`settle` one task whose row is locked, after one rater's answer to it and before her assignment says so.

    Args:
        counts: True = it is her first answer to it.
    """
    n_answers = row.n_answers + counts
    state, free_at = row.state, row.free_at
    if state in (OPEN, HELD, CLOSED):
        ends: list[float] = []
        if n_answers < row.overlap:
            states = states_of(connection, [row.id])
            ends = [
                each.expires_at or LAPSED for (_, who), each in states.items() if who != annotator and each.live(now)
            ]
        state, free_at = _opening(connection, row, n_answers, ends)
    if (n_answers, state, free_at) != (row.n_answers, row.state, row.free_at):
        _SET_ANSWERED.run(connection, at_task=row.id, new_n=n_answers, new_state=state, new_free_at=free_at)


def _opening(connection: Connection, row: Any, n_answers: int, ends: Sequence[float]) -> tuple[str, float]:
    """State and free_at of a task with so many answers, and live leases that end at these moments."""
    if n_answers >= row.overlap or _stops_early(connection, row, n_answers):
        return CLOSED, row.free_at
    if n_answers + len(ends) >= row.overlap:
        return HELD, min(ends)
    return (OPEN if row.state == OPEN else HELD), LAPSED


def open_tasks(connection: Connection, task_ids: Sequence[str]) -> None:
    """Offer tasks to everybody as if they had just been queued; `settle` comes afterwards."""
    for start in range(0, len(task_ids), CHUNK):
        some = tasks.c.id.in_(task_ids[start : start + CHUNK])
        connection.execute(tasks.update().where(some).values(state=OPEN, free_at=LAPSED))
        first = connection.execute(select(sa.func.min(tasks.c.seq)).where(some)).scalar() or 0
        # whoever has passed them by has to come back
        connection.execute(annotators.update().where(annotators.c.done_to >= first).values(done_to=first - 1))


def lock_queue(connection: Connection) -> None:
    """Let tasks be queued by one transaction after another, so that whoever sees one sees all before it."""
    if connection.dialect.name != "sqlite":  # which has one writer anyhow
        connection.execute(select(sa.func.pg_advisory_xact_lock(QUEUE_LOCK)))


def set_state(connection: Connection, task_id: str, state: str, free_at: float) -> None:
    """Write down that one task is open, held (until free_at at the earliest) or closed; its row is locked."""
    _SET_ONE_STATE.run(connection, at_task=task_id, new_state=state, new_free_at=free_at)


def _stops_early(connection: Connection, row: Any, n_answers: int) -> bool:
    if row.stop_after == 0 or n_answers < row.stop_after:
        return False
    question = select(judgements.c.annotator, judgements.c.value).where(judgements.c.task_id == row.id)
    newest = {given.annotator: given.value for given in connection.execute(question.order_by(judgements.c.seq))}
    return agreed(row.kind, [json.loads(value) for value in newest.values()], row.stop_after)


def locked_rows(connection: Connection, task_ids: Sequence[str]) -> dict[str, Any]:
    """Rows of tasks by id, locked in one order everywhere, so that two transactions never wait for each other."""
    if len(task_ids) == 1:
        return {row.id: row for row in _ROW.all(connection, task=task_ids[0])}
    question = select(tasks).order_by(tasks.c.id).with_for_update()
    return {row.id: row for row in rows_in(connection, question, tasks.c.id, sorted(task_ids))}


def states_of(connection: Connection, task_ids: Sequence[str]) -> dict[tuple[str, str], State]:
    """Every assignment of these tasks, by (task, rater)."""
    if len(task_ids) == 1:
        rows: Iterable[Any] = _STATES_OF_TASK.all(connection, task=task_ids[0])
    else:
        rows = rows_in(connection, _STATES, assignments.c.task_id, task_ids)
    return {(row.task_id, row.annotator): state_of(row) for row in rows}


def states_of_pairs(connection: Connection, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], State]:
    """The assignments of (task, rater) pairs, and perhaps more of the same tasks."""
    if len(pairs) > 1:
        return states_of(connection, sorted({task_id for task_id, _ in pairs}))
    [(task_id, annotator)] = pairs
    row = _STATE_OF_PAIR.first(connection, task=task_id, who=annotator)
    return {} if row is None else {(task_id, annotator): state_of(row)}


def state_of(row: Any) -> State:
    """The state in a row with the columns of an assignment."""
    return State(row.state, row.lease_id, row.n_leases, row.expires_at, row.shown_order)


def rows_in(connection: Connection, question: sa.Select, column: sa.Column, keys: Sequence[str]) -> Iterable[sa.Row]:
    """What a question finds where a column has one of these values, however many there are."""
    for start in range(0, len(keys), CHUNK):
        yield from connection.execute(question.where(column.in_(keys[start : start + CHUNK])))
