"""karat as `karat serve` serves it, on SQLite or PostgreSQL, through its page or through its API.

`options` is "page sqlite", "api sqlite", "page postgresql" or "api postgresql". The page without its scripts does what
a browser has to: GET /work for the next item, POST /work with the answer; the same two requests as the peers' pages.
The API is what the typed client and scripts use. Every rater has a session; opening it is not timed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from html import unescape
from pathlib import Path
from typing import Any

from bench.environments import CROWD, python_with
from bench.load.plan import Plan, items, user_name
from bench.load.systems import Refused, Server, free_port, keep_cookie
from bench.turns import ROOT

N_WORKERS = os.cpu_count() or 1
COOKIE = "karat"
HIDDEN = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)"')
SHOWN = re.compile(r"\bitem\d+\b")
FIRST, SECOND = 0, 6  # positions of the ends of the scale of seven


class System:
    """One store, one server, and the database where it is not a file."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan, self._directory = plan, directory
        self._database: subprocess.Popen[str] | None = None
        self._database_pid: int | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._url = str(directory / "store.sqlite")

    def prepare(self) -> None:
        """The queue, an account and a session for every rater, by karat's own functions."""
        from karat.feedback.people import accounts
        from karat.feedback.store import open_store
        from karat.records import Prompt, Response, Task, Turn

        if self._plan.options.endswith("postgresql"):
            self._start_database()
        queue = items(self._plan)
        prompts = [Prompt((Turn("user", item.prompt),)) for item in queue]
        pairs = [
            tuple(Response(prompt.id, text, "bench", n) for n, text in enumerate(item.responses))
            for prompt, item in zip(prompts, queue, strict=True)
        ]
        tasks = [
            Task(prompt.id, tuple(response.id for response in pair))
            for prompt, pair in zip(prompts, pairs, strict=True)
        ]
        now = time.time()
        with open_store(self._url) as store:
            store.ingest(prompts=prompts, responses=[r for pair in pairs for r in pair], new_tasks=tasks, now=now)
            kind = "browser" if self._plan.options.startswith("page") else "api"
            sessions, annotators = [], []
            for number in range(self._plan.raters):
                account = accounts.make_account(store, "annotator", now=now, login=user_name(number))
                sessions.append(accounts.open_session(store, account.id, now=now, kind=kind))
                annotators.append(account.annotator)
        found = {"sessions": sessions, "annotators": annotators}
        found |= {"items": {prompt.id: item.id for prompt, item in zip(prompts, queue, strict=True)}}
        (self._directory / "people.json").write_text(json.dumps(found), encoding="utf-8")

    def start(self) -> tuple[Server, str]:
        """`karat serve` with a worker a core, and where it listens."""
        port = free_port()
        command = [str(Path(sys.executable).with_name("karat")), "serve", self._url, "--port", str(port)]
        command += ["--workers", str(N_WORKERS)]
        url = f"http://127.0.0.1:{port}"
        log = self._directory / "server.log"
        also = () if self._database_pid is None else (self._database_pid,)
        return Server(command, directory=self._directory, log=log, health=f"{url}/health", also=also), url

    def stored(self) -> list[tuple[int, str]]:
        """Judgements in the store, when it verifies."""
        from karat.feedback.store import open_store

        people = json.loads((self._directory / "people.json").read_text(encoding="utf-8"))
        numbers = {annotator: number for number, annotator in enumerate(people["annotators"])}
        with open_store(self._url) as store:
            if problems := store.verify():
                raise SystemExit(f"bench: the store does not verify after the load: {problems[0]}")
            # a hidden repeat of an item is a task of its own, and is not an item that was answered too often
            names = {
                task.id: people["items"][task.prompt_id] + ("" if task.batch == "main" else f" ({task.batch})")
                for task in store.tasks()
            }
            return [(numbers[j.annotator], names[j.task_id]) for j in store.judgements()]

    def versions(self) -> dict[str, str]:
        """What was measured."""
        import importlib.metadata as metadata

        names = ["karat", "fastapi", "uvicorn", "sqlalchemy"]
        found = {name: metadata.version(name) for name in names}
        return found | ({"pgserver": CROWD["pgserver"]} if self._database is not None else {})

    def close(self) -> None:
        """Stop the database."""
        if self._database is not None:
            assert self._database.stdin is not None
            self._database.stdin.close()
            self._database.wait(60)
        if self._scratch is not None:
            self._scratch.cleanup()

    def _start_database(self) -> None:
        # outside the repository: a server started by root runs as somebody else, who must be able to come here
        self._scratch = tempfile.TemporaryDirectory(prefix="karat-bench-", ignore_cleanup_errors=True)
        command = [str(python_with("load-crowd", CROWD)), "-m", "bench.load.postgresql", f"{self._scratch.name}/pg"]
        with (self._directory / "postgresql.log").open("w", encoding="utf-8") as log:
            self._database = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._database.stdout is not None
        line = self._database.stdout.readline()
        if not line:
            raise SystemExit(f"bench: PostgreSQL does not start (see {self._directory / 'postgresql.log'})")
        said = json.loads(line)
        self._database_pid = said["pid"]
        self._url = said["url"].replace("postgresql://", "postgresql+psycopg://", 1)


