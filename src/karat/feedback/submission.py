"""Submitting judgements: the same key twice is one judgement, another content under it is an error.

Knows one open connection and the tables; transactions are the caller's. A judgement must answer a task that is there,
by a rater who is there, about the texts of that task; what it corrects must be the rater's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from karat.errors import StoreError
from karat.feedback import leases, openings
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.additions import require
from karat.feedback.misfits import check_fits
from karat.feedback.prepared import Prepared
from karat.feedback.schema import StoredJudgement, judgement_rows, stored_judgement
from karat.identity import canonical_json
from karat.records import Judgement

_NEW_JUDGEMENT = Prepared(
    tables.judgements.insert().returning(tables.judgements.c.seq),
    *(column.name for column in tables.judgements.c if column.name != "seq"),
)
_NEW_SALT = Prepared(tables.salts.insert())
_NEW_WORDS = Prepared(tables.words.insert())

ROWS_AT_ONCE = 2000
"""Judgements written by one statement: between two of them whoever waits is told how many are."""
MOST_KEY = 200
"""Characters in a submission key or the name of a rater: what the columns hold on every database."""


@dataclass(frozen=True)
class Provenance:
    """Where an imported judgement came from, beside what the judgement itself says."""

    file: str
    """Name of the file."""
    line: int
    """Line in it, from 1."""
    session: str | None = None
    """The file's own name for the sitting in which it was given; None = not known."""
    accepted_at: str | None = None
    """When the rater took the work, as the file says it; None = not known."""


def submit(connection: Connection, judgements: Sequence[Judgement], *, now: float) -> list[StoredJudgement]:
    """Store judgements whose key is new.

    Args:
        now: seconds since the epoch, for leases that may be open.
    Returns: all of them as stored, in their order.
    Raises: StoreError for a key that was used for another content, an unknown task, rater or text, or an answer that
        does not fit its question or its texts.
    """
    keyed, keys, stored = _split_known(connection, judgements, {})
    new = _insert_new(connection, keyed, stored, now=now, provenance={})
    stored |= _stored_by_key(connection, new)
    return [stored[key] for key in keys]


def lock_task(connection: Connection, task_id: str) -> Any:
    """The row of a task, locked, so that what is known of its answers stays so. Raises: StoreError for an unknown one."""
    rows = leases.locked_rows(connection, [task_id])
    if task_id not in rows:
        raise StoreError(f"found the task {task_id!r}, which is not in the store; add_tasks first")
    return rows[task_id]


def submit_held(connection: Connection, judgement: Judgement, task: Any, held: Any, *, now: float) -> StoredJudgement:
    """`submit` one judgement with a new key by a rater who holds, or held, its task: the short way for what people send.

    Args:
        task: row of `lock_task`; the judgement was made of it.    held: row of her assignment, read after that.
    That the answer fits its question is for the caller to check, who has it at hand (`forms.answer_of`).

    Raises: StoreError for texts that are not the task's; IntegrityError for a key that was used.
    """
    judgement = _with_floats(judgement)
    _check_lengths(judgement)
    _check_texts(judgement, task)
    state = openings.state_of(held)
    late = state.state == "leased" and not state.live(now)
    rows = judgement_rows(judgement, salt=_salt(judgement), late=late)
    seq = _NEW_JUDGEMENT.scalar(connection, **rows.judgement)
    _NEW_SALT.run(connection, **rows.salt)
    if rows.words is not None:
        _NEW_WORDS.run(connection, **rows.words)
    counts = state.state != "submitted"
    if counts:
        leases.close_lease(connection, task.id, judgement.annotator)
    openings.settle_answered(connection, task, judgement.annotator, counts=counts, now=now)
    return StoredJudgement(judgement, rows.judgement["id"], rows.judgement["commitment"], late, False, seq)


