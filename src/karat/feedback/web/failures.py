"""What goes wrong, said to a person or a program: one clear line, never a trace, never the sender's words as HTML.

Knows status codes and karat's errors. Knows nothing about what was asked for.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from urllib.parse import urlencode

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.exc import DataError, DBAPIError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from karat.errors import ConfigError, InputError, KaratError, StoreError
from karat.feedback.engine import BROKEN
from karat.feedback.web.access import FORM_TYPES, SAFE_METHODS, Visitor, sent_form, signed_in
from karat.feedback.web.templates import render

LOG = logging.getLogger("karat.web")
TITLES = {
    400: "The request could not be read",
    401: "Please sign in",
    403: "Not allowed",
    404: "Not found",
    405: "Not possible here",
    408: "Too slow",
    409: "That no longer fits",
    413: "Too large",
    415: "Not in this form",
    421: "Wrong address",
    422: "Something is missing or does not fit",
    429: "Too many attempts",
    500: "Something broke",
    503: "Busy",
}
"""Headings of the error page."""


def install(app: FastAPI) -> None:
    """Let an app answer every failure in our own words."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(KaratError, _refused)
    app.add_exception_handler(UnicodeEncodeError, _not_unicode)


def error_response(
    request: Request,
    status: int,
    message: str,
    *,
    fields: list[str] | None = None,
    headers: dict | None = None,
    visitor: Visitor | None = None,
) -> Response:
    """The failure as a page, or as JSON `{"error": {"status", "message", "fields"}}` for programs.

    Args:
        fields: parts of the input that do not fit, in words.
        visitor: who is signed in, so that her pages stand on top; None = nobody, or not known.
    """
    if wants_json(request):
        body = {"error": {"status": status, "message": message, "fields": fields or []}}
        return JSONResponse(body, status, headers)
    title = TITLES.get(status, TITLES[500 if status >= 500 else 400])
    page = render(request, "error.html", visitor, status=status, title=title, message=message, fields=fields or [])
    page.headers.update(headers or {})
    return page


def broken(request: Request, error: Exception) -> Response:
    """The answer to an error that nobody foresaw: a number that the log knows, and nothing else."""
    number = secrets.token_hex(4)
    LOG.error("error %s at %s %s\n%s", number, request.method, request.scope.get("path"), _trace(error))
    return error_response(
        request, 500, f"This is our fault, not yours. What you entered is still in your browser. Number: {number}."
    )


def wants_json(request: Request) -> bool:
    """True = a program asks: a path of the API, or a script of our pages."""
    if request.scope.get("path", "").startswith("/api/"):
        return True
    headers = request.headers
    return "x-csrf" in headers or headers.get("accept", "").split(",")[0].strip() == "application/json"


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 401 and not wants_json(request):
        return await _sign_in(request)
    message = _PLAIN.get(str(error.detail), str(error.detail))
    # whoever went astray goes on from the same pages; only what is about to be read as a page asks who it is
    visitor = None if wants_json(request) or error.status_code not in (403, 404, 405) else await signed_in(request)
    return error_response(request, error.status_code, message, headers=dict(error.headers or {}), visitor=visitor)


_PLAIN = {"Not Found": "There is no such page.", "Method Not Allowed": "This address cannot be used in that way."}


async def _sign_in(request: Request) -> Response:
    """To the sign-in page; what was sent along with an ended session is kept in the page and sent again afterwards."""
    if request.method in SAFE_METHODS:
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?{urlencode({'next': asked})}", 303)
    kept: list[tuple[str, str]] = []
    if request.headers.get("content-type", "").split(";")[0].strip().lower() in FORM_TYPES:
        form = await sent_form(request)
        kept = [(name, value) for name, value in form.multi_items() if isinstance(value, str) and name != "csrf"]
    return render(request, "account_login.html", status=401, next=request.url.path, kept=kept, message="", login="")


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    # never the input itself: it may be long, secret or hostile
    fields = [f"{_place(each)}: {each['msg']}" for each in error.errors()[:20]]
    return error_response(request, 422, "Some fields are missing or do not fit.", fields=fields)


def _place(fault: dict) -> str:
    """Where in the input a fault is; the name of an unknown field is the sender's own words, and left out."""
    parts = fault["loc"][:-1] if fault["type"] == "extra_forbidden" else fault["loc"]
    return ".".join(str(part) for part in parts)


async def _not_unicode(request: Request, _: Exception) -> Response:
    # JSON can spell half of a character pair; no text that we keep can
    return error_response(request, 422, "A text holds half a character (a lone surrogate); expected Unicode.")


async def _refused(request: Request, error: KaratError) -> Response:
    if isinstance(error, StoreError) and isinstance(error.__cause__, DataError):
        return error_response(request, 422, str(error))
    if isinstance(error, StoreError) and BROKEN in str(error):
        LOG.error("%s", error)
        message = "The store is damaged, and this cannot be shown or stored. Please tell whoever runs this server; its log says more."
        return error_response(request, 500, message)
    if isinstance(error, StoreError) and isinstance(error.__cause__, DBAPIError):
        LOG.error("the store refused: %s", error)
        message = "The store is busy or cannot write; nothing was stored. Wait a moment and send again."
        return error_response(request, 503, message, headers={"Retry-After": "2"})
    if isinstance(error, InputError | ConfigError):
        return error_response(request, 422, str(error))
    if isinstance(error, StoreError):
        return error_response(request, 409, str(error))
    return broken(request, error)


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
