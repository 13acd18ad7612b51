"""What the API takes and gives, as its description says it.

What a rater is shown names the lease and positions only: no task, no source, no strategy, no batch, nothing that
tells a silent check from real work. Knows shapes and limits; knows nothing about the store.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from karat.feedback.web.forms import MOST_REASON
from karat.rowfiles import text_fault

MOST_DEPTH = 12
"""Nesting of free JSON values."""


def sound(value: Any) -> Any:
    """The value, where every text in it is Unicode without NUL and it is not nested too deeply.

    Raises: ValueError (which pydantic turns into a message for the field).
    """
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} deep")
        if isinstance(found, str) and text_fault(found):
            raise ValueError("a text that is not Unicode, or with a NUL character")
        if isinstance(found, dict):
            waiting += [(one, depth + 1) for pair in found.items() for one in pair]
        elif isinstance(found, list):
            waiting += [(one, depth + 1) for one in found]
    return value


Plain = Annotated[dict[str, Any], AfterValidator(sound)]
"""A free JSON object."""
Text = Annotated[str, AfterValidator(sound)]
"""Text that any database can hold."""
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
"""A duration as a page measured it."""


class Closed(BaseModel):
    """A shape without unknown fields: a typing error is an error, not a silence."""

    model_config = ConfigDict(extra="forbid")


class SignIn(Closed):
    """Login and password."""

    login: Text = Field(max_length=1000)
    password: Text = Field(max_length=10_000)
    kind: Literal["api", "browser"] = "api"


class Signed(BaseModel):
    """A session that was opened."""

    token: str | None = Field(description="Bearer token; null for a browser, which has its cookie.")
    csrf: str = Field(description="What a browser's scripts send along in X-CSRF.")
    role: str


class Me(BaseModel):
    """Who is asking."""

    role: str
    annotator: str | None = Field(description="The pseudonym under which she judges.")
    state: str = Field(description="working, quarantined or unqualified; empty for roles that do not judge.")
    csrf: str


class Message(BaseModel):
    """One turn of a conversation."""

    role: str
    content: str


class Option(BaseModel):
    """Something that can be picked."""

    name: str
    label: str
    help: str


class Asking(BaseModel):
    """How the question is asked."""

    kind: str
    granularity: str
    instruction: str
    principle: str
    n_levels: int
    ways_out: list[str]
    low: int
    high: int
    anchors: list[str]
    attributes: list[Option]
    flags: list[Option]
    span_classes: list[Option]
    aspects: list[Option]
    rationale: str
    content_warning: str


class Shown(BaseModel):
    """One response."""

    number: int = Field(description="Its position, from 1; answers name it by its position, from 0.")
    text: str


class TaskOut(BaseModel):
    """A task as its rater sees it."""

    lease: str
    expires_at: float | None = Field(description="Until when it is hers alone, seconds since the epoch.")
    question: Asking
    prompt: list[Message]
    responses: list[Shown] = Field(description="In the order shown.")
    guideline: str = Field(description="Version of the guideline it is judged under.")


class Next(BaseModel):
    """The next task, or none."""

    task: TaskOut | None
    reason: str = Field(description='"work", or why there is none: consent, quarantined, budget, nothing left …')


class AnswerIn(Closed):
    """An answer in terms of positions: in a comparison "a" is the response shown first."""

    key: str = Field(pattern=r"^[\x21-\x7e]{1,100}$", description="Made by the client; sent twice, stored once.")
    value: Plain = Field(description="As `Judgement.value`, with positions for identities.")
    reason: Text | None = Field(default=None, max_length=MOST_REASON)
    active_s: Seconds | None = None
    idle_s: Seconds | None = None
    truncated: list[bool] | None = Field(default=None, max_length=64, description="By position: was it cut short?")
    page: Text = Field(default="", max_length=64, description="Version of the page or program.")
    locale: str = Field(default="", max_length=35, pattern=r"^[A-Za-z0-9-]*$")


class Accepted(BaseModel):
    """What was stored."""

    receipt: str = Field(description="The commitment that the next seal will cover.")
    late: bool = Field(description="True = the lease had expired; the answer counts all the same.")


class Beat(BaseModel):
    """A lease that was extended."""

    expires_at: float


class SkipIn(Closed):
    """Why a task is given back."""

    reason: Text = Field(min_length=1, max_length=1000)


class DraftIn(Closed):
    """What was entered so far."""

    body: Plain


class DraftOut(BaseModel):
    """What was entered so far, as kept."""

    body: dict[str, Any] | None
    saved_at: float | None


class Done(BaseModel):
    """It was done."""

    done: bool = True


class Past(BaseModel):
    """One of the rater's last answers."""

    lease: str | None
    created_at: str
    kind: str
    value: dict[str, Any] = Field(description="In terms of positions.")
    reason: str | None


class Added(BaseModel):
    """How much was new."""

    new: int


class Health(BaseModel):
    """Whether the server can read its store."""

    status: str
