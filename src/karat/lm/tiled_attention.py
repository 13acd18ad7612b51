"""Tree attention for long texts: a block of queries × all keys that it sees, as plain matrix products.

Where oneDNN multiplies several times as fast as PyTorch's flash kernel for CPUs attends, the scores of a block are made
whole, their softmax is taken in place, and blocks that nothing sees are never made. Scores are made again for the
gradient, so that one block of them exists at a time. Knows queries, keys and layouts; knows nothing about models, tokens
or losses.

Dimension letters: H query heads, K key heads, G = H/K, D head size, L flat positions; of a tile: q queries, k keys, m of
them masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.lm.kernels import matmul, onednn_is_faster
from karat.lm.logits import softmax_
from karat.lm.trees import TreeLayout, TreeSpan

QUERIES, ROWS = 128, 512
"""Of a tile: positions that ask, and rows (positions × heads that share keys), unless the latter are at least LEAST."""
LEAST = 32
LEAST_PRODUCT = 3 << 20
"""Multiply-adds of a tile's product, on average, from which this route is faster than the flash kernel (docs/LOG.md)."""
MOST_WASTE, FREE_WASTE = 1.25, 8192
"""Branches share a tile while scores made ≤ MOST_WASTE · scores seen + FREE_WASTE, which take less time than its calls."""


@dataclass(frozen=True, eq=False)
class Tile:
    """Neighbouring queries and the keys they see: some from the tree's start, then others up to the last query."""

    start: int
    """First flat position that asks."""
    stop: int
    """Flat position after the last."""
    first: int
    """First flat position that is seen: that of the tree."""
    n_first: int
    """Keys from there on …"""
    own: int
    """… and flat position from which further keys go up to `stop`."""
    mask: Float[Tensor, "q m"]
    """0 = seen, −inf = not seen, of the last m keys; those before are seen by all."""

    @property
    def n_queries(self) -> int:
        """Positions that ask."""
        return self.stop - self.start

    @property
    def n_keys(self) -> int:
        """Positions that are seen."""
        return self.n_first + self.stop - self.own


def suits(
    query: Float[Tensor, "1 H L D"], key: Float[Tensor, "1 K L D"], layout: TreeLayout, window: int | None
) -> bool:
    """Whether this route takes such a row, and is the faster one here."""
    if query.device.type != "cpu" or query.dtype != torch.float32 or not onednn_is_faster():
        return False
    if window is not None and window < max(
        span.n_prompt + max(span.branch_lengths, default=0) for span in layout.spans
    ):
        return False
    group = query.shape[1] // key.shape[1]
    return _mean_scores(layout, group) * group * query.shape[3] >= LEAST_PRODUCT


@lru_cache(maxsize=16)
def _mean_scores(layout: TreeLayout, group: int) -> float:
    tiles = tiles_of(layout, group, torch.float32)
    return sum(tile.n_queries * tile.n_keys for tile in tiles) / len(tiles)


class TiledTreeAttention(torch.autograd.Function):
    """softmax(q·kᵀ·scale + mask)·v of a flat row, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "1 H L D"],
        key: Float[Tensor, "1 K L D"],
        value: Float[Tensor, "1 K L D"],
        layout: TreeLayout,
        scale: float,
        read: Int[Tensor, " n"] | None,
    ) -> Float[Tensor, "1 L H D"]:
        """The attention's output, laid out by position.

        Args:
            read: ascending flat positions where the output is used; elsewhere it is 0. None = everywhere.
        """
        tiles = tiles_of(layout, query.shape[1] // key.shape[1], query.dtype)
        tiles = tiles if read is None else _read_by(tiles, read)
        ctx.save_for_backward(query, key, value)
        ctx.tiles, ctx.scale = tiles, scale
        output = query.new_zeros(query.shape[2], query.shape[1], value.shape[-1])
        for own, keys, values in _by_key_head(query, key, value):
            for tile in tiles:
                probs = _probs(_rows_of(query[0, own], tile, scale), _seen(keys, tile), tile)
                found = matmul(probs, _seen(values, tile)).view(-1, tile.n_queries, value.shape[-1])
                output[tile.start : tile.stop, own] = found.transpose(0, 1)
        return output.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        query, key, value = ctx.saved_tensors
        # laid out as the projections are, [L, heads, size], so that what follows needs no copy
        grad_query, grad_key, grad_value = (torch.zeros_like(t[0].transpose(0, 1)) for t in (query, key, value))
        grad = grads[0][0].transpose(0, 1)
        for number, (own, keys, values) in enumerate(_by_key_head(query, key, value)):
            # as [D, L]: queries and gradients are less to turn round than scores
            of_keys, of_values = keys.new_zeros(keys.shape[::-1]), values.new_zeros(values.shape[::-1])
            for tile in ctx.tiles:
                q, seen = _rows_of(query[0, own], tile, ctx.scale), _seen(keys, tile)
                probs, grad_output = _probs(q, seen, tile), _rows_of(grad[own], tile)
                _add(of_values, matmul(grad_output.t().contiguous(), probs), tile)
                grad_scores = matmul(grad_output, _seen(values, tile).t())
                torch.ops.aten._softmax_backward_data.out(grad_scores, probs, -1, q.dtype, grad_input=grad_scores)
                _add(of_keys, matmul(q.t().contiguous(), grad_scores), tile)
                found = matmul(grad_scores, seen).mul_(ctx.scale).view(-1, tile.n_queries, query.shape[-1])
                grad_query[tile.start : tile.stop, own] = found.transpose(0, 1)
            grad_key[:, number], grad_value[:, number] = of_keys.t(), of_values.t()
        return *(t.transpose(0, 1).unsqueeze(0) for t in (grad_query, grad_key, grad_value)), None, None, None


def _by_key_head(query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The query heads of each key head, its keys and its values, [L, D]."""
    group = query.shape[1] // key.shape[1]
    for head in range(key.shape[1]):
        yield slice(head * group, (head + 1) * group), key[0, head].contiguous(), value[0, head].contiguous()


