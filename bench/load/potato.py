"""Potato as its own image serves it: one gunicorn worker with eight threads, answers in one JSON file a rater.

Its documentation allows no second worker (each would have its own queue, and the last to save discards the other's
answers). What its page does on "Next": POST /updateinstance with the answer, POST /annotate to move on, GET /annotate.
The answer's time is the first request, the next item's the other two. Left out, in its favour: what the page sends in
the background (timing, typing, spans), styles and scripts.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any

from bench.environments import POTATO, python_with
from bench.load.plan import Plan, items, user_name
from bench.load.systems import Refused, Server, free_port

SCHEME = "preference"
WORKER_THREADS = 8  # GUNICORN_THREADS of its image
CONFIG = {
    "annotation_task_name": "Load",
    "task_dir": ".",
    "output_annotation_dir": "annotation_output",
    "output_annotation_format": "json",
    "data_files": ["data/items.jsonl"],
    "item_properties": {"id_key": "id", "text_key": "responses", "context_key": "prompt"},
    "list_as_text": {"text_list_prefix_type": "alphabet"},
    # one rater an item, handed out one by one: the cheapest of its strategies, the others rank the whole queue
    "assignment_strategy": "fixed_order",
    "num_annotators_per_item": 1,
    "max_annotations_per_user": -1,
    "require_password": False,
    "user_config": {"allow_all_users": True},
    "annotation_schemes": [
        {
            "annotation_type": "pairwise",
            "name": SCHEME,
            "description": "Which response is better?",
            "mode": "binary",
            "items_key": "responses",
            "labels": ["Response A", "Response B"],
            "allow_tie": True,
            "label_requirement": {"required": True},
        }
    ],
}
SHOWN = re.compile(r"<input[^>]*\bid=\"instance_id\"[^>]*\bvalue=\"([^\"]*)\"")


class System:
    """Potato, its project and its files."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan, self._directory = plan, directory

    def prepare(self) -> None:
        """The project: a configuration (JSON is YAML) and the items; accounts are made by signing in."""
        (self._directory / "data").mkdir(parents=True)
        (self._directory / "config.yaml").write_text(json.dumps(CONFIG, indent=1), encoding="utf-8")
        with (self._directory / "data" / "items.jsonl").open("w", encoding="utf-8") as out:
            for item in items(self._plan):
                out.write(json.dumps({"id": item.id, "prompt": item.prompt, "responses": item.responses}) + "\n")

    def start(self) -> tuple[Server, str]:
        """The server of its image (docker-entrypoint.sh), on this machine; and where it listens."""
        address = f"127.0.0.1:{free_port()}"
        command = [str(python_with("load-potato", POTATO)), "-m", "gunicorn", "--bind", address, "--workers", "1"]
        command += ["--threads", self._plan.options or str(WORKER_THREADS), "--timeout", "120"]
        command.append("potato.flask_server:create_app('config.yaml')")
        # without a key every start signs everybody out; this one guards nothing
        settings = {"POTATO_SECRET_KEY": "of-a-server-that-lives-for-a-minute", "PYTHONUNBUFFERED": "1"}
        url = f"http://{address}"
        log = self._directory / "server.log"
        return Server(command, directory=self._directory, log=log, health=f"{url}/health", environment=settings), url

    def stored(self) -> list[tuple[int, str]]:
        """Answers in the raters' files."""
        numbers = {user_name(number): number for number in range(self._plan.raters)}
        found = []
        for path in sorted((self._directory / "annotation_output").glob("*/user_state.json")):
            labels = json.loads(path.read_text(encoding="utf-8"))["instance_id_to_label_to_value"]
            found += [(numbers[path.parent.name], item) for item, values in labels.items() if values]
        return found

    def versions(self) -> dict[str, str]:
        """What was measured."""
        return dict(POTATO)

    def close(self) -> None:
        """Nothing else was started."""


class Rater:
    """A browser on Potato's page."""

    def __init__(self, session: Any, plan: Plan, number: int) -> None:
        self._session, self._url, self._number = session, plan.url, number
        self._answered: str | None = None

    async def login(self) -> None:
        """Sign in by name; the account is made by that."""
        async with self._session.post(self._url + "/auth", data={"email": user_name(self._number)}) as answer:
            page = await answer.text()
        if 'id="instance_id"' not in page:
            raise Refused(f"login: found no item on the page {answer.url}")

    async def next_item(self) -> str | None:
        """Move on from the item that was answered, and load the page of the next."""
        before, self._answered = self._answered, None
        if before is not None:
            move = {"action": "next_instance", "instance_id": before}
            headers = {"X-Potato-Navigation": "1"}
            async with self._session.post(self._url + "/annotate", json=move, headers=headers) as answer:
                await _ok(answer)
        async with self._session.get(self._url + "/annotate") as answer:
            page = (await _ok(answer)).decode()
        shown = SHOWN.search(page)
        if shown is None:
            return None  # the page that says that nothing is left
        item = unescape(shown.group(1))
        if item == before:
            raise Refused("next: found the item that was answered already; expected another")
        return item

    async def submit(self, item: str, choice: int) -> str:
        """What the page sends when a tile was clicked."""
        body = {
            "instance_id": item,
            "annotations": {f"{SCHEME}:selection": "AB"[choice]},
            "cleared_schemas": [],
            "span_annotations": [],
            "client_timestamp": datetime.now(UTC).isoformat(),
        }
        async with self._session.post(self._url + "/updateinstance", json=body) as answer:
            said = json.loads(await _ok(answer))
        if said.get("status") in ("error", "blocked"):
            raise Refused(f"submit: {said.get('message')}")
        self._answered = item
        return item


async def _ok(answer: Any) -> bytes:
    body = await answer.read()
    if answer.status != 200:
        raise Refused(f"{answer.method} {answer.url.path}: status {answer.status}")
    return body
