"""Who answers what, and until when: leases on tasks, inside a transaction that somebody else has opened.

A task may be held by as many raters as it still needs answers. A lease runs out; the task is then offered again, and
the answer of the first rater is still taken when it comes, marked late. Knows assignments; knows nothing about what
a judgement says, about clocks (the time is an argument) or about how a transaction begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, and_, bindparam, select

from karat.errors import LeaseError, StoreError
from karat.feedback.openings import (
    CHECK,
    CLOSED,
    HELD,
    LAPSED,
    OPEN,
    PULLED,
    Order,
    State,
    is_live,
    locked_rows,
    set_state,
    states_of,
    states_of_pairs,
)
from karat.feedback.openings import CHUNK as CHUNK
from karat.feedback.openings import settle as settle
from karat.feedback.prepared import Prepared
from karat.feedback.schema import annotators, assignments, json_text, task_of, tasks
from karat.feedback.waiting import peek_open
from karat.identity import content_id
from karat.records import Judgement, Task

Draw = Callable[[Connection, Any, str, Sequence[Order]], Order]
"""draw(connection, row of the task, annotator, orders of those who have answered or hold it) → the order for her."""

_NEW = assignments.insert()
_NEW_ONE = Prepared(_NEW)
_HERE = and_(assignments.c.task_id == bindparam("at_task"), assignments.c.annotator == bindparam("by"))
_AGAIN = (
    assignments.update()
    .where(_HERE)
    .values(lease_id=bindparam("lease"), n_leases=bindparam("n"), expires_at=bindparam("until"))
    .values(leased_at=sa.case((bindparam("live", type_=sa.Boolean), assignments.c.leased_at), else_=bindparam("at")))
)
_AGAIN_ONE = Prepared(_AGAIN)
_LAPSE = Prepared(
    assignments.update()
    .where(assignments.c.task_id == bindparam("task"), assignments.c.annotator != bindparam("who"))
    .where(assignments.c.state == "leased", assignments.c.expires_at <= bindparam("now"))
    .values(expires_at=LAPSED)
)
_EXTEND = Prepared(
    assignments.update()
    .where(assignments.c.lease_id == bindparam("lease"), assignments.c.annotator == bindparam("by"))
    .where(is_live(bindparam("now")))
    .values(expires_at=bindparam("until"))
)
_SUBMIT = assignments.update().where(_HERE).values(state="submitted", expires_at=None)
_SUBMIT_ONE = Prepared(_SUBMIT)
_SUBMIT_AS_SHOWN = _SUBMIT.values(shown_order=sa.func.coalesce(bindparam("order"), assignments.c.shown_order))
_COUNT = tasks.update().where(tasks.c.id == bindparam("at_task")).values(n_answers=tasks.c.n_answers + bindparam("n"))
_HELD = (
    select(tasks, assignments.c.lease_id, assignments.c.expires_at, assignments.c.shown_order)
    .join(assignments, assignments.c.task_id == tasks.c.id)
    .where(assignments.c.annotator == bindparam("who"), is_live(bindparam("now")))
    .order_by(tasks.c.seq)
    .limit(1)
)
_HELD_ONE = Prepared(_HELD)
_LOCK_RATER = Prepared(
    select(annotators.c.id).where(annotators.c.id == bindparam("who")).with_for_update(key_share=True)
)


@dataclass(frozen=True)
class Lease:
    """The right of one rater to answer one task until a moment."""

    id: str
    """Names this lease, and all that a rater's page may know of the task; a renewed one keeps it, a new one does not."""
    task: Task
    """What is asked."""
    annotator: str
    """Annotator.id of the holder."""
    expires_at: float
    """Seconds since the epoch, UTC."""
    shown_order: str | None = None
    """Column of the assignment: identity indices in the order shown, JSON; None = none was drawn."""


