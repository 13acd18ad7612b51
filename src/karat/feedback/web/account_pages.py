"""Signing in and out: by password, by invite link, and the first admin by a link printed on the terminal.

Knows forms and cookies. Knows nothing about hashing, how tokens are kept or what comes after signing in.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import FormData
from starlette.requests import Request

from karat.errors import InputError, KaratError
from karat.feedback.documents import project_settings
from karat.feedback.people import accounts
from karat.feedback.web.access import PUBLIC, ROLES, Visitor, needs, sent_form
from karat.feedback.web.first_admin import make_first_admin, setup_allowed
from karat.feedback.web.signing_in import (
    HASHING,
    NO_MATCH,
    drop_cookie,
    open_session,
    password_session,
    refuse_too_many,
    set_cookie,
)
from karat.feedback.web.templates import render

DIFFER = "The two passwords differ; type the same one twice."
NO_SETUP = (
    "A link of this kind makes the first admin, once: there is one by now, or it is not the link that the server printed. "
    "Sign in, or ask whoever started the server."
)
KEPT = "kept:"
"""Starts the names of fields that an interrupted form sent, while its sender signs in."""
_LOCAL_PATH = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")

router = APIRouter(include_in_schema=False)
Guest = Annotated[Visitor | None, Depends(PUBLIC)]
Anybody = Annotated[Visitor, Depends(needs(*ROLES))]
Sent = Annotated[FormData, Depends(sent_form)]


@router.get("/login")
def login_page(request: Request, visitor: Guest, next: str = "/") -> Response:
    """The sign-in form."""
    if visitor is not None:
        return RedirectResponse(local_path(next), 303)
    return render(request, "account_login.html", next=local_path(next), kept=[], message="", login="")


@router.post("/login")
def login(request: Request, _: Guest, form: Sent) -> Response:
    """Sign in by password; a form that an ended session had interrupted comes back to be sent again."""
    name, password, following = text(form, "login"), text(form, "password"), local_path(text(form, "next"))
    kept = [(key.removeprefix(KEPT), value) for key, value in form.multi_items() if key.startswith(KEPT)]
    token = password_session(request, name, password)
    if token is None:
        return render(
            request, "account_login.html", status=401, next=following, kept=kept, message=NO_MATCH, login=name
        )
    if kept:
        session = accounts.session_of(request.app.state.store, token, now=request.app.state.clock())
        answer: Response = render(
            request, "account_resend.html", next=following, kept=kept, token=session.csrf if session else ""
        )
    else:
        answer = RedirectResponse(following, 303)
    set_cookie(request, answer, token)
    return answer


@router.post("/logout")
def logout(request: Request, _: Anybody) -> Response:
    """End this session."""
    state = request.app.state
    accounts.close_session(state.store, request.cookies.get(state.settings.cookie, ""), now=state.clock())
    answer = RedirectResponse("/login", 303)
    drop_cookie(request, answer)
    return answer


@router.get("/invite/{token}")
def invite_page(request: Request, _: Guest, token: str) -> Response:
    """Asks for a click: programs that look at links in messages must not use them up."""
    _invited(request, token)
    return render(request, "account_invite.html", token=token)


@router.post("/invite/{token}")
def accept_invite(request: Request, _: Guest, token: str) -> Response:
    """Sign in by invite link."""
    session = open_session(request, _invited(request, token))
    answer = RedirectResponse("/", 303)
    set_cookie(request, answer, session)
    return answer


@router.get("/password")
def password_page(request: Request, visitor: Anybody) -> Response:
    """The form to set or change the password."""
    return _password_form(request, visitor, "")


@router.post("/password")
def change_password(request: Request, visitor: Anybody, form: Sent) -> Response:
    """Set or change the password; every other session of the account ends."""
    store = request.app.state.store
    account = _own_account(request, visitor)
    name, new = text(form, "login") or account.login or "", text(form, "new")
    refuse_too_many(request, account.id)
    if account.has_password and not password_right(request, account, text(form, "old")):
        return _password_form(request, visitor, "The present password is not right.", login=name)
    if new != text(form, "again"):
        return _password_form(request, visitor, DIFFER, login=name)
    try:
        with HASHING:
            accounts.set_password(store, account.id, new, login=name or None, now=request.app.state.clock())
    except KaratError as error:
        return _password_form(request, visitor, str(error), login=name)
    answer = RedirectResponse("/", 303)
    set_cookie(request, answer, open_session(request, account.id))
    return answer


@router.get("/setup/{token}")
def setup_page(request: Request, _: Guest, token: str) -> Response:
    """The form that makes the first admin."""
    _allow_setup(request, token)
    return render(request, "account_setup.html", token=token, message="", login="")


@router.post("/setup/{token}")
def setup(request: Request, _: Guest, token: str, form: Sent) -> Response:
    """Make the first admin; the link is void from then on."""
    _allow_setup(request, token)
    state = request.app.state
    name, new = text(form, "login").strip(), text(form, "new")
    try:
        if new != text(form, "again"):
            raise InputError(DIFFER)
        account = make_first_admin(state.store, name, new, now=state.clock())
    except KaratError as error:
        return render(request, "account_setup.html", status=422, token=token, message=str(error), login=name)
    answer = RedirectResponse("/", 303)
    set_cookie(request, answer, open_session(request, account.id))
    return answer


def local_path(path: str) -> str:
    """The path where it stays on this server, else the home page: a link must not lead elsewhere after signing in."""
    return path if _LOCAL_PATH.fullmatch(path) else "/"


def password_right(request: Request, account: accounts.Account, password: str) -> bool:
    """Whether this is the account's present password."""
    with HASHING:
        return accounts.account_of_password(request.app.state.store, account.login or "", password) is not None


def text(form: FormData, name: str) -> str:
    """A field of a form as text, "" where it was not sent."""
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def _invited(request: Request, token: str) -> str:
    state = request.app.state
    account = accounts.account_of_invite(state.store, token, now=state.clock())
    if account is None:
        refuse_too_many(request)
        contact = project_settings(state.store).contact
        whom = f": {contact}" if contact else "."
        raise HTTPException(404, f"This link is not valid or no longer valid; ask whoever sent it for a new one{whom}")
    return account.id


def _allow_setup(request: Request, token: str) -> None:
    if not setup_allowed(request.app.state.store, token):
        refuse_too_many(request)
        raise HTTPException(404, NO_SETUP)


def _own_account(request: Request, visitor: Visitor) -> accounts.Account:
    return accounts.account(request.app.state.store, visitor.account)


def _password_form(request: Request, visitor: Visitor, message: str, *, login: str = "") -> Response:
    account, status = _own_account(request, visitor), 422 if message else 200
    return render(
        request, "account_password.html", visitor, status=status, account=account, message=message, login=login
    )
