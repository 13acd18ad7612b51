"""What stands between a rater and the queue, and how many tasks she could still be handed behind it.

`assignment` hands out, this counts: both pass the same gates (account, consent, standing, budget, qualification, what
she may see today) and ask the same question of the queue (`waiting.tasks_waiting`). Silent checks are not counted: they
come instead of nothing. Knows rules; knows nothing about leases that are made, pages or what an answer says.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, select

from karat.errors import StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.documents import QUALIFICATION, Document, ProjectSettings, Shelf
from karat.feedback.openings import Asked, State, is_live
from karat.feedback.people import care
from karat.feedback.people.own_record import MOST_LEFT
from karat.feedback.people.standing import DECISION, QUARANTINED, read_standing
from karat.feedback.prepared import Prepared
from karat.feedback.waiting import n_waiting
from karat.feedback.work import checks
from karat.feedback.work.rates import BY_PEOPLE, earned, paid, rates, terms, typical_seconds
from karat.feedback.work.turns import had_as_gold

Reason = Literal[
    "work", "locked", "consent", "quarantined", "not qualified", "budget", "exposure", "nothing left"
]  # fmt: skip
"""Why there is work or none: the page says it in the rater's words."""

_RATER = (
    select(
        tables.annotators.c.id,
        tables.annotators.c.done_to,
        people.accounts.c.id.label("account"),
        people.accounts.c.state,
        people.accounts.c.role,
        DECISION.scalar_subquery().label("decision"),
    )
    .outerjoin(people.accounts, people.accounts.c.annotator == tables.annotators.c.id)
    .where(tables.annotators.c.id == bindparam("who"))
)
_SEEN = Prepared(_RATER)
# one rater's requests pass one after another, so that two tabs do not take two tasks
_LOCKED = Prepared(_RATER.with_for_update(of=tables.annotators, key_share=True))
_NEWEST = Prepared(select(sa.func.coalesce(sa.func.max(tables.judgements.c.seq), 0)))
_RATERS = Prepared(select(sa.func.count()).select_from(tables.annotators))


@dataclass(frozen=True)
class Admitted:
    """A rater at the queue, and what limits what she gets of it."""

    annotator: str
    """Annotator.id."""
    audience: str
    """Whose tasks she gets: annotator or expert."""
    settings: ProjectSettings
    """The project's settings."""
    qualification: Document | None
    """The qualification that she is asked before any work; None = she has passed, or there is none for her."""
    warned: tuple[str, ...] = ()
    """Question.ids with a content warning, where the settings cap how many of them she sees in a day."""
    warned_left: int = 0
    """How many of them she may still see today."""
    done_to: int = 0
    """Her mark in the queue of annotators (`waiting`)."""

    @property
    def barred(self) -> tuple[str, ...]:
        """Question.ids that she is not to see now."""
        return self.warned if self.warned_left <= 0 else ()


def admit(
    connection: Connection, annotator: str, papers: Shelf, *, now: float, lock: bool = False
) -> Admitted | Reason:
    """What a rater may get, or why she gets nothing whatever waits.

    A rater without an account (simulated, imported) needs no consent and is asked as an annotator.

    Args:
        papers: the documents of this transaction.    lock: True = in a writing one: her row is locked.
    Raises: StoreError for a rater the store does not know.
    """
    row = (_LOCKED if lock else _SEEN).first(connection, who=annotator)
    if row is None:
        raise StoreError(f"found the rater {annotator!r}, which is not in the store; add_annotators first")
    if row.account is not None and row.state != "active":
        return "locked"
    if row.account is not None and not care.read_consent(connection, row.account, papers).ok:
        return "consent"
    if row.decision == QUARANTINED:
        return "quarantined"
    settings = papers.settings(connection)
    audience, done_to = ("expert", 0) if row.role == "expert" else ("annotator", row.done_to)
    test = papers.find(connection, QUALIFICATION) if audience == "annotator" else None
    if test is not None and read_standing(connection, annotator).state != "unqualified":
        test = None
    if settings.exposure_cap_per_day is None:
        return Admitted(annotator, audience, settings, test, done_to=done_to)
    warned = care.warned_questions(connection)
    warned_left = settings.exposure_cap_per_day - care.exposure(connection, annotator, warned, now=now)
    return Admitted(annotator, audience, settings, test, tuple(warned), warned_left, done_to)


def open_test(
    connection: Connection, annotator: str, test: Document, *, now: float, judge: bool
) -> dict[str, State | None] | None:
    """The open items of the attempt that a rater is in; {} = she has no attempt left, None = she has passed.

    Args:
        judge: True = in a writing transaction: a finished attempt is judged, which stays; False = only looked at.
    """
    standing = read_standing(connection, annotator)
    if standing.state == "working":  # since a moment ago
        return None
    for attempt in range(standing.attempts_failed + 1, standing.attempts_failed + standing.attempts_left + 1):
        items = checks.open_items(connection, annotator, test, attempt)
        if items:
            return items
        if judge:
            passed = checks.write_attempt(connection, annotator, test, attempt, now=now)
        else:
            passed = checks.attempt_result(connection, annotator, test, attempt)[1]
        if passed:
            return None
    return {}