class Rater:
    """A browser on karat's page, or a program at its API."""

    def __new__(cls, session: Any, plan: Plan, number: int) -> Any:
        """The one that the plan asks for."""
        return (PageRater if plan.options.startswith("page") else ApiRater)(session, plan, number)


class PageRater:
    """A browser that runs no scripts."""

    def __init__(self, session: Any, plan: Plan, number: int) -> None:
        self._session, self._url = session, plan.url
        self._token = _token(plan, number)
        self._form: dict[str, str] = {}

    async def login(self) -> None:
        """The session is there; the browser gets its cookie."""
        keep_cookie(self._session, self._url, COOKIE, self._token)

    async def next_item(self) -> str | None:
        """The page of the next item."""
        async with self._session.get(f"{self._url}/work", allow_redirects=False) as answer:
            page = (await answer.read()).decode()
            if answer.status != 200:
                raise Refused(f"next: status {answer.status} {answer.headers.get('location', '')}")
        shown = SHOWN.search(page)
        if shown is None:
            return None
        self._form = _hidden(page)
        return shown.group()

    async def submit(self, item: str, choice: int) -> str:
        """What the form sends; once more where the page asks whether so quick an answer is meant."""
        form = self._form | {"choice": str((FIRST, SECOND)[choice]), "active_s": "10.0", "idle_s": "0.0"}
        for _ in range(2):
            headers = {"Origin": self._url}
            async with self._session.post(
                f"{self._url}/work", data=form, headers=headers, allow_redirects=False
            ) as answer:
                page = (await answer.read()).decode()
                if answer.status == 303:
                    return item
                again = _hidden(page)
            if "confirm" not in again:
                raise Refused(f"submit: status {answer.status}")
            form |= again
        raise Refused("submit: asked twice whether it is meant")


class ApiRater:
    """A program with a bearer token."""

    def __init__(self, session: Any, plan: Plan, number: int) -> None:
        self._session, self._url = session, f"{plan.url}/api/v1/tasks"
        self._headers = {"Authorization": f"Bearer {_token(plan, number)}"}
        self._lease = ""

    async def login(self) -> None:
        """The token is there."""

    async def next_item(self) -> str | None:
        """The next task as JSON."""
        async with self._session.post(f"{self._url}/next", headers=self._headers) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise Refused(f"next: status {answer.status} {body[:100]!r}")
        task = json.loads(body)["task"]
        if task is None:
            return None
        self._lease = task["lease"]
        return SHOWN.search(task["prompt"][-1]["content"]).group()

    async def submit(self, item: str, choice: int) -> str:
        """The answer as JSON, under a key of its own."""
        sent = {
            "value": {"level": (SECOND, FIRST)[choice], "n_levels": SECOND + 1},
            "key": self._lease,
            "active_s": 10.0,
            "idle_s": 0.0,
        }
        url = f"{self._url}/{self._lease}/judgement"
        async with self._session.post(url, json=sent, headers=self._headers) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise Refused(f"submit: status {answer.status} {body[:100]!r}")
        return item


def _token(plan: Plan, number: int) -> str:
    return _people(plan)["sessions"][number]


_KNOWN: dict[str, dict[str, Any]] = {}


def _people(plan: Plan) -> dict[str, Any]:
    """What `prepare` wrote, read once."""
    if plan.files not in _KNOWN:
        _KNOWN[plan.files] = json.loads((Path(plan.files) / "people.json").read_text(encoding="utf-8"))
    return _KNOWN[plan.files]


def _hidden(page: str) -> dict[str, str]:
    return {unescape(name): unescape(value) for name, value in HIDDEN.findall(page)}
