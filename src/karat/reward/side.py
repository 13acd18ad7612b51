"""Plain features beside the trunk's: n-grams, place, overlap and numbers of whole responses, and of their tokens.

A reward that reads them is told by words and lengths what a small trunk does not see, and can be gamed by the same words and
lengths; the gate looks at it like at any other. N-grams go through a basis of the training texts: z(x) = n(x)·Nᵀ·U·Λ^−½
with N·Nᵀ = U·Λ·Uᵀ, so that a normal prior on z's weights is one on n-grams, in the span of those texts. Knows texts and
arrays; knows nothing about votes.

Dimension letters: N texts, F n-grams, q features, S draws, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy import linalg
from torch import Tensor

from karat.errors import CheckpointError
from karat.lm.headers import read_header_metadata, read_tensors, write_tensors
from karat.ngrams import HASH_BITS, column_weights, ngram_counts, weighted_counts
from karat.plain_features import response_overlap, response_place
from karat.plain_numbers import response_numbers
from karat.records import Prompt
from karat.reward.settings import Beside

SIDE = "beside.safetensors"
BASIS_TEXTS, BASIS_WIDTH = 1500, 400
"""Training texts that make the basis of n-grams, spread evenly over them, and how many directions are kept."""
LEAST = 1e-6
"""Share of the largest eigenvalue below which a direction is noise."""


@dataclass(frozen=True, eq=False)
class NgramBasis:
    """n-grams of a text in the directions in which training texts differ."""

    columns: np.ndarray
    """Hashed n-grams that occur there, ascending, [F]."""
    column_weight: np.ndarray
    """Weight of each, [F]."""
    projection: np.ndarray
    """Nᵀ·U·Λ^−½, float32 [F, q]."""

    @property
    def width(self) -> int:
        """q."""
        return self.projection.shape[1]

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """[N, q]."""
        return ngram_products(texts, self.columns, self.projection, self.column_weight)


def ngram_basis(texts: Sequence[str], width: int = BASIS_WIDTH) -> NgramBasis:
    """The basis of some training texts."""
    distinct = list(dict.fromkeys(texts))
    counts = ngram_counts(distinct)
    weight = column_weights(counts)
    kept = np.unique(np.linspace(0, len(distinct) - 1, min(len(distinct), BASIS_TEXTS)).round().astype(int))
    some = weighted_counts(counts[kept], weight)
    columns = np.unique(some.indices)
    some = some[:, columns]
    values, vectors = linalg.eigh((some @ some.T).toarray())
    order = np.argsort(values)[::-1][:width]
    order = order[values[order] > LEAST * max(values[order[0]], 1e-12)]
    projection = some.T @ (vectors[:, order] / np.sqrt(values[order]))
    return NgramBasis(columns, weight[columns], np.asarray(projection, dtype=np.float32))


def ngram_products(
    texts: Sequence[str], columns: np.ndarray, weight: np.ndarray, column_weight: np.ndarray | None = None
) -> np.ndarray:
    """log(1 + count) of these n-grams [F], times the column's own weight where it has one, times weights [F, k]: [N, k].

    Texts that are equal are read once.
    """
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    own = np.ones(len(columns)) if column_weight is None else column_weight
    counts = weighted_counts(ngram_counts(list(place))[:, columns], own)
    return (counts @ weight)[[place[text] for text in texts]]


def moments(raw: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean and standard deviation of each column of each block.

    A constant column has the spread ∞, so that it stays 0 wherever it is read: nothing was learned about it, and a text
    in which it is not constant must not stand a million deviations away.
    """
    means = {name: column.mean(0) for name, column in raw.items()}
    spreads = {name: column.std(0) for name, column in raw.items()}
    return means, {name: np.where(one > 1e-6, one, np.inf) for name, one in spreads.items()}


