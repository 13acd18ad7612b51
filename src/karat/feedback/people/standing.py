"""How a rater stands: working, quarantined or not qualified yet, as events that are never changed.

Nobody is quarantined by a program: detectors leave flags, a person reads them, decides and says why; the rater reads
it and can answer; a release undoes it. What was judged stays, and views leave it out as long as the quarantine lasts.
A qualification that was failed is not the last word either: the rater can ask for a review, and a person gives her
another attempt, admits her, or lets the result stand and says why (`work.qualifying`).
Knows events and flags; knows nothing about how a flag came to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, select

from karat.errors import InputError, StoreError
from karat.feedback import leases
from karat.feedback import people_tables as people
from karat.feedback.detect.evidence import Flag
from karat.feedback.documents import QUALIFICATION, Document, read_document
from karat.feedback.prepared import Prepared
from karat.feedback.store import Store

QUARANTINED, ANSWERED, RELEASED, QUALIFIED, FAILED = "quarantined", "answered", "released", "qualified", "failed"
"""Actions of the events."""
RETRY, ADMITTED, REVIEW, KEPT = "another attempt", "admitted", "asks for review", "result stands"
"""Actions of the events about a failed qualification: what a person decided, and what the rater asked."""

PROGRAM = "qualification:"
"""Starts `by` of the events that a qualification wrote; its version follows."""

MOST_CHARS = 10_000
"""Of a reason or an answer."""

_EVENTS = Prepared(
    select(people.standing).where(people.standing.c.annotator == bindparam("who")).order_by(people.standing.c.seq)
)
DECISION = (
    select(people.standing.c.action)
    .where(people.standing.c.annotator == bindparam("who"), people.standing.c.action.in_((QUARANTINED, RELEASED)))
    .order_by(people.standing.c.seq.desc())
    .limit(1)
)
"""The last decision on the rater `who`: quarantined, released or nothing."""
_DECISION = Prepared(DECISION)

State = Literal["working", "quarantined", "unqualified"]


@dataclass(frozen=True)
class StandingEvent:
    """Something that changed how a rater stands, or her answer to it."""

    seq: int
    """Order in the store."""
    annotator: str
    """Whose standing."""
    action: str
    """quarantined, answered, released, qualified, failed, another attempt, admitted, asks for review or result stands."""
    reason: str
    """Why, in words that the rater reads; for "answered": her words. "" once it was erased."""
    by: str
    """Account.id of who did it, or `qualification:<version>`."""
    at: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Standing:
    """How a rater stands now."""

    state: State
    """"working", "quarantined" (reads, answers, does not judge) or "unqualified" (gets qualification items only)."""
    events: tuple[StandingEvent, ...]
    """All events, oldest first."""
    attempts_failed: int = 0
    """Failed attempts at the newest qualification."""
    attempts_left: int = 0
    """Attempts that she still has at it, those that a person gave her among them; 0 where there is none to pass."""
    qualified: bool = True
    """True = she has passed it, was admitted, or there is none; also while she is quarantined."""

    @property
    def may_ask_review(self) -> bool:
        """True = she has failed, has no attempt left, and no review that she asked for waits."""
        about = [one.action for one in self.events if one.action in (FAILED, REVIEW, RETRY, KEPT)]
        return not self.qualified and self.attempts_failed > 0 and not self.attempts_left and about[-1:] != [REVIEW]


@dataclass(frozen=True)
class StoredFlag:
    """What a detector found, as a person reviews it."""

    seq: int
    """Order in the store."""
    annotator: str
    """Whom it is about."""
    detector: str
    """Which detector."""
    statistic: float
    """Its statistic."""
    p_value: float
    """Probability of a statistic so large under honest work."""
    n_votes: int
    """On how many votes."""
    detail: str
    """What was seen, in words. "" once it was erased."""
    at: float
    """Seconds since the epoch."""


def quarantine(store: Store, annotator: str, *, reason: str, by: str, now: float) -> None:
    """Keep a rater from further work until released; her lease goes back to the queue.

    Args:
        reason: what she will read.    by: Account.id of the person who decided.
    Raises: StoreError where she is quarantined already; InputError without a reason.
    """

    def write(connection: Connection) -> None:
        if is_quarantined(connection, annotator):
            raise StoreError(f"{annotator!r} is quarantined already; release first, or read the reason that stands")
        write_event(connection, annotator, QUARANTINED, words_of("reason", reason), by=by, now=now)
        leases.end_leases(connection, annotator, now=now)

    store.write(write)


def release(store: Store, annotator: str, *, reason: str, by: str, now: float) -> None:
    """Undo a quarantine: she works again, and what she judged counts again.

    Raises: StoreError where she is not quarantined.
    """

    def write(connection: Connection) -> None:
        if not is_quarantined(connection, annotator):
            raise StoreError(f"{annotator!r} is not quarantined; nothing was released")
        write_event(connection, annotator, RELEASED, words_of("reason", reason), by=by, now=now)

    store.write(write)


def answer_quarantine(store: Store, annotator: str, text: str, *, by: str, now: float) -> None:
    """The rater's own words on her quarantine, for the person who reviews it.

    Args:
        by: her Account.id.
    Raises: StoreError where she is not quarantined; InputError for an empty or overlong text.
    """

    def write(connection: Connection) -> None:
        if not is_quarantined(connection, annotator):
            raise StoreError("you are not quarantined; there is nothing to answer")
        write_event(connection, annotator, ANSWERED, words_of("answer", text), by=by, now=now)

    store.write(write)


def ask_review(store: Store, annotator: str, text: str, *, by: str, now: float) -> None:
    """The rater's own words on a qualification that she failed, for the person who reviews it.

    Args:
        by: her Account.id.
    Raises: StoreError where she has not failed, has an attempt left, or has asked already; InputError as
        `answer_quarantine`.
    """

    def write(connection: Connection) -> None:
        if not read_standing(connection, annotator).may_ask_review:
            raise StoreError("there is nothing to review, or your last request is still being read")
        write_event(connection, annotator, REVIEW, words_of("answer", text), by=by, now=now)

    store.write(write)


def standing_of(store: Store, annotator: str) -> Standing:
    """How a rater stands, with everything that led to it."""
    with store.connection() as connection:
        return read_standing(connection, annotator)


def read_standing(connection: Connection, annotator: str) -> Standing:
    """`standing_of` inside a transaction."""
    events = tuple(StandingEvent(*row) for row in _EVENTS.all(connection, who=annotator))
    return _standing(events, read_document(connection, QUALIFICATION))


def read_standings(connection: Connection, annotators: Iterable[str]) -> dict[str, Standing]:
    """`standing_of` for many raters, by one query."""
    events: dict[str, list[StandingEvent]] = {one: [] for one in annotators}
    for row in connection.execute(select(people.standing).order_by(people.standing.c.seq)):
        if row.annotator in events:
            events[row.annotator].append(StandingEvent(*row))
    wanted = read_document(connection, QUALIFICATION)
    return {one: _standing(tuple(own), wanted) for one, own in events.items()}


def _standing(events: tuple[StandingEvent, ...], wanted: Document | None) -> Standing:
    """How the events leave her, under the qualification in force."""
    failed, left, qualified = 0, 0, True
    if wanted is not None:
        mark = PROGRAM + wanted.version
        failed = sum(event.action == FAILED and event.by == mark for event in events)
        # a person decides on the version in force at that moment
        since = [event.action for event in events if event.at >= wanted.created_at]
        left = max(len(wanted.body["items"]) + since.count(RETRY) - failed, 0)
        again = bool(wanted.body.get("requalify", False))
        passed = [event.by for event in events if event.action == QUALIFIED]
        admitted = ADMITTED in (since if again else [event.action for event in events])
        qualified = admitted or (mark in passed if again else bool(passed))
    state: State = "working" if qualified else "unqualified"
    decisions = [event.action for event in events if event.action in (QUARANTINED, RELEASED)]
    if decisions and decisions[-1] == QUARANTINED:
        state = "quarantined"
    return Standing(state, events, failed, left, qualified)


def is_quarantined(connection: Connection, annotator: str) -> bool:
    """True = the last decision on this rater was a quarantine."""
    return _DECISION.scalar(connection, who=annotator) == QUARANTINED


def quarantined(store: Store) -> frozenset[str]:
    """Every rater who is quarantined now: whom views leave out."""
    columns = people.standing.c
    last = (
        select(sa.func.max(columns.seq)).where(columns.action.in_((QUARANTINED, RELEASED))).group_by(columns.annotator)
    )
    question = select(columns.annotator).where(columns.seq.in_(last), columns.action == QUARANTINED)
    with store.connection() as connection:
        return frozenset(connection.execute(question).scalars())


def write_event(connection: Connection, annotator: str, action: str, reason: str, *, by: str, now: float) -> None:
    """Write one event inside a transaction."""
    row = {"annotator": annotator, "action": action, "reason": reason, "by": by, "at": now}
    connection.execute(people.standing.insert().values(**row))


def record_flags(store: Store, found: Iterable[Flag], *, now: float) -> int:
    """Store what detectors found, for review, one row for each rater whom a flag names.

    The same finding on the same votes is not stored twice. Returns: how many rows were new.
    """
    rows = [
        {"annotator": who, "detector": each.detector, "statistic": float(each.statistic), "at": now}
        | {"p_value": float(each.p_value), "n_votes": int(each.n_votes), "detail": each.detail}
        for each in found
        for who in each.annotators
    ]

    def write(connection: Connection) -> int:
        columns = people.flags.c
        key = ("annotator", "detector", "n_votes", "statistic")
        known = {tuple(row) for row in connection.execute(select(*(columns[name] for name in key)))}
        named = {tuple(row[name] for name in key): row for row in rows}
        new = [row for names, row in named.items() if names not in known]
        if new:
            connection.execute(people.flags.insert(), new)
        return len(new)

    return store.write(write)


def flags(store: Store, annotator: str | None = None) -> list[StoredFlag]:
    """Flags in order of arrival: of one rater, or all."""
    question = select(people.flags).order_by(people.flags.c.seq)
    if annotator is not None:
        question = question.where(people.flags.c.annotator == annotator)
    with store.connection() as connection:
        return [StoredFlag(*row) for row in connection.execute(question)]


def words_of(what: str, text: str) -> str:
    """A reason or an answer without the blanks around it. Raises: InputError for an empty or overlong one."""
    if not 0 < len(text.strip()) <= MOST_CHARS:
        raise InputError(f"{what}: found {len(text.strip())} characters; expected 1 to {MOST_CHARS}")
    return text.strip()
