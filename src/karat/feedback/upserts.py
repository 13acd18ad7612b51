"""Rows that two workers may write at once: inserted once, or replaced, in one statement on either database.

A read followed by an insert is safe on SQLite, which has one writer, and not on PostgreSQL. Knows the two dialects'
`ON CONFLICT`; knows nothing about the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite


def insert_new(connection: Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless one with its key is there. Returns: True = it was new."""
    new = conflict_insert(connection, table).values(**row).on_conflict_do_nothing()
    return connection.execute(new.returning(next(iter(table.primary_key)))).first() is not None


def put(connection: Connection, table: sa.Table, row: Mapping[str, Any], keep: Sequence[str] = ()) -> None:
    """Insert a row, or replace the one with the same primary key.

    Args:
        keep: columns whose old value stays.
    """
    new = conflict_insert(connection, table).values(**row)
    primary = [column.name for column in table.primary_key]
    changed = {name: new.excluded[name] for name in row if name not in primary and name not in keep}
    connection.execute(new.on_conflict_do_update(index_elements=primary, set_=changed))


def conflict_insert(connection: Connection, table: sa.Table) -> Any:
    """The database's own INSERT, which knows ON CONFLICT."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
