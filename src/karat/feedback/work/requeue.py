"""What people in charge do to the queue: take tasks out, and ask tasks again. All of it is written down with a reason.

Knows states of tasks; knows nothing about why somebody wants it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, select

from karat.errors import InputError, StoreError
from karat.feedback import additions
from karat.feedback.documents import project_settings
from karat.feedback.openings import CHECK, CHUNK, HELD, LAPSED, OPEN, PULLED, is_live, locked_rows, settle
from karat.feedback.people_tables import queue_log
from karat.feedback.schema import assignments, task_of, tasks
from karat.feedback.store import Store


@dataclasses.dataclass(frozen=True)
class QueueEntry:
    """Something that was done to a task of the queue."""

    seq: int
    """Order in the store."""
    task_id: str
    """Task.id."""
    by: str
    """Account.id, or Annotator.id for a skip."""
    action: str
    """skipped, pulled or reissued."""
    reason: str
    """Why. "" once it was erased."""
    at: float
    """Seconds since the epoch."""


def pull(store: Store, task_ids: Sequence[str], *, by: str, reason: str, now: float) -> list[str]:
    """Take tasks out of the queue: nobody is offered them, live leases end, answers that come all the same are late.

    What was answered stays. `reissue` puts a task back.

    Args:
        by: Account.id of who does it.
    Returns: the Task.ids that were in the queue or closed until now.
    Raises: StoreError for an unknown task or a silent check (`checks.retire`); InputError without a reason.
    """

    def write(connection: Connection) -> list[str]:
        rows = _rows(connection, task_ids, reason)
        pulled = sorted(key for key, row in rows.items() if row.state != PULLED)
        for start in range(0, len(pulled), CHUNK):
            some = pulled[start : start + CHUNK]
            connection.execute(tasks.update().where(tasks.c.id.in_(some)).values(state=PULLED))
            live = assignments.c.task_id.in_(some) & is_live(now)
            connection.execute(assignments.update().where(live).values(expires_at=LAPSED))
        log_queue(connection, pulled, "pulled", by=by, reason=reason, now=now)
        return pulled

    return store.write(write)


def pull_waiting(store: Store, batch: str, *, by: str, reason: str, now: float) -> list[str]:
    """Take every task of a batch that still wants answers out of the queue; who waits for the batch goes on without.

    Args:
        batch: Task.batch.    by, reason: of `pull`.
    Returns: the Task.ids that were open until now.
    Raises: InputError without a reason.
    """
    waiting = select(tasks.c.id).where(tasks.c.batch == batch, tasks.c.state.in_((OPEN, HELD))).order_by(tasks.c.seq)
    with store.connection() as connection:
        ids = list(connection.execute(waiting).scalars())
    return pull(store, ids, by=by, reason=reason, now=now)


def reissue(
    store: Store,
    task_ids: Sequence[str],
    *,
    by: str,
    reason: str,
    now: float,
    extra: int = 1,
    guideline: str | None = None,
) -> list[str]:
    """Ask tasks again, pulled ones too.

    Without a guideline, each task wants at least `extra` answers more than it has, of raters who have not answered it.
    With one, the same question is asked anew of everybody under that version, as a task of its own; the old task
    leaves the queue, and its answers stay.

    Returns: Task.ids that are in the queue now.
    Raises: StoreError for an unknown task or a silent check; InputError without a reason, for extra < 1, or under a
        guideline while the arms of an experiment say which one is shown.
    """
    if extra < 1:
        raise InputError(f"reissue: found {extra} extra answers; expected ≥ 1")
    holder = "" if guideline is None else project_settings(store).guideline_experiment
    if holder:
        raise InputError(
            f"reissue: the experiment {holder!r} says which guideline raters see, so answers would not come under "
            f"{guideline}; end the experiment first"
        )

    def write(connection: Connection) -> list[str]:
        rows = _rows(connection, task_ids, reason)
        log_queue(connection, sorted(rows), "reissued", by=by, reason=reason, now=now)
        if guideline is None:
            wider = sa.case(
                (tasks.c.overlap < tasks.c.n_answers + extra, tasks.c.n_answers + extra), else_=tasks.c.overlap
            )
            for start in range(0, len(rows), CHUNK):
                here = tasks.c.id.in_(sorted(rows)[start : start + CHUNK])
                # the answers so far were not enough for somebody: they must not close it again by being equal
                connection.execute(
                    tasks.update().where(here).values(state=HELD, free_at=LAPSED, overlap=wider, stop_after=0)
                )
            settle(connection, sorted(rows), now=now)
            return sorted(rows)
        new = [dataclasses.replace(task_of(row), guideline=guideline) for row in rows.values()]
        additions.add_tasks(connection, new)
        old = sorted(set(rows) - {task.id for task in new})
        for start in range(0, len(old), CHUNK):
            open_ = tasks.c.id.in_(old[start : start + CHUNK]) & tasks.c.state.in_((OPEN, HELD))
            connection.execute(tasks.update().where(open_).values(state=PULLED))
        return sorted(task.id for task in new)

    return store.write(write)


def queue_entries(store: Store, n: int = 100, *, action: str | None = None) -> list[QueueEntry]:
    """The newest entries of what was done to the queue, newest first."""
    question = select(queue_log).order_by(queue_log.c.seq.desc()).limit(n)
    if action is not None:
        question = question.where(queue_log.c.action == action)
    with store.connection() as connection:
        return [QueueEntry(*row) for row in connection.execute(question)]


def log_queue(
    connection: Connection, task_ids: Sequence[str], action: str, *, by: str, reason: str, now: float
) -> None:
    """Write down inside a transaction what was done to tasks of the queue."""
    rows = [{"task_id": each, "by": by, "action": action, "reason": reason, "at": now} for each in task_ids]
    if rows:
        connection.execute(queue_log.insert(), rows)


def _rows(connection: Connection, task_ids: Sequence[str], reason: str) -> dict[str, sa.Row]:
    if not reason.strip():
        raise InputError("queue: found no reason; say why, it is kept")
    rows = locked_rows(connection, sorted(set(task_ids)))
    for task_id in task_ids:
        if task_id not in rows:
            raise StoreError(f"queue: found the unknown task {task_id}; expected one of the store's tasks")
        if rows[task_id].state == CHECK:
            raise StoreError(f"queue: {task_id} is a silent check; retire it instead (`checks.retire`)")
    return rows
