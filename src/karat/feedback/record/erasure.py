"""Taking a person's data out on request: her words, her person, and the list of everything that fed on her votes.

What goes: the words of her judgements with the salts of their commitments, what she entered and did not send, what she
said about herself, how to reach her, her names on other platforms, her password, links and sessions, and the words in
logs about her. What stays: her votes under the pseudonym, which nothing in the store leads from to a person any more,
and every commitment and seal, which hold. A judgement whose words went is "erased", never "altered".

Knows tables, snapshots and manifests; knows nothing about models. A copy elsewhere (a backup, an export, a server's
archive of its log) is not reached from here: `Erasure.artefacts` names those that runs have made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, select

from karat.damaged import damage_named, lines_of
from karat.errors import StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback import submission
from karat.feedback.additions import require
from karat.identity import bytes_hash, file_hash
from karat.ledger.artifacts import write_bytes
from karat.ledger.lineage import SNAPSHOTS, WORDS_FILE, ArtifactRef, ErasedWords, Manifest, affected
from karat.ledger.manifest import note_erased, read_manifests, runs_within

if TYPE_CHECKING:
    from karat.feedback.store import Store

T = TypeVar("T")
ERASED = "rater erased"
"""Action of the admin log that says so; its subject is the pseudonym, or the id of an account that has none."""


@dataclass(frozen=True)
class Fed:
    """An artefact of a run that fed on a judgement, directly or through other artefacts."""

    run: Path
    """The run's directory."""
    stage: str
    """The stage that wrote it."""
    path: str
    """Relative to the run's directory."""
    hash: str
    """Its recorded hash."""
    kind: str
    """snapshot, model, …"""
    n_judgements: int | None
    """How many of the judgements it contains; None = it fed on them through a snapshot."""
    has_words: bool
    """True = words of theirs are in it, and have to be taken out of it or it has to be deleted."""


@dataclass(frozen=True)
class Erasure:
    """What was taken out, and what fed on it before."""

    judgement_ids: tuple[str, ...]
    """Every judgement that was meant, in order of id."""
    n_erased: int
    """How many of them had words, which are gone now."""
    removed: dict[str, int]
    """How many rows were deleted or emptied beside them, by table."""
    artefacts: tuple[Fed, ...]
    """What fed on these judgements in the runs that were looked at, in the order of runs and stages."""


def erase_judgements(
    store: Store, judgement_ids: Sequence[str], *, reason: str, by: str, now: float, runs: Iterable[Path] = ()
) -> Erasure:
    """Erase the words of judgements for good.

    Args:
        reason: who asked for it and why, kept.    by: Account.id of who does it.    now: seconds since the epoch.
        runs: directories of runs, or directories that hold some, in which artefacts are looked up.
    Raises: StoreError for an unknown judgement.
    """
    ids = tuple(sorted(set(judgement_ids)))
    artefacts = fed_artefacts(runs, ids)
    done = store.write(lambda connection: submission.erase_words(connection, ids, reason=reason, by=by, now=now))
    store.scrub()
    return Erasure(ids, len(done), {}, artefacts)


def erase_annotator(
    store: Store, annotator: str, *, reason: str, by: str, now: float, runs: Iterable[Path] = (), trial: bool = False
) -> Erasure:
    """Erase a rater: the words of all her judgements, and whatever leads from her pseudonym to a person.

    The seals and `Store.verify` hold afterwards. She cannot sign in any more; done twice, it changes nothing.

    Args: as for `erase_judgements`.    trial: True = only say what would be erased; everything stays.
    Raises: StoreError for an unknown rater, or for the last active admin.
    """

    def write(connection: Connection) -> tuple[list[str], dict[str, int]]:
        mine = _judgements_of(connection, annotator)
        erased = submission.erase_words(connection, mine, reason=reason, by=by, now=now) if mine else []
        removed = _remove_rater(connection, annotator)
        if erased or removed:
            _write_down(connection, by, annotator, f"{reason}; words of {len(erased)} judgements", now=now)
        return erased, removed

    with store.connection() as connection:
        require(connection, tables.annotators, {annotator}, "the rater", "check the id")
        ids = tuple(sorted(_judgements_of(connection, annotator)))
    artefacts = fed_artefacts(runs, ids)
    erased, removed = _done(store, write, trial=trial)
    return Erasure(ids, len(erased), removed, artefacts)


def erase_account(
    store: Store, account_id: str, *, reason: str, by: str, now: float, trial: bool = False
) -> dict[str, int]:
    """Erase somebody who has no pseudonym (an admin, an auditor): name, contact, password, links and sessions.

    What she decided stays, under the id of her account, which leads to nobody.

    Args: as for `erase_annotator`.
    Returns: how many rows were deleted or emptied, by table.
    Raises: StoreError for an unknown account, one with a pseudonym (`erase_annotator`), or the last active admin.
    """

    def write(connection: Connection) -> dict[str, int]:
        rows = _accounts_where(connection, people.accounts.c.id == account_id)
        if not rows or rows[0].annotator is not None:
            found = f"the pseudonym {rows[0].annotator!r}" if rows else "no account"
            raise StoreError(f"erase: found {found} for {account_id!r}; expected an account without a pseudonym")
        removed = _counted(connection, _of_accounts(connection, rows, (account_id,)))
        if removed:
            _write_down(connection, by, account_id, reason, now=now)
        return removed

    return _done(store, write, trial=trial)


