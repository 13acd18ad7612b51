"""Seals: what has happened so far, fixed under Merkle roots that are chained to one another.

A seal covers every judgement and every other event that came in since the seal before. Its leaves are kept beside it,
one a line, so that what was altered, added or removed later can be named; its hash covers the root, the counts and the
hash of the seal before. Whoever notes one line of `Seal.line` (prints it, mails it, commits it somewhere else) can
show later that nothing before it was rewritten.

A leaf holds no words and cannot be guessed: judgements enter by their salted commitment, everything else blinded with
a nonce that stays in the store. Knows commitments and order; knows nothing about what a judgement says.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from karat.errors import InputError
from karat.feedback import people_tables as people
from karat.feedback.record import merkle
from karat.feedback.schema import json_text, judgements
from karat.identity import canonical_json

if TYPE_CHECKING:
    from karat.feedback.store import Store

GENESIS = "seal:0"
"""What the first seal names as the one before it."""
LEAVES_PER_SEAL = 4096
"""A larger backlog becomes several seals, so that a row of the table stays below a megabyte."""
COMMITTED = ("seq", "id", "commitment", "late")
SEALED: Mapping[str, tuple[sa.Table, tuple[str, ...]]] = {
    "judgements": (judgements, COMMITTED),
    "documents": (people.documents, ("seq", "name", "version", "hash", "body", "created_at")),
    "erasures": (people.erasures, ("seq", "judgement_id", "reason", "by", "at")),
    "standing": (people.standing, ("seq", "annotator", "action", "by", "at")),
    "flags": (people.flags, ("seq", "annotator", "detector", "statistic", "p_value", "n_votes", "at")),
    "queue_log": (people.queue_log, ("seq", "task_id", "by", "action", "at")),
    "admin_log": (people.admin_log, ("seq", "account", "action", "subject", "at")),
}
"""What a seal covers: tables of events by name, and the columns that enter their leaves (never a person's words)."""


@dataclass(frozen=True)
class Seal:
    """One batch of events under one root."""

    seq: int
    """Number of the seal, from 1 without gaps."""
    first_judgement: int
    """seq of the first judgement in it; one more than `last_judgement` where there is none."""
    last_judgement: int
    """seq of the last judgement in it or before it."""
    n: int
    """How many judgements it covers."""
    root: str
    """`merkle:` and the root over its leaves."""
    previous: str
    """Hash of the seal before, `seal:0` for the first."""
    hash: str
    """`seal:` and the SHA-256 of everything else here."""
    sealed_at: float
    """Seconds since the epoch."""
    heads: Mapping[str, int]
    """Last number sealed so far in each table of events."""

    @property
    def line(self) -> str:
        """What to publish: number and hash, which pin everything up to this seal."""
        return f"karat-seal {self.seq} {self.hash}"


@dataclass(frozen=True)
class Problem:
    """Something in the store that is not what was submitted."""

    judgement_id: str
    """Whose record it is: a judgement's id, or the text, document or seal it is about."""
    what: str
    """What was found and what was expected, in one sentence."""


def seal(store: Store, *, now: float, nonce: str | None = None) -> Seal | None:
    """Seal everything that came in since the last seal; a judgement cannot be undone from then on.

    Args:
        now: seconds since the epoch.    nonce: hex digits, secret; None = made at random.
    Returns: the last seal made, or None where nothing new had come in.
    """

    def write(connection: Connection) -> Seal | None:
        _wait_for_writers(connection)
        last = _last(connection)
        newest = None
        while batch := _next_batch(connection, last, nonce or secrets.token_hex(16)):
            newest = last = _insert(connection, last, *batch, now=now)
        return newest

    return store.write(write)


def seals(store: Store) -> list[Seal]:
    """Every seal, oldest first."""
    with store.connection() as connection:
        return [seal_of(row) for row in connection.execute(select(people.seals).order_by(people.seals.c.seq))]


def sealed_through(store: Store) -> int:
    """seq of the last judgement that is sealed; those after it can still be undone. 0 = none is."""
    with store.connection() as connection:
        last = _last(connection)
    return 0 if last is None else last.last_judgement


def verify_seals(
    chain: Sequence[Seal], leaves: Mapping[int, Sequence[str]], published: Iterable[str] = ()
) -> list[Problem]:
    """Whether seals are what they were when they were made: hashes, chain, roots. Needs no store.

    Args:
        chain: seals in their order.    leaves: lines of leaves by the seal's number.
        published: lines of `Seal.line` noted elsewhere.
    Returns: problems by seal; empty = everything before the last seal is as it was sealed.
    Raises: InputError for a published line that is none.
    """
    problems: list[Problem] = []
    before, number = GENESIS, 0
    for one in chain:
        name = f"seal {one.seq}"
        if one.seq != number + 1:
            problems.append(Problem(f"seal {number + 1}", f"seal {one.seq} comes next; it was removed"))
        elif one.previous != before:
            problems.append(Problem(name, f"names {one.previous} as the seal before it, found {before}: altered"))
        if one.hash != seal_hash(one):
            problems.append(Problem(name, f"its content gives {seal_hash(one)}, it says {one.hash}: it was altered"))
        if (found := leaves_root(leaves.get(one.seq, ()))) != one.root:
            problems.append(Problem(name, f"its leaves give {found}, it says {one.root}: its leaves were altered"))
        before, number = one.hash, one.seq
    by_number = {one.seq: one.hash for one in chain}
    for line in published:
        seq, noted = parse_line(line)
        if by_number.get(seq) != noted:
            found = by_number.get(seq, "no such seal")
            problems.append(Problem(f"seal {seq}", f"found {found}, published was {noted}: the record was rewritten"))
    return problems


def parse_line(line: str) -> tuple[int, str]:
    """Number and hash in a published line. Raises: InputError where it is none."""
    parts = line.split()
    if len(parts) != 3 or parts[0] != "karat-seal" or not parts[1].isdecimal() or not parts[2].startswith("seal:"):
        raise InputError(f"published seal: found {line!r}; expected `karat-seal NUMBER seal:…`")
    return int(parts[1]), parts[2]


def leaves_root(lines: Sequence[str]) -> str:
    """`merkle:` and the root over lines of leaves."""
    return "merkle:" + merkle.root([merkle.leaf_hash(line.encode()) for line in lines]).hex()


def seal_hash(one: Seal) -> str:
    """The hash that a seal ought to have."""
    content = {name: value for name, value in vars(one).items() if name != "hash"}
    return "seal:" + hashlib.sha256(b"seal\0" + canonical_json(content)).hexdigest()


def seal_of(row: Any) -> Seal:
    """The seal in a row."""
    return Seal(
        seq=row.seq,
        first_judgement=row.first_judgement,
        last_judgement=row.last_judgement,
        n=row.n,
        root=row.root,
        previous=row.previous,
        hash=row.hash,
        sealed_at=row.sealed_at,
        heads=json.loads(row.heads),
    )


def leaf_line(name: str, row: Sequence[Any], nonce: str) -> str:
    """The leaf of one row of a table of events, as a line.

    ["judgements", seq, commitment, late, blinded id]; ["documents", seq, name, version, hash, hash of the body];
    any other table: [table, seq, blinded row].

    Args:
        row: the table's columns in the order of `SEALED`.
    """
    if name == "judgements":
        seq, judgement_id, commitment, late = row
        return json_text([name, seq, commitment, bool(late), blinded(nonce, [judgement_id])])
    if name == "documents":
        seq, document, version, digest, body, created_at = row
        return json_text([name, seq, document, version, digest, hashlib.sha256(body.encode()).hexdigest(), created_at])
    return json_text([name, row[0], blinded(nonce, list(row))])


def blinded(nonce: str, values: Sequence[Any]) -> str:
    """SHA-256 of the nonce and the values: without the nonce nobody can try out what they might be."""
    return hashlib.sha256(bytes.fromhex(nonce) + b"\0" + json_text(list(values)).encode()).hexdigest()


def rows_after(
    connection: Connection, name: str, after: int, *, through: int | None = None, most: int | None = None
) -> Iterator[sa.Row]:
    """Rows of a table of events by number, with the columns of `SEALED`."""
    table, columns = SEALED[name]
    question = select(*(table.c[column] for column in columns)).where(table.c.seq > after).order_by(table.c.seq)
    if through is not None:
        question = question.where(table.c.seq <= through)
    if most is not None:
        question = question.limit(most)
    yield from connection.execute(question)


def _wait_for_writers(connection: Connection) -> None:
    """On PostgreSQL a number may be given out and its row committed later: wait until no such row is on its way."""
    if connection.dialect.name != "postgresql":
        return
    connection.execute(sa.text("LOCK TABLE seals IN EXCLUSIVE MODE"))
    connection.execute(sa.text(f"LOCK TABLE {', '.join(SEALED)} IN SHARE MODE"))


def _last(connection: Connection) -> Seal | None:
    row = connection.execute(select(people.seals).order_by(people.seals.c.seq.desc()).limit(1)).first()
    return None if row is None else seal_of(row)


def _next_batch(connection: Connection, last: Seal | None, nonce: str) -> tuple[list[str], dict[str, int], str] | None:
    """Leaves, new heads and nonce of the next seal; None where there is nothing to seal."""
    heads = {name: 0 if last is None else last.heads.get(name, 0) for name in SEALED}
    lines: list[str] = []
    for name in SEALED:
        for row in rows_after(connection, name, heads[name], most=LEAVES_PER_SEAL - len(lines)):
            lines.append(leaf_line(name, row, nonce))
            heads[name] = row.seq
    return (lines, heads, nonce) if lines else None


def _insert(
    connection: Connection, last: Seal | None, lines: list[str], heads: dict[str, int], nonce: str, *, now: float
) -> Seal:
    covered = [json.loads(line)[1] for line in lines if line.startswith('["judgements"')]
    made = Seal(
        seq=1 if last is None else last.seq + 1,
        first_judgement=covered[0] if covered else heads["judgements"] + 1,
        last_judgement=heads["judgements"],
        n=len(covered),
        root=leaves_root(lines),
        previous=GENESIS if last is None else last.hash,
        hash="",
        sealed_at=float(now),
        heads=heads,
    )
    row = vars(made) | {"hash": seal_hash(made), "heads": json_text(heads), "nonce": nonce, "leaves": "\n".join(lines)}
    connection.execute(people.seals.insert().values(**row))
    return Seal(**vars(made) | {"hash": row["hash"]})
