"""Turns between the processes that write to one SQLite file, so that none of them waits for ever.

SQLite's own way of waiting is to sleep and try again, up to a tenth of a second at a time: a process that writes one
transaction after another is never asleep and passes those that are, again and again. Here a process must stand at the
door before it may enter, and the one that stands there is next. It is a courtesy: SQLite alone keeps writers apart, and
where the baton cannot be had (no lock file, a process that was stopped) it is done without. Knows files and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref

try:
    import fcntl
except ImportError:  # a system without these locks: its processes pass each other
    fcntl = None  # type: ignore[assignment]

DOOR, ROOM = 0, 1
"""The bytes of the lock file that stand for being next and for writing."""
SLICE_S = 0.02
"""Seconds in which a process that has got in may come in again without standing at the door: each change of process costs
SQLite the pages that it has at hand."""
COURTESY_S = 1.0
"""Seconds after which a process goes on without the baton."""
LOOK_S = 0.002
"""Seconds between two looks: looking more often takes more from those who work than it gives to those who wait."""


class Baton:
    """What one process at a time holds; a thread takes it only while no other thread of its process wants it.

    Locks of the operating system on a file beside the store: they end with the process that holds them, however it ends.
    """

    def __init__(self, path: str, *, slice_s: float = SLICE_S, courtesy_s: float = COURTESY_S) -> None:
        self._path, self._slice_s, self._courtesy_s = path, slice_s, courtesy_s
        self._file = -1
        self._since = -float("inf")
        self._held = False

    def acquire(self) -> bool:
        """Wait for this process's turn. Returns: False where it goes on without one."""
        if not self._open():
            return False
        now = time.monotonic()
        if now - self._since < self._slice_s and self._take(ROOM):
            self._held = True
            return True
        deadline = now + self._courtesy_s
        if not self._wait_for(DOOR, deadline):
            return False
        try:
            self._held = self._wait_for(ROOM, deadline)
        finally:
            self._drop(DOOR)
        self._since = time.monotonic()
        return self._held

    def release(self) -> None:
        """Let the next process in, if this one had the baton."""
        if self._held:
            self._held = False
            self._drop(ROOM)

    def _open(self) -> bool:
        if self._file < 0 and fcntl is not None:
            with contextlib.suppress(OSError):
                self._file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
                weakref.finalize(self, os.close, self._file)
        return self._file >= 0

    def _take(self, which: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, which)
        except OSError:
            return False
        return True

    def _drop(self, which: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, which)

    def _wait_for(self, which: int, deadline: float) -> bool:
        while not self._take(which):
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_S)
        return True
