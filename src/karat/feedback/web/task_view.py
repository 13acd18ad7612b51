"""What the page of a task says: the question in words, the texts as safe HTML, the controls with their keys.

Everything a template needs, decided here, so that the template only writes it down. Knows tasks, questions and fields;
knows nothing about HTTP, the store or who is looking.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from karat.feedback.web import forms
from karat.feedback.web.rendering import exact_html, is_long, markdown_html, n_words, plain_html
from karat.identity import content_id
from karat.questions import Question
from karat.records import Prompt, Response
from karat.segments import steps_of

FASTEST_WORDS_PER_S = 30.0
"""Nobody reads faster than this; an answer that came sooner is asked back once, never refused."""
FASTEST_S = 0.8
"""The same for texts of a few words, seconds."""
MOST_POINTS = 11
"""A rating of more points is typed, not chosen."""


@dataclass(frozen=True)
class Control:
    """Something that can be chosen."""

    value: str
    """What the form sends."""
    label: str
    """What the rater reads."""
    key: str = ""
    """The key that chooses it, "" = none."""
    short: str = ""
    """What stands there where there is no room."""
    help: str = ""
    """One sentence more."""


@dataclass(frozen=True)
class ShownTurn:
    """One message of the conversation."""

    role: str
    """system, user or assistant."""
    speaker: str
    """The role in the page's words."""
    html: Markup
    """What was said."""


@dataclass(frozen=True)
class Step:
    """One step of a response."""

    index: int
    """Which, from 0."""
    html: Markup
    """Its text."""


@dataclass(frozen=True)
class Candidate:
    """One response on the page."""

    position: int
    """Where it is shown, from 0."""
    letter: str
    """What it is called on the page."""
    html: Markup
    """Its text."""
    long: bool
    """True = first shown shortened where the page is narrow."""
    steps: tuple[Step, ...] = ()
    """Its steps, where each is marked."""


def form_key(lease: str, question: Question, guideline: str) -> str:
    """A name for the form of one page, by which an answer to an older form is known.

    It is made from the lease too: the id of a question is the same on many pages, and a rater could join them by it.
    """
    return content_id("form", [lease, question.id, guideline])


@dataclass(frozen=True)
class TaskView:
    """Everything on the page of one task."""

    lease: str
    """Opaque id of this page's work; "" where a submitted answer is changed."""
    submission: str
    """Key of the submission: sent twice, stored once."""
    supersedes: str
    """The judgement that is changed, "" = none."""
    question: Question
    """How it is asked."""
    turns: tuple[ShownTurn, ...]
    """The conversation."""
    long_prompt: bool
    """True = the conversation is first shown shortened where the page is narrow."""
    candidates: tuple[Candidate, ...]
    """The responses in the order shown."""
    fields: Mapping[str, Sequence[str]]
    """What the form holds."""
    guideline: str = ""
    """Version of the guideline beside it."""
    tie_apart: bool = False
    """True = the tie stands among the ways out, not in the middle of the scale."""
    stacked: bool = False
    """True = responses stand below one another on every screen."""
    messages: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with it, by field."""
    confirm: str = ""
    """What is to be confirmed: "fast", "unchanged" or nothing."""
    saved_at: str = ""
    """When the draft that is shown was saved, in words."""

    @property
    def kind(self) -> str:
        """The kind of feedback."""
        return self.question.kind

    @property
    def form(self) -> str:
        """Which form this is, see `form_key`."""
        return form_key(self.lease, self.question, self.guideline)

    @property
    def beside(self) -> bool:
        """True = the form needs room and stands beside the texts, where the page is wide enough."""
        return self.question.kind in ("rating", "correction", "demonstration", "critique", "span_marks")

    @property
    def asks_reason(self) -> bool:
        """Whether there is a box for reasons; a critique is one already, unless another is required."""
        return self.question.rationale == "required" or (
            self.question.rationale == "optional" and self.question.kind != "critique"
        )

    @property
    def instruction(self) -> str:
        """The question in one sentence."""
        return self.question.instruction or _INSTRUCTIONS[self.question.kind]

    @property
    def about(self) -> str:
        """What part the question is about, where that is not the whole response."""
        return _ABOUT.get(self.question.granularity, "")

    @property
    def scale(self) -> tuple[Control, ...]:
        """The points of a comparison from left to right."""
        question = self.question
        n = question.n_levels
        points = []
        for position, label in enumerate(forms.strengths(question)):
            if forms.needs_position(question, position):
                side = "A" if 2 * position < n - 1 else "B"
                middle = 2 * position == n - 1
                if middle and self.tie_apart:
                    continue
                short = "=" if middle else side if n <= 3 else f"{side}{(abs(n - 1 - 2 * position) + 1) // 2}"
                key = ("0 t " if middle else "") + (str(position + 1) if position < 9 else "")
                points.append(Control(str(position), label, key.strip(), short))
        return tuple(points)

    @property
    def ends(self) -> tuple[str, str]:
        """Words at the two ends of a scale, as they stand from left to right; "" = none."""
        anchors = self.question.anchors
        if self.kind == "comparison":  # where there is room for letters only, the two words still say what they mean
            return (anchors[-1], anchors[0]) if anchors else ("← A is better", "B is better →")
        if self.worded and self.chosen:  # they stand at the points themselves
            return ("", "")
        return (anchors[0], anchors[-1]) if anchors else ("← less", "more →")

    @property
    def chosen(self) -> bool:
        """Whether the points of a rating are buttons; a number is typed where there are too many."""
        return len(self.points) <= MOST_POINTS

    @property
    def worded(self) -> bool:
        """Whether every point of a rating's scale has a word of its own, which a number does not stand for."""
        return any(point.label != point.short for point in self.points)

    @property
    def points(self) -> tuple[Control, ...]:
        """The points of a rating's scale; a digit is the key of the point that it names, if points are not below 0."""
        question, anchors = self.question, self.question.anchors
        n = question.high - question.low + 1
        words = anchors if len(anchors) == n else ("",) * n
        points = []
        for i, word in enumerate(words):
            value = question.low + i
            digit = value if question.low >= 0 else i + 1
            points.append(Control(str(value), word or str(value), str(digit) if digit <= 9 else "", str(value)))
        return tuple(points)

    @property
    def rated(self) -> tuple[Control, ...]:
        """What a rating scores: label and help of each attribute."""
        chosen = self.question.attributes
        return tuple(Control(each.name, each.label or each.name, help=each.help) for each in chosen) or (
            Control("score", "Overall"),
        )

    @property
    def ways(self) -> tuple[Control, ...]:
        """The ways out that the question offers; the tie only where it is not on the scale."""
        several = self.question.kind in ("comparison", "ranking", "best_of")
        known = _WAYS if several else {**_WAYS, "none_fits": Control("none_fits", "Question does not fit", "n")}
        tie: tuple[Control, ...] = ()
        if self.kind == "comparison" and self.tie_apart and "tie" in self.question.offers:
            middle = self.question.n_levels // 2
            tie = (Control(str(middle), forms.strengths(self.question)[middle], f"0 t {middle + 1}", "="),)
        return (*tie, *(known[way] for way in self.question.offers if way in known))


