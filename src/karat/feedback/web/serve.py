"""The server as processes: one listening socket, several workers, none of which knows anything the store does not.

A worker that dies is replaced; a signal lets every worker finish what it has begun. Knows processes and signals; knows
nothing about requests.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

import uvicorn

from karat.errors import ConfigError
from karat.feedback.people.door import keep_door
from karat.feedback.store import open_store
from karat.feedback.web.app import create_app
from karat.feedback.web.first_admin import setup_token
from karat.feedback.web.settings import ServerSettings

LOG = logging.getLogger("karat.web")
GRACE_S = 10
"""Seconds in which a worker may finish what it has begun."""
KEEP_ALIVE_S = 75
"""Seconds for which an idle connection is kept: about as long as a rater reads."""
LARGEST_HEAD = 64 * 1024
"""Bytes of a request's head."""
QUICK_DEATH_S = 15.0
"""A worker that dies sooner after its start has probably not come up at all."""
MOST_QUICK_DEATHS = 5

LEAST_WORKERS, MOST_WORKERS = 2, 4
"""Workers by default: another one answers while one is replaced, and beyond four SQLite's one writer is the limit."""
SWITCH_S = 0.001
"""Seconds for which one thread of a worker may keep the interpreter while others wait for it: a request that holds the
store's writer lock asks for the interpreter after every statement."""

Samplers = Callable[[], Mapping[str, Any]]
"""Makes a worker's samplers; travels to another process, so it is a function of a module."""


def serve(
    url: str,
    settings: ServerSettings,
    *,
    workers: int | None = None,
    samplers: Samplers | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a store until a signal says stop.

    Args:
        url: path or SQLAlchemy URL of the store.    workers: processes, ≥ 1; None = `default_workers`.
        samplers: makes the policies that write while people wait, once in each worker.
        say: takes the lines for the terminal: the address, and the link that makes the first admin.
    Raises: ConfigError for an address that cannot be listened on, or where no worker comes up; StoreError for a store
        that cannot be opened.
    """
    workers = default_workers() if workers is None else workers
    if workers < 1:
        raise ConfigError(f"workers: found {workers}; expected ≥ 1")
    with _listening(settings) as listener:
        if settings.port == 0:
            settings = replace(settings, port=listener.getsockname()[1])
        with open_store(url) as store:
            create_app(store, settings)  # what is wrong with it is said here, once, and not by every worker
            keep_door(store, settings.url, now=time.time())
            token = setup_token(store)
            say(f"karat serves {store.address} at {settings.url}")
        if token is not None:
            say(f"There is no admin yet. Make the first one here, once: {settings.url}/setup/{token}")
        _Workers(_Job(url, settings, samplers), listener).keep(workers)


def default_workers() -> int:
    """One worker a core that this process may use, at least two and at most four."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(LEAST_WORKERS, min(MOST_WORKERS, usable))


@dataclass(frozen=True)
class _Job:
    url: str
    settings: ServerSettings
    samplers: Samplers | None


class _Workers:
    """The processes that answer, and whoever replaces them."""

    def __init__(self, job: _Job, listener: socket.socket) -> None:
        self._job, self._listener = job, listener
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[SpawnProcess, float] = {}
        self._stop = threading.Event()

    def keep(self, n: int) -> None:
        """Keep n of them running until SIGTERM or SIGINT, then let them finish."""
        before = {sign: signal.signal(sign, self._on_signal) for sign in (signal.SIGTERM, signal.SIGINT)}
        quick_deaths = 0
        try:
            for _ in range(n):
                self._start()
            while not self._stop.is_set():
                multiprocessing.connection.wait([each.sentinel for each in self._running], timeout=1.0)
                for process, since in list(self._running.items()):
                    if process.is_alive() or self._stop.is_set():
                        continue
                    quick_deaths = quick_deaths + 1 if time.monotonic() - since < QUICK_DEATH_S else 0
                    if quick_deaths >= MOST_QUICK_DEATHS:
                        raise ConfigError(
                            f"serve: {quick_deaths} workers in a row ended as they started; their messages are above"
                        )
                    LOG.warning("worker %s ended (%s); another takes its place", process.pid, process.exitcode)
                    del self._running[process]
                    self._start()
        finally:
            self._end()
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def _start(self) -> None:
        process = self._context.Process(target=_work, args=(self._job, self._listener), name="karat-worker")
        process.start()
        self._running[process] = time.monotonic()

    def _end(self) -> None:
        for process in self._running:
            process.terminate()
        until = time.monotonic() + GRACE_S + 5
        for process in self._running:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _on_signal(self, *_: object) -> None:
        self._stop.set()


def _listening(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # named as TCP, or asyncio does not set TCP_NODELAY on its connections and small answers wait 40 ms for an ACK
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host.strip("[]"), settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"serve: cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --port"
        ) from None
    return listener


def _work(job: _Job, listener: socket.socket) -> None:
    """One worker: its own connections to the store, its own app, until it is told to stop or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and tells us
    store = open_store(job.url)
    app = create_app(store, job.settings, samplers=job.samplers() if job.samplers is not None else None)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # invite links must not be written down
        lifespan="off",
        proxy_headers=False,  # whose word counts is our own rule
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=LARGEST_HEAD,
    )
    server = uvicorn.Server(config)
    # uvicorn raises the signal again when it has ended: by default that would end us before the store is closed, and on
    # SQLite everything since the last checkpoint would be left in a file beside it, which whoever copies it misses
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()  # what is loaded by now stays: no collection looks at it again
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent, server), daemon=True).start()
    server.run(sockets=[listener])
    store.close()


def _end_with(parent: BaseProcess, server: uvicorn.Server) -> None:
    parent.join()
    server.should_exit = True
