"""The append-only store of feedback: texts, raters, tasks, leases and judgements.

One database holds one project's feedback, whoever gave it: people, models and simulated raters are clients of the
same functions. What was acknowledged is on the disk; a judgement is never changed, only superseded by a newer one.
Knows transactions and identities; knows nothing about training, and no client of it reads the tables.

Moving from SQLite to PostgreSQL changes the URL and nothing else: what is said here is plain SQL, and what SQLite
needs to be safe (WAL, foreign keys, `BEGIN IMMEDIATE` for every write) hangs on its connections only.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, select

from karat.errors import StoreError
from karat.feedback import additions, leases, submission
from karat.feedback import schema as tables
from karat.feedback.engine import (
    BROKEN,
    file_of,
    migrate,
    one_line,
    open_engine,
    repeatable,
    require_file,
    scrub,
    shown_address,
    transaction,
)
from karat.feedback.leases import Lease
from karat.feedback.record.verification import Problem, file_problems, store_problems
from karat.feedback.schema import StoredJudgement, stored_judgement
from karat.feedback.submission import Provenance
from karat.progress import Progress, counted
from karat.records import Annotator, Judgement, Prompt, Response, Task

__all__ = ["Lease", "Problem", "Provenance", "Store", "StoredJudgement", "open_store", "store_to_fill"]

T = TypeVar("T")
MOST_ATTEMPTS = 20
"""Times that a transaction is done again because another came between; each time another one has got through."""


def open_store(url_or_path: str | Path, *, busy_timeout_s: float = 30.0, create: bool = True) -> Store:
    """The store at a path or SQLAlchemy URL, made or brought to the current version if need be.

    Args:
        busy_timeout_s: seconds to wait for another writer before giving up.
        create: False = there must be one already: what only reads or keeps a store never makes an empty one.
    Raises: StoreError (one line) where it cannot be opened, is no karat store, is of a newer version, or is not there.
    """
    address = shown_address(str(url_or_path))
    if not create:
        require_file(str(url_or_path))
    engine = open_engine(str(url_or_path), busy_timeout_s)
    store = Store(engine, address)
    try:
        migrate(engine, address, create=create)
    except BaseException:
        store.close()
        raise
    return store


@contextlib.contextmanager
def store_to_fill(address: str) -> Iterator[Store]:
    """`open_store` for a block; a file that is not there yet takes its place only when the block ends without an error.

    Raises: as `open_store` and `whole_file`.
    """
    with whole_file(address) as target, open_store(target) as store:
        store.address = shown_address(address)
        yield store


@contextlib.contextmanager
def whole_file(address: str) -> Iterator[str]:
    """Within: where to make a store that is to appear at an address when it is whole; where something is already, there.

    Raises: StoreError where somebody else has made something at its place meanwhile.
    """
    place = file_of(address)
    if place is None or place.exists() or not os.access(place.parent, os.W_OK):  # opening it says what is wrong
        yield address
        return
    # One fixed name beside it: what a killed process left behind is removed by its successor.
    partial = place.with_name(f".{place.name}.part")
    _remove(partial)
    try:
        yield str(partial)
        try:
            os.link(partial, place)  # which replaces nothing
        except FileExistsError:
            raise StoreError(
                f"{place}: was made by another command meanwhile; nothing was stored. Repeat the command"
            ) from None
    finally:
        _remove(partial)


def _remove(file: Path) -> None:
    """Remove a SQLite database with what lies beside it."""
    for ending in ("", "-wal", "-shm", "-turn"):
        file.with_name(file.name + ending).unlink(missing_ok=True)


class Named(dict[str, T]):
    """What a store holds, by id; what its judgements name and is not there ends in a StoreError that says so."""

    def __init__(self, address: str, what: str, pairs: Iterable[tuple[str, T]]) -> None:
        super().__init__(pairs)
        self.address, self.what = address, what

    def __missing__(self, key: str) -> T:
        raise StoreError(f"{self.address}: found no {self.what} {key!r}, which a judgement names; {BROKEN}")


class Store:
    """One open store; made by `open_store`. Safe for several threads and several processes."""

    def __init__(self, engine: Engine, address: str) -> None:
        self._engine = engine
        weakref.finalize(self, engine.dispose)  # a forgotten store gives its connections back too
        self.address = address
        """The path or URL that it was opened with, without a password: for messages."""
        self.progress: Progress | None = None
        """Where imports show how far they are; None = nobody watches."""

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
        prompts = list(prompts)
        return self.write(lambda connection: additions.add_prompts(connection, prompts))

    def add_responses(self, responses: Iterable[Response]) -> int:
        """Store responses that are not there yet; their prompts must be. Returns: how many were new."""
        responses = list(responses)
        return self.write(lambda connection: additions.add_responses(connection, responses))

    def add_annotators(self, annotators: Iterable[Annotator]) -> int:
        """Store raters that are not there yet. Returns: how many were new."""
        annotators = list(annotators)
        return self.write(lambda connection: additions.add_annotators(connection, annotators))

    def add_tasks(self, new: Iterable[Task]) -> int:
        """Queue tasks that are not there yet; their texts must be. Returns: how many were new."""
        new = list(new)
        return self.write(lambda connection: additions.add_tasks(connection, new))

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

        texts, answers, raters, queued = list(prompts), list(responses), list(annotators), list(new_tasks)

        def write(connection: Connection) -> int:
            additions.add_prompts(connection, texts)
            additions.add_responses(connection, answers)
            additions.add_annotators(connection, raters)
            additions.add_tasks(connection, queued)
            return submission.submit_imported(connection, judgements, provenance or {}, now=now, count=count)

        with counted(self.progress, "storing", "answers", announced=False) as count:
            return self.write(write)

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
            additions.require(connection, tables.annotators, {annotator_id}, "the rater", "add_annotators")
            return leases.next_lease(connection, annotator_id, now=now, lease_s=lease_s, batch=batch)

        return self.write(write)

    def lease_many(self, pairs: Sequence[tuple[str, str]], now: float, lease_s: float = 600.0) -> list[Lease | None]:
        """Leases on named (task id, rater id) pairs in one transaction, under the same rules as `lease_next`.

        Returns: one entry a pair, None where the task is full or the rater has answered or skipped it.
        """

        def write(connection: Connection) -> list[Lease | None]:
            additions.require(connection, tables.annotators, {who for _, who in pairs}, "the rater", "add_annotators")
            return leases.lease_pairs(connection, pairs, now=now, lease_s=lease_s)

        return self.write(write)

    def heartbeat(self, lease_id: str, annotator_id: str, now: float, lease_s: float = 600.0) -> float:
        """Extend a live lease. Returns: its new expiry. Raises: LeaseError where it is not live or not hers."""
        return self.write(
            lambda connection: leases.extend_lease(connection, lease_id, annotator_id, now=now, lease_s=lease_s)
        )

    def skip(self, lease_id: str, annotator_id: str, reason: str) -> None:
        """Give a task back for good, with a reason. Raises: LeaseError where the lease is not hers."""
        self.write(lambda connection: leases.skip_lease(connection, lease_id, annotator_id, reason=reason))

    def skips(self) -> list[tuple[str, str, str]]:
        """(task id, rater id, reason) of every skipped task."""
        columns = tables.assignments.c
        question = select(columns.task_id, columns.annotator, columns.skip_reason).where(columns.state == "skipped")
        with self.connection() as connection:
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
        return self.write(lambda connection: submission.submit(connection, judgements, now=now))

    def erase_words(
        self, judgement_ids: Sequence[str], *, reason: str = "on request", by: str = "operator", now: float = 0.0
    ) -> int:
        """Delete the words and salts of judgements for good; their records and commitments stay.

        Returns: how many had words. Raises: StoreError for an unknown judgement.
        """
        ids = list(judgement_ids)
        done = self.write(lambda connection: submission.erase_words(connection, ids, reason=reason, by=by, now=now))
        self.scrub()
        return len(done)

    def scrub(self) -> None:
        """Overwrite what was deleted, so that it cannot be read from the store's files any more.

        On PostgreSQL the tables that held words are written anew, for which writers wait a moment; its log of old
        pages (WAL) and its archives are the server's own, and forget in their own time.
        """
        scrub(self._engine, self.address)

    def copy_pages(self, target: sqlite3.Connection) -> None:
        """Copy a SQLite store page by page into an empty database, as it is at one moment."""
        with one_line(self.address), contextlib.closing(self._engine.raw_connection()) as raw:
            raw.driver_connection.backup(target)

    # Reading

    def prompts(self) -> dict[str, Prompt]:
        """Every prompt by its id."""
        with self.connection() as connection:
            rows = connection.execute(select(tables.prompts).order_by(tables.prompts.c.id))
            return Named(self.address, "prompt", ((row.id, tables.prompt_of(row)) for row in rows))

    def responses(self) -> dict[str, Response]:
        """Every response by its id."""
        with self.connection() as connection:
            rows = connection.execute(select(tables.responses).order_by(tables.responses.c.id))
            return Named(self.address, "response", ((row.id, tables.response_of(row)) for row in rows))

    def annotators(self) -> dict[str, Annotator]:
        """Every rater by id."""
        with self.connection() as connection:
            rows = connection.execute(select(tables.annotators).order_by(tables.annotators.c.id))
            return Named(self.address, "rater", ((row.id, Annotator(row.id, row.origin, row.grp)) for row in rows))

    def tasks(self, *, batch: str | None = None) -> list[Task]:
        """Tasks in the order in which they were queued."""
        question = select(tables.tasks).order_by(tables.tasks.c.seq)
        if batch is not None:
            question = question.where(tables.tasks.c.batch == batch)
        with self.connection() as connection:
            return [tables.task_of(row) for row in connection.execute(question)]

    def assignments(self, *, batch: str | None = None) -> dict[tuple[str, str], str]:
        """State of every (task id, rater id) pair that was ever leased or answered: leased, submitted or skipped."""
        columns = tables.assignments.c
        question = select(columns.task_id, columns.annotator, columns.state)
        if batch is not None:
            question = question.join(tables.tasks, tables.tasks.c.id == columns.task_id)
            question = question.where(tables.tasks.c.batch == batch)
        with self.connection() as connection:
            return {(row.task_id, row.annotator): row.state for row in connection.execute(question)}

    def records(self, *, batch: str | None = None) -> list[StoredJudgement]:
        """Every judgement as stored, in order of arrival."""
        question = submission.judgement_question().order_by(tables.judgements.c.seq)
        if batch is not None:
            question = question.join(tables.tasks, tables.tasks.c.id == tables.judgements.c.task_id)
            question = question.where(tables.tasks.c.batch == batch)
        with self.connection() as connection:
            return [stored_judgement(row) for row in connection.execute(question)]

    def judgements(self) -> list[Judgement]:
        """Every judgement, in order of arrival."""
        return [record.judgement for record in self.records()]

    def provenance(self) -> dict[str, Provenance]:
        """Where imported judgements came from, by judgement id."""
        with self.connection() as connection:
            rows = connection.execute(select(tables.provenance))
            return {row.judgement_id: Provenance(row.file, row.line, row.session, row.accepted_at) for row in rows}

    def n_judgements(self) -> int:
        """How many judgements there are."""
        with self.connection() as connection:
            return _count(connection, tables.judgements)

    def verify(self, published: Iterable[str] = ()) -> list[Problem]:
        """What is not as it was submitted and sealed, by name; erased words are no problem, altered ones are.

        Args:
            published: lines of `Seal.line` that were noted outside the store.
        """
        with self.connection(steady=True) as connection:
            return [*file_problems(connection), *store_problems(connection, published)]

    # Transactions, for the modules of this room; what they do in one is one step or none

    @contextlib.contextmanager
    def connection(self, *, write: bool = False, steady: bool = False, durable: bool = True) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back by an exception.

        Args:
            write: True = take the writer's lock from the start; without it, changing anything is a mistake.
            steady: True = everything read belongs to one moment, whatever others commit meanwhile.
            durable: False = what is written need not survive a power cut: a lease, never an answer.
        """
        with transaction(self._engine, self.address, write=write, steady=steady, durable=durable) as connection:
            yield connection

    def write(self, change: Callable[[Connection], Any], *, durable: bool = True) -> Any:
        """What `change` returns, done in one writing transaction; done again where another came between.

        Args:
            change: may run several times, of which only the last counts.    durable: as for `connection`.
        """
        for attempt in range(MOST_ATTEMPTS):
            try:
                with self.connection(write=True, durable=durable) as connection:
                    return change(connection)
            except StoreError as error:
                if not repeatable(error) or attempt == MOST_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    @property
    def dialect(self) -> str:
        """Which database it is: sqlite or postgresql."""
        return self._engine.dialect.name


def _count(connection: Connection, table: sa.Table) -> int:
    return connection.execute(select(sa.func.count()).select_from(table)).scalar_one()
