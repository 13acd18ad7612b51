"""A rater at her task: everything that a page of work reads, in one transaction, as it was at one moment.

Only puts together what other modules of this room know, so that a page costs one transaction and not ten. Knows
nothing about pages, forms or JSON.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection

from karat.feedback.documents import EXAMPLES, GUIDELINE, Document, ProjectSettings, Shelf, shelf
from karat.feedback.openings import Asked
from karat.feedback.people.care import read_consent
from karat.feedback.people.drafts import Draft, read_draft
from karat.feedback.people.own_record import OwnProgress, read_progress
from karat.feedback.store import Store
from karat.feedback.work.answering import Work, read_work
from karat.feedback.work.assignment import Offer, WorkKeys, hand_out
from karat.feedback.work.gates import Admitted, Reason, admit, left_for


@dataclass(frozen=True)
class Beside:
    """What a page of work says besides the task."""

    project: ProjectSettings
    """The project's settings."""
    guideline: Document | None
    """The guideline under which the task is judged; None = none was written, or there is no task."""
    examples: Document | None
    """Worked examples; None = none were written."""
    progress: OwnProgress
    """How much she has done, and what is left."""
    reason: Reason
    """"work", or why nothing is left for her."""
    qualifying: bool
    """True = what is left are items of the qualification."""


@dataclass(frozen=True)
class Sitting:
    """What a rater has before her."""

    offer: Offer
    """Her task, or why there is none."""
    work: Work | None
    """The task with its texts; None where there is none."""
    draft: Draft | None
    """What she has entered before; None = nothing."""
    beside: Beside
    """What else the page says."""


@dataclass(frozen=True)
class Received:
    """What is known of a task when its answer comes in."""

    work: Work
    """The task."""
    consents: bool
    """True = she agrees to the newest consent text, or there is none."""
    project: ProjectSettings
    """The project's settings."""
    guideline: Document | None
    """The guideline under which the task is judged; None = none was written."""


def sit_down(store: Store, annotator: str, *, now: float) -> Sitting:
    """`assignment.next_work` with everything that its page says.

    Args:
        now: seconds since the epoch.
    Raises: StoreError for a rater the store does not know.
    """
    keys = WorkKeys.of(store)

    def write(connection: Connection) -> Sitting:
        papers = shelf(connection)
        rater = admit(connection, annotator, papers, now=now, lock=True)
        offered, met = hand_out(connection, rater, keys, now=now)
        work = _work(connection, annotator, offered, keys, papers, now=now)
        draft = None if work is None else read_draft(connection, work.task.id, annotator)
        besides = _beside(connection, annotator, rater, work, papers, met=met, now=now)
        return Sitting(offered, work, draft, besides)

    return store.write(write, durable=False)


def next_held(store: Store, annotator: str, *, now: float) -> tuple[Offer, Work | None]:
    """`assignment.next_work` with the task's texts."""
    keys = WorkKeys.of(store)

    def write(connection: Connection) -> tuple[Offer, Work | None]:
        papers = shelf(connection)
        rater = admit(connection, annotator, papers, now=now, lock=True)
        offered, _ = hand_out(connection, rater, keys, now=now)
        return offered, _work(connection, annotator, offered, keys, papers, now=now)

    return store.write(write, durable=False)


def beside(store: Store, annotator: str, work: Work | None, *, now: float) -> Beside:
    """What the page of a task says besides it, where the task is known."""
    with store.connection() as connection:
        papers = shelf(connection)
        rater = admit(connection, annotator, papers, now=now)
        return _beside(connection, annotator, rater, work, papers, now=now)


def own_progress(store: Store, annotator: str, *, now: float) -> OwnProgress:
    """A rater's own figures. Raises: StoreError for a rater the store does not know."""
    return beside(store, annotator, None, now=now).progress


def receive(store: Store, lease_id: str, annotator: str, account: str) -> Received:
    """The task behind a lease, live or not, with what its answer's record says of the page.

    Raises: LeaseError where this rater never held a lease of that name.
    """
    keys = WorkKeys.of(store)
    with store.connection() as connection:
        papers = shelf(connection)
        work = read_work(connection, lease_id, annotator, keys, papers)
        project = papers.settings(connection)
        guideline = papers.find(connection, GUIDELINE, work.guideline)
        consents = read_consent(connection, account, papers).ok
    return Received(work, consents, project, guideline)


def _work(
    connection: Connection, annotator: str, offered: Offer, keys: WorkKeys, papers: Shelf, *, now: float
) -> Work | None:
    if offered.lease is None:
        return None
    return read_work(connection, offered.lease.id, annotator, keys, papers, now=now, every_arm=False)


def _beside(
    connection: Connection,
    annotator: str,
    rater: Admitted | Reason,
    work: Work | None,
    papers: Shelf,
    *,
    met: Collection[Asked] | None = None,
    now: float,
) -> Beside:
    left = left_for(connection, rater, now=now, met=met)
    progress = read_progress(connection, annotator, left.n, may_work=not isinstance(rater, str), now=now)
    return Beside(
        papers.settings(connection),
        None if work is None else papers.find(connection, GUIDELINE, work.guideline),
        papers.find(connection, EXAMPLES),
        progress,
        "work" if progress.n_left else left.reason,
        left.qualifying,
    )
