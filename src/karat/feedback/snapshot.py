"""An immutable directory of judgements: what training reads instead of the live store.

    snapshot.json       root, counts, the names behind the numeric columns, hash of votes.npz
    votes.npz           one entry a comparison, numbers only
    commitments.jsonl   id and commitment of every judgement, the votes first and in the order of votes.npz
    judgements.jsonl    everything that is not a vote: other kinds, and comparisons that nobody could judge
    words.jsonl         the words of those judgements
    prompts.jsonl, responses.jsonl, annotators.jsonl

The root is a hash over the sorted commitments. Words and texts are named by it, not contained in it: a line whose
text was set to null is erased, and the root still holds. The same judgements give the same bytes. Knows the store's
reading side; knows nothing about models.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from karat.damaged import damage_named, lines_of, object_in
from karat.errors import InputError, LedgerError, StoreError
from karat.feedback.additions import one_group
from karat.feedback.misfits import misfits
from karat.feedback.people.standing import quarantined
from karat.feedback.people_tables import checks
from karat.feedback.schema import UNKNOWN_ANNOTATOR, StoredJudgement, json_text
from karat.feedback.snapshot_check import NAMED, check_columns, check_ids, check_names, names_hash
from karat.feedback.store import Store
from karat.identity import content_id, file_hash
from karat.ledger.artifacts import staged_directory
from karat.records import WORD_KINDS, Annotator, Judgement, Prompt, Response, Turn, Vote

FORMAT = 2
"""2 knows "both good" and "both bad"; 1 is still read."""
COLUMNS = (
    "prompt", "a", "b", "level", "n_levels", "side", "annotator", "strategy", "propensity", "active_s", "late", "both",
)  # fmt: skip
BOTH = {None: 0, "good": 1, "bad": -1}
COUNTS = ("n_votes", "n_judgements", "n_missing", "n_superseded", "n_late")
AS_WRITTEN = "it as karat wrote it: restore it, or take the snapshot anew at another path"


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot holds."""

    votes: list[Vote]
    """Comparisons with a level, sorted by judgement id; tags carry the prompt's topic where it has one."""
    judgements: list[Judgement]
    """Judgements of other kinds, and comparisons without a level, sorted by judgement id."""
    prompts: dict[str, Prompt]
    """Every prompt that a judgement names, by id."""
    responses: dict[str, Response]
    """Every response that a judgement names, by id."""
    annotators: dict[str, Annotator]
    """Everybody who judged, by id."""
    root: str
    """Hash over the sorted commitments of all judgements."""
    n_missing: int
    """Judgements in which the rater gave no answer."""
    n_superseded: int
    """Judgements left out because the same rater later judged the same task again."""
    n_late: int
    """Votes whose lease had expired."""
    misfits: dict[str, str] = field(default_factory=dict)
    """Judgement id → why it does not fit its question or its texts: not to be trained on."""

    @property
    def by_origin(self) -> dict[str, dict[str, int]]:
        """Origin of raters (person, simulated, ai …) → how many `votes` are theirs and how many `raters` they are."""
        found: dict[str, dict[str, int]] = {}
        for who in self.annotators.values():
            found.setdefault(who.origin, {"votes": 0, "raters": 0})["raters"] += 1
        for vote in self.votes:
            found[self.annotators[vote.annotator].origin]["votes"] += 1
        return dict(sorted(found.items()))

    @property
    def n_answers(self) -> dict[str, int]:
        """Kind → how many answers beside comparisons there are; who could not judge is not counted."""
        return dict(sorted(Counter(one.kind for one in self.judgements if "missing" not in one.value).items()))


def write_snapshot(
    store: Store, path: str | Path, *, batch: str | None = None, only: Collection[str] | None = None
) -> Snapshot:
    """Write the store's judgements as an immutable directory, and read it back.

    Answers to silent checks and what raters in quarantine judged are left out (`work_records`).

    Args:
        path: a directory that does not exist yet, or holds this same snapshot.    batch: only tasks of this batch.
        only: only judgements of these ids; None = all.
    Raises: StoreError where there are no judgements, or the path holds something else; LedgerError where it cannot be
        written.
    """
    path = Path(path)
    records, n_superseded = _counted(store, batch, only)
    if not records:
        raise StoreError("snapshot: found no judgements in the store; collect or import some first")
    root = _root([record.commitment for record in records])
    if path.exists():
        found = read_snapshot(path)
        if found.root != root:
            raise StoreError(
                f"{path}: holds another snapshot ({found.root}); a snapshot is never changed: give a new path"
            )
        return found
    # One fixed name beside it: what a killed process left behind is overwritten by its successor.
    with staged_directory(path) as directory:
        _write_files(directory, store, records, n_superseded)
    return read_snapshot(path)