class _TakenBack(Exception):
    """Ends a transaction of which nothing shall stay."""


def _done(store: Store, write: Callable[[Connection], T], *, trial: bool) -> T:
    """What a writing transaction comes to; of a trial nothing stays."""
    if not trial:
        found = store.write(write)
        store.scrub()
        return found
    tried: list[T] = []
    try:
        with store.connection(write=True) as connection:
            tried.append(write(connection))
            raise _TakenBack
    except _TakenBack:
        return tried[0]


def fed_artefacts(runs: Iterable[Path], judgement_ids: Sequence[str]) -> tuple[Fed, ...]:
    """Every artefact of these runs that fed on any of these judgements: snapshots, and what was made from them.

    A run that used what another run had made is followed too.

    Args:
        runs: directories of runs, or directories that hold some.
    Raises: StoreError where a directory holds no run; LedgerError for a damaged manifest.
    """
    wanted = set(judgement_ids)
    manifests = {run: read_manifests(run) for run in _runs_in(runs)}
    found: dict[tuple[Path, str, str], Fed] = {}
    for run, each in manifests.items():
        for stage, reference in _snapshots(each):
            n, has_words = _named_in(run / reference.path, wanted)
            if n:
                fed = Fed(run, stage, reference.path, reference.hash, reference.kind, n, has_words)
                found[run, reference.path, reference.hash] = fed
    reached = {fed.hash for fed in found.values()}
    waiting = list(reached)
    while waiting:
        digest = waiting.pop()
        for run, stage, reference in _made_from(manifests, digest):
            if (run, reference.path, reference.hash) not in found:
                fed = Fed(run, stage, reference.path, reference.hash, reference.kind, None, False)
                found[run, reference.path, reference.hash] = fed
            if reference.hash not in reached:
                reached.add(reference.hash)
                waiting.append(reference.hash)
    places = {(run, one.stage): i for run, each in manifests.items() for i, one in enumerate(each)}
    order = list(manifests)
    return tuple(sorted(found.values(), key=lambda fed: (order.index(fed.run), places[fed.run, fed.stage], fed.path)))


def erase_from_snapshots(
    artefacts: Iterable[Fed], judgement_ids: Sequence[str], *, reason: str, now: float
) -> tuple[Path, ...]:
    """Take the words of judgements out of the snapshots that hold them; `karat verify` then says "erased".

    Nothing that was computed changes: a snapshot's root and votes hold without the words.

    Args:
        artefacts: of `Erasure.artefacts` or `fed_artefacts`.    reason: kept beside the run's manifests.
    Returns: the files that were rewritten.
    """
    wanted = set(judgement_ids)
    changed = []
    places: dict[Path, list[Fed]] = {}
    for fed in artefacts:
        path = (fed.run / fed.path / WORDS_FILE).resolve()  # each reader has a way of its own to what lies beside it
        if fed.has_words and path.is_file():
            places.setdefault(path, []).append(fed)
    for path, readers in places.items():  # several rewards may have been fitted to one snapshot outside of them
        before = file_hash(path)
        lines = path.read_bytes().split(b"\n")  # words may hold every other line end
        kept = b"".join(line + b"\n" for line in lines if line and json.loads(line)["id"] not in wanted)
        after = bytes_hash(kept)
        if after == before:
            continue
        # noted first: a note without its change is harmless, a change without its note would look like tampering
        for fed in readers:
            note_erased(fed.run, ErasedWords(f"{fed.path}/{WORDS_FILE}", before, after, reason, float(now)))
        write_bytes(path, kept)
        changed.append(path)
    return tuple(changed)


def _judgements_of(connection: Connection, annotator: str) -> list[str]:
    columns = tables.judgements.c
    return list(connection.execute(select(columns.id).where(columns.annotator == annotator)).scalars())


