"""Plain features of responses and of their tokens: how long, where, and how far they say what was said before.

Nothing here is learned and nothing computes: numbers are compared as they are written. Knows texts; knows nothing about
votes, marks or models.

Dimension letters: N responses, T tokens of one response.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from karat.ngrams import WORD

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
RUN = 3
"""Words in a row that count as copied."""


def words_of(text: str) -> list[str]:
    """Its words, without case."""
    return WORD.findall(text.casefold())


def sentence_starts(text: str) -> np.ndarray:
    """Where the sentences of a text begin, the first at 0."""
    ends = (match.end() for match in SENTENCE_END.finditer(text))
    return np.array([0, *(end for end in ends if end < len(text))])


def response_place(texts: Sequence[str]) -> np.ndarray:
    """log²(1 + characters), log(1 + words), log(1 + sentences), log(1 + lines), characters a word, share of digits, [N, 6]."""
    rows = []
    for text in texts:
        n_chars, n_words = len(text), len(words_of(text))
        counts = np.log1p([n_words, len(sentence_starts(text)), text.count("\n")])
        digits = sum(letter.isdigit() for letter in text)
        rows.append([np.log1p(n_chars) ** 2, *counts, n_chars / (n_words + 1), digits / (n_chars + 1)])
    return np.array(rows, dtype=float).reshape(len(texts), 6)


def response_overlap(prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """How far a response repeats its prompt and itself, in words and in numbers, [N, 8].

    Shares: of its words that the prompt has, of the prompt's words that it has, of its words said before in it, of its
    numbers that the prompt has, of the prompt's numbers that it has; log(1 + numbers); its last number is the prompt's;
    its last number stands in it before.
    """
    rows = []
    for prompt, text in zip(prompts, texts, strict=True):
        asked, said = words_of(prompt), words_of(text)
        given, numbers = NUMBER.findall(prompt), NUMBER.findall(text)
        last = numbers[-1:]
        rows.append([
            share(said, set(asked)), share(asked, set(said)), 1 - len(set(said)) / max(1, len(said)),
            share(numbers, set(given)), share(given, set(numbers)), np.log1p(len(numbers)),
            share(last, set(given)), share(last, set(numbers[:-1])),
        ])  # fmt: skip
    return np.array(rows, dtype=float).reshape(len(texts), 8)


def token_place(text: str, spans: np.ndarray) -> np.ndarray:
    """Place in the response and in the sentence, number of the sentence, first and last sentence, lengths, [T, 8].

    Args:
        spans: first and behind-last code point of each token, [T, 2]; (0, 0) = the end of the response.
    """
    starts, start, k = _sentences(text, spans)
    ends = np.append(starts[1:], len(text))
    place, length = start / max(1, len(text)), ends[k] - starts[k]
    columns = [place, place**2, np.full(len(start), np.log1p(len(text))), k == 0, k == len(starts) - 1]
    columns += [np.log1p(k), np.log1p(length), (start - starts[k]) / np.maximum(length, 1)]
    return np.stack([np.asarray(column, dtype=float) for column in columns], axis=1)


def token_overlap(prompt: str, text: str, spans: np.ndarray) -> np.ndarray:
    """How far a token's sentence, and the words around it, say what the prompt or the response said before, [T, 8].

    Shares of the sentence's words in the prompt's first line, in the whole prompt, in the response before the sentence; of
    its runs of three words in the prompt; of its numbers in the prompt; of the first line's words in the sentence; whether the
    token's word is in the prompt, and whether it was said before.
    """
    starts, start, k = _sentences(text, spans)
    ends = np.append(starts[1:], len(text))
    first, whole = set(words_of(prompt.strip().split("\n")[0])), words_of(prompt)
    known, runs, given = set(whole), _runs(whole), set(NUMBER.findall(prompt))
    of_sentence = []
    said: set[str] = set()
    for a, b in zip(starts, ends, strict=True):
        own, part = words_of(text[a:b]), text[a:b]
        of_sentence.append([
            share(own, first), share(own, known), share(own, said), share(list(_runs(own)), runs),
            share(NUMBER.findall(part), given), share(list(first), set(own)),
        ])  # fmt: skip
        said.update(own)
    # places are those of the text: without case it may be longer (ß is ss)
    word_starts = [(match.start(), word) for match in WORD.finditer(text) for word in words_of(match.group())]
    at = np.searchsorted([place for place, _ in word_starts], start, side="right") - 1
    said = set()
    of_word = []
    for _, word in word_starts:
        of_word.append([float(word in known), float(word in said)])
        said.add(word)
    words = np.array([*of_word, [0.0, 0.0]])  # the last row: no word yet
    return np.concatenate([np.array(of_sentence, dtype=float)[k], words[at]], axis=1)


def token_contexts(text: str, spans: np.ndarray, window: int = 2) -> tuple[list[str], list[str]]:
    """The words around each token, and its sentence, one of each a token."""
    starts, start, k = _sentences(text, spans)
    words = [(match.start(), match.group()) for match in re.finditer(r"\S+", text)]
    at = np.maximum(np.searchsorted([place for place, _ in words], start, side="right") - 1, 0)
    near = [" ".join(word for _, word in words[max(0, i - window) : i + window + 1]) for i in range(len(words))] or [""]
    whole = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [near[i] for i in at], [whole[i] for i in k]


def share(some: Sequence[str], of: Collection[str]) -> float:
    """Share of some words that are among others; 0 where there are none."""
    return sum(word in of for word in some) / max(1, len(some))


def _runs(words: Sequence[str]) -> set[str]:
    return {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def _sentences(text: str, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where sentences begin, where each token does, and its sentence; a token without characters stands at the end."""
    starts = sentence_starts(text)
    start = np.where(spans[:, 1] > 0, spans[:, 0], max(0, len(text) - 1))
    return starts, start, np.searchsorted(starts, start, side="right") - 1
