"""Who may call what: every route declares its roles, and nothing else decides.

A request signs in by the session cookie or by a bearer token. What changes something by cookie must come from our own
pages: Origin or Referer must be ours, and the token of the session must be sent along, because browsers send cookies
to anybody who asks. A bearer token is sent by hand, so it proves itself. Knows nothing about pages.
"""

import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute, Mount

from karat.errors import ConfigError
from karat.feedback.people.accounts import Session, session_of
from karat.feedback.web.lanes import run_quick

ROLES = ("annotator", "expert", "auditor", "admin")
"""Roles that an account may have."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""
FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


@dataclass(frozen=True)
class Visitor:
    """Who sent the request."""

    account: str
    """Account.id."""
    annotator: str | None
    """Annotator.id, the pseudonym under which she judges; None = does not judge."""
    role: str
    """annotator, expert, auditor or admin."""
    csrf: str
    """Token that forms and scripts of her pages send along."""
    session_kind: str
    """"browser" or "api"."""
    login: str = ""
    """Her name for the password form, "" = by invite link only."""


PEOPLE = {"annotator": "raters", "expert": "experts", "auditor": "auditors", "admin": "admins"}
"""Whoever has a role, in words."""


class Declared:
    """What a route declares about its visitors, as a dependency: roles, or None = everybody."""

    def __init__(self, roles: frozenset[str] | None) -> None:
        self.roles = roles
        """Who may call; None = everybody, signed in or not."""

    async def __call__(self, request: Request) -> Visitor | None:
        """The visitor.

        Raises: HTTPException 401 where nobody is signed in, 403 for another role or a request that another site made.
        """
        session = await _session(request, checked=self.roles is not None)
        if session is None:
            if self.roles is not None:
                raise HTTPException(401, "You are not signed in, or your session has ended; sign in and try again.")
            return None
        if self.roles is not None and session.role not in self.roles:
            raise HTTPException(403, f"This is not open to {PEOPLE[session.role]}.")
        return _visitor(session)


PUBLIC = Declared(None)
"""For routes that everybody may call; gives the visitor, or None where nobody is signed in."""


def needs(*roles: str) -> Declared:
    """For routes that only these roles may call; gives the visitor."""
    if not roles or set(roles) - set(ROLES):
        raise ConfigError(f"needs: found the roles {roles}; expected some of {', '.join(ROLES)}")
    return Declared(frozenset(roles))


async def sent_form(request: Request) -> FormData:
    """The fields of the form that was sent, as a dependency."""
    try:
        form = await request.form(max_fields=request.app.state.settings.most_fields)
    except ClientDisconnect:  # a page was left while it sent; nobody reads the answer
        raise HTTPException(400, "The connection ended before everything had been sent.") from None
    if any(isinstance(value, str) and "\0" in value for pair in form.multi_items() for value in pair):
        raise HTTPException(422, "A field holds a NUL character, which no text has; remove it and send again.")
    return form


@dataclass(frozen=True)
class RouteAccess:
    """One entry of the route table."""

    method: str
    """HTTP method."""
    path: str
    """Path with its parameters in braces."""
    roles: frozenset[str] | None
    """Who may call; None = everybody."""


def route_table(routes: Iterable[BaseRoute]) -> list[RouteAccess]:
    """Every route with who may call it.

    Raises: ConfigError for a route that declares nothing or twice: what is not declared is not served.
    """
    table = []
    for route in routes:
        if isinstance(route, Mount) and route.path == "/static":
            continue
        if not isinstance(route, APIRoute):
            raise ConfigError(f"route {getattr(route, 'path', route)!r}: found no declared roles; add it by a router")
        declared = set(_declarations(route.dependant))
        if len(declared) != 1:
            raise ConfigError(
                f"route {route.path}: found {len(declared)} declarations of who may call it; expected one: "
                "Depends(needs(…)) or Depends(PUBLIC)"
            )
        table += [
            RouteAccess(method, route.path, declared.pop().roles if len(declared) == 1 else None)
            for method in sorted(route.methods)
        ]
    return table


def _declarations(dependant: Dependant) -> Iterator[Declared]:
    for below in dependant.dependencies:
        if isinstance(below.call, Declared):
            yield below.call
        yield from _declarations(below)


async def signed_in(request: Request) -> Visitor | None:
    """Whoever opens a page, None = nobody; for what every page has on top, whatever became of the request."""
    token, by_bearer = token_of(request)
    state = request.app.state
    session = await run_quick(session_of, state.store, token, now=state.clock()) if token and not by_bearer else None
    return None if session is None else _visitor(session)


def _visitor(session: Session) -> Visitor:
    who = (session.account, session.annotator, session.role, session.csrf, session.kind)
    return Visitor(*who, login=session.login or "")


async def role_of(request: Request) -> str | None:
    """The role of whoever sent the request, None = nobody; what it may be used for is not checked."""
    token, _ = token_of(request)
    state = request.app.state
    session = await run_quick(session_of, state.store, token, now=state.clock()) if token else None
    return None if session is None else session.role


async def _session(request: Request, *, checked: bool) -> Session | None:
    token, by_bearer = token_of(request)
    unsafe = request.method not in SAFE_METHODS
    if unsafe and not by_bearer:
        _check_origin(request, with_cookie=bool(token))
    if not token:
        return None
    state = request.app.state
    session = await run_quick(session_of, state.store, token, now=state.clock())
    if session is not None and checked and unsafe and not by_bearer:
        await _check_token(request, session)
    return session


def token_of(request: Request) -> tuple[str, bool]:
    """The token that was sent, and whether as a bearer token, which outranks the cookie; "" = none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip(), True
    return request.cookies.get(request.app.state.settings.cookie, ""), False


def _check_origin(request: Request, *, with_cookie: bool) -> None:
    """Refuse what another site made a browser send; who sends neither Origin, Referer nor a cookie is no browser."""
    origin, referer = request.headers.get("origin"), request.headers.get("referer")
    if origin is None and referer is not None:
        parts = urlsplit(referer)
        origin = f"{parts.scheme}://{parts.netloc}"
    site = request.headers.get("sec-fetch-site")
    nobody = origin is None and site is None and not with_cookie
    ours = (origin or "").lower() in request.app.state.settings.origins and site in (None, "same-origin", "none")
    if not (nobody or ours):
        raise HTTPException(403, "The request did not come from a page of this server; open the page again.")


async def _check_token(request: Request, session: Session) -> None:
    sent = request.headers.get("x-csrf")
    if sent is None and request.headers.get("content-type", "").split(";")[0].strip().lower() in FORM_TYPES:
        field = (await sent_form(request)).get("csrf")
        sent = field if isinstance(field, str) else None
    if sent is None or not hmac.compare_digest(sent.encode(), session.csrf.encode()):
        raise HTTPException(403, "The page is older than your session; reload it and send again.")
