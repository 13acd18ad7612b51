"""What judgements say about the reward, one statement a term of the likelihood.

A comparison is a `Vote`. The other kinds have their own small records here. A judgement may say several things: a
rating of three attributes is three statements, "both bad" is a tie and two labels, a correction prefers the corrected
text to the original. `karat.reading` makes them from judgements. Knows ids and names; knows nothing about texts,
tensors or files.
"""

from __future__ import annotations

from dataclasses import dataclass

from karat.errors import InputError
from karat.records import Kind, Vote

PREFERENCE = "preference"
"""The objective of every judgement that names none."""


@dataclass(frozen=True)
class Ranked:
    """Three or more responses put in order, ties allowed."""

    judgement_id: str
    """The event it comes from."""
    prompt_id: str
    """Prompt.id."""
    response_ids: tuple[str, ...]
    """Response.id of those ranked, at least three."""
    ranks: tuple[int, ...]
    """1 = best, equal = tied, dense; one a response."""
    annotator: str
    """Annotator.id."""
    strategy: str = "random"
    """How the question was chosen."""
    propensity: float = 1.0
    """With which probability."""
    kind: Kind = "ranking"
    """The judgement's kind."""
    objective: str = PREFERENCE
    """What it speaks about."""


@dataclass(frozen=True)
class Best:
    """One of three or more responses named the best."""

    judgement_id: str
    """The event it comes from."""
    prompt_id: str
    """Prompt.id."""
    response_ids: tuple[str, ...]
    """Response.id of those on offer, at least three."""
    best: int
    """Index of the chosen one."""
    annotator: str
    """Annotator.id."""
    strategy: str = "random"
    """How the question was chosen."""
    propensity: float = 1.0
    """With which probability."""
    kind: Kind = "best_of"
    """The judgement's kind."""
    objective: str = PREFERENCE
    """What it speaks about."""


@dataclass(frozen=True)
class Preferred:
    """What somebody wrote, preferred to what was there."""

    judgement_id: str
    """The event it comes from."""
    prompt_id: str
    """Prompt.id."""
    response_ids: tuple[str, str]
    """Response.id of the better (written) and of the worse response."""
    annotator: str
    """Annotator.id."""
    kind: Kind
    """correction, demonstration or critique (its revision): each has a virtual rater with a competence of its own."""
    share: float = 1.0
    """Its weight: a demonstration against k responses is k statements of 1/k, one judgement in all."""
    strategy: str = "random"
    """How the question was chosen."""
    propensity: float = 1.0
    """With which probability."""
    objective: str = PREFERENCE
    """What it speaks about."""


@dataclass(frozen=True)
class Rated:
    """A number given to one response."""

    judgement_id: str
    """The event it comes from."""
    prompt_id: str
    """Prompt.id."""
    response_ids: tuple[str, ...]
    """Response.id of the one rated."""
    value: float
    """The rating, low ≤ value ≤ high; higher is better."""
    low: float
    """Lowest point of the scale."""
    high: float
    """Highest point of the scale."""
    annotator: str
    """Annotator.id."""
    objective: str = PREFERENCE
    """The attribute rated, as an objective."""
    strategy: str = "random"
    """How the question was chosen."""
    propensity: float = 1.0
    """With which probability."""
    kind: Kind = "rating"
    """The judgement's kind."""

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high or self.low == self.high:
            raise InputError(
                f"rating {self.judgement_id}: found {self.value} on a scale from {self.low} to {self.high}; "
                "expected a value inside it"
            )


@dataclass(frozen=True)
class Labelled:
    """One response called good or bad, or flagged or not."""

    judgement_id: str
    """The event it comes from."""
    prompt_id: str
    """Prompt.id."""
    response_ids: tuple[str, ...]
    """Response.id of the one labelled."""
    good: bool
    """False = bad, flagged, or faulted in a critique."""
    annotator: str
    """Annotator.id."""
    objective: str = PREFERENCE
    """What it is good at."""
    kind: Kind = "label"
    """label, critique (its aspects) or comparison ("both good", "both bad"); each has thresholds of its own."""
    strategy: str = "random"
    """How the question was chosen."""
    propensity: float = 1.0
    """With which probability."""


Statement = Vote | Ranked | Best | Preferred | Rated | Labelled


@dataclass(frozen=True)
class Part:
    """A part of a response that somebody marked."""

    start: int
    """First code point."""
    end: int
    """Code point behind the last."""
    mark: int
    """step: −1 wrong, 0 neutral, 1 right. A class of spans, edited: 1 = is of this class."""
    name: str
    """The class of a span, `step`, or `edited`."""


@dataclass(frozen=True)
class Marked:
    """What one rater marked in one response: for token-level rewards, no term of the likelihood of whole responses."""

    judgement_id: str
    """The event it comes from."""
    prompt_id: str
    """Prompt.id."""
    response_ids: tuple[str, ...]
    """Response.id of the one marked."""
    parts: tuple[Part, ...]
    """Steps: all of them, with their marks. Spans: those marked; the rest of the text was looked at and left."""
    names: tuple[str, ...]
    """Classes that could have been marked: `step`, `edited`, or the classes of spans under the same question."""
    annotator: str
    """Annotator.id."""
    kind: Kind
    """span_marks, step_marks or correction (the spans it removed)."""
    strategy: str = "random"
    """How the question was chosen."""
