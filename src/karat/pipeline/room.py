"""How long responses may be beside their prompts, where nobody named a length: what the context leaves.

Knows models and prompts; nothing of questions, stores or raters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from karat.errors import InputError
from karat.lm.chat import check_fits, prompt_tokens, room_beside
from karat.lm.load import LoadedLM
from karat.progress import Progress
from karat.records import Prompt

LONGEST = 128
"""Tokens of a response where nobody named a length and the context has room for them."""
LEAST_ROOM_FRAC = 0.25
"""Share of the context that a prompt has to leave then; as a conversation in the terminal keeps it for the reply."""


def longest_response(models: Iterable[LoadedLM], prompts: Sequence[Prompt], named: int | None) -> int:
    """Tokens that every response of some models to some prompts may have.

    Args:
        named: what somebody asked for, which is kept; None = `LONGEST`, or what the longest prompt leaves beside an
            end token, so that a response that was cut off can still be scored.
    """
    if named is not None:
        return named
    room = min(
        (room_beside((prompt_tokens(lm.tokenizer, one.turns) for one in prompts), lm.context_length) for lm in models),
        default=LONGEST,
    )
    return max(1, min(LONGEST, room))


def check_room(lm: LoadedLM, prompt: Prompt, named: int | None) -> None:
    """Raise InputError unless a model can answer a prompt at the length that is asked for, or at a useful one."""
    wanted = named or min(LONGEST, max(1, round(LEAST_ROOM_FRAC * lm.context_length)))
    check_fits(prompt_tokens(lm.tokenizer, prompt.turns), wanted, lm.context_length)


def with_room(
    models: Sequence[LoadedLM], prompts: Sequence[Prompt], named: int | None, progress: Progress
) -> list[Prompt]:
    """Those of some prompts that every model can answer; of each other one a note says why it cannot."""
    fits: list[Prompt] = []
    for prompt in prompts:
        try:
            for lm in models:
                check_room(lm, prompt, named)
        except InputError as error:
            progress.note(f"the prompt {prompt.turns[-1].content[:40]!r} is left out: {error}")
        else:
            fits.append(prompt)
    return fits
