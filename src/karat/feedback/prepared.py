"""Statements that every request asks, compiled once for each database and given straight to its driver.

SQLAlchemy writes the SQL, as everywhere else; what it does around every execution (parameters, results, events) takes
ten times as long as SQLite takes to answer, and is left out here. For statements with a fixed form: what depends on
values is a bindparam, never a piece of the text. Runs in the transaction of an open connection. Knows SQLAlchemy and
DB-API; knows nothing about the tables.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from inspect import isfunction
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


class Prepared:
    """One statement; its parameters are given by name.

    Differs: a row is a namedtuple of what the driver gave. Types that a driver does not give back as they were stored
    (JSON, decimals, dates) are refused when it is compiled.
    """

    def __init__(self, statement: Any, *columns: str) -> None:
        """Args: statement, or what makes it from a dialect's name; columns: of an INSERT that leaves some out."""
        self._statement, self._columns = statement, columns or None
        self._made: dict[str, _Compiled] = {}

    def all(self, connection: Connection, **values: Any) -> list[Any]:
        """Every row."""
        made = self._compiled(connection)
        return [made.row(found) for found in made.run(connection, values).fetchall()]

    def first(self, connection: Connection, **values: Any) -> Any | None:
        """The first row; None where there is none."""
        made = self._compiled(connection)
        found = made.run(connection, values).fetchone()
        return None if found is None else made.row(found)

    def scalar(self, connection: Connection, **values: Any) -> Any:
        """The first column of the first row; None where there is none."""
        found = self._compiled(connection).run(connection, values).fetchone()
        return None if found is None else found[0]

    def run(self, connection: Connection, **values: Any) -> int:
        """Change something. Returns: how many rows."""
        return self._compiled(connection).run(connection, values).rowcount

    def _compiled(self, connection: Connection) -> _Compiled:
        dialect = connection.dialect
        made = self._made.get(dialect.name)
        if made is None:
            statement = self._statement(dialect.name) if isfunction(self._statement) else self._statement
            made = self._made[dialect.name] = _Compiled(statement, dialect, self._columns)
        return made


class _Compiled:
    """A statement in the words of one database."""

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: Sequence[str] | None) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        self._wanted = {name for name, bind in compiled.binds.items() if bind.required}
        state = compiled.construct_expanded_state(dict.fromkeys(self._wanted))
        self._sql = state.statement
        self._values = dict(state.parameters)
        self._order = state.positiontup
        given = list(statement.exported_columns)
        for column in given:
            if not isinstance(column.type, sa.String | sa.Integer | sa.Float | sa.Boolean | sa.types.NullType):
                raise TypeError(f"prepared: found a column of {column.type!r}; expected text, numbers or truth values")
        self._truths = [i for i, column in enumerate(given) if isinstance(column.type, sa.Boolean)]
        self._row = namedtuple("Row", [column.key for column in given], rename=True)._make

    def row(self, found: Sequence[Any]) -> Any:
        """A row of the driver with names."""
        if self._truths:
            found = list(found)
            for i in self._truths:
                found[i] = None if found[i] is None else bool(found[i])
        return self._row(found)

    def run(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """The driver's cursor after execution."""
        if self._wanted != values.keys():
            raise TypeError(f"prepared: found values for {sorted(values)}; expected those of {sorted(self._wanted)}")
        every = {**self._values, **values}
        return tell(connection, self._sql, every if self._order is None else [every[name] for name in self._order])


def tell(connection: Connection, sql: str, values: Any = (), **how: Any) -> Any:
    """The driver's cursor after a statement of the database's own words. Raises: DBAPIError, as SQLAlchemy would.

    Args:
        how: what else this driver's `execute` takes.
    """
    pooled = connection.connection
    try:
        return pooled.driver_connection.execute(sql, values, **how)  # type: ignore[union-attr]
    except connection.dialect.loaded_dbapi.Error as error:
        dead = connection.dialect.is_disconnect(error, pooled, None)
        if dead:  # it must not go back into the pool
            connection.invalidate(error)
        raise DBAPIError.instance(
            sql,
            None,
            error,
            connection.dialect.loaded_dbapi.Error,
            connection_invalidated=dead,
            dialect=connection.dialect,
        ) from error
