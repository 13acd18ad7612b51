"""What people are paid for what they gave, where arms of an experiment change the rate: by rater, inside a transaction.

Knows settings, arms and judgements; knows nothing about pages or budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from karat.feedback.arm_changes import change_of
from karat.feedback.documents import ProjectSettings
from karat.feedback.openings import is_live
from karat.feedback.people_tables import arms
from karat.feedback.schema import assignments, judgements

BY_PEOPLE = and_(judgements.c.origin == "person", judgements.c.supersedes.is_(None))
"""A judgement by a person that corrects none of her own: what is paid for, and what a budget of judgements counts."""


@dataclass(frozen=True)
class Paid:
    """What one rater gave, and at which rate."""

    rate: float
    """Money for a judgement or an hour."""
    n: int
    """Her judgements; corrections of her own do not count."""
    n_timed: int
    """Those with measured seconds."""
    active_s: float
    """Their active seconds."""
    n_held: int
    """Tasks in her hands now."""


def rates(settings: ProjectSettings) -> Mapping[tuple[str, str], float]:
    """The rate of every (experiment, arm) that changes it."""
    found = {}
    for name, bodies in settings.arm_changes.items():
        for arm, body in bodies.items():
            pay = change_of(body).pay
            if pay is not None:
                found[name, arm] = pay
    return found


def paid(connection: Connection, settings: ProjectSettings, *, now: float) -> list[Paid]:
    """Every rater who gave or holds something, with her rate: that of the arm she was drawn into, else the settings'.

    A rater keeps the rate of her arm for all that she gave. [] where nothing is paid.
    """
    if settings.pay is None:
        return []
    known = rates(settings)
    rate_of = {
        row.annotator: known[row.experiment, row.arm]
        for row in connection.execute(select(arms))
        if (row.experiment, row.arm) in known
    }
    given = select(
        judgements.c.annotator,
        func.count(),
        func.count(judgements.c.active_s),
        func.coalesce(func.sum(judgements.c.active_s), 0.0),
    )
    rows = {
        row[0]: (int(row[1]), int(row[2]), float(row[3]))
        for row in connection.execute(given.where(BY_PEOPLE).group_by(judgements.c.annotator))
    }
    held = dict(
        map(
            tuple,
            connection.execute(
                select(assignments.c.annotator, func.count()).where(is_live(now)).group_by(assignments.c.annotator)
            ),
        )
    )
    return [
        Paid(rate_of.get(who, settings.pay.amount), *rows.get(who, (0, 0, 0.0)), held.get(who, 0))
        for who in sorted(rows.keys() | held.keys())
    ]
