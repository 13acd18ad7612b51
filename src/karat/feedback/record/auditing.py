"""What an auditor reads: every judgement, under a pseudonym that another sitting cannot be joined with.

A pseudonym is a keyed hash of the rater and the sitting, so that two auditors, or one auditor on two days, cannot lay
their notes side by side. Filters are a fixed list of fields with fixed comparisons: nothing that a reader types
becomes part of a query. Reads only; knows nothing about pages.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import func, select

from karat.errors import InputError
from karat.feedback.schema import (
    UNKNOWN_ANNOTATOR,
    StoredJudgement,
    annotators,
    judgements,
    stored_judgement,
    tasks,
    words,
)
from karat.feedback.store import Store

PAGE = 50
"""Judgements on one page."""
MOST_FILTER = 200
"""Longest value of a filter, characters."""

_FIELDS: dict[str, Callable[[str], sa.ColumnElement[bool]]] = {
    "kind": lambda value: judgements.c.kind == value,
    "batch": lambda value: tasks.c.batch == value,
    "guideline": lambda value: judgements.c.guideline == value,
    "strategy": lambda value: judgements.c.strategy == value,
    "origin": lambda value: judgements.c.origin == value,
    "audience": lambda value: tasks.c.audience == value,
    "task": lambda value: judgements.c.task_id == value,
    "since": lambda value: judgements.c.created_at >= value,
    "until": lambda value: func.substr(judgements.c.created_at, 1, sa.literal(len(value))) <= value,
    "late": lambda value: judgements.c.late.is_(value == "yes"),
    "erased": lambda value: (
        sa.and_(judgements.c.has_words.is_(True), words.c.words.is_(None))
        if value == "yes"
        else sa.or_(judgements.c.has_words.is_(False), words.c.words.is_not(None))
    ),
    "corrects": lambda value: (
        judgements.c.supersedes.is_not(None) if value == "yes" else judgements.c.supersedes.is_(None)
    ),
}
FILTERS = (*_FIELDS, "rater")
"""Fields by which judgements can be filtered; `rater` takes a pseudonym."""


class Pseudonyms:
    """Names for raters that hold within one sitting of one auditor."""

    def __init__(self, key: bytes, sitting: str) -> None:
        self._key = hmac.new(key, b"sitting\0" + sitting.encode(), hashlib.sha256).digest()

    def of(self, annotator: str) -> str:
        """The pseudonym of a rater; raters whom a file does not name stay "unnamed"."""
        if annotator == UNKNOWN_ANNOTATOR:
            return "unnamed"
        return "p-" + hmac.new(self._key, b"rater\0" + annotator.encode(), hashlib.sha256).hexdigest()[:12]

    def resolve(self, store: Store, pseudonym: str) -> str | None:
        """The rater behind a pseudonym of this sitting; None where it is nobody's."""
        if pseudonym == "unnamed":
            return UNKNOWN_ANNOTATOR
        with store.connection() as connection:
            for annotator in connection.execute(select(annotators.c.id)).scalars():
                if hmac.compare_digest(self.of(annotator), pseudonym):
                    return annotator
        return None


@dataclass(frozen=True)
class AuditRow:
    """One judgement as an auditor sees it: no annotator, no key of the submission."""

    seq: int
    """Order of arrival."""
    id: str
    """Judgement.id, by which the seals name it."""
    rater: str
    """Pseudonym of this sitting."""
    batch: str
    """Task.batch."""
    audience: str
    """Raters or experts."""
    question: str
    """Task.question, the id of how it was asked; "" = the plain question of its kind."""
    record: StoredJudgement
    """Everything else; its annotator must not reach a page."""


@dataclass(frozen=True)
class AuditPage:
    """Some judgements, newest first."""

    rows: tuple[AuditRow, ...]
    """At most `PAGE` of them."""
    n_matching: int
    """How many fit the filters."""
    older: int | None
    """`before` of the next page; None = there is none."""


def browse(
    store: Store, pseudonyms: Pseudonyms, filters: Mapping[str, str], *, before: int | None = None, n: int = PAGE
) -> AuditPage:
    """Judgements that fit all filters, newest first.

    Args:
        filters: some of `FILTERS`; an empty value filters nothing.    before: only those that arrived earlier.
    Raises: InputError for a field that is not on the list or a value that is too long.
    """
    wanted = {name: value for name, value in filters.items() if value}
    for name, value in wanted.items():
        if name not in FILTERS:
            raise InputError(f"filter: found the field {name[:40]!r}; expected one of {', '.join(FILTERS)}")
        if len(value) > MOST_FILTER:
            raise InputError(f"filter {name}: found {len(value)} characters; expected at most {MOST_FILTER}")
    conditions = [_FIELDS[name](value) for name, value in wanted.items() if name != "rater"]
    if "rater" in wanted:
        annotator = pseudonyms.resolve(store, wanted["rater"])
        if annotator is None:
            return AuditPage((), 0, None)
        conditions.append(judgements.c.annotator == annotator)
    joined = judgements.join(tasks, tasks.c.id == judgements.c.task_id)
    joined = joined.outerjoin(words, words.c.judgement_id == judgements.c.id)
    with store.connection() as connection:
        total = connection.execute(select(func.count()).select_from(joined).where(*conditions)).scalar_one()
        question = _question(joined).where(*conditions).order_by(judgements.c.seq.desc()).limit(n + 1)
        if before is not None:
            question = question.where(judgements.c.seq < before)
        rows = [_row(row, pseudonyms) for row in connection.execute(question)]
    return AuditPage(tuple(rows[:n]), total, rows[n - 1].seq if len(rows) > n else None)


def audited(store: Store, pseudonyms: Pseudonyms, judgement_id: str) -> AuditRow:
    """One judgement by its id.

    Raises: InputError where there is none.
    """
    joined = judgements.join(tasks, tasks.c.id == judgements.c.task_id)
    joined = joined.outerjoin(words, words.c.judgement_id == judgements.c.id)
    with store.connection() as connection:
        row = connection.execute(_question(joined).where(judgements.c.id == judgement_id)).first()
    if row is None:
        raise InputError(f"judgement: found none by the name {judgement_id[:60]!r}; check the id")
    return _row(row, pseudonyms)


def filter_choices(store: Store) -> dict[str, list[str]]:
    """The values that occur, for the filters that are chosen from a list."""
    columns = {
        "kind": judgements.c.kind,
        "batch": tasks.c.batch,
        "guideline": judgements.c.guideline,
        "strategy": judgements.c.strategy,
        "origin": judgements.c.origin,
    }
    with store.connection() as connection:
        return {
            name: list(connection.execute(select(column).distinct().order_by(column)).scalars())
            for name, column in columns.items()
        }


def _question(joined: sa.FromClause) -> sa.Select[Any]:
    return select(judgements, words.c.words, tasks.c.batch, tasks.c.audience, tasks.c.question).select_from(joined)


def _row(row: Any, pseudonyms: Pseudonyms) -> AuditRow:
    record = stored_judgement(row)
    return AuditRow(row.seq, row.id, pseudonyms.of(row.annotator), row.batch, row.audience, row.question, record)