def snapshot_place(store: Store, path: Path, *, batch: str | None = None, only: Collection[str] | None = None) -> Path:
    """Where `write_snapshot` can write these judgements: at the path, or beside a snapshot of others that lies there.

    Returns: the path where it is free or holds this very snapshot, else the path with the last digits of the root.
    """
    records, _ = _counted(store, batch, only)
    root = _root([record.commitment for record in records])
    if not path.exists() or read_snapshot(path).root == root:
        return path
    return path.with_name(f"{path.name}-{root[-12:]}")


def _counted(store: Store, batch: str | None, only: Collection[str] | None) -> tuple[list[StoredJudgement], int]:
    return current_judgements([one for one in work_records(store, batch=batch) if only is None or one.id in only])


def work_records(store: Store, *, batch: str | None = None) -> list[StoredJudgement]:
    """Judgements of work (`of_work`), in order of arrival."""
    return of_work(store, store.records(batch=batch))


def of_work(store: Store, records: Iterable[StoredJudgement]) -> list[StoredJudgement]:
    """Records without answers to silent checks, and without those of raters who are in quarantine now; after a release
    theirs are there again."""
    left_out = quarantined(store)
    with store.connection() as connection:
        hidden = set(connection.execute(select(checks.c.task_id)).scalars())
    return [
        record
        for record in records
        if record.judgement.annotator not in left_out and record.judgement.task_id not in hidden
    ]


def current_judgements(records: Sequence[StoredJudgement]) -> tuple[list[StoredJudgement], int]:
    """The judgements that count, sorted by id, and how many were superseded.

    Of several by one rater on one task the newest counts (by time, then by arrival); raters whom a file does not
    name are many people, and all of theirs count.
    """
    corrected = {record.judgement.supersedes for record in records if record.judgement.supersedes is not None}
    newest: dict[tuple[str, str], StoredJudgement] = {}
    kept: list[StoredJudgement] = []
    for record in records:
        if record.id in corrected:
            continue
        judgement = record.judgement
        if judgement.annotator == UNKNOWN_ANNOTATOR:
            kept.append(record)
            continue
        key = (judgement.annotator, judgement.task_id)
        if key not in newest or (judgement.created_at, record.seq) > (
            newest[key].judgement.created_at,
            newest[key].seq,
        ):
            newest[key] = record
    kept += newest.values()
    return sorted(kept, key=lambda record: record.id), len(records) - len(kept)


def read_snapshot(path: str | Path) -> Snapshot:
    """A snapshot, with its root, columns and text identities verified.

    Raises: LedgerError naming what is missing or was altered.
    """
    path = Path(path)
    if not path.exists():
        raise LedgerError(f"{path}: no such file; expected a snapshot written by karat")
    if not (path / "snapshot.json").is_file():
        near = [path.parent / "snapshot.json", *path.glob("snapshots/*/snapshot.json"), *path.glob("*/snapshot.json")]
        others = next((f", as {one.parent} is" for one in sorted(near[1:]) + near[:1] if one.is_file()), "")
        found = "no snapshot.json in it" if path.is_dir() else "a file"
        raise LedgerError(f"{path}: found {found}; expected the directory of a snapshot{others}")
    with damage_named(path, "a snapshot", expected=AS_WRITTEN):
        try:
            return _read(path)
        except (InputError, zipfile.BadZipFile) as error:
            raise ValueError(str(error)) from None


def _write_files(path: Path, store: Store, records: Sequence[StoredJudgement], n_superseded: int) -> None:
    votes = [record for record in records if _is_vote(record)]
    others = [record for record in records if not _is_vote(record)]
    prompt_ids = sorted({record.judgement.prompt_id for record in records})
    response_ids = sorted({one for record in records for one in record.judgement.response_ids})
    annotator_ids = sorted({record.judgement.annotator for record in records})
    strategies = sorted({record.judgement.strategy for record in votes})
    columns = _columns(votes, prompt_ids, response_ids, annotator_ids, strategies)
    np.savez(path / "votes.npz", **columns)
    pairs = [{"id": record.id, "commitment": record.commitment} for record in [*votes, *others]]
    _write_lines(path / "commitments.jsonl", pairs)
    _write_lines(path / "judgements.jsonl", map(_record_line, others))
    _write_lines(path / "words.jsonl", [line for record in others for line in _words_lines(record)])
    prompts, responses, annotators = store.prompts(), store.responses(), store.annotators()
    _write_lines(path / "prompts.jsonl", ({"id": one, **dataclasses.asdict(prompts[one])} for one in prompt_ids))
    _write_lines(path / "responses.jsonl", ({"id": one, **dataclasses.asdict(responses[one])} for one in response_ids))
    _write_lines(path / "annotators.jsonl", (dataclasses.asdict(annotators[one]) for one in annotator_ids))
    names = {"prompts": prompt_ids, "responses": response_ids, "annotators": annotator_ids}
    head = {
        "format": FORMAT,
        "names_hash": names_hash(names),
        "root": _root([record.commitment for record in records]),
        "votes_hash": file_hash(path / "votes.npz"),
        "strategies": strategies,
        "n_votes": len(votes),
        "n_judgements": len(records),
        "n_missing": sum("missing" in record.judgement.value for record in others if not record.erased),
        "n_superseded": n_superseded,
        "n_late": sum(record.late for record in votes),
    }
    with store.connection() as connection:
        unfit = misfits(connection, {record.id: record.judgement for record in records if not record.erased})
    _write_lines(path / "snapshot.json", [head | ({"misfits": unfit} if unfit else {})])


