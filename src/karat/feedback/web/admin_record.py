"""The admin's pages about the record: seals and their roots, whether everything still verifies, how to back it up, and
what people with power did.

Knows forms and templates; sealing and verifying are `karat.feedback.record.seals`' and the store's.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from starlette.requests import Request

from karat.feedback.people import accounts
from karat.feedback.record.seals import Problem, seal, sealed_through, seals
from karat.feedback.schema import judgements
from karat.feedback.store import Store
from karat.feedback.web import figures
from karat.feedback.web.access import Visitor
from karat.feedback.web.desk import Admin, done, note, number_of, page

MESSAGES = {
    "sealed": "Sealed. Publish the newest line, or give it to somebody you trust: it pins everything up to now.",
    "nothing": "There was nothing new to seal.",
}
MOST_SHOWN = 50
"""Seals, and problems, on the page."""
LOG_PAGE = 100

router = APIRouter(include_in_schema=False)


@router.get("/admin/record")
def record_page(request: Request, visitor: Admin, done: str = "") -> Response:
    """Seals, and what can be done with the record."""
    return _page(request, visitor, message=MESSAGES.get(done, ""))


@router.post("/admin/record/seal")
def seal_now(request: Request, visitor: Admin) -> Response:
    """Seal everything that came in since the last seal."""
    store, now = request.app.state.store, request.app.state.clock()
    made = seal(store, now=now)
    if made is None:
        return done("/admin/record", "nothing")
    note(request, visitor, "sealed", str(made.seq), made.hash)
    return done("/admin/record", "sealed")


@router.post("/admin/record/verify")
def verify_now(request: Request, visitor: Admin) -> Response:
    """Check every record, text and seal against its hash."""
    problems = request.app.state.store.verify()
    note(request, visitor, "verified", "store", figures.counted(len(problems), "problem"))
    message = (
        "Everything is as it was submitted and sealed."
        if not problems
        else f"{figures.counted(len(problems), 'problem was', 'problems were')} found."
    )
    return _page(request, visitor, message=message, failed=bool(problems), problems=problems)


@router.get("/admin/log")
def log_page(request: Request, visitor: Admin, n: str = "") -> Response:
    """What people with power did, newest first."""
    store = request.app.state.store
    many = number_of(n, at_most=10_000) or LOG_PAGE
    entries = accounts.log_entries(store, many + 1)
    names = {one.id: one.login or one.contact or one.annotator or one.id for one in accounts.accounts(store)}
    more = many * 4 if len(entries) > many else None
    return page(request, visitor, "admin_log.html", entries=entries[:many], names=names, more=more)


def store_place(store: Store) -> str:
    """Where the store is, without a password."""
    address = store.address
    if "://" not in address:
        return address
    try:
        return make_url(address).render_as_string(hide_password=True)
    except ArgumentError:
        return "a database"


def _page(
    request: Request, visitor: Visitor, *, message: str = "", failed: bool = False, problems: Sequence[Problem] = ()
) -> Response:
    store = request.app.state.store
    found = seals(store)
    return page(
        request,
        visitor,
        "admin_record.html",
        tab="/admin/record",
        message=message,
        failed=failed,
        seals=list(reversed(found))[:MOST_SHOWN],
        n_seals=len(found),
        n_unsealed=_n_unsealed(store),
        problems=list(problems)[:MOST_SHOWN],
        n_problems=len(problems),
        place=store_place(store),
        dialect=store.dialect,
        n_judgements=store.n_judgements(),
    )


def _n_unsealed(store: Store) -> int:
    question = select(func.count()).where(judgements.c.seq > sealed_through(store))
    with store.connection() as connection:
        return connection.execute(question).scalar_one()
