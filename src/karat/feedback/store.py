"""The append-only store of feedback: texts, raters, tasks, leases and judgements.

One database holds one project's feedback, whoever gave it: people, models and simulated raters are clients of the
same functions. What was acknowledged is on the disk; a judgement is never changed, only superseded by a newer one.
Knows transactions and identities; knows nothing about training, and no client of it reads the tables.

Moving from SQLite to PostgreSQL changes the URL and nothing else: what is said here is plain SQL, and what SQLite
needs to be safe (WAL, foreign keys, `BEGIN IMMEDIATE` for every write) hangs on its connections only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, event, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from karat.errors import StoreError
from karat.feedback import leases
from karat.feedback import schema as tables
from karat.feedback.leases import Lease
from karat.feedback.schema import HEAD, StoredJudgement, judgement_rows, stored_judgement
from karat.records import Annotator, Judgement, Prompt, Response, Task

WRITE = "karat_write"
MIGRATIONS = Path(__file__).with_name("migrations")


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


@dataclass(frozen=True)
class Problem:
    """Something in the store that is not what was submitted."""

    judgement_id: str
    """Whose record it is."""
    what: str
    """What was found and what was expected, in one sentence."""


def open_store(url_or_path: str | Path, *, busy_timeout_s: float = 30.0) -> Store:
    """The store at a path or SQLAlchemy URL, made or brought to the current version if need be.

    Args:
        busy_timeout_s: seconds to wait for another writer before giving up.
    Raises: StoreError (one line) where it cannot be opened, is no karat store, or is of a newer version.
    """
    address = str(url_or_path)
    url = address if "://" in address else f"sqlite:///{address}"
    with _one_line(address):
        engine = sa.create_engine(url, connect_args={"timeout": busy_timeout_s} if url.startswith("sqlite") else {})
        if engine.dialect.name == "sqlite":
            _make_sqlite_safe(engine, busy_timeout_s)
    store = Store(engine, address)
    try:
        store._migrate()
    except BaseException:
        store.close()
        raise
    return store


class Store:
    """One open store; made by `open_store`. Safe for several threads and several processes."""

    def __init__(self, engine: Engine, address: str) -> None:
        self._engine = engine
        self._address = address

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    # What can be judged, and by whom

    def add_prompts(self, prompts: Iterable[Prompt]) -> int:
        """Store prompts that are not there yet. Returns: how many were new."""
        return self._write(lambda connection: _add(connection, tables.prompts, map(tables.prompt_row, prompts)))

    def add_responses(self, responses: Iterable[Response]) -> int:
        """Store responses that are not there yet; their prompts must be. Returns: how many were new."""
        return self._write(lambda connection: _add_responses(connection, responses))

    def add_annotators(self, annotators: Iterable[Annotator]) -> int:
        """Store raters that are not there yet. Returns: how many were new."""
        return self._write(lambda connection: _add_annotators(connection, annotators))

    def add_tasks(self, new: Iterable[Task]) -> int:
        """Queue tasks that are not there yet; their texts must be. Returns: how many were new."""
        return self._write(lambda connection: _add_tasks(connection, new))

    def ingest(
        self,
        *,
        prompts: Iterable[Prompt] = (),
        responses: Iterable[Response] = (),
        annotators: Iterable[Annotator] = (),
        new_tasks: Iterable[Task] = (),
        judgements: Sequence[Judgement] = (),
        provenance: Mapping[str, Provenance] | None = None,
        now: float = 0.0,
    ) -> int:
        """Everything of one import in one transaction: all of it or nothing.

        Args:
            provenance: by submission key.    now: seconds since the epoch, for leases that may be open.
        Returns: how many judgements were new.
        """

        def write(connection: Connection) -> int:
            _add(connection, tables.prompts, map(tables.prompt_row, prompts))
            _add_responses(connection, responses)
            _add_annotators(connection, annotators)
            _add_tasks(connection, new_tasks)
            keyed, _, stored = _split_known(connection, judgements)
            return len(_insert_new(connection, keyed, stored, now=now, provenance=provenance or {}))

        return self._write(write)

    # Judging

    def lease_next(
        self, annotator_id: str, now: float, lease_s: float = 600.0, *, batch: str | None = None
    ) -> Lease | None:
        """The next task for a rater: her own live lease if she holds one, else the first that needs answers.

        A task is never held by more raters than it needs answers; a rater who answered or skipped it does not get
        it again; an expired lease is offered to others.

        Args:
            now: seconds since the epoch.    lease_s: seconds until it expires.    batch: only tasks of this batch.
        Returns: the lease, or None where nothing is left for this rater.
        Raises: StoreError for a rater the store does not know.
        """

        def write(connection: Connection) -> Lease | None:
            _require(connection, tables.annotators, {annotator_id}, "the rater", "add_annotators")
            return leases.next_lease(connection, annotator_id, now=now, lease_s=lease_s, batch=batch)

        return self._write(write)

    def lease_many(self, pairs: Sequence[tuple[str, str]], now: float, lease_s: float = 600.0) -> list[Lease | None]:
        """Leases on named (task id, rater id) pairs in one transaction, under the same rules as `lease_next`.

        Returns: one entry a pair, None where the task is full or the rater has answered or skipped it.
        """

        def write(connection: Connection) -> list[Lease | None]:
            _require(connection, tables.annotators, {who for _, who in pairs}, "the rater", "add_annotators")
            return leases.lease_pairs(connection, pairs, now=now, lease_s=lease_s)

        return self._write(write)

    def heartbeat(self, lease_id: str, annotator_id: str, now: float, lease_s: float = 600.0) -> float:
        """Extend a live lease. Returns: its new expiry. Raises: LeaseError where it is not live or not hers."""
        return self._write(
            lambda connection: leases.extend_lease(connection, lease_id, annotator_id, now=now, lease_s=lease_s)
        )

    def skip(self, lease_id: str, annotator_id: str, reason: str) -> None:
        """Give a task back for good, with a reason. Raises: LeaseError where the lease is not hers."""
        self._write(lambda connection: leases.skip_lease(connection, lease_id, annotator_id, reason=reason))

    def skips(self) -> list[tuple[str, str, str]]:
        """(task id, rater id, reason) of every skipped task."""
        columns = tables.assignments.c
        question = select(columns.task_id, columns.annotator, columns.skip_reason).where(columns.state == "skipped")
        with self._connection() as connection:
            return [tuple(row) for row in connection.execute(question.order_by(columns.task_id, columns.annotator))]

    def submit(self, judgement: Judgement, *, now: float = 0.0) -> StoredJudgement:
        """Store one judgement and close its lease; when this returns it is on the disk.

        Sent again with the same submission key and the same content (`created_at` aside, which the server may set),
        the stored judgement comes back and nothing is added. A judgement whose lease had expired is stored and
        marked late.

        Raises: StoreError for a key that was used for another content, or an unknown task, rater or text.
        """
        return self.submit_many([judgement], now=now)[0]

    def submit_many(self, judgements: Sequence[Judgement], *, now: float = 0.0) -> list[StoredJudgement]:
        """`submit` for many in one transaction: all are stored or none. Returns: them as stored, in their order."""
        return self._write(lambda connection: _submit(connection, judgements, now=now))

    def erase_words(self, judgement_ids: Sequence[str]) -> int:
        """Delete the words and salts of judgements for good; their records and commitments stay.

        Returns: how many had words. Raises: StoreError for an unknown judgement.
        """

        def write(connection: Connection) -> int:
            _require(connection, tables.judgements, set(judgement_ids), "the judgement", "check the id")
            n_erased = 0
            for start in range(0, len(judgement_ids), leases.CHUNK):
                some = judgement_ids[start : start + leases.CHUNK]
                n_erased += connection.execute(
                    tables.words.delete().where(tables.words.c.judgement_id.in_(some))
                ).rowcount
                connection.execute(tables.salts.delete().where(tables.salts.c.judgement_id.in_(some)))
            return n_erased

        n_erased = self._write(write)
        if self._engine.dialect.name == "sqlite":
            with _one_line(self._address):  # or the words would live on in the log of old pages
                raw = self._engine.raw_connection()
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                raw.close()
        return n_erased

    # Reading

    def prompts(self) -> dict[str, Prompt]:
        """Every prompt by its id."""
        with self._connection() as connection:
            rows = connection.execute(select(tables.prompts).order_by(tables.prompts.c.id))
            return {row.id: tables.prompt_of(row) for row in rows}

    def responses(self) -> dict[str, Response]:
        """Every response by its id."""
        with self._connection() as connection:
            rows = connection.execute(select(tables.responses).order_by(tables.responses.c.id))
            return {row.id: tables.response_of(row) for row in rows}

    def annotators(self) -> dict[str, Annotator]:
        """Every rater by id."""
        with self._connection() as connection:
            rows = connection.execute(select(tables.annotators).order_by(tables.annotators.c.id))
            return {row.id: Annotator(row.id, row.origin, row.grp) for row in rows}

    def tasks(self, *, batch: str | None = None) -> list[Task]:
        """Tasks in the order in which they were queued."""
        question = select(tables.tasks).order_by(tables.tasks.c.seq)
        if batch is not None:
            question = question.where(tables.tasks.c.batch == batch)
        with self._connection() as connection:
            return [tables.task_of(row) for row in connection.execute(question)]

    def assignments(self, *, batch: str | None = None) -> dict[tuple[str, str], str]:
        """State of every (task id, rater id) pair that was ever leased or answered: leased, submitted or skipped."""
        columns = tables.assignments.c
        question = select(columns.task_id, columns.annotator, columns.state)
        if batch is not None:
            question = question.join(tables.tasks, tables.tasks.c.id == columns.task_id)
            question = question.where(tables.tasks.c.batch == batch)
        with self._connection() as connection:
            return {(row.task_id, row.annotator): row.state for row in connection.execute(question)}

    def records(self, *, batch: str | None = None) -> list[StoredJudgement]:
        """Every judgement as stored, in order of arrival."""
        question = _judgement_question().order_by(tables.judgements.c.seq)
        if batch is not None:
            question = question.join(tables.tasks, tables.tasks.c.id == tables.judgements.c.task_id)
            question = question.where(tables.tasks.c.batch == batch)
        with self._connection() as connection:
            return [stored_judgement(row) for row in connection.execute(question)]

    def judgements(self) -> list[Judgement]:
        """Every judgement, in order of arrival."""
        return [record.judgement for record in self.records()]

    def provenance(self) -> dict[str, Provenance]:
        """Where imported judgements came from, by judgement id."""
        with self._connection() as connection:
            rows = connection.execute(select(tables.provenance))
            return {row.judgement_id: Provenance(row.file, row.line, row.session, row.accepted_at) for row in rows}

    def n_judgements(self) -> int:
        """How many judgements there are."""
        with self._connection() as connection:
            return _count(connection, tables.judgements)

    def verify(self) -> list[Problem]:
        """Recompute every commitment and text identity; erased words are no problem, altered ones are."""
        problems: list[Problem] = []
        with self._connection() as connection:
            question = _judgement_question().add_columns(tables.salts.c.salt)
            question = question.outerjoin(tables.salts, tables.salts.c.judgement_id == tables.judgements.c.id)
            for row in connection.execute(question.order_by(tables.judgements.c.seq)):
                if row.salt is None:
                    continue
                record = stored_judgement(row)
                if tables.commitment_of(record.judgement, row.salt) != record.commitment:
                    problems.append(Problem(record.id, "the stored event differs from its commitment: it was altered"))
        for response_id, response in self.responses().items():
            if response.id != response_id:
                problems.append(Problem(response_id, "the stored response differs from its identity: it was altered"))
        for prompt_id, prompt in self.prompts().items():
            if prompt.id != prompt_id:
                problems.append(Problem(prompt_id, "the stored prompt differs from its identity: it was altered"))
        return problems

    # Transactions

    @contextlib.contextmanager
    def _connection(self, *, write: bool = False) -> Iterator[Connection]:
        with _one_line(self._address), self._engine.connect() as raw:
            connection = raw.execution_options(**{WRITE: write})
            with connection.begin():
                yield connection

    def _write(self, change: Callable[[Connection], Any]) -> Any:
        with self._connection(write=True) as connection:
            return change(connection)

    def _migrate(self) -> None:
        with self._connection() as connection:
            if _version(connection, self._address) == HEAD:
                return
        with self._connection(write=True) as connection:
            # asked again, because another process may have migrated it meanwhile
            version = _version(connection, self._address)
            if version == HEAD:
                return
            if version is not None:
                raise StoreError(
                    f"{self._address}: found a store of version {version!r}, expected {HEAD!r} or older; "
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
def _one_line(address: str) -> Iterator[None]:
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


def _judgement_question() -> sa.Select:
    joined = tables.judgements.outerjoin(tables.words, tables.words.c.judgement_id == tables.judgements.c.id)
    return select(tables.judgements, tables.words.c.words).select_from(joined)


def _count(connection: Connection, table: sa.Table) -> int:
    return connection.execute(select(sa.func.count()).select_from(table)).scalar_one()


def _known(connection: Connection, column: sa.Column, keys: Iterable[str]) -> set[str]:
    wanted = sorted(keys)
    found: set[str] = set()
    for start in range(0, len(wanted), leases.CHUNK):
        found.update(
            connection.execute(select(column).where(column.in_(wanted[start : start + leases.CHUNK]))).scalars()
        )
    return found


def _require(connection: Connection, table: sa.Table, keys: set[str], what: str, remedy: str) -> None:
    unknown = keys - _known(connection, table.c.id, keys)
    if unknown:
        raise StoreError(f"found {what} {min(unknown)!r}, which is not in the store; {remedy} first")


def _add(connection: Connection, table: sa.Table, rows: Iterable[dict[str, Any]]) -> int:
    by_id = {row["id"]: row for row in rows}
    known = _known(connection, table.c.id, by_id)
    new = [row for key, row in by_id.items() if key not in known]
    if new:
        connection.execute(table.insert(), new)
    return len(new)


def _add_responses(connection: Connection, responses: Iterable[Response]) -> int:
    rows = [tables.response_row(response) for response in responses]
    _require(connection, tables.prompts, {row["prompt_id"] for row in rows}, "the prompt", "add_prompts")
    return _add(connection, tables.responses, rows)


def _add_annotators(connection: Connection, annotators: Iterable[Annotator]) -> int:
    rows = ({"id": who.id, "origin": who.origin, "grp": who.group} for who in annotators)
    return _add(connection, tables.annotators, rows)


def _add_tasks(connection: Connection, new: Iterable[Task]) -> int:
    new = list(new)
    _require(connection, tables.prompts, {task.prompt_id for task in new}, "the prompt", "add_prompts")
    named = {response_id for task in new for response_id in task.response_ids}
    _require(connection, tables.responses, named, "the response", "add_responses")
    return _add(connection, tables.tasks, map(tables.task_row, new))


def _submit(connection: Connection, judgements: Sequence[Judgement], *, now: float) -> list[StoredJudgement]:
    """Store judgements whose key is new, and return all of them as stored."""
    keyed, keys, stored = _split_known(connection, judgements)
    new = _insert_new(connection, keyed, stored, now=now, provenance={})
    stored |= _stored_by_key(connection, new)
    return [stored[key] for key in keys]


def _split_known(
    connection: Connection, judgements: Sequence[Judgement]
) -> tuple[dict[str, Judgement], list[str], dict[str, StoredJudgement]]:
    """Judgements by submission key, the keys in the order given, and what is stored under them already."""
    keyed: dict[str, Judgement] = {}
    keys: list[str] = []
    for judgement in map(_with_floats, judgements):
        key = judgement.submission or tables.UNNAMED + judgement.id
        if key in keyed and not _same_content(keyed[key], judgement):
            raise _reused(key)
        keyed.setdefault(key, judgement)
        keys.append(key)
    stored = _stored_by_key(connection, keyed)
    for key, record in stored.items():
        if not record.erased and not _same_content(record.judgement, keyed[key]):
            raise _reused(key)
    return keyed, keys, stored


def _insert_new(
    connection: Connection,
    keyed: Mapping[str, Judgement],
    stored: Mapping[str, StoredJudgement],
    *,
    now: float,
    provenance: Mapping[str, Provenance],
) -> list[str]:
    """Insert what is not stored; returns its keys."""
    new = [judgement for key, judgement in keyed.items() if key not in stored]
    if not new:
        return []
    _check_new(connection, new)
    late = leases.close_leases(connection, [(each.task_id, each.annotator) for each in new], now=now)
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
    return [key for key in keyed if key not in stored]


def _check_new(connection: Connection, new: Sequence[Judgement]) -> None:
    _require(connection, tables.tasks, {each.task_id for each in new}, "the task", "add_tasks")
    _require(connection, tables.annotators, {each.annotator for each in new}, "the rater", "add_annotators")
    earlier = {each.supersedes: each.annotator for each in new if each.supersedes is not None}
    columns = tables.judgements.c
    for judgement_id, annotator in earlier.items():
        owner = connection.execute(select(columns.annotator).where(columns.id == judgement_id)).scalar()
        if owner != annotator:
            raise StoreError(
                f"judgement by {annotator!r} supersedes {judgement_id!r}, which is not an earlier judgement of hers; "
                "correct only your own"
            )
    named = {each.task_id for each in new}
    asked: dict[str, tuple[str, str]] = {}
    wanted = sorted(named)
    for start in range(0, len(wanted), leases.CHUNK):
        some = tables.tasks.c.id.in_(wanted[start : start + leases.CHUNK])
        for row in connection.execute(select(tables.tasks).where(some)):
            asked[row.id] = (row.prompt_id, row.response_ids)
    for each in new:
        if asked[each.task_id] != (each.prompt_id, tables.json_text(each.response_ids)):
            raise StoreError(
                f"judgement of task {each.task_id} names prompt {each.prompt_id} and responses "
                f"{', '.join(each.response_ids)}; expected those of the task"
            )


def _stored_by_key(connection: Connection, keys: Iterable[str]) -> dict[str, StoredJudgement]:
    wanted = list(keys)
    column = tables.judgements.c.submission
    found: dict[str, StoredJudgement] = {}
    for start in range(0, len(wanted), leases.CHUNK):
        question = _judgement_question().where(column.in_(wanted[start : start + leases.CHUNK]))
        found.update((row.submission, stored_judgement(row)) for row in connection.execute(question))
    return found


def _same_content(first: Judgement, second: Judgement) -> bool:
    return first == second or first.id == dataclasses.replace(second, created_at=first.created_at).id


def _reused(key: str) -> StoreError:
    return StoreError(f"submission {key!r} was used for another judgement; expected one key for each submission")


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
