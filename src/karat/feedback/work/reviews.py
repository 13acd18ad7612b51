"""Disputed questions as an expert sees them: blind until she has judged, then with everybody's answers.

What she said before she saw the others stays as it was; what she says afterwards is a further event. Knows disputes,
the tasks made of them, and what was logged about looking and confirming; knows nothing about pages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from karat.errors import StoreError
from karat.feedback.documents import read_settings
from karat.feedback.leases import held_task
from karat.feedback.openings import PULLED
from karat.feedback.people_tables import admin_log
from karat.feedback.schema import StoredJudgement, judgements, stored_judgement, tasks
from karat.feedback.store import Store
from karat.feedback.submission import judgement_question
from karat.feedback.work.adjudication import BATCH, Dispute, adjudication_task, disputes, make_adjudication_tasks

LOOKED, CONFIRMED = "others' answers seen", "adjudication confirmed"
"""Actions of the admin log: the subject is the expert's judgement."""


@dataclass(frozen=True)
class Review:
    """A disputed task and how far experts are with it."""

    dispute: Dispute
    """What raters said."""
    task_id: str
    """Task.id of the adjudication task, whether it was made or not."""
    sent: bool
    """True = it was put to experts."""
    pulled: bool
    """True = it was taken out of the queue."""
    verdicts: tuple[StoredJudgement, ...]
    """Every judgement of experts on it, corrections included, in order of arrival."""

    def by(self, annotator: str | None) -> tuple[StoredJudgement, ...]:
        """What one expert said of it, in order."""
        return tuple(one for one in self.verdicts if one.judgement.annotator == annotator)


def reviews(store: Store, found: Sequence[Dispute] | None = None) -> list[Review]:
    """Every disputed task, escalated ones first, then the most divided.

    Args:
        found: `disputes`, where they are known; None = looked for.
    """
    with store.connection() as connection:
        sent = {
            row.id: row.state
            for row in connection.execute(select(tasks.c.id, tasks.c.state).where(tasks.c.batch.like(BATCH + "%")))
        }
        by_task: dict[str, list[StoredJudgement]] = {}
        question = judgement_question().join(tasks, tasks.c.id == judgements.c.task_id)
        question = question.where(tasks.c.batch.like(BATCH + "%")).order_by(judgements.c.seq)
        for row in connection.execute(question):
            by_task.setdefault(row.task_id, []).append(stored_judgement(row))
    rows = []
    for dispute in disputes(store) if found is None else found:
        key = adjudication_task(dispute.task).id
        verdicts = tuple(by_task.get(key, ()))
        rows.append(Review(dispute, key, key in sent, sent.get(key) == PULLED, verdicts))
    return sorted(rows, key=lambda row: (not row.dispute.escalated, -row.dispute.n_opinions / len(row.dispute.records)))


def review_of(store: Store, disputed_task_id: str) -> Review | None:
    """One disputed task; None where it is not disputed."""
    found = [dispute for dispute in disputes(store) if dispute.task.id == disputed_task_id]
    return reviews(store, found)[0] if found else None


def take(store: Store, review: Review, annotator: str, *, now: float) -> bool:
    """Give a disputed task to an expert who asks for this one, making it a task first if need be.

    Returns: False where another expert has it, or it has all the answers it wants.
    Raises: StoreError where she has another task in hand.
    """
    make_adjudication_tasks(store, [review.dispute])
    with store.connection() as connection:
        held = held_task(connection, annotator, now=now)
        lease_s = read_settings(connection).lease_s
    if held is not None and held.id != review.task_id:
        raise StoreError("you have another task in hand; finish or skip it first")
    return store.lease_many([(review.task_id, annotator)], now, lease_s)[0] is not None


def looked_at(store: Store, judgement_id: str) -> float | None:
    """When the expert first saw the others' answers after this judgement of hers; None = not yet."""
    with store.connection() as connection:
        return _logged(connection, LOOKED, judgement_id)


def n_blind(store: Store, own: Sequence[StoredJudgement]) -> int:
    """How many of an expert's answers to one question she gave before she saw the others'; the first ones.

    Args:
        own: `Review.by`, in order.
    """
    seen = (i for i, one in enumerate(own, 1) if looked_at(store, one.id) is not None)
    return next(seen, len(own))


def confirmed_at(store: Store, judgement_id: str) -> float | None:
    """When she confirmed this judgement after she had seen them; None = she has not."""
    with store.connection() as connection:
        return _logged(connection, CONFIRMED, judgement_id)


def send_all(store: Store, *, overlap: int = 1) -> int:
    """Put every dispute to experts. Returns: how many were new."""
    return len(make_adjudication_tasks(store, overlap=overlap))


def without_rater_names(records: Sequence[StoredJudgement]) -> list[StoredJudgement]:
    """The answers with the raters numbered: an expert weighs what was said, not who said it."""
    names: dict[str, str] = {}
    return [
        dataclasses.replace(
            one,
            judgement=dataclasses.replace(
                one.judgement, annotator=names.setdefault(one.judgement.annotator, f"Rater {len(names) + 1}")
            ),
        )
        for one in records
    ]


def _logged(connection: Connection, action: str, subject: str) -> float | None:
    columns = admin_log.c
    question = select(columns.at).where(columns.action == action, columns.subject == subject)
    return connection.execute(question.order_by(columns.seq).limit(1)).scalar()
