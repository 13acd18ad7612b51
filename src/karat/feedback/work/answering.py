"""From a lease and what a rater entered to her judgement: one transaction, whoever sent it and however often.

Pages and API say what was entered; everything else (what was asked, in which order it was shown, when, how long it
took by the server's clock) is taken from the store. A rater has one answer to a task at a time: the same one again
adds nothing, another one is a correction, which works until the first is sealed.
Knows leases, tasks and judgements; knows nothing about forms, JSON or cookies.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, or_, select

from karat.errors import AnsweredError, LeaseError, StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.arm_changes import ArmChange
from karat.feedback.documents import GUIDELINE, Shelf, shelf
from karat.feedback.people.accounts import read_account_by_annotator
from karat.feedback.people.care import change_under, complete_arms, keep_arms, read_arms, read_consent
from karat.feedback.prepared import Prepared
from karat.feedback.question_rows import question_in
from karat.feedback.schema import StoredJudgement, stored_judgement
from karat.feedback.store import Store
from karat.feedback.submission import judgement_question, lock_task, submit_held
from karat.feedback.tasks import answer
from karat.feedback.work.assignment import WorkKeys
from karat.feedback.work.check_answers import QUALIFY
from karat.feedback.work.orders import order_propensity, read_order
from karat.identity import canonical_json, content_id
from karat.questions import Question, plain_question
from karat.records import Prompt, Response, Task

NO_CHANGE = ArmChange()
"""Of whoever is in no experiment."""
_ANSWERED = "you have given another answer to this task; say whether this one takes its place"


@dataclass(frozen=True)
class Work:
    """A task in the hands of one rater, with everything a page shows."""

    lease_id: str
    """Names it for the rater; says nothing about the task."""
    annotator: str
    """Annotator.id of the holder."""
    state: str
    """leased, submitted or skipped."""
    leased_at: float | None
    """When she got it, seconds since the epoch; None = not known."""
    expires_at: float | None
    """Until when it is hers alone; None = she is done with it."""
    task: Task
    """What is asked; never sent to raters, because it says where the responses come from."""
    question: Question
    """How it is asked."""
    prompt: Prompt
    """What was answered."""
    responses: tuple[Response, ...]
    """What is judged, in identity order."""
    order: tuple[int, ...]
    """Identity indices in the order shown."""
    guideline: str
    """Version of the guideline that stands beside it: the arm's, the task's, or, where that was never written, the newest."""
    arms: Mapping[str, str] = field(default_factory=dict)
    """The arms of experiments that she or the task is in."""
    new_arms: tuple[str, ...] = ()
    """Experiments whose arm was drawn just now; her answer keeps it."""
    change: ArmChange = NO_CHANGE
    """What they change; the question has it already."""
    renewed_as: str | None = None
    """The lease's name today where it ran out and she got the task anew, None = `lease_id` still."""

    @property
    def attempt(self) -> int:
        """Which attempt at the qualification it belongs to, 1 for the first; 0 = it belongs to none."""
        purpose, _, rest = self.task.batch.partition(":")
        number = rest.rpartition(":")[2]
        return int(number) if purpose == QUALIFY and number.isdecimal() else 0

    @property
    def texts(self) -> tuple[str, ...]:
        """The responses' texts in identity order."""
        return tuple(response.text for response in self.responses)


