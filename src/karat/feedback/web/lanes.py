"""The few threads in which a worker answers what raters ask at every item.

These requests ask the store a dozen short questions each. Answered forty at a time they keep waiting for the interpreter and
for a connection, which costs more than they do; a few at a time, in the order in which they came, they are done sooner. What
may take seconds (figures, exports, a policy that writes) stays on the threads of its own that it has always had, and keeps
none of these. A body is read before a thread is taken: a slow line holds up nobody.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync
from fastapi.routing import APIRoute

QUICK_THREADS = 4
"""Threads of a worker: one in the interpreter, the others waiting for the database or the disk."""

_LIMITER: RunVar[CapacityLimiter] = RunVar("karat_quick")


async def run_quick(function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
    """What a short function returns, called in one of the few threads."""
    try:
        limiter = _LIMITER.get()
    except LookupError:  # one for each event loop
        limiter = CapacityLimiter(QUICK_THREADS)
        _LIMITER.set(limiter)
    return await run_sync(functools.partial(function, *args, **named), limiter=limiter)


class QuickRoute(APIRoute):
    """A route whose endpoint is a short function that is no coroutine."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **named: Any) -> None:
        @functools.wraps(endpoint)
        async def quick(*args: Any, **given: Any) -> Any:
            return await run_quick(endpoint, *args, **given)

        super().__init__(path, quick, **named)
