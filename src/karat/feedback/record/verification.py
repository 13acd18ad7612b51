"""Whether a store still says what it said: every record, text and event against its identity and its seal.

Three things are compared: a record with its own commitment and identity, an event with the leaf that was sealed, and
the seals with one another and with what was published of them. Words that were erased on request are no problem;
words that merely are not there any more are. Reads one open connection; changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback import submission
from karat.feedback.record.seals import SEALED, Problem, leaf_line, leaves_root, rows_after, seal_of, verify_seals
from karat.identity import content_id

__all__ = ["Problem", "store_problems"]

MOST_NAMED = 20
"""Faults of a file that are named."""
LOWEST = -(2**31)
"""Below every number of an event: one that somebody numbered below the first is found too."""
UNSOUND = " (the leaves of this seal were altered too; either may be the false one)"


def store_problems(connection: Connection, published: Iterable[str] = ()) -> list[Problem]:
    """Everything in a store that is not as it was submitted and sealed; empty = all of it is.

    Args:
        published: lines of `Seal.line` that were noted outside the store.
    """
    return [
        *_record_problems(connection),
        *_text_problems(connection),
        *_seal_problems(connection, published),
    ]


def file_problems(connection: Connection) -> Iterator[Problem]:
    """What the database itself finds wrong in a SQLite file, whatever the rows say; of a server nothing is asked."""
    if connection.dialect.name == "sqlite":
        for (found,) in connection.exec_driver_sql(f"PRAGMA integrity_check({MOST_NAMED})"):
            if found != "ok":
                yield Problem("file", f"damaged: {' '.join(str(found).split())}")
        torn = {(table, to) for table, _, to, _ in connection.exec_driver_sql("PRAGMA foreign_key_check")}
        for table, to in sorted(torn):
            yield Problem("file", f"a row of {table} names one of {to} that is not there: it was altered or removed")


def _record_problems(connection: Connection) -> Iterator[Problem]:
    """Judgements against their own commitment, identity and words."""
    erased = set(connection.execute(select(people.erasures.c.judgement_id)).scalars())
    old = connection.execute(select(people.keys.c.value).where(people.keys.c.name == tables.FIRST_VERSION)).scalar()
    there = {
        table: set(connection.execute(select(table.c.id)).scalars())
        for table in (tables.prompts, tables.responses, tables.tasks, tables.annotators)
    }
    question = submission.judgement_question().add_columns(tables.salts.c.salt)
    question = question.outerjoin(tables.salts, tables.salts.c.judgement_id == tables.judgements.c.id)
    for row in connection.execute(question.order_by(tables.judgements.c.seq)):
        what = _record_problem(row, was_erased=row.id in erased, is_old=row.seq <= int(old or 0))
        if what is None and not (
            row.prompt_id in there[tables.prompts] and there[tables.responses].issuperset(json.loads(row.response_ids))
        ):
            what = "a text that it judges is not in the store any more: it was removed"
        if what is None and not (row.task_id in there[tables.tasks] and row.annotator in there[tables.annotators]):
            what = "its task or its rater is not in the store any more: it was removed"
        if what is not None:
            yield Problem(row.id, what)


def _record_problem(row: Any, *, was_erased: bool, is_old: bool) -> str | None:
    try:
        record = tables.stored_judgement(row)
        fits = row.salt is None or tables.commitment_of(record.judgement, row.salt) == row.commitment
    except Exception as error:
        # whatever somebody wrote into the columns, it is the record that is named, not the program that fails
        return f"not readable as a judgement ({' '.join(str(error).split())}): it was altered"
    if not fits:
        return "the stored event differs from its commitment: it was altered"
    if row.id not in tables.record_ids(record) and not (record.erased and is_old):
        return "the stored event differs from its identity: it was altered"
    if row.words is not None and not row.has_words:
        return "it has words, and its record says that it has none: it was altered"
    if was_erased and (row.words is not None or row.salt is not None):
        return "its words were erased on request and are there again"
    if record.erased and not was_erased:
        return "its words are gone, and no erasure says why: they were removed"
    if row.salt is None and not was_erased:
        return "the salt of its commitment is gone, and no erasure says why: it was removed"
    return None


def _text_problems(connection: Connection) -> Iterator[Problem]:
    """Prompts, responses, tasks and how they were asked against their own identity."""
    for what, table, record_of in (
        ("response", tables.responses, tables.response_of),
        ("prompt", tables.prompts, tables.prompt_of),
        ("task", tables.tasks, tables.task_of),
    ):
        for row in connection.execute(select(table).order_by(table.c.id)):
            try:
                same = record_of(row).id == row.id
            except Exception:  # as above: unreadable is altered
                same = False
            if not same:
                yield Problem(row.id, f"the stored {what} differs from its identity: it was altered")
    for row in connection.execute(select(people.questions).order_by(people.questions.c.id)):
        # by what is stored, because later versions of karat may know more about a question
        if not _is_question(row):
            yield Problem(row.id, "how it was asked differs from its identity: it was altered")


def _is_question(row: sa.Row) -> bool:
    try:
        return content_id("question", json.loads(row.body)) == row.id
    except (ValueError, TypeError):
        return False


def _seal_problems(connection: Connection, published: Iterable[str]) -> Iterator[Problem]:
    """Seals against one another, and every event against the leaf that was sealed."""
    rows = connection.execute(select(people.seals).order_by(people.seals.c.seq)).all()
    try:
        chain = [seal_of(row) for row in rows]
    except (ValueError, TypeError):
        yield Problem("seals", "found a seal that is not readable: it was altered; what it covers was not checked")
        return
    leaves = {row.seq: row.leaves.split("\n") for row in rows}
    yield from verify_seals(chain, leaves, published)
    before = dict.fromkeys(SEALED, LOWEST)
    for row, one in zip(rows, chain, strict=True):
        sound = leaves_root(leaves[row.seq]) == one.root
        sealed = _by_event(leaves[row.seq])
        for name in SEALED:
            head = one.heads.get(name, before[name])
            here = {seq: line for (table, seq), line in sealed.items() if table == name}
            for problem in _table_problems(connection, name, (before[name], head), here, row):
                yield problem if sound else Problem(problem.judgement_id, problem.what + UNSOUND)
            before[name] = head


def _by_event(lines: Iterable[str]) -> dict[tuple[str, int], str]:
    """Lines of leaves by table and number; what is no leaf is left out, its seal is named by its root."""
    found = {}
    for line in lines:
        try:
            table, seq = json.loads(line)[:2]
            found[str(table), int(seq)] = line
        except (ValueError, TypeError):
            continue
    return found


def _table_problems(
    connection: Connection, name: str, between: tuple[int, int], sealed: dict[int, str], row: sa.Row
) -> Iterator[Problem]:
    """One table's rows under one seal: those that differ, those that were not sealed, those that are gone."""
    after, through = between
    for event in rows_after(connection, name, after, through=through):
        line = sealed.pop(event.seq, None)
        called = event.id if name == "judgements" else _called(name, event)
        if line is None:
            yield Problem(called, f"stands among what seal {row.seq} covers, but was not sealed: it was added later")
        elif line != _leaf_of(name, event, row.nonce):
            yield Problem(called, f"differs from what seal {row.seq} covers: it was altered after sealing")
    for seq, line in sealed.items():
        shown = str(json.loads(line)[2]) if name == "judgements" else f"{name} {seq}"
        what = f"number {seq}" if name == "judgements" else "it"
        yield Problem(shown, f"seal {row.seq} covers {what}, which is not there any more: it was removed")


def _leaf_of(name: str, event: sa.Row, nonce: str) -> str | None:
    try:
        return leaf_line(name, event, nonce)
    except (ValueError, TypeError):
        return None  # what cannot be a leaf differs from every leaf


def _called(name: str, event: sa.Row) -> str:
    return f"document {event.name} {event.version}" if name == "documents" else f"{name} {event.seq}"
