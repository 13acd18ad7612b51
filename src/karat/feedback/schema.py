"""The tables of the feedback store, as the code reads and writes them.

The same tables are made by `migrations/`, which never imports this file: a migration stays what it was when it was
released. Knows column names and types; knows nothing about transactions, raters or what a judgement means.

A judgement's record holds no words: reasons and written answers are in `words`, the salt of its commitment in
`salts`. Both can be erased while the record, its commitment and every root over commitments stay whole.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text, text

from karat.damaged import MISFITS
from karat.errors import InputError
from karat.identity import canonical_json
from karat.records import WORD_KINDS, Judgement, Prompt, Response, Task, Turn

R = TypeVar("R")
HEAD = "0005"
"""The revision of the migrations that this code reads and writes."""

OLDER = ("0001", "0002", "0003", "0004")
"""Revisions of earlier stores, which are brought to HEAD when they are opened."""

FIRST_VERSION = "judgements-of-0001"
"""Name of the entry in `keys` that says how many judgements a store had when it was of version 0001: the identity of
those hashed their words, and cannot be made again once these are erased."""

UNKNOWN_ANNOTATOR = "unknown"
"""Stands for raters that a file does not name: many people, so that none of their votes replaces another."""

UNNAMED = "auto:"
"""Starts the key of a submission that brought none; it is then keyed by its content."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)

metadata = MetaData()

prompts = Table(
    "prompts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("turns", Text, nullable=False),
    Column("topic", Text),
)

responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("prompt_id", String(64), ForeignKey("prompts.id"), nullable=False),
    Column("text", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("sample", Integer, nullable=False),
)

annotators = Table(
    "annotators",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("origin", String(16), nullable=False),
    Column("grp", Text),
    Column("done_to", Integer, nullable=False, default=0),
)
"""done_to: no open task for annotators up to this number of the queue (`tasks.seq`) is one for her, nor will be."""

