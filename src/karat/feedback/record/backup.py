"""Backing a store up while people work, and restoring it, on the same database or the other one.

Two forms. A directory: one JSON line a row, one file a table, and a manifest with counts and hashes; it can be read
without karat and restored on either database. A single file (`….db`): SQLite's own online copy, of a SQLite store
only. Either holds everything (texts, words, salts, keys), so it is as private as the store; sessions and counted
attempts are left out, everybody signs in again. Words that were erased after a backup was made come back with it:
erase them again after restoring. Knows tables by name; knows nothing about what they mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from sqlalchemy import Connection, select

from karat.errors import StoreError
from karat.feedback import engine
from karat.feedback import people_tables as people
from karat.feedback.people_tables import limits, metadata, sessions
from karat.feedback.record import seals
from karat.feedback.record.seals import Problem
from karat.feedback.schema import HEAD, OLDER
from karat.feedback.store import Store, open_store, whole_file
from karat.identity import content_id, file_hash
from karat.ledger.artifacts import disk_error, staged_directory, write_json

FORMAT = "karat-backup-1"
FILE_ENDINGS = (".db", ".sqlite", ".sqlite3")
"""A path that ends so is a copy of the SQLite file; any other is a directory of rows."""
LEFT_OUT = (sessions.name, limits.name)
CHUNK = 500
"""Rows that go into the database at once."""


@dataclass(frozen=True)
class Backup:
    """What a backup holds."""

    path: Path
    """The directory or file."""
    version: str
    """Revision of the migrations that the store had."""
    rows: Mapping[str, int]
    """How many rows each table has."""
    seal: str | None
    """`Seal.line` of the last seal in it; None = nothing was sealed."""


@dataclass(frozen=True)
class Restored:
    """What came out of a backup."""

    address: str
    """The store that was made, without a password."""
    rows: Mapping[str, int]
    """How many rows each table got."""
    problems: tuple[Problem, ...]
    """What `Store.verify` finds in the new store; a record that was altered before the backup still is."""


def backup(store: Store, path: str | Path, *, now: float) -> Backup:
    """Copy a store as it is at one moment; others go on working meanwhile.

    Args:
        path: a place where nothing is yet: a directory of rows, or with the ending .db a SQLite file.
        now: seconds since the epoch, written into the manifest.
    Raises: StoreError where something is there already, or a file is asked of a store on PostgreSQL; LedgerError when
        the disk is full; nothing half-written stays.
    """
    path = Path(path)
    if path.exists():
        raise StoreError(f"{path}: something is there already; a backup never replaces another: give a new path")
    if path.suffix in FILE_ENDINGS:
        if store.dialect != "sqlite":
            raise StoreError(f"{path}: found a store on {store.dialect}; expected a path without {path.suffix} for it")
        return _copy_file(store, path)
    # only the owner may look into it, from the first file on
    with _private(), staged_directory(path) as directory:
        return _dump(store, directory, path, now)


def read_backup(path: str | Path) -> Backup:
    """What a backup says that it holds, every file of it checked against its hash.

    Raises: StoreError naming what is missing, altered or not a backup.
    """
    with _open_backup(Path(path)) as (found, _):
        return found


def restore(path: str | Path, address: str | Path) -> Restored:
    """Make a new store from a backup: all of it in one transaction or nothing.

    Args:
        path: made by `backup`, by this version of karat or an older one.
        address: a path or URL of a database without tables.
    Raises: StoreError for a damaged backup, one of a newer version, or a database that has tables.
    """
    address = str(address)
    if not address.strip():
        raise StoreError("restore: found no place for the store; expected a new file's path, or a database's address")
    shown = engine.shown_address(address)
    with whole_file(address) as target, _open_backup(Path(path)) as (found, rows_of):
        opened = engine.open_engine(target, 30.0)
        try:
            with engine.transaction(opened, shown, write=True) as connection:
                if names := sa.inspect(connection).get_table_names():
                    raise StoreError(
                        f"{shown}: found a database with the table {names[0]!r}; expected an empty one: give a new path"
                    )
                _load(connection, found, rows_of)
        finally:
            opened.dispose()
    with open_store(address) as store:
        problems = [*store.verify([found.seal] if found.seal else [])]
        with store.connection() as connection:
            rows = {name: _count(connection, metadata.tables[name]) for name in found.rows if name in metadata.tables}
    if short := {name: n for name, n in found.rows.items() if rows.get(name, n) < n}:
        raise StoreError(f"{shown}: found fewer rows than the backup has in {', '.join(short)}; restore it again")
    return Restored(shown, rows, tuple(problems))


def rows_hash(store: Store) -> str:
    """The hash of every row of a store but LEFT_OUT: two stores of one hash hold the same, however their files lie."""
    digest = hashlib.sha256()
    with store.connection(steady=True) as connection:
        for table in metadata.sorted_tables:
            if table.name in LEFT_OUT:
                continue
            digest.update(f"{table.name}\n".encode())
            for row in connection.execution_options(yield_per=CHUNK).execute(_in_order(table)).mappings():
                digest.update(_line(row).encode())
    return f"rows:{digest.hexdigest()}"


Rows = Callable[[str], Iterable[dict[str, Any]]]


def _dump(store: Store, directory: Path, path: Path, now: float) -> Backup:
    tables: dict[str, dict[str, Any]] = {}
    with store.connection(steady=True) as connection:
        for table in metadata.sorted_tables:
            if table.name in LEFT_OUT:
                continue
            file = directory / f"{table.name}.jsonl"
            n = _write_rows(file, connection.execution_options(yield_per=CHUNK).execute(_in_order(table)).mappings())
            tables[table.name] = {"n": n, "hash": file_hash(file)}
        last = connection.execute(select(people.seals).order_by(people.seals.c.seq.desc()).limit(1)).first()
    line = None if last is None else seals.seal_of(last).line
    content = {"format": FORMAT, "version": HEAD, "made_at": float(now), "seal": line, "tables": tables}
    write_json(directory / "manifest.json", content | {"id": content_id("backup", content)})
    return Backup(path, HEAD, {name: each["n"] for name, each in tables.items()}, line)


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    n = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(_line(row))
            n += 1
    return n


def _in_order(table: sa.Table) -> sa.Select[Any]:
    return select(table).order_by(*([table.c.seq] if "seq" in table.c else list(table.primary_key)))


def _line(row: Mapping[str, Any]) -> str:
    # a number that is not one is kept as well: a backup that refuses is worse than one that says Infinity
    return json.dumps(dict(row), ensure_ascii=False, separators=(",", ":")) + "\n"


def _copy_file(store: Store, path: Path) -> Backup:
    staging = path.with_name(f".{path.name}.part")
    try:
        with _private():
            path.parent.mkdir(parents=True, exist_ok=True)
            staging.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(staging)) as copy:
                store.copy_pages(copy)
                if (found := copy.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                    raise StoreError(f"{store.address}: {' '.join(found.split())}; nothing was copied, {engine.BROKEN}")
                copy.execute("PRAGMA secure_delete = ON")
                for name in LEFT_OUT:
                    copy.execute(f"DELETE FROM {name}")
                copy.commit()
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        with _open_backup(staging) as (held, _):
            os.replace(staging, path)
    except OSError as error:
        raise disk_error(path, error) from None
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be written ({error}); nothing half-written is left") from None
    finally:
        staging.unlink(missing_ok=True)
    return Backup(path, held.version, held.rows, held.seal)


@contextlib.contextmanager
def _open_backup(path: Path) -> Iterator[tuple[Backup, Rows]]:
    """What a backup holds, and its rows by the table's name."""
    if path.is_dir():
        found = _read_manifest(path)
        yield found, lambda name: _read_rows(path / f"{name}.jsonl")
        return
    if not path.is_file():
        raise StoreError(f"{path}: nothing is there; expected a backup, a directory or a .db file")
    url = sa.URL.create(
        "sqlite", database=f"file:{path.resolve()}", query={"mode": "ro", "immutable": "1", "uri": "true"}
    )
    opened = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.one_line(str(path)), opened.connect() as connection:
            there = sa.MetaData()
            there.reflect(connection)
            if "alembic_version" not in there.tables:
                raise StoreError(f"{path}: found no table alembic_version; expected the backup of a karat store")
            version = str(connection.execute(select(there.tables["alembic_version"].c.version_num)).scalar())
            _check_version(path, version)
            kept = [name for name in there.tables if name not in (*LEFT_OUT, "alembic_version")]
            last = None
            if "seals" in there.tables:
                table = there.tables["seals"]
                last = connection.execute(select(table).order_by(table.c.seq.desc()).limit(1)).first()
            rows = {name: _count(connection, there.tables[name]) for name in sorted(kept)}

            def rows_of(name: str) -> Iterable[dict[str, Any]]:
                return map(dict, connection.execute(select(there.tables[name])).mappings())

            yield Backup(path, version, rows, None if last is None else seals.seal_of(last).line), rows_of
    finally:
        opened.dispose()


