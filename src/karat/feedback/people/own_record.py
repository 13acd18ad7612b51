"""What a rater may know about herself: how much is done and left, how long it takes, and what is stored about her.

Nobody else's figures, and no comparison with anybody. Knows tables; knows nothing about pages or about what others did.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, ScalarSelect, Select, bindparam, func, select

from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.openings import is_live
from karat.feedback.prepared import Prepared
from karat.feedback.store import Store

MOST_LEFT = 200
"""Tasks left that are counted; beyond, it is so many "or more"."""
DAY_S = 86400.0
RECENT = 30
"""Latest judgements whose time says how long the next ones take."""


def _own_question() -> Select:
    """All figures in one statement, because every page of work asks for them."""
    who = bindparam("who")
    given, said = tables.assignments.c, tables.judgements.c
    times = (
        select(said.active_s)
        .where(said.annotator == who, said.active_s.is_not(None))
        .order_by(said.seq.desc())
        .limit(RECENT)
        .subquery()
    )

    def count(*which: ColumnElement[bool]) -> ScalarSelect:
        return select(func.count()).where(given.annotator == who, *which).scalar_subquery()

    return select(
        count(given.state == "submitted").label("n_done"),
        count(given.state == "submitted", given.leased_at >= bindparam("day")).label("n_today"),
        count(given.state == "skipped").label("n_skipped"),
        count(is_live(bindparam("now"))).label("n_held"),
        select(func.avg(times.c.active_s)).scalar_subquery().label("seconds_each"),
    )


_OWN = Prepared(_own_question())


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
    """Tasks that she could still be handed, with the one in her hands (`work.gates.left_for`); at most MOST_LEFT."""
    seconds_each: float | None
    """Mean active seconds of her recent judgements; None = not measured."""

    @property
    def left(self) -> str:
        """How much is left, in tens: an exact number that stands still would tell a silent check from work."""
        if not self.n_left:
            return "none"
        if self.n_left >= MOST_LEFT:
            return f"{MOST_LEFT} or more"
        return "fewer than 10" if self.n_left < 10 else f"about {self.n_left // 10 * 10}"

    @property
    def seconds_left(self) -> float | None:
        """How long those tens take at her pace; None = not known, fewer than ten, or more than was counted."""
        if self.seconds_each is None or not 10 <= self.n_left < MOST_LEFT:
            return None
        return self.n_left // 10 * 10 * self.seconds_each


def read_progress(connection: Connection, annotator: str, n_waiting: int, *, may_work: bool, now: float) -> OwnProgress:
    """A rater's own figures, inside a transaction.

    Args:
        n_waiting: what she could be handed beside the tasks in her hands.    may_work: False = not even those.
        now: seconds since the epoch.
    """
    row = _OWN.first(connection, who=annotator, now=now, day=now - now % DAY_S)
    assert row is not None
    n_left = min(MOST_LEFT, n_waiting + row.n_held) if may_work else 0
    return OwnProgress(row.n_done, row.n_today, row.n_skipped, n_left, row.seconds_each)


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
