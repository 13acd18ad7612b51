"""The admin's page of what the answers come to: consensus, and whose preferences they are.

Knows forms and templates; the figures are `work.consensus_view`'s and `work.who_speaks`'.
"""

from __future__ import annotations

import json

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from karat.errors import InputError
from karat.feedback.people.who_judged import said_mark
from karat.feedback.quality.slices import K
from karat.feedback.web.desk import Admin, Sent, done, field_of, kept_figures, note, page
from karat.feedback.work.consensus_view import SURE, consensus_rows
from karat.feedback.work.who_speaks import POPULATION, Spoken, put_target, read_target, spoken, target_of

MESSAGES = {"set": "The target population is set.", "gone": "There is no target population any more."}
MOST_TYPED = 20_000
"""Characters of a target population."""

router = APIRouter(include_in_schema=False)


@router.get("/admin/quality")
def quality_page(request: Request, visitor: Admin, done: str = "") -> Response:
    """Consensus of every kind of answer, and the raters weighted to the target population."""
    return _page(request, visitor, message=MESSAGES.get(done, ""))


@router.post("/admin/quality/population")
def set_population(request: Request, visitor: Admin, form: Sent) -> Response:
    """Set the target population, or none."""
    store, now = request.app.state.store, request.app.state.clock()
    typed = field_of(form, "target")[:MOST_TYPED]
    target = None
    try:
        if typed:
            target = read_target(typed, "the target population")
    except InputError as error:
        return _page(request, visitor, message=str(error), failed=True, typed=typed)
    put_target(store, target, now=now)
    note(request, visitor, "target population set" if target else "target population removed", POPULATION)
    return done("/admin/quality", "set" if target else "gone")


def _page(request: Request, visitor: Admin, *, message: str, failed: bool = False, typed: str = "") -> Response:
    store = request.app.state.store
    rows, n_left_out = kept_figures(request, "consensus", lambda: consensus_rows(store, store.records()))
    target, why, found = None, "", None
    try:
        target = target_of(store)
        found = None if target is None else _spoken(request, target)
    except InputError as error:
        why = str(error)
    return page(
        request,
        visitor,
        "admin_quality.html",
        status=422 if failed else 200,
        message=message,
        failed=failed,
        rows=rows,
        n_left_out=n_left_out,
        sure=SURE,
        typed=typed or ("" if target is None else json.dumps(target, ensure_ascii=False, indent=1)),
        spoken=found,
        why=why,
        least=K,
    )


def _spoken(request: Request, target: dict[str, dict[str, float]]) -> Spoken:
    store = request.app.state.store
    key = (said_mark(store), json.dumps(target))
    return kept_figures(request, "spoken", lambda: spoken(store, target, np.random.default_rng(0)), key=key)
