"""The admin's page "how many votes do I need, and what will they cost", from the votes there are.

Knows the form and which votes a plan is made from; the arithmetic is `karat.feedback.quality.planning`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from karat.errors import InputError
from karat.feedback.documents import project_settings
from karat.feedback.quality.planning import VotePlan, held_out_needed, plan_votes
from karat.feedback.web import figures
from karat.feedback.web.desk import Admin, kept_figures, page
from karat.feedback.work.dashboard import queue
from karat.feedback.work.reward_plan import reader_points, reward_plan
from karat.feedback.work.vote_outcomes import outcomes_of, pay_rates

DEFAULTS = {"batch": "", "width": "5", "pay": "", "raters": "", "accuracy": "70"}
MOST_RATERS = 100_000

router = APIRouter(include_in_schema=False)


@router.get("/admin/plan")
def plan_page(request: Request, visitor: Admin) -> Response:
    """Votes, hours and money for an interval of a wanted width, for several overlaps."""
    store, now = request.app.state.store, request.app.state.clock()
    typed = {name: request.query_params.get(name, default).strip()[:40] for name, default in DEFAULTS.items()}
    plans: Sequence[VotePlan] = ()
    what, message, held_out, reward = "", "", None, None
    try:
        width, accuracy = _percent("interval", typed["width"]), _percent("accuracy", typed["accuracy"])
        held_out = held_out_needed(accuracy, width)
        given = _amount(typed["pay"]) if typed["pay"] else None
        if accuracy > 0.5:
            rng = np.random.default_rng(0)
            points = kept_figures(request, "curve", lambda: reader_points(store, rng))
            reward = reward_plan(store, accuracy, points, rng, pay=given)
        found = outcomes_of(store, typed["batch"])
        what = found.what
        per_hour, per_vote = pay_rates(project_settings(store).pay, hourly=given)
        plans = plan_votes(
            found.outcome,
            found.item,
            found.annotator,
            width,
            np.random.default_rng(0),
            seconds=found.seconds,
            pay_per_hour=per_hour,
            pay_per_vote=per_vote,
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
        failed=bool(message and request.query_params),  # whoever only opens the page has done nothing wrong
        typed=typed,
        batches=list(dict.fromkeys(row.batch for row in queue(store, now=now) if row.kind == "comparison")),
        plans=plans,
        why_none=_why_none(plans),
        what=what,
        held_out=held_out,
        reward=reward,
        currency=currency.currency if currency else "",
        paid=bool(currency or typed["pay"]),
    )


def _why_none(plans: Sequence[VotePlan]) -> str:
    """The one reason for which no plan has any figure, in words; "" = some have, or there are several reasons."""
    cells = [one for plan in plans for one in (plan.items, plan.votes, plan.hours, plan.cost)]
    reasons = {"" if one.value is not None else figures.why(one) for one in cells}
    return reasons.pop() if len(reasons) == 1 else ""


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
