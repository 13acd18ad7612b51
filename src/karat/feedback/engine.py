"""The engine beneath the store: connections, transactions, migrations, and database errors as one line.

Knows SQLite's needs, Alembic and the store's version; knows nothing about what the tables hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from karat.errors import StoreError
from karat.feedback.schema import HEAD, OLDER

WRITE = "karat_write"
MIGRATIONS = Path(__file__).with_name("migrations")


def open_engine(address: str, busy_timeout_s: float) -> Engine:
    """The engine at a path or SQLAlchemy URL; nothing is read or written yet.

    Args:
        busy_timeout_s: seconds to wait for another writer before giving up.
    Raises: StoreError (one line) for an address that no database has.
    """
    url = address if "://" in address else f"sqlite:///{address}"
    with one_line(address):
        engine = sa.create_engine(url, connect_args={"timeout": busy_timeout_s} if url.startswith("sqlite") else {})
        if engine.dialect.name == "sqlite":
            _make_sqlite_safe(engine, busy_timeout_s)
    return engine


@contextlib.contextmanager
def transaction(engine: Engine, address: str, *, write: bool = False) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back by an exception.

    Args:
        write: True = take the writer's lock from the start.
    Raises: StoreError (one line) for whatever the database refuses.
    """
    with one_line(address), engine.connect() as raw:
        connection = raw.execution_options(**{WRITE: write})
        with connection.begin():
            yield connection


def migrate(engine: Engine, address: str) -> None:
    """Bring an empty or older store to the current version.

    Raises: StoreError where it is no karat store, or is of a newer version.
    """
    with transaction(engine, address) as connection:
        if _version(connection, address) == HEAD:
            return
    with transaction(engine, address, write=True) as connection:
        # asked again, because another process may have migrated it meanwhile
        version = _version(connection, address)
        if version == HEAD:
            return
        if version is not None and version not in OLDER:
            raise StoreError(
                f"{address}: found a store of version {version!r}, expected {HEAD!r} or older; "
                "it was written by a newer karat: install that version to read it"
            )
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)


def _version(connection: Connection, address: str) -> str | None:
    names = sa.inspect(connection).get_table_names()
    if "alembic_version" not in names:
        if names:
            raise StoreError(f"{address}: found a database with the table {names[0]!r}; expected a karat store")
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _make_sqlite_safe(engine: Engine, busy_timeout_s: float) -> None:
    @event.listens_for(engine, "connect")
    def _(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # the driver must not open transactions of its own
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout_s * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA secure_delete = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        # a read that turns into a write fails at once under load; a write that says so first waits its turn
        write = connection.get_execution_options().get(WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextlib.contextmanager
def one_line(address: str) -> Iterator[None]:
    """Turn an error of the database into a StoreError of one line that says what to do."""
    try:
        yield
    except DBAPIError as error:
        raise StoreError(f"{address}: {_explain(str(error.orig))}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"{address}: {' '.join(str(error).split())}") from error


def _explain(message: str) -> str:
    message = " ".join(message.split())
    for found, advice in (
        ("disk is full", "the disk is full; nothing was stored. Free some space and repeat the command"),
        ("disk I/O error", "the disk refused a write; nothing was stored. Check the disk and repeat the command"),
        ("locked", "another process holds the store; nothing was stored. Wait for it or stop it, then repeat"),
        ("not a database", "found a file that is not a database; expected a karat store"),
        ("unable to open", "cannot be opened; expected a file in a directory that exists and can be written"),
        ("readonly", "cannot be written; expected write permission"),
        ("append-only", "judgements are append-only; submit a new one that supersedes the old"),
    ):
        if found in message:
            return advice
    return f"the database refused the operation ({message}); nothing was stored"
