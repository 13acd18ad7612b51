"""Which tasks wait for a rater: one condition, by which they are handed out and by which those to come are counted.

Knows states, audiences and reservations of tasks, and what this rater has answered; knows nothing about checks,
budgets or what a lease is good for.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, func, select

from karat.feedback.openings import HELD, OPEN, Asked, asked_of, in_state, is_live, open_to
from karat.feedback.prepared import Prepared
from karat.feedback.schema import assignments, tasks

LIMITS = ("batch", "barred", "only", "passed")
"""What a question may say besides: of this batch; not of, only of these Question.ids; none of these Task.ids."""

_WHO = bindparam("who", type_=sa.String)
_MOST = bindparam("most", type_=sa.Integer)


@functools.cache
def tasks_waiting(state: str, limits: tuple[str, ...] = (), *, many: bool = False) -> sa.Select:
    """The tasks in a state that wait for the rater `who`, in the order in which they are handed out.

    Whoever hands one out looks whether it has room (`leases.grant`); whoever counts them asks it with the count.

    Args:
        state: OPEN, or HELD: those of which a lease may have run out by `now`.
        limits: some of LIMITS, which are parameters then.    many: True = in words that PostgreSQL plans well.
    """
    done = select(assignments.c.task_id).where(
        assignments.c.task_id == tasks.c.id,
        assignments.c.annotator == _WHO,
        assignments.c.state.in_(("submitted", "skipped")),
    )
    limited = {
        "batch": tasks.c.batch == bindparam("batch"),
        "barred": tasks.c.question.not_in(bindparam("barred", expanding=True)),
        "only": tasks.c.question.in_(bindparam("only", expanding=True)),
        "passed": tasks.c.id.not_in(bindparam("passed", expanding=True)),
    }
    question = select(tasks).where(
        in_state(state) if many and state == OPEN else tasks.c.state == state,
        tasks.c.audience == bindparam("audience"),
        tasks.c.n_answers < tasks.c.overlap,
        open_to(_WHO) if many else func.coalesce(tasks.c.reserved_for, _WHO) == _WHO,
        ~done.exists(),
        *(limited[name] for name in limits),
    )
    if state == HELD:
        return question.where(tasks.c.free_at <= bindparam("now")).order_by(tasks.c.free_at, tasks.c.seq)
    return question.order_by(tasks.c.state, tasks.c.seq) if many else question.order_by(tasks.c.seq)


# Handing out


def peek_open(
    connection: Connection,
    annotator: str,
    *,
    now: float,
    audience: str = "annotator",
    batch: str | None = None,
    barred: Sequence[str] = (),
    met: Collection[Asked] = (),
) -> Any:
    """The row of the task that `leases.first_open` tries, locked but not leased.

    Args:
        audience: whose tasks.    barred: Question.ids that this rater is not to see now.
        met: what she is not to be asked, because she was asked it in another form.
    """
    asked: dict[str, Any] = {"who": annotator, "audience": audience}
    if batch is not None:
        asked["batch"] = batch
    if barred:
        asked["barred"] = list(barred)
    while (row := _peek(connection, asked, now)) is not None and asked_of(row) in met:
        asked["passed"] = [*asked.get("passed", ()), row.id]  # seldom: only what stands first in the queue
    return row


def _peek(connection: Connection, asked: dict[str, Any], now: float) -> Any:
    limits = _limits(asked)
    # raters pass each other on PostgreSQL, but nobody goes empty-handed for a moment's lock
    for lock in ("",) if connection.dialect.name == "sqlite" else ("skip", "wait"):
        for state, more in ((HELD, {"now": now}), (OPEN, {})):
            if limits:
                row = connection.execute(first_waiting(state, limits, lock), asked | more).first()
            else:
                row = _FIRST[state, lock].first(connection, **asked, **more)
            if row is not None:
                return row
    return None


def _limits(asked: dict[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in LIMITS if name in asked)


@functools.cache
def first_waiting(state: str, limits: tuple[str, ...] = (), lock: str = "") -> sa.Select:
    """The first of `tasks_waiting`; built once for each shape.

    Args:
        lock: "" on SQLite, which has one writer; on PostgreSQL "skip" or "wait" where somebody else has the row.
    """
    question = tasks_waiting(state, limits, many=bool(lock)).limit(1)
    return question.with_for_update(of=tasks, skip_locked=lock == "skip") if lock else question


_FIRST = {
    (state, lock): Prepared(first_waiting(state, (), lock)) for state in (HELD, OPEN) for lock in ("", "skip", "wait")
}


# Counting


def n_waiting(
    connection: Connection,
    annotator: str,
    *,
    now: float,
    most: int,
    audience: str = "annotator",
    barred: Sequence[str] = (),
    only: Sequence[str] = (),
    met: Collection[Asked] = (),
) -> int:
    """How many tasks this rater could be handed one after another if nobody else came; not those in her hands.

    Args:
        most: where counting stops, ≥ 1.    only: Question.ids of those that are counted; () = all.
        audience, barred, met: of `peek_open`.
    """
    asked: dict[str, Any] = {"who": annotator, "audience": audience, "now": now, "most": most}
    asked |= {name: list(ids) for name, ids in (("barred", barred), ("only", only)) if ids}
    if not met:
        return int(_line(connection, asked, counted=True)[0][0])
    prompts = {one[0] for one in met}
    while True:
        rows = _line(connection, asked, counted=False)
        again = [row.id for row in rows if row.prompt_id in prompts and asked_of(row) in met]
        if not again or len(rows) < most:
            return len(rows) - len(again)
        asked["passed"] = [*asked.get("passed", ()), *again]  # others may stand behind them


def _line(connection: Connection, asked: dict[str, Any], *, counted: bool) -> Sequence[Any]:
    limits = _limits(asked)
    if not limits:
        return _LINES[counted].all(connection, **asked)
    return connection.execute(_line_question(limits, connection.dialect.name != "sqlite", counted), asked).all()


@functools.cache
def _line_question(limits: tuple[str, ...], many: bool, counted: bool) -> Any:
    """The tasks that have room for `who`, at most `most` of them: how many there are, or what each asks."""
    # a lease of her own takes all places: that task is in her hands already
    places = func.sum(sa.case((assignments.c.annotator == _WHO, tasks.c.overlap), else_=1))
    taken = select(func.coalesce(places, 0)).where(
        assignments.c.task_id == tasks.c.id, is_live(bindparam("now", type_=sa.Float))
    )
    room = tasks.c.n_answers + taken.correlate(tasks).scalar_subquery() < tasks.c.overlap
    columns = (tasks.c.id, tasks.c.prompt_id, tasks.c.kind, tasks.c.response_ids)
    parts = [
        select(tasks_waiting(state, limits, many=many).where(room).with_only_columns(*columns).limit(_MOST).subquery())
        for state in (HELD, OPEN)
    ]
    line = sa.union_all(*parts).limit(_MOST)
    return select(func.count()).select_from(line.subquery()) if counted else line


_LINES = {
    counted: Prepared(lambda dialect, counted=counted: _line_question((), dialect != "sqlite", counted))
    for counted in (False, True)
}