@functools.lru_cache(maxsize=64)
def blank_view(question: Question, n: int, *, tie_apart: bool = False) -> TaskView:
    """The view of a question about n responses whose texts are not there: what its controls and keys are written of."""
    letters = [forms.letter(position) if n > 1 else "" for position in range(n)]
    candidates = tuple(Candidate(position, letter, Markup(), False) for position, letter in enumerate(letters))
    return TaskView("", "", "", question, (), False, candidates, {}, tie_apart=tie_apart)


_INSTRUCTIONS = {
    "comparison": "Which response is better?",
    "ranking": "Rank the responses from best to worst.",
    "best_of": "Which response is the best?",
    "rating": "How good is this response?",
    "label": "Is this response good?",
    "correction": "Edit the response until it is right.",
    "demonstration": "Write the response that should be given.",
    "critique": "What is right, and what is wrong, with this response?",
    "span_marks": "Mark the parts of the text that stand out.",
    "step_marks": "Is each step right?",
}
_ABOUT = {
    "conversation": "Judge the whole conversation, not only its last message.",
    "turn": "Judge the last message of the conversation only.",
}
_SPEAKERS = {"system": "Instruction to the assistant", "user": "Person", "assistant": "Assistant"}
_WAYS = {
    "both_good": Control("both_good", "Both good", "+"),
    "both_bad": Control("both_bad", "Both bad", "-"),
    "cannot_judge": Control("cannot_judge", "Cannot judge", "x"),
    "none_fits": Control("none_fits", "None of these fits", "n"),
}


def shown_turns(prompt: Prompt) -> tuple[ShownTurn, ...]:
    """The conversation as it is shown."""
    return tuple(ShownTurn(turn.role, _SPEAKERS[turn.role], markdown_html(turn.content)) for turn in prompt.turns)


def covered_excerpt(question: Question, text: str) -> str:
    """A text as a list quotes it: where it may disturb, the content warning alone."""
    return f"Content warning: {question.content_warning}" if question.content_warning else text


def shown_candidates(question: Question, responses: Sequence[Response], order: Sequence[int]) -> tuple[Candidate, ...]:
    """The responses in the order shown; where parts of a text are marked, it is shown code point for code point."""
    found = []
    for position, index in enumerate(order):
        text = responses[index].text
        exact = question.kind in ("span_marks", "step_marks")
        steps: tuple[Step, ...] = ()
        if question.kind == "step_marks":
            steps = tuple(Step(i, exact_html(text[start:end])) for i, (start, end) in enumerate(steps_of(text)))
        html = plain_html(text) if exact else markdown_html(text)
        letter = forms.letter(position) if len(order) > 1 else ""
        found.append(Candidate(position, letter, html, is_long(text) and not exact, steps))
    return tuple(found)


def too_fast(active_s: float | None, prompt: Prompt, responses: Sequence[Response]) -> bool:
    """Whether an answer came sooner than anybody can read; False where nothing was measured."""
    if active_s is None:
        return False
    words = n_words(prompt.text) + sum(n_words(response.text) for response in responses)
    return active_s < max(FASTEST_S, words / FASTEST_WORDS_PER_S)
