"""The guard around the whole server: headers on every answer, limits on every request, whose address it is.

An ASGI layer outside everything else, so that errors carry the same headers as pages. Knows HTTP; knows nothing about
accounts, roles or what the pages say.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from karat.feedback.keys import keyed_hash
from karat.feedback.web.access import role_of
from karat.feedback.web.failures import broken, error_response
from karat.feedback.web.settings import ServerSettings

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing runs or loads but our own files; scripts may not turn text into code."""
IMPORT_PATHS = ("/api/v1/import", "/api/v1/prompts", "/api/v1/responses", "/api/v1/tasks", "/api/v1/judgements/batch")
"""Paths at which an admin, and nobody else, may send a large body."""


class Guard:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings
        self._headers = _headers(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, with our headers and within our limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        request = Request(scope)

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in self._headers if name not in present]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            most = await self._limit(request)
            await self._app(scope, _limited(receive, most, self._settings.body_s), guarded_send)
        except HTTPException as error:
            if not started:
                await error_response(request, error.status_code, str(error.detail))(scope, receive, guarded_send)
        except Exception as error:
            if started:
                raise
            await broken(request, error)(scope, receive, guarded_send)

    async def _limit(self, request: Request) -> int:
        """Most bytes of the body. Raises: HTTPException for a foreign Host or a body that says it is larger."""
        if _host(request) not in self._settings.hosts and request.scope["path"] != "/health":
            raise HTTPException(421, "This server does not go by that name; use its public address.")
        if "\0" in request.scope["path"] or "%00" in request.url.query:
            raise HTTPException(400, "The address holds a NUL character, which no address has.")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "The body is compressed; send it as it is.")
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise HTTPException(400, "The length of the request is not a number.")
        most = self._settings.most_body_bytes
        large = int(length) > most or "transfer-encoding" in request.headers
        # asked before the body is read: a stranger must not fill the memory of the server
        if large and request.scope["path"] in IMPORT_PATHS and await role_of(request) == "admin":
            most = self._settings.most_import_bytes
        if int(length) > most:
            raise _too_large(most)
        return most


def client_address(request: Request) -> str:
    """The address of who sent the request; what proxies say counts only where they are ours."""
    address = request.client.host if request.client is not None else ""
    trusted = request.app.state.settings.trusted_proxies
    forwarded = [part.strip() for part in request.headers.get("x-forwarded-for", "").split(",") if part.strip()]
    # from the nearest proxy outwards, as far as we trust who says it
    while forwarded and _within(address, trusted):
        address = forwarded.pop()
    return address


def address_hash(request: Request) -> str:
    """A keyed hash of the sender's address: tells two apart, and says where nobody is."""
    return keyed_hash(request.app.state.origin_key, client_address(request))


def _host(request: Request) -> str:
    try:
        return (urlsplit(f"//{request.headers.get('host', '')}").hostname or "").lower()
    except ValueError:
        return ""


def _within(address: str, networks: tuple[str, ...]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(network, strict=False) for network in networks)


def _limited(receive: Receive, most: int, within_s: float) -> Receive:
    """Receive the body up to a size and a time; what comes after it (a disconnection) is waited for as long as needed."""
    n_received, complete, until = 0, False, time.monotonic() + within_s

    async def limited() -> Message:
        nonlocal n_received, complete
        if complete:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise HTTPException(408, "The request took too long to arrive; send it again.") from None
        n_received += len(message.get("body", b""))
        if n_received > most:
            raise _too_large(most)
        complete = not message.get("more_body", False)
        return message

    return limited


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"The request is larger than {most:,} bytes; send less at a time.")


def _headers(settings: ServerSettings) -> list[tuple[bytes, bytes]]:
    found = {
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
        "cache-control": "no-store",
    }
    if settings.secure:
        found["strict-transport-security"] = "max-age=31536000"
    return [(name.encode(), value.encode()) for name, value in found.items()]
