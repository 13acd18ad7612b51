"""The admin's page of experiments: set them up and end them, see who was drawn into which arm, and what the arms did.

Knows the form and the template; the figures are `karat.feedback.work.experiments`'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from karat.errors import KaratError
from karat.feedback.arm_changes import UNITS, read_arm
from karat.feedback.documents import GUIDELINE, documents, project_settings
from karat.feedback.web.access import Visitor
from karat.feedback.web.desk import Admin, Sent, done, field_of, kept_figures, note, page
from karat.feedback.work.experiments import drawn_arms, end_experiment, experiment_effects, make_experiment

router = APIRouter(include_in_schema=False)
MESSAGES = {
    "made": "The experiment runs from now on; pages that are open already stay as they are until they are loaded again.",
    "ended": "The experiment has ended; what was recorded stays, and so does its effect.",
}
EMPTY = {"name": "", "unit": "rater", "arms": ""}


@router.get("/admin/experiments")
def experiments_page(request: Request, visitor: Admin, done: str = "") -> Response:
    """Arms, how many raters are in each, and their effects."""
    return _page(request, visitor, message=MESSAGES.get(done, ""))


@router.post("/admin/experiments")
def make(request: Request, visitor: Admin, form: Sent) -> Response:
    """Set up an experiment; what does not fit comes back with a message, nothing typed is lost."""
    store, now = request.app.state.store, request.app.state.clock()
    typed = {name: field_of(form, name) for name in EMPTY}
    try:
        arms = [read_arm(line) for line in typed["arms"].splitlines() if line.strip()]
        make_experiment(store, typed["name"], arms, unit=typed["unit"], now=now)
    except KaratError as error:
        return _page(request, visitor, typed=typed, status=422, message=str(error), failed=True)
    note(request, visitor, "experiment made", typed["name"], "; ".join(typed["arms"].splitlines())[:1000])
    return done("/admin/experiments", "made")


@router.post("/admin/experiments/end")
def end(request: Request, visitor: Admin, form: Sent) -> Response:
    """End an experiment."""
    name = field_of(form, "name")
    try:
        end_experiment(request.app.state.store, name, now=request.app.state.clock())
    except KaratError as error:
        return _page(request, visitor, status=422, message=str(error), failed=True)
    note(request, visitor, "experiment ended", name)
    return done("/admin/experiments", "ended")


def _page(
    request: Request,
    visitor: Visitor,
    *,
    typed: Mapping[str, str] = EMPTY,
    status: int = 200,
    message: str = "",
    failed: bool = False,
) -> Response:
    store = request.app.state.store
    effects = kept_figures(request, "arms", lambda: experiment_effects(store, np.random.default_rng(0)))
    drawn = {name: Counter(arm_of.values()) for name, arm_of in drawn_arms(store).items()}
    settings = project_settings(store)
    names = [*settings.experiments, *dict.fromkeys([*drawn, *(one.experiment for one in effects)])]
    return page(
        request,
        visitor,
        "admin_experiments.html",
        status=status,
        message=message,
        failed=failed,
        names=list(dict.fromkeys(names)),
        planned=settings.experiments,
        changes=settings.arm_changes,
        arm_units=settings.arm_units,
        drawn=drawn,
        effects={name: [one for one in effects if one.experiment == name] for name in names},
        typed=typed,
        units=UNITS,
        guidelines=[one.version for one in documents(store, GUIDELINE)],
        pay=settings.pay,
    )
