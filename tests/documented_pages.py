"""What a page of documentation holds: its fenced blocks, the commands in them, and what stands between backticks.

Knows Markdown; knows nothing of what the commands mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Typed(NamedTuple):
    """A command as it is written down."""

    place: str
    """Page and line."""
    text: str
    """The command."""
    whole: bool
    """Whether nothing may be missing."""


class Block(NamedTuple):
    """What stands between two fences."""

    line: int
    """Of its first line."""
    language: str
    """After the fence; empty = commands."""
    lines: list[str]
    """Its text."""


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    block: Block | None = None
    for n, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            if block is not None:
                yield block
            block = Block(n + 1, line.strip().strip("`"), []) if block is None else None
        elif block is not None:
            block.lines.append(line)


def lines_of(block: Block) -> Iterator[tuple[int, str]]:
    """Line and text of each command; where some begin with `$ `, the other lines are what was answered."""
    prompted = any(line.startswith("$ ") for line in block.lines)
    begun, text = 0, ""
    for n, line in enumerate(block.lines, block.line):
        if not text:
            if prompted and not line.startswith("$ "):
                continue
            begun, line = n, line.removeprefix("$ ")
        text += line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        if text.strip() and not text.lstrip().startswith("#"):
            yield begun, text
        text = ""


def in_blocks(page: str, found: Iterable[Block]) -> Iterator[Typed]:
    """The commands of a page's blocks."""
    return (Typed(f"{page}:{n}", text, True) for block in found for n, text in lines_of(block))


def between_backticks(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of what is marked as code within sentences."""
    fenced = False
    for n, line in enumerate(text.splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        yield from () if fenced else ((n, code) for code in re.findall(r"`([^`]+)`", line))


def in_comments(page: str, text: str) -> Iterator[Typed]:
    """The commands above an example, which stand further in than other comments."""
    shown = [re.sub(r"^#  +", "", line) if line.startswith("#   ") else "" for line in text.splitlines()]
    return in_blocks(page, [Block(1, "", shown)])
