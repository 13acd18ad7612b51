"""A server in the process of the test: a store with a few tasks, one account of each role, browsers and programs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

from karat.feedback.people import accounts
from karat.feedback.store import Store, open_store
from karat.feedback.web.app import create_app
from karat.feedback.web.desk import Kept
from karat.feedback.web.settings import ServerSettings
from karat.records import Response, Task, user_prompt

NOW = 1_790_000_000.0
PASSWORD = "correct horse battery"
ROLES = ("annotator", "expert", "auditor", "admin")


@dataclass
class Served:
    """An app with its store and a clock that stands still until it is moved."""

    store: Store
    settings: ServerSettings = field(default_factory=ServerSettings)
    now: float = NOW

    def __post_init__(self) -> None:
        self.app = create_app(self.store, self.settings, clock=lambda: self.now)
        self.app.state.kept = Kept(share=math.inf)  # on a slow machine too a page shows what was just written
        self.accounts = {role: accounts.make_account(self.store, role, login=role, now=NOW) for role in ROLES}

    def anybody(self, **headers: str) -> TestClient:
        """A client that nobody has signed in; raises nothing, so that a 500 is seen as one."""
        address = self.settings.url
        return TestClient(
            self.app, base_url=address, headers=headers, follow_redirects=False, raise_server_exceptions=False
        )

    def browser(self, role: str | None = None, *, account: str | None = None) -> Browser:
        """A browser with a session of that role, or of an account."""
        client = self.anybody(Origin=self.settings.url)
        if role is None and account is None:
            return Browser(client, "")
        who = account or self.accounts[role or ""].id
        token = accounts.open_session(self.store, who, now=self.now)
        client.cookies.set(self.settings.cookie, token)
        session = accounts.session_of(self.store, token, now=self.now)
        assert session is not None
        return Browser(client, session.csrf, token)

    def program(self, role: str, *, account: str | None = None) -> TestClient:
        """A program with a bearer token of that role, or of an account."""
        return self.anybody(Authorization=f"Bearer {self.token(account or self.accounts[role].id)}")

    def token(self, account: str) -> str:
        """A bearer token of an account."""
        return accounts.open_session(self.store, account, now=self.now, kind="api", hours=1000.0)

    def annotator(self, role: str = "annotator") -> str:
        """The pseudonym of the account of a role."""
        return self.accounts[role].annotator or ""


@dataclass
class Browser:
    """A client with a session cookie."""

    client: TestClient
    csrf: str
    token: str = ""

    def get(self, path: str, **rest: Any) -> Any:
        """Look at a page."""
        return self.client.get(path, **rest)

    def post(self, path: str, fields: dict[str, Any] | None = None, **rest: Any) -> Any:
        """Send a form as its page would."""
        return self.client.post(path, data={"csrf": self.csrf, **(fields or {})}, **rest)


def served(folder: Path, n_tasks: int = 6, *, settings: ServerSettings | None = None, **task: Any) -> Served:
    """A server of `n_tasks` comparisons."""
    store = open_store(folder / "served.db")
    prompts = [user_prompt(f"Question {i}?") for i in range(n_tasks)]
    responses = [Response(one.id, f"Answer {k} to {one.text}", f"policy-{k}") for one in prompts for k in range(2)]
    store.add_prompts(prompts)
    store.add_responses(responses)
    pairs = zip(prompts, responses[::2], responses[1::2], strict=True)
    store.add_tasks([Task(prompt.id, (a.id, b.id), **{"overlap": 3, **task}) for prompt, a, b in pairs])
    return Served(store, settings or ServerSettings())


class InProcess(httpx.BaseTransport):
    """Carries requests of httpx to an app in this process."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.n_requests = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.n_requests += 1
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
        answer = self.client.request(
            request.method, request.url.raw_path.decode(), content=request.read(), headers=headers
        )
        kept = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return httpx.Response(answer.status_code, headers=kept, content=answer.content)