@dataclass(frozen=True)
class Given:
    """What a rater sent."""

    value: Mapping[str, Any]
    """The answer in identity order, as `Judgement.value`."""
    key: str
    """The client's key of this submission: sent twice, stored once."""
    reason: str | None = None
    """Her own words, None = none."""
    active_s: float | None = None
    """Seconds of activity as the page measured them; None = not measured."""
    idle_s: float | None = None
    """Seconds without activity; None = not measured."""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What the page knows about itself: truncated, page, locale … (`Judgement.shown`)."""
    supersedes: str | None = None
    """Judgement id that this one corrects; None = the first answer."""
    replaces: bool = True
    """False = where another answer of hers is there that this one does not name, it is refused and not a correction."""


# Written once and compiled once: these are asked with every page and every answer.
_MINE = tables.assignments.c
_HELD = Prepared(
    select(tables.assignments).where(_MINE.annotator == bindparam("who"), _MINE.lease_id == bindparam("lease"))
)
_SHOWN = Prepared(
    select(
        tables.tasks,
        _MINE.state.label("held"),
        _MINE.leased_at,
        _MINE.expires_at,
        _MINE.shown_order,
        tables.prompts.c.turns,
        tables.prompts.c.topic,
        people.questions.c.body,
    )
    .join(tables.assignments, _MINE.task_id == tables.tasks.c.id)
    .join(tables.prompts, tables.prompts.c.id == tables.tasks.c.prompt_id)
    .outerjoin(people.questions, people.questions.c.id == tables.tasks.c.question)
    .where(_MINE.annotator == bindparam("who"), _MINE.lease_id == bindparam("lease"))
)
_KNOWN = Prepared(
    judgement_question()
    .where(
        or_(
            tables.judgements.c.submission == bindparam("key"),
            and_(tables.judgements.c.task_id == bindparam("task"), tables.judgements.c.annotator == bindparam("who")),
        )
    )
    .order_by(tables.judgements.c.seq.desc())
)
_FORGET = Prepared(
    people.drafts.delete().where(
        people.drafts.c.task_id == bindparam("task"), people.drafts.c.annotator == bindparam("who")
    )
)


def work_of(store: Store, lease_id: str, annotator: str) -> Work:
    """The task behind a lease, live or not. Raises: LeaseError where this rater never held a lease of that name."""
    keys = WorkKeys.of(store)
    with store.connection() as connection:
        return read_work(connection, lease_id, annotator, keys, shelf(connection))


def read_work(
    connection: Connection,
    lease_id: str,
    annotator: str,
    keys: WorkKeys,
    papers: Shelf,
    *,
    now: float | None = None,
    every_arm: bool = True,
) -> Work:
    """`work_of` inside a transaction, whose documents are `papers`.

    Args:
        now: in a writing transaction, when arms that are drawn here are kept; None = they are kept with the answer.
        every_arm: True = also of experiments that change nothing on the page, as an answer records them.
    """
    row, renewed_as = _SHOWN.first(connection, lease=lease_id, who=annotator), None
    if row is None:
        renewed_as = _held(connection, lease_id, annotator).lease_id
        row = _SHOWN.first(connection, lease=renewed_as, who=annotator)
        assert row is not None
    task = tables.task_of(row)
    if task.question and row.body is None:
        raise StoreError(f"task {task.id}: its question {task.question} is not in the store; add_questions first")
    ids = {f"id_{i}": response_id for i, response_id in enumerate(task.response_ids)}
    texts = {each.id: tables.response_of(each) for each in _texts(len(ids)).all(connection, **ids)} if ids else {}
    question = question_in(row.body) if task.question else plain_question(task.kind)
    settings = papers.settings(connection)
    arms: dict[str, str] = {}
    new: tuple[str, ...] = ()
    if settings.arm_changes or (every_arm and settings.experiments):
        known = read_arms(connection, annotator, settings)
        arms, new = complete_arms(known, settings, keys.arms, annotator, task)
        if new and now is not None:
            keep_arms(connection, annotator, {name: arms[name] for name in new}, now=now)
    change = change_under(settings, arms)
    return Work(
        lease_id=lease_id,
        annotator=annotator,
        state=row.held,
        leased_at=row.leased_at,
        expires_at=row.expires_at,
        task=task,
        question=change.question(question),
        prompt=tables.prompt_of(row),
        responses=tuple(texts[each] for each in task.response_ids),
        order=read_order(row.shown_order, task, annotator, keys.order),
        guideline=_guideline(connection, papers, change.guideline or task.guideline),
        arms=arms,
        new_arms=new,
        change=change,
        renewed_as=renewed_as,
    )


def _guideline(connection: Connection, papers: Shelf, version: str) -> str:
    """The version that is shown: questions are often queued before anybody has written a guideline."""
    if papers.find(connection, GUIDELINE, version) is None:
        newest = papers.find(connection, GUIDELINE)
        return version if newest is None else newest.version
    return version


@functools.lru_cache(maxsize=32)
def _texts(n: int) -> Prepared:
    """The responses of n ids."""
    here = tables.responses.c.id.in_([bindparam(f"id_{i}", type_=tables.responses.c.id.type) for i in range(n)])
    return Prepared(select(tables.responses).where(here))


def submit_work(store: Store, work: Work, given: Given, *, now: float) -> StoredJudgement:
    """Store what a rater sent; when this returns it is on the disk and her draft is gone.

    Sent again (the same key, or the same answer to the same task), the stored judgement comes back.

    Raises: StoreError for a key that she used for another answer, a correction of a sealed judgement or of one that
        was corrected already, or a late answer without consent; AnsweredError where she has answered otherwise and
        this one is not to replace it; InputError for a value that does not fit.
    """
    if work.arms:
        given = replace(given, shown={**given.shown, "arms": dict(work.arms)})
    key = "key:" + hashlib.sha256(f"{work.annotator}\0{given.key}".encode("utf-8", "surrogatepass")).hexdigest()[:48]

    def write(connection: Connection) -> StoredJudgement:
        task = lock_task(connection, work.task.id)
        held = _held(connection, work.lease_id, work.annotator)
        known = _KNOWN.all(connection, key=key, task=task.id, who=work.annotator)
        by_key = next((row for row in known if row.submission == key), None)
        if by_key is not None:
            return _same(by_key, given)
        earlier = stored_judgement(known[0]) if known else None
        if earlier is not None and given.supersedes is None and _says(earlier, given):
            return earlier
        if earlier is not None or given.supersedes is not None:
            _check_correction(connection, earlier, given)
            if given.supersedes is None and not given.replaces:
                raise AnsweredError(_ANSWERED)
        if held.state == "leased" and (held.expires_at or 0.0) <= now:
            _check_consent(connection, work.annotator)
        stored = submit_held(connection, _judgement(work, given, earlier, key=key, now=now), task, held, now=now)
        if work.new_arms:
            keep_arms(connection, work.annotator, {name: work.arms[name] for name in work.new_arms}, now=now)
        _FORGET.run(connection, task=task.id, who=work.annotator)
        return stored

    return store.write(write)


def _judgement(work: Work, given: Given, earlier: StoredJudgement | None, *, key: str, now: float) -> Any:
    shown = dict(given.shown) | {"question": work.question.id}
    if len(work.order) > 1:
        shown["order_propensity"] = order_propensity(len(work.order))
    if work.leased_at is not None:
        shown["server_s"] = round(max(0.0, now - work.leased_at), 3)
    given_to_task = answer(
        work.task,
        given.value,
        annotator=work.annotator,
        shown_order=work.order,
        created_at=datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        submission=key,
        active_s=given.active_s,
        idle_s=given.idle_s,
        reason=given.reason,
        supersedes=None if earlier is None else earlier.id,
        shown=shown,
    )
    return replace(given_to_task, guideline=work.guideline)


def _held(connection: Connection, lease_id: str, annotator: str) -> Any:
    """The assignment behind a lease, or behind one of its forerunners: a page may have been open for hours."""
    row = _HELD.first(connection, lease=lease_id, who=annotator)
    if row is not None:
        return row
    renewed_ones = select(tables.assignments).where(_MINE.annotator == annotator, _MINE.n_leases > 1)
    for renewed in connection.execute(renewed_ones):
        names = (content_id("lease", [renewed.task_id, annotator, n]) for n in range(1, renewed.n_leases))
        if lease_id in names:
            return renewed
    raise LeaseError("found no task of yours by that name; ask for the next task")


def _check_consent(connection: Connection, annotator: str) -> None:
    # whoever takes consent back loses her leases, so that only late answers need to be asked about it
    account = read_account_by_annotator(connection, annotator)
    if account is not None and not read_consent(connection, account.id).ok:
        raise StoreError("you have not agreed to the newest terms, or took your consent back; nothing was stored")


def _check_correction(connection: Connection, earlier: StoredJudgement | None, given: Given) -> None:
    if earlier is None or given.supersedes not in (None, earlier.id):
        raise StoreError("found no such answer of yours to correct, or you corrected it already; reload the page")
    last = connection.execute(select(func.max(people.seals.c.last_judgement))).scalar() or 0
    if earlier.seq <= last:
        raise StoreError("you answered this before, and that answer is sealed by now; it can no longer be changed")


def _same(row: Any, given: Given) -> StoredJudgement:
    stored = stored_judgement(row)
    if not stored.erased and not _says(stored, given):
        if not given.replaces:
            raise AnsweredError(_ANSWERED)
        raise StoreError(f"submission {given.key!r} was used for another answer; expected a new key for a new answer")
    return stored


def _says(stored: StoredJudgement, given: Given) -> bool:
    said = [dict(stored.judgement.value), stored.judgement.reason]
    return canonical_json(said) == canonical_json([dict(given.value), given.reason])