tasks = Table(
    "tasks",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("prompt_id", String(64), ForeignKey("prompts.id"), nullable=False),
    Column("response_ids", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("propensity", Float, nullable=False),
    Column("guideline", Text, nullable=False),
    Column("batch", Text, nullable=False),
    Column("n_answers", Integer, nullable=False),
    Column("question", String(64), nullable=False),
    Column("audience", String(16), nullable=False),
    Column("reserved_for", String(200)),
    Column("stop_after", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("free_at", Float, nullable=False),
    Index("tasks_open", "state", "audience", "seq"),
    # named in the question as in the index, or it is not found
    Index(
        "tasks_held",
        "audience",
        "free_at",
        "seq",
        sqlite_where=text("state = 'held'"),
        postgresql_where=text("state = 'held'"),
    ),
    Index("tasks_reserved", "reserved_for", "state"),
    Index("tasks_by_prompt", "prompt_id"),
)
"""state: "open" = has needed more answers than were being given ever since it was queued; "held" = every missing answer is
being given, until `free_at` at the earliest, or was given back; "closed" = has all it needs; "pulled" = taken out by somebody; "check" = a silent check, never offered as work."""

assignments = Table(
    "assignments",
    metadata,
    Column("task_id", String(64), ForeignKey("tasks.id"), primary_key=True),
    Column("annotator", String(200), ForeignKey("annotators.id"), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("lease_id", String(64)),
    Column("n_leases", Integer, nullable=False),
    Column("expires_at", Float),
    Column("skip_reason", Text),
    Column("leased_at", Float),
    Column("shown_order", Text),
    Index("assignments_by_annotator", "annotator", "state", "leased_at"),
    Index("assignments_by_lease", "lease_id", "annotator"),
)
"""shown_order: identity indices in the order shown, JSON; NULL = not kept when it was handed out."""

judgements = Table(
    "judgements",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("submission", String(200), nullable=False, unique=True),
    Column("commitment", String(80), nullable=False),
    Column("task_id", String(64), ForeignKey("tasks.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("prompt_id", String(64), ForeignKey("prompts.id"), nullable=False),
    Column("response_ids", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("annotator", String(200), ForeignKey("annotators.id"), nullable=False),
    Column("shown_order", Text, nullable=False),
    Column("guideline", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("active_s", Float),
    Column("idle_s", Float),
    Column("propensity", Float, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("origin", String(16), nullable=False),
    Column("supersedes", String(64)),
    Column("late", Boolean, nullable=False),
    Column("has_words", Boolean, nullable=False),
    Column("shown", Text, nullable=False),
    Index("judgements_by_task", "task_id", "annotator"),
    Index("judgements_by_annotator", "annotator", "seq"),
)

words = Table(
    "words",
    metadata,
    Column("judgement_id", String(64), ForeignKey("judgements.id"), primary_key=True),
    Column("words", Text, nullable=False),
)

salts = Table(
    "salts",
    metadata,
    Column("judgement_id", String(64), ForeignKey("judgements.id"), primary_key=True),
    Column("salt", String(64), nullable=False),
)

provenance = Table(
    "provenance",
    metadata,
    Column("judgement_id", String(64), ForeignKey("judgements.id"), primary_key=True),
    Column("file", Text, nullable=False),
    Column("line", Integer, nullable=False),
    Column("session", Text),
    Column("accepted_at", Text),
)


@dataclass(frozen=True)
class StoredJudgement:
    """A judgement as the store holds it."""

    judgement: Judgement
    """The event. Where its words were erased: `reason` is None and a written answer is {"missing": "erased"}."""
    id: str
    """Judgement.id when it was submitted; erasing words does not change it."""
    commitment: str
    """SHA-256 of salt and canonical JSON of the event; says nothing about it once the salt is erased."""
    late: bool
    """True = its lease had expired when it came in."""
    erased: bool
    """True = its words and salt were erased."""
    seq: int
    """Order of arrival in the store, from 1."""


def json_text(value: object) -> str:
    """Compact JSON with sorted keys, as the text columns hold it."""
    return _ENCODER.encode(value)


class UnreadableRow(ValueError):
    """A row whose columns hold something else than was written."""


def _readable(read: Callable[[Any], R]) -> Callable[[Any], R]:
    """The reading of a row, with one error for all that can be wrong in it."""

    @functools.wraps(read)
    def named(row: Any) -> R:
        try:
            return read(row)
        except (*MISFITS, InputError) as error:
            raise UnreadableRow(f"{row.id} is not readable ({' '.join(str(error).split())[:160]})") from error

    return named


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """The row of a prompt."""
    turns = [[turn.role, turn.content] for turn in prompt.turns]
    return {"id": prompt.id, "turns": json_text(turns), "topic": prompt.topic}


@_readable
def prompt_of(row: Any) -> Prompt:
    """The prompt in a row."""
    return Prompt(tuple(Turn(role, content) for role, content in json.loads(row.turns)), row.topic)


def response_row(response: Response) -> dict[str, Any]:
    """The row of a response."""
    return {"id": response.id, **dataclasses.asdict(response)}


@_readable
def response_of(row: Any) -> Response:
    """The response in a row."""
    return Response(row.prompt_id, row.text, row.source, row.sample)


def task_row(task: Task) -> dict[str, Any]:
    """The row of a task that nobody has answered yet."""
    row = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    asked = {"id": task.id, "response_ids": json_text(task.response_ids)}
    return {**row, **asked, "n_answers": 0, "state": "open", "free_at": 0.0}


@_readable
def task_of(row: Any) -> Task:
    """The task in a row."""
    return Task(
        prompt_id=row.prompt_id,
        response_ids=tuple(json.loads(row.response_ids)),
        kind=row.kind,
        overlap=row.overlap,
        strategy=row.strategy,
        propensity=row.propensity,
        guideline=row.guideline,
        batch=row.batch,
        question=row.question,
        audience=row.audience,
        reserved_for=row.reserved_for,
        stop_after=row.stop_after,
    )


@dataclass(frozen=True)
class JudgementRows:
    """What one judgement writes."""

    judgement: dict[str, Any]
    """Row of `judgements`."""
    words: dict[str, Any] | None
    """Row of `words`, None where there are none."""
    salt: dict[str, Any]
    """Row of `salts`."""


def judgement_rows(judgement: Judgement, *, salt: str, late: bool) -> JudgementRows:
    """The rows of one judgement, its words and its salt apart from the record.

    Args:
        salt: hex digits, secret.    late: True = the lease had expired.
    """
    judgement_id = _record_id(judgement.wordless)
    written = judgement.written
    spoken = {"reason": judgement.reason, "value": dict(judgement.value) if written else None}
    has_words = written or judgement.reason is not None
    row = {
        "id": judgement_id,
        "submission": judgement.submission or UNNAMED + judgement_id,
        "commitment": commitment_of(judgement, salt),
        "task_id": judgement.task_id,
        "kind": judgement.kind,
        "prompt_id": judgement.prompt_id,
        "response_ids": json_text(judgement.response_ids),
        "value": json_text({} if written else dict(judgement.value)),
        "annotator": judgement.annotator,
        "shown_order": json_text(judgement.shown_order),
        "guideline": judgement.guideline,
        "created_at": judgement.created_at,
        "active_s": judgement.active_s,
        "idle_s": judgement.idle_s,
        "propensity": judgement.propensity,
        "strategy": judgement.strategy,
        "origin": judgement.origin,
        "supersedes": judgement.supersedes,
        "late": late,
        "has_words": has_words,
        "shown": json_text(dict(judgement.shown)),
    }
    words_row = {"judgement_id": judgement_id, "words": json_text(spoken)} if has_words else None
    return JudgementRows(row, words_row, {"judgement_id": judgement_id, "salt": salt})


@_readable
def stored_judgement(row: Any) -> StoredJudgement:
    """The judgement in a row of `judgements` joined with its `words` (NULL = none or erased)."""
    spoken = json.loads(row.words) if row.words is not None else {"reason": None, "value": None}
    erased = bool(row.has_words) and row.words is None
    value = json.loads(row.value)
    if row.kind in WORD_KINDS and "missing" not in value:
        value = {"missing": "erased"} if erased else spoken["value"]
    judgement = Judgement(
        task_id=row.task_id,
        kind=row.kind,
        prompt_id=row.prompt_id,
        response_ids=tuple(json.loads(row.response_ids)),
        value=value,
        annotator=row.annotator,
        shown_order=tuple(json.loads(row.shown_order)),
        guideline=row.guideline,
        created_at=row.created_at,
        active_s=row.active_s,
        idle_s=row.idle_s,
        reason=spoken["reason"],
        propensity=row.propensity,
        strategy=row.strategy,
        origin=row.origin,
        supersedes=row.supersedes,
        submission="" if row.submission.startswith(UNNAMED) else row.submission,
        shown=json.loads(row.shown),
    )
    return StoredJudgement(judgement, row.id, row.commitment, bool(row.late), erased, row.seq)


def record_ids(record: StoredJudgement) -> tuple[str, ...]:
    """The identities that a stored record may have: of its event without words, and as the first version had it."""
    wordless = record.judgement.wordless
    ids = [_record_id(wordless), _record_id(record.judgement.event)]
    if record.erased and record.judgement.kind in WORD_KINDS:
        ids.append(_record_id(wordless | {"value": {}}))
    return tuple(ids)


def _record_id(event: dict[str, Any]) -> str:
    return "judgement:" + hashlib.sha256(b"judgement\0" + _json_bytes(event)).hexdigest()[:32]


def commitment_of(judgement: Judgement, salt: str) -> str:
    """`commit:` and the SHA-256 of the salt and the event's canonical JSON."""
    return "commit:" + hashlib.sha256(bytes.fromhex(salt) + b"\0" + _json_bytes(judgement.event)).hexdigest()


def _json_bytes(event: dict[str, Any]) -> bytes:
    """`canonical_json`, by the short way where there is nothing to normalise."""
    text = _ENCODER.encode(event)
    return text.encode() if text.isascii() else canonical_json(event)
