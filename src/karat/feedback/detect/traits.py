"""What a text has that a rater could be paid to like: words, phrases, source, length, style; found, never told.

Texts in, columns out. Knows no votes. What a text says is hostile input: it is only counted here, never run or shown.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from karat.errors import InputError

LEAST_TEXTS = 4
"""A word or phrase in fewer texts cannot be told from these texts themselves."""
LEAST_FRAC = 0.003
"""Share of texts below which a trait is met too seldom to be worth anybody's bribe."""
MOST_TRAITS = 20_000
"""Beyond this only the words and phrases of the most texts are kept."""
MOST_CHARACTERS = 20_000
"""What of a longer text is read."""
LONGER_BY = 0.1
"""A text is longer where its log length exceeds the other's by this: a tenth."""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_STYLES = {
    "an exclamation mark": re.compile(r"!"),
    "a question mark": re.compile(r"\?"),
    "a figure": re.compile(r"\d"),
    "a link": re.compile(r"https?://|www\."),
    "a quotation": re.compile(r"[\"“”«»]"),
    "words in capitals": re.compile(r"\b[A-Z]{4,}\b"),
    "a list": re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)])\s"),
    "more than one paragraph": re.compile(r"\n\s*\n"),
    "code or emphasis marks": re.compile(r"`|\*\*"),
    "an invisible character": re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060\ufeff]"),
    "an emoji": re.compile(r"[\u2600-\u27bf\U0001f300-\U0001faff]"),
}


@dataclass(frozen=True, eq=False)
class TextTraits:
    """Traits of texts; N texts, F traits."""

    names: tuple[str, ...]
    """What a person calls each trait, as "the word 'velvet'"."""
    present: sparse.csr_array
    """1 where a text has the trait, "N F"; the last column is empty: length is not had but compared."""
    log_length: np.ndarray
    """log(1 + characters), "N"."""

    def differences(self, first: np.ndarray, second: np.ndarray) -> sparse.csr_array:
        """+1 where only the first text of a pair has the trait (or is longer), −1 where only the second, "pairs F"."""
        gap = self.log_length[first] - self.log_length[second]
        longer = sparse.csr_array(np.where(np.abs(gap) > LONGER_BY, np.sign(gap), 0.0)[:, None])
        had = self.present[first][:, :-1] - self.present[second][:, :-1]
        result = sparse.csr_array(sparse.hstack([had, longer], format="csr"))
        result.eliminate_zeros()
        return result


def text_traits(texts: Sequence[str], sources: Sequence[str] = ()) -> TextTraits:
    """Every trait that enough texts have and as many lack (LEAST_TEXTS, LEAST_FRAC): words, pairs of words, sources, styles, length.

    Traits that the same texts have are one trait with several names; a person must tell them apart.

    Raises: InputError unless there is one source a text, or none.
    """
    if len(sources) not in (0, len(texts)):
        raise InputError(
            f"text_traits: found {len(sources)} sources for {len(texts)} texts; expected one each, or none"
        )
    having: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        for name in _names(text[:MOST_CHARACTERS], sources[number] if sources else ""):
            having.setdefault(name, []).append(number)
    least = max(LEAST_TEXTS, math.ceil(LEAST_FRAC * len(texts)))
    usable = [(name, rows) for name, rows in having.items() if least <= len(rows) <= len(texts) - least]
    usable = sorted(usable, key=lambda entry: (-len(entry[1]), entry[0]))[:MOST_TRAITS]
    merged: dict[tuple[int, ...], list[str]] = {}
    for name, rows in usable:
        merged.setdefault(tuple(rows), []).append(name)
    names = [
        " = ".join(group[:3]) + (f" and {len(group) - 3} more" if len(group) > 3 else "") for group in merged.values()
    ]
    rows = np.array([row for group in merged for row in group], dtype=np.int64)
    columns = np.repeat(np.arange(len(merged)), [len(group) for group in merged])
    present = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(merged) + 1))
    return TextTraits((*names, "the greater length"), present, np.log1p([len(text) for text in texts]))


def _names(text: str, source: str) -> set[str]:
    words = [word.casefold() for word in _WORD.findall(unicodedata.normalize("NFKC", text))]
    names = {f"the word {word[:40]!r}" for word in words}
    names |= {f"the phrase {one[:40] + ' ' + two[:40]!r}" for one, two in itertools.pairwise(words)}
    names |= {name for name, pattern in _STYLES.items() if pattern.search(text)}
    if source:
        names.add(f"the source {source[:40]!r}")
    return names
