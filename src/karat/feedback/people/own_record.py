"""What a rater may know about herself: how much is done and left, how long it takes, and what is stored about her.

Nobody else's figures, and no comparison with anybody. Knows tables; knows nothing about pages or about what others did.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Select, func, select

from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.openings import OPEN
from karat.feedback.store import Store

MOST_LEFT = 200
"""Tasks left that are counted; beyond, it is "more than"."""
DAY_S = 86400.0
RECENT = 30
"""Latest judgements whose time says how long the next ones take."""


@dataclass(frozen=True)
class OwnProgress:
    """One rater's own figures."""

    n_done: int
    """Tasks she answered."""
    n_today: int
    """Those that she took on this day (UTC)."""
    n_skipped: int
    """Tasks she skipped."""
    n_left: int
    """Tasks that wait for somebody like her, the one in her hands among them; at most MOST_LEFT."""
    seconds_each: float | None
    """Mean active seconds of her recent judgements; None = not measured."""

    @property
    def left(self) -> str:
        """How much is left, in tens: an exact number that stands still would tell a silent check from work."""
        if self.n_left >= MOST_LEFT:
            return f"more than {MOST_LEFT}"
        return "fewer than 10" if self.n_left < 10 else f"about {self.n_left // 10 * 10}"

    @property
    def seconds_left(self) -> float | None:
        """How long those tens take at her pace; None = not known, fewer than ten, or more than was counted."""
        if self.seconds_each is None or not 10 <= self.n_left < MOST_LEFT:
            return None
        return self.n_left // 10 * 10 * self.seconds_each


def own_progress(store: Store, annotator: str, *, audience: str = "annotator", now: float) -> OwnProgress:
    """A rater's own figures.

    Args:
        audience: tasks of which audience count as left.    now: seconds since the epoch.
    """
    given, asked, said = tables.assignments.c, tables.tasks.c, tables.judgements.c
    mine = select(given.state, func.count(), func.max(given.leased_at)).where(given.annotator == annotator)
    today = select(func.count()).where(
        given.annotator == annotator, given.state == "submitted", given.leased_at >= now - now % DAY_S
    )
    known = select(given.task_id).where(given.task_id == asked.id, given.annotator == annotator)
    held = select(func.count()).where(given.annotator == annotator, given.state == "leased", given.expires_at > now)
    left = select(asked.id).where(
        asked.state == OPEN,
        asked.audience == audience,
        func.coalesce(asked.reserved_for, annotator) == annotator,
        ~known.exists(),
    )
    times = (
        select(said.active_s)
        .join(tables.assignments, (given.task_id == said.task_id) & (given.annotator == said.annotator))
        .where(given.annotator == annotator, given.state == "submitted", said.active_s.is_not(None))
        .order_by(given.leased_at.desc())
        .limit(RECENT)
    )
    with store.connection() as connection:
        states = {row[0]: row[1] for row in connection.execute(mine.group_by(given.state))}
        n_today = connection.execute(today).scalar_one()
        n_waiting = connection.execute(select(func.count()).select_from(left.limit(MOST_LEFT).subquery())).scalar_one()
        n_left = min(MOST_LEFT, n_waiting + connection.execute(held).scalar_one())
        seconds = list(connection.execute(times).scalars())
    each = sum(seconds) / len(seconds) if seconds else None
    return OwnProgress(states.get("submitted", 0), n_today, states.get("skipped", 0), n_left, each)


def own_active_s(store: Store, annotator: str) -> float:
    """Active seconds of a rater's answers that were timed; of an answer and its corrections, all of them."""
    given, said = tables.assignments.c, tables.judgements.c
    question = (
        select(func.sum(said.active_s))
        .join(tables.assignments, (given.task_id == said.task_id) & (given.annotator == said.annotator))
        .where(given.annotator == annotator)
    )
    with store.connection() as connection:
        return float(connection.execute(question).scalar() or 0.0)


DELETION = "asked for deletion"
"""Action of the log entry that asks for the deletion of one's own data."""


@dataclass(frozen=True)
class OwnData:
    """How much is stored about one rater, and since when she has asked for it to be deleted."""

    counts: dict[str, int]
    """Rows by what they are, in the page's words."""
    deletion_asked_at: float | None
    """When she last asked for deletion; None = she did not."""


def own_data(store: Store, account_id: str, annotator: str) -> OwnData:
    """How much is stored about an account and its pseudonym."""

    def count(question: Select) -> int:
        return connection.execute(select(func.count()).select_from(question.subquery())).scalar_one()

    mine = tables.judgements.c.annotator == annotator
    written = select(tables.words.c.judgement_id).join(
        tables.judgements, tables.judgements.c.id == tables.words.c.judgement_id
    )
    skipped = (tables.assignments.c.annotator == annotator) & (tables.assignments.c.state == "skipped")
    asked = select(func.max(people.admin_log.c.at)).where(
        people.admin_log.c.account == account_id, people.admin_log.c.action == DELETION
    )
    with store.connection() as connection:
        counts = {
            "judgements": count(select(tables.judgements.c.id).where(mine)),
            "of them with words of yours": count(written.where(mine)),
            "skipped tasks": count(select(tables.assignments.c.task_id).where(skipped)),
            "drafts": count(select(people.drafts.c.task_id).where(people.drafts.c.annotator == annotator)),
            "consents": count(select(people.consents.c.version).where(people.consents.c.account == account_id)),
            "answers about yourself": count(
                select(people.demographics.c.annotator).where(people.demographics.c.annotator == annotator)
            ),
            "decisions on your standing": count(
                select(people.standing.c.seq).where(people.standing.c.annotator == annotator)
            ),
            "arms of experiments": count(select(people.arms.c.arm).where(people.arms.c.annotator == annotator)),
            "sessions": count(select(people.sessions.c.kind).where(people.sessions.c.account == account_id)),
        }
        return OwnData(counts, connection.execute(asked).scalar())
