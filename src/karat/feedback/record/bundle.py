"""The auditor's bundle: what can be checked of a store without reading a word of it, in one directory.

    bundle.json      what it is, counts, the seals' last line, the hash of every file below
    seals.jsonl      the chain, without the nonces
    leaves.jsonl     the leaves of every seal, one a line
    records.jsonl    every judgement without words, under pseudonyms made for this bundle alone
    documents.jsonl  names, versions and hashes of guidelines and settings; no texts

The pseudonyms are keyed hashes whose key is thrown away: two bundles cannot be laid side by side, and nobody can try
out names. What binds a record to its commitment is not in the bundle (salt and words); whoever doubts one asks for it
to be opened (`open_record`) and checks the answer with `check_opened`, on her own machine.

Knows records, seals and files; reads a store only to write. `verify_bundle` needs no store, no network and no key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from karat.answers import missing
from karat.damaged import MISFITS
from karat.errors import InputError, LedgerError, StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback import submission
from karat.feedback.record.seals import Problem, Seal, seal_of, verify_seals
from karat.feedback.store import Store
from karat.identity import content_id, file_hash
from karat.ledger.artifacts import staged_directory, write_json
from karat.records import Judgement

FORMAT = "karat-bundle-1"
FILES = ("seals.jsonl", "leaves.jsonl", "records.jsonl", "documents.jsonl")
MOST_SEQ = 2**63 - 1
"""Largest number that a database counts to."""
WAYS_OUT = ("cannot judge", "none fits", "escalated", "erased")
"""Reasons for no answer that are no words of a rater; any other is shown as "other"."""


@dataclass(frozen=True)
class Bundle:
    """What a bundle says that it holds."""

    path: Path
    """Its directory."""
    n_judgements: int
    """Judgements in it, sealed or not."""
    n_sealed: int
    """How many of them a seal covers."""
    n_erased: int
    """How many had their words erased."""
    n_raters: int
    """Different raters."""
    seal: str | None
    """Last line of the chain, as it may have been published; None = nothing is sealed."""


def write_bundle(store: Store, path: str | Path, *, now: float, key: bytes | None = None) -> Bundle:
    """Write what an auditor may take away.

    Args:
        path: a directory that does not exist yet.    now: seconds since the epoch.
        key: makes the pseudonyms; None = 256 random bits that nobody keeps.
    Raises: StoreError where something is there already; LedgerError when it cannot be written.
    """
    path, key = Path(path), secrets.token_bytes(32) if key is None else key
    if path.exists():
        raise StoreError(f"{path}: something is there already; a bundle is never changed: give a new path")
    with staged_directory(path) as directory, store.connection(steady=True) as connection:
        sealed = connection.execute(select(people.seals).order_by(people.seals.c.seq)).all()
        chain = [seal_of(row) for row in sealed]
        _write(directory / "seals.jsonl", map(dataclasses.asdict, chain))
        _write(directory / "leaves.jsonl", ([row.seq, line] for row in sealed for line in row.leaves.split("\n")))
        _write(directory / "records.jsonl", _records(connection, key))
        _write(directory / "documents.jsonl", _documents(connection))
        content = {
            "format": FORMAT,
            "made_at": float(now),
            "seal": chain[-1].line if chain else None,
            "counts": _counts(directory / "records.jsonl", chain),
            "files": {name: file_hash(directory / name) for name in FILES},
        }
        write_json(directory / "bundle.json", content | {"id": content_id("bundle", content)})
    return read_bundle(path)


def read_bundle(path: str | Path) -> Bundle:
    """What a bundle says that it holds; `verify_bundle` says whether that is so.

    Raises: LedgerError where it is no bundle.
    """
    content = _content(Path(path))
    counts = content["counts"]
    return Bundle(
        Path(path), counts["judgements"], counts["sealed"], counts["erased"], counts["raters"], content["seal"]
    )


def is_bundle(path: Path) -> bool:
    """Whether a directory holds a bundle."""
    return (path / "bundle.json").is_file()


def verify_bundle(path: str | Path, published: Iterable[str] = ()) -> list[Problem]:
    """Everything in a bundle that does not hold together; empty = it is what the seals say.

    Args:
        published: lines of `Seal.line` that were noted elsewhere.
    Returns: problems by seal and by the number of the judgement.
    Raises: LedgerError where it is no bundle; InputError for a published line that is none.
    """
    path = Path(path)
    content = _content(path)
    problems = [
        Problem(name, "differs from its hash in bundle.json: it was altered")
        for name, said in content["files"].items()
        if not (path / name).is_file() or file_hash(path / name) != said
    ]
    try:
        chain = [Seal(**line) for line in _lines(path / "seals.jsonl")]
        leaves: dict[int, list[str]] = {}
        for number, line in _lines(path / "leaves.jsonl"):
            leaves.setdefault(number, []).append(line)
        problems += verify_seals(chain, leaves, [*published, *([content["seal"]] if content["seal"] else [])])
        problems += _record_problems(path, chain, leaves)
        if content["counts"] != _counts(path / "records.jsonl", chain):
            problems.append(Problem("bundle.json", "its counts are not those of its records: it was altered"))
    except (*MISFITS, OSError) as error:
        problems.append(Problem(path.name, f"not readable to the end ({type(error).__name__}: {error})"))
    return problems


def compare_with_bundle(store: Store, path: str | Path) -> list[Problem]:
    """Which judgements of a store are not those of a bundle that somebody took away earlier.

    This finds what the store alone cannot show: a record rewritten as a whole, seals included.

    Returns: problems by judgement id; by the bundle's number and commitment where the judgement is gone.
    Raises: LedgerError where the bundle is damaged: what it says would be held against the store.
    """
    records = Path(path) / "records.jsonl"
    if not records.is_file() or file_hash(records) != _content(Path(path))["files"][records.name]:
        raise LedgerError(
            f"{records}: missing, or differs from its hash in bundle.json; expected the bundle as it was taken"
        )
    noted = {line["seq"]: line for line in _lines(records)}
    columns = tables.judgements.c
    problems = []
    last = max(noted, default=0)
    with store.connection(steady=True) as connection:
        question = select(columns.seq, columns.id, columns.commitment, columns.late).where(columns.seq <= last)
        for row in connection.execute(question.order_by(columns.seq)):
            line = noted.pop(row.seq, None)
            if line is None:
                problems.append(Problem(row.id, f"number {row.seq} is not in the bundle: it was added later"))
            elif (line["commitment"], line["late"]) != (row.commitment, bool(row.late)):
                problems.append(Problem(row.id, "differs from the bundle: it was altered since"))
    for seq, line in noted.items():
        problems.append(Problem(line["commitment"], f"number {seq} of the bundle is not in the store: it was removed"))
    return problems


def open_record(store: Store, seq: int) -> dict[str, Any]:
    """The event and salt behind one commitment, for an auditor who asks; whoever gives it away gives the words away.

    Raises: StoreError where there is no such judgement, or its words were erased.
    """
    question = submission.judgement_question().add_columns(tables.salts.c.salt)
    question = question.outerjoin(tables.salts, tables.salts.c.judgement_id == tables.judgements.c.id)
    with store.connection() as connection:
        asked = seq if 0 < seq <= MOST_SEQ else 0  # beyond it no database can compare
        row = connection.execute(question.where(tables.judgements.c.seq == asked)).first()
    if row is None or row.salt is None:
        state = "is not in the store" if row is None else "was erased"
        raise StoreError(f"judgement {seq}: {state}; expected one whose commitment can be opened")
    event = tables.stored_judgement(row).judgement.event
    return {"seq": seq, "salt": row.salt, "event": json.loads(tables.json_text(event))}


def check_opened(path: str | Path, opened: Mapping[str, Any]) -> bool:
    """Whether an opened record is the one that the bundle's commitment fixes, and says what the bundle's record says.

    Raises: InputError where it is no opened record, or the bundle has no such number.
    """
    return not opened_problems(path, [opened])


def opened_problems(path: str | Path, opened: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """`check_opened` of many records, the bundle read once. Returns: a problem for each that is not what was fixed.

    Raises: InputError where one is no opened record, or the bundle has no such number.
    """
    lines = {line["seq"]: line for line in _lines(Path(path) / "records.jsonl")}
    return [
        Problem(
            f"judgement {one['seq']}",
            "what was opened is not what its commitment fixes, or not what the bundle says",
        )
        for one in opened
        if not _fits(lines, one)
    ]


def _fits(lines: Mapping[int, Mapping[str, Any]], opened: Mapping[str, Any]) -> bool:
    try:
        event = dict(opened["event"])
        event |= {name: tuple(event[name]) for name in ("response_ids", "shown_order")}
        judgement = Judgement(**event)
        found = tables.commitment_of(judgement, opened["salt"])
        line = lines[opened["seq"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"opened record: not readable ({type(error).__name__}: {error}); expected what `karat disclose` wrote of this "
            "bundle's store"
        ) from None
    shown = json.loads(tables.json_text(_without_words(judgement)))
    return hmac.compare_digest(found, line["commitment"]) and shown == {name: line.get(name) for name in shown}


def _records(connection: Connection, key: bytes) -> Iterator[dict[str, Any]]:
    """Judgements without words; a correction names the number of what it corrects."""
    rows = connection.execute(select(tables.judgements.c.id, tables.judgements.c.seq))
    numbers = {row.id: row.seq for row in rows}
    question = submission.judgement_question().order_by(tables.judgements.c.seq)
    for row in connection.execute(question):
        record = tables.stored_judgement(row)
        judgement = record.judgement
        yield {
            "seq": record.seq,
            "commitment": record.commitment,
            "late": record.late,
            "erased": record.erased,
            "has_words": bool(row.has_words),
            "rater": _pseudonym(key, "rater", judgement.annotator),
            # the identity of a task that is kept for one rater hashes her name: guessing names would find it
            "task": _pseudonym(key, "task", judgement.task_id),
            **_without_words(judgement),
            "supersedes": numbers.get(judgement.supersedes) if judgement.supersedes else None,
        }


def _without_words(judgement: Judgement) -> dict[str, Any]:
    """What a record shows of a judgement: all of it but words, names and links."""
    value: Mapping[str, Any] = judgement.value
    if judgement.written:
        value = {}
    elif "missing" in value and value["missing"] not in WAYS_OUT:
        value = missing("other")
    return {
        "kind": judgement.kind,
        "prompt": judgement.prompt_id,
        "responses": list(judgement.response_ids),
        "value": dict(value),
        "shown_order": list(judgement.shown_order),
        "shown": dict(judgement.shown),
        "guideline": judgement.guideline,
        "created_at": judgement.created_at,
        "active_s": judgement.active_s,
        "idle_s": judgement.idle_s,
        "propensity": judgement.propensity,
        "strategy": judgement.strategy,
        "origin": judgement.origin,
    }


def _documents(connection: Connection) -> Iterator[dict[str, Any]]:
    columns = people.documents.c
    for row in connection.execute(select(people.documents).order_by(columns.seq)):
        body = hashlib.sha256(row.body.encode()).hexdigest()
        yield {
            "seq": row.seq,
            "name": row.name,
            "version": row.version,
            "hash": row.hash,
            "body": body,
            "created_at": row.created_at,
        }


def _pseudonym(key: bytes, what: str, name: str) -> str:
    return f"{what}-" + hmac.new(key, f"{what}\0{name}".encode(), hashlib.sha256).hexdigest()[:16]


def _counts(path: Path, chain: list[Seal]) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    raters: set[str] = set()
    n = n_sealed = n_erased = n_late = 0
    through = chain[-1].last_judgement if chain else 0
    for line in _lines(path):
        n, n_sealed = n + 1, n_sealed + (line["seq"] <= through)
        n_erased, n_late = n_erased + line["erased"], n_late + line["late"]
        kinds[line["kind"]] += 1
        raters.add(line["rater"])
    counts = {"judgements": n, "sealed": n_sealed, "erased": n_erased, "late": n_late, "raters": len(raters)}
    return counts | {"kinds": dict(sorted(kinds.items())), "seals": len(chain)}


def _record_problems(path: Path, chain: list[Seal], leaves: Mapping[int, list[str]]) -> Iterator[Problem]:
    """Records and documents against the leaves that the seals cover."""
    sealed = {(part[0], part[1]): part for lines in leaves.values() for part in map(json.loads, lines)}
    heads = chain[-1].heads if chain else {}
    for name, file in (("judgements", "records.jsonl"), ("documents", "documents.jsonl")):
        for line in _lines(path / file):
            called = (
                f"judgement {line['seq']}" if name == "judgements" else f"document {line['name']} {line['version']}"
            )
            part = sealed.pop((name, line["seq"]), None)
            if part is None:
                if line["seq"] <= heads.get(name, 0):
                    yield Problem(called, "stands among what is sealed, but was not sealed: it was added later")
                continue
            said = (
                [line["commitment"], line["late"]]
                if name == "judgements"
                else [line["name"], line["version"], line["hash"], line["body"], line["created_at"]]
            )
            if part[2 : 2 + len(said)] != said:
                yield Problem(called, "differs from its sealed leaf: it was altered")
    for name, seq in sealed:
        if name in ("judgements", "documents"):
            yield Problem(f"{name.removesuffix('s')} {seq}", "is sealed, but not in the bundle: it was removed")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
        stated = content.pop("id")
        if content["format"] != FORMAT:
            raise LedgerError(f"{path}: found the format {content['format']!r}; expected {FORMAT!r}")
        if content_id("bundle", content) != stated:
            raise LedgerError(f"{path / 'bundle.json'}: its content does not give its id: it was altered")
        if set(content["files"]) != set(FILES):
            raise LedgerError(f"{path / 'bundle.json'}: found other files than {', '.join(FILES)}")
        return content
    except FileNotFoundError:
        raise LedgerError(f"{path / 'bundle.json'}: no such file; expected an auditor's bundle") from None
    except (*MISFITS, OSError) as error:
        raise LedgerError(f"{path}: not readable as a bundle ({type(error).__name__}: {error})") from None


def _write(path: Path, values: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for value in values:
            file.write(tables.json_text(value) + "\n")


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
