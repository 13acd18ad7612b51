"""The engine beneath the store: connections, transactions, migrations, and database errors as one line.

Knows what SQLite and PostgreSQL need, Alembic and the store's version; knows nothing about what the tables hold.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError

from karat.errors import StoreError
from karat.feedback.baton import Baton
from karat.feedback.people_tables import metadata
from karat.feedback.prepared import tell
from karat.feedback.schema import HEAD, OLDER, UnreadableRow
from karat.feedback.turnstile import Turnstile

WRITE = "karat_write"
WRITER = "karat_writer"
FLEETING = "karat_fleeting"
STEADY = "karat_steady"
MIGRATIONS = Path(__file__).with_name("migrations")
MIGRATION_LOCK = 0x6B61726174
"""Names the lock under which one process at a time migrates a PostgreSQL store: "karat" in ASCII."""
POOL_SIZE = 10
"""Connections that one process keeps. Those used last are used first: on PostgreSQL each has plans of its own."""
POOL_OVERFLOW = {"sqlite": 30, "postgresql": 10}
"""Connections beyond them: a web server's 44 threads at most; four processes must fit into PostgreSQL's usual 100."""
IDLE_S = 5.0
"""Seconds after which a connection to a server is asked whether it is alive before it is used again."""
WORDY = (
    "words",
    "salts",
    "drafts",
    "demographics",
    "accounts",
    "assignments",
    "standing",
    "flags",
    "queue_log",
    "admin_log",
    "provenance",
    "annotators",
)
"""Tables in which something personal may have been deleted or emptied."""
REPEAT = ("40001", "40P01", "23505")
"""SQLSTATEs after which the same transaction may succeed: not serialisable, deadlock, and a row that another
transaction inserted at the same moment (asked again, it is found)."""


def store_url(address: str) -> URL:
    """The SQLAlchemy URL of a path or URL: a path is SQLite, `postgresql://` is spoken through psycopg.

    Raises: StoreError (one line) for an address that no database has.
    """
    with one_line(address):
        url = sa.make_url(address) if "://" in address else URL.create("sqlite", database=address)
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(f"{shown_address(address)}: found {url.get_backend_name()}; expected sqlite or postgresql")
    return url


def shown_address(address: str) -> str:
    """A path or URL as messages may show it: without its password."""
    if "://" not in address:
        return address
    try:
        return sa.make_url(address).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "the store's URL"


def open_engine(address: str, busy_timeout_s: float) -> Engine:
    """The engine at a path or SQLAlchemy URL; nothing is read or written yet.

    Args:
        busy_timeout_s: seconds to wait for another writer before giving up.
    Raises: StoreError (one line) for an address that no database has.
    """
    url = store_url(address)
    overflow = POOL_OVERFLOW[url.get_backend_name()]
    pool = {"pool_size": POOL_SIZE, "max_overflow": overflow, "pool_timeout": busy_timeout_s, "pool_use_lifo": True}
    with one_line(shown_address(address)):
        if url.get_backend_name() == "sqlite":
            in_memory = url.database in (None, "", ":memory:")
            engine = sa.create_engine(url, connect_args={"timeout": busy_timeout_s}, **({} if in_memory else pool))
            _make_sqlite_safe(engine, busy_timeout_s, None if in_memory else Baton(f"{url.database}-turn"))
            if not in_memory:
                _make_file_private(engine, str(url.database))
            return engine
        wait = f"-c lock_timeout={int(busy_timeout_s * 1000)} -c timezone=UTC"
        # transactions are begun by us: reading needs none, and what else it needs is said in one breath
        pool["isolation_level"] = "AUTOCOMMIT"
        try:
            engine = sa.create_engine(url, connect_args={"options": wait}, **pool)
        except ImportError:
            raise StoreError(
                f"{shown_address(address)}: PostgreSQL needs the package psycopg; install karat with its extra `postgres`"
            ) from None
        _make_postgresql_quick(engine)
        return engine


@contextlib.contextmanager
def transaction(
    engine: Engine, address: str, *, write: bool = False, steady: bool = False, durable: bool = True
) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back by an exception.

    Args:
        write: True = take the writer's lock from the start (SQLite has one; PostgreSQL locks rows as they are named).
        steady: True = every question sees the store as it was at the first one, whatever others commit meanwhile.
        durable: False = it need not survive a power cut (a lease); the disk is not waited for.
    Raises: StoreError (one line) for whatever the database refuses.
    """
    with one_line(address), _turn(engine, address, write), engine.connect() as raw:
        connection = raw.execution_options(**{WRITE: write, FLEETING: not durable, STEADY: steady})
        with connection.begin():
            yield connection


