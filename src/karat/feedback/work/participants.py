"""Who came from another platform, as whoever answers for the study needs it: the platform's ids beside what was done.

With it an admin approves, pays and asks back there. The ids are for admins alone; pages and exports for others have
pseudonyms. Knows accounts, consent, standing and pay; knows nothing about pages or files.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from sqlalchemy import func, select

from karat.errors import StoreError
from karat.feedback.documents import shelf
from karat.feedback.people.accounts import Account, accounts
from karat.feedback.people.care import ConsentState, read_consents
from karat.feedback.people.standing import Standing, read_standings
from karat.feedback.people.studies import read_way_out, studies
from karat.feedback.schema import judgements
from karat.feedback.store import Store
from karat.feedback.work.rates import BY_PEOPLE, every_pay


@dataclass(frozen=True)
class Came:
    """One participant of a study; the fields are the columns of the table, in their order."""

    participant: str
    """The participant's id on the platform."""
    study: str
    """Name of the study here: the link that she came by."""
    platform_study: str
    """The platform's own id of the study, "" = not sent."""
    session: str
    """The platform's id of her first visit, "" = not sent."""
    annotator: str
    """Her pseudonym here, as in every export of judgements."""
    came_at: str
    """When she first came, ISO 8601 UTC."""
    state: str
    """One of "has not agreed", "took consent back", "not qualified", "paused", "locked", "worked", "nothing done"."""
    n_answers: int
    """Answers of hers, those of the qualification included; a correction is no new answer."""
    active_s: float
    """Seconds that an hourly rate pays for."""
    earned: float | None
    """Money, as on her own page; None = nothing is paid."""
    way_out: str
    """The completion address or code that her page shows at this state, "" = none."""


def participants(store: Store, study: str = "") -> list[Came]:
    """Everybody who came by a study's link, in the order in which they first came; erased ones are not named any more.

    Args:
        study: only by this one; "" = by any.
    Raises: StoreError for a study of another name.
    """
    if study and study not in (known := [one.name for one in studies(store)]):
        raise StoreError(f"study {study!r}: there is none of that name; found {', '.join(known) or 'none at all'}")
    came = [one for one in accounts(store) if one.outside and study in ("", one.outside.get("link", ""))]
    named = {one.annotator: one for one in came if one.annotator}
    with store.connection() as connection:
        question = select(judgements.c.annotator, func.count()).where(BY_PEOPLE).group_by(judgements.c.annotator)
        answered: dict[str, int] = dict(map(tuple, connection.execute(question)))
        consents = read_consents(connection, [one.id for one in named.values()])
        standings, pay, papers = read_standings(connection, named), every_pay(connection, named), shelf(connection)
        rows = []
        for annotator, account in named.items():
            n_answers = answered.get(annotator, 0)
            state, end = _state(account, n_answers, consents[account.id], standings[annotator])
            out = read_way_out(connection, account.outside.get("link", ""), end, papers)
            rows.append(_came(annotator, account, state, n_answers, pay[annotator], out))
    return rows


def _came(
    annotator: str, account: Account, state: str, n_answers: int, pay: tuple[float | None, float], out: str
) -> Came:
    money, seconds = pay
    return Came(
        participant=account.outside.get("participant", ""),
        study=account.outside.get("link", ""),
        platform_study=account.outside.get("study", ""),
        session=account.outside.get("session", ""),
        annotator=annotator,
        came_at=datetime.datetime.fromtimestamp(account.created_at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        state=state,
        n_answers=n_answers,
        active_s=round(seconds, 1),
        earned=None if money is None else round(money, 4),
        way_out=out,
    )


def _state(account: Account, n_answers: int, consent: ConsentState, standing: Standing) -> tuple[str, str]:
    """How she stands, and the end of `studies.ENDS` that her page offers."""
    done = "completed" if n_answers else "no work"
    if account.state != "active":
        return "locked", done
    if not consent.ok:
        taken_back = consent.given_at is not None or n_answers > 0
        return "took consent back" if taken_back else "has not agreed", "completed" if n_answers else "declined"
    if standing.state == "quarantined":
        return "paused", "completed"
    if not standing.qualified and standing.attempts_failed and not standing.attempts_left:
        return "not qualified", "screened"
    return ("worked" if n_answers else "nothing done"), done
