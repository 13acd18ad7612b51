"""A PostgreSQL server for the tests: the one named by KARAT_POSTGRESQL, the package pgserver, or an installed one."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from karat.feedback.store import open_store

_numbers = itertools.count()


@contextlib.contextmanager
def server() -> Iterator[sa.URL]:
    """The URL of a server's database `postgres`; skips the test where there is no server."""
    if given := os.environ.get("KARAT_POSTGRESQL"):
        yield sa.make_url(given).set(drivername="postgresql+psycopg")
        return
    pytest.importorskip("psycopg", reason="PostgreSQL needs the extra `postgres`", exc_type=ImportError)
    start = _packaged if _has_package() else _installed
    # its own directory, because a server started by root runs as somebody else, who cannot enter that of pytest
    with (
        tempfile.TemporaryDirectory(prefix="karat-pg-", ignore_cleanup_errors=True) as place,
        start(Path(place)) as url,
    ):
        # these stores live for seconds: nothing is gained by waiting for the disk
        settings = [f"ALTER SYSTEM SET {name} = off" for name in ("fsync", "full_page_writes", "autovacuum")]
        _execute(url, *settings, "SELECT pg_reload_conf()")
        yield url


def empty_database(url: sa.URL) -> str:
    """The address of a new database without a table on a server."""
    name = f"karat_{os.getpid()}_{next(_numbers)}"
    _execute(url, f"CREATE DATABASE {name}")
    return url.set(database=name).render_as_string(hide_password=False)


def new_database(url: sa.URL) -> str:
    """The address of a new database that holds an empty store, copied from one that was migrated once."""
    return copied_database(_migrated(url))


def copied_database(address: str) -> str:
    """The address of a new database with all that is in another, to which nobody is connected."""
    url = sa.make_url(address)
    name = f"karat_{os.getpid()}_{next(_numbers)}"
    _execute(url.set(database="postgres"), f"CREATE DATABASE {name} TEMPLATE {url.database}")
    return url.set(database=name).render_as_string(hide_password=False)


@functools.cache
def _migrated(url: sa.URL) -> str:
    address = empty_database(url)
    open_store(address).close()
    return address


def _execute(url: sa.URL, *statements: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def _has_package() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import pgserver  # noqa: F401
        except ImportError:
            return False
    return True


@contextlib.contextmanager
def _packaged(directory: Path) -> Iterator[sa.URL]:
    import pgserver

    running = pgserver.get_server(directory / "pg", cleanup_mode="stop")
    try:
        yield sa.make_url(running.get_uri()).set(drivername="postgresql+psycopg")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.get_pid(), signal.SIGQUIT)  # at once: nothing in it is kept
        running.get_postmaster_info().process.wait(20)
        running.cleanup()


@contextlib.contextmanager
def _installed(directory: Path) -> Iterator[sa.URL]:
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None or os.geteuid() == 0:
        pytest.skip("no PostgreSQL here: neither pgserver nor a server that this user may start")
    data = directory / "pg"
    subprocess.run(["initdb", "-A", "trust", "-U", "postgres", str(data)], check=True, capture_output=True)
    options = f"-c listen_addresses='' -k {directory}"
    start = ["pg_ctl", "-w", "-D", str(data), "-l", str(directory / "log"), "-o", options, "start"]
    subprocess.run(start, check=True, capture_output=True)
    try:
        yield sa.URL.create("postgresql+psycopg", "postgres", database="postgres", query={"host": str(directory)})
    finally:
        subprocess.run(["pg_ctl", "-D", str(data), "-m", "immediate", "stop"], check=True, capture_output=True)
