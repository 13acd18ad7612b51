"""Figures that take too long to be made while a page waits: made in a thread beside it, shown as of when they were made.

Knows threads; knows nothing about what is made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

LOG = logging.getLogger("karat.web")
SHARE_OF_TIME = 0.2
"""A worker spends at most this share of its time on figures that are made beside its pages."""
NICE = 10
"""How far the thread steps behind those that answer people (Linux has a niceness for each thread)."""


@dataclass(frozen=True)
class Made:
    """Figures and what they are of."""

    value: Any
    """The figures."""
    mark: Hashable
    """The state that they were made from."""
    at: float
    """When the making began, seconds since the epoch."""
    took: float
    """Seconds that it took."""


@dataclass
class Background:
    """What a worker makes beside its pages; derived from the store, so losing it is no loss."""

    share: float = SHARE_OF_TIME
    """Share of the time spent on it at most; inf = made anew at every change."""
    found: dict[str, Made] = field(default_factory=dict)
    """By name the newest."""
    making: dict[str, threading.Thread] = field(default_factory=dict)
    """By name the thread that is at it."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while either is looked at."""

    def get(self, name: str, mark: Hashable, make: Callable[[], Any], *, now: float) -> Made | None:
        """The newest figures at once, None before the first are there; where they are behind, new ones are begun.

        Args:
            mark: the present state.    now: seconds since the epoch.
        """
        with self.lock:
            had = self.found.get(name)
            fresh = had is not None and (had.mark == mark or now - had.at < had.took / self.share)
            if not fresh and name not in self.making:
                work = threading.Thread(
                    target=self._make, args=(name, mark, make, now), daemon=True, name=f"karat {name}"
                )
                self.making[name] = work
                work.start()
            return had

    def is_making(self, name: str) -> bool:
        """True = new figures are on their way."""
        with self.lock:
            return name in self.making

    def _make(self, name: str, mark: Hashable, make: Callable[[], Any], now: float) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        start = time.monotonic()
        try:
            made = Made(make(), mark, now, time.monotonic() - start)
            with self.lock:
                self.found[name] = made
        except Exception:
            LOG.exception("%s could not be made", name)
        finally:
            with self.lock:
                del self.making[name]