def _read_manifest(path: Path) -> Backup:
    try:
        content = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        stated = content.pop("id")
        if content["format"] != FORMAT:
            raise StoreError(f"{path}: found the format {content['format']!r}; expected {FORMAT!r}")
        if content_id("backup", content) != stated:
            raise StoreError(f"{path / 'manifest.json'}: its content does not give its id: it was altered")
        _check_version(path, content["version"])
        for name, said in content["tables"].items():
            if file_hash(path / f"{name}.jsonl") != said["hash"]:
                raise StoreError(f"{path / name}.jsonl: differs from its hash in the manifest: damaged or altered")
        rows = {name: int(said["n"]) for name, said in content["tables"].items()}
        return Backup(path, content["version"], rows, content["seal"])
    except FileNotFoundError as error:
        raise StoreError(f"{error.filename}: no such file; expected a backup written by karat") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: not readable as a backup ({type(error).__name__}: {error})") from None


def _check_version(path: Path, version: str) -> None:
    if version not in (*OLDER, HEAD):
        raise StoreError(
            f"{path}: found a backup of version {version!r}, expected {HEAD!r} or older; "
            "it was written by a newer karat: install that version to restore it"
        )


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def _load(connection: Connection, found: Backup, rows_of: Rows) -> None:
    """Make the tables of the backup's version, fill them, and bring them to this one."""
    config = engine.alembic_config(connection)
    command.upgrade(config, found.version)
    there = sa.MetaData()
    there.reflect(connection)
    for table in there.sorted_tables:
        if table.name not in found.rows:
            continue
        some: list[dict[str, Any]] = []
        for row in rows_of(table.name):
            some.append(row)
            if len(some) == CHUNK:
                connection.execute(table.insert(), some)
                some = []
        if some:
            connection.execute(table.insert(), some)
        if connection.dialect.name == "postgresql" and "seq" in table.c:
            # the next row goes on where the backup stops
            top = select(sa.func.max(table.c.seq)).scalar_subquery()
            connection.execute(
                select(sa.func.setval(f"{table.name}_seq_seq", sa.func.coalesce(top, 1), top.is_not(None)))
            )
    command.upgrade(config, HEAD)


def _count(connection: Connection, table: sa.Table) -> int:
    return connection.execute(select(sa.func.count()).select_from(table)).scalar_one()


@contextlib.contextmanager
def _private() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
