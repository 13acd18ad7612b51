"""How a rater is asked: one schema for every kind of feedback, target × kind × granularity.

A question says what the page offers: the levels of the scale, the ways out, the principle to judge by, attributes,
flags, classes of spans. It is content-addressed like everything that was shown, so that a judgement can name it.
Knows nothing about pages, raters or the responses that are asked about.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from karat.errors import InputError
from karat.identity import content_id
from karat.records import GRANULARITIES, KINDS, Granularity, Kind

Rationale = Literal["off", "optional", "required"]
WaysOut = Literal["tie", "both_good", "both_bad", "cannot_judge", "none_fits"]
WAYS_OUT = ("tie", "both_good", "both_bad", "cannot_judge", "none_fits")


@dataclass(frozen=True)
class Choice:
    """Something that can be picked: an attribute to rate, a flag to raise, a class of span."""

    name: str
    """Short, unique within its list; what is stored."""
    label: str = ""
    """What the rater reads; "" = the name."""
    help: str = ""
    """One sentence that says when to pick it."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("Choice.name: found nothing; expected a short name")


@dataclass(frozen=True)
class Question:
    """What the rater is asked about the responses of a task."""

    kind: Kind = "comparison"
    """What is asked for."""
    granularity: Granularity = "response"
    """About what: the conversation, the whole response, a turn, a step or a span."""
    instruction: str = ""
    """The question in the rater's language; "" = the page's own words for the kind."""
    principle: str = ""
    """The written principle to judge by; "" = overall preference under the guideline."""
    n_levels: int = 7
    """comparison: levels of strength, ≥ 2; even = no tie."""
    ways_out: tuple[WaysOut, ...] = WAYS_OUT
    """Which answers besides the scale may be offered; `offers` says which are."""
    low: int = 1
    """rating: lowest point of the scale."""
    high: int = 7
    """rating: highest point of the scale."""
    anchors: tuple[str, ...] = ()
    """rating, comparison: words for the points of the scale from low to high, or for its two ends."""
    attributes: tuple[Choice, ...] = ()
    """rating: what is rated; () = one overall score."""
    flags: tuple[Choice, ...] = ()
    """label: flags that can be raised."""
    span_classes: tuple[Choice, ...] = ()
    """span_marks: what a span can be marked as."""
    aspects: tuple[Choice, ...] = ()
    """critique: aspects that it can be about."""
    rationale: Rationale = "optional"
    """Whether the rater is asked for her reasons in words."""
    content_warning: str = ""
    """What disturbing matter to expect; the texts are blurred until she uncovers them. "" = none."""
    topic: str = ""
    """For the admin: what this question is for."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.granularity not in GRANULARITIES:
            raise InputError(f"Question: found {self.kind!r} of a {self.granularity!r}; expected a known kind and part")
        if self.n_levels < 2:
            raise InputError(f"Question.n_levels: found {self.n_levels}; expected ≥ 2")
        if self.low >= self.high:
            raise InputError(f"Question: found a scale from {self.low} to {self.high}; expected low < high")
        if unknown := set(self.ways_out) - set(WAYS_OUT):
            raise InputError(f"Question.ways_out: found {min(unknown)!r}; expected some of {', '.join(WAYS_OUT)}")
        for name in ("attributes", "flags", "span_classes", "aspects"):
            names = [choice.name for choice in getattr(self, name)]
            if len(set(names)) != len(names):
                raise InputError(f"Question.{name}: found a name twice; expected different names")
        if self.kind == "span_marks" and not self.span_classes:
            raise InputError("Question: span_marks without span_classes; name at least one class")

    @property
    def offers(self) -> tuple[WaysOut, ...]:
        """The ways out on the page: a scale with an even number of levels has no tie, and other kinds have none."""
        if self.kind == "comparison" and self.n_levels % 2 == 1:
            return self.ways_out
        return tuple(way for way in self.ways_out if way in ("cannot_judge", "none_fits"))

    @functools.cached_property
    def id(self) -> str:
        """Content hash of the whole question."""
        return content_id("question", self)


def check_anchors(question: Question) -> Question:
    """The question, where its words are one for each point of its scale, for the two ends, or none.

    Others would not be shown. Questions of old stores may have them, so that this is asked where new ones come in.

    Raises: InputError for another number of words.
    """
    of_scale = {"comparison": question.n_levels, "rating": question.high - question.low + 1}
    n, found = of_scale.get(question.kind, 0), len(question.anchors)
    if found not in (0, 2, n) or (found and not n):
        wanted = f"2 or {n}" if n else "none, as only comparisons and ratings have them"
        raise InputError(f"Question.anchors: found {found} words for a {question.kind}; expected {wanted}")
    return question


@functools.cache
def plain_question(kind: Kind) -> Question:
    """The question of a task that names none: the kind's defaults, with what the kind cannot do without."""
    if kind == "span_marks":
        classes = (Choice("wrong", "Wrong or unsupported"), Choice("good", "Especially good"))
        return Question(kind=kind, granularity="span", span_classes=classes)
    if kind == "step_marks":
        return Question(kind=kind, granularity="step")
    if kind == "label":
        return Question(kind=kind, flags=(Choice("unsafe"), Choice("personal_data"), Choice("spam")))
    return Question(kind=kind)