def over_budget(connection: Connection, settings: ProjectSettings, *, now: float) -> bool:
    """True = the judgements of people, given or being given, have used up the budget of the settings."""
    return budget_room(connection, settings, now=now) == 0


def budget_room(connection: Connection, settings: ProjectSettings, *, now: float, near: int = 0) -> int | None:
    """How many judgements by people the budget takes beside those given and those being given.

    Returns: None = there is no such limit, or more than `near` are left. A budget in hours, or in money at several
        rates, gives 0 once it is used up and None before, because nobody knows who will take how long.
    """
    budget, pay = settings.budget, settings.pay
    limits = [] if budget.judgements is None else [budget.judgements]
    if budget.money is not None and pay is not None:
        by_arm = bool(rates(settings)) or len(terms(connection)) > 1
        if (by_arm or pay.per == "hour") and _spent(connection, settings, now=now):
            return 0
        if not by_arm and pay.per == "judgement" and pay.amount:
            limits.append(int(budget.money / pay.amount + 1e-9))
    if not limits:
        return None
    if _NEWEST.scalar(connection) + _RATERS.scalar(connection) + near < min(limits):
        return None  # only now is it worth counting them
    given = select(sa.func.count()).select_from(tables.judgements).where(BY_PEOPLE)
    live = select(sa.func.count()).select_from(tables.assignments).where(is_live(now))
    n = connection.execute(given).scalar_one() + connection.execute(live).scalar_one()
    return max(0, min(limits) - n)


def _spent(connection: Connection, settings: ProjectSettings, *, now: float) -> bool:
    """Whether a budget in money is used up, where that is no number of judgements."""
    money, pay = settings.budget.money, settings.pay
    assert money is not None
    assert pay is not None
    by_rater = paid(connection, now=now)
    typical_s = typical_seconds(by_rater)
    spent = sum(earned(one, typical_s) or 0.0 for one in by_rater)
    if pay.per == "hour":
        return spent >= money
    spent += sum(one.rate * one.n_held for one in by_rater)
    return spent + max([pay.amount, *rates(settings).values()]) > money + 1e-9  # the next one might pass it


@dataclass(frozen=True)
class Left:
    """What the queue has for a rater beside the tasks in her hands."""

    n: int
    """How many tasks she could still be handed; at most MOST_LEFT."""
    reason: Reason
    """"work", or why there is none."""
    qualifying: bool = False
    """True = they are items of the qualification; what follows depends on her."""


def left_for(
    connection: Connection, rater: Admitted | Reason, *, now: float, met: Collection[Asked] | None = None
) -> Left:
    """What a rater could still be handed beside the tasks in her hands.

    In a qualification the items of the attempt she is in. Of texts with a content warning those that she may still see
    today. Exact while nobody else works, no check carries such a warning, and the budget is a number of judgements, of
    which what she skips uses up none.

    Args:
        met: what she was asked as gold; None = it is looked up.
    """
    if isinstance(rater, str):
        return Left(0, rater)
    room = budget_room(connection, rater.settings, now=now, near=MOST_LEFT)
    if room == 0:
        return Left(0, "budget")
    most = MOST_LEFT if room is None else min(room, MOST_LEFT)
    if rater.qualification is not None:
        items = open_test(connection, rater.annotator, rater.qualification, now=now, judge=False)
        if items is not None:
            n = sum(state is None or not state.live(now) for state in items.values())
            return Left(min(n, most), "work" if items else "not qualified", qualifying=True)
    if met is None:
        met = had_as_gold(connection, rater.annotator) if rater.audience == "annotator" else ()
    waiting = partial(
        n_waiting, connection, rater.annotator, now=now, audience=rater.audience, met=met, done_to=rater.done_to
    )
    n = waiting(most=most, barred=rater.warned)
    seen = min(most - n, rater.warned_left - _warned_in_hand(connection, rater, now=now)) if rater.warned else 0
    if seen > 0:
        n += waiting(most=seen, only=rater.warned)
    if not n and rater.barred and waiting(most=1):
        return Left(0, "exposure")
    return Left(n, "work" if n else "nothing left")


def _warned_in_hand(connection: Connection, rater: Admitted, *, now: float) -> int:
    held = tables.assignments.c
    question = (
        select(sa.func.count())
        .select_from(tables.assignments.join(tables.tasks, tables.tasks.c.id == held.task_id))
        .where(held.annotator == rater.annotator, is_live(now), tables.tasks.c.question.in_(rater.warned))
    )
    return connection.execute(question).scalar_one()
