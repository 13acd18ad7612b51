"""Judgements as rows of a spreadsheet, where no cell is ever run as a formula.

Knows the fields of an exported judgement and what spreadsheets take for formulas. Knows nothing about files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CELL_NAMES = (
    "id", "kind", "annotator", "value", "reason", "created_at", "guideline", "strategy", "propensity", "origin",
    "supersedes", "shown_order", "active_s", "idle_s", "batch", "topic", "prompt", "responses", "shown",
)  # fmt: skip
"""Columns in their order."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "|", "%")


def cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of one row of `events.event_rows`, by CELL_NAMES."""
    event = row["judgement"]
    found = {
        "id": row["id"],
        "kind": row["task"]["kind"],
        "annotator": row["annotator"]["id"],
        "batch": row["task"]["batch"],
        "topic": row["topic"],
        "prompt": "\n".join(turn["content"] for turn in row["prompt"]),
        "responses": [response["text"] for response in row["responses"]],
    }
    return [cell(found[name] if name in found else event.get(name)) for name in CELL_NAMES]


def cell(value: Any) -> str:
    """A value as a spreadsheet shows it and never runs it: a text that starts like a formula gets a leading quote.

    Source: OWASP, CSV Injection.
    """
    if value is None:
        return ""
    if isinstance(value, int | float):
        return str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return f"'{text}" if text.lstrip(" \u00a0\ufeff\u200b").startswith(_FORMULA_STARTS) else text
