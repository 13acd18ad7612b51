"""What people are paid for what they gave: by rater, inside a transaction. The one definition that every page shows.

    by judgement: rate·n                by hour: rate·seconds/3600
    seconds = measured active seconds, corrections included, + (answers without a time)·(mean of the others of hers)

A correction is no new answer, but the time it takes is worked. Where none of hers was timed, everybody's mean stands in.
Knows settings, arms and judgements; knows nothing about pages or budgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, and_, case, func, select

from karat.feedback.arm_changes import change_of
from karat.feedback.documents import ProjectSettings, project_settings
from karat.feedback.openings import is_live
from karat.feedback.people_tables import arms
from karat.feedback.schema import assignments, judgements
from karat.feedback.store import Store

BY_PEOPLE = and_(judgements.c.origin == "person", judgements.c.supersedes.is_(None))
"""A judgement by a person that corrects none of her own: what is paid for, and what a budget of judgements counts."""


@dataclass(frozen=True)
class Paid:
    """What one rater gave, and at which rate."""

    annotator: str
    """Annotator.id."""
    rate: float
    """Money for a judgement or an hour."""
    n: int
    """Her judgements; corrections of her own do not count."""
    n_timed: int
    """Those with measured seconds."""
    active_s: float
    """Their active seconds."""
    corrections_s: float
    """Active seconds of her corrections."""
    n_held: int
    """Tasks in her hands now."""


def paid_seconds(one: Paid, typical_s: float | None) -> float | None:
    """Active seconds that an hourly rate pays a rater for; None = she has answers without a time, and nobody has one.

    Args:
        typical_s: mean active seconds of everybody's timed answers (`typical_seconds`).
    """
    untimed = one.n - one.n_timed
    mean_s = one.active_s / one.n_timed if one.n_timed else typical_s
    if untimed and mean_s is None:
        return None
    return one.active_s + one.corrections_s + untimed * (mean_s or 0.0)


def earned(per: str, one: Paid, typical_s: float | None) -> float | None:
    """Money that a rater has earned; None where `paid_seconds` is.

    Args:
        per: "judgement" or "hour".

    >>> earned("hour", Paid("ann", 18.0, n=3, n_timed=2, active_s=40.0, corrections_s=20.0, n_held=0), None)
    0.4
    """
    if per == "judgement":
        return one.rate * one.n
    seconds = paid_seconds(one, typical_s)
    return None if seconds is None else one.rate * seconds / 3600


def typical_seconds(by_rater: Iterable[Paid]) -> float | None:
    """Mean active seconds of the answers that were timed, whoever gave them; None = none was."""
    n, seconds = 0, 0.0
    for one in by_rater:
        n, seconds = n + one.n_timed, seconds + one.active_s
    return seconds / n if n else None


def own_pay(store: Store, annotator: str) -> tuple[float | None, float]:
    """What one rater has earned, None where nothing is paid, and the seconds that an hourly rate would pay for.

    The same figures on her own page and on the admin's. Seconds that cannot be said count as none.
    """
    settings = project_settings(store)
    with store.connection() as connection:
        found = paid(connection, settings, now=0.0, annotator=annotator)
        one = found[0] if found else Paid(annotator, 0.0, 0, 0, 0.0, 0.0, 0)
        typical_s = None
        if one.n > one.n_timed == 0:
            typical_s = connection.execute(select(func.avg(judgements.c.active_s)).where(BY_PEOPLE)).scalar()
    money = None if settings.pay is None else earned(settings.pay.per, one, typical_s) or 0.0
    return money, paid_seconds(one, typical_s) or 0.0


def rates(settings: ProjectSettings) -> Mapping[tuple[str, str], float]:
    """The rate of every (experiment, arm) that changes it."""
    found = {}
    for name, bodies in settings.arm_changes.items():
        for arm, body in bodies.items():
            pay = change_of(body).pay
            if pay is not None:
                found[name, arm] = pay
    return found


def paid(connection: Connection, settings: ProjectSettings, *, now: float, annotator: str | None = None) -> list[Paid]:
    """Every rater who gave or holds something, with her rate: that of the arm she was drawn into, else the settings'.

    A rater keeps the rate of her arm for all that she gave; it is 0 where nothing is paid.

    Args:
        annotator: only this rater.
    """
    usual = 0.0 if settings.pay is None else settings.pay.amount
    known = rates(settings)
    rate_of = {
        row.annotator: known[row.experiment, row.arm]
        for row in connection.execute(select(arms))
        if (row.experiment, row.arm) in known
    }
    said, first = judgements.c, judgements.c.supersedes.is_(None)
    given = select(
        said.annotator,
        func.sum(case((first, 1), else_=0)),
        func.sum(case((first & said.active_s.is_not(None), 1), else_=0)),
        func.sum(case((first, func.coalesce(said.active_s, 0.0)), else_=0.0)),
        func.sum(case((first, 0.0), else_=func.coalesce(said.active_s, 0.0))),
    ).where(said.origin == "person")
    held = select(assignments.c.annotator, func.count()).where(is_live(now))
    if annotator is not None:
        given, held = given.where(said.annotator == annotator), held.where(assignments.c.annotator == annotator)
    rows = {
        row[0]: (int(row[1]), int(row[2]), float(row[3]), float(row[4]))
        for row in connection.execute(given.group_by(said.annotator))
    }
    in_hand = dict(map(tuple, connection.execute(held.group_by(assignments.c.annotator))))
    return [
        Paid(who, rate_of.get(who, usual), *rows.get(who, (0, 0, 0.0, 0.0)), in_hand.get(who, 0))
        for who in sorted(rows.keys() | in_hand.keys())
    ]
