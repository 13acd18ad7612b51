"""When two answers say the same: for early stop, gold items, hidden repeats and disputes. Pure.

Knows kinds of feedback and their values, which are in identity order whatever was shown; knows nothing about raters.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from karat.answers import check_value
from karat.errors import InputError

COMPARABLE = ("comparison", "ranking", "best_of", "rating", "label", "step_marks")
"""Kinds of which two answers can be held against each other; words and spans are for people to read."""

ESCALATED = "escalated"
"""`missing` of an answer by which a rater calls for somebody else."""


def gist(kind: str, value: Mapping[str, Any]) -> Hashable | None:
    """What an answer says in essence; equal gists = the same answer.

    comparison: which side, or a tie and of what sort (strength does not count); ranking: the order with its ties;
    label: good or bad, and the flags; best_of, rating, step_marks: all of it.

    Returns: None where the rater gave no answer, or the kind has none that can be compared.
    """
    if "missing" in value or kind not in COMPARABLE:
        return None
    if kind == "comparison":
        lean = 2 * value["level"] - (value["n_levels"] - 1)
        return ("a" if lean > 0 else "b") if lean else ("tie", value.get("both"))
    if kind == "ranking":
        levels = sorted(set(value["ranks"]))
        return tuple(levels.index(rank) for rank in value["ranks"])
    if kind == "best_of":
        return value["best"]
    if kind == "rating":
        return tuple(sorted(_scores(value).items()))
    if kind == "label":
        return (value.get("good"), tuple(sorted(value.get("flags", ()))))
    return tuple((step["start"], step["end"], step["mark"]) for step in value["steps"])


def same_answer(kind: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """True = both are answers and say the same."""
    found = gist(kind, first)
    return found is not None and found == gist(kind, second)


def is_right(kind: str, expected: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """True = the answer is the expected one.

    A comparison is right on the right side; a tie where "both" is not said fits every tie. A rating is right within
    expected["within"] points (1 where it is not said) on every attribute that is expected. The flags of a label are
    right where all that are expected are raised; more may be.
    """
    if "missing" in expected or "missing" in given:
        return expected.get("missing", "") == given.get("missing", None)
    if kind == "rating":
        wanted, found = _scores(expected), _scores(given)
        within = expected.get("within", 1)
        return all(name in found and abs(found[name] - score) <= within for name, score in wanted.items())
    if kind == "label":
        raised = set(given.get("flags", ())) >= set(expected.get("flags", ()))
        return raised and expected.get("good") in (None, given.get("good"))
    wanted_gist, found_gist = gist(kind, expected), gist(kind, given)
    if wanted_gist == ("tie", None):
        return isinstance(found_gist, tuple) and found_gist[:1] == ("tie",)
    return wanted_gist is not None and wanted_gist == found_gist


def check_expected(kind: str, expected: Mapping[str, Any], n_responses: int) -> None:
    """Raise InputError unless an answer of this kind can be held against this one."""
    if kind not in COMPARABLE:
        raise InputError(f"gold: found a {kind}, whose answers only people can compare; use {', '.join(COMPARABLE)}")
    check_value(kind, expected, n_responses)


def agreed(kind: str, values: Sequence[Mapping[str, Any]], needed: int) -> bool:
    """True = there are at least `needed` answers and all of them say the same."""
    gists = [gist(kind, value) for value in values]
    return len(gists) >= max(needed, 1) and gists[0] is not None and len(set(gists)) == 1


def escalates(value: Mapping[str, Any]) -> bool:
    """True = the rater calls for somebody else to look."""
    return value.get("missing") == ESCALATED or value.get("escalate") is True


def _scores(value: Mapping[str, Any]) -> dict[str, float]:
    return dict(value["scores"]) if "scores" in value else {"": value["score"]}
