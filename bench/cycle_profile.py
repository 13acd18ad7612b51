"""Where the processor time of one rater's cycle goes: GET /work, POST /work, as `karat serve` answers them.

    python bench/cycle_profile.py [--url postgresql://…] [--cycles 200] [--top 40]

The app is called as its server would call it, without sockets and in one thread, so that the profiler sees everything; many
raters take turns, as in the row "load" of `make bench` (bench/load_study.py, whose queue it is). Prints processor milliseconds
a cycle without the profiler, of this process and of the database's, then the functions that take most of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import importlib
import json
import pstats
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

if __package__ in (None, ""):  # started as a file, not as `python -m bench`
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.handout_study import Meter, new_database
from bench.load.plan import Plan, items, user_name

from karat.feedback.people import accounts
from karat.feedback.store import Store, open_store
from karat.feedback.web.app import create_app
from karat.feedback.web.settings import ServerSettings
from karat.records import Prompt, Response, Task, Turn

RATERS = 40
HIDDEN = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)"')
INLINE = (
    "starlette.concurrency",
    "fastapi.concurrency",
    "fastapi.routing",
    "fastapi.dependencies.utils",
    "karat.feedback.web.access",
    "karat.feedback.web.lanes",
)


async def _inline(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


class Browser:
    """One signed-in rater whose requests go straight into the app."""

    def __init__(self, app: Any, host: str, cookie: str) -> None:
        self._app, self._host, self._cookie = app, host, cookie

    def ask(self, method: str, fields: dict[str, str] | None = None) -> tuple[int, str]:
        """Status and body of one request at /work."""
        body = urlencode(fields or {}).encode()
        headers = {"host": self._host, "cookie": self._cookie, "origin": f"http://{self._host}", "accept": "text/html"}
        if fields is not None:
            headers |= {"content-type": "application/x-www-form-urlencoded", "content-length": str(len(body))}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": "/work",
            "raw_path": b"/work", "query_string": b"", "root_path": "", "scheme": "http", "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 50000), "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }  # fmt: skip
        said: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            said.append(message)

        _finish(self._app(scope, receive, send))
        return said[0]["status"], b"".join(one.get("body", b"") for one in said[1:]).decode()


_LOOP = asyncio.new_event_loop()


def _finish(work: Awaitable[Any]) -> Any:
    return _LOOP.run_until_complete(work)


def crowd(store: Store, n_items: int) -> list[Browser]:
    """The row's queue, and raters who are signed in."""
    queue = items(Plan("ours", RATERS, n_items / 2 / RATERS * 10, warm_seconds=0.0))[:n_items]
    prompts = [Prompt((Turn("user", item.prompt),)) for item in queue]
    pairs = [
        [Response(prompt.id, text, "bench", n) for n, text in enumerate(item.responses)]
        for prompt, item in zip(prompts, queue, strict=True)
    ]
    tasks = [Task(prompt.id, tuple(one.id for one in pair)) for prompt, pair in zip(prompts, pairs, strict=True)]
    now = time.time()
    store.ingest(prompts=prompts, responses=[one for pair in pairs for one in pair], new_tasks=tasks, now=now)
    settings = ServerSettings()
    app = create_app(store, settings)
    people = [accounts.make_account(store, "annotator", now=now, login=user_name(i)) for i in range(RATERS)]
    tokens = [accounts.open_session(store, one.id, now=now) for one in people]
    host = settings.url.partition("://")[2]
    return [Browser(app, host, f"{settings.cookie}={token}") for token in tokens]


def cycle(rater: Browser) -> None:
    """One item and its answer."""
    status, page = rater.ask("GET")
    if status != 200:
        raise SystemExit(f"bench: GET /work answered {status}")
    form = {unescape(name): unescape(value) for name, value in HIDDEN.findall(page)}
    form |= {"choice": "0", "active_s": "60.0", "idle_s": "0.0"}
    status, page = rater.ask("POST", form)
    if status != 303:
        raise SystemExit(f"bench: POST /work answered {status}: {page[:300]}")


def main() -> None:
    """Measure, then profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a PostgreSQL server; default SQLite")
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--top", type=int, default=40)
    asked = parser.parse_args()
    for name in INLINE:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            for each in ("run_in_threadpool", "run_quick"):
                if hasattr(module, each):
                    setattr(module, each, _inline)
    with tempfile.TemporaryDirectory() as place:
        address = f"{place}/k.db" if asked.url is None else new_database(asked.url, 0)
        with open_store(address) as store:
            raters = crowd(store, 3 * asked.cycles + 200)
            for rater in raters:
                cycle(rater)
            meter = Meter(store)
            started = meter.seconds()
            for i in range(asked.cycles):
                cycle(raters[i % RATERS])
            spent = (meter.seconds() - started) * 1e3 / asked.cycles
            print(json.dumps({"database": store.dialect, "cycles": asked.cycles, "cpu_ms_a_cycle": round(spent, 2)}))
            profile = cProfile.Profile()
            profile.enable()
            for i in range(asked.cycles):
                cycle(raters[i % RATERS])
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(asked.top)
            pstats.Stats(profile).sort_stats("cumtime").print_stats(asked.top)


if __name__ == "__main__":
    main()
