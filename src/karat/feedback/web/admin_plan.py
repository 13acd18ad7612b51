"""The admin's page "how many votes do I need, and what will they cost", from the votes there are.

Knows the form and which votes a plan is made from; the arithmetic is `karat.feedback.quality.planning`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from karat.errors import InputError
from karat.feedback.documents import Pay, project_settings
from karat.feedback.people.standing import quarantined
from karat.feedback.quality.planning import VotePlan, held_out_needed, plan_votes
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.feedback.web.desk import Admin, page
from karat.feedback.work.arena import PREFIX, arena
from karat.feedback.work.dashboard import queue
from karat.records import Judgement

DEFAULTS = {"batch": "", "width": "5", "pay": "", "raters": "", "accuracy": "70"}
MOST_RATERS = 100_000

router = APIRouter(include_in_schema=False)


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


@router.get("/admin/plan")
def plan_page(request: Request, visitor: Admin) -> Response:
    """Votes, hours and money for an interval of a wanted width, for several overlaps."""
    store, now = request.app.state.store, request.app.state.clock()
    typed = {name: request.query_params.get(name, default).strip()[:40] for name, default in DEFAULTS.items()}
    plans: Sequence[VotePlan] = ()
    what, message, held_out = "", "", None
    try:
        width, accuracy = _percent("interval", typed["width"]), _percent("accuracy", typed["accuracy"])
        held_out = held_out_needed(accuracy, width)
        found = outcomes_of(store, typed["batch"])
        what = found.what
        pay = _amount(typed["pay"]) if typed["pay"] else pay_per_hour(project_settings(store).pay, found.seconds)
        plans = plan_votes(
            found.outcome,
            found.item,
            found.annotator,
            width,
            np.random.default_rng(0),
            seconds=found.seconds,
            pay_per_hour=pay,
            n_raters=_crew(typed["raters"]),
        )
    except InputError as error:
        message = str(error)
    currency = project_settings(store).pay
    return page(
        request,
        visitor,
        "admin_plan.html",
        message=message,
        failed=bool(message),
        typed=typed,
        batches=list(dict.fromkeys(row.batch for row in queue(store, now=now) if row.kind == "comparison")),
        plans=plans,
        what=what,
        held_out=held_out,
        currency=currency.currency if currency else "",
        paid=bool(currency or typed["pay"]),
    )


def outcomes_of(store: Store, batch: str = "") -> Outcomes:
    """The comparisons that count, of one batch or of all.

    In an arena the rate is that of its first policy; elsewhere that of the response whose id sorts first, which is ½
    where nothing favours it: what a plan needs of it is how far items and raters differ.

    Raises: InputError where there is no comparison.
    """
    away = quarantined(store)
    records = store.records(batch=batch or None)
    votes = [one.judgement for one in current_judgements(records)[0] if one.judgement.annotator not in away]
    votes = [one for one in votes if one.kind == "comparison" and "missing" not in one.value]
    if not votes:
        raise InputError("plan: found no comparisons to plan from; ask some questions twice as a pilot")
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


def pay_per_hour(pay: Pay | None, seconds: Sequence[float]) -> float:
    """What an hour of active work costs under the settings; 0 where no pay is set.

    Raises: InputError where pay is by judgement and no time was measured.
    """
    if pay is None:
        return 0.0
    if pay.per == "hour":
        return pay.amount
    known = [one for one in seconds if one == one and one > 0]
    if not known:
        raise InputError("plan: pay is by judgement, and no time was measured; give the pay for an hour")
    return pay.amount * 3600 * len(known) / sum(known)


def _outcome(judgement: Judgement, first: str) -> float:
    lean = 2 * judgement.value["level"] - (judgement.value["n_levels"] - 1)
    if not lean:
        return 0.5
    return float((lean > 0) == (judgement.response_ids[0] == first))


def _percent(name: str, text: str) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise InputError(f"{name}: found {text!r}; expected a percentage, such as 5") from None
    if not 0 < value < 100:
        raise InputError(f"{name}: found {text!r}; expected a percentage between 0 and 100")
    return value / 100


def _amount(text: str) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise InputError(f"pay: found {text!r}; expected an amount, such as 18") from None
    if not 0 <= value < 1e6:
        raise InputError(f"pay: found {text!r}; expected an amount of 0 or more")
    return value


def _crew(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MOST_RATERS):
        raise InputError(f"raters: found {text!r}; expected a whole number from 1")
    return int(text)
