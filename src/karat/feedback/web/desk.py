"""What the pages for the people in charge have in common: tabs, messages after a change, figures that are kept a while.

Knows requests and templates. Knows nothing about what a page shows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import FormData
from starlette.requests import Request

from karat.feedback.people import accounts
from karat.feedback.store import Store
from karat.feedback.web import figures
from karat.feedback.web.access import Visitor, needs, sent_form
from karat.feedback.web.templates import render
from karat.feedback.work.dashboard import change_mark

Admin = Annotated[Visitor, Depends(needs("admin"))]
Expert = Annotated[Visitor, Depends(needs("expert"))]
Auditor = Annotated[Visitor, Depends(needs("auditor"))]
Sent = Annotated[FormData, Depends(sent_form)]
Tabs = Sequence[tuple[str, str]]

ADMIN_TABS: Tabs = (
    ("/admin", "Overview"),
    ("/admin/raters", "Raters"),
    ("/admin/queue", "Queue"),
    ("/admin/checks", "Checks"),
    ("/admin/quality", "Quality"),
    ("/admin/plan", "Plan"),
    ("/admin/experiments", "Experiments"),
    ("/admin/accounts", "Accounts"),
    ("/admin/documents", "Documents"),
    ("/admin/settings", "Settings"),
    ("/arena", "Arena"),
    ("/admin/record", "Record"),
    ("/admin/log", "Log"),
)
"""Addresses and names of the admin's pages."""
SHARE_OF_TIME = 0.05
"""A worker spends at most this share of its time on figures that nothing but curiosity asks for."""
AT_ONCE = 0.25
"""Figures that took less, in seconds, are made anew at every change: an admin who acts sees what she did."""


@dataclass
class Kept:
    """Figures of one worker, computed once for everybody who looks; derived from the store, so losing them is no loss."""

    share: float = SHARE_OF_TIME
    """Share of the time spent at most on figures that are slow; inf = figures are never behind the store."""
    found: dict[str, tuple[Any, Hashable, tuple[int, ...], float, float]] = field(default_factory=dict)
    """By name: the figures, their key, the state of the store they are of, when they were made and how long it took."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while figures are made: two visitors do not make the same ones."""

    def get(self, store: Store, name: str, make: Callable[[], Any], *, key: Hashable = None) -> Any:
        """The figures: kept ones while the store is unchanged, or while making new ones would take too much time.

        Args:
            key: what the figures must be of whatever it takes, like what raters let be known at this moment.
        """
        with self.lock:
            mark = change_mark(store)
            if name in self.found:
                value, had, of, at, took = self.found[name]
                wait = took / self.share if took >= AT_ONCE else 0.0
                if had == key and (of == mark or time.monotonic() - at < wait):
                    return value
            start = time.monotonic()
            value = make()
            self.found[name] = (value, key, mark, time.monotonic(), time.monotonic() - start)
            return value


def kept_figures(request: Request, name: str, make: Callable[[], Any], *, key: Hashable = None) -> Any:
    """`Kept.get` of this worker."""
    state = request.app.state
    if getattr(state, "kept", None) is None:
        state.kept = Kept()
    return state.kept.get(state.store, name, make, key=key)


def page(
    request: Request,
    visitor: Visitor,
    name: str,
    *,
    tabs: Tabs = ADMIN_TABS,
    tab: str = "",
    section: str = "Administration",
    status: int = 200,
    message: str = "",
    failed: bool = False,
    **values: Any,
) -> Response:
    """A page with its tabs, and a message about what was just done.

    Args:
        name: of the template.    tab: address of the tab that is open; "" = that of the request.
        message: shown on top.    failed: True = the message says what went wrong.    values: what the template needs.
    """
    frame = {"tabs": tabs, "tab": tab or request.url.path, "section": section, "message": message, "failed": failed}
    return render(request, name, visitor, status=status, fmt=figures, now=request.app.state.clock(), **frame, **values)


def done(address: str, what: str, **query: str) -> Response:
    """Back to a page after a change, by GET, so that reloading does not repeat it; `what` names the message there."""
    return RedirectResponse(f"{address}?{urlencode({'done': what, **query})}", 303)


def note(request: Request, visitor: Visitor, action: str, subject: str, detail: str = "") -> None:
    """Write into the admin log what this visitor did."""
    state = request.app.state
    accounts.log(state.store, visitor.account, action, subject, detail, now=state.clock())


def field_of(form: FormData, name: str) -> str:
    """A field of a form as text without the blanks around it; "" where it was not sent."""
    value = form.get(name, "")
    return value.strip() if isinstance(value, str) else ""


def number_of(text: str, *, at_most: int = 10**9) -> int | None:
    """A whole number ≥ 0 in what was typed, None where there is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= at_most else None
