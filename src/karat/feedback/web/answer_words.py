"""An answer in the words of a person, for those who read other people's answers. Text only, escaped by the template.

Knows kinds and their values; knows nothing about who answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from karat.feedback.web.forms import letter, strengths
from karat.feedback.web.positions import as_shown
from karat.questions import Question

MARKS = {-1: "wrong", 0: "neutral", 1: "right"}
MOST_QUOTED = 20
"""Spans that are quoted; the rest is counted."""


def answer_words(question: Question, value: Mapping[str, Any], order: Sequence[int], texts: Sequence[str] = ()) -> str:
    """What an answer says, with the responses called A, B, … in the order given.

    Args:
        order: identity indices in the order in which the reader sees the responses.
        texts: the responses in identity order, for quoting spans; () = nothing is quoted.
    """
    if "missing" in value:
        return str(value["missing"])
    shown = as_shown(question.kind, value, order)
    words = _WORDS[question.kind]
    return words(question, shown, [texts[index] for index in order] if texts else [])


def _comparison(question: Question, value: Mapping[str, Any], _: Sequence[str]) -> str:
    if value.get("both"):
        return f"Both {value['both']}"
    n = value["n_levels"]
    if n == question.n_levels:
        return strengths(question)[n - 1 - value["level"]]
    lean = 2 * value["level"] - (n - 1)
    return "Tie" if not lean else f"{'A' if lean > 0 else 'B'} better (level {value['level'] + 1} of {n})"


def _ranking(_: Question, value: Mapping[str, Any], __: Sequence[str]) -> str:
    ranks = value["ranks"]
    places = [[letter(i) for i, rank in enumerate(ranks) if rank == place] for place in sorted(set(ranks))]
    return " > ".join(" = ".join(place) for place in places)


def _best_of(_: Question, value: Mapping[str, Any], __: Sequence[str]) -> str:
    return f"{letter(value['best'])} is best"


def _rating(question: Question, value: Mapping[str, Any], _: Sequence[str]) -> str:
    labels = {one.name: one.label or one.name for one in question.attributes}
    scale = f"on {value['low']:g} to {value['high']:g}"
    if "scores" not in value:
        return f"{value['score']:g} {scale}"
    scores = ", ".join(f"{labels.get(name, name)} {score:g}" for name, score in value["scores"].items())
    return f"{scores}, {scale}"


def _label(question: Question, value: Mapping[str, Any], _: Sequence[str]) -> str:
    labels = {one.name: one.label or one.name for one in question.flags}
    parts = [] if value.get("good") is None else ["good" if value["good"] else "bad"]
    parts += [f"flag: {labels.get(name, name)}" for name in value.get("flags") or ()]
    parts += ["escalated"] if value.get("escalate") else []
    return "; ".join(parts) or "no flag"


def _words(_: Question, value: Mapping[str, Any], __: Sequence[str]) -> str:
    aspects = value.get("aspects") or ()
    return str(value.get("text", "")) + (f"\n(about: {', '.join(aspects)})" if aspects else "")


def _spans(question: Question, value: Mapping[str, Any], texts: Sequence[str]) -> str:
    labels = {one.name: one.label or one.name for one in question.span_classes}
    said = []
    for span in value["spans"][:MOST_QUOTED]:
        where = letter(span["response"]) + " " if len(texts) > 1 else ""
        quote = f" “{texts[span['response']][span['start'] : span['end']]}”" if texts else ""
        said.append(f"{where}{labels.get(span['class'], span['class'])}{quote}")
    rest = len(value["spans"]) - len(said)
    return "; ".join(said + ([f"{rest} more"] if rest else [])) or "nothing marked"


def _steps(_: Question, value: Mapping[str, Any], __: Sequence[str]) -> str:
    return ", ".join(f"{i}: {MARKS[step['mark']]}" for i, step in enumerate(value["steps"], 1))


_WORDS = {
    "comparison": _comparison, "ranking": _ranking, "best_of": _best_of, "rating": _rating, "label": _label,
    "correction": _words, "demonstration": _words, "critique": _words, "span_marks": _spans, "step_marks": _steps,
}  # fmt: skip