def submit_imported(
    connection: Connection,
    judgements: Sequence[Judgement],
    provenance: Mapping[str, Provenance],
    *,
    now: float,
    count: Callable[[int, int], None] | None = None,
) -> int:
    """Store judgements whose key is new, with where they came from by submission key. Returns: how many were new.

    Args: count: hears how many of how many are written.
    """
    keyed, _, stored = _split_known(connection, judgements, provenance)
    return len(_insert_new(connection, keyed, stored, now=now, provenance=provenance, count=count))


def judgement_question() -> sa.Select:
    """Every judgement with its words, where they were not erased."""
    joined = tables.judgements.outerjoin(tables.words, tables.words.c.judgement_id == tables.judgements.c.id)
    return select(tables.judgements, tables.words.c.words).select_from(joined)


def erase_words(connection: Connection, judgement_ids: Sequence[str], *, reason: str, by: str, now: float) -> list[str]:
    """Delete words and salts of judgements, and say in `erasures` who asked for it and why.

    A judgement without words keeps its salt: its commitment hides nothing that the record does not say.

    Returns: ids of those that had words. Raises: StoreError for an unknown judgement.
    """
    require(connection, tables.judgements, set(judgement_ids), "the judgement", "check the id")
    wanted = sorted(set(judgement_ids))
    erased: list[str] = []
    for start in range(0, len(wanted), leases.CHUNK):
        some = wanted[start : start + leases.CHUNK]
        here = tables.words.c.judgement_id.in_(some)
        found = sorted(connection.execute(select(tables.words.c.judgement_id).where(here)).scalars())
        connection.execute(tables.words.delete().where(here))
        connection.execute(tables.salts.delete().where(tables.salts.c.judgement_id.in_(found)))
        erased += found
    if erased:
        rows = [{"judgement_id": one, "reason": reason, "by": by, "at": float(now)} for one in erased]
        connection.execute(people.erasures.insert(), rows)
    return erased


def _split_known(
    connection: Connection, judgements: Sequence[Judgement], provenance: Mapping[str, Provenance]
) -> tuple[dict[str, Judgement], list[str], dict[str, StoredJudgement]]:
    """Judgements by submission key, the keys in the order given, and what is stored under them already."""
    keyed: dict[str, Judgement] = {}
    keys: list[str] = []
    for judgement in map(_with_floats, judgements):
        key = judgement.submission or tables.UNNAMED + judgement.id
        if key in keyed and not _same_content(keyed[key], judgement):
            raise _reused(key, provenance.get(key))
        keyed.setdefault(key, judgement)
        keys.append(key)
    stored = _stored_by_key(connection, keyed)
    for key, record in stored.items():
        if not record.erased and not _same_content(record.judgement, keyed[key]):
            raise _reused(key, provenance.get(key))
    return keyed, keys, stored


