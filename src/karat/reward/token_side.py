"""Plain features of tokens beside the trunk's, for marks inside responses: n-grams around, place, overlap, numbers.

Knows texts, where their tokens stand, and arrays; knows nothing about marks or trunks.

Dimension letters: T tokens of one response, F n-grams, q features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from karat.plain_features import token_contexts, token_overlap, token_place
from karat.plain_numbers import token_numbers
from karat.reward.side import Beside, NgramBasis, moments, ngram_basis, ngram_products, single_weights

READS = ("window", "sentence")
"""What n-grams are counted in: two words on either side of a token, and its whole sentence."""
WIDTH = 200
"""Directions kept of each."""
Row = tuple[str, str, np.ndarray]
"""Prompt, response, and first and behind-last code point of each of its tokens [T, 2]."""


@dataclass(frozen=True, eq=False)
class TokenSide:
    """Plain features of tokens, as training responses gave their basis, mean and spread."""

    names: tuple[Beside, ...]
    """Blocks, in order."""
    bases: Mapping[str, NgramBasis]
    """Of `READS`; empty without n-grams."""
    centre: Mapping[str, np.ndarray]
    """Of the other blocks: mean of each column over training tokens."""
    spread: Mapping[str, np.ndarray]
    """Their standard deviations."""

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each block."""
        return {
            name: sum(basis.width for basis in self.bases.values()) if name == "ngrams" else len(self.spread[name])
            for name in self.names
        }

    def of(self, prompt: str, text: str, spans: np.ndarray) -> np.ndarray:
        """[T, q]."""
        found = []
        for name in self.names:
            if name == "ngrams":
                contexts = token_contexts(text, spans)
                found += [self.bases[read].of(own) for read, own in zip(READS, contexts, strict=True)]
            else:
                found.append((_raw(name, prompt, text, spans) - self.centre[name]) / self.spread[name])
        return np.concatenate(found, axis=1)


def token_side(names: Sequence[Beside], rows: Sequence[Row]) -> TokenSide:
    """The features of the tokens of training responses."""
    bases: dict[str, NgramBasis] = {}
    if "ngrams" in names:
        contexts = [token_contexts(text, spans) for _, text, spans in rows]
        bases = {read: ngram_basis([one for own in contexts for one in own[k]], WIDTH) for k, read in enumerate(READS)}
    raw = {name: np.concatenate([_raw(name, *row) for row in rows]) for name in names if name != "ngrams"}
    return TokenSide(tuple(names), bases, *moments(raw))


def _raw(name: str, prompt: str, text: str, spans: np.ndarray) -> np.ndarray:
    if name == "place":
        return token_place(text, spans)
    return token_numbers(prompt, text, spans) if name == "numbers" else token_overlap(prompt, text, spans)


@dataclass(frozen=True, eq=False)
class TokenSideReward:
    """What plain features add to the scores of a token, one column a class."""

    names: tuple[Beside, ...]
    """Blocks read."""
    columns: Mapping[str, np.ndarray]
    """Of each of `READS`: hashed n-grams with a weight, [F]."""
    ngram_weight: Mapping[str, np.ndarray]
    """Weight of each times log(1 + count), float32 [K, F]."""
    plain_weight: np.ndarray
    """Of the columns of the other blocks, [K, q]."""
    offset: np.ndarray
    """Of each class, [K]: what measures those columns from their training mean."""

    def scores(self, prompt: str, text: str, spans: np.ndarray) -> Float[Tensor, "T K"]:
        """In logits, without a threshold."""
        total = np.repeat(self.offset[None], len(spans), axis=0)
        plain = [_raw(name, prompt, text, spans) for name in self.names if name != "ngrams"]
        if plain:
            total = total + np.concatenate(plain, axis=1) @ self.plain_weight.T
        if self.columns:
            for read, own in zip(READS, token_contexts(text, spans), strict=True):
                total = total + ngram_products(own, self.columns[read], self.ngram_weight[read].T)
        return torch.from_numpy(np.asarray(total, dtype=np.float32))

    def tensors(self) -> dict[str, Tensor]:
        """As they are saved."""
        arrays = {"side_plain": self.plain_weight, "side_offset": self.offset}
        for read in self.columns:
            arrays |= {f"side_columns_{read}": self.columns[read], f"side_ngrams_{read}": self.ngram_weight[read]}
        return {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in arrays.items()}

    @classmethod
    def from_tensors(cls, names: Sequence[Beside], tensors: Mapping[str, Tensor]) -> TokenSideReward:
        """From what `tensors` gave."""
        reads = [read for read in READS if f"side_columns_{read}" in tensors]
        own = {name: tensor.numpy() for name, tensor in tensors.items() if name.startswith("side_")}
        return cls(
            tuple(names), {read: own[f"side_columns_{read}"] for read in reads},
            {read: own[f"side_ngrams_{read}"] for read in reads}, own["side_plain"], own["side_offset"],
        )  # fmt: skip


def token_side_reward(side: TokenSide, weight: np.ndarray) -> TokenSideReward:
    """The weights [K, q] of `TokenSide.of` as weights of single n-grams and columns."""
    return TokenSideReward(side.names, *single_weights(side.names, side.bases, side.centre, side.spread, weight))
