"""Near-copies among many short texts: MinHash sketches, and which texts share one.

Texts in, groups out. Knows no votes. Hashing is blake2b: the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

N_HASHES = 32
BANDS = 8
"""Bands of 4 hashes: two texts of Jaccard similarity 0.8 meet in at least one band with probability 0.985."""
LEAST_SIMILARITY = 0.75
"""Share of equal hashes from which two texts are near-copies."""
LEAST_WORDS = 6
"""Shorter texts are not compared: people say "a is better" without copying."""
NO_SKETCH = np.iinfo(np.uint64).max
_WORD = re.compile(r"[^\W_]+")
_MIX = np.random.default_rng(20_260_101).integers(1, 2**63, size=(2, N_HASHES), dtype=np.uint64) | np.uint64(1)


def sketches(texts: Sequence[str]) -> np.ndarray:
    """MinHash sketch of each text's sets of three words in a row, "N N_HASHES"; NO_SKETCH where a text is too short.

        P(two entries equal) = |A ∩ B| / |A ∪ B|

    Source: Broder 1997, "On the resemblance and containment of documents".
    """
    result = np.full((len(texts), N_HASHES), NO_SKETCH, dtype=np.uint64)
    known: dict[str, np.ndarray | None] = {}
    for number, text in enumerate(texts):
        if text not in known:
            known[text] = _sketch(text)
        sketch = known[text]
        if sketch is not None:
            result[number] = sketch
    return result


def _sketch(text: str) -> np.ndarray | None:
    words = _WORD.findall(unicodedata.normalize("NFKC", text[:20_000]).casefold())
    if len(words) < LEAST_WORDS:
        return None
    joined = {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}
    digests = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in joined)
    codes = np.frombuffer(digests, dtype=np.uint64)[:, None]
    with np.errstate(over="ignore"):
        mixed = codes * _MIX[0] + _MIX[1]
        mixed ^= mixed >> np.uint64(29)
        mixed *= _MIX[1]
    return mixed.min(axis=0)


def near_copies(sketch: np.ndarray) -> np.ndarray:
    """Group of each text: texts are in one group where a chain of near-copies joins them; −1 = no sketch.

    Found by bands; each candidate is compared with the first text of its bucket.
    """
    compared = np.flatnonzero(sketch[:, 0] != NO_SKETCH)
    _, first, place = np.unique(_mixed(sketch[compared]), return_index=True, return_inverse=True)
    unique = sketch[compared[first]]
    parent = np.arange(len(unique))
    rows = N_HASHES // BANDS
    for band in range(BANDS):
        part = _mixed(unique[:, band * rows : (band + 1) * rows])
        _, first, bucket = np.unique(part, return_index=True, return_inverse=True)
        other = first[bucket]
        similar = (unique == unique[other]).mean(axis=1) >= LEAST_SIMILARITY
        for child in np.flatnonzero(similar & (other != np.arange(len(unique)))):
            one, two = _root(parent, int(child)), _root(parent, int(other[child]))
            parent[max(one, two)] = min(one, two)
    groups = np.full(len(sketch), -1, dtype=np.int64)
    groups[compared] = np.array([_root(parent, i) for i in range(len(unique))], dtype=np.int64)[place]
    return groups


def _mixed(columns: np.ndarray) -> np.ndarray:
    """One number for each row; different rows get the same with probability 2⁻⁶⁴."""
    total = np.zeros(len(columns), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in columns.T:
            total = (total ^ column) * _MIX[0, 0]
            total ^= total >> np.uint64(31)
    return total


def _root(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = int(parent[node])
    return node