@dataclass(frozen=True, eq=False)
class SideFeatures:
    """Plain features of responses, as a fit found their basis, mean, spread and scale."""

    names: tuple[Beside, ...]
    """Blocks, in order."""
    ngrams: NgramBasis | None
    """None = not among the blocks."""
    centre: Mapping[str, np.ndarray]
    """Of the other blocks: mean of each column over the training texts."""
    spread: Mapping[str, np.ndarray]
    """Their standard deviations."""
    scales: np.ndarray
    """What each block is multiplied by (`block_layer`), one a name."""

    @property
    def width(self) -> int:
        """q: columns of all blocks."""
        ngrams = 0 if self.ngrams is None else self.ngrams.width
        return ngrams + sum(len(self.spread[name]) for name in self.names if name != "ngrams")

    def blocks(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[np.ndarray]:
        """Each block [N, q_k], without its scale."""
        found = []
        for name in self.names:
            if name == "ngrams":
                assert self.ngrams is not None
                found.append(self.ngrams.of(texts))
            else:
                found.append((_raw(name, prompts, texts) - self.centre[name]) / self.spread[name])
        return found

    def of(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
        """All blocks with their scales, [N, q]."""
        scaled = [block * scale for block, scale in zip(self.blocks(prompts, texts), self.scales, strict=True)]
        return np.concatenate(scaled, axis=1)

    def scaled(self, scales: np.ndarray) -> SideFeatures:
        """The same features with other scales."""
        return dataclasses.replace(self, scales=scales)


def side_features(names: Sequence[Beside], prompts: Sequence[Prompt], texts: Sequence[str]) -> SideFeatures:
    """The features of training texts; every block has the scale 1."""
    raw = {name: _raw(name, prompts, texts) for name in names if name != "ngrams"}
    ngrams = ngram_basis(texts) if "ngrams" in names else None
    return SideFeatures(tuple(names), ngrams, *moments(raw), np.ones(len(names)))


def _raw(name: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
    if name == "place":
        return response_place(texts)
    asked = [prompt.text for prompt in prompts]
    return response_numbers(asked, texts) if name == "numbers" else response_overlap(asked, texts)


@dataclass(frozen=True, eq=False)
class SideReward:
    """What each draw adds to the score of a response: linear in its plain features, raw as the heads are."""

    names: tuple[Beside, ...]
    """Blocks read."""
    columns: np.ndarray
    """Hashed n-grams with a weight, [F]; empty without n-grams."""
    ngram_weight: np.ndarray
    """Weight of each of them times log(1 + count), of each draw, float32 [S, F]."""
    plain_weight: np.ndarray
    """Of the columns of the other blocks, of each draw, [S, q]."""
    offset: np.ndarray
    """Of each draw, [S]: what measures those columns from their training mean."""
    scales: np.ndarray
    """What each block's columns were multiplied by in the first objective: how far it was trusted, relative to the trunk."""
    n_objectives: int = 1
    """O: draws stand objective by objective, so that S above is O·S."""

    def scores(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[Tensor, "S N O"]:
        """Raw scores: divide by the temperature as for the heads."""
        total = np.repeat(self.offset[:, None], len(texts), axis=1)
        plain = [_raw(name, prompts, texts) for name in self.names if name != "ngrams"]
        if plain:
            total = total + self.plain_weight @ np.concatenate(plain, axis=1).T
        if len(self.columns):
            total = total + ngram_products(texts, self.columns, self.ngram_weight.T).T
        found = torch.from_numpy(np.asarray(total, dtype=np.float32))
        return found.unflatten(0, (self.n_objectives, -1)).permute(1, 2, 0)


def single_weights(
    names: Sequence[Beside],
    bases: Mapping[str, NgramBasis],
    centre: Mapping[str, np.ndarray],
    spread: Mapping[str, np.ndarray],
    weight: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Weights [S, q] of blocks side by side, as they are read, as weights of single n-grams and columns.

    Args: bases: of n-grams, in the order in which their columns stand.
    Returns: of each basis its hashed n-grams [F] and float32 weights [S, F]; weights of the other columns [S, q]; and [S]
        what measures those from their training mean.
    """
    columns, on_ngrams = {}, {}
    plain, offset, begin = [np.zeros((len(weight), 0))], np.zeros(len(weight)), 0
    for name in names:
        if name == "ngrams":
            for read, basis in bases.items():
                own = weight[:, begin : begin + basis.width]
                columns[read] = basis.columns.astype(np.int64)
                on_ngrams[read] = ((own @ basis.projection.T) * basis.column_weight).astype(np.float32)
                begin += basis.width
        else:
            own = weight[:, begin : begin + len(spread[name])] / spread[name]
            plain.append(own)
            offset = offset - own @ centre[name]
            begin += own.shape[1]
    return columns, on_ngrams, np.concatenate(plain, axis=1), offset


def side_reward(features: SideFeatures, drawn: np.ndarray) -> SideReward:
    """The weights [S, q] of `SideFeatures.of` as weights of single n-grams and columns."""
    bases = {} if features.ngrams is None else {SIDE: features.ngrams}
    widths = [bases[SIDE].width if name == "ngrams" else len(features.spread[name]) for name in features.names]
    scaled = drawn * np.repeat(features.scales, widths)
    columns, on_ngrams, *others = single_weights(features.names, bases, features.centre, features.spread, scaled)
    none = np.zeros(0, dtype=np.int64), np.zeros((len(drawn), 0), dtype=np.float32)
    read = columns.get(SIDE, none[0]), on_ngrams.get(SIDE, none[1])
    return SideReward(features.names, *read, *others, features.scales)


def stacked_side(each: Sequence[SideReward]) -> SideReward:
    """Those of several objectives, which read the same columns, as one."""
    names = ("ngram_weight", "plain_weight", "offset")
    whole = {name: np.concatenate([getattr(one, name) for one in each]) for name in names}
    return dataclasses.replace(each[0], **whole, n_objectives=len(each))


def save_side(side: SideReward, directory: Path, *, metadata: Mapping[str, str], name: str = SIDE) -> None:
    """Write it beside the trunk and heads, or the people, that it belongs to."""
    names = ("columns", "ngram_weight", "plain_weight", "offset", "scales")
    tensors = {one: torch.from_numpy(np.ascontiguousarray(getattr(side, one))) for one in names}
    about = {
        **metadata,
        "names": "\n".join(side.names),
        "hash_bits": str(HASH_BITS),
        "n_objectives": str(side.n_objectives),
    }
    write_tensors(tensors, directory / name, about)


def load_side(directory: Path, names: Sequence[str], name: str = SIDE) -> SideReward | None:
    """What stands beside a saved reward, or its people, whose card names these blocks; None = it names none.

    Raises: CheckpointError where it is not there, or was hashed otherwise.
    """
    if not names:
        return None
    path = directory / name
    if not path.is_file():
        raise CheckpointError(f"{directory}: found no {name}; expected one, the reward reads {', '.join(names)}")
    about = read_header_metadata(path)
    if about.get("hash_bits") != str(HASH_BITS):
        raise CheckpointError(f"{path}: found n-grams of {about.get('hash_bits')} bits; expected {HASH_BITS}")
    read = tuple(about["names"].split("\n"))
    tensors = {"scales": np.ones(len(read))} | {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    return SideReward(read, **tensors, n_objectives=int(about.get("n_objectives", "1")))