@contextlib.contextmanager
def _turn(engine: Engine, address: str, write: bool) -> Iterator[None]:
    """Threads of one process, and processes, take turns at SQLite's one writer: nobody sleeps while others pass."""
    waiting = engine.get_execution_options().get(WRITER)
    if not write or waiting is None:
        yield
        return
    lock, baton, timeout_s = waiting
    if not lock.acquire(timeout=timeout_s):
        raise StoreError(f"{address}: {LOCKED}")
    try:
        if baton is not None:
            baton.acquire()
        yield
    finally:
        if baton is not None:
            baton.release()
        lock.release()


def scrub(engine: Engine, address: str) -> None:
    """Overwrite what was deleted from the tables that hold words.

    Raises: StoreError where others use them for too long; what was deleted stays deleted, but may lie in the files.
    """
    with one_line(address):
        if engine.dialect.name == "sqlite":  # freed pages are zeroed already; the log of old pages is cut off here
            with contextlib.closing(engine.raw_connection()) as raw:
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return
        with engine.connect() as raw:
            # without FULL the old rows stay legible in their pages until something is written over them
            statement = sa.text(f"VACUUM (FULL) {', '.join(WORDY)}")
            raw.execution_options(isolation_level="AUTOCOMMIT").execute(statement)


def repeatable(error: StoreError) -> bool:
    """Whether a transaction that ended with this error may simply be done again: another one came between."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and getattr(cause.orig, "sqlstate", None) in REPEAT


def file_of(address: str) -> Path | None:
    """The file of a SQLite store; None where the address is of another database, or of one in memory."""
    url = store_url(address)
    in_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if in_file and "uri" not in url.query else None


def require_file(address: str) -> None:
    """Raise StoreError where the address is one of a SQLite file that is missing or empty: opening it would make it one."""
    place = file_of(address)
    if place is None:
        return
    if not place.exists():
        raise StoreError(f"{shown_address(address)}: nothing is there; expected a store, a run that has one, or a URL")
    if place.is_file() and not place.stat().st_size:  # opening it would write the head of a database into it
        raise StoreError(f"{shown_address(address)}: found an empty database; expected a store")


def migrate(engine: Engine, address: str, *, create: bool = True) -> None:
    """Bring an empty or older store to the current version.

    Args:
        create: False = an empty database is refused.
    Raises: StoreError where it is no karat store, or is of a newer version.
    """
    with transaction(engine, address) as connection:
        version = _version(connection, address)
        if version == HEAD:
            return
        if version is None and not create:
            raise StoreError(f"{address}: found an empty database; expected a store")
    with transaction(engine, address, write=True) as connection:
        # asked again, because another process may have migrated it meanwhile
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        version = _version(connection, address)
        if version == HEAD:
            return
        if version is not None and version not in OLDER:
            raise StoreError(
                f"{address}: found a store of version {version!r}, expected {HEAD!r} or older; "
                "it was written by a newer karat: install that version to read it"
            )
        command.upgrade(alembic_config(connection), HEAD)


def alembic_config(connection: Connection) -> Config:
    """What Alembic needs to move a store up or down inside an open writing transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _version(connection: Connection, address: str) -> str | None:
    names = sa.inspect(connection).get_table_names()
    if "alembic_version" not in names:
        if names:
            raise StoreError(f"{address}: found a database with the table {names[0]!r}; expected a karat store")
        return None
    version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    if version is None and len(names) > 1:
        raise StoreError(f"{address}: found the tables of a store without its version; {BROKEN}")
    if version == HEAD and (missing := sorted({*metadata.tables}.difference(names))):
        raise StoreError(f"{address}: found no table {missing[0]!r}; {BROKEN}")
    return version


