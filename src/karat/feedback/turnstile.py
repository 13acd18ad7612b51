"""A lock that lets nobody wait for ever: who has waited for long is served next, whoever comes running.

A plain lock of the standard library gives no order: a thread that asks again at once can pass one that waits, again
and again. Handing over strictly in order would be fair too, but would leave the lock idle until the next thread has
the interpreter. Knows threads and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import deque

PATIENCE_S = 0.05
"""Seconds that a thread lets itself be passed."""


class _Waiter:
    def __init__(self) -> None:
        self.since = time.monotonic()
        self.called = threading.Event()
        self.holds = False


class Turnstile:
    """A mutual exclusion lock with eventual fairness."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._guard = threading.Lock()
        self._waiting: deque[_Waiter] = deque()
        self._taken = False

    def acquire(self, timeout: float) -> bool:
        """Wait for the lock. Returns: False where it was not free within timeout seconds."""
        deadline = time.monotonic() + timeout
        with self._guard:
            if not self._taken and not self._impatient():
                self._taken = True
                return True
            mine = _Waiter()
            self._waiting.append(mine)
        try:
            return self._wait(mine, deadline)
        except BaseException:  # interrupted: nobody must wait for one who has left
            with self._guard:
                if mine in self._waiting:
                    self._waiting.remove(mine)
            if mine.holds:
                self.release()
            raise

    def _wait(self, mine: _Waiter, deadline: float) -> bool:
        while True:
            mine.called.wait(max(0.0, deadline - time.monotonic()))
            with self._guard:
                if not mine.holds and not self._taken:
                    self._taken = mine.holds = True
                    self._waiting.remove(mine)
                if mine.holds:
                    return True
                if time.monotonic() >= deadline:
                    self._waiting.remove(mine)
                    return False
                mine.called.clear()

    def release(self) -> None:
        """Let the next one in: the one who has waited for too long, or whoever is first to come."""
        with self._guard:
            if self._impatient():
                first = self._waiting.popleft()
                first.holds = True
                first.called.set()
                return
            self._taken = False
            if self._waiting:
                self._waiting[0].called.set()

    def _impatient(self) -> bool:
        return bool(self._waiting) and time.monotonic() - self._waiting[0].since >= self._patience_s
