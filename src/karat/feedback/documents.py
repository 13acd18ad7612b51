"""Versioned texts of a project (guideline, examples, consent), its settings, and the questions its tasks ask.

A document is written once under its name and version and never changed: a judgement can name what its rater read.
Knows names and versions; knows nothing about who may write them or how they are shown.
"""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, func, select

from karat.errors import InputError, StoreError
from karat.feedback import people_tables as people
from karat.feedback.arm_changes import check_experiments
from karat.feedback.prepared import Prepared
from karat.feedback.question_rows import question_from
from karat.feedback.schema import json_text
from karat.feedback.store import Store
from karat.identity import canonical_json, content_id
from karat.questions import Question, plain_question
from karat.records import Task

GUIDELINE, EXAMPLES, CONSENT, SETTINGS, QUALIFICATION = "guideline", "examples", "consent", "settings", "qualification"
"""Names of the documents that the place itself reads; a project may add its own."""

MOST_CHARS = 1_000_000
"""Characters of a document's JSON text."""

_VERSION = Prepared(
    select(people.documents).where(
        people.documents.c.name == bindparam("name"), people.documents.c.version == bindparam("version")
    )
)
_NEWEST = Prepared(
    select(people.documents)
    .where(people.documents.c.name == bindparam("name"))
    .order_by(people.documents.c.seq.desc())
    .limit(1)
)
_MARK = Prepared(
    select(
        select(func.count()).select_from(people.documents).scalar_subquery().label("n"),
        people.documents.c.seq,
        people.documents.c.hash,
    )
    .order_by(people.documents.c.seq.desc())
    .limit(1)
)
MOST_KEPT = 32
"""Documents that one process keeps of a store."""
_NOT_READ = "not read yet"


@dataclass(frozen=True)
class Document:
    """One version of a text."""

    name: str
    """What it is: "guideline", "consent", "examples", "settings" …"""
    version: str
    """Names this version; what a judgement's `guideline` says."""
    body: Mapping[str, Any]
    """Its content; texts are {"text": Markdown, …}."""
    hash: str
    """Content hash of name and body."""
    created_at: float
    """When it was stored, seconds since the epoch."""

    @property
    def text(self) -> str:
        """The Markdown of a text, "" where the body has none."""
        return str(self.body.get("text", ""))


@dataclass(frozen=True)
class Pay:
    """What raters are paid; shown to them."""

    amount: float
    """Money for one unit, ≥ 0."""
    currency: str
    """ISO 4217 code, as it is shown."""
    per: str = "judgement"
    """"judgement" or "hour" of active time."""

    def __post_init__(self) -> None:
        if self.per not in ("judgement", "hour") or not self.amount >= 0:
            raise InputError(f"pay: found {self.amount} per {self.per!r}; expected ≥ 0 per judgement or hour")


@dataclass(frozen=True)
class Budget:
    """When no more work is handed out."""

    judgements: int | None = None
    """Judgements by people, given or being given; corrections do not count. None = no limit."""
    money: float | None = None
    """In the currency of the pay; None = no limit."""

    @property
    def stopped(self) -> bool:
        """True = no work is handed out, because somebody stopped it, and not because it is used up."""
        return self.judgements == 0