def next_lease(
    connection: Connection, annotator: str, *, now: float, lease_s: float, batch: str | None
) -> Lease | None:
    """The rater's own live lease, else a new one on the first task that needs answers, else None."""
    lock_rater(connection, annotator)
    row = held_task(connection, annotator, now=now, batch=batch)
    if row is not None:
        return renew(connection, row, annotator, now=now, lease_s=lease_s)
    return first_open(connection, annotator, now=now, lease_s=lease_s, batch=batch)


def lock_rater(connection: Connection, annotator: str) -> None:
    """Let one rater's requests pass one after another, so that two tabs do not take two tasks."""
    if connection.dialect.name != "sqlite":  # which has one writer anyhow
        _LOCK_RATER.first(connection, who=annotator)


def held_task(connection: Connection, annotator: str, *, now: float, batch: str | None = None) -> Any:
    """The row of the task on which this rater has a live lease, joined with its lease_id; None without one."""
    if batch is None:
        return _HELD_ONE.first(connection, who=annotator, now=now)
    return connection.execute(_HELD.where(tasks.c.batch == batch), {"who": annotator, "now": now}).first()


def renew(connection: Connection, row: Any, annotator: str, *, now: float, lease_s: float) -> Lease:
    """The lease in a row of `held_task`, extended."""
    until = extend_lease(connection, row.lease_id, annotator, now=now, lease_s=lease_s)
    return Lease(row.lease_id, task_of(row), annotator, until, row.shown_order)


def first_open(
    connection: Connection, annotator: str, *, now: float, lease_s: float, draw: Draw | None = None, **queue: Any
) -> Lease | None:
    """A lease on a task whose last lease ran out, else on the first task by seq that needs answers, else None.

    Args:
        draw: of `grant`.    queue: `audience`, `batch`, `barred`, `met`, `done_to` and `lapsed` of `waiting.peek_open`.
    """
    while (row := peek_open(connection, annotator, now=now, **queue)) is not None:
        if lease := grant(connection, row, annotator, now=now, lease_s=lease_s, draw=draw):
            return lease
        settle(connection, [row.id], now=now)  # its leases were extended: not free after all
    return None


def grant(
    connection: Connection, row: Any, annotator: str, *, now: float, lease_s: float, draw: Draw | None = None
) -> Lease | None:
    """A lease on a task whose row is locked; None where it has no room. A silent check has room for everybody.

    Args:
        draw: in which order she sees the responses; it is kept with her assignment, and stays when it is leased again.
            None = whoever asks decides about that.
    """
    until = now + lease_s
    if row.state == CHECK:
        mine = states_of_pairs(connection, [(row.id, annotator)]).get((row.id, annotator))
        shown = _shown_order(connection, draw, row, annotator, mine, ())
        return _write_lease(connection, row, annotator, mine, shown, now=now, until=until)
    states = states_of(connection, [row.id])
    if any(each.state == "leased" and not each.live(now) and who != annotator for (_, who), each in states.items()):
        _LAPSE.run(connection, task=row.id, who=annotator, now=now)
        states = states_of(connection, [row.id])
    mine = states.pop((row.id, annotator), None)
    live = [each for each in states.values() if each.live(now)]
    ends = [each.expires_at or LAPSED for each in live]
    if row.n_answers + len(ends) >= row.overlap:
        return None
    answered = [each for each in states.values() if each.state == "submitted"]
    shown = _shown_order(connection, draw, row, annotator, mine, [*answered, *live])
    lease = _write_lease(connection, row, annotator, mine, shown, now=now, until=until)
    if row.n_answers + len(ends) + 1 >= row.overlap:
        set_state(connection, row.id, HELD, min([*ends, lease.expires_at]))
    elif row.state != OPEN and row.free_at != LAPSED:
        set_state(connection, row.id, HELD, LAPSED)
    return lease


def _shown_order(
    connection: Connection, draw: Draw | None, row: Any, annotator: str, mine: State | None, others: Iterable[State]
) -> str | None:
    """The column of the order that a rater sees: the one she had, since its page may still be open, or a new one."""
    if mine is not None or draw is None:
        return None if mine is None else mine.shown_order
    known = [tuple(json.loads(each.shown_order)) for each in others if each.shown_order is not None]
    return json_text(draw(connection, row, annotator, known))


