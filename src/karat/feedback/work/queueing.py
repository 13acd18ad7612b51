"""How many answers a new task wants: what it asks for itself, and at least what the project's settings say of its stratum.

Every way in which questions reach raters comes through here: collected samples, the filler of a running server, arenas,
the API and imported votes. Silent checks, an expert's reviews, questions put to one rater, and a record of our own that
is read back keep the numbers they have. Knows settings and strata; knows nothing about where tasks come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from sqlalchemy import select

from karat.feedback.documents import GUIDELINE, add_questions, document, project_settings, questions
from karat.feedback.openings import rows_in
from karat.feedback.schema import prompts as prompt_table
from karat.feedback.store import Store
from karat.feedback.tasks import plan_overlap
from karat.questions import Question
from karat.records import Prompt, Response, Task


class Queue(Protocol):
    """Where a program puts questions: a store at hand (`StoreQueue`), or the server of one (`client.AdminClient`)."""

    def guideline(self) -> str | None:
        """The version of the newest guideline; None = none was written."""
        ...

    def add_questions(self, questions: Iterable[Question]) -> int:
        """Store how tasks are asked. Returns: how many were new."""
        ...

    def add_prompts(self, prompts: Iterable[Prompt]) -> int:
        """Store prompts. Returns: how many were new."""
        ...

    def add_responses(self, responses: Iterable[Response]) -> int:
        """Store responses to stored prompts. Returns: how many were new."""
        ...

    def add_tasks(self, tasks: Iterable[Task]) -> int:
        """Queue tasks, each with the answers that its stratum wants. Returns: how many were new."""
        ...


class StoreQueue:
    """A store at hand as a `Queue`."""

    def __init__(self, store: Store) -> None:
        """Args: store, which stays open as long as this is used."""
        self._store = store

    def guideline(self) -> str | None:
        """The version of the newest guideline; None = none was written."""
        newest = document(self._store, GUIDELINE)
        return None if newest is None else newest.version

    def add_questions(self, questions: Iterable[Question]) -> int:
        """`documents.add_questions`."""
        return add_questions(self._store, questions)

    def add_prompts(self, prompts: Iterable[Prompt]) -> int:
        """`Store.add_prompts`."""
        return self._store.add_prompts(prompts)

    def add_responses(self, responses: Iterable[Response]) -> int:
        """`Store.add_responses`."""
        return self._store.add_responses(responses)

    def add_tasks(self, tasks: Iterable[Task]) -> int:
        """`queue_tasks`."""
        return queue_tasks(self._store, tasks)


def queue_tasks(store: Store, tasks: Iterable[Task]) -> int:
    """Queue tasks that are not there yet, each with the answers that its stratum wants. Returns: how many were new."""
    return store.add_tasks(planned_tasks(store, list(tasks)))


def planned_tasks(store: Store, tasks: Sequence[Task], prompts: Iterable[Prompt] = ()) -> list[Task]:
    """Tasks with the overlap and the early stop of the settings (`tasks.plan_overlap`), in their order.

    A task's stratum is the topic of its prompt, or else of its question.

    Args:
        prompts: of these tasks, where they are not in the store yet.
    """
    settings = project_settings(store)
    if not (settings.overlap or settings.stop_after):
        return list(tasks)
    topics = {prompt.id: prompt.topic for prompt in prompts}
    missing = sorted({task.prompt_id for task in tasks} - set(topics))
    with store.connection() as connection:
        question = select(prompt_table.c.id, prompt_table.c.topic)
        topics |= {row.id: row.topic for row in rows_in(connection, question, prompt_table.c.id, missing)}
    asked = questions(store)
    strata = {task.id: topics.get(task.prompt_id) or _topic(asked.get(task.question)) for task in tasks}
    return plan_overlap(tasks, strata, settings.overlap, stop_after=settings.stop_after)


def _topic(question: Question | None) -> str:
    return "" if question is None else question.topic
