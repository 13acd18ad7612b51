"""Prompts and demonstrations from files of text or JSON lines. Knows records; knows nothing about models or votes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from karat.errors import InputError
from karat.records import Demonstration, Prompt, user_prompt
from karat.rowfiles import Row, asked_in, read_lines, read_rows, turns_of

ANSWER_FIELDS = ("response", "completion")


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts from a `.txt` file (one a line) or JSON lines, in the file's order, each different one once.

    A row holds `prompt` (text or a list of {"role", "content"}) or `messages`, and perhaps `topic`; or `turns`, pairs of
    role and content, as a run writes its own `data/prompts.jsonl`, whose prompts of every split are read.

    Raises: InputError naming file and line.
    """
    different: dict[str, Prompt] = {}
    for _, prompt in asked_prompts(path):
        different.setdefault(prompt.id, prompt)
    return list(different.values())


def asked_prompts(path: str | Path) -> list[tuple[str | list[Any], Prompt]]:
    """What each entry of a file of prompts asks, as it is written there, and the prompt; every entry, the same ones too.

    Raises: InputError naming file and line.
    """
    path = Path(path)
    if path.suffix == ".txt":
        return [(text.strip(), user_prompt(text.strip())) for _, text in read_lines(path)]
    return [(_asked(row), _prompt(row)) for row in read_rows(path)]


def read_demonstrations(path: str | Path, *, source: str | None = None) -> list[Demonstration]:
    """Demonstrations from JSON lines, in the file's order.

    A row holds `prompt` with `response` (or `completion`, text or one assistant message), or `messages` that end
    with the assistant's.

    Args:
        source: who wrote them; None = the file's name.
    Raises: InputError naming file and line.
    """
    path = Path(path)
    return [_demonstration(row, source or path.name) for row in read_rows(path)]


def rows_with_answers(path: str | Path) -> list[Demonstration]:
    """The demonstrations among the prompts of a file: its rows that have an answer; a text file has none.

    Raises: InputError naming file and line.
    """
    path = Path(path)
    if path.suffix == ".txt":
        return []
    rows = read_rows(path)
    return [_demonstration(r, path.name) for r in rows if any(r.values.get(name) is not None for name in ANSWER_FIELDS)]


def _asked(row: Row) -> str | list[Any]:
    chat = row.values.get("prompt") is None and "turns" not in row.values and "messages" in row.values
    return row.need("messages", (str, list)) if chat else asked_in(row)


def _prompt(row: Row) -> Prompt:
    with row.named():
        asked = _asked(row)
        topic = row.get("topic", str)
        return user_prompt(asked, topic=topic) if isinstance(asked, str) else Prompt(turns_of(asked), topic)


def _demonstration(row: Row, source: str) -> Demonstration:
    with row.named():
        if row.values.get("messages") is not None:
            *asked, last = turns_of(row.need("messages", list))
            if last.role != "assistant":
                raise InputError(f"found a last message by the {last.role}; expected the assistant's answer")
            return Demonstration(Prompt(tuple(asked), row.get("topic", str)), last.content, source)
        name = next((name for name in ANSWER_FIELDS if row.values.get(name) is not None), ANSWER_FIELDS[0])
        answer = row.need(name, (str, list))
        if isinstance(answer, list):
            turns = turns_of(answer)
            if len(turns) != 1 or turns[0].role != "assistant":
                raise InputError(f"found {len(turns)} messages in {name!r}; expected one by the assistant")
            answer = turns[0].content
        return Demonstration(_prompt(row), answer, source)
