"""A typed client of the server: the same records as the store's, over HTTP, sent again until they have arrived.

`RaterClient` judges under one account. `AdminClient` brings in what is to be judged and is a desk at which simulated
raters work (`simulated.collect_simulated`). Every submission has a key before it is first sent, so that sending it
again stores it once. Knows the API's addresses and shapes; knows nothing about the server's insides.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from karat.errors import ConfigError, InputError, StoreError
from karat.questions import Choice, Question
from karat.records import Annotator, Judgement, Prompt, Response, Task, Turn

API = "/api/v1"
BATCH = 500
"""Records of one request."""
BUSY = (429, 502, 503, 504)
"""Answers after which the same request is sent again."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
_CHOICES = ("attributes", "flags", "span_classes", "aspects")


@dataclass(frozen=True)
class Assigned:
    """A task in this rater's hands."""

    lease: str
    """Names it."""
    expires_at: float
    """Until when it is hers alone, seconds since the epoch by the server's clock."""
    question: Question
    """How it is asked."""
    prompt: Prompt
    """What was answered."""
    responses: tuple[str, ...]
    """Texts in the order shown; answers name them by position, from 0."""
    guideline: str
    """Version of the guideline it is judged under."""


@dataclass(frozen=True)
class Receipt:
    """The server's word that a judgement is on its disk."""

    commitment: str
    """What the next seal will cover."""
    late: bool
    """True = its lease had expired; it counts all the same."""


@dataclass(frozen=True)
class PastAnswer:
    """One of this rater's last answers, which another answer to the same lease corrects."""

    lease: str | None
    """Names the task."""
    created_at: str
    """When it was submitted, ISO 8601 UTC."""
    kind: str
    """What was asked for."""
    value: Mapping[str, Any]
    """The answer, in terms of positions."""
    reason: str | None
    """The rater's own words."""


@dataclass(frozen=True)
class HeldLease:
    """A lease of a simulated rater."""

    id: str
    """Names it."""
    task_id: str
    """Task.id."""
    annotator: str
    """Annotator.id of the holder."""
    expires_at: float
    """Seconds since the epoch by the server's clock."""


def sign_in(url: str, login: str, password: str, **options: Any) -> str:
    """A bearer token for an account.

    Args:
        options: of `Connection`.
    Raises: StoreError where login and password do not match or the server cannot be reached.
    """
    with Connection(url, "", **options) as connection:
        return connection.send("POST", "/session", {"login": login, "password": password})["token"]


