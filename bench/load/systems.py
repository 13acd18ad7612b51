"""What the three servers have in common: a process tree that is started, watched and stopped, and what it answered.

Standard library only. The module of a system has two classes: `System`, how it is prepared, started and looked into,
and `Rater`, what its page asks of the server in a browser.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

START_SECONDS = 180.0
STOP_SECONDS = 20.0
SAMPLE_SECONDS = 1.0
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


class System(Protocol):
    """A system under load, in a directory of its own; made of (plan, directory)."""

    def prepare(self) -> None:
        """Make the queue and the accounts; not timed."""

    def start(self) -> tuple[Server, str]:
        """A server that answers, and its URL."""

    def stored(self) -> list[tuple[int, str]]:
        """(rater's number, item) of every answer that is in its own files when the server has ended."""

    def versions(self) -> dict[str, str]:
        """What is measured."""

    def close(self) -> None:
        """End what else was started for it."""


class Rater(Protocol):
    """One rater's browser; made of (aiohttp session, plan, number)."""

    async def login(self) -> None:
        """Sign in; not timed."""

    async def next_item(self) -> str | None:
        """The id of the item that is shown next; None where nothing is left."""

    async def submit(self, item: str, choice: int) -> str:
        """Answer with the first or second response; the id of the item whose answer the server acknowledged."""


class Refused(Exception):
    """The server answered with something else than what a browser needs to go on."""


class Server:
    """A server and its children; memory is sampled while it runs.

    `also`: processes that belong to it and were started otherwise, such as its database.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        log: Path,
        health: str,
        environment: Mapping[str, str] | None = None,
        also: Sequence[int] = (),
    ) -> None:
        self.command, self.log = list(command), log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as out:
            self._process = subprocess.Popen(
                self.command,
                cwd=directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._roots = (self._process.pid, *also)
        self.peak_mib = 0.0
        self._stopped = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        try:
            self._wait(health)
        except BaseException:
            self.stop()
            raise

    def cpu_seconds(self) -> float:
        """Processor seconds of the whole tree until now."""
        return sum(used for _, used in self._tree())

    def stop(self) -> None:
        """Ask it to end as an operator would (SIGTERM), wait, and only then insist."""
        self._stopped.set()
        self._sampler.join()
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
                try:
                    self._process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
        if self._process.poll() is None:
            raise SystemExit(f"bench: {self.command[0]} (process {self._process.pid}) does not end; see {self.log}")

    def _wait(self, health: str) -> None:
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                code = self._process.returncode
                raise SystemExit(f"bench: {self.command[0]} ended with code {code}: {''.join(last)} (see {self.log})")
            try:
                with urllib.request.urlopen(health, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.25)
        raise SystemExit(f"bench: {self.command[0]} did not answer within {START_SECONDS:.0f} s; see {self.log}")

    def _sample(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            self.peak_mib = max(self.peak_mib, sum(resident for resident, _ in self._tree()))

    def _tree(self) -> list[tuple[float, float]]:
        """(resident MiB, processor seconds) of every process of the tree, and of the trees of the others it needs."""
        found = _processes()
        return [found[pid][1:] for pid in descendants({pid: use[0] for pid, use in found.items()}, self._roots)]


def descendants(parents: Mapping[int, int], roots: Sequence[int]) -> set[int]:
    """The roots that are alive and all that descend from them.

    Args:
        parents: parent by process.
    """
    found = {root for root in roots if root in parents}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _processes() -> dict[int, tuple[int, float, float]]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        # of proc(5), counted from the state: parent 1; utime, stime and those of ended children 11 to 14; rss 21
        used = sum(int(ticks) for ticks in fields[11:15]) / TICKS
        found[int(entry.parent.name)] = (int(fields[1]), int(fields[21]) * PAGE_MIB, used)
    return found


def keep_cookie(session: Any, url: str, name: str, value: str) -> None:
    """Give a browser (an aiohttp session) a cookie of the server, as if she had signed in."""
    from yarl import URL  # aiohttp's own; not there where nobody browses

    session.cookie_jar.update_cookies({name: value}, URL(url))


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
