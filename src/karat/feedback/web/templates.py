"""Pages from templates: everything escaped, nothing undefined, assets named by their content.

Knows Jinja2 and the folders of the package. Knows nothing about what a page says.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request

from karat.feedback.web.access import Visitor

STATIC = Path(__file__).with_name("static")
"""The folder of style sheets and modules."""


def render(
    request: Request, name: str, visitor: Visitor | None = None, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """A page from a template.

    Templates know `visitor` (None = nobody signed in), `csrf` (the token for forms, "" without a visitor), `path`,
    `public_url`, `has_arena` (True = raters can ask two policies), `asset(name)` (address of a file in static/ that changes with its content) and the values.

    Args:
        name: file name in templates/.    status: HTTP status.    values: what the template needs besides.
    """
    text = (
        environment()
        .get_template(name)
        .render(
            visitor=visitor,
            csrf=visitor.csrf if visitor is not None else "",
            path=request.url.path,
            public_url=request.app.state.settings.url,
            has_arena=bool(request.app.state.settings.arena) or len(request.app.state.samplers) >= 2,
            **values,
        )
    )
    return HTMLResponse(text, status)


@functools.cache
def environment() -> Environment:
    """The templates of the package, compiled once a process."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        auto_reload=False,  # the package does not change under a running server
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["asset"] = asset
    return made


@functools.cache
def asset(name: str) -> str:
    """Address of a file in static/, with a mark of its content, so that browsers may keep it for ever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"
