"""What both the pages and the API do when somebody signs in: count attempts, check, open a session.

Knows accounts and limits; an answer never says whether a login exists. Knows nothing about pages or JSON.
"""

from __future__ import annotations

import threading

from fastapi import HTTPException
from fastapi.responses import Response
from starlette.requests import Request

from karat.feedback.people import accounts
from karat.feedback.people.sessions import forget_attempts
from karat.feedback.web.security import address_hash

HASHING = threading.BoundedSemaphore(4)
"""Passwords hashed at once in one worker: each takes 19 MiB and a core, and strangers can ask for it."""
NO_MATCH = "The login and the password do not match."
"""Said for an unknown login, a wrong password and a locked account alike."""


def password_session(request: Request, login: str, password: str, *, kind: str = "browser") -> str | None:
    """The token of a new session, or None where login and password do not match.

    Raises: HTTPException 429 after too many attempts for this login or from this address.
    """
    state = request.app.state
    refuse_too_many(request, login)
    with HASHING:
        account = accounts.account_of_password(state.store, login, password)
    if account is None:
        return None
    forget_attempts(state.store, _login_key(login))
    return open_session(request, account.id, kind=kind)


def open_session(request: Request, account_id: str, *, kind: str = "browser") -> str:
    """The token of a new session; the one the visitor came with ends, so that nobody can plant one."""
    state = request.app.state
    return accounts.open_session(
        state.store,
        account_id,
        now=state.clock(),
        kind=kind,
        hours=state.settings.session_hours,
        origin_hash=address_hash(request),
        replaces=request.cookies.get(state.settings.cookie) if kind == "browser" else None,
    )


def refuse_too_many(request: Request, login: str | None = None) -> None:
    """Count an attempt. Raises: HTTPException 429 after too many for this login or from this address."""
    state, settings = request.app.state, request.app.state.settings
    tries = [(f"address:{address_hash(request)}", settings.attempts_per_address)]
    if login is not None:
        tries.append((_login_key(login), settings.attempts_per_account))
    window_s = settings.attempt_window_s
    for key, most in tries:
        if not accounts.attempt(state.store, key, now=state.clock(), window_s=window_s, most=most):
            raise HTTPException(
                429,
                f"Too many attempts to sign in; wait {window_s / 60:.0f} minutes, then try again.",
                {"Retry-After": str(int(window_s))},
            )


def set_cookie(request: Request, answer: Response, token: str) -> None:
    """Hand the session to the browser; scripts cannot read it and other sites' forms do not carry it."""
    settings = request.app.state.settings
    answer.set_cookie(
        settings.cookie,
        token,
        max_age=int(settings.session_hours * 3600),
        path="/",
        secure=settings.secure,
        httponly=True,
        samesite="lax",
    )


def drop_cookie(request: Request, answer: Response) -> None:
    """Take the session from the browser."""
    settings = request.app.state.settings
    answer.delete_cookie(settings.cookie, path="/", secure=settings.secure, httponly=True, samesite="lax")


def _login_key(login: str) -> str:
    return f"login:{login.strip().casefold()}"
