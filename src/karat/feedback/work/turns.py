"""Whether a rater's turn brings a silent check, and which; and which work she is not to be asked for having had it as gold.

Decided by a keyed hash of rater and turn, never by a clock; every turn asks the database for a gold item and for a
repeat, whichever it then hands out, so that the time a page takes tells as little as its form. Knows checks and the
rates of the settings; knows nothing about leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, false, func, literal, or_, select, union_all

from karat.feedback import people_tables as people
from karat.feedback.documents import ProjectSettings
from karat.feedback.keys import keyed_fraction
from karat.feedback.openings import CHECK, Asked, asked_of
from karat.feedback.prepared import Prepared
from karat.feedback.schema import assignments, judgements, tasks
from karat.feedback.waiting import HAS_LAPSED
from karat.feedback.work import checks
from karat.records import Task

PROBES = 3
"""Judgements looked at for one that can be asked again."""

_CLOSED = ("submitted", "skipped")
_DONE = (
    select(assignments.c.task_id)
    .where(assignments.c.task_id == tasks.c.id, assignments.c.annotator == bindparam("who"))
    .where(assignments.c.state.in_(_CLOSED))
    .exists()
)
# built once: building a statement takes longer than SQLite takes to answer it
_COUNTS = Prepared(
    select(
        select(func.count())
        .where(assignments.c.annotator == bindparam("who"), assignments.c.state.in_(_CLOSED))
        .scalar_subquery()
        .label("n_turns"),
        select(func.count()).where(judgements.c.annotator == bindparam("who")).scalar_subquery().label("n_given"),
        select(people.checks.c.task_id).where(people.checks.c.purpose == checks.GOLD).exists().label("has_gold"),
        HAS_LAPSED.label("has_lapsed"),
    )
)
_ITEM = tasks.alias("item")
_GOLD_PROMPTS = (
    select(_ITEM.c.prompt_id)
    .join(people.checks, people.checks.c.task_id == _ITEM.c.id)
    .where(people.checks.c.purpose == checks.GOLD, people.checks.c.retired_at.is_(None))
)
_NOT_GOLD = literal("").label("id")
_NOT_HAD = false().label("had")
# gold items in use or that she has had, and (with no id) what she has judged or skipped about the same prompts: from the
# prompts to her, because she may have judged thousands of others
_GOLD = Prepared(
    union_all(
        select(tasks.c.id, tasks.c.question, tasks.c.prompt_id, tasks.c.response_ids, tasks.c.kind, _DONE.label("had"))
        .join(people.checks, people.checks.c.task_id == tasks.c.id)
        .where(people.checks.c.purpose == checks.GOLD, or_(people.checks.c.retired_at.is_(None), _DONE)),
        select(_NOT_GOLD, _NOT_GOLD, tasks.c.prompt_id, tasks.c.response_ids, tasks.c.kind, _NOT_HAD).where(
            tasks.c.prompt_id.in_(_GOLD_PROMPTS), _DONE
        ),
    ).order_by("id")
)
_TASK = Prepared(select(tasks).where(tasks.c.id == bindparam("task")))
_PLANNED = Prepared(
    select(tasks)
    .where(tasks.c.reserved_for == bindparam("who"), tasks.c.state == CHECK, ~_DONE)
    .order_by(tasks.c.seq)
    .limit(1)
)
_GIVEN = Prepared(
    select(judgements)
    .where(judgements.c.annotator == bindparam("who"))
    .order_by(judgements.c.seq)
    .offset(bindparam("skip"))
    .limit(1)
)


@dataclass(frozen=True)
class Turn:
    """What a rater's turn brings."""

    check: Any
    """The row of a gold item or repeat; None = it brings work."""
    had: frozenset[Asked]
    """What she was asked as gold, retired or not: work that equals it would tell her that one of them was a check."""
    lapsed: bool = True
    """False = no task that all have in hand may have room again."""


def turn_of(
    connection: Connection,
    annotator: str,
    settings: ProjectSettings,
    key: bytes,
    *,
    now: float,
    barred: Sequence[str] = (),
) -> Turn:
    """What this turn of a rater brings.

    A turn is how many tasks she has answered or skipped: asking again does not change what comes.

    Args:
        key: secret, or raters could foretell their checks.    barred: Question.ids that she is not to see now.
        now: seconds since the epoch.
    """
    counts = _COUNTS.first(connection, who=annotator, now=now, audience="annotator")
    assert counts is not None
    turn = counts.n_turns
    gold, had = None, frozenset()
    if counts.has_gold:  # says nothing about this rater
        gold, had = _gold(connection, annotator, keyed_fraction(key, "gold", annotator, turn), barred)
    again = _repeat(connection, annotator, counts.n_given - settings.repeat_gap, (key, turn), barred)
    drawn = keyed_fraction(key, "turn", annotator, turn)
    if drawn < settings.gold_rate:
        return Turn(gold, had, counts.has_lapsed)
    if again is None or drawn >= settings.gold_rate + settings.repeat_rate:
        return Turn(None, had, counts.has_lapsed)
    if isinstance(again, Task):
        checks.write_repeat(connection, again)
        again = _TASK.first(connection, task=again.id)
    return Turn(again, had, counts.has_lapsed)


def had_as_gold(connection: Connection, annotator: str) -> frozenset[Asked]:
    """What a rater was asked as gold (`Turn.had`)."""
    return frozenset(asked_of(row) for row in _GOLD.all(connection, who=annotator) if row.had)


def _gold(
    connection: Connection, annotator: str, fraction: float, barred: Sequence[str]
) -> tuple[Any, frozenset[Asked]]:
    """A gold item in use whose question this rater has not met, each with the same chance, and what she had as gold."""
    rows = [(row, asked_of(row)) for row in _GOLD.all(connection, who=annotator)]
    met = {asked for row, asked in rows if not row.id or row.had}
    had = frozenset(asked for row, asked in rows if row.had)
    unseen = [row.id for row, asked in rows if row.id and row.question not in barred and asked not in met]
    if not unseen:
        return None, had
    return _TASK.first(connection, task=unseen[int(fraction * len(unseen))]), had


def _repeat(connection: Connection, annotator: str, n: int, drawing: tuple[bytes, int], barred: Sequence[str]) -> Any:
    """The row of a planned repeat, else the Task of one made of her first n judgements, which are long enough ago."""
    row = _PLANNED.first(connection, who=annotator)
    if row is not None:
        return row
    key, turn = drawing
    for probe in range(PROBES if n > 0 else 0):
        skip = int(keyed_fraction(key, "repeat", annotator, turn, probe) * n)
        task = checks.repeat_of(connection, _GIVEN.first(connection, who=annotator, skip=skip))
        if task is not None and task.question not in barred:
            return task
    return None
