"""Tasks one by one, for the people in charge: which there are, and everything that was asked and said about one.

Reads only. Knows tables; knows nothing about pages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import func, select

from karat.feedback.openings import CHECK, HELD, OPEN, is_live
from karat.feedback.people_tables import checks, queue_log
from karat.feedback.schema import (
    StoredJudgement,
    assignments,
    judgements,
    prompt_of,
    prompts,
    response_of,
    responses,
    stored_judgement,
    task_of,
    tasks,
)
from karat.feedback.store import Store
from karat.feedback.submission import judgement_question
from karat.feedback.work.requeue import QueueEntry
from karat.records import Prompt, Response, Task

PAGE = 50
"""Tasks on one page."""
TASK_STATES = ("open", "held", "closed", "pulled", "check")
"""States by which tasks can be chosen (`karat.feedback.openings`)."""


@dataclass(frozen=True)
class TaskRow:
    """One task of a list."""

    seq: int
    """Order in which it was queued."""
    task: Task
    """What is asked."""
    task_id: str
    """Task.id."""
    state: str
    """One of `TASK_STATES`."""
    n_answers: int
    """Raters who answered it."""
    begins: str
    """The end of the prompt: what the policy was asked last."""


@dataclass(frozen=True)
class TaskDetail:
    """One task with everything about it."""

    task: Task
    """What is asked."""
    task_id: str
    """Task.id."""
    state: str
    """One of `TASK_STATES`."""
    prompt: Prompt
    """The prompt."""
    responses: tuple[Response, ...]
    """What is judged, in identity order."""
    answers: tuple[StoredJudgement, ...]
    """Every judgement of it, corrections included, in order of arrival."""
    holders: tuple[tuple[str, str, str | None], ...]
    """(rater; leased, let go = her lease ran out or was ended without an answer, or skipped; reason of the skip)."""
    entries: tuple[QueueEntry, ...]
    """What was done to it."""
    purpose: str
    """gold, qualification or repeat where it is a silent check; "" = real work."""


def task_page(
    store: Store, *, now: float, batch: str = "", state: str = "", before: int | None = None, n: int = PAGE
) -> tuple[list[TaskRow], int | None]:
    """Some tasks, newest first.

    Args:
        now: seconds since the epoch; tells a task with a free place from one whose places are all taken.
        batch, state: only those; "" = all, silent checks left out.    before: only those queued earlier.
    Returns: at most n tasks, and `before` of the next page (None = there is none).
    """
    question = select(tasks, prompts.c.turns).join(prompts, prompts.c.id == tasks.c.prompt_id)
    if batch:
        question = question.where(tasks.c.batch == batch)
    question = question.where(_in_state(state, now) if state else tasks.c.state != CHECK)
    if before is not None:
        question = question.where(tasks.c.seq < before)
    with store.connection() as connection:
        rows = [_row(row, now) for row in connection.execute(question.order_by(tasks.c.seq.desc()).limit(n + 1))]
    return rows[:n], rows[n - 1].seq if len(rows) > n else None


def task_detail(store: Store, task_id: str, *, now: float) -> TaskDetail | None:
    """Everything about one task; None where there is none by that id.

    Args:
        now: seconds since the epoch, tells a task in hand from one that was let go.
    """
    with store.connection() as connection:
        row = connection.execute(select(tasks).where(tasks.c.id == task_id)).first()
        if row is None:
            return None
        task = task_of(row)
        prompt = connection.execute(select(prompts).where(prompts.c.id == task.prompt_id)).one()
        some = connection.execute(select(responses).where(responses.c.id.in_(task.response_ids)))
        texts = {each.id: response_of(each) for each in some}
        given = judgement_question().where(judgements.c.task_id == task_id).order_by(judgements.c.seq)
        holding = sa.case((is_live(now), "leased"), (assignments.c.state == "leased", "let go"), else_="skipped")
        held = select(assignments.c.annotator, holding, assignments.c.skip_reason)
        held = held.where(assignments.c.task_id == task_id, assignments.c.state != "submitted")
        log = select(queue_log).where(queue_log.c.task_id == task_id).order_by(queue_log.c.seq.desc())
        purpose = connection.execute(select(checks.c.purpose).where(checks.c.task_id == task_id)).scalar()
        return TaskDetail(
            task=task,
            task_id=task_id,
            state=shown_state(row.state, row.free_at, now),
            prompt=prompt_of(prompt),
            responses=tuple(texts[one] for one in task.response_ids),
            answers=tuple(stored_judgement(each) for each in connection.execute(given)),
            holders=tuple((each[0], each[1], each[2]) for each in connection.execute(held)),
            entries=tuple(QueueEntry(*each) for each in connection.execute(log)),
            purpose=purpose or "",
        )


def skip_reasons(store: Store, n: int = 20) -> list[tuple[str, int]]:
    """The commonest reasons why tasks were skipped, with how often each was given."""
    reason = assignments.c.skip_reason
    question = select(reason, func.count()).where(assignments.c.state == "skipped", reason.is_not(None))
    with store.connection() as connection:
        rows = connection.execute(question.group_by(reason).order_by(func.count().desc(), reason).limit(n))
        return [(words, count) for words, count in rows]


def shown_state(state: str, free_at: float, now: float) -> str:
    """A task's state as a person reads it: one that was let go or issued again has a place free, and is open to her."""
    return OPEN if state == HELD and free_at <= now else state


def _in_state(state: str, now: float) -> sa.ColumnElement[bool]:
    """`shown_state`, as a condition."""
    if state == OPEN:
        return sa.or_(tasks.c.state == OPEN, sa.and_(tasks.c.state == HELD, tasks.c.free_at <= now))
    return sa.and_(tasks.c.state == state, sa.or_(tasks.c.state != HELD, tasks.c.free_at > now))


def _row(row: Any, now: float) -> TaskRow:
    turns = json.loads(row.turns)
    state = shown_state(row.state, row.free_at, now)
    return TaskRow(row.seq, task_of(row), row.id, state, row.n_answers, turns[-1][1][:400])
