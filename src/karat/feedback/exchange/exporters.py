"""Votes and answers to files: TRL's preference format, and the documented formats of votes and answers.

Knows snapshots, the store's reading side and files; knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from karat.errors import InputError
from karat.feedback.snapshot import Snapshot, current_judgements
from karat.feedback.store import Named, Store
from karat.fitting import TARGETS
from karat.records import KINDS, WORD_KINDS, Judgement, Prompt, Vote
from karat.rowfiles import write_rows

Style = Literal["standard", "conversational"]


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote, and what its format cannot say."""

    n_rows: int
    """Rows written, one a judgement."""
    n_ties: int
    """Rows that call responses equally good: comparisons at the middle level, rankings with a rank twice."""
    n_ties_left_out: int
    """Ties left out, where the format has a winner in every row."""
    n_others_left_out: int
    """Others left out: what the format has no place for, corrected answers, erased words."""


def export_preferences(snapshot: Snapshot, path: str | Path, *, style: Style = "conversational") -> ExportSummary:
    """Votes as TRL's `prompt`, `chosen`, `rejected`, one row a vote in the snapshot's order.

    Args:
        style: "standard" = texts, possible where every prompt is one user turn; "conversational" = messages.
        path: gzip where it ends in `.gz`.
    Raises: InputError where a prompt does not fit the style or the file cannot be written; nothing is left then.
    """
    decided = [vote for vote in snapshot.votes if 2 * vote.level != vote.n_levels - 1]
    rows = [_row(snapshot, vote, style) for vote in decided]
    return ExportSummary(write_rows(path, rows), 0, len(snapshot.votes) - len(rows), len(snapshot.judgements))


def export_votes(store: Store, path: str | Path) -> ExportSummary:
    """Every comparison that counts, in the documented votes format, with raters, ties, reasons and times.

    Raises: InputError where the file cannot be written.
    """
    return _export(store, path, ("comparison",), with_kind=False)


def export_answers(store: Store, path: str | Path) -> ExportSummary:
    """Every answer that counts, of every kind, in the documented form of `answers.import_answers`, as JSON lines.

    Raises: InputError where the file cannot be written.
    """
    return _export(store, path, KINDS, with_kind=True)


def _export(store: Store, path: str | Path, kinds: Collection[str], *, with_kind: bool) -> ExportSummary:
    prompts, responses, annotators = store.prompts(), store.responses(), store.annotators()
    batches = Named(store.address, "task", ((task.id, task.batch) for task in store.tasks()))
    rows: list[dict[str, Any]] = []
    n_ties = 0
    records, n_corrected = current_judgements(store.records())
    for record in records:
        judgement = record.judgement
        if judgement.kind not in kinds or (record.erased and judgement.kind in WORD_KINDS):
            continue
        n_ties += _is_tie(judgement)
        batch = batches[judgement.task_id]
        texts = [responses[one].text for one in judgement.response_ids]
        row = {
            "kind": judgement.kind if with_kind else None,
            "prompt": _messages(prompts[judgement.prompt_id]),
            "topic": prompts[judgement.prompt_id].topic,
            **_judged(judgement, texts),
            **judgement.value,
            "annotator": judgement.annotator,
            "group": annotators[judgement.annotator].group,
            "reason": judgement.reason,
            "pair": batch.removeprefix("imported/") if batch.startswith("imported/") else None,
            "submitted_at": judgement.created_at or None,
            "active_s": judgement.active_s,
            "idle_s": judgement.idle_s,
            "shown": dict(judgement.shown) or None,
            "guideline": judgement.guideline,
            "strategy": judgement.strategy,
            "propensity": judgement.propensity,
            "submission": judgement.submission or None,
        }
        rows.append({name: value for name, value in row.items() if value is not None})
    return ExportSummary(write_rows(path, rows), n_ties, 0, n_corrected + len(records) - len(rows))


def _is_tie(judgement: Judgement) -> bool:
    value = judgement.value
    if judgement.kind == "comparison" and "level" in value:
        return bool(2 * value["level"] == value["n_levels"] - 1)
    return judgement.kind == "ranking" and "ranks" in value and len(set(value["ranks"])) < len(value["ranks"])


def _judged(judgement: Judgement, texts: Sequence[str]) -> dict[str, Any]:
    """The responses that were judged, and the order in which they were shown."""
    order = judgement.shown_order
    if judgement.kind == "comparison":
        return {"a": texts[0], "b": texts[1], "shown_first": "ab"[order[0]] if order else None}
    shown = {"shown_order": list(order) or None}
    if TARGETS[judgement.kind][1] == 0:
        return shown
    return shown | ({"response": texts[0]} if TARGETS[judgement.kind][1] == 1 else {"responses": list(texts)})


def _row(snapshot: Snapshot, vote: Vote, style: Style) -> dict[str, Any]:
    prompt = snapshot.prompts[vote.prompt_id]
    winner, loser = (vote.a, vote.b) if 2 * vote.level > vote.n_levels - 1 else (vote.b, vote.a)
    chosen, rejected = snapshot.responses[winner].text, snapshot.responses[loser].text
    if style == "conversational":
        return {
            "prompt": _messages(prompt),
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
    if len(prompt.turns) != 1 or prompt.turns[0].role != "user":
        raise InputError(
            f"prompt {vote.prompt_id} has {len(prompt.turns)} turns; the standard format holds one user turn: "
            "export in the conversational format"
        )
    return {"prompt": prompt.turns[0].content, "chosen": chosen, "rejected": rejected}


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