def _remove_rater(connection: Connection, annotator: str) -> dict[str, int]:
    """Delete or empty what is about the person behind a pseudonym; how many rows, by table."""
    names = _accounts_where(connection, people.accounts.c.annotator == annotator)
    known = sorted({annotator, *(row.id for row in names), *(row.login for row in names if row.login)})
    mine = tables.judgements.c.annotator == annotator
    origins = tables.provenance.c.judgement_id.in_(select(tables.judgements.c.id).where(mine))
    given = tables.assignments.c
    changes: dict[str, sa.Delete | sa.Update] = {
        "drafts": people.drafts.delete().where(people.drafts.c.annotator == annotator),
        "demographics": people.demographics.delete().where(people.demographics.c.annotator == annotator),
        **_of_accounts(connection, names, known, acted=True),
        "assignments": tables.assignments.update()
        .where(given.annotator == annotator, given.skip_reason.is_not(None), given.skip_reason != "")
        .values(skip_reason=""),
        "provenance": tables.provenance.update()
        .where(origins, tables.provenance.c.session.is_not(None))
        .values(session=None),
        "annotators": tables.annotators.update()
        .where(tables.annotators.c.id == annotator, tables.annotators.c.grp.is_not(None))
        .values(grp=None),
        "queue_log": _emptied(people.queue_log, people.queue_log.c.by.in_(known)),
        "standing": _emptied(people.standing, people.standing.c.annotator == annotator),
        "flags": _emptied(people.flags, people.flags.c.annotator == annotator),
    }
    return _counted(connection, changes)


def _accounts_where(connection: Connection, which: sa.ColumnElement[bool]) -> Sequence[sa.Row]:
    columns = people.accounts.c
    return connection.execute(select(columns.id, columns.login, columns.annotator).where(which)).all()


def _of_accounts(
    connection: Connection, rows: Sequence[sa.Row], known: Sequence[str], *, acted: bool = False
) -> dict[str, sa.Delete | sa.Update]:
    """The changes that take a person out of her accounts. Raises: StoreError where nobody would be in charge any more.

    Args: known: every name under which the log speaks of her.    acted: True = words that she wrote into it go too.
    """
    ids, accounts, log = [row.id for row in rows], people.accounts, people.admin_log.c
    active = (accounts.c.role == "admin") & (accounts.c.state == "active")
    in_charge = set(connection.execute(select(accounts.c.id).where(active).with_for_update()).scalars())
    if in_charge and in_charge <= set(ids):
        raise StoreError("erase: this is the last active admin; make another account an admin first")
    unknown = {"login": None, "password": None, "contact": None, "outside": None, "state": "locked"}
    still = [accounts.c[name].is_distinct_from(value) for name, value in unknown.items()]
    about = sa.or_(log.account.in_(ids if acted else []), log.subject.in_(known)) & (log.action != ERASED)
    return {
        "invites": people.invites.delete().where(people.invites.c.account.in_(ids)),
        "sessions": people.sessions.delete().where(people.sessions.c.account.in_(ids)),
        "accounts": accounts.update().where(accounts.c.id.in_(ids), sa.or_(*still)).values(**unknown),
        "admin_log": _emptied(people.admin_log, about),
    }


def _counted(connection: Connection, changes: Mapping[str, sa.Delete | sa.Update]) -> dict[str, int]:
    counts = {name: connection.execute(change).rowcount for name, change in changes.items()}
    return {name: n for name, n in counts.items() if n}


def _write_down(connection: Connection, by: str, subject: str, detail: str, *, now: float) -> None:
    entry = {"account": by, "action": ERASED, "subject": subject, "detail": detail, "at": float(now)}
    connection.execute(people.admin_log.insert().values(**entry))


def _emptied(table: sa.Table, where: sa.ColumnElement[bool]) -> sa.Update:
    word = people.WORDS[table.name]
    return table.update().where(where, table.c[word] != "").values({word: ""})


def _runs_in(directories: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for directory in map(Path, directories):
        inside = runs_within(directory)
        if not inside:
            raise StoreError(f"{directory}: found no run; expected the directory of a run, or one that holds some")
        found += [path for path in inside if path not in found]
    return found


def _snapshots(manifests: Sequence[Manifest]) -> Iterator[tuple[str, ArtifactRef]]:
    for manifest in manifests:
        outside = [reference for reference in manifest.inputs if reference.outside]  # of no stage of the run
        for reference in (*outside, *manifest.outputs):
            if reference.kind in SNAPSHOTS:
                yield manifest.stage, reference


def _named_in(place: Path, wanted: set[str]) -> tuple[int, bool]:
    """How many of these judgements a snapshot names, and whether it holds words of any."""
    if not place.is_dir():
        return 0, False  # deleted since: nothing is left in it
    anew = "it as karat wrote it: restore it, or remove the directory; nothing is erased yet"
    with damage_named(place, "a snapshot", expected=anew):
        named = sum(one["id"] in wanted for one in lines_of(place / "commitments.jsonl"))
        spoken = any(one["id"] in wanted for one in lines_of(place / WORDS_FILE))
    return named, spoken


def _made_from(manifests: dict[Path, list[Manifest]], digest: str) -> Iterator[tuple[Path, str, ArtifactRef]]:
    """What each run made from the artefact with this hash, whoever wrote it."""
    for run, each in manifests.items():
        if any(reference.hash == digest for manifest in each for reference in (*manifest.inputs, *manifest.asked)):
            for stage, reference in affected(each, digest):
                yield run, stage, reference
