"""The steps of a text: what a rater marks one by one, and what a policy is paid for one by one."""

from __future__ import annotations

import re


def steps_of(text: str) -> tuple[tuple[int, int], ...]:
    """Start and end of each step of a text, in code points: its paragraphs, else its lines, else its sentences.

    Each is without the blanks around it; a text of blanks has no steps.
    """
    for pattern in (r"\n[ \t]*\n\s*", r"\n\s*", r"(?<=[.!?。！？])\s+"):
        steps = []
        start = 0
        for found in [*re.finditer(pattern, text), None]:
            end = found.start() if found else len(text)
            part = text[start:end]
            if part.strip():
                left = start + len(part) - len(part.lstrip())
                steps.append((left, left + len(part.strip())))
            start = found.end() if found else end
        if len(steps) != 1:
            return tuple(steps)
    return tuple(steps)
