"""Answers in terms of what was shown first, second, … and in terms of identity; one becomes the other and back.

Raters and their programs know positions only: identity indices would tell which policy wrote what. Knows the form of
every kind's value; knows nothing about where values come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def as_stored(kind: str, value: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """An answer about positions as the one about identities.

    Args:
        value: checked; as `Judgement.value`, where response i is the i-th shown and "a" the first shown.
        order: identity indices in the order shown.
    """
    return _moved(kind, value, order)


def as_shown(kind: str, value: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """An answer about identities as the one about positions: the inverse of `as_stored`."""
    back = [0] * len(order)
    for position, index in enumerate(order):
        back[index] = position
    return _moved(kind, value, back)


def _moved(kind: str, value: Mapping[str, Any], to: Sequence[int]) -> dict[str, Any]:
    moved = dict(value)
    if "missing" in value:
        return moved
    if kind == "comparison" and to[0] == 1:
        moved["level"] = value["n_levels"] - 1 - value["level"]
    elif kind == "ranking":
        ranks = [0] * len(to)
        for i, rank in enumerate(value["ranks"]):
            ranks[to[i]] = rank
        moved["ranks"] = ranks
    elif kind == "best_of":
        moved["best"] = to[value["best"]]
    elif kind == "span_marks":
        spans = [{**span, "response": to[span["response"]]} for span in value["spans"]]
        moved["spans"] = sorted(spans, key=lambda span: (span["response"], span["start"], span["end"], span["class"]))
    return moved
