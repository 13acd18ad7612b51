"""What the judgements cost, what those still needed will cost, and which ones a change of guideline asks for again.

Money follows from the pay in the project's settings and the seconds that were measured; what was not measured is
said, not guessed. Knows tables and settings; knows nothing about pages or how many votes a claim needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from karat.feedback.documents import GUIDELINE, Pay, documents, project_settings
from karat.feedback.openings import needs_answers
from karat.feedback.people_tables import checks
from karat.feedback.schema import judgements, tasks
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.feedback.work.rates import BY_PEOPLE, Paid, paid, rates
from karat.records import Estimate
from karat.stats import mean_estimate, not_estimable


@dataclass(frozen=True)
class Outlay:
    """Time and money of the judgements that people gave."""

    n_judgements: int
    """Judgements by people; corrections of one's own are no new work and do not count."""
    n_timed: int
    """Those whose active seconds were measured."""
    active_s: float
    """Their active seconds."""
    n_needed: int
    """Answers that open tasks still need."""
    currency: str
    """Of the pay; "" = no pay is set."""
    spent: float | None
    """Money so far; None = cannot be said, see `why`."""
    to_come: float | None
    """Money for the answers still needed, at the mean time of the others; None = cannot be said."""
    why: str
    """Why an amount is missing; "" = none is."""

    @property
    def mean_s(self) -> float | None:
        """Mean active seconds of a judgement; None where none was measured."""
        return self.active_s / self.n_timed if self.n_timed else None

    @property
    def hourly(self) -> float | None:
        """What an hour of active work earns at present; None where it cannot be said."""
        if self.spent is None or not self.active_s or not self.n_judgements:
            return None
        return self.spent / (self.active_s / self.n_timed * self.n_judgements / 3600)


@dataclass(frozen=True)
class AskAgain:
    """Tasks whose answers were given under another guideline than the present one."""

    version: str
    """The version that they were judged under."""
    task_ids: tuple[str, ...]
    """Tasks with at least one current answer under it, in the order in which they were queued."""
    n_judgements: int
    """Current answers under it."""
    already: int
    """Of the tasks, how many were put to raters again under the present version."""


def outlay(store: Store) -> Outlay:
    """Time and money so far and to come."""
    with store.connection() as connection:
        n, n_timed, active_s = connection.execute(
            select(
                func.count(), func.count(judgements.c.active_s), func.coalesce(func.sum(judgements.c.active_s), 0.0)
            ).where(BY_PEOPLE)
        ).one()
        n_needed = connection.execute(
            select(func.coalesce(func.sum(tasks.c.overlap - tasks.c.n_answers), 0)).where(needs_answers())
        ).scalar_one()
    settings = project_settings(store)
    pay = settings.pay
    spent, to_come, why = amounts(pay, n, n_timed, float(active_s), int(n_needed))
    if pay is not None and rates(settings):
        with store.connection() as connection:
            by_rater = paid(connection, settings, now=0.0)
        spent, to_come, why = amounts_by_rater(pay, by_rater, int(n_needed))
    return Outlay(n, n_timed, float(active_s), int(n_needed), pay.currency if pay else "", spent, to_come, why)


def amounts(
    pay: Pay | None, n: int, n_timed: int, active_s: float, n_needed: int
) -> tuple[float | None, float | None, str]:
    """Money spent and to come, and why one of them cannot be said.

        per judgement: amount·n                    amount·n_needed
        per hour:      amount·active_s·n/n_timed/3600    amount·n_needed·(active_s/n_timed)/3600

    Hours that were not measured count like those that were.
    """
    if pay is None:
        return None, None, "no pay is set"
    if pay.per == "judgement":
        return pay.amount * n, pay.amount * n_needed, ""
    if not n_timed:
        return (0.0 if not n else None), None, "paid by the hour, and no time was measured yet"
    mean_s = active_s / n_timed
    return pay.amount * mean_s * n / 3600, pay.amount * mean_s * n_needed / 3600, ""


def amounts_by_rater(pay: Pay, by_rater: Sequence[Paid], n_needed: int) -> tuple[float | None, float | None, str]:
    """`amounts` where an experiment draws raters into rates: what is to come costs the mean of what was given.

    per judgement: Σ_w rate_w·n_w        per hour: Σ_w rate_w·n_w·(active seconds a judgement)/3600
    """
    n = sum(one.n for one in by_rater)
    n_timed, active_s = sum(one.n_timed for one in by_rater), sum(one.active_s for one in by_rater)
    if not n:
        return amounts(pay, 0, 0, 0.0, n_needed)
    if pay.per == "judgement":
        spent = sum(one.rate * one.n for one in by_rater)
    elif n_timed:
        # hours of hers that were not measured count like those that were; of nobody's, like everybody's
        each = [one.active_s / one.n_timed if one.n_timed else active_s / n_timed for one in by_rater]
        spent = sum(one.rate * one.n * mean_s / 3600 for one, mean_s in zip(by_rater, each, strict=True))
    else:
        return None, None, "paid by the hour, and no time was measured yet"
    return spent, spent / n * n_needed, ""


def mean_seconds(store: Store) -> Estimate:
    """Mean active seconds of a judgement by a person, with its interval."""
    question = select(judgements.c.active_s).where(judgements.c.origin == "person", judgements.c.active_s.is_not(None))
    with store.connection() as connection:
        seconds = list(connection.execute(question).scalars())
    return mean_estimate(seconds) if seconds else not_estimable("no time was measured", 0)


def ask_again(store: Store, *, version: str | None = None) -> list[AskAgain]:
    """Which answers were given under another guideline than the present one, by version.

    Silent checks and tasks for one rater are not asked again: they were about her, not about the texts.

    Args:
        version: the present version; None = the newest guideline of the store.
    Returns: one entry a version that occurs, the largest first; [] where there is no guideline to compare with.
    """
    if version is None:
        known = documents(store, GUIDELINE)
        if not known:
            return []
        version = known[-1].version
    with store.connection() as connection:
        silent = set(connection.execute(select(checks.c.task_id)).scalars())
    queued = [task for task in store.tasks() if task.reserved_for is None and task.id not in silent]
    asked = {(task.prompt_id, task.response_ids, task.kind) for task in queued if task.guideline == version}
    given: dict[str, dict[str, int]] = {}
    for record in current_judgements(store.records())[0]:
        judgement = record.judgement
        if judgement.guideline != version:
            by_task = given.setdefault(judgement.guideline, {})
            by_task[judgement.task_id] = by_task.get(judgement.task_id, 0) + 1
    found = []
    for old, by_task in given.items():
        those = [task for task in queued if task.id in by_task]
        if those:
            again = sum((task.prompt_id, task.response_ids, task.kind) in asked for task in those)
            ids = tuple(task.id for task in those)
            found.append(AskAgain(old, ids, sum(by_task[one] for one in ids), again))
    return sorted(found, key=lambda entry: -entry.n_judgements)
