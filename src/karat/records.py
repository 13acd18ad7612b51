"""What crosses a border between rooms: frozen records, checked when they are made.

A prompt is what the policy reads, a response what it wrote. A task asks people to judge responses; a judgement is one
person's answer, an event that never changes. Ids are content hashes. Knows nothing about tensors, files or databases.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

from karat.answers import check_value
from karat.errors import InputError
from karat.identity import content_id

Role = Literal["system", "user", "assistant"]
Kind = Literal[
    "comparison", "ranking", "best_of", "rating", "label", "correction", "demonstration", "critique",
    "span_marks", "step_marks",
]  # fmt: skip
Origin = Literal["person", "simulated", "ai", "imported"]
ROLES = ("system", "user", "assistant")
KINDS: tuple[Kind, ...] = get_args(Kind)
ORIGINS = ("person", "simulated", "ai", "imported")
Granularity = Literal["conversation", "response", "turn", "step", "span"]
GRANULARITIES = ("conversation", "response", "turn", "step", "span")
Audience = Literal["annotator", "expert"]
AUDIENCES = ("annotator", "expert")
WORD_KINDS = ("correction", "demonstration", "critique")
"""Kinds whose answer is words."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    """Who speaks: system, user or assistant."""
    content: str
    """What was said."""

    def __post_init__(self) -> None:
        _one_of("Turn.role", self.role, ROLES)
        _text("Turn.content", self.content)


@dataclass(frozen=True)
class Prompt:
    """What the policy answers: a conversation that ends before the assistant speaks."""

    turns: tuple[Turn, ...]
    """The conversation so far; the last turn is not the assistant's."""
    topic: str | None = None
    """The group by which prompts may be split (a debate topic, a kind of question); None = no group."""

    def __post_init__(self) -> None:
        if not self.turns:
            raise InputError("Prompt: found no turns; expected at least one")
        if self.turns[-1].role == "assistant":
            raise InputError("Prompt: the last turn is the assistant's; move it to the response")

    @functools.cached_property
    def id(self) -> str:
        """Content hash of the turns (the topic is a view on the prompt, not part of it)."""
        return content_id("prompt", [[turn.role, turn.content] for turn in self.turns])

    @property
    def text(self) -> str:
        """The contents of the turns, one a line: for people and for text statistics, never for a model."""
        return "\n".join(turn.content for turn in self.turns)


def user_prompt(text: str, *, topic: str | None = None) -> Prompt:
    """A prompt of a single user turn."""
    return Prompt((Turn("user", text),), topic)


@dataclass(frozen=True)
class Response:
    """One text written for a prompt."""

    prompt_id: str
    """Prompt.id of the prompt it answers."""
    text: str
    """The response without any end-of-sequence mark."""
    source: str
    """Who wrote it: a policy's artefact or name, `demonstrator`, or the file it was imported from."""
    sample: int = 0
    """Which of the source's samples for this prompt, from 0."""

    def __post_init__(self) -> None:
        _text("Response.text", self.text)

    @functools.cached_property
    def id(self) -> str:
        """Content hash of prompt and text: the same answer by two sources is one response."""
        return content_id("response", [self.prompt_id, self.text])


@dataclass(frozen=True)
class Demonstration:
    """A response that somebody wrote to show how it is done."""

    prompt: Prompt
    """The prompt that was answered."""
    text: str
    """The answer."""
    source: str
    """Who or what wrote it."""


@dataclass(frozen=True)
class Task:
    """A question put to raters: judge these responses to this prompt."""

    prompt_id: str
    """Prompt.id of the prompt that is shown."""
    response_ids: tuple[str, ...]
    """Response.id of the responses, in identity order (a, b, …), which is not the order shown."""
    kind: Kind = "comparison"
    """What is asked for."""
    overlap: int = 1
    """How many different raters are to answer, ≥ 1."""
    strategy: str = "random"
    """How the question was chosen; held-out figures use only `random`."""
    propensity: float = 1.0
    """Probability with which this question was chosen under the strategy, (0, 1]."""
    guideline: str = "v1"
    """Version of the guideline under which it is judged."""
    batch: str = "main"
    """Names the purpose, so that the same question may be asked again in a later round."""
    question: str = ""
    """Question.id of how it is asked; "" = the plain question of its kind (`karat.questions.plain_question`)."""
    audience: Audience = "annotator"
    """Who is asked: raters, or expert reviewers."""
    reserved_for: str | None = None
    """Annotator.id of the only rater who may answer (a repeat of her own work); None = anybody of the audience."""
    stop_after: int = 0
    """This many equal answers and no other suffice, though the overlap is larger; 0 = always the whole overlap."""

    def __post_init__(self) -> None:
        _one_of("Task.kind", self.kind, KINDS)
        _one_of("Task.audience", self.audience, AUDIENCES)
        if self.stop_after < 0:
            raise InputError(f"Task.stop_after: found {self.stop_after}; expected ≥ 0")
        if self.overlap < 1:
            raise InputError(f"Task.overlap: found {self.overlap}; expected ≥ 1")
        if not 0 < self.propensity <= 1:
            raise InputError(f"Task.propensity: found {self.propensity}; expected a probability in (0, 1]")
        if self.kind == "comparison" and len(self.response_ids) != 2:
            raise InputError(f"Task: a comparison names {len(self.response_ids)} responses; expected 2")
        if len(set(self.response_ids)) != len(self.response_ids):
            raise InputError("Task: the same response occurs twice; a question needs different responses")

    @functools.cached_property
    def id(self) -> str:
        """Content hash of what is asked; what an earlier version did not have enters only where it is used."""
        asked: list[Any] = [self.prompt_id, list(self.response_ids), self.kind, self.guideline, self.batch]
        if self.question or self.audience != "annotator" or self.reserved_for is not None:
            asked += [self.question, self.audience, self.reserved_for]
        return content_id("task", asked)


