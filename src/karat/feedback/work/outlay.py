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
from karat.feedback.work.rates import BY_PEOPLE, Paid, earned, paid, paid_seconds, typical_seconds
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
    paid_s: float
    """Active seconds that an hourly rate pays for (`rates.paid_seconds`): with those of corrections, and of answers whose
    time was not measured as many as of the others."""
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
        if self.spent is None or not self.paid_s:
            return None
        return self.spent / (self.paid_s / 3600)


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
        by_rater = paid(connection, now=0.0)
    pay = settings.pay
    spent, to_come, why = amounts(pay, by_rater, int(n_needed))
    typical_s = typical_seconds(by_rater)
    paid_s = sum(paid_seconds(one, typical_s) or 0.0 for one in by_rater)
    return Outlay(n, n_timed, float(active_s), paid_s, int(n_needed), pay.currency if pay else "", spent, to_come, why)


def amounts(pay: Pay | None, by_rater: Sequence[Paid], n_needed: int) -> tuple[float | None, float | None, str]:
    """Money spent and to come, and why one of them cannot be said.

    spent = Σ_w earned_w        to come = n_needed · spent / Σ_w n_w, by judgement n_needed · rate before anybody judged
    """
    if pay is None:
        return None, None, "no pay is set"
    n, typical_s = sum(one.n for one in by_rater), typical_seconds(by_rater)
    if not n:
        return (
            0.0,
            (pay.amount * n_needed if pay.per == "judgement" else None),
            "" if pay.per == "judgement" else UNTIMED,
        )
    each = [earned(one, typical_s) for one in by_rater]
    if any(one is None for one in each):
        return None, None, UNTIMED
    spent = sum(one for one in each if one is not None)
    return spent, spent / n * n_needed, ""


UNTIMED = "paid by the hour, and no time was measured yet"


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
