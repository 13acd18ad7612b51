"""Adding what can be judged, and by whom: each row once, and only where what it refers to is already there.

Knows one open connection and the tables; transactions are the caller's. Knows nothing about judgements.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from karat.errors import InputError, StoreError
from karat.feedback import leases
from karat.feedback import schema as tables
from karat.feedback.openings import OPEN, lock_queue
from karat.records import Annotator, Prompt, Response, Task


def add_prompts(connection: Connection, prompts: Iterable[Prompt]) -> int:
    """Store prompts that are not there yet. Returns: how many were new."""
    return _add(connection, tables.prompts, map(tables.prompt_row, prompts))


def add_responses(connection: Connection, responses: Iterable[Response]) -> int:
    """Store responses that are not there yet; their prompts must be. Returns: how many were new."""
    rows = [tables.response_row(response) for response in responses]
    require(connection, tables.prompts, {row["prompt_id"] for row in rows}, "the prompt", "add_prompts")
    return _add(connection, tables.responses, rows)


def add_annotators(connection: Connection, annotators: Iterable[Annotator]) -> int:
    """Store raters that are not there yet, and the group of those whose group was not known. Returns: how many were new.

    Raises: InputError for a rater in two groups, among the new ones or by what is stored, and for `check_pseudonym`.
    """
    named: dict[str, Annotator] = {}
    for who in annotators:
        named[who.id] = one_group(named.get(who.id), who)
    table, wanted = tables.annotators, sorted(named)
    for start in range(0, len(wanted), leases.CHUNK):
        rows = connection.execute(select(table).where(table.c.id.in_(wanted[start : start + leases.CHUNK]))).all()
        for row in rows:
            stored = Annotator(row.id, row.origin, row.grp)
            group = one_group(stored, named[row.id]).group
            if group != row.grp:
                connection.execute(table.update().where(table.c.id == row.id).values(grp=group))
    for name in named.keys() - _known(connection, table.c.id, named):  # who is there already stays there
        check_pseudonym(name)
    rows = ({"id": who.id, "origin": who.origin, "grp": who.group} for who in named.values())
    return _add(connection, table, rows)


def check_pseudonym(name: str) -> str:
    """The name of a rater. Raises: InputError where it breaks a line or holds another control character: it stands in lists."""
    if any(unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in name):
        raise InputError(f"rater {name!r}: found a line break or control character; expected a pseudonym on one line")
    return name


def one_group(known: Annotator | None, who: Annotator) -> Annotator:
    """A rater that two rows name: as the first has her, with the group that either gives.

    The votes without a rater's name are several people's, who may be of several groups; nothing is asked of them.

    Raises: InputError, with her name and both groups, where they give two.
    """
    if known is None or known.id == tables.UNKNOWN_ANNOTATOR:
        return known or who
    if None not in (known.group, who.group) and known.group != who.group:
        raise InputError(
            f"rater {who.id!r}: found in two groups, {known.group!r} and {who.group!r}; expected one group for each rater"
        )
    return known if known.group is not None else replace(known, group=who.group)


def add_tasks(connection: Connection, new: Iterable[Task], *, state: str = OPEN) -> int:
    """Store tasks that are not there yet; their texts must be. Returns: how many were new.

    Args:
        state: OPEN = they are queued; CHECK = they never will be.
    """
    new = list(new)
    require(connection, tables.prompts, {task.prompt_id for task in new}, "the prompt", "add_prompts")
    named = {response_id for task in new for response_id in task.response_ids}
    require(connection, tables.responses, named, "the response", "add_responses")
    if state == OPEN:
        lock_queue(connection)
    return _add(connection, tables.tasks, (tables.task_row(task) | {"state": state} for task in new))


def require(connection: Connection, table: sa.Table, keys: set[str], what: str, remedy: str) -> None:
    """Raise StoreError naming the first of the keys that is not in the table, and what to do first."""
    unknown = keys - _known(connection, table.c.id, keys)
    if unknown:
        raise StoreError(f"found {what} {min(unknown)!r}, which is not in the store; {remedy} first")


def _known(connection: Connection, column: sa.Column, keys: Iterable[str]) -> set[str]:
    wanted = sorted(keys)
    found: set[str] = set()
    for start in range(0, len(wanted), leases.CHUNK):
        found.update(
            connection.execute(select(column).where(column.in_(wanted[start : start + leases.CHUNK]))).scalars()
        )
    return found


def _add(connection: Connection, table: sa.Table, rows: Iterable[dict[str, Any]]) -> int:
    by_id = {row["id"]: row for row in rows}
    known = _known(connection, table.c.id, by_id)
    new = [row for key, row in by_id.items() if key not in known]
    if new:
        connection.execute(table.insert(), new)
    return len(new)
