"""The API for silent checks: gold items and the qualification go in, how they were answered comes out; for admins.

Knows shapes and limits; what an item may say is `karat.feedback.work.check_items`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request

from karat.feedback.people import accounts
from karat.feedback.web import api_models as shapes
from karat.feedback.web.access import Visitor, needs
from karat.feedback.work import checks
from karat.feedback.work.check_items import MOST_ITEMS, put_items
from karat.feedback.work.checks import gold_items, retire
from karat.rowfiles import Row

router = APIRouter(prefix="/api/v1/checks", tags=["admin"])
Admin = Annotated[Visitor, Depends(needs("admin"))]
Version = Annotated[shapes.Text, Field(min_length=1, max_length=40, description="Names this set.")]
Items = Annotated[
    list[shapes.Plain],
    Field(
        min_length=1,
        max_length=MOST_ITEMS,
        description="Each: task (an id) or prompt and responses; expected; optionally kind, question, guideline, within.",
    ),
]


class GoldIn(shapes.Closed):
    """Gold items to put into use."""

    version: Version
    items: Items


class QualificationIn(shapes.Closed):
    """A version of the qualification."""

    version: Version
    items: Items
    pass_mark: float = Field(gt=0, le=1, description="Share of right answers that is enough.")
    attempts: int = Field(default=2, ge=1, le=20)
    requalify: bool = Field(default=False, description="Ask those too who passed an earlier version.")


class RetireIn(shapes.Closed):
    """Gold items to take out of use."""

    tasks: list[shapes.Text] = Field(max_length=MOST_ITEMS)


class GoldOut(shapes.BaseModel):
    """A gold item and how it was answered."""

    task: str
    version: str
    kind: str
    expected: dict[str, Any]
    in_use: bool
    n_answers: int
    n_right: int


@router.get("/gold", response_model=list[GoldOut])
def gold(request: Request, _: Admin) -> list[dict[str, Any]]:
    """Every gold item, in order of its making."""
    return [
        {
            "task": one.task.id,
            "version": one.version,
            "kind": one.task.kind,
            "expected": dict(one.expected),
            "in_use": one.retired_at is None,
            "n_answers": one.n_answers,
            "n_right": one.n_right,
        }
        for one in gold_items(request.app.state.store)
    ]


@router.post("/gold", response_model=shapes.Added)
def add_gold(request: Request, visitor: Admin, sent: GoldIn) -> dict[str, int]:
    """Put gold items into use; those of the set that are there already stay as they are."""
    store = request.app.state.store
    before = len(gold_items(store))
    checks.add_gold(store, put_items(store, _rows(sent.items), version=sent.version), version=sent.version)
    n = len(gold_items(store)) - before
    _note(request, visitor, "gold items added", sent.version, f"{n} new")
    return {"new": n}


@router.post("/gold/retire", response_model=shapes.Added)
def retire_gold(request: Request, visitor: Admin, sent: RetireIn) -> dict[str, int]:
    """Take gold items out of use; `new` says how many were in use."""
    store = request.app.state.store
    known = {one.task.id for one in gold_items(store)}
    n = retire(store, known & set(sent.tasks), now=request.app.state.clock())
    _note(request, visitor, "gold items retired", f"{n} items", "")
    return {"new": n}


@router.post("/qualification", response_model=shapes.Added)
def add_qualification(request: Request, visitor: Admin, sent: QualificationIn) -> dict[str, int]:
    """Ask every rater these items before any work, from now on; `new` says how many there are."""
    store = request.app.state.store
    made = checks.add_qualification(
        store,
        put_items(store, _rows(sent.items), version=sent.version),
        version=sent.version,
        pass_mark=sent.pass_mark,
        attempts=sent.attempts,
        requalify=sent.requalify,
        now=request.app.state.clock(),
    )
    n = len(made.body["items"][0])
    _note(request, visitor, "qualification made", made.version, f"{n} items, pass mark {100 * sent.pass_mark:.4g} %")
    return {"new": n}


def _rows(items: Sequence[dict[str, Any]]) -> list[Row]:
    return [Row(item, Path("items"), number) for number, item in enumerate(items, 1)]


def _note(request: Request, visitor: Visitor, action: str, subject: str, detail: str) -> None:
    state = request.app.state
    accounts.log(state.store, visitor.account, action, subject, detail, now=state.clock())
