"""The form of every kind of feedback: posted fields become the answer, an answer becomes fields again.

Fields speak of what is on the screen: position 0 is shown first (left, or on top). Values speak of identity: a, b, ….
Whatever does not fit gets a message for the field where it stands, in the rater's
words. Knows questions and answers; knows nothing about HTTP, pages or the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from karat.answers import MARKS, check_value, missing
from karat.errors import InputError
from karat.feedback.web.positions import as_shown, as_stored
from karat.feedback.web.rendering import is_blank
from karat.questions import Question
from karat.segments import steps_of

Fields = Mapping[str, Sequence[str]]
"""What a form sent: the values of each field, in their order."""

MOST_WORDS = 20_000
"""Characters of an answer in words; whoever wrote more is told, and keeps it."""
MOST_REASON = 5_000
"""Characters of a reason."""
MOST_SPANS = 200
"""Marks in one answer."""
N_QUOTES = 3
"""Rows in which a span can be named by quoting it, without JavaScript."""

REASONS_MISSING = {"cannot_judge": "cannot judge", "none_fits": "none fits", "escalate": "escalated"}
"""What is stored for each way out that gives no answer."""


@dataclass(frozen=True)
class Asked:
    """What a form is about."""

    question: Question
    """How it is asked."""
    texts: tuple[str, ...]
    """The responses' texts in identity order."""
    order: tuple[int, ...]
    """Identity indices in the order shown."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The texts in the order shown."""
        return tuple(self.texts[index] for index in self.order)


@dataclass(frozen=True)
class Answer:
    """What was made of a form."""

    value: dict[str, Any] | None
    """The answer in identity order, checked; None = it does not fit, `messages` say why."""
    reason: str | None
    """The rater's reason, None = none."""
    messages: Mapping[str, str]
    """What is wrong by field name; "" names the whole form."""
    unchanged: bool = False
    """True = a correction that changes nothing."""


class _DoesNotFitError(Exception):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


def answer_of(asked: Asked, fields: Fields) -> Answer:
    """The answer that was posted, or what is wrong with it."""
    reason = None if is_blank(said := _text(fields, "reason")) else said
    try:
        value, unchanged = as_stored(asked.question.kind, _value(asked, fields), asked.order), False
        if "missing" not in value:
            if asked.question.rationale == "required" and reason is None:
                raise _DoesNotFitError("reason", "Say in a few words why.")
            unchanged = asked.question.kind == "correction" and value["text"] == as_sent("".join(asked.texts[:1]))
        if reason is not None and len(reason) > MOST_REASON:
            raise _DoesNotFitError(
                "reason", f"The reason has {len(reason):,} characters; use {MOST_REASON:,} or fewer."
            )
        check_value(asked.question.kind, value, len(asked.texts))
    except _DoesNotFitError as error:
        return Answer(None, reason, {error.field: error.message})
    except InputError as error:
        return Answer(None, reason, {"": str(error)})
    return Answer(value, reason, {}, unchanged)


def fields_of(asked: Asked, value: Mapping[str, Any], reason: str | None = None) -> dict[str, list[str]]:
    """The fields that `answer_of` reads as this value; a kind's own words are there even where it says "missing"."""
    fields: dict[str, list[str]] = {"reason": [reason]} if reason else {}
    if "missing" in value:
        ways = {said: way for way, said in REASONS_MISSING.items()}
        return fields | {_way_field(asked.question): [ways.get(value["missing"], "cannot_judge")]}
    return fields | _TO_FIELDS[asked.question.kind](asked, as_shown(asked.question.kind, value, asked.order))


def first_fields(asked: Asked) -> dict[str, list[str]]:
    """The fields of a fresh form: a correction starts from the text that is to be corrected, everything else empty."""
    return {"text": [asked.texts[0]]} if asked.question.kind == "correction" and asked.texts else {}


def letter(position: int) -> str:
    """What the response at a position on the screen is called: A, B, … Z, then 27, 28, …"""
    return chr(ord("A") + position) if position < 26 else str(position + 1)