def _write_lease(
    connection: Connection, row: Any, annotator: str, mine: State | None, shown: str | None, *, now: float, until: float
) -> Lease:
    n_leases = 1 if mine is None else mine.n_leases + (0 if mine.live(now) else 1)
    lease = Lease(content_id("lease", [row.id, annotator, n_leases]), task_of(row), annotator, until, shown)
    if mine is None:
        asked = {
            "task_id": row.id,
            "annotator": annotator,
            "state": "leased",
            "skip_reason": None,
            "shown_order": shown,
        }
        times = {"leased_at": now, "expires_at": lease.expires_at}
        _NEW_ONE.run(connection, **asked, **times, lease_id=lease.id, n_leases=n_leases)
    else:
        names = {"at_task": row.id, "by": annotator, "lease": lease.id, "n": n_leases}
        _AGAIN_ONE.run(connection, **names, until=lease.expires_at, live=mine.live(now), at=now)
    return lease


def lease_pairs(
    connection: Connection, pairs: Sequence[tuple[str, str]], *, now: float, lease_s: float
) -> list[Lease | None]:
    """Leases on named (task, rater) pairs: None where the task is full, closed or pulled, or this rater has answered
    or skipped it.

    Raises: StoreError for a task that the store does not know.
    """
    task_ids = sorted({task_id for task_id, _ in pairs})
    rows = locked_rows(connection, task_ids)
    for task_id in task_ids:
        if task_id not in rows:
            raise StoreError(f"lease: found the unknown task {task_id}; add the task before it is leased")
    states = states_of(connection, task_ids)
    holders: dict[str, set[str]] = {task_id: set() for task_id in task_ids}
    for (task_id, annotator), state in states.items():
        if state.live(now):
            holders[task_id].add(annotator)
    granted: list[tuple[int, tuple[sa.Row, str]]] = []
    for i, (task_id, annotator) in enumerate(pairs):
        state = states.get((task_id, annotator))
        row, others = rows[task_id], holders[task_id] - {annotator}
        if (state is not None and state.state != "leased") or row.state in (CLOSED, PULLED):
            continue
        if row.state == CHECK or row.n_answers + len(others) < row.overlap:
            holders[task_id].add(annotator)
            granted.append((i, (row, annotator)))
    leases: list[Lease | None] = [None] * len(pairs)
    made = _grant_many(connection, [pair for _, pair in granted], states, now=now, lease_s=lease_s)
    for (i, _), lease in zip(granted, made, strict=True):
        leases[i] = lease
    settle(connection, sorted({row.id for _, (row, _) in granted}), now=now)
    return leases


def extend_lease(connection: Connection, lease_id: str, annotator: str, *, now: float, lease_s: float) -> float:
    """The new expiry of a live lease. Raises: LeaseError where it is unknown, expired or somebody else's."""
    expires_at = now + lease_s
    if _EXTEND.run(connection, lease=lease_id, by=annotator, now=now, until=expires_at) != 1:
        raise LeaseError(f"lease {lease_id}: found no live lease of {annotator!r} by that name; ask for the next task")
    return expires_at


def skip_lease(connection: Connection, lease_id: str, annotator: str, *, reason: str) -> str:
    """Give a task back for good, with the reason. Returns: its Task.id.

    Raises: LeaseError where the lease is not this rater's.
    """
    here = and_(
        assignments.c.lease_id == lease_id, assignments.c.annotator == annotator, assignments.c.state == "leased"
    )
    task_id = connection.execute(select(assignments.c.task_id).where(here)).scalar()
    if task_id is not None:
        locked_rows(connection, [task_id])
    change = assignments.update().where(here).values(state="skipped", skip_reason=reason, expires_at=None)
    if task_id is None or connection.execute(change).rowcount != 1:
        raise LeaseError(f"lease {lease_id}: found no open lease of {annotator!r} by that name; nothing was skipped")
    # room, perhaps: whoever is offered it counts
    connection.execute(tasks.update().where(tasks.c.id == task_id, tasks.c.state == HELD).values(free_at=LAPSED))
    return task_id