def _rows_of(states: Float[Tensor, "G L D"], tile: Tile, factor: float = 1.0) -> Float[Tensor, "G*q D"]:
    rows = states[:, tile.start : tile.stop].reshape(-1, states.shape[-1])
    return rows if factor == 1 else rows * factor


def _seen(states: Float[Tensor, "L D"], tile: Tile) -> Float[Tensor, "k D"]:
    if tile.own == tile.first + tile.n_first:
        return states[tile.first : tile.stop]
    return torch.cat([states[tile.first : tile.first + tile.n_first], states[tile.own : tile.stop]])


def _probs(q: Float[Tensor, "G*q D"], keys: Float[Tensor, "k D"], tile: Tile) -> Float[Tensor, "G*q k"]:
    scores = matmul(q, keys.t())
    n_masked = tile.mask.shape[1]
    if n_masked:
        scores.view(-1, tile.n_queries, tile.n_keys)[:, :, -n_masked:].add_(tile.mask)
    return softmax_(scores)


def _add(total: Float[Tensor, "D L"], part: Float[Tensor, "D k"], tile: Tile) -> None:
    total[:, tile.first : tile.first + tile.n_first] += part[:, : tile.n_first]
    total[:, tile.own : tile.stop] += part[:, tile.n_first :]


def _read_by(tiles: tuple[Tile, ...], read: Int[Tensor, " n"]) -> tuple[Tile, ...]:
    edges = torch.tensor([[tile.start, tile.stop] for tile in tiles])
    before = torch.searchsorted(read.cpu(), edges)
    return tuple(tile for tile, some in zip(tiles, (before[:, 1] > before[:, 0]).tolist(), strict=True) if some)


@lru_cache(maxsize=16)
def tiles_of(layout: TreeLayout, group: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """The tiles of a layout, each position of a tree in one of them; kept, as each layer of a model asks for the same.

    Args: group: query heads that share a key head.
    """
    at_most = min(QUERIES, max(ROWS // group, LEAST))
    masks: dict[tuple[int, bytes], Tensor] = {}
    tiles = []
    for span in layout.spans:
        lengths = [span.n_prompt + sum(span.branch_lengths[:1]), *span.branch_lengths[1:]]
        part = np.repeat(np.arange(len(span.branch_lengths) + 1), [span.n_prompt, *span.branch_lengths])
        for start, stop, own in _cuts(lengths, span, at_most):
            rows, columns = np.arange(start, stop)[:, None], np.arange(own, stop)
            same = (part[columns] == part[rows]) | (part[columns] == 0)
            hidden = ~(same & (columns <= rows))
            hidden = hidden[:, int(np.argmax(hidden.any(0))) :] if hidden.any() else hidden[:, :0]
            known = (len(hidden), hidden.tobytes())
            if known not in masks:
                masks[known] = torch.from_numpy(np.where(hidden, -np.inf, 0.0)).to(dtype)
            n_first = min(span.n_prompt, own)
            first = span.start
            tiles.append(Tile(first + start, first + stop, first, n_first, first + own, masks[known]))
    return tuple(tiles)


def _cuts(lengths: list[int], span: TreeSpan, at_most: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first key behind the prompt) of each tile, counted from the tree's start.

    Long sequences are cut at multiples of `at_most`, so that of a text only the last tile has a shape of its own; short
    neighbours are laid together.

    Args: lengths: of what asks: the prompt with its first branch, then each further branch.
    """
    begin = number = 0
    while number < len(lengths):
        first_key = 0 if number == 0 else begin
        if lengths[number] > at_most:
            stop = begin + lengths[number]
            edges = [*range(begin, stop, at_most), stop]
            yield from ((start, stop, first_key) for start, stop in pairwise(edges))
            begin += lengths[number]
            number += 1
            continue
        n_together, made_of = 0, 0
        while number < len(lengths) and n_together + lengths[number] <= at_most:
            n_more = lengths[number]
            seen = made_of + n_more * (n_more + (span.n_prompt if number else 0))
            made = (n_together + n_more) * (
                begin + n_together + n_more - first_key + (span.n_prompt if first_key else 0)
            )
            if n_together and made > MOST_WASTE * seen + FREE_WASTE:
                break
            n_together, made_of, number = n_together + n_more, seen, number + 1
        yield begin, begin + n_together, first_key
        begin += n_together
