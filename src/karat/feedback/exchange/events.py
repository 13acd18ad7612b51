"""Every judgement of a store as a row that loses nothing, and back: the form behind every file that karat writes.

A row holds the event with its texts, its task, its question and who the rater is, so that importing it into an empty
store gives the same identities. Knows records and the store's reading side; files are its callers' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from karat.config import build, plain
from karat.damaged import damage_named
from karat.errors import ConfigError, InputError
from karat.feedback.additions import check_pseudonym, one_group
from karat.feedback.documents import add_questions, questions
from karat.feedback.schema import StoredJudgement
from karat.feedback.store import Named, Provenance, Store
from karat.questions import Question
from karat.records import ORIGINS, Annotator, Judgement, Prompt, Response, Task
from karat.rowfiles import Row, turns_of

FORMAT = "karat-judgement-1"
TASK_FIELDS = (
    "kind", "overlap", "strategy", "propensity", "guideline", "batch", "question", "audience", "reserved_for",
    "stop_after",
)  # fmt: skip
EVENT_FIELDS = (
    "value", "shown_order", "guideline", "created_at", "active_s", "idle_s", "reason", "propensity", "strategy",
    "origin", "supersedes", "submission", "shown",
)  # fmt: skip


@dataclass(frozen=True)
class EventSummary:
    """What an import of judgements did."""

    n_rows: int
    """Judgements in the file."""
    n_new: int
    """Judgements added; the rest were there already."""
    n_erased: int
    """Judgements left out because their words had been erased: their identity cannot be made again."""
    n_tasks: int
    """Different tasks in the file."""
    n_annotators: int
    """Different raters in the file."""


def event_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Every judgement of a store, corrections included, in order of arrival."""
    prompts, responses, annotators = store.prompts(), store.responses(), store.annotators()
    tasks = Named(store.address, "task", ((task.id, task) for task in store.tasks()))
    asked = questions(store)
    for record in store.records():
        judgement = record.judgement
        task = tasks[judgement.task_id]
        yield {
            "format": FORMAT,
            "id": record.id,
            "erased": record.erased,
            **texts_in(prompts[judgement.prompt_id], [responses[one] for one in judgement.response_ids]),
            "task": {name: getattr(task, name) for name in TASK_FIELDS},
            "question": plain(asked[task.question]) if task.question else None,
            "annotator": plain(annotators[judgement.annotator]),
            "judgement": _event(record),
        }


def texts_in(prompt: Prompt, responses: Sequence[Response]) -> dict[str, Any]:
    """The fields of a row that hold texts."""
    return {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in prompt.turns],
        "topic": prompt.topic,
        "responses": [{"text": one.text, "source": one.source, "sample": one.sample} for one in responses],
    }


def import_event_rows(store: Store, rows: Iterable[Row]) -> EventSummary:
    """Bring rows of `event_rows` into a store in one transaction: all of them or none.

    Raises: InputError naming file and line for a row that is not one, or whose identity is not that of its content.
    """
    rows = list(rows)
    read: list[_Read] = []
    raters: dict[str, Annotator] = {}
    for row in rows:
        with row.named(), damage_named(row.at, "a judgement", InputError, expected="one that karat exported"):
            if row.need("format", str) != FORMAT:
                raise InputError(f"found the format {row.values['format']!r}; expected {FORMAT!r}")
            if not row.get("erased", bool, False):
                read.append(_read(row))
                rater = read[-1].annotator
                raters[rater.id] = one_group(raters.get(rater.id), rater)
    add_questions(store, [one.question for one in read if one.question is not None])
    n_new = store.ingest(
        prompts=[one.prompt for one in read],
        responses=[response for one in read for response in one.responses],
        annotators=raters.values(),
        new_tasks=[one.task for one in read],
        judgements=[one.judgement for one in read],
        provenance={
            one.judgement.submission: Provenance(one.row.path.name, one.row.line)
            for one in read
            if one.judgement.submission
        },
    )
    return EventSummary(len(rows), n_new, len(rows) - len(read), len({one.task for one in read}), len(raters))


@dataclass(frozen=True)
class _Read:
    row: Row
    prompt: Prompt
    responses: tuple[Response, ...]
    task: Task
    question: Question | None
    annotator: Annotator
    judgement: Judgement


def _read(row: Row) -> _Read:
    prompt = Prompt(turns_of(row.need("prompt", list)), row.get("topic", str))
    responses = tuple(
        Response(prompt.id, one["text"], one["source"], one["sample"])
        for one in _objects(row, "responses", ("text", "source", "sample"))
    )
    ids = tuple(response.id for response in responses)
    task = Task(prompt.id, ids, **_fields(row, "task", TASK_FIELDS))
    question = row.get("question", dict)
    try:
        asked = None if question is None else build(Question, question)
    except ConfigError as error:
        raise InputError(f"found a question that is none ({error})") from None
    if task.question != ("" if asked is None else asked.id):
        raise InputError(f"found the question {task.question!r} with another content; expected its own")
    annotator = Annotator(**_fields(row, "annotator", ("id", "origin", "group")))
    check_pseudonym(annotator.id)
    if not isinstance(annotator.group, str | None):
        raise InputError(f"found the group {annotator.group!r}; expected text or null")
    if annotator.origin not in ORIGINS or not all(isinstance(one.sample, int) for one in responses):
        raise InputError(
            f"found the origin {annotator.origin!r} and samples {[one.sample for one in responses]}; expected one of "
            f"{', '.join(ORIGINS)}, and whole numbers"
        )
    event = _fields(row, "judgement", EVENT_FIELDS)
    judgement = Judgement(
        task_id=task.id,
        kind=task.kind,
        prompt_id=prompt.id,
        response_ids=ids,
        annotator=annotator.id,
        **event | {"shown_order": tuple(event["shown_order"])},
    )
    if judgement.id != row.need("id", str):
        raise InputError(f"found the identity {row.values['id']}, the content gives {judgement.id}: it was altered")
    return _Read(row, prompt, responses, task, asked, annotator, judgement)


def _event(record: StoredJudgement) -> dict[str, Any]:
    event = {name: getattr(record.judgement, name) for name in EVENT_FIELDS}
    return event | {"value": dict(event["value"]), "shown": dict(event["shown"])}


def _fields(row: Row, name: str, wanted: Sequence[str]) -> dict[str, Any]:
    found = row.need(name, dict)
    return _exactly(found, name, wanted)


def _objects(row: Row, name: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    return [_exactly(one, name, wanted) for one in row.need(name, list)]


def _exactly(found: Any, name: str, wanted: Sequence[str]) -> dict[str, Any]:
    if not isinstance(found, Mapping) or set(found) != set(wanted):
        raise InputError(
            f"found {sorted(found) if isinstance(found, Mapping) else found!r} in the field {name!r}; "
            f"expected an object of {', '.join(wanted)}"
        )
    return dict(found)
