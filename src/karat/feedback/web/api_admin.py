"""The API for the admin's programs: what is to be judged goes in, judgements come out, simulated raters work.

Records travel as their fields, so that a client speaks in the same records as the store. Nobody speaks for a person
here: judgements that are sent in come from simulated raters or models, and imported ones name their file and line.
Knows records and files of lines; knows nothing about pages.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body, Depends
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator, Field
from starlette.requests import Request

from karat.errors import InputError
from karat.feedback.arm_changes import change_of
from karat.feedback.documents import add_questions
from karat.feedback.exchange.answers import import_answers
from karat.feedback.exchange.events import EventSummary, event_rows, import_event_rows
from karat.feedback.exchange.importers import ImportSummary, import_hh, import_preferences, import_votes
from karat.feedback.people import accounts
from karat.feedback.store import Store
from karat.feedback.web import api_models as shapes
from karat.feedback.web.access import Visitor, needs
from karat.feedback.web.cells import CELL_NAMES, cells
from karat.feedback.work.dashboard import pulse
from karat.feedback.work.experiments import list_experiments, make_experiment
from karat.feedback.work.queueing import StoreQueue, queue_tasks
from karat.questions import Question, check_anchors
from karat.records import Annotator, Judgement, Prompt, Response, Task
from karat.rowfiles import read_rows

API = "/api/v1"
MOST_RECORDS = 20_000
"""Records of one request."""
MOST_LEASE_S = 86_400.0
CHUNK_CHARS = 1 << 16
"""Characters that are sent at once where many rows are sent."""
LINES = "application/x-ndjson"

router = APIRouter(prefix=API, tags=["admin"])
Admin = Annotated[Visitor, Depends(needs("admin"))]


def _exactly(kind: type) -> BeforeValidator:
    names = {field.name for field in dataclasses.fields(kind)}

    def check(value: Any) -> Any:
        if isinstance(value, dict) and (unknown := set(value) - names):
            raise ValueError(f"unknown field {min(unknown)[:40]!r}; expected some of {', '.join(sorted(names))}")
        return shapes.sound(value)

    return BeforeValidator(check)


Prompts = Annotated[list[Annotated[Prompt, _exactly(Prompt)]], Field(max_length=MOST_RECORDS)]
Responses = Annotated[list[Annotated[Response, _exactly(Response)]], Field(max_length=MOST_RECORDS)]
Questions = Annotated[list[Annotated[Question, _exactly(Question)]], Field(max_length=MOST_RECORDS)]
Tasks = Annotated[list[Annotated[Task, _exactly(Task)]], Field(max_length=MOST_RECORDS)]
Annotators = Annotated[list[Annotated[Annotator, _exactly(Annotator)]], Field(max_length=MOST_RECORDS)]
Judgements = Annotated[list[Annotated[Judgement, _exactly(Judgement)]], Field(max_length=MOST_RECORDS)]


@router.post("/prompts", response_model=shapes.Added)
def add_prompts(request: Request, visitor: Admin, records: Annotated[Prompts, Body()]) -> dict[str, int]:
    """Store prompts that are not there yet."""
    return _added(request, visitor, "prompts", _store(request).add_prompts(records))


@router.post("/responses", response_model=shapes.Added)
def add_responses(request: Request, visitor: Admin, records: Annotated[Responses, Body()]) -> dict[str, int]:
    """Store responses that are not there yet; their prompts must be."""
    return _added(request, visitor, "responses", _store(request).add_responses(records))


@router.post("/questions", response_model=shapes.Added)
def add_question_records(request: Request, visitor: Admin, records: Annotated[Questions, Body()]) -> dict[str, int]:
    """Store questions that are not there yet."""
    return _added(request, visitor, "questions", add_questions(_store(request), map(check_anchors, records)))


@router.post("/annotators", response_model=shapes.Added)
def add_annotators(request: Request, visitor: Admin, records: Annotated[Annotators, Body()]) -> dict[str, int]:
    """Store simulated raters or models that are not there yet; people get accounts."""
    _no_people((record.origin for record in records), "a rater")
    return _added(request, visitor, "annotators", _store(request).add_annotators(records))


@router.post("/tasks", response_model=shapes.Added)
def add_tasks(request: Request, visitor: Admin, records: Annotated[Tasks, Body()]) -> dict[str, int]:
    """Queue tasks that are not there yet; their texts must be. Each wants at least the answers that the settings say."""
    return _added(request, visitor, "tasks", queue_tasks(_store(request), records))


class GuidelineOut(shapes.BaseModel):
    """The newest guideline."""

    version: str | None


@router.get("/guideline", response_model=GuidelineOut)
def guideline(request: Request, _: Admin) -> dict[str, str | None]:
    """The version of the newest guideline, under which new tasks are to be judged; null where none was written."""
    return {"version": StoreQueue(_store(request)).guideline()}


@router.get("/prompts")
def prompts(request: Request, _: Admin) -> StreamingResponse:
    """Every prompt, one JSON object a line."""
    return _lines({"id": key, **asdict(each)} for key, each in _store(request).prompts().items())


@router.get("/responses")
def responses(request: Request, _: Admin) -> StreamingResponse:
    """Every response, one JSON object a line."""
    return _lines({"id": key, **asdict(each)} for key, each in _store(request).responses().items())


@router.get("/tasks")
def tasks(request: Request, _: Admin, batch: shapes.Text | None = None) -> StreamingResponse:
    """Tasks in the order in which they were queued, of one batch or all, one JSON object a line."""
    return _lines({"id": each.id, **asdict(each)} for each in _store(request).tasks(batch=batch))


@router.get("/assignments")
def assignments(request: Request, _: Admin, batch: shapes.Text | None = None) -> StreamingResponse:
    """Who holds, answered or skipped which task, one JSON object a line."""
    found = _store(request).assignments(batch=batch)
    return _lines({"task": task, "annotator": who, "state": state} for (task, who), state in found.items())


class LeasesIn(shapes.Closed):
    """Tasks that simulated raters take."""

    pairs: list[tuple[shapes.Text, shapes.Text]] = Field(max_length=MOST_RECORDS, description="(task, annotator)")
    lease_s: float = Field(default=600.0, gt=0, le=MOST_LEASE_S, allow_inf_nan=False)


class LeaseOut(shapes.BaseModel):
    """One lease."""

    lease: str
    task: str
    annotator: str
    expires_at: float


@router.post("/leases", response_model=list[LeaseOut | None])
def lease_many(request: Request, _: Admin, sent: LeasesIn) -> list[dict[str, Any] | None]:
    """Leases for simulated raters or models; null where a task is full or was answered or skipped by that rater."""
    store = _store(request)
    _only_programs(store, {who for _, who in sent.pairs})
    leases = store.lease_many(sent.pairs, request.app.state.clock(), sent.lease_s)
    return [
        None
        if each is None
        else {"lease": each.id, "task": each.task.id, "annotator": each.annotator, "expires_at": each.expires_at}
        for each in leases
    ]


class StoredOut(shapes.BaseModel):
    """A judgement that is stored."""

    id: str
    commitment: str
    late: bool
    seq: int


@router.post("/judgements/batch", response_model=list[StoredOut])
def submit_many(request: Request, _: Admin, records: Annotated[Judgements, Body()]) -> list[dict[str, Any]]:
    """Store judgements of simulated raters or models: all of them or none."""
    store = _store(request)
    _no_people((record.origin for record in records), "a judgement")
    _only_programs(store, {record.annotator for record in records})
    stored = store.submit_many(records, now=request.app.state.clock())
    return [{"id": each.id, "commitment": each.commitment, "late": each.late, "seq": each.seq} for each in stored]


@router.post("/import")
def import_lines(
    request: Request,
    visitor: Admin,
    lines: Annotated[bytes, Body(media_type=LINES)],
    form: Literal["judgements", "answers", "votes", "preferences", "hh"] = "judgements",
) -> dict[str, Any]:
    """Judgements from JSON lines: all of them or none. Compressed files are refused: unpack them first."""
    readers = {"answers": import_answers, "votes": import_votes, "preferences": import_preferences, "hh": import_hh}
    if lines[:2] == b"\x1f\x8b":
        raise InputError("import: found a compressed file; expected lines of JSON")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "import.jsonl"
        path.write_bytes(lines)
        try:
            summary: EventSummary | ImportSummary = (
                import_event_rows(_store(request), read_rows(path))
                if form == "judgements"
                else readers[form](_store(request), path)
            )
        except InputError as error:
            raise InputError(str(error).replace(str(path), path.name)) from None
    _note(request, visitor, "import", form, f"{summary.n_new} new judgements of {summary.n_rows} rows")
    return asdict(summary)


@router.get("/export")
def export(request: Request, visitor: Admin, form: Literal["jsonl", "csv"] = "jsonl") -> StreamingResponse:
    """Every judgement in order of arrival: JSON lines that lose nothing, or a table for a spreadsheet."""
    _note(request, visitor, "export", form, "")
    rows = event_rows(_store(request))
    answer = _lines(rows) if form == "jsonl" else StreamingResponse(_table(rows), media_type="text/csv; charset=utf-8")
    answer.headers["content-disposition"] = f'attachment; filename="judgements.{form}"'
    return answer


class ArmIn(shapes.Closed):
    """One arm of an experiment."""

    weight: float = Field(default=1.0, gt=0, lt=1e6, allow_inf_nan=False)
    change: Annotated[dict[str, Any], BeforeValidator(shapes.sound)] = Field(
        default_factory=dict, description="levels, tie, layout, rationale, guideline, pay"
    )


class ExperimentIn(shapes.Closed):
    """An experiment to set up."""

    name: shapes.Text
    unit: Literal["rater", "task"] = "rater"
    arms: dict[shapes.Text, ArmIn]


@router.post("/experiments", response_model=shapes.Added)
def add_experiment(request: Request, visitor: Admin, sent: ExperimentIn) -> dict[str, int]:
    """Set up an experiment: raters, or tasks, are drawn into its arms from now on, and their pages follow."""
    arms = [(name, arm.weight, change_of(arm.change)) for name, arm in sent.arms.items()]
    make_experiment(_store(request), sent.name, arms, unit=sent.unit, now=request.app.state.clock())
    _note(
        request, visitor, "experiment made", sent.name, json.dumps({n: a.change for n, a in sent.arms.items()})[:1000]
    )
    return {"new": 1}


@router.get("/experiments")
def experiments(request: Request, _: Admin) -> list[dict[str, Any]]:
    """Every experiment: its arms, who was drawn into them, and the effects, with intervals over what was drawn."""
    return [asdict(one) for one in list_experiments(_store(request), np.random.default_rng(0))]


@router.get("/stats")
def stats(request: Request, _: Admin) -> dict[str, Any]:
    """The state of the work at this moment."""
    return asdict(pulse(_store(request), now=request.app.state.clock()))


def _store(request: Request) -> Store:
    return request.app.state.store


def _added(request: Request, visitor: Visitor, what: str, n_new: int) -> dict[str, int]:
    if n_new:
        _note(request, visitor, "add", what, f"{n_new} new")
    return {"new": n_new}


def _note(request: Request, visitor: Visitor, action: str, subject: str, detail: str) -> None:
    state = request.app.state
    accounts.log(state.store, visitor.account, action, subject, detail, now=state.clock())


def _no_people(origins: Iterable[str], what: str) -> None:
    if wrong := set(origins) - {"simulated", "ai"}:
        raise InputError(f"found {what} of origin {min(wrong)!r}; expected simulated or ai: people sign in themselves")


def _only_programs(store: Store, names: set[str]) -> None:
    known = store.annotators()
    _no_people((known[name].origin for name in names if name in known), "a rater")


def _lines(rows: Iterable[Any]) -> StreamingResponse:
    def text() -> Iterator[str]:
        for row in rows:
            yield json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"

    return StreamingResponse(_chunks(text()), media_type=LINES)


def _table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    def text() -> Iterator[str]:
        yield _csv_line(list(CELL_NAMES))
        for each in rows:
            yield _csv_line(cells(each))

    return _chunks(text())


def _csv_line(values: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()


def _chunks(lines: Iterable[str]) -> Iterator[str]:
    waiting: list[str] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= CHUNK_CHARS:
            yield "".join(waiting)
            waiting, size = [], 0
    yield "".join(waiting)
