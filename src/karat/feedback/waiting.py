"""Which tasks wait for a rater: one condition, by which they are handed out and by which those to come are counted.

Knows states, audiences and reservations of tasks, and what this rater has answered; knows nothing about checks,
budgets or what a lease is good for.

What is open waits in the order of its number, and is not open again once it was held (`openings`). So each rater has a mark,
`annotators.done_to`: behind it no open task is one for her, and what a hand-out costs does not grow with what she has done.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, func, select

from karat.feedback.openings import HELD, OPEN, Asked, asked_of, is_live, open_to
from karat.feedback.prepared import Prepared
from karat.feedback.schema import annotators, assignments, tasks

LIMITS = ("batch", "barred", "only", "passed")
"""What a question may say besides: of this batch; not of, only of these Question.ids; none of these Task.ids."""

STRIDE = 32
"""Numbers of the queue that a rater is ahead of her mark before it is moved: looking past them costs less than writing."""

MOVED_EVERY = 8
"""Tasks of which one moves the mark, drawn by its name: with many raters the queue runs ahead of each at every turn."""

IS_HELD = sa.literal_column(f"'{HELD}'")
"""The state as the index of held tasks names it: with a parameter it is not found."""

_WHO = bindparam("who", type_=sa.String)
_DONE_TO = bindparam("done_to", type_=sa.Integer)
_MOST = bindparam("most", type_=sa.Integer)
_NOW = bindparam("now", type_=sa.Float)


@functools.cache
def tasks_waiting(state: str, limits: tuple[str, ...] = (), *, many: bool = False, in_hand: bool = True) -> sa.Select:
    """The tasks in a state that wait for the rater `who`, in the order in which they are handed out.

    Whoever hands one out looks whether it has room (`leases.grant`); whoever counts them asks it with the count.

    Args:
        state: OPEN, those with a number above `done_to`; or HELD, those which may have room by `now`.
        limits: some of LIMITS, which are parameters then.    many: True = in words that PostgreSQL plans well.
        in_hand: False = without those on which she has a live lease by `now`.
    """
    hers = assignments.c.state.in_(("submitted", "skipped"))
    limited = {
        "batch": tasks.c.batch == bindparam("batch"),
        "barred": tasks.c.question.not_in(bindparam("barred", expanding=True)),
        "only": tasks.c.question.in_(bindparam("only", expanding=True)),
        "passed": tasks.c.id.not_in(bindparam("passed", expanding=True)),
    }
    question = select(tasks).where(
        *_queue(state, many),
        tasks.c.n_answers < tasks.c.overlap,
        open_to(_WHO) if many else func.coalesce(tasks.c.reserved_for, _WHO) == _WHO,
        _without(hers if in_hand else hers | is_live(_NOW), many),
        *(limited[name] for name in limits),
    )
    if state == HELD:
        return question.where(tasks.c.free_at <= _NOW).order_by(tasks.c.free_at, tasks.c.seq)
    return question.order_by(tasks.c.state, tasks.c.seq) if many else question.order_by(tasks.c.seq)


def _without(condition: sa.ColumnElement[bool], many: bool) -> sa.ColumnElement[bool]:
    """That the rater `who` has no assignment of the task for which a condition holds.

    PostgreSQL turns NOT EXISTS into a join, expects one row of the queue, and then reads all assignments for each of two
    hundred. A value it can only look up, by the primary key. Of "IS NULL" it expects one row in two hundred, and then
    sorts the whole queue to find the first; of a case, one in two.
    """
    here = (assignments.c.task_id == tasks.c.id, assignments.c.annotator == _WHO, condition)
    hers = select(assignments.c.task_id).where(*here).correlate(tasks)
    if not many:
        return ~hers.exists()
    return sa.case((hers.scalar_subquery().is_(None), sa.true()), else_=sa.false())


_PLACE = (tasks.c.state, tasks.c.audience, tasks.c.seq)


def _queue(state: str, many: bool) -> list[sa.ColumnElement[bool]]:
    audience = bindparam("audience", type_=sa.String)
    if state == HELD:
        return [tasks.c.state == IS_HELD, tasks.c.audience == audience]
    if not many:
        return [tasks.c.state == OPEN, tasks.c.audience == audience, tasks.c.seq > _DONE_TO]
    # Said as an equality, PostgreSQL takes the order by number alone to be as good as that by state and number, and walks
    # over every task that was ever answered. As one comparison the mark is where it enters the index.
    mark = sa.tuple_(sa.literal(OPEN), audience, _DONE_TO)
    return [tasks.c.state.between(OPEN, OPEN), tasks.c.audience == audience, sa.tuple_(*_PLACE) > mark]


HAS_LAPSED = select(tasks.c.id).where(*_queue(HELD, False), tasks.c.free_at <= _NOW).exists()
"""That a held task of the `audience` may have room by `now`."""


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
    done_to: int | None = None,
    lapsed: bool = True,
) -> Any:
    """The row of the task that `leases.first_open` tries, locked but not leased.

    Args:
        audience: whose tasks.    barred: Question.ids that this rater is not to see now.
        met: what she is not to be asked, because she was asked it in another form.
        done_to: her mark (`annotators.done_to`), which is moved on; None = she has none.
        lapsed: False = it is known that no held task may have room (`HAS_LAPSED`).
    """
    asked: dict[str, Any] = {"who": annotator, "audience": audience}
    if batch is not None:
        asked["batch"] = batch
    if barred:
        asked["barred"] = list(barred)
    after = ({HELD: {"now": now}} if lapsed else {}) | {OPEN: {"done_to": done_to or 0}}
    while (row := _peek(connection, asked, after)) is not None and asked_of(row) in met:
        asked["passed"] = [*asked.get("passed", ()), row.id]  # seldom: only what stands first in the queue
    if done_to is not None and (row is None or (row.state == OPEN and _is_far(row, done_to))):
        _move_mark(connection, {name: asked[name] for name in asked if name != "barred"} | after[OPEN])
    return row


def _peek(connection: Connection, asked: dict[str, Any], after: dict[str, dict[str, Any]]) -> Any:
    limits = _limits(asked)
    # raters pass each other on PostgreSQL, but nobody goes empty-handed for a moment's lock
    for lock in ("",) if connection.dialect.name == "sqlite" else ("skip", "wait"):
        for state, more in after.items():
            if limits:
                row = connection.execute(first_waiting(state, limits, lock), asked | more).first()
            else:
                row = _FIRST[state, lock].first(connection, **asked, **more)
            if row is not None:
                return row
    return None


def _is_far(row: Any, done_to: int) -> bool:
    return row.seq - done_to > STRIDE and zlib.crc32(row.id.encode()) % MOVED_EVERY == 0


def _move_mark(connection: Connection, asked: dict[str, Any]) -> None:
    """Write down that up to the first open task that waits for her there is none: one that somebody holds locked is one.

    What she had as gold counts as done, for she never gets it; what she is not to see today waits for her.
    """
    limits = _limits(asked)
    first = connection.execute(tasks_waiting(OPEN, limits, many=connection.dialect.name != "sqlite").limit(1), asked)
    row = first.first()
    done_to = _LAST.scalar(connection, audience=asked["audience"]) if row is None else row.seq - 1
    _MARK.run(connection, who=asked["who"], mark=done_to or 0)


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
_LAST = Prepared(select(func.max(tasks.c.seq)).where(tasks.c.state == OPEN, tasks.c.audience == bindparam("audience")))
_MARK = Prepared(
    annotators.update()
    .where(annotators.c.id == _WHO, annotators.c.done_to < bindparam("mark"))
    .values(done_to=bindparam("mark"))
)


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
    done_to: int = 0,
) -> int:
    """How many tasks this rater could be handed one after another if nobody else came; not those in her hands.

    Args:
        most: where counting stops, ≥ 1.    only: Question.ids of those that are counted; () = all.
        audience, barred, met, done_to: of `peek_open`.
    """
    asked: dict[str, Any] = {"who": annotator, "audience": audience, "now": now, "most": most, "done_to": done_to}
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
    taken = select(func.count()).where(assignments.c.task_id == tasks.c.id, is_live(_NOW)).correlate(tasks)
    # what is open has room for others
    room = {HELD: tasks.c.n_answers + taken.scalar_subquery() < tasks.c.overlap, OPEN: sa.true()}
    columns = (tasks.c.id, tasks.c.prompt_id, tasks.c.kind, tasks.c.response_ids)
    parts = [
        select(
            tasks_waiting(state, limits, many=many, in_hand=False)
            .where(room[state])
            .with_only_columns(*columns)
            .limit(_MOST)
            .subquery()
        )
        for state in (HELD, OPEN)
    ]
    line = sa.union_all(*parts).limit(_MOST)
    return select(func.count()).select_from(line.subquery()) if counted else line


_LINES = {
    counted: Prepared(lambda dialect, counted=counted: _line_question((), dialect != "sqlite", counted))
    for counted in (False, True)
}
