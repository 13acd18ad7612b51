"""What people are paid for what they gave: by rater, inside a transaction. The one definition that every page shows.

    by judgement: rate·n                by hour: rate·seconds/3600
    seconds = measured active seconds, corrections included, + (answers without a time)·(mean of the others of hers)

A correction is no new answer, but the time it takes is worked. Where none of hers was timed, everybody's mean stands in.
An answer is paid at the rate that the settings promised when it was given: a change of pay and the end of an experiment change
nothing about what was earned before. Answers given before any pay was set are paid as the first that was.
Knows settings, arms and judgements; knows nothing about pages or budgets.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy import Connection, and_, case, func, literal, select

from karat.feedback.arm_changes import change_of
from karat.feedback.documents import SETTINGS, ProjectSettings, read_settings, settings_of
from karat.feedback.openings import is_live
from karat.feedback.people_tables import arms, documents
from karat.feedback.schema import assignments, judgements
from karat.feedback.store import Store

BY_PEOPLE = and_(judgements.c.origin == "person", judgements.c.supersedes.is_(None))
"""A judgement by a person that corrects none of her own: what is paid for, and what a budget of judgements counts."""


@dataclass(frozen=True)
class Terms:
    """What was paid from a moment on."""

    since: str
    """The first second in which an answer was given under them, as in `Judgement.created_at`; "" = from the beginning."""
    usual: float
    """Money for a judgement or an hour; 0 = nothing was paid."""
    per: str
    """"judgement" or "hour"."""
    arms: tuple[tuple[tuple[str, str], float], ...]
    """The rate of every (experiment, arm) that changes it."""


@dataclass(frozen=True)
class Paid:
    """What one rater gave at one rate."""

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
    """Tasks in her hands now, where this is today's rate; else 0."""
    per: str = "judgement"
    """What is paid for: "judgement" or "hour"."""


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


def earned(one: Paid, typical_s: float | None) -> float | None:
    """Money that a rater has earned at a rate; None where `paid_seconds` is.

    >>> earned(Paid("ann", 18.0, n=3, n_timed=2, active_s=40.0, corrections_s=20.0, n_held=0, per="hour"), None)
    0.4
    """
    if one.per == "judgement":
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
    with store.connection() as connection:
        nothing = _nothing(connection)
        return _pays(connection, paid(connection, now=0.0, annotator=annotator), nothing).get(annotator, nothing)


def every_pay(connection: Connection, annotators: Iterable[str]) -> dict[str, tuple[float | None, float]]:
    """`own_pay` for many raters, by one query for all."""
    nothing = _nothing(connection)
    known = _pays(connection, paid(connection, now=0.0), nothing)
    return {one: known.get(one, nothing) for one in annotators}


def _nothing(connection: Connection) -> tuple[float | None, float]:
    """The pay of a rater who gave nothing."""
    return (None if read_settings(connection).pay is None else 0.0), 0.0


def _pays(
    connection: Connection, found: Sequence[Paid], nothing: tuple[float | None, float]
) -> dict[str, tuple[float | None, float]]:
    typical_s = None
    if any(one.n > one.n_timed == 0 for one in found):
        typical_s = connection.execute(select(func.avg(judgements.c.active_s)).where(BY_PEOPLE)).scalar()
    pays: dict[str, tuple[float | None, float]] = {}
    for one in found:
        money, seconds = pays.get(one.annotator, nothing)
        more = None if money is None else money + (earned(one, typical_s) or 0.0)
        pays[one.annotator] = more, seconds + (paid_seconds(one, typical_s) or 0.0)
    return pays


def rates(settings: ProjectSettings) -> Mapping[tuple[str, str], float]:
    """The rate of every (experiment, arm) that changes it."""
    found = {}
    for name, bodies in settings.arm_changes.items():
        for arm, body in bodies.items():
            pay = change_of(body).pay
            if pay is not None:
                found[name, arm] = pay
    return found


def terms(connection: Connection) -> Sequence[Terms]:
    """What was paid, from the first settings that pay on; at least one entry."""
    rows = connection.execute(
        select(documents.c.body, documents.c.created_at).where(documents.c.name == SETTINGS).order_by(documents.c.seq)
    )
    found: list[Terms] = []
    for body, at in rows:
        one = _terms_in(body)
        if not found and (one.usual or one.arms):
            found.append(one)
        elif found and replace(found[-1], since="") != one:
            # whoever answered in the second of the change had been promised what was before
            moment = datetime.datetime.fromtimestamp(int(at) + 1, datetime.UTC)
            found.append(replace(one, since=moment.strftime("%Y-%m-%dT%H:%M:%SZ")))
    return found or [Terms("", 0.0, "judgement", ())]


@functools.lru_cache(maxsize=256)
def _terms_in(body: str) -> Terms:
    settings = settings_of(json.loads(body))
    usual, per = (0.0, "judgement") if settings.pay is None else (settings.pay.amount, settings.pay.per)
    return Terms("", usual, per, tuple(sorted(rates(settings).items())))


def paid(connection: Connection, *, now: float, annotator: str | None = None) -> list[Paid]:
    """Every rater who gave or holds something, an entry for each of `terms` under which she did, with her rate: that of the arm
    she was drawn into, where they have one for it, else the usual; 0 where nothing is paid.

    Args:
        annotator: only this rater.
    """
    offered = terms(connection)
    rate_of: list[dict[str, float]] = []
    drawn = connection.execute(select(arms)).all() if any(one.arms for one in offered) else []
    for one in offered:
        known = dict(one.arms)
        rate_of.append({row.annotator: known[key] for row in drawn if (key := (row.experiment, row.arm)) in known})
    said, first = judgements.c, judgements.c.supersedes.is_(None)
    later = [(said.created_at >= one.since, n) for n, one in reversed(list(enumerate(offered))) if n]
    under = case(*later, else_=0) if later else literal(0)
    given = select(
        said.annotator,
        under.label("under"),
        func.sum(case((first, 1), else_=0)),
        func.sum(case((first & said.active_s.is_not(None), 1), else_=0)),
        func.sum(case((first, func.coalesce(said.active_s, 0.0)), else_=0.0)),
        func.sum(case((first, 0.0), else_=func.coalesce(said.active_s, 0.0))),
    ).where(said.origin == "person")
    held = select(assignments.c.annotator, func.count()).where(is_live(now))
    if annotator is not None:
        given, held = given.where(said.annotator == annotator), held.where(assignments.c.annotator == annotator)
    rows = {
        (row[0], row[1]): (int(row[2]), int(row[3]), float(row[4]), float(row[5]))
        for row in connection.execute(given.group_by(said.annotator, sa.text("under")))
    }
    today = len(offered) - 1
    in_hand = {(row[0], today): row[1] for row in connection.execute(held.group_by(assignments.c.annotator))}
    return [
        Paid(
            who, rate_of[n].get(who, offered[n].usual), *rows.get((who, n), (0, 0, 0.0, 0.0)),
            in_hand.get((who, n), 0), offered[n].per,
        )
        for who, n in sorted(rows.keys() | in_hand.keys())
    ]  # fmt: skip
