"""The app: one store, all routers, one guard around them. Every worker makes its own; they share nothing but the store.

Knows which routers there are. Knows nothing about what they do.
"""

from __future__ import annotations

import functools
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from karat.feedback.keys import secret_key
from karat.feedback.store import Store
from karat.feedback.web import (
    account_pages,
    admin_pages,
    api,
    api_admin,
    api_checks,
    arena_pages,
    audit_pages,
    failures,
    health,
    review_pages,
    study_pages,
    task_pages,
)
from karat.feedback.web.access import route_table
from karat.feedback.web.security import Guard
from karat.feedback.web.settings import ServerSettings
from karat.feedback.web.templates import STATIC

MODULES = (
    task_pages,
    api,
    health,
    account_pages,
    study_pages,
    api_admin,
    api_checks,
    admin_pages,
    review_pages,
    audit_pages,
    arena_pages,
)
"""Modules with routes, in the order in which their routes are tried: what raters ask all the time comes first."""
ABOUT = (
    "A place where people judge responses. Sign in at /api/v1/session and send the token as a bearer; "
    'failures are {"error": {"status", "message", "fields"}}.'
)


def create_app(
    store: Store,
    settings: ServerSettings,
    *,
    clock: Callable[[], float] = time.time,
    samplers: Mapping[str, Any] | None = None,
) -> FastAPI:
    """The server of one store.

    Args:
        clock: seconds since the epoch.    samplers: policies that write responses while people wait, by name.
    Raises: ConfigError for a route that does not declare who may call it.
    """
    app = FastAPI(title="karat", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store, app.state.settings, app.state.clock = store, settings, clock
    app.state.samplers = dict(samplers or {})
    app.state.describe = functools.cache(lambda: _description(app))
    app.state.origin_key = secret_key(store, "origin")
    for module in MODULES:
        # the routes themselves, so that what is checked below is what is served
        app.router.routes.extend(_flat(module.router))
    app.mount("/static", _Assets(directory=STATIC), name="static")
    app.state.route_table = route_table(app.routes)
    failures.install(app)
    app.add_middleware(Guard, settings=settings)
    return app


def _flat(router: APIRouter) -> Iterator[BaseRoute]:
    """The routes of a router and of those it includes, which newer versions of FastAPI keep as a tree."""
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from _flat(inner)


def _description(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, which says how to sign in and what needs it."""
    described = get_openapi(
        title="karat", version=importlib.metadata.version("karat"), description=ABOUT, routes=app.routes
    )
    described["servers"] = [{"url": app.state.settings.url}]
    described.setdefault("components", {})["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for entry in app.state.route_table:
        operation = described["paths"].get(entry.path, {}).get(entry.method.lower())
        if operation is not None and entry.roles is not None:
            operation["security"] = [{"bearer": []}]
            operation["description"] += f" For: {', '.join(sorted(entry.roles))}."
    return described


class _Assets(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file; with the mark of its content in the address it may be kept for ever."""
        answer = await super().get_response(path, scope)
        keep = "public, max-age=31536000, immutable" if Request(scope).query_params.get("v") else "no-cache"
        answer.headers["cache-control"] = keep
        return answer
