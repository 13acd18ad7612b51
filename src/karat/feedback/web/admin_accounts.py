"""The admin's page of accounts: make them, give out links, change roles, lock and unlock.

A link is shown once, on the page that made it; afterwards only a new one can be made. Knows accounts; knows nothing
about how tokens or passwords are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response
from sqlalchemy import func, select
from starlette.requests import Request

from karat.errors import KaratError
from karat.feedback.people import accounts, roles
from karat.feedback.people.accounts import Account
from karat.feedback.people_tables import sessions
from karat.feedback.store import Store
from karat.feedback.web.access import Visitor
from karat.feedback.web.desk import Admin, Sent, done, field_of, note, number_of, page

MOST_AT_ONCE = 100
"""Accounts that one form makes."""
MESSAGES = {
    "locked": "The account is locked: its sessions and links have ended.",
    "unlocked": "The account is unlocked; give out a new link if there is no password.",
    "same": "The account has this role already; nothing is changed.",
    "role": "The role is changed: sessions and links of the account have ended; give out a new link if there is no password.",
}
ROLE_WORDS = {
    "annotator": "rater: judges what is in the queue",
    "expert": "expert: judges, and settles what raters disagree about",
    "auditor": "auditor: reads everything under pseudonyms, changes nothing",
    "admin": "admin: sees and runs everything, judges nothing",
}
"""Roles by what they may do."""
EMPTY = {"role": "annotator", "n": "1", "login": "", "contact": "", "annotator": ""}
"""The form of new accounts before anything is typed."""
ROLE_NAMES = {name: words.partition(":")[0] for name, words in ROLE_WORDS.items()}
"""Roles as people call them."""

router = APIRouter(include_in_schema=False)


@router.get("/admin/accounts")
def account_list(request: Request, visitor: Admin, done: str = "") -> Response:
    """Who may sign in."""
    return _list(request, visitor, message=MESSAGES.get(done, ""))


@router.post("/admin/accounts")
def make_accounts(request: Request, visitor: Admin, form: Sent) -> Response:
    """Make one account or several, and show their links once; what does not fit comes back with what was typed."""
    store, now = request.app.state.store, request.app.state.clock()
    typed = {name: field_of(form, name) for name in EMPTY}
    role, n = typed["role"], number_of(typed["n"] or "1", at_most=MOST_AT_ONCE)
    login, contact, annotator = (typed[name] or None for name in ("login", "contact", "annotator"))
    if not n or (n > 1 and (login or contact or annotator)):
        message = f"Make 1 to {MOST_AT_ONCE} accounts at a time; login, contact and pseudonym are for one account."
        return _list(request, visitor, status=422, message=message, failed=True, typed=typed)
    made = []
    try:
        for _ in range(n):
            one = accounts.make_account(store, role, now=now, login=login, contact=contact, annotator=annotator)
            made.append((one, accounts.invite(store, one.id, now=now)))
            note(request, visitor, "account made", one.id, role)
    except KaratError as error:
        return _list(request, visitor, status=422, message=str(error), failed=True, links=made, typed=typed)
    return _list(request, visitor, links=made)


@router.post("/admin/accounts/{account_id}/link")
def make_link(request: Request, visitor: Admin, account_id: str) -> Response:
    """A new link for an account; the older ones die. Shown once."""
    store, now = request.app.state.store, request.app.state.clock()
    one = _account(store, account_id)
    try:
        token = accounts.invite(store, one.id, now=now)
    except KaratError as error:
        return _list(request, visitor, status=409, message=str(error), failed=True)
    note(request, visitor, "link made", one.id)
    return _list(request, visitor, links=[(one, token)])


@router.post("/admin/accounts/{account_id}/lock")
def lock(request: Request, visitor: Admin, account_id: str, form: Sent) -> Response:
    """Lock an account, or unlock it; nobody locks herself out."""
    store, now = request.app.state.store, request.app.state.clock()
    one = _account(store, account_id)
    if one.id == visitor.account:
        message = "This is your own account; let another admin lock it."
        return _list(request, visitor, status=409, message=message, failed=True)
    if field_of(form, "to") == "unlocked":
        roles.unlock(store, one.id, by=visitor.account, now=now)
        return done("/admin/accounts", "unlocked")
    try:
        roles.lock(store, one.id, by=visitor.account, now=now)
    except KaratError as error:
        return _list(request, visitor, status=422, message=str(error), failed=True)
    return done("/admin/accounts", "locked")


@router.post("/admin/accounts/{account_id}/role")
def change_role(request: Request, visitor: Admin, account_id: str, form: Sent) -> Response:
    """Give an account another role; the last admin stays one."""
    store, now = request.app.state.store, request.app.state.clock()
    one = _account(store, account_id)
    if field_of(form, "role") == one.role:
        return done("/admin/accounts", "same")
    try:
        roles.change_role(store, one.id, field_of(form, "role"), by=visitor.account, now=now)
    except KaratError as error:
        return _list(request, visitor, status=422, message=str(error), failed=True)
    return done("/admin/accounts", "role")


def _list(
    request: Request,
    visitor: Visitor,
    *,
    status: int = 200,
    message: str = "",
    failed: bool = False,
    links: Sequence[tuple[Account, str]] = (),
    typed: Mapping[str, str] = EMPTY,
) -> Response:
    store = request.app.state.store
    return page(
        request,
        visitor,
        "admin_accounts.html",
        tab="/admin/accounts",
        status=status,
        message=message,
        failed=failed,
        accounts=accounts.accounts(store),
        seen=_last_seen(store),
        links=[(one, f"{request.app.state.settings.url}/invite/{token}") for one, token in links],
        roles=ROLE_WORDS,
        named=ROLE_NAMES,
        most=MOST_AT_ONCE,
        typed=typed,
    )


def _account(store: Store, account_id: str) -> Account:
    found = [one for one in accounts.accounts(store) if one.id == account_id]
    if not found:
        raise HTTPException(404, "There is no such account.")
    return found[0]


def _last_seen(store: Store) -> dict[str, float]:
    question = select(sessions.c.account, func.max(sessions.c.seen_at)).group_by(sessions.c.account)
    with store.connection() as connection:
        return dict(map(tuple, connection.execute(question)))
