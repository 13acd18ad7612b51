"""What the people in charge look at: how far the work is, what waits in the queue, and how far raters agree.

Queries in, frozen records out, each computed from the database alone, so that every worker of the server shows the
same. Knows tables and estimators; knows nothing about pages, charts or who is asking.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection, and_, case, func, select

from karat.feedback.openings import CHECK, PULLED, is_live, needs_answers
from karat.feedback.people_tables import admin_log, checks, documents, flags, queue_log, standing
from karat.feedback.quality.agreement import agreement_table
from karat.feedback.quality.answer_table import AnswerTable, judgement_table, vote_table
from karat.feedback.schema import StoredJudgement, assignments, judgements, tasks
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.records import Estimate, Judgement, vote_of

HOUR_S = 3600.0
TAIL = 50_000
"""Newest judgements in which the last hour is looked for: the pulse must stay cheap in a store of millions."""


NOMINAL = ("agreement", "nominal alpha", "Fleiss' kappa", "Gwet's AC1")
"""Coefficients of answers without an order."""
DISMISSAL = "flags dismissed"
"""Action of the admin log by which somebody decided that the flags of a rater (the subject) mean nothing."""


@dataclass(frozen=True)
class Pulse:
    """What changes from minute to minute, cheap enough to be asked every other second."""

    at: float
    """When it was taken, seconds since the epoch."""
    n_judgements: int
    """Judgements in the store, corrections and imports included."""
    last_hour: int
    """Judgements given in the 60 minutes before."""
    n_open: int
    """Tasks that still need answers."""
    n_needed: int
    """Answers that they still need."""
    n_held: int
    """Live leases: somebody is at work on them."""
    n_at_work: int
    """Different raters who hold a live lease."""
    n_quarantined: int
    """Raters in quarantine."""
    n_answered: int
    """Of these, those who answered the quarantine and wait for a reply."""
    n_flagged: int
    """Raters not in quarantine with a flag that nobody has decided on since."""


@dataclass(frozen=True)
class HourCount:
    """Judgements given within one hour of the clock."""

    hour: str
    """Start of the hour, ISO 8601 UTC to the hour: 2026-01-31T17."""
    n: int
    """How many were given."""


@dataclass(frozen=True)
class QueueRow:
    """The tasks of one batch, kind, stratum and audience."""

    batch: str
    """Task.batch."""
    kind: str
    """Task.kind."""
    stratum: str
    """Task.strategy: how the questions were chosen."""
    audience: str
    """Raters or experts."""
    n_tasks: int
    """All of them."""
    n_open: int
    """Those that still need answers."""
    n_pulled: int
    """Those taken out of the queue."""
    n_answers: int
    """Answers given, each rater of a task counted once."""
    n_needed: int
    """Answers that the open ones still need, if none stops early."""
    n_held: int
    """Live leases on them."""
    n_skipped: int
    """Times that one was skipped."""

    @property
    def share_done(self) -> float | None:
        """Answers given of those given and needed; None where none is asked for."""
        total = self.n_answers + self.n_needed
        return self.n_answers / total if total else None


@dataclass(frozen=True)
class AgreementRow:
    """One coefficient of agreement about one kind of answer."""

    about: str
    """What was answered: `comparison: which is better`, `rating: helpful`."""
    coefficient: str
    """Its name, as in `coefficients.COEFFICIENTS`."""
    by_item: Estimate
    """With the interval for other items; value None = undefined, for the reason in `method`."""
    by_rater: Estimate
    """With the interval for other raters."""
    n_answers: int
    """Answers that it rests on."""
    n_raters: int
    """Raters who gave them."""


def change_mark(store: Store) -> tuple[int, ...]:
    """Numbers that differ after any event was added: what was computed under an equal mark is still right."""
    with store.connection() as connection:
        return tuple(
            connection.execute(select(func.coalesce(func.max(table.c.seq), 0))).scalar_one()
            for table in (judgements, tasks, standing, flags, queue_log, admin_log, documents)
        )


def pulse(store: Store, *, now: float) -> Pulse:
    """The state of the work at this moment."""
    with store.connection() as connection:
        newest = connection.execute(select(func.coalesce(func.max(judgements.c.seq), 0))).scalar_one()
        recent = and_(
            judgements.c.seq > newest - TAIL,
            func.substr(judgements.c.created_at, 1, 19) > _moment(now - HOUR_S),
            func.substr(judgements.c.created_at, 1, 19) <= _moment(now),
        )
        n_held, n_at_work = connection.execute(
            select(func.count(), func.count(sa.distinct(assignments.c.annotator))).where(is_live(now))
        ).one()
        n_open, n_needed = connection.execute(
            select(func.count(), func.coalesce(func.sum(tasks.c.overlap - tasks.c.n_answers), 0)).where(needs_answers())
        ).one()
        states, flagged = last_actions(connection), undecided_flags(connection)
        away = {who for who, action in states.items() if action in ("quarantined", "answered")}
        return Pulse(
            at=now,
            n_judgements=connection.execute(select(func.count()).select_from(judgements)).scalar_one(),
            last_hour=connection.execute(select(func.count()).where(recent)).scalar_one(),
            n_open=n_open,
            n_needed=int(n_needed),
            n_held=n_held,
            n_at_work=n_at_work,
            n_quarantined=len(away),
            n_answered=sum(action == "answered" for action in states.values()),
            n_flagged=len(flagged - away),
        )


def judgements_per_hour(store: Store, *, now: float, hours: int = 24) -> list[HourCount]:
    """How many judgements were given in each of the last hours of the clock, the current one last; 0 where none."""
    start = int(now // HOUR_S - hours + 1) * HOUR_S
    names = [_moment(start + i * HOUR_S)[:13] for i in range(hours)]
    hour = func.substr(judgements.c.created_at, 1, 13)
    question = select(hour, func.count()).where(hour >= names[0], hour <= names[-1]).group_by(hour)
    with store.connection() as connection:
        counts = dict(map(tuple, connection.execute(question)))
    return [HourCount(name, counts.get(name, 0)) for name in names]


def queue(store: Store, *, now: float) -> list[QueueRow]:
    """The queue by batch, kind, stratum and audience, in the order in which they were first queued; no silent checks."""
    columns = (tasks.c.batch, tasks.c.kind, tasks.c.strategy, tasks.c.audience)
    needed = case((needs_answers(), tasks.c.overlap - tasks.c.n_answers), else_=0)
    counted = (
        select(
            *columns,
            func.count(),
            func.sum(case((needs_answers(), 1), else_=0)),
            func.sum(case((tasks.c.state == PULLED, 1), else_=0)),
            func.sum(tasks.c.n_answers),
            func.sum(needed),
        )
        .where(tasks.c.state != CHECK)
        .group_by(*columns)
    )
    held = case((is_live(now), 1), else_=0)
    skipped = case((assignments.c.state == "skipped", 1), else_=0)
    joined = tasks.join(assignments, assignments.c.task_id == tasks.c.id)
    at_work = (
        select(*columns, func.sum(held), func.sum(skipped))
        .select_from(joined)
        .where(tasks.c.state != CHECK)
        .group_by(*columns)
    )
    with store.connection() as connection:
        hands = {tuple(row[:4]): (int(row[4]), int(row[5])) for row in connection.execute(at_work)}
        return [
            QueueRow(*row[:4], *(int(n) for n in row[4:]), *hands.get(tuple(row[:4]), (0, 0)))
            for row in connection.execute(counted.order_by(func.min(tasks.c.seq)))
        ]


def agreement_rows(
    store: Store, records: Sequence[StoredJudgement], rng: np.random.Generator, *, n_draws: int = 400
) -> tuple[list[AgreementRow], int]:
    """How far raters agree, for every kind of answer that two people can have in common.

    Only answers to questions drawn at random with a fixed overlap count: chosen questions are the hard ones, checks
    the easy ones, and stopping at the first two equal answers would make them agree.

    Args:
        records: all judgements of the store, or those of a slice.    rng: draws items and groups of raters.
    Returns: the rows, and how many current answers were left out.
    """
    fair = _fair_tasks(store)
    current = [record.judgement for record in sorted(current_judgements(records)[0], key=lambda one: one.seq)]
    used = [judgement for judgement in current if judgement.task_id in fair]
    rows = []
    for about, names, table in answer_tables(used):
        found = agreement_table(table, names, rng, n_draws=n_draws)
        n_raters = len(np.unique(table.annotator))
        rows += [AgreementRow(about, name, *found[name], len(table), n_raters) for name in names]
    return rows, len(current) - len(used)


def last_actions(connection: Connection) -> dict[str, str]:
    """Where each rater stands with quarantine: quarantined, answered or released, by the last such event."""
    actions = ("quarantined", "answered", "released")
    newest = (
        select(func.max(standing.c.seq)).where(standing.c.action.in_(actions)).group_by(standing.c.annotator)
    ).scalar_subquery()
    rows = connection.execute(select(standing.c.annotator, standing.c.action).where(standing.c.seq.in_(newest)))
    return dict(map(tuple, rows))


def decisions(connection: Connection) -> dict[str, float]:
    """When somebody last decided on each rater: put her in quarantine, released her, or dismissed her flags."""
    acted = select(standing.c.annotator, func.max(standing.c.at)).group_by(standing.c.annotator)
    acted = acted.where(standing.c.action.in_(("quarantined", "released")))
    dismissed = select(admin_log.c.subject, func.max(admin_log.c.at)).group_by(admin_log.c.subject)
    dismissed = dismissed.where(admin_log.c.action == DISMISSAL)
    found: dict[str, float] = {}
    for question in (acted, dismissed):
        for who, at in connection.execute(question):
            found[who] = max(at, found.get(who, at))
    return found


def undecided_flags(connection: Connection) -> set[str]:
    """Raters with a flag that is newer than the last decision on them."""
    decided = decisions(connection)
    newest = select(flags.c.annotator, func.max(flags.c.at)).group_by(flags.c.annotator)
    return {who for who, at in connection.execute(newest) if who not in decided or at > decided[who]}


def answer_tables(used: Sequence[Judgement]) -> Iterable[tuple[str, tuple[str, ...], AnswerTable]]:
    """What can be compared in these answers: its name, the coefficients that fit, and the answers."""
    votes = [vote for judgement in used if judgement.kind == "comparison" and (vote := vote_of(judgement))]
    if votes:
        yield "comparison: which is better", NOMINAL, vote_table(votes)
        yield "comparison: how much", ("ordinal alpha",), judgement_table(used, "comparison")
    given = [judgement for judgement in used if "missing" not in judgement.value]
    kinds = {judgement.kind for judgement in given}
    for kind, name in (("ranking", "ordinal alpha"), ("best_of", "nominal alpha"), ("step_marks", "ordinal alpha")):
        if kind in kinds:
            yield kind, ("agreement", name), judgement_table(given, kind)
    yield from _rating_tables([judgement for judgement in given if judgement.kind == "rating"])
    labels = [judgement for judgement in given if judgement.kind == "label"]
    if any(judgement.value.get("good") is not None for judgement in labels):
        yield "label: good or bad", NOMINAL, judgement_table(labels, "label")
    for flag in sorted({name for judgement in labels for name in judgement.value.get("flags") or ()}):
        yield (
            f"label: {flag}",
            NOMINAL,
            judgement_table(labels, "label", about=flag),
        )
    marks = [judgement for judgement in given if judgement.kind == "span_marks"]
    for name in sorted({span["class"] for judgement in marks for span in judgement.value["spans"]}):
        yield f"span_marks: {name}", ("agreement", "nominal alpha"), judgement_table(marks, "span_marks", about=name)


def _rating_tables(ratings: Sequence[Judgement]) -> Iterable[tuple[str, tuple[str, ...], AnswerTable]]:
    for low, high in sorted({(judgement.value["low"], judgement.value["high"]) for judgement in ratings}):
        scale = [one for one in ratings if (one.value["low"], one.value["high"]) == (low, high)]
        names = {name for one in scale for name in one.value.get("scores", {None: 0})}
        for name in sorted(names, key=lambda name: name or ""):
            about = f"rating {low:g}–{high:g}: {name or 'overall'}"
            yield about, ("ordinal alpha", "interval alpha"), judgement_table(scale, "rating", about=name)


def _fair_tasks(store: Store) -> set[str]:
    check = select(checks.c.task_id).where(checks.c.task_id == tasks.c.id).exists()
    question = select(tasks.c.id).where(
        tasks.c.strategy == "random",
        tasks.c.audience == "annotator",
        tasks.c.reserved_for.is_(None),
        tasks.c.stop_after == 0,
        ~check,
    )
    with store.connection() as connection:
        return set(connection.execute(question).scalars())


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(max(seconds, 0.0), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