def _columns(
    votes: Sequence[StoredJudgement],
    prompt_ids: Sequence[str],
    response_ids: Sequence[str],
    annotator_ids: Sequence[str],
    strategies: Sequence[str],
) -> dict[str, np.ndarray]:
    places = [{key: i for i, key in enumerate(keys)} for keys in (prompt_ids, response_ids, annotator_ids, strategies)]
    prompt_at, response_at, annotator_at, strategy_at = places
    each = [record.judgement for record in votes]
    side = [0 if not one.shown_order else (1 if one.shown_order[0] == 0 else -1) for one in each]
    seconds = [np.nan if one.active_s is None else one.active_s for one in each]
    return {
        "prompt": np.array([prompt_at[one.prompt_id] for one in each], dtype=np.int32),
        "a": np.array([response_at[one.response_ids[0]] for one in each], dtype=np.int32),
        "b": np.array([response_at[one.response_ids[1]] for one in each], dtype=np.int32),
        "level": np.array([one.value["level"] for one in each], dtype=np.int16),
        "n_levels": np.array([one.value["n_levels"] for one in each], dtype=np.int16),
        "side": np.array(side, dtype=np.int8),
        "annotator": np.array([annotator_at[one.annotator] for one in each], dtype=np.int32),
        "strategy": np.array([strategy_at[one.strategy] for one in each], dtype=np.int32),
        "propensity": np.array([one.propensity for one in each], dtype=np.float64),
        "active_s": np.array(seconds, dtype=np.float64),
        "late": np.array([record.late for record in votes], dtype=np.bool_),
        "both": np.array([BOTH[one.value.get("both")] for one in each], dtype=np.int8),
    }


def _read(path: Path) -> Snapshot:
    kinds = {"root": str, "votes_hash": str, "strategies": list, **dict.fromkeys(COUNTS, int)}
    head = object_in(path / "snapshot.json", "the head of a snapshot", expected=AS_WRITTEN, format=int, **kinds)
    if head["format"] not in (1, FORMAT):
        raise LedgerError(f"{path}: found a snapshot of format {head['format']}; expected {FORMAT}")
    commitments = list(lines_of(path / "commitments.jsonl"))
    if (found := _root([line["commitment"] for line in commitments])) != head["root"]:
        raise LedgerError(f"{path}: the commitments give the root {found}, snapshot.json says {head['root']}: altered")
    if file_hash(path / "votes.npz") != head["votes_hash"]:
        raise LedgerError(f"{path / 'votes.npz'}: differs from the hash in snapshot.json: altered")
    rows = {name: list(lines_of(path / f"{name}.jsonl")) for name in (*NAMED, "judgements", "words")}
    ids = {name: [line["id"] for line in lines] for name, lines in rows.items()}
    annotators: dict[str, Annotator] = {}
    for line in rows["annotators"]:
        annotators[line["id"]] = one_group(annotators.get(line["id"]), Annotator(**line))
    check_names(head, {name: ids[name] for name in NAMED})
    check_ids(head, record_ids := [line["id"] for line in commitments], ids["judgements"])
    prompts = {line["id"]: _prompt_of(line, path) for line in rows["prompts"]}
    responses = {line["id"]: _response_of(line, path) for line in rows["responses"]}
    with np.load(path / "votes.npz", allow_pickle=False) as archive:
        columns = {name: archive[name] for name in COLUMNS if name in archive}
    columns.setdefault("both", np.zeros(head["n_votes"], dtype=np.int8))
    sizes = {"prompt": len(prompts), "a": len(responses), "b": len(responses), "annotator": len(annotators)}
    check_columns(columns, head["n_votes"], sizes | {"strategy": len(head["strategies"])})
    words = dict(zip(ids["words"], rows["words"], strict=True))
    votes = _votes(
        record_ids[: head["n_votes"]], columns, head["strategies"], prompts, list(responses), list(annotators)
    )
    for vote in votes:
        if {responses[vote.a].prompt_id, responses[vote.b].prompt_id} != {vote.prompt_id}:
            raise ValueError(f"vote {vote.judgement_id}: found a response to another prompt")
    return Snapshot(
        votes=votes,
        judgements=[_judgement_of(line, words, path) for line in rows["judgements"]],
        prompts=prompts,
        responses=responses,
        annotators=annotators,
        root=head["root"],
        n_missing=head["n_missing"],
        n_superseded=head["n_superseded"],
        n_late=head["n_late"],
        misfits=dict(head.get("misfits", {})),
    )


