"""Texts as counts of words and of pieces of words: what can be learned from votes by counting alone.

Knows texts; knows nothing about votes.

Dimension letters: N texts, F features.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

HASH_BITS = 18  # 262,144 columns: with some 10⁵ n-grams in 10³ texts, collisions touch a few per cent of them
CHAR_N = (3, 4, 5)  # character n-grams within words, the usual choice for text classification
WORD = re.compile(r"\w+")


def ngram_counts(texts: Sequence[str]) -> sparse.csr_matrix:
    """Hashed counts [N, F] of word 1- and 2-grams (first half of F) and character 3- to 5-grams (second half).

    Lower case; the hash is the same in every process.
    """
    half = 1 << (HASH_BITS - 1)
    columns: list[int] = []
    offsets = [0]
    place: dict[str, int] = {}
    for text in texts:
        words = WORD.findall(text.lower())
        grams = [f"w {word}" for word in words] + [f"w {a} {b}" for a, b in itertools.pairwise(words)]
        grams += [f"c {g}" for word in words for n in CHAR_N for g in _char_grams(f" {word} ", n)]
        for gram in grams:
            if gram not in place:
                digest = int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big")
                place[gram] = digest % half + (half if gram[0] == "c" else 0)
            columns.append(place[gram])
        offsets.append(len(columns))
    matrix = sparse.csr_matrix((np.ones(len(columns)), columns, offsets), shape=(len(texts), 2 * half))
    matrix.sum_duplicates()
    return matrix


def _char_grams(word: str, n: int) -> list[str]:
    return [word[i : i + n] for i in range(len(word) - n + 1)]


def weighted_counts(counts: sparse.csr_matrix, column_weight: np.ndarray) -> sparse.csr_matrix:
    """log(1 + count)·weight of the column; texts are not scaled to one length, so that length can be learned."""
    scaled = counts.astype(float).tocsr(copy=True)
    scaled.data = np.log1p(scaled.data) * column_weight[scaled.indices]
    return scaled


def column_weights(counts: sparse.csr_matrix) -> np.ndarray:
    """Inverse document frequency [F], each family of n-grams scaled so that an average one of these texts has length 1."""
    idf = np.log((1 + counts.shape[0]) / (1 + np.asarray((counts > 0).sum(0)).ravel())) + 1
    half = len(idf) // 2
    squared = weighted_counts(counts, idf).power(2)
    for family in (slice(0, half), slice(half, None)):
        mean_square = squared[:, family].sum() / counts.shape[0]
        idf[family] /= math.sqrt(mean_square) if mean_square > 0 else 1.0
    return idf
