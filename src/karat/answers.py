"""What an answer of each kind looks like, and the check that one fits: plain JSON values, nothing else.

Knows kinds of feedback by name. Knows nothing about raters, texts (but for their number) or where answers come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from karat.errors import InputError

MARKS = (-1, 0, 1)
"""Marks of a step: wrong, neutral, right."""


def check_value(kind: str, value: Mapping[str, Any], n_responses: int) -> None:
    """Raise InputError unless the value fits its kind (`Judgement.value` says how); `{"missing": reason}` always fits.

    Args:
        n_responses: how many responses were judged.
    """
    if "missing" in value:
        if not isinstance(value["missing"], str):
            raise InputError(f"{kind}: found missing: {value['missing']!r}; expected the reason as text")
        return
    check = _CHECKS.get(kind)
    if check is not None:
        check(value, n_responses)


def missing(reason: str) -> dict[str, str]:
    """The answer of a rater who gave none: "cannot judge", "none fits", "escalated" or her own words."""
    return {"missing": reason}


def _comparison(value: Mapping[str, Any], n_responses: int) -> None:
    level, n_levels, both = value.get("level"), value.get("n_levels"), value.get("both")
    whole = is_int(level) and is_int(n_levels)
    if n_responses != 2 or not whole or not (n_levels >= 2 and 0 <= level < n_levels):
        raise InputError(
            f"comparison of {n_responses} responses: found {dict(value)}; "
            "expected 2 responses and level in 0 … n_levels − 1"
        )
    if both is not None and (both not in ("good", "bad") or 2 * level != n_levels - 1):
        raise InputError(f"comparison: found {dict(value)}; expected both: good or bad, with the level of a tie")


def _ranking(value: Mapping[str, Any], n_responses: int) -> None:
    ranks = value.get("ranks")
    fits = isinstance(ranks, list | tuple) and len(ranks) == n_responses
    if not fits or not all(is_int(rank) and rank >= 1 for rank in ranks):
        raise InputError(f"ranking of {n_responses} responses: found {dict(value)}; expected one rank ≥ 1 for each")


def _best_of(value: Mapping[str, Any], n_responses: int) -> None:
    best = value.get("best")
    if not is_int(best) or not 0 <= best < n_responses:
        raise InputError(f"best_of {n_responses} responses: found {dict(value)}; expected an index below {n_responses}")


def _label(value: Mapping[str, Any], _: int) -> None:
    flags = value.get("flags")
    good, escalate = value.get("good"), value.get("escalate", False)
    if not isinstance(good, bool) and not (good is None and flags is not None):
        raise InputError(f"label: found {dict(value)}; expected good: true or false, or flags")
    if flags is not None and not _names(flags):
        raise InputError(f"label: found flags {flags!r}; expected a list of names")
    if not isinstance(escalate, bool):
        raise InputError(f"label: found escalate {escalate!r}; expected true or false")


def _rating(value: Mapping[str, Any], _: int) -> None:
    low, high = value.get("low"), value.get("high")
    scores = value.get("scores", {"score": value.get("score")})
    named = isinstance(scores, Mapping) and bool(scores) and all(isinstance(name, str) for name in scores)
    numbers = [low, high, *(scores.values() if named else [])]
    if not named or not all(_is_number(number) for number in numbers):
        raise InputError(f"rating: found {dict(value)}; expected numbers for score (or scores by name), low and high")
    if not all(low <= score <= high for score in scores.values()):
        raise InputError(f"rating: found {dict(value)}; expected low ≤ score ≤ high")


def _words(value: Mapping[str, Any], _: int) -> None:
    text = value.get("text")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"words: found text {text!r}; expected something written")
    if "aspects" in value and not _names(value["aspects"]):
        raise InputError(f"words: found aspects {value['aspects']!r}; expected a list of names")
    revision = value.get("revision")
    if revision is not None and not (isinstance(revision, str) and revision.strip()):
        raise InputError(f"words: found revision {revision!r}; expected something written, or no revision")


def _span_marks(value: Mapping[str, Any], n_responses: int) -> None:
    spans = value.get("spans")
    if not isinstance(spans, list | tuple):
        raise InputError(f"span_marks: found {dict(value)}; expected a list of spans, empty where nothing is marked")
    for span in spans:
        inside = isinstance(span, Mapping) and is_int(span.get("response")) and 0 <= span["response"] < n_responses
        if not inside or not _is_range(span) or not isinstance(span.get("class"), str):
            raise InputError(f"span_marks: found {span!r}; expected response, 0 ≤ start < end and a class")


def _step_marks(value: Mapping[str, Any], n_responses: int) -> None:
    steps = value.get("steps")
    if n_responses != 1 or not isinstance(steps, list | tuple) or not steps:
        raise InputError(
            f"step_marks of {n_responses} responses: found {dict(value)}; expected 1 response and its steps"
        )
    end = 0
    for step in steps:
        if not isinstance(step, Mapping) or not _is_range(step) or step["start"] < end:
            raise InputError(f"step_marks: found {step!r}; expected start < end, steps in order without overlap")
        if not is_int(step.get("mark")) or step["mark"] not in MARKS:
            raise InputError(f"step_marks: found the mark {step.get('mark')!r}; expected −1, 0 or 1")
        end = step["end"]


def is_int(value: Any) -> bool:
    """True for a whole number; truth values are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: Mapping[str, Any]) -> bool:
    start, end = value.get("start"), value.get("end")
    return is_int(start) and is_int(end) and 0 <= start < end


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)


_CHECKS: dict[str, Callable[[Mapping[str, Any], int], None]] = {
    "comparison": _comparison,
    "ranking": _ranking,
    "best_of": _best_of,
    "label": _label,
    "rating": _rating,
    "correction": _words,
    "demonstration": _words,
    "critique": _words,
    "span_marks": _span_marks,
    "step_marks": _step_marks,
}