def _votes(
    ids: Sequence[str],
    columns: Mapping[str, np.ndarray],
    strategies: Sequence[str],
    prompts: Mapping[str, Prompt],
    response_ids: Sequence[str],
    annotator_ids: Sequence[str],
) -> list[Vote]:
    prompt_ids = list(prompts)
    tags = [{} if prompts[one].topic is None else {"topic": prompts[one].topic} for one in prompt_ids]
    names = ("prompt", "a", "b", "level", "n_levels", "side", "annotator", "strategy", "propensity", "both")
    said = {number: word for word, number in BOTH.items()}
    rows = zip(ids, *(columns[name].tolist() for name in names), strict=True)
    return [
        Vote(
            judgement_id=judgement_id,
            prompt_id=prompt_ids[prompt],
            a=response_ids[a],
            b=response_ids[b],
            level=level,
            n_levels=n_levels,
            side=side,
            annotator=annotator_ids[annotator],
            strategy=strategies[strategy],
            propensity=propensity,
            tags=tags[prompt],
            both=said[both],
        )
        for judgement_id, prompt, a, b, level, n_levels, side, annotator, strategy, propensity, both in rows
    ]


def _prompt_of(line: Mapping[str, Any], path: Path) -> Prompt:
    erased = any(turn["content"] is None for turn in line["turns"])
    prompt = Prompt(tuple(Turn(turn["role"], turn["content"] or "") for turn in line["turns"]), line["topic"])
    if not erased and prompt.id != line["id"]:
        raise LedgerError(f"{path / 'prompts.jsonl'}: prompt {line['id']} was altered")
    return prompt


def _response_of(line: Mapping[str, Any], path: Path) -> Response:
    response = Response(line["prompt_id"], line["text"] or "", line["source"], line["sample"])
    if line["text"] is not None and response.id != line["id"]:
        raise LedgerError(f"{path / 'responses.jsonl'}: response {line['id']} was altered")
    return response


def _judgement_of(line: Mapping[str, Any], words: Mapping[str, Mapping[str, Any]], path: Path) -> Judgement:
    fields = {name: value for name, value in line.items() if name != "id"}
    event = {name: value for name, value in fields.items() if name != "shown" or value}
    if content_id("judgement", event | {"reason": None}) != line["id"]:
        raise LedgerError(f"{path / 'judgements.jsonl'}: judgement {line['id']} was altered")
    spoken = words.get(line["id"], {"reason": None, "value": None})
    if fields["kind"] in WORD_KINDS and "missing" not in fields["value"]:
        fields["value"] = spoken["value"] if spoken["value"] is not None else {"missing": "erased"}
    fields |= {name: tuple(fields[name]) for name in ("response_ids", "shown_order")}
    return Judgement(**fields, reason=spoken["reason"])


def _record_line(record: StoredJudgement) -> dict[str, Any]:
    fields = dataclasses.asdict(record.judgement)
    del fields["reason"]
    if record.judgement.kind in WORD_KINDS and (record.erased or "missing" not in record.judgement.value):
        fields["value"] = {}
    return {"id": record.id, **fields}


def _words_lines(record: StoredJudgement) -> list[dict[str, Any]]:
    judgement = record.judgement
    if record.erased or not (judgement.written or judgement.reason is not None):
        return []
    value = dict(judgement.value) if judgement.written else None
    return [{"id": record.id, "reason": judgement.reason, "value": value}]


def _is_vote(record: StoredJudgement) -> bool:
    return record.judgement.kind == "comparison" and "missing" not in record.judgement.value


def _root(commitments: Sequence[str]) -> str:
    return content_id("snapshot", sorted(commitments))


def _write_lines(path: Path, values: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for value in values:
            file.write(json_text(value) + "\n")
        file.flush()
        os.fsync(file.fileno())
