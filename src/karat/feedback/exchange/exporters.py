"""Votes to files: TRL's preference format, and the documented votes format.

Knows snapshots, the store's reading side and files; knows nothing about training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from karat.errors import InputError
from karat.feedback.snapshot import Snapshot, current_judgements
from karat.feedback.store import Store
from karat.records import Prompt, Vote
from karat.rowfiles import write_rows

Style = Literal["standard", "conversational"]


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote, and what its format cannot say."""

    n_rows: int
    """Rows written, one a vote."""
    n_ties: int
    """Ties left out: the format has a winner in every row."""
    n_other: int
    """Judgements left out: other kinds, and votes without an answer."""


def export_preferences(snapshot: Snapshot, path: str | Path, *, style: Style = "conversational") -> ExportSummary:
    """Votes as TRL's `prompt`, `chosen`, `rejected`, one row a vote in the snapshot's order.

    Args:
        style: "standard" = texts, possible where every prompt is one user turn; "conversational" = messages.
        path: gzip where it ends in `.gz`.
    Raises: InputError where a prompt does not fit the style or the file cannot be written; nothing is left then.
    """
    rows, n_ties = [], 0
    for vote in snapshot.votes:
        if 2 * vote.level == vote.n_levels - 1:
            n_ties += 1
            continue
        rows.append(_row(snapshot, vote, style))
    return ExportSummary(write_rows(path, rows), n_ties, len(snapshot.judgements))


def export_votes(store: Store, path: str | Path) -> ExportSummary:
    """Every comparison that counts, in the documented votes format, with raters, ties, reasons and times.

    Raises: InputError where the file cannot be written.
    """
    prompts, responses, annotators = store.prompts(), store.responses(), store.annotators()
    tasks = {task.id: task for task in store.tasks()}
    rows: list[dict[str, Any]] = []
    records, _ = current_judgements(store.records())
    for record in records:
        judgement = record.judgement
        if judgement.kind != "comparison":
            continue
        prompt, batch = prompts[judgement.prompt_id], tasks[judgement.task_id].batch
        row = {
            "prompt": _messages(prompt),
            "topic": prompt.topic,
            "a": responses[judgement.response_ids[0]].text,
            "b": responses[judgement.response_ids[1]].text,
            **judgement.value,
            "annotator": judgement.annotator,
            "group": annotators[judgement.annotator].group,
            "shown_first": "ab"[judgement.shown_order[0]] if judgement.shown_order else None,
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
    return ExportSummary(write_rows(path, rows), 0, len(records) - len(rows))


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