@dataclass(frozen=True)
class ProjectSettings:
    """How a project's place to work behaves; stored as the document "settings"."""

    title: str = "Feedback"
    """Name of the project on every page."""
    contact: str = ""
    """Whom raters can reach, and how."""
    locale: str = "en"
    """BCP 47 tag of the language of instructions."""
    pay: Pay | None = None
    """What raters are paid; None = nothing is said about pay."""
    lease_minutes: float = 10.0
    """Minutes until an abandoned task is offered to others; a heartbeat extends them."""
    gold_rate: float = 0.07
    """Share of turns that are silent gold items, [0, 1)."""
    repeat_rate: float = 0.04
    """Share of turns that are hidden repeats with sides swapped, [0, 1)."""
    repeat_gap: int = 10
    """Judgements between a judgement and its repeat at least."""
    undo_n: int = 5
    """How many of the last submissions a rater may still change."""
    exposure_cap_per_day: int | None = None
    """Items with a content warning per rater and UTC day; None = no cap."""
    budget: Budget = field(default_factory=Budget)
    """When no more work is handed out."""
    stop_after: int = 0
    """For new tasks that say none: equal answers that suffice; 0 = always the whole overlap (`Task.stop_after`)."""
    overlap: Mapping[str, int] = field(default_factory=dict)
    """For new tasks: answers wanted at least, by stratum; "*" = every other stratum (`work.queueing`)."""
    experiments: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Randomised arms: {experiment: {arm: weight > 0}}."""
    arm_changes: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """What arms change: {experiment: {arm: fields of `arm_changes.ArmChange`}}; an arm left out changes nothing."""
    arm_units: Mapping[str, str] = field(default_factory=dict)
    """{experiment: "rater" or "task"}, what is drawn into its arms; one left out draws raters."""
    completion_url: str = ""
    """Where a rater of another platform goes when she is done; "" = nowhere."""

    def __post_init__(self) -> None:
        if not 0 < self.lease_minutes <= 1440:
            raise InputError(f"settings.lease_minutes: found {self.lease_minutes}; expected minutes in (0, 1440]")
        rates = (self.gold_rate, self.repeat_rate)
        if not all(0 <= rate < 1 for rate in rates) or sum(rates) >= 1:
            raise InputError(f"settings: found gold_rate and repeat_rate {rates}; expected ≥ 0 with a sum below 1")
        for name in ("repeat_gap", "undo_n", "stop_after"):
            if getattr(self, name) < 0:
                raise InputError(f"settings.{name}: found {getattr(self, name)}; expected ≥ 0")
        for name, arms in self.experiments.items():
            if not arms or not all(weight > 0 for weight in arms.values()):
                raise InputError(
                    f"settings.experiments: found {name!r} with {dict(arms)}; expected arms with weights > 0"
                )
        check_experiments(self.experiments, self.arm_changes, self.arm_units)
        if any(k < 1 for k in self.overlap.values()):
            raise InputError(f"settings.overlap: found {dict(self.overlap)}; expected at least 1 answer per stratum")
        if self.budget.money is not None and self.pay is None:
            raise InputError("settings.budget: found money without pay; say what a judgement or an hour costs")

    @property
    def guideline_experiment(self) -> str:
        """The running experiment whose arms say which guideline is shown, "" = none."""
        changed = ((name, bodies) for name, bodies in self.arm_changes.items() if name in self.experiments)
        return next((name for name, bodies in changed if any("guideline" in body for body in bodies.values())), "")

    @property
    def lease_s(self) -> float:
        """Seconds of a lease."""
        return 60.0 * self.lease_minutes


def put_document(store: Store, name: str, version: str, body: Mapping[str, Any], *, now: float) -> Document:
    """Store a new version of a document, or find the same one again.

    Args:
        version: "" = the next whole number.    body: plain JSON, {"text": Markdown, …} for texts.
        now: seconds since the epoch.
    Raises: StoreError where that version is stored with another body; InputError for a body that is no JSON.
    """

    def write(connection: Connection) -> Document:
        return write_document(connection, name, version, body, now=now)

    return store.write(write)


def write_document(connection: Connection, name: str, version: str, body: Mapping[str, Any], *, now: float) -> Document:
    """`put_document` inside a writing transaction."""
    name, version = name.strip(), version.strip()
    if not name or max(len(name), len(version)) > 64:
        raise InputError(
            f"document {name!r}, version {version!r}: expected a name and a version of at most 64 characters"
        )
    text = canonical_json(dict(body)).decode()
    if len(text) > MOST_CHARS:
        raise InputError(f"document {name!r}: found {len(text)} characters; expected at most {MOST_CHARS}")
    taken = set(connection.execute(select(people.documents.c.version).where(people.documents.c.name == name)).scalars())
    if not version:
        version = str(next(n for n in range(len(taken) + 1, 2 * len(taken) + 2) if str(n) not in taken))
    new = Document(name, version, json.loads(text), content_id("document", [name, json.loads(text)]), now)
    if version in taken:
        old = read_document(connection, name, version)
        if old is None or old.hash != new.hash:
            raise StoreError(
                f"document {name!r}: version {version!r} is stored with another text; choose a new version"
            )
        return old
    connection.execute(
        people.documents.insert().values(name=name, version=version, hash=new.hash, body=text, created_at=now)
    )
    return new


def document(store: Store, name: str, version: str | None = None) -> Document | None:
    """A document in a version, or its newest one; None where there is none."""
    with store.connection() as connection:
        return read_document(connection, name, version)


def read_document(connection: Connection, name: str, version: str | None = None) -> Document | None:
    """`document` inside a transaction."""
    return shelf(connection).find(connection, name, version)


class Shelf:
    """The documents of a store as they are in one transaction: kept by this process until another one is written.

    Documents are only ever added, so their number with the newest one's place and hash says which there are. That is
    asked in every transaction: what somebody changes by one worker is so on all others with their next request.
    """

    def __init__(self, mark: tuple[Any, ...]) -> None:
        self.mark = mark
        """Which documents there are."""
        self._kept: dict[tuple[str, str | None], Document | None] = {}
        self._settings: ProjectSettings | None = None

    def find(self, connection: Connection, name: str, version: str | None = None) -> Document | None:
        """A document in a version, or its newest one; None where there is none."""
        kept = self._kept.get((name, version), _NOT_READ)
        if not isinstance(kept, str):
            return kept
        if version is None:
            row = _NEWEST.first(connection, name=name)
        else:
            row = _VERSION.first(connection, name=name, version=version)
        found = None if row is None else _document_of(row)
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[name, version] = found
        return found

    def settings(self, connection: Connection) -> ProjectSettings:
        """The newest settings; the defaults where none were stored."""
        if self._settings is None:
            found = self.find(connection, SETTINGS)
            self._settings = ProjectSettings() if found is None else settings_of(found.body)
        return self._settings


_shelves: weakref.WeakKeyDictionary[Engine, Shelf] = weakref.WeakKeyDictionary()


def shelf(connection: Connection) -> Shelf:
    """The documents as this transaction sees them."""
    row = _MARK.first(connection)
    mark = () if row is None else tuple(row)
    found = _shelves.get(connection.engine)
    if found is None or found.mark != mark:
        found = _shelves[connection.engine] = Shelf(mark)
    return found


def documents(store: Store, name: str | None = None) -> list[Document]:
    """Every version, oldest first; of one name, or of all."""
    question = select(people.documents).order_by(people.documents.c.seq)
    if name is not None:
        question = question.where(people.documents.c.name == name)
    with store.connection() as connection:
        return [_document_of(row) for row in connection.execute(question)]


def project_settings(store: Store) -> ProjectSettings:
    """The newest settings; the defaults where none were stored."""
    with store.connection() as connection:
        return read_settings(connection)


def read_settings(connection: Connection) -> ProjectSettings:
    """`project_settings` inside a transaction."""
    return shelf(connection).settings(connection)


def settings_of(body: Mapping[str, Any]) -> ProjectSettings:
    """Settings from plain JSON. Raises: InputError naming a key that does not exist or a value that cannot be used."""
    known = {each.name for each in dataclasses.fields(ProjectSettings)}
    if unknown := set(body) - known:
        raise InputError(
            f"settings: found the unknown key {min(unknown)!r}; expected some of {', '.join(sorted(known))}"
        )
    values = dict(body)
    try:
        if values.get("pay") is not None:
            values["pay"] = Pay(**values["pay"])
        values["budget"] = Budget(**values.get("budget", {}))
        return ProjectSettings(**values)
    except TypeError as error:
        raise InputError(
            f"settings: found a value of the wrong form ({error}); expected what `ProjectSettings` says"
        ) from error


def put_settings(store: Store, settings: ProjectSettings, *, now: float) -> Document:
    """Store settings as the newest ones; settings that are in force already are not stored again."""

    def write(connection: Connection) -> Document:
        found = read_document(connection, SETTINGS)
        body = dataclasses.asdict(settings)
        if found is not None and canonical_json(dict(found.body)) == canonical_json(body):
            return found
        return write_document(connection, SETTINGS, "", body, now=now)

    return store.write(write)


def add_questions(store: Store, questions: Iterable[Question]) -> int:
    """Store questions that are not there yet. Returns: how many were new."""
    rows = {each.id: {"id": each.id, "body": json_text(dataclasses.asdict(each))} for each in questions}

    def write(connection: Connection) -> int:
        known = set(connection.execute(select(people.questions.c.id)).scalars())
        new = [row for key, row in rows.items() if key not in known]
        if new:
            connection.execute(people.questions.insert(), new)
        return len(new)

    return store.write(write)


def question_of(store: Store, task: Task) -> Question:
    """How a task is asked. Raises: StoreError where its question is not in the store."""
    if not task.question:
        return plain_question(task.kind)
    with store.connection() as connection:
        body = connection.execute(
            select(people.questions.c.body).where(people.questions.c.id == task.question)
        ).scalar()
    if body is None:
        raise StoreError(f"task {task.id}: its question {task.question} is not in the store; add_questions first")
    return question_from(json.loads(body))


def questions(store: Store, *, ids: Iterable[str] | None = None) -> dict[str, Question]:
    """Stored questions by their ids: these, or every one."""
    chosen = select(people.questions).order_by(people.questions.c.id)
    if ids is not None:
        chosen = chosen.where(people.questions.c.id.in_(set(ids)))
    with store.connection() as connection:
        rows = connection.execute(chosen)
        return {row.id: question_from(json.loads(row.body)) for row in rows}


def _document_of(row: Any) -> Document:
    return Document(row.name, row.version, json.loads(row.body), row.hash, row.created_at)