class Connection:
    """Requests to one server under one token, repeated while it is out of reach or busy."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 30.0,
        n_tries: int = 6,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """A connection; nothing is sent yet.

        Args:
            url: address of the server.    token: bearer token; "" = none.    timeout_s: of one attempt, seconds.
            n_tries: attempts before a request is given up, ≥ 1.    transport: httpx transport; None = the network.
            sleep: waits between attempts.
        """
        if not url.startswith(("http://", "https://")) or n_tries < 1:
            raise ConfigError(f"client: found {url!r} and {n_tries} tries; expected http(s)://… and at least one try")
        self.url = url.rstrip("/")
        """Address of the server."""
        self._n_tries, self._sleep = n_tries, sleep
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections."""
        self._http.close()

    def send(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON that the server answers.

        Raises: InputError for what it cannot use; StoreError for what it refuses, or where it cannot be reached.
        """
        return self.request(method, path, body, **query).json()

    def rows(self, path: str, **query: Any) -> Iterator[Any]:
        """The JSON lines that the server answers."""
        for line in self.request("GET", path, **query).text.split("\n"):
            if line:
                yield json.loads(line)

    def request(
        self, method: str, path: str, body: Any = None, *, content: bytes | None = None, **query: Any
    ) -> httpx.Response:
        """The server's answer to one request, attempted until it comes.

        Args:
            body: sent as JSON.    content: sent as it is, instead.    query: parts of the address; None = left out.
        """
        asked = {name: value for name, value in query.items() if value is not None}
        sent: dict[str, Any] = {"json": body} if content is None else {"content": content}
        if content is not None:
            sent["headers"] = {"Content-Type": "application/x-ndjson"}
        found = "nothing"
        for attempt in range(self._n_tries):
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
            try:
                answer = self._http.request(method, f"{API}{path}", params=asked, **sent)
            except httpx.TransportError as error:
                found = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code not in BUSY:
                    return self._checked(answer)
                found = f"status {answer.status_code}"
                wait_s = max(wait_s, min(LONGEST_WAIT_S, _seconds(answer.headers.get("Retry-After"))))
            if attempt + 1 < self._n_tries:
                self._sleep(wait_s)
        raise StoreError(
            f"{self.url}: the server did not answer in {self._n_tries} attempts ({found}); "
            "check the address and the network, then send the same again: its key stores it once"
        )

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        try:
            error = answer.json()["error"]
            message = "; ".join([error["message"], *error["fields"]])
        except (ValueError, KeyError, TypeError):
            message = f"found the answer {answer.status_code}, which is not karat's; check the address"
        kind = InputError if answer.status_code in (400, 413, 422) else StoreError
        raise kind(f"{self.url}: {message}")


class RaterClient:
    """One rater at work."""

    def __init__(self, url: str, token: str, **options: Any) -> None:
        """A rater's client.

        Args:
            token: of `sign_in`.    options: of `Connection`.
        """
        self._connection = Connection(url, token, **options)

    def __enter__(self) -> RaterClient:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def next_task(self) -> Assigned | None:
        """The task in hand, else the next one; None where there is nothing for this rater."""
        found = self._connection.send("POST", "/tasks/next")["task"]
        return None if found is None else _assigned(found)

    def submit(
        self,
        lease: str,
        value: Mapping[str, Any],
        *,
        key: str | None = None,
        reason: str | None = None,
        active_s: float | None = None,
        idle_s: float | None = None,
    ) -> Receipt:
        """Answer a task; when this returns the answer is on the server's disk, once.

        Args:
            value: as `Judgement.value`, with positions for identities.    key: None = a random one.
            reason: words.    active_s, idle_s: seconds as measured; None = not measured.
        """
        sent = {"key": key or uuid.uuid4().hex, "value": dict(value), "reason": reason}
        found = self._connection.send(
            "POST", f"/tasks/{lease}/judgement", {**sent, "active_s": active_s, "idle_s": idle_s}
        )
        return Receipt(found["receipt"], found["late"])

    def heartbeat(self, lease: str) -> float:
        """Keep a task a while longer. Returns: its new expiry."""
        return self._connection.send("POST", f"/tasks/{lease}/heartbeat")["expires_at"]

    def skip(self, lease: str, reason: str) -> None:
        """Give a task back for good, with a reason."""
        self._connection.send("POST", f"/tasks/{lease}/skip", {"reason": reason})

    def save_draft(self, lease: str, body: Mapping[str, Any]) -> None:
        """Keep what was entered so far on the server."""
        self._connection.send("PUT", f"/tasks/{lease}/draft", {"body": dict(body)})

    def draft(self, lease: str) -> Mapping[str, Any] | None:
        """What was entered so far; None = nothing."""
        return self._connection.send("GET", f"/tasks/{lease}/draft")["body"]

    def history(self) -> list[PastAnswer]:
        """The last answers that can still be changed, newest first."""
        return [PastAnswer(**each) for each in self._connection.send("GET", "/history")]

    def standing(self) -> str:
        """working, quarantined or unqualified."""
        return self._connection.send("GET", "/me")["state"]


class AdminClient:
    """What an admin does by program; also a desk for simulated raters, like a store."""

    def __init__(self, url: str, token: str, **options: Any) -> None:
        """An admin's client.

        Args:
            token: of `sign_in`.    options: of `Connection`.
        """
        self._connection = Connection(url, token, **options)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def add_prompts(self, prompts: Iterable[Prompt]) -> int:
        """Store prompts that are not there yet. Returns: how many were new."""
        return self._add("/prompts", prompts)

    def add_responses(self, responses: Iterable[Response]) -> int:
        """Store responses that are not there yet. Returns: how many were new."""
        return self._add("/responses", responses)

    def add_questions(self, questions: Iterable[Question]) -> int:
        """Store questions that are not there yet. Returns: how many were new."""
        return self._add("/questions", questions)

    def add_annotators(self, annotators: Iterable[Annotator]) -> int:
        """Store simulated raters or models that are not there yet. Returns: how many were new."""
        return self._add("/annotators", annotators)

    def add_tasks(self, tasks: Iterable[Task]) -> int:
        """Queue tasks that are not there yet. Returns: how many were new."""
        return self._add("/tasks", tasks)

    def guideline(self) -> str | None:
        """The version of the newest guideline, under which new tasks are to be judged; None = none was written."""
        return self._connection.send("GET", "/guideline")["version"]

    def prompts(self) -> dict[str, Prompt]:
        """Every prompt by its id."""
        return {
            row["id"]: Prompt(tuple(Turn(**turn) for turn in row["turns"]), row["topic"])
            for row in self._connection.rows("/prompts")
        }

    def responses(self) -> dict[str, Response]:
        """Every response by its id."""
        return {row.pop("id"): Response(**row) for row in self._connection.rows("/responses")}

    def tasks(self, *, batch: str | None = None) -> list[Task]:
        """Tasks in the order in which they were queued."""
        rows = self._connection.rows("/tasks", batch=batch)
        return [_record(Task, row) for row in rows]

    def assignments(self, *, batch: str | None = None) -> dict[tuple[str, str], str]:
        """State of every (task id, rater id) pair that was ever leased or answered."""
        rows = self._connection.rows("/assignments", batch=batch)
        return {(row["task"], row["annotator"]): row["state"] for row in rows}

    def lease_many(
        self, pairs: Sequence[tuple[str, str]], now: float = 0.0, lease_s: float = 600.0
    ) -> list[HeldLease | None]:
        """Leases of simulated raters on named (task id, rater id) pairs; None where there is none to be had.

        Args:
            now: not used, the server has its own clock.    lease_s: seconds until they expire.
        """
        del now
        found = self._connection.send("POST", "/leases", {"pairs": [list(pair) for pair in pairs], "lease_s": lease_s})
        return [
            None if row is None else HeldLease(row["lease"], row["task"], row["annotator"], row["expires_at"])
            for row in found
        ]

    def submit_many(self, judgements: Sequence[Judgement], *, now: float = 0.0) -> list[Receipt]:
        """Store judgements of simulated raters or models: all of them or none. `now` is not used."""
        del now
        found = self._connection.send("POST", "/judgements/batch", [dataclasses.asdict(each) for each in judgements])
        return [Receipt(row["commitment"], row["late"]) for row in found]

    def add_gold(self, items: Sequence[Mapping[str, Any]], *, version: str) -> int:
        """Put gold items into use; `feedback.work.check_items.FIELDS` says what one holds. Returns: how many are new."""
        sent = {"version": version, "items": list(map(dict, items))}
        return self._connection.send("POST", "/checks/gold", sent)["new"]

    def gold(self) -> list[Mapping[str, Any]]:
        """Every gold item with how it was answered, in order of its making."""
        return self._connection.send("GET", "/checks/gold")

    def retire_gold(self, tasks: Iterable[str]) -> int:
        """Take gold items (Task.ids) out of use. Returns: how many were in use."""
        return self._connection.send("POST", "/checks/gold/retire", {"tasks": list(tasks)})["new"]

    def add_qualification(self, items: Sequence[Mapping[str, Any]], **options: Any) -> int:
        """Ask every rater these items before any work; options: version, pass_mark, attempts (2), requalify (False)."""
        sent = {"items": list(map(dict, items)), **options}
        return self._connection.send("POST", "/checks/qualification", sent)["new"]

    def import_lines(self, lines: bytes, *, form: str = "judgements") -> Mapping[str, Any]:
        """Bring JSON lines into the store. Returns: what was new, by name."""
        return self._connection.request("POST", "/import", content=lines, form=form).json()

    def export_lines(self) -> Iterator[dict[str, Any]]:
        """Every judgement, as `feedback.exchange.events.event_rows` gives it."""
        return self._connection.rows("/export")

    def stats(self) -> Mapping[str, Any]:
        """The state of the work, by name."""
        return self._connection.send("GET", "/stats")

    def _add(self, path: str, records: Iterable[Any]) -> int:
        rows = [dataclasses.asdict(record) for record in records]
        return sum(
            self._connection.send("POST", path, rows[start : start + BATCH])["new"]
            for start in range(0, len(rows), BATCH)
        )


def _assigned(found: Mapping[str, Any]) -> Assigned:
    asked = {name: tuple(value) if isinstance(value, list) else value for name, value in found["question"].items()}
    asked |= {name: tuple(Choice(**each) for each in asked[name]) for name in _CHOICES}
    prompt = Prompt(tuple(Turn(turn["role"], turn["content"]) for turn in found["prompt"]))
    texts = tuple(response["text"] for response in found["responses"])
    return Assigned(found["lease"], found["expires_at"] or 0.0, Question(**asked), prompt, texts, found["guideline"])


def _record(kind: type, row: dict[str, Any]) -> Any:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items() if name != "id"}
    return kind(**values)


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdecimal() else 0.0
