"""The comparisons of a store as a plan reads them: who won, on which pair, by whom, in how many seconds.

Knows the store and its arenas; the arithmetic of plans is `karat.feedback.quality.planning`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from karat.errors import InputError
from karat.feedback.documents import Pay
from karat.feedback.snapshot import current_judgements, work_records
from karat.feedback.store import Store
from karat.feedback.work.arena import PREFIX, arena
from karat.records import Judgement


@dataclass(frozen=True)
class Outcomes:
    """Votes as a plan reads them."""

    outcome: tuple[float, ...]
    """1 = the response named first in `what` was preferred, ½ = a tie, 0 = the other."""
    item: tuple[str, ...]
    """The pair that was judged."""
    annotator: tuple[str, ...]
    """Who judged."""
    seconds: tuple[float, ...]
    """Active seconds; NaN = not measured."""
    what: str
    """What the rate is of, in words."""


def outcomes_of(store: Store, batch: str = "") -> Outcomes:
    """The comparisons that count, of one batch or of all: of work, not of silent checks, which are the easy ones.

    In an arena the rate is that of its first policy; elsewhere that of the response whose id sorts first, which is ½
    where nothing favours it: what a plan needs of it is how far items and raters differ.

    Raises: InputError where there is no comparison.
    """
    current = (record.judgement for record in current_judgements(work_records(store, batch=batch or None))[0])
    votes = [one for one in current if one.kind == "comparison" and "missing" not in one.value]
    if not votes:
        raise InputError(
            "plan: found no comparisons to plan from; have two raters answer some questions each, as a pilot"
        )
    what = "how often one of two responses is preferred"
    first = {one.task_id: min(one.response_ids) for one in votes}
    if batch.startswith(PREFIX):
        set_up = arena(store, batch.removeprefix(PREFIX))
        what = f"the win rate of {set_up.policies[0]} against {set_up.policies[1]}"
        first = {task: pair[0] for task, pair in set_up.written_by.items()}
        votes = [one for one in votes if one.task_id in first]
    return Outcomes(
        outcome=tuple(_outcome(one, first[one.task_id]) for one in votes),
        item=tuple(" ".join(sorted(one.response_ids)) for one in votes),
        annotator=tuple(one.annotator for one in votes),
        seconds=tuple(float("nan") if one.active_s is None else one.active_s for one in votes),
        what=what,
    )


def pay_rates(pay: Pay | None, *, hourly: float | None = None) -> tuple[float, float]:
    """What an hour of active work and what a vote costs, the one or the other 0; both where nothing is paid.

    Args:
        hourly: pay for an hour that is asked about; None = the settings', by the hour or by judgement.
    """
    if hourly is not None:
        return hourly, 0.0
    if pay is None:
        return 0.0, 0.0
    return (pay.amount, 0.0) if pay.per == "hour" else (0.0, pay.amount)


def _outcome(judgement: Judgement, first: str) -> float:
    lean = 2 * judgement.value["level"] - (judgement.value["n_levels"] - 1)
    if not lean:
        return 0.5
    return float((lean > 0) == (judgement.response_ids[0] == first))
