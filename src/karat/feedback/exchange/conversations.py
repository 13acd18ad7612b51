"""Preference rows as conversations: where the prompt ends, and which text answers it.

Knows the shapes in which preferences are published; knows neither files nor the store.
"""

from __future__ import annotations

import re
from typing import Any

from karat.errors import InputError
from karat.records import Prompt, Turn, user_prompt
from karat.rowfiles import turns_of


def hh_conversation(text: str) -> tuple[Prompt, str]:
    """The prompt and the last answer of a `\\n\\nHuman: …\\n\\nAssistant: …` text.

    An answer that goes on under a second `Assistant:` heading is one answer.
    Raises: InputError where the text does not start with a heading or ends with a person's turn.
    """
    start, *parts = re.split(r"\n\n(Human|Assistant):", text)
    if start.strip() or not parts:
        raise InputError(f"found a conversation that starts with {text[:30]!r}; expected '\\n\\nHuman: …'")
    turns: list[Turn] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = ("user" if speaker == "Human" else "assistant"), content.strip()
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, f"{turns[-1].content}\n\n{content}".strip())
        else:
            turns.append(Turn(role, content))
    if turns[-1].role != "assistant" or len(turns) < 2:
        raise InputError("found a conversation that does not end with an answer; expected a last '\\n\\nAssistant: …'")
    return Prompt(tuple(turns[:-1])), turns[-1].content


def trl_parts(prompt: Any, chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    """The prompt and the two answers of a row of TRL's preference format; the prompt None = inside both.

    Raises: InputError where there is no common prompt, or more than one answer by the assistant follows it.
    """
    if isinstance(chosen, str):
        if isinstance(prompt, list):
            return Prompt(turns_of(prompt)), chosen, rejected
        if prompt is None:
            n = _common_text(chosen, rejected)
            if not chosen[:n].strip():
                raise InputError("found no 'prompt' and no common beginning of 'chosen' and 'rejected'; add the prompt")
            prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
        return user_prompt(prompt), chosen, rejected
    ours, theirs = turns_of(chosen), turns_of(rejected)
    if prompt is None:
        n = 0
        while n < min(len(ours), len(theirs)) and ours[n] == theirs[n]:
            n += 1
        n = min(n, len(ours) - 1, len(theirs) - 1)
        if n < 1:
            raise InputError("found no 'prompt' and no common first message; add the prompt")
        turns, ours, theirs = ours[:n], ours[n:], theirs[n:]
    else:
        turns = turns_of(prompt) if isinstance(prompt, list) else (Turn("user", prompt),)
    for name, rest in (("chosen", ours), ("rejected", theirs)):
        if len(rest) != 1 or rest[0].role != "assistant":
            roles = ", ".join(turn.role for turn in rest)
            raise InputError(
                f"found the messages ({roles}) in {name!r} after the prompt; expected one by the assistant"
            )
    return Prompt(turns), ours[0].content, theirs[0].content


def difference(first: Prompt, second: Prompt) -> str:
    """Where two prompts begin to differ, for a message."""
    for i, (ours, theirs) in enumerate(zip(first.turns, second.turns, strict=False)):
        if ours != theirs:
            return f"turn {i + 1}: {ours.content[:30]!r} and {theirs.content[:30]!r}"
    return f"{len(first.turns)} and {len(second.turns)} turns"


def _common_text(first: str, second: str) -> int:
    n = 0
    while n < min(len(first), len(second)) and first[n] == second[n]:
        n += 1
    while n and not first[n - 1].isspace():
        n -= 1
    return n
