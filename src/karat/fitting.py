"""Whether an answer fits what was asked: the question's scale and names, and the texts that it is about.

Knows questions and plain JSON values. Knows nothing about raters, stores or pages; `answers.check_value` has looked at the
value by itself before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from karat.errors import InputError
from karat.questions import Choice, Question

MANY = 10**6
TARGETS: dict[str, tuple[int, int]] = {
    "comparison": (2, 2), "ranking": (2, MANY), "best_of": (2, MANY), "rating": (1, 1), "label": (1, 1),
    "correction": (1, 1), "demonstration": (0, 0), "critique": (1, 1), "span_marks": (1, MANY), "step_marks": (1, 1),
}  # fmt: skip
"""Fewest and most responses that a judgement of each kind can speak about."""


def check_targets(name: str, kind: str, n_responses: int) -> None:
    """Raise InputError, with the judgement's name, unless one of this kind can speak about so many responses."""
    least, most = TARGETS[kind]
    if not least <= n_responses <= most:
        wanted = f"{least}" if least == most else f"at least {least}"
        raise InputError(f"{name}: judges {n_responses} responses; expected {wanted}")


def check_asked(question: Question, kind: str, value: Mapping[str, Any]) -> None:
    """Raise InputError unless the answer stays within its question: scale, levels, attributes, flags, classes, aspects."""
    if "missing" in value:
        return
    if kind != question.kind:
        raise InputError(f"{kind}: found an answer to a question that asks for a {question.kind}")
    if kind == "comparison" and value["n_levels"] != question.n_levels:
        raise InputError(f"comparison: found {value['n_levels']} levels; expected the question's {question.n_levels}")
    if kind == "rating":
        if (value["low"], value["high"]) != (question.low, question.high):
            raise InputError(
                f"rating: found the scale {value['low']}–{value['high']}; "
                f"expected the question's {question.low}–{question.high}"
            )
        if question.attributes:
            _known("rating", "attribute", value.get("scores", ("score",)), question.attributes)
        elif "scores" in value:
            raise InputError(f"rating: found scores {sorted(value['scores'])}; expected the one score that was asked")
    if kind == "label":
        _known("label", "flag", value.get("flags") or (), question.flags)
    if kind == "critique":
        _known("critique", "aspect", value.get("aspects") or (), question.aspects)
    if kind == "span_marks":
        _known("span_marks", "class", [span["class"] for span in value["spans"]], question.span_classes)


def check_inside(kind: str, value: Mapping[str, Any], texts: Sequence[str]) -> None:
    """Raise InputError unless everything marked lies inside its text.

    Args:
        texts: the responses' texts in identity order.
    """
    if kind not in ("span_marks", "step_marks") or "missing" in value:
        return
    for part in value["spans"] if kind == "span_marks" else value["steps"]:
        length = len(texts[part.get("response", 0)])
        if part["end"] > length:
            raise InputError(
                f"{kind}: marks {part['start']}–{part['end']} of a response of {length} characters; "
                "expected spans inside the text"
            )


def _known(kind: str, what: str, named: Collection[str], offered: Sequence[Choice]) -> None:
    names = [choice.name for choice in offered]
    if unknown := sorted(set(named) - set(names)):
        raise InputError(f"{kind}: found the {what} {unknown[0]!r}; expected some of {', '.join(names) or 'none'}")
