"""Where raters disagree, or somebody calls for help: the question goes to an expert, as a task of its own.

The expert is asked like everybody else and sees no answers before giving one; her judgement stands beside the others
and replaces none. Knows which answers say the same; knows nothing about who is right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from karat.feedback.schema import StoredJudgement
from karat.feedback.snapshot import current_judgements, work_records
from karat.feedback.store import Store
from karat.feedback.work.matching import COMPARABLE, escalates, gist
from karat.records import Task

BATCH = "adjudication:"
"""Starts the batch of a task that asks an expert; the Task.id of the disputed task follows."""


@dataclass(frozen=True)
class Dispute:
    """A task on which raters disagree, or that somebody escalated."""

    task: Task
    """What was asked."""
    records: tuple[StoredJudgement, ...]
    """The answers that count, oldest first; raters in quarantine are left out."""
    n_opinions: int
    """How many different answers there are (`matching.gist`)."""
    escalated: bool
    """True = somebody called for another person to look."""


def disputes(store: Store, *, batch: str | None = None, least: int = 2) -> list[Dispute]:
    """Tasks for raters with at least `least` answers that do not all say the same, or with an escalation.

    Words and spans are not compared; they are disputed only where somebody escalates.
    """
    by_task: dict[str, list[StoredJudgement]] = {}
    for record in sorted(current_judgements(work_records(store, batch=batch))[0], key=lambda each: each.seq):
        by_task.setdefault(record.judgement.task_id, []).append(record)
    found = []
    for task in store.tasks(batch=batch):
        records = by_task.get(task.id, [])
        if task.audience != "annotator" or not records:
            continue
        values = [record.judgement.value for record in records]
        opinions = {gist(task.kind, value) for value in values} if task.kind in COMPARABLE else {None}
        escalated = any(escalates(value) for value in values)
        if escalated or (len(values) >= least and len(opinions) > 1):
            found.append(Dispute(task, tuple(records), len(opinions), escalated))
    return found


def adjudication_task(task: Task, *, overlap: int = 1) -> Task:
    """The task that asks experts what raters were asked, in the batch `adjudication:<task id>`."""
    return dataclasses.replace(
        task, audience="expert", reserved_for=None, overlap=overlap, stop_after=0, batch=BATCH + task.id
    )


def make_adjudication_tasks(store: Store, found: Sequence[Dispute] | None = None, *, overlap: int = 1) -> list[Task]:
    """Put disputed tasks to experts; each once, however often it is called.

    Args:
        found: some of `disputes`; None = all of them.    overlap: experts to ask about each, ≥ 1.
    Returns: the tasks that are new.
    """
    wanted = [adjudication_task(each.task, overlap=overlap) for each in (disputes(store) if found is None else found)]
    known = {task.id for task in store.tasks()}
    new = [task for task in wanted if task.id not in known]
    store.add_tasks(new)
    return new


def disputed_task_id(task: Task) -> str | None:
    """The Task.id that an adjudication task is about; None for other tasks."""
    return task.batch.removeprefix(BATCH) if task.batch.startswith(BATCH) else None