@dataclass(frozen=True)
class Judgement:
    """One rater's answer to one task: an event, never changed; a correction is a new event."""

    task_id: str
    """Task.id of the question answered."""
    kind: Kind
    """What was given."""
    prompt_id: str
    """Prompt.id of the prompt shown."""
    response_ids: tuple[str, ...]
    """Responses judged, in identity order (a, b, …)."""
    value: Mapping[str, Any]
    """The answer; {"missing": reason} fits every kind ("cannot judge", "none fits", "escalated").

    comparison: {"level": 0 … n_levels − 1, "n_levels": K}, level 0 = "b much better", K − 1 = "a much better", the
    middle of an odd K = tie, which may say "both": "good" or "bad". ranking: {"ranks": [1, 2, 2, …]}, equal = tied,
    1 = best. best_of: {"best": index}. rating: {"score": x, "low": l, "high": h}, or {"scores": {attribute: x, …},
    "low": l, "high": h}. label: {"good": bool} or {"flags": [name, …]} or both, with "escalate": bool. correction,
    demonstration: {"text": words}. critique: {"text": words}, with "aspects": [name, …] that are at fault, "revision":
    words. span_marks: {"spans": [{"response": index, "start": s, "end": e, "class": name}, …]}, code points, end
    exclusive. step_marks: {"steps": [{"start": s, "end": e, "mark": −1, 0 or 1}, …]} of one response, in order."""
    annotator: str
    """Annotator.id of who judged."""
    shown_order: tuple[int, ...]
    """Identity indices in the order they were shown: (1, 0) = b was shown first. () = not known."""
    guideline: str
    """Version of the guideline that was shown."""
    created_at: str
    """When it was submitted, ISO 8601 UTC."""
    active_s: float | None = None
    """Seconds of activity; None = not measured."""
    idle_s: float | None = None
    """Seconds without activity; None = not measured."""
    reason: str | None = None
    """The rater's own words, if any."""
    propensity: float = 1.0
    """The task's propensity when it was chosen."""
    strategy: str = "random"
    """The task's strategy when it was chosen."""
    origin: Origin = "person"
    """Whether a person, a simulation or a model judged, or it was imported."""
    supersedes: str | None = None
    """id of an earlier judgement by the same annotator that this one corrects."""
    submission: str = ""
    """The client's key for this submission: sent twice, stored once."""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What else was on the page: {"truncated": [bool, …] in identity order, "page": version of the page, "question":
    Question.id, "order_propensity": chance of the order shown, "arms": {experiment: arm}, "locale": tag, …}; {} = not known. Never words of the rater."""

    def __post_init__(self) -> None:
        _one_of("Judgement.kind", self.kind, KINDS)
        _one_of("Judgement.origin", self.origin, ORIGINS)
        if self.shown_order and sorted(self.shown_order) != list(range(len(self.response_ids))):
            raise InputError(
                f"Judgement.shown_order: found {self.shown_order}; expected an order of 0 … {len(self.response_ids) - 1}"
            )
        for name in ("active_s", "idle_s"):
            seconds = getattr(self, name)
            if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
                raise InputError(f"Judgement.{name}: found {seconds}; expected seconds ≥ 0 or None")
        check_value(self.kind, self.value, len(self.response_ids))

    @property
    def event(self) -> dict[str, Any]:
        """Every field by name; `shown` only where something is known, so that older events keep their bytes."""
        return {name: value for name, value in vars(self).items() if name != "shown" or value}

    @property
    def written(self) -> bool:
        """True = the answer itself is words, which are stored apart and can be erased."""
        return self.kind in WORD_KINDS and "missing" not in self.value

    @property
    def wordless(self) -> dict[str, Any]:
        """The event without the rater's words."""
        return self.event | {"reason": None} | ({"value": {}} if self.written else {})

    @property
    def id(self) -> str:
        """Content hash of the wordless event: when words are erased, no hash of them stays behind."""
        return content_id("judgement", self.wordless)


