"""A small place to work for browser tests: a store with tasks of the kinds asked for, served in a thread."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from karat.feedback import documents, people_tables
from karat.feedback.people import accounts, standing
from karat.feedback.store import Store, open_store
from karat.feedback.tasks import answer
from karat.feedback.web.app import create_app
from karat.feedback.web.settings import ServerSettings
from karat.feedback.work import assignment, checks
from karat.questions import Choice, Question
from karat.records import Prompt, Response, Task, Turn, user_prompt

PASSWORD = "correct horse battery staple"
TEXTS = ("The sky is blue. It mirrors the sea.", "Air scatters blue light most.", "Ask somebody else.", "Physics.")
QUESTIONS = {
    "comparison": Question(),
    "ranking": Question(kind="ranking"),
    "best_of": Question(kind="best_of"),
    "rating": Question(kind="rating", attributes=(Choice("true", "True"), Choice("clear", "Clear"))),
    "label": Question(kind="label", flags=(Choice("unsafe", "Unsafe"), Choice("spam", "Spam"))),
    "correction": Question(kind="correction"),
    "demonstration": Question(kind="demonstration"),
    "critique": Question(kind="critique", aspects=(Choice("facts", "Facts"), Choice("tone", "Tone"))),
    "span_marks": Question(
        kind="span_marks", granularity="span", span_classes=(Choice("wrong", "Wrong"), Choice("good", "Good"))
    ),
    "step_marks": Question(kind="step_marks", granularity="step"),
}
SHOWN = {"comparison": 2, "ranking": 4, "best_of": 3, "demonstration": 0}


@dataclasses.dataclass
class Place:
    """A server and its store."""

    store: Store
    url: str
    _n: Iterator[int]

    def rater(self, *, role: str = "annotator", password: str | None = None) -> tuple[accounts.Account, str]:
        """A new account and the address that signs it in."""
        login = f"rater{next(self._n)}" if password else None
        account = accounts.make_account(self.store, role, now=time.time(), login=login)
        if password:
            accounts.set_password(self.store, account.id, password, now=time.time())
        return account, f"{self.url}/invite/{accounts.invite(self.store, account.id, now=time.time())}"

    def judgements(self, annotator: str | None) -> list[Any]:
        """What a rater has judged so far, oldest first."""
        return [each for each in self.store.judgements() if each.annotator == annotator]

    def end_sessions(self) -> None:
        """Sign everybody out, as time would."""
        self.store.write(lambda connection: connection.execute(people_tables.sessions.delete()))


def add_task(
    store: Store,
    question: Question,
    texts: tuple[str, ...] = TEXTS,
    *,
    prompt: Prompt | None = None,
    reserved_for: str | None = None,
    batch: str = "main",
) -> Task:
    """Queue one task about these texts."""
    asked = prompt or user_prompt("Why is the sky blue?")
    responses = [Response(asked.id, text, f"policy-{i}") for i, text in enumerate(texts)]
    store.add_prompts([asked])
    store.add_responses(responses)
    documents.add_questions(store, [question])
    task = Task(
        asked.id,
        tuple(each.id for each in responses),
        kind=question.kind,
        question=question.id,
        overlap=1,
        batch=batch,
        reserved_for=reserved_for,
    )
    store.add_tasks([task])
    return task


def add_kind(store: Store, kind: str, annotator: str | None, **more: Any) -> Task:
    """Queue a task of a kind for one rater."""
    texts = TEXTS[: SHOWN.get(kind, 1)]
    if kind == "step_marks":
        texts = ("Half of 8 is 4.\n\nTwice 4 is 9.\n\nSo it is 9.",)
    question = dataclasses.replace(QUESTIONS[kind], **more)
    return add_task(store, question, texts, reserved_for=annotator, batch=f"{kind}-{time.monotonic_ns()}")


def judge(store: Store, task: Task, annotator: str, value: dict[str, Any], **more: Any) -> None:
    """Store a rater's answer, what was shown first as the task has it."""
    order = tuple(range(len(task.response_ids)))
    said = answer(task, value, annotator=annotator, shown_order=order, created_at="2026-01-01T00:00:00Z",
                  submission=f"{annotator}/{task.id}/{time.monotonic_ns()}", **more)  # fmt: skip
    store.submit(said, now=time.time())


def crowd(place: Place, *, n_tasks: int = 12, n_raters: int = 3) -> list[str]:
    """Raters with enough votes for figures about them, the first of whom takes whatever stands first."""
    names = [str(place.rater()[0].annotator) for _ in range(n_raters)]
    for i in range(n_tasks):
        texts = (f"The sky is blue, says {i}.", f"It mirrors the sea, says {i}.")
        task = add_task(place.store, Question(), texts, batch=f"crowd-{time.monotonic_ns()}")
        for k, name in enumerate(names):
            level = 6 if k == 0 else (5 if (i + k) % 5 else 1) if i % 2 else (1 if (i + k) % 5 else 5)
            judge(place.store, task, name, {"level": level, "n_levels": 7}, active_s=12.0)
    return names


def failed_test(place: Place, *, words: str = "Item 1 has two right answers.") -> str:
    """A rater whom a failed qualification keeps from work, and who asks for a review."""
    annotator, now = str(place.rater()[0].annotator), time.time()
    task = add_kind(place.store, "comparison", None)
    version = task.id[-30:]
    checks.add_qualification(
        place.store, [(task, {"level": 6, "n_levels": 7})], version=version, pass_mark=1.0, attempts=1, now=now
    )
    lease = assignment.next_work(place.store, annotator, now=now).lease
    assert lease is not None
    judge(place.store, lease.task, annotator, {"level": 0, "n_levels": 7}, reason=words)
    assert assignment.next_work(place.store, annotator, now=now).reason == "not qualified"
    standing.ask_review(place.store, annotator, words, by=annotator, now=now)
    return annotator


def conversation(*texts: str) -> Prompt:
    """A conversation that ends with a person's turn."""
    roles = itertools.cycle(("user", "assistant"))
    turns = [Turn(role, text) for role, text in zip(roles, texts, strict=False)]  # type: ignore[arg-type]
    return Prompt(tuple(turns if turns[-1].role == "user" else [*turns, Turn("user", "And?")]))


def go_offline(page: Any) -> None:
    """Take the network away from a page; the browser's network process hears of it a moment after the call returns."""
    page.context.set_offline(True)
    page.wait_for_function("() => fetch('/health', {cache: 'no-store'}).then(() => false, () => true)")


@contextlib.contextmanager
def open_place(path: Path) -> Iterator[Place]:
    """A place that is open until the block ends."""
    store = open_store(path)
    settings = documents.ProjectSettings(title="Sky", contact="mail@example.org", gold_rate=0, repeat_rate=0)
    documents.put_settings(store, settings, now=1.0)
    documents.put_document(store, documents.GUIDELINE, "v1", {"text": "Prefer what is **true**."}, now=1.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = create_app(store, ServerSettings(port=port))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Place(store, f"http://127.0.0.1:{port}", itertools.count(1))
    finally:
        server.should_exit = True
        thread.join(10)
        store.close()