def _insert_new(
    connection: Connection,
    keyed: Mapping[str, Judgement],
    stored: Mapping[str, StoredJudgement],
    *,
    now: float,
    provenance: Mapping[str, Provenance],
    count: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Insert what is not stored; returns its keys."""
    new = [judgement for key, judgement in keyed.items() if key not in stored]
    if not new:
        return []
    _check_new(connection, new, {key: f"{one.file}:{one.line}" for key, one in provenance.items()})
    late = leases.close_leases(connection, new, now=now)
    for start in range(0, len(new), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        _insert_rows(connection, new[some], late[some], provenance)
        if count is not None:
            count(start + len(new[some]), len(new))
    leases.settle(connection, sorted({each.task_id for each in new}), now=now)
    return [key for key in keyed if key not in stored]


def _insert_rows(
    connection: Connection, new: Sequence[Judgement], late: Sequence[bool], provenance: Mapping[str, Provenance]
) -> None:
    rows = [judgement_rows(each, salt=_salt(each), late=flag) for each, flag in zip(new, late, strict=True)]
    connection.execute(tables.judgements.insert(), [each.judgement for each in rows])
    connection.execute(tables.salts.insert(), [each.salt for each in rows])
    if words := [each.words for each in rows if each.words is not None]:
        connection.execute(tables.words.insert(), words)
    origins = [
        {"judgement_id": each.judgement["id"], **vars(provenance[each.judgement["submission"]])}
        for each in rows
        if each.judgement["submission"] in provenance
    ]
    if origins:
        connection.execute(tables.provenance.insert(), origins)


def _check_new(connection: Connection, new: Sequence[Judgement], places: Mapping[str, str]) -> None:
    for each in new:
        _check_lengths(each)
    require(connection, tables.tasks, {each.task_id for each in new}, "the task", "add_tasks")
    require(connection, tables.annotators, {each.annotator for each in new}, "the rater", "add_annotators")
    earlier = {each.supersedes: each.annotator for each in new if each.supersedes is not None}
    columns = tables.judgements.c
    # what is corrected may come in with its correction, as when a whole store is imported
    together = {each.id: each.annotator for each in new} if earlier else {}
    for judgement_id, annotator in earlier.items():
        stored = connection.execute(select(columns.annotator).where(columns.id == judgement_id)).scalar()
        owner = stored if stored is not None else together.get(judgement_id)
        if owner != annotator:
            raise StoreError(
                f"judgement by {annotator!r} supersedes {judgement_id!r}, which is not an earlier judgement of hers; "
                "correct only your own"
            )
    named = {each.task_id for each in new}
    asked: dict[str, Any] = {}
    wanted = sorted(named)
    for start in range(0, len(wanted), leases.CHUNK):
        some = tables.tasks.c.id.in_(wanted[start : start + leases.CHUNK])
        for row in connection.execute(select(tables.tasks).where(some)):
            asked[row.id] = row
    for each in new:
        _check_texts(each, asked[each.task_id])
    check_fits(connection, new, {task_id: row.question or "" for task_id, row in asked.items()}, places)


def _check_lengths(judgement: Judgement) -> None:
    for what, text in (("submission", judgement.submission), ("annotator", judgement.annotator)):
        if len(text) > MOST_KEY:
            raise StoreError(f"judgement: found {what} of {len(text)} characters; expected at most {MOST_KEY}")


def _check_texts(judgement: Judgement, task: Any) -> None:
    if (task.prompt_id, task.response_ids) != (judgement.prompt_id, tables.json_text(judgement.response_ids)):
        raise StoreError(
            f"judgement of task {judgement.task_id} names prompt {judgement.prompt_id} and responses "
            f"{', '.join(judgement.response_ids)}; expected those of the task"
        )


def _stored_by_key(connection: Connection, keys: Iterable[str]) -> dict[str, StoredJudgement]:
    wanted = list(keys)
    column = tables.judgements.c.submission
    found: dict[str, StoredJudgement] = {}
    for start in range(0, len(wanted), leases.CHUNK):
        question = judgement_question().where(column.in_(wanted[start : start + leases.CHUNK]))
        found.update((row.submission, stored_judgement(row)) for row in connection.execute(question))
    return found


def _same_content(first: Judgement, second: Judgement) -> bool:
    second = dataclasses.replace(second, created_at=first.created_at)
    return first == second or canonical_json(first.event) == canonical_json(second.event)


def _reused(key: str, place: Provenance | None) -> StoreError:
    at = "" if place is None else f"{place.file}:{place.line}: "
    return StoreError(f"{at}submission {key!r} was used for another judgement; expected one key for each submission")


def _with_floats(judgement: Judgement) -> Judgement:
    # the columns hold floats: 3 and 3.0 must not become two identities of one event
    changes = {
        name: float(getattr(judgement, name))
        for name in ("active_s", "idle_s", "propensity")
        if isinstance(getattr(judgement, name), int)
    }
    return dataclasses.replace(judgement, **changes) if changes else judgement


def _salt(judgement: Judgement) -> str:
    # nobody's words need protection in a simulation, and two seeded runs must give the same bytes
    if judgement.origin == "simulated":
        return hashlib.sha256(b"simulated\0" + judgement.submission.encode()).hexdigest()[:32]
    return secrets.token_hex(16)
