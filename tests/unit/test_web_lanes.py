"""Threads of their own for what raters ask: they are few, and no slow page takes them."""

from __future__ import annotations

import threading

import anyio
import pytest
from fastapi.routing import APIRoute

from karat.feedback.store import open_store
from karat.feedback.web import lanes
from karat.feedback.web.app import create_app
from karat.feedback.web.settings import ServerSettings


def test_a_few_at_a_time_and_all_in_the_end():
    lock, now, most = threading.Lock(), 0, 0
    all_in = threading.Barrier(lanes.QUICK_THREADS)

    def work(n: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        all_in.wait(timeout=30)  # so many do run at once
        with lock:
            now -= 1
        return n

    async def ask() -> list[int]:
        found: list[int] = []

        async def one(n: int) -> None:
            found.append(await lanes.run_quick(work, n))

        async with anyio.create_task_group() as group:
            for n in range(3 * lanes.QUICK_THREADS):
                group.start_soon(one, n)
        return found

    assert sorted(anyio.run(ask)) == list(range(3 * lanes.QUICK_THREADS))
    assert most == lanes.QUICK_THREADS


def test_functions_that_hang_leave_raters_their_threads():
    """As many slow functions as there are other threads; a quick one passes them."""
    let_go = threading.Event()

    async def ask() -> str:
        n = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
        async with anyio.create_task_group() as group:
            for _ in range(n):
                group.start_soon(anyio.to_thread.run_sync, let_go.wait, 30)
            try:
                with anyio.fail_after(20):
                    return await lanes.run_quick(lambda: "answered")
            finally:
                let_go.set()

    assert anyio.run(ask) == "answered"


@pytest.mark.parametrize(
    ("path", "quick"),
    [
        ("/work", True), ("/work/draft", True), ("/api/v1/tasks/next", True), ("/api/v1/tasks/{lease}/judgement", True),
        ("/admin/quality", False), ("/arena", False), ("/api/v1/session", False), ("/login", False),
    ],
)  # fmt: skip
def test_what_comes_at_every_item_is_quick_and_what_may_take_long_is_not(tmp_path, path, quick):
    with open_store(tmp_path / "k.db") as store:
        routes = [one for one in create_app(store, ServerSettings()).routes if isinstance(one, APIRoute)]
    here = [one for one in routes if one.path == path and one.methods & {"GET", "POST"}]
    assert here
    assert all(isinstance(one, lanes.QuickRoute) == quick for one in here)
