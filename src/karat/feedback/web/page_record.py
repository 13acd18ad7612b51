"""What was on the page when somebody judged, as `Judgement.shown` records it.

Knows the page's fields and files; knows nothing about answers or how they are stored.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karat.feedback.documents import Document
from karat.feedback.web.forms import Fields
from karat.feedback.web.rendering import is_long
from karat.feedback.work.answering import Work

LAYOUTS = ("side", "stacked", "column")
"""Side by side; below one another and shortened, on a narrow page; below one another and whole, by an arm."""
WIDTHS = ("phone", "tablet", "desktop", "wide")
TEMPLATES = ("base.html", "macros.html", "work.html", "work_kinds.html")
SHEETS_AND_MODULES = (
    "karat.css", "first.js", "page.js", "work.js", "autosave.js", "groups.js", "keys.js", "leftover.js", "net.js",
    "queue.js", "rank.js", "relogin.js", "remember.js", "spans.js", "timing.js",
)  # fmt: skip
"""What the browser of a rater loads."""


@functools.cache
def page_version() -> str:
    """A mark of everything that makes the page of a task: its templates, style sheet and modules."""
    here = Path(__file__).parent
    files = [here / "templates" / name for name in TEMPLATES]
    files += [here / "static" / name for name in SHEETS_AND_MODULES]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def shown_record(
    work: Work, fields: Fields, *, arms: Mapping[str, str], locale: str, guideline: Document | None
) -> dict[str, Any]:
    """The record of a page that was sent back.

    Without a script every text is shown whole, and layout and width are not known. A text is truncated where it is
    long, responses stood below one another, and the rater did not ask for all of it.

    Args:
        fields: as they were posted.    guideline: what was beside the task, None = nothing.
    Returns: {"truncated": [bool, …] in identity order, "page": version, "locale": tag, "script": bool, …}.
    """
    layout, width = _known(fields, "layout", LAYOUTS), _known(fields, "width", WIDTHS)
    opened = set(fields.get("opened", ()))
    folds = layout == "stacked" and work.question.kind not in ("span_marks", "step_marks")
    truncated = [False] * len(work.responses)
    for position, index in enumerate(work.order):
        truncated[index] = folds and is_long(work.texts[index]) and str(position) not in opened
    record: dict[str, Any] = {
        "truncated": truncated,
        "prompt_truncated": layout == "stacked" and is_long(work.prompt.text) and "prompt" not in opened,
        "page": page_version(),
        "locale": locale,
        "script": layout is not None,
    }
    if work.question.content_warning:
        record["uncovered"] = "1" in fields.get("uncovered", ())
    if arms:
        record["arms"] = dict(arms)
    if guideline is not None:
        record["guideline"] = {"version": guideline.version, "hash": guideline.hash}
    known = {"layout": layout, "width": width, "typed": _count(fields, "typed"), "pasted": _count(fields, "pasted")}
    return record | {name: value for name, value in known.items() if value is not None}


def seconds(fields: Fields, name: str) -> float | None:
    """Seconds that the page measured, None where it measured none."""
    try:
        value = float((fields.get(name) or ("",))[0])
    except ValueError:
        return None
    return round(value, 1) if math.isfinite(value) and 0 <= value < 1e7 else None


def _known(fields: Fields, name: str, allowed: tuple[str, ...]) -> str | None:
    value = (fields.get(name) or ("",))[0]
    return value if value in allowed else None


def _count(fields: Fields, name: str) -> int | None:
    value = (fields.get(name) or ("",))[0]
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