def strengths(question: Question, first: str = "A", second: str = "B") -> tuple[str, ...]:
    """What the points of a comparison's scale are called, from left (`first` much better) to right."""
    n = question.n_levels
    if len(question.anchors) == n:
        return tuple(reversed(question.anchors))
    steps = _STRENGTHS.get(n // 2) or tuple(f"better, {step} of {n // 2}" for step in range(n // 2, 0, -1))
    left = [f"{first} {step}" for step in steps]
    right = [f"{second} {step}" for step in reversed(steps)]
    return (*left, *(["Tie"] if n % 2 else []), *right)


_STRENGTHS = {
    1: ("better",),
    2: ("much better", "better"),
    3: ("much better", "better", "slightly better"),
    4: ("very much better", "much better", "better", "slightly better"),
}


def needs_position(question: Question, position: int) -> bool:
    """Whether this point of a comparison's scale is offered: the middle is not where the question has no tie."""
    return question.n_levels % 2 == 0 or position != question.n_levels // 2 or "tie" in question.offers


# From fields to values


def _value(asked: Asked, fields: Fields) -> dict[str, Any]:
    way = _one(fields, "way") or (_one(fields, "choice") if _way_field(asked.question) == "choice" else "")
    if way == "escalate" and asked.question.kind != "label":
        return missing(REASONS_MISSING[way])
    if way in ("cannot_judge", "none_fits"):
        if way not in asked.question.offers:
            raise _DoesNotFitError("", "This question does not offer that answer; choose another.")
        return missing(REASONS_MISSING[way])
    return _FROM_FIELDS[asked.question.kind](asked, fields)


def _way_field(question: Question) -> str:
    return "choice" if question.kind in ("comparison", "best_of") else "way"


def _comparison(asked: Asked, fields: Fields) -> dict[str, Any]:
    n, choice = asked.question.n_levels, _one(fields, "choice")
    if choice in ("both_good", "both_bad") and choice in asked.question.offers:
        return {"level": (n - 1) // 2, "n_levels": n, "both": choice.removeprefix("both_")}
    position = _number(choice, 0, n - 1)
    if position is None or not needs_position(asked.question, position):
        raise _DoesNotFitError("choice", "Choose which response is better, and by how much.")
    return {"level": n - 1 - position, "n_levels": n}


def _ranking(asked: Asked, fields: Fields) -> dict[str, Any]:
    n = len(asked.texts)
    given = [_number(_one(fields, f"rank-{position}"), 1, n) for position in range(n)]
    left = [letter(position) for position, rank in enumerate(given) if rank is None]
    if left:
        field = f"rank-{given.index(None)}"
        raise _DoesNotFitError(field, f"Give every response a rank; still without one: {', '.join(left)}.")
    dense = {rank: i for i, rank in enumerate(sorted(set(given)), 1)}  # type: ignore[type-var]
    return {"ranks": [dense[rank] for rank in given]}


def _best_of(asked: Asked, fields: Fields) -> dict[str, Any]:
    position = _number(_one(fields, "choice"), 0, len(asked.texts) - 1)
    if position is None:
        raise _DoesNotFitError("choice", "Choose the best response.")
    return {"best": position}


def _rating(asked: Asked, fields: Fields) -> dict[str, Any]:
    question = asked.question
    scores: dict[str, int] = {}
    for i, name in enumerate(rated(question)):
        score = _number(_one(fields, f"score-{i}"), question.low, question.high)
        if score is None:
            which = f" for “{question.attributes[i].label or name}”" if question.attributes else ""
            message = f"Choose a point from {question.low} to {question.high}{which}."
            raise _DoesNotFitError(f"score-{i}", message)
        scores[name] = score
    scale = {"low": question.low, "high": question.high}
    return {"scores": scores, **scale} if question.attributes else {"score": scores["score"], **scale}


def rated(question: Question) -> tuple[str, ...]:
    """What a rating gives a score to: its attributes' names, or the one overall score."""
    return tuple(choice.name for choice in question.attributes) or ("score",)


def _label(asked: Asked, fields: Fields) -> dict[str, Any]:
    known = [choice.name for choice in asked.question.flags]
    flags = [name for name in known if name in fields.get("flag", ())]
    good = {"yes": True, "no": False}.get(_one(fields, "good"))
    escalate = bool(_one(fields, "escalate")) or _one(fields, "way") == "escalate"
    if good is None and not flags and not escalate:
        said = "Say whether it is good or bad" + (", or raise a flag." if known else ".")
        raise _DoesNotFitError("good", said)
    value: dict[str, Any] = {} if good is None else {"good": good}
    if known or good is None:
        value["flags"] = flags
    return value | ({"escalate": True} if escalate else {})


def _words(asked: Asked, fields: Fields) -> dict[str, Any]:
    text = as_sent((fields.get("text") or [""])[0])
    if is_blank(text):
        raise _DoesNotFitError("text", _EMPTY_WORDS[asked.question.kind])
    if len(text) > MOST_WORDS:
        message = f"The text has {len(text):,} characters; use {MOST_WORDS:,} or fewer."
        raise _DoesNotFitError("text", message)
    value: dict[str, Any] = {"text": text}
    if asked.question.kind == "critique" and asked.question.aspects:
        chosen = fields.get("aspect", ())
        value["aspects"] = [choice.name for choice in asked.question.aspects if choice.name in chosen]
    return value


_EMPTY_WORDS = {
    "correction": "The text is empty; write how the response should read.",
    "demonstration": "Write the answer as it should be.",
    "critique": "Write what is right or wrong with the response.",
}


def _span_marks(asked: Asked, fields: Fields) -> dict[str, Any]:
    classes = {choice.name for choice in asked.question.span_classes}
    spans = set()
    for mark in fields.get("span", ())[: MOST_SPANS + 1]:
        position, start, end, name = ([*mark.split(":", 3), "", "", ""])[:4]
        where = _number(position, 0, len(asked.texts) - 1)
        length = len(asked.shown[where]) if where is not None else 0
        first, last = _number(start, 0, length), _number(end, 0, length)
        if where is None or first is None or last is None or first >= last or name not in classes:
            raise _DoesNotFitError("span", "A mark does not fit the text any more; remove it and mark again.")
        spans.add((where, first, last, name))
    spans |= {span for row in range(N_QUOTES) if (span := _quoted(asked, fields, row)) is not None}
    if len(spans) > MOST_SPANS:
        raise _DoesNotFitError("span", f"More than {MOST_SPANS} marks; mark the ones that matter most.")
    if not spans and not _one(fields, "nothing"):
        raise _DoesNotFitError("span", "Mark at least one part, or tick “Nothing to mark”.")
    names = ("response", "start", "end", "class")
    return {"spans": [dict(zip(names, span, strict=True)) for span in sorted(spans)]}


def _quoted(asked: Asked, fields: Fields, row: int) -> tuple[int, int, int, str] | None:
    """The span that a row names by quoting it."""
    quote = as_sent(_one(fields, f"quote-{row}")).strip()
    if not quote:
        return None
    where = _number(_one(fields, f"quote-in-{row}") or "0", 0, len(asked.texts) - 1)
    name = _one(fields, f"quote-class-{row}")
    if where is None or name not in {choice.name for choice in asked.question.span_classes}:
        raise _DoesNotFitError(f"quote-class-{row}", "Choose what this part is.")
    text = asked.shown[where]
    n = text.count(quote)
    if n != 1:
        found = "is not in the text; copy it exactly" if n == 0 else f"is there {n} times; copy more words around it"
        raise _DoesNotFitError(f"quote-{row}", f"“{quote[:40]}” {found}.")
    start = text.index(quote)
    return where, start, start + len(quote), name


def _step_marks(asked: Asked, fields: Fields) -> dict[str, Any]:
    steps = steps_of(asked.texts[0]) if len(asked.texts) == 1 else ()
    marks = [_number(_one(fields, f"step-{i}"), min(MARKS), max(MARKS)) for i in range(len(steps))]
    # what follows the first wrong step need not be judged: it builds on it
    last = marks.index(-1) + 1 if -1 in marks else len(marks)
    left = [i for i, mark in enumerate(marks[:last]) if mark is None]
    if left or not steps:
        named = ", ".join(str(i + 1) for i in left[:5]) + (" …" if len(left) > 5 else "")
        message = f"Mark every step up to the first wrong one; still without a mark: {named}."
        raise _DoesNotFitError(f"step-{left[0] if left else 0}", message)
    pairs = zip(steps, marks, strict=True)
    return {"steps": [{"start": s, "end": e, "mark": mark} for (s, e), mark in pairs if mark is not None]}


# From values to fields


def _comparison_fields(_: Asked, value: Mapping[str, Any]) -> dict[str, list[str]]:
    if both := value.get("both"):
        return {"choice": [f"both_{both}"]}
    return {"choice": [str(value["n_levels"] - 1 - value["level"])]}


def _ranking_fields(_: Asked, value: Mapping[str, Any]) -> dict[str, list[str]]:
    return {f"rank-{position}": [str(rank)] for position, rank in enumerate(value["ranks"])}


def _best_of_fields(_: Asked, value: Mapping[str, Any]) -> dict[str, list[str]]:
    return {"choice": [str(value["best"])]}


def _rating_fields(asked: Asked, value: Mapping[str, Any]) -> dict[str, list[str]]:
    scores = value.get("scores", {"score": value.get("score")})
    return {f"score-{i}": [f"{scores[name]:g}"] for i, name in enumerate(rated(asked.question)) if name in scores}


def _label_fields(_: Asked, value: Mapping[str, Any]) -> dict[str, list[str]]:
    fields = {"flag": list(value.get("flags") or ())}
    if value.get("good") is not None:
        fields["good"] = ["yes" if value["good"] else "no"]
    return fields | ({"escalate": ["1"]} if value.get("escalate") else {})


def _words_fields(_: Asked, value: Mapping[str, Any]) -> dict[str, list[str]]:
    return {"text": [value["text"]], "aspect": list(value.get("aspects", ()))}


def _span_fields(_: Asked, value: Mapping[str, Any]) -> dict[str, list[str]]:
    spans = [f"{span['response']}:{span['start']}:{span['end']}:{span['class']}" for span in value["spans"]]
    return {"span": spans} if spans else {"span": [], "nothing": ["1"]}


def _step_fields(asked: Asked, value: Mapping[str, Any]) -> dict[str, list[str]]:
    starts = {start: i for i, (start, _) in enumerate(steps_of(asked.texts[0]))}
    return {f"step-{starts[s['start']]}": [str(s["mark"])] for s in value["steps"] if s["start"] in starts}


# Fields


def _one(fields: Fields, name: str) -> str:
    values = fields.get(name) or ("",)
    return values[-1]


def _text(fields: Fields, name: str) -> str:
    return as_sent(_one(fields, name)).strip()


def as_sent(text: str) -> str:
    """A text as a browser gives it back from a form, but with line ends of one character."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def _number(text: str, low: int, high: int) -> int | None:
    """The whole number written, None where there is none or it is out of range."""
    body = text[1:] if text.startswith("-") else text
    if not (body.isascii() and body.isdigit() and len(body) <= 9):
        return None
    return int(text) if low <= int(text) <= high else None


_FROM_FIELDS: dict[str, Callable[[Asked, Fields], dict[str, Any]]] = {
    "comparison": _comparison, "ranking": _ranking, "best_of": _best_of, "rating": _rating, "label": _label,
    "correction": _words, "demonstration": _words, "critique": _words, "span_marks": _span_marks,
    "step_marks": _step_marks,
}  # fmt: skip
_TO_FIELDS: dict[str, Callable[[Asked, Mapping[str, Any]], dict[str, list[str]]]] = {
    "comparison": _comparison_fields, "ranking": _ranking_fields, "best_of": _best_of_fields,
    "rating": _rating_fields, "label": _label_fields, "correction": _words_fields,
    "demonstration": _words_fields, "critique": _words_fields, "span_marks": _span_fields,
    "step_marks": _step_fields,
}  # fmt: skip
