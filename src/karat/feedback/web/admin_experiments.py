"""The admin's page of experiments: which arms raters were drawn into, and what the arms did.

Knows the template; the figures are `karat.feedback.work.experiments`'.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from karat.feedback.documents import project_settings
from karat.feedback.web.desk import Admin, kept_figures, page
from karat.feedback.work.experiments import drawn_arms, experiment_effects

router = APIRouter(include_in_schema=False)


@router.get("/admin/experiments")
def experiments_page(request: Request, visitor: Admin) -> Response:
    """Arms, how many raters are in each, and their effects."""
    store = request.app.state.store
    effects = kept_figures(request, "arms", lambda: experiment_effects(store, np.random.default_rng(0)))
    drawn = {name: Counter(arm_of.values()) for name, arm_of in drawn_arms(store).items()}
    planned = project_settings(store).experiments
    names = [*planned, *(name for name in drawn if name not in planned)]
    return page(
        request,
        visitor,
        "admin_experiments.html",
        names=names,
        planned={name: dict(arms) for name, arms in planned.items()},
        drawn=drawn,
        effects={name: [one for one in effects if one.experiment == name] for name in names},
    )