def _make_sqlite_safe(engine: Engine, busy_timeout_s: float, baton: Baton | None) -> None:
    engine.update_execution_options(**{WRITER: (Turnstile(), baton, busy_timeout_s)})

    @event.listens_for(engine, "connect")
    def _(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # the driver must not open transactions of its own
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout_s * 1000)}")
        _switch_to_wal(cursor, busy_timeout_s)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA secure_delete = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        # a read that turns into a write fails at once under load; a write that says so first waits its turn
        options = connection.get_execution_options()
        if not options.get(WRITE, False):
            tell(connection, "BEGIN")
            return
        wanted = "NORMAL" if options.get(FLEETING) else "FULL"
        if connection.info.get("synchronous", "FULL") != wanted:
            tell(connection, f"PRAGMA synchronous = {wanted}")
            connection.info["synchronous"] = wanted
        tell(connection, "BEGIN IMMEDIATE")


def _make_file_private(engine: Engine, path: str) -> None:
    """A store that is not there yet is readable for its owner only: it holds people's words, and how they sign in."""

    @event.listens_for(engine, "do_connect")
    def _(*_: Any) -> None:
        with contextlib.suppress(OSError):  # it is there, or SQLite will say what is wrong
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _switch_to_wal(cursor: Any, patience_s: float) -> None:
    """Write-ahead log for the file. Where another process makes the same switch at this moment SQLite answers "locked"
    at once, whatever the busy timeout is (it fears a deadlock), so the waiting is ours."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _make_postgresql_quick(engine: Engine) -> None:
    """Begin transactions where there is something to hold together, and ask a connection that was idle for a while
    whether its server is still there before it is used again."""

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        # without a transaction every question sees what is committed by then: so it would within one
        options = connection.get_execution_options()
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ" if options.get(STEADY) else "BEGIN"
        if options.get(FLEETING):
            begin += "; SET LOCAL synchronous_commit = off"
        if options.get(WRITE) or options.get(STEADY):
            tell(connection, begin, None, prepare=False)

    @event.listens_for(engine, "checkin")
    def _(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _(dbapi_connection: Any, record: Any, _proxy: Any) -> None:
        since = record.info.get("idle_since")
        if since is None or time.monotonic() - since < IDLE_S:
            return
        try:
            engine.dialect.do_ping(dbapi_connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError("the server has closed it") from error  # the pool opens another one


@contextlib.contextmanager
def one_line(address: str) -> Iterator[None]:
    """Turn an error of the database into a StoreError of one line that says what to do."""
    try:
        yield
    except DBAPIError as error:
        raise StoreError(f"{address}: {_explain(str(error.orig))}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"{address}: {' '.join(str(error).split())}") from error
    except sqlite3.Error as error:  # while the rows of a prepared statement are fetched
        raise StoreError(f"{address}: {_explain(str(error))}") from error
    except UnreadableRow as error:
        raise StoreError(f"{address}: {error}; {BROKEN}") from error


BROKEN = "the store was damaged or altered: `karat verify` says where, `karat restore` makes one from a backup"
LOCKED = "another process holds the store; nothing was stored. Wait for it or stop it, then repeat"
FULL = "the disk is full; nothing was stored. Free some space and repeat the command"
ADVICE = (
    ("disk is full", FULL),
    ("No space left on device", FULL),
    ("disk I/O error", "the disk refused a write; nothing was stored. Check the disk and repeat the command"),
    ("locked", LOCKED),
    ("lock timeout", LOCKED),
    ("malformed", f"the file is damaged, as by a fault of the disk; {BROKEN}"),
    ("Could not decode to UTF-8", f"found bytes that are no text; {BROKEN}"),
    ("not a database", "found a file that is not a database; expected a karat store"),
    ("unable to open", "cannot be opened; expected a file in a directory that exists and can be written"),
    ("readonly", "cannot be written; expected write permission"),
    ("append-only", "judgements are append-only; submit a new one that supersedes the old"),
    ("Connection refused", "the database server does not answer; start it, or correct the URL"),
    ("No such file or directory", "the database server does not answer; start it, or correct the URL"),
    (
        "too many clients",
        "the database server has no connection left; start fewer workers, or raise its max_connections",
    ),
    ("authentication failed", "the database server refused the password; correct the URL"),
    ("NUL (0x00)", "found a text with a NUL character; expected text without one. Nothing was stored"),
)
"""What a message of the database contains, and what is said instead."""


def _explain(message: str) -> str:
    message = " ".join(message.split())
    for found, advice in ADVICE:
        if found in message:
            return advice
    return f"the database refused the operation ({message}); nothing was stored"