@dataclass(frozen=True)
class Annotator:
    """Who judges."""

    id: str
    """Pseudonym, unique in its store."""
    origin: Origin = "person"
    """A person, a simulation, a model, or imported."""
    group: str | None = None
    """A declared group (in the sandbox: the planted one); None = not known."""


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty and how it was come by."""

    value: float | None
    """The point estimate; None = not estimable, with the reason in `method`."""
    low: float | None
    """Lower end of the interval."""
    high: float | None
    """Upper end of the interval."""
    n: int
    """On how many independent units."""
    method: str
    """How value and interval were computed, with the level."""


Status = Literal["pass", "fail", "warn", "info", "not measured"]


@dataclass(frozen=True)
class Finding:
    """One answer of an audit or a stage, ready for the report."""

    name: str
    """Short and unique within its stage: `gate.calibration`."""
    question: str
    """The question in one sentence."""
    status: Status
    """pass or fail against a threshold stated beforehand; info where there is none."""
    estimate: Estimate | None = None
    """The figure, if there is one."""
    detail: str = ""
    """One or two sentences for a person."""
    threshold: str = ""
    """The threshold it was held against, as text."""


@dataclass(frozen=True)
class Sample:
    """One sampled response with the tokens that the sampler drew: token in, token out."""

    prompt_tokens: tuple[int, ...]
    """Token ids the policy read."""
    response_tokens: tuple[int, ...]
    """Token ids it drew, including the stop token if it drew one."""
    logprobs: tuple[float, ...]
    """log π(token) of each drawn token under the sampling distribution."""
    stopped: bool
    """True = ended by a stop token; False = cut off at the length limit."""
    sample: int = 0
    """Which of the samples for its prompt, from 0."""


class ScoreFn(Protocol):
    """Scores responses for the optimiser: one number each, already aggregated and scaled."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        """Scores, one per (prompt, response), in the order given."""


class DenseScoreFn(Protocol):
    """Rewards pieces of responses (tokens, spans, steps) for the optimiser; a response's score is raised by their sum."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[Sequence[tuple[int, float]]]:
        """(end, reward) of each response's pieces: before code point `end`; its length + 1 = with its last token."""


class Sampler(Protocol):
    """Writes responses to prompts."""

    def __call__(self, prompts: Sequence[Prompt], *, n_samples: int, seed: int) -> Sequence[Sequence[str]]:
        """n_samples texts for each prompt, in the order given."""


Utilities = Callable[..., Sequence[float]]
"""utilities(annotator, prompt, texts, rng) → the utility, in logits, that this annotator perceives in each text."""


@dataclass(frozen=True)
class Vote:
    """A comparison as training reads it: a derived, columnar-friendly view of one Judgement."""

    judgement_id: str
    """The event it comes from."""
    prompt_id: str
    """Prompt.id."""
    a: str
    """Response.id of a."""
    b: str
    """Response.id of b."""
    level: int
    """0 = b much better … n_levels − 1 = a much better."""
    n_levels: int
    """Levels of the scale: 2 no ties, 3 ties, 5 or 7 strength."""
    side: int
    """+1 = a was shown first, −1 = b was, 0 = not known."""
    annotator: str
    """Annotator.id."""
    strategy: str = "random"
    """How the question was chosen."""
    propensity: float = 1.0
    """With which probability."""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Topic and other split keys."""
    both: Literal["good", "bad"] | None = None
    """A tie of two that are both good, or both bad; None = nothing was said about that."""

    kind: ClassVar[Kind] = "comparison"
    """What every vote is to training."""
    objective: ClassVar[str] = "preference"
    """What it speaks about: which of the two is better, all in all."""

    @property
    def response_ids(self) -> tuple[str, str]:
        """a and b."""
        return self.a, self.b


def vote_of(judgement: Judgement, *, topic: str | None = None) -> Vote | None:
    """The comparison in a judgement, or None where the rater gave no level ("cannot judge")."""
    if judgement.kind != "comparison" or "missing" in judgement.value:
        return None
    side = 0 if not judgement.shown_order else (1 if judgement.shown_order[0] == 0 else -1)
    (a, b), value, tags = judgement.response_ids, judgement.value, {} if topic is None else {"topic": topic}
    return Vote(
        judgement.id, judgement.prompt_id, a, b, value["level"], value["n_levels"], side, judgement.annotator,
        judgement.strategy, judgement.propensity, tags, value.get("both"),
    )  # fmt: skip


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}: found {value!r}; expected one of {', '.join(allowed)}")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name}: found a {type(value).__name__}; expected text")
