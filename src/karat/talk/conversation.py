"""A conversation with a checkpoint: turns, what of them still fits the context, and words as they are drawn.

Knows a loaded model and turns; knows nothing about terminals or about who speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from karat.errors import ConfigError, InputError
from karat.lm.chat import prompt_tokens, response_text
from karat.lm.generate import SamplingConfig, greedy, sample
from karat.lm.load import LoadedLM
from karat.records import Sample, Turn
from karat.seeding import child_seed

LEAST_ROOM_FRAC = 0.25
"""A prompt may fill at most the rest of the context; earlier exchanges are left out until it does."""
UNFINISHED = "\ufffd"
"""What a tokenizer writes for bytes of a character that is not complete yet."""


@dataclass(frozen=True)
class TalkSettings:
    """How replies are drawn."""

    max_new_tokens: int = 256
    """Longest reply; a model of shorter context gives what fits."""
    temperature: float = 1.0
    """Divides the logits; 0 = always the likeliest token."""
    top_k: int = 0
    """Draw among the k likeliest tokens only; 0 = all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens of total probability p only; 1 = all."""
    seed: int = 0
    """Decides every draw, together with the reply's number."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature: found {self.temperature}; expected ≥ 0 (0 = the likeliest token)")
        SamplingConfig(self.max_new_tokens, temperature=self.temperature or 1.0, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str
    """Without its end mark."""
    n_tokens: int
    """Tokens drawn, the stop token included."""
    stopped: bool
    """True = it ended by itself; False = cut off at the limit."""
    n_left_out: int
    """Earlier turns that did not fit the context and were not read."""


@dataclass
class Conversation:
    """One conversation; every reply is a function of the turns before it, the settings and the reply's number."""

    lm: LoadedLM
    """Who replies."""
    settings: TalkSettings
    """How."""
    system: str = ""
    """The system message; "" = none."""
    turns: list[Turn] = field(default_factory=list)
    """What was said, without the system message."""
    n_replies: int = 0
    """Replies so far, those before a reset included."""

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.turns.clear()

    def reply(self, said: str, heard: Callable[[str], None] | None = None) -> Reply:
        """The model's reply to the next message of the user.

        Args:
            said: the message.    heard: called with each new piece of the reply, in order.
        Raises: InputError for an empty message or one that is too long for the context by itself.
        """
        if not said.strip():
            raise InputError("chat: found an empty message; expected some words")
        self.turns.append(Turn("user", said))
        try:
            tokens, n_left_out = self._fitting()
            drawn = draw_reply(self.lm, tokens, self.settings, number=self.n_replies, heard=heard)
        except BaseException:
            self.turns.pop()  # a message without a reply was not said
            raise
        self.n_replies += 1
        text = response_text(self.lm.tokenizer, drawn.response_tokens, self.lm.eos_ids)
        self.turns.append(Turn("assistant", text))
        return Reply(text, len(drawn.response_tokens), drawn.stopped, n_left_out)

    def _fitting(self) -> tuple[list[int], int]:
        """Prompt tokens of the newest turns that leave room for a reply, and how many older turns were left out."""
        first = [Turn("system", self.system)] if self.system else []
        most = self.lm.context_length - room_wanted(self.lm, self.settings)
        for n_left_out in range(0, len(self.turns), 2):  # whole exchanges: a message and its reply
            tokens = prompt_tokens(self.lm.tokenizer, [*first, *self.turns[n_left_out:]])
            if len(tokens) <= most:
                return tokens, n_left_out
        raise InputError(
            f"chat: found a message that makes {len(tokens)} tokens; expected at most {most}, so that a reply fits the "
            f"model's context of {self.lm.context_length}. Say it in fewer words"
        )


def room_wanted(lm: LoadedLM, settings: TalkSettings) -> int:
    """Tokens of the context that a prompt has to leave for the reply."""
    return min(settings.max_new_tokens, max(1, round(LEAST_ROOM_FRAC * lm.context_length)))


def draw_reply(
    lm: LoadedLM,
    tokens: Sequence[int],
    settings: TalkSettings,
    *,
    number: int,
    heard: Callable[[str], None] | None = None,
) -> Sample:
    """One sampled response to prompt tokens, as long as settings and context allow.

    Args:
        number: of the reply; with the seed it decides the draws.    heard: called with each new piece of text.
    """
    pieces = Pieces(lm)
    limit = min(settings.max_new_tokens, lm.context_length - len(tokens))

    def on_token(_: int, __: int, token: int) -> None:
        if heard is not None and (new := pieces.take(token)):
            heard(new)

    if settings.temperature == 0:
        (drawn,) = greedy(lm, [tokens], max_new_tokens=limit, on_token=on_token)
    else:
        config = SamplingConfig(limit, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
        seed = child_seed(settings.seed, "talk", number)
        ((drawn,),) = sample(lm, [tokens], n_samples=1, config=config, seed=seed, on_token=on_token)
    if heard is not None and (rest := pieces.rest()):
        heard(rest)
    return drawn


class Pieces:
    """Tokens in, text out as soon as it is final: joined, the pieces are the text of the whole response."""

    def __init__(self, lm: LoadedLM) -> None:
        self.lm = lm
        self.tokens: list[int] = []
        self.said = ""

    def take(self, token: int) -> str:
        """What can be said now that this token is drawn; half of a character waits for its other half."""
        self.tokens.append(token)
        text = self._text()
        return "" if text.endswith(UNFINISHED) else self._new(text)

    def rest(self) -> str:
        """What is left when no more tokens come."""
        return self._new(self._text())

    def _text(self) -> str:
        return response_text(self.lm.tokenizer, self.tokens, self.lm.eos_ids)

    def _new(self, text: str) -> str:
        if not text.startswith(self.said):  # a tokenizer that rewrites what it said: wait until the end
            return ""
        new, self.said = text[len(self.said) :], text
        return new
