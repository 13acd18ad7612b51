"""Marked spans as classes of tokens: karat's span head on an encoder's tokens, position and length, n-grams nearby.

Token t of an answer is of a class if a mark of that class touches it (`reward.dense`). Knows texts, spans and arrays.

Dimension letters: N tokens of all answers, T tokens of one, K classes, d features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bench.real.systems import Grams, grams_of, standardised

from karat.reward.dense import MarkedTokens, fit_marks
from karat.statements import Marked

WORD = re.compile(r"\S+")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
WINDOW = 2
"""Words on either side that the n-gram baseline reads beside a token's own; it reads the whole sentence too."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of all answers, one after the other."""

    answer: np.ndarray
    """Which answer each token is of, [N], ascending."""
    spans: np.ndarray
    """First and behind-last code point, [N, 2]."""
    inside: np.ndarray
    """Which classes it is of, bool [N, K]."""
    names: tuple[str, ...]
    """The classes."""

    @property
    def weight(self) -> np.ndarray:
        """1/T: each answer counts once in a fit, however long it is."""
        return 1 / np.bincount(self.answer)[self.answer]


def tokens_of(spans: Sequence[np.ndarray], marks: Sequence[Marked]) -> Tokens:
    """Tokens with the classes that were marked; every class was on offer in every answer."""
    names = marks[0].names
    inside = []
    for own, mark in zip(spans, marks, strict=True):
        touched = np.zeros((len(own), len(names)), dtype=bool)
        for part in mark.parts:
            touched[:, names.index(part.name)] |= (own[:, 0] < part.end) & (own[:, 1] > part.start)
        inside.append(touched)
    answer = np.repeat(np.arange(len(spans)), [len(own) for own in spans])
    return Tokens(answer, np.concatenate(list(spans)), np.concatenate(inside), names)


def span_head(features: np.ndarray, tokens: Tokens, train: np.ndarray) -> np.ndarray:
    """Log-odds [N, K] of each class by `reward.dense`, fitted to the tokens of training answers.

    Args:
        features: of each token, [N, d].    train: True = the token is of a training answer, [N].
    """
    read = []
    for number in np.unique(tokens.answer[train]):
        own = slice(*np.searchsorted(tokens.answer, [number, number + 1]))
        phi = torch.from_numpy(np.asarray(features[own], dtype=np.float64))
        nothing = torch.zeros(0, len(phi), dtype=torch.bool)
        inside = {name: torch.from_numpy(tokens.inside[own, k].copy()) for k, name in enumerate(tokens.names)}
        read.append(MarkedTokens(phi, nothing, torch.zeros(0, dtype=torch.long), inside))
    fit = fit_marks(read, tokens.names)
    return features.astype(np.float64) @ fit.weight.double().numpy().T - fit.threshold.double().numpy()


def position_head(texts: Sequence[str], tokens: Tokens, train: np.ndarray) -> np.ndarray:
    """The same head on where a token stands, and how long its answer and its sentence are."""
    return span_head(standardised(position_features(texts, tokens), train), tokens, train)


def position_features(texts: Sequence[str], tokens: Tokens) -> np.ndarray:
    """Place in the answer and in the sentence, number of the sentence, first and last sentence, lengths, [N, 8]."""
    found = np.zeros((len(tokens.answer), 8))
    for number, text in enumerate(texts):
        own = tokens.answer == number
        start = tokens.spans[own, 0]
        starts = sentence_starts(text)
        ends = np.append(starts[1:], len(text))
        k = np.searchsorted(starts, start, side="right") - 1
        share, length = start / len(text), ends[k] - starts[k]
        columns = [share, share**2, np.full(len(start), np.log1p(len(text))), k == 0, k == len(starts) - 1]
        columns += [np.log1p(k), np.log1p(length), (start - starts[k]) / length]
        found[own] = np.stack([np.asarray(column, dtype=float) for column in columns], axis=1)
    return found


def sentence_starts(text: str) -> np.ndarray:
    """Where the sentences of a text begin, the first at 0."""
    ends = (match.end() for match in SENTENCE_END.finditer(text))
    return np.array([0, *(end for end in ends if end < len(text))])


def nearby_grams(texts: Sequence[str], tokens: Tokens) -> list[Grams]:
    """N-grams of the words around each token, and of its sentence: two blocks."""
    windows, sentences = [], []
    for number, text in enumerate(texts):
        start = tokens.spans[tokens.answer == number, 0]
        words = [(match.start(), match.group()) for match in WORD.finditer(text)]
        at = np.searchsorted([place for place, _ in words], start, side="right") - 1
        near = [" ".join(word for _, word in words[max(0, i - WINDOW) : i + WINDOW + 1]) for i in range(len(words))]
        windows += [near[i] for i in at]
        starts = sentence_starts(text)
        whole = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
        sentences += [whole[i] for i in np.searchsorted(starts, start, side="right") - 1]
    return [grams_of(windows), grams_of(sentences)]