def end_leases(connection: Connection, annotator: str, *, now: float, among: Sequence[str] | None = None) -> list[str]:
    """Give a rater's live leases back to the queue; an answer that comes all the same is late.

    Args:
        among: Task.ids of which to give back; None = all.
    Returns: Task.ids.
    """
    columns = assignments.c
    live = (columns.annotator == annotator) & is_live(now)
    if among is not None:
        live &= columns.task_id.in_(among)
    task_ids = sorted(connection.execute(select(columns.task_id).where(live)).scalars())
    if task_ids:
        locked_rows(connection, task_ids)
        connection.execute(assignments.update().where(live).values(expires_at=LAPSED))
        settle(connection, task_ids, now=now)
    return task_ids


def close_leases(connection: Connection, given: Sequence[Judgement], *, now: float) -> list[bool]:
    """Mark the assignments that judgements answer, and in which order they saw the task; True = its lease had expired.

    The first answer of a rater counts towards the task's overlap; a correction does not count again. `settle` comes
    after the answers are written.
    """
    task_ids = sorted({each.task_id for each in given})
    if connection.dialect.name != "sqlite":
        locked_rows(connection, task_ids)
    states = states_of_pairs(connection, [(each.task_id, each.annotator) for each in given])
    late: list[bool] = []
    new: list[dict] = []
    known: list[dict] = []
    n_answers: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for each in given:
        task_id, annotator = each.task_id, each.annotator
        order = json_text(each.shown_order) if each.shown_order else None
        state = states.get((task_id, annotator))
        late.append(state is not None and state.state == "leased" and not state.live(now))
        if (task_id, annotator) in seen or (state is not None and state.state == "submitted"):
            continue
        seen.add((task_id, annotator))
        n_answers[task_id] = n_answers.get(task_id, 0) + 1
        if state is None:
            new.append(
                {"task_id": task_id, "annotator": annotator, "state": "submitted", "n_leases": 0}
                | {"lease_id": None, "expires_at": None, "skip_reason": None, "leased_at": None, "shown_order": order}
            )
        else:
            known.append({"at_task": task_id, "by": annotator, "order": order})
    if new:
        connection.execute(_NEW, new)
    if known:
        connection.execute(_SUBMIT_AS_SHOWN, known)
    if n_answers:
        connection.execute(_COUNT, [{"at_task": task_id, "n": n} for task_id, n in n_answers.items()])
    return late


def close_lease(connection: Connection, task_id: str, annotator: str) -> None:
    """Mark a rater's assignment as answered; the task's row is locked, and its caller counts the answer."""
    _SUBMIT_ONE.run(connection, at_task=task_id, by=annotator)


def _grant_many(
    connection: Connection,
    wanted: Sequence[tuple[sa.Row, str]],
    states: Mapping[tuple[str, str], State],
    *,
    now: float,
    lease_s: float,
) -> list[Lease]:
    new: list[dict] = []
    known: list[dict] = []
    leases: list[Lease] = []
    for row, annotator in wanted:
        state = states.get((row.id, annotator))
        live = state is not None and state.live(now)
        n_leases = 1 if state is None else state.n_leases + (0 if live else 1)
        lease_id = content_id("lease", [row.id, annotator, n_leases])
        leases.append(Lease(lease_id, task_of(row), annotator, now + lease_s))
        if state is None:
            new.append(
                {"task_id": row.id, "annotator": annotator, "state": "leased", "lease_id": lease_id, "leased_at": now}
                | {"n_leases": 1, "expires_at": now + lease_s, "skip_reason": None, "shown_order": None}
            )
        else:
            names = {"at_task": row.id, "by": annotator, "lease": lease_id}
            known.append(names | {"n": n_leases, "until": now + lease_s, "live": live, "at": now})
    if new:
        connection.execute(_NEW, new)
    if known:
        connection.execute(_AGAIN, known)
    return leases
