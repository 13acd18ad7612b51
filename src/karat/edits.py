"""What an edit changed: the spans of the original that went, and the spans of the correction that came.

A diff over words and the spaces between them, so that a span never cuts a word. Knows two texts; knows nothing about
raters or rewards.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

PIECE = re.compile(r"\w+|\s+|[^\w\s]")
Span = tuple[int, int]


@dataclass(frozen=True)
class Edit:
    """The difference between two texts, as code points; ends are exclusive."""

    removed: tuple[Span, ...]
    """Spans of the original that the correction does not keep, in order, none empty."""
    added: tuple[Span, ...]
    """Spans of the correction that the original does not have, in order, none empty."""

    def changed_frac(self, original: str, corrected: str) -> float:
        """Characters removed or added, as a share of the characters of both texts; 0 = equal, 1 = nothing kept."""
        n_changed = sum(end - start for start, end in (*self.removed, *self.added))
        return n_changed / max(1, len(original) + len(corrected))


def edited_spans(original: str, corrected: str) -> Edit:
    """The spans in which two texts differ, word by word.

    Source: Python's `difflib.SequenceMatcher` (Ratcliff & Obershelp 1988), without its junk heuristic.

    >>> edited_spans("the tower is red", "the tower is dark red")
    Edit(removed=(), added=((13, 18),))
    """
    before, after = _pieces(original), _pieces(corrected)
    matcher = difflib.SequenceMatcher(None, [text for text, _ in before], [text for text, _ in after], autojunk=False)
    removed: list[Span] = []
    added: list[Span] = []
    for name, a_start, a_end, b_start, b_end in matcher.get_opcodes():
        if name == "equal":
            continue
        if a_end > a_start:
            removed.append((before[a_start][1], before[a_end - 1][1] + len(before[a_end - 1][0])))
        if b_end > b_start:
            added.append((after[b_start][1], after[b_end - 1][1] + len(after[b_end - 1][0])))
    return Edit(tuple(removed), tuple(added))


def _pieces(text: str) -> list[tuple[str, int]]:
    return [(match.group(), match.start()) for match in PIECE.finditer(text)]
