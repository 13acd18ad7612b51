"""Label Studio on SQLite, as its own image serves it: Django in several single-threaded workers behind gunicorn.

`options` "start" takes `label-studio start` instead: Django's development server, one process with a thread a
connection. What its page does on "Submit": POST of the annotation, then GET of the next task; each is one request.
Left out, in its favour: the drafts that the page saves meanwhile, scripts, and the data manager's own requests.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.environments import LABEL_STUDIO, environment_directory, python_with
from bench.load.plan import Plan, items, user_name
from bench.load.systems import Refused, Server, free_port, keep_cookie

SETUP = Path(__file__).with_name("label_studio_setup.py")
# twice the cores in processes, one thread each: what uwsgi.ini of its image says
N_WORKERS = 2 * (os.cpu_count() or 1)
# nothing is sent anywhere and nothing is asked of the network
QUIET = {
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "COLLECT_ANALYTICS": "0",
    "LATEST_VERSION_CHECK": "0",
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "1",
    "HOST": "",
    "DEBUG": "0",
    "LOG_LEVEL": "WARNING",
    "DJANGO_SETTINGS_MODULE": "core.settings.label_studio",
}
PROJECT = 1
SESSIONS = "sessions.json"


class System:
    """Label Studio, its project and its files."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan, self._directory = plan, directory

    def prepare(self) -> None:
        """Accounts, one project and its tasks, written by Label Studio's own models; migrated once an environment."""
        empty = environment_directory("load-label-studio") / "empty-store"
        if not (empty / "done").exists():
            print("load: label_studio: making an empty database (once)", file=sys.stderr, flush=True)
            shutil.rmtree(empty, ignore_errors=True)
            _django(empty, "migrate")
            (empty / "done").touch()
        shutil.copytree(empty, self._directory / "data")
        work = {
            "emails": [_email(number) for number in range(self._plan.raters)],
            "tasks": [
                {"id": i.id, "prompt": i.prompt, "a": i.responses[0], "b": i.responses[1]} for i in items(self._plan)
            ],
        }
        (self._directory / "work.json").write_text(json.dumps(work), encoding="utf-8")
        _django(self._directory / "data", "fill", *(str(self._directory / name) for name in ("work.json", SESSIONS)))

    def start(self) -> tuple[Server, str]:
        """The server, and where it listens."""
        port = free_port()
        python = _python()
        environment = QUIET | {"LABEL_STUDIO_BASE_DATA_DIR": str(self._directory / "data")}
        if self._plan.options == "start":
            command = [str(python.with_name("label-studio")), "start", "--no-browser"]
            command += ["--internal-host", "127.0.0.1", "--port", str(port)]
        else:
            command = [str(python), "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", str(N_WORKERS)]
            command += ["--timeout", "120", "--chdir", str(_package(python)), "core.wsgi:application"]
        url = f"http://127.0.0.1:{port}"
        log = self._directory / "server.log"
        return Server(command, directory=self._directory, log=log, health=f"{url}/health", environment=environment), url

    def stored(self) -> list[tuple[int, str]]:
        """Annotations in its database."""
        numbers = {_email(number): number for number in range(self._plan.raters)}
        question = (
            "SELECT user.email, task.data FROM task_completion AS answer "
            "JOIN htx_user AS user ON user.id = answer.completed_by_id JOIN task ON task.id = answer.task_id "
            "WHERE NOT answer.was_cancelled"
        )
        connection = sqlite3.connect(self._directory / "data" / "label_studio.sqlite3")
        try:
            return [(numbers[email], json.loads(data)["id"]) for email, data in connection.execute(question)]
        finally:
            connection.close()

    def versions(self) -> dict[str, str]:
        """What was measured."""
        return dict(LABEL_STUDIO)

    def close(self) -> None:
        """Nothing else was started."""


def _email(number: int) -> str:
    return f"{user_name(number)}@example.org"


def _python() -> Path:
    return python_with("load-label-studio", LABEL_STUDIO)


def _package(python: Path) -> Path:
    """Where the package lies: its modules import each other from within it."""
    (found,) = python.parent.parent.glob("lib/python3*/site-packages/label_studio")
    return found


def _django(data: Path, *arguments: str) -> None:
    data.mkdir(parents=True, exist_ok=True)
    python = _python()
    command = [str(python), str(SETUP), *arguments]
    environment = {**os.environ, **QUIET, "LABEL_STUDIO_BASE_DATA_DIR": str(data)}
    done = subprocess.run(command, cwd=_package(python), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise SystemExit(f"bench: {SETUP.name} {arguments[0]} ended with code {done.returncode}: {''.join(last)}")


class Rater:
    """A browser on Label Studio's labelling page."""

    def __init__(self, session: Any, plan: Plan, number: int) -> None:
        self._session, self._url, self._number = session, plan.url, number
        self._tasks: dict[str, int] = {}
        self._cookie = json.loads((Path(plan.files) / SESSIONS).read_text(encoding="utf-8"))[number]

    async def login(self) -> None:
        """The session is there; the browser gets its cookie."""
        keep_cookie(self._session, self._url, "sessionid", self._cookie)

    async def next_item(self) -> str | None:
        """The task that the labelling stream shows next."""
        async with self._session.get(f"{self._url}/api/projects/{PROJECT}/next") as answer:
            body = await answer.read()
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise Refused(f"next: status {answer.status}")
        task = json.loads(body)
        self._tasks[task["data"]["id"]] = task["id"]
        return task["data"]["id"]

    async def submit(self, item: str, choice: int) -> str:
        """What the page sends on "Submit"."""
        selected = {"selected": ("left", "right")[choice]}
        body = {
            "lead_time": 10.0,
            "result": [
                {"id": "pair", "type": "pairwise", "value": selected, "from_name": "pair", "to_name": "a,b"},
            ],
            "draft_id": 0,
            "parent_prediction": None,
            "parent_annotation": None,
            "project": PROJECT,
        }
        url = f"{self._url}/api/tasks/{self._tasks.pop(item)}/annotations?project={PROJECT}"
        async with self._session.post(url, json=body) as answer:
            said = await answer.read()
            if answer.status != 201:
                raise Refused(f"submit: status {answer.status} {said[:60]!r}")
        return item
