"""Tree attention for short texts: pieces of like size side by side in batched matrix products.

A kernel call a piece costs more than its arithmetic where a piece is a few dozen tokens. Here pieces are gathered into
padded groups, attended with plain products whose probabilities are kept for the gradient, and put back in the flat row.
Knows queries, keys and layouts; knows nothing about models, tokens or losses.

Dimension letters: H query heads, K key heads, G = H/K, D head size, L flat positions, P pieces of a group, q and k their
queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.lm.shapes import FEW_PARTS, even_number
from karat.lm.trees import TreeLayout

MOST_KEYS = 160
"""Keys of the longest piece for which this route is taken: at 200 it takes as long as the flash kernel (docs/LOG.md)."""
MOST_NARROW_KEYS = 512
"""The same for bfloat16, whose products are five times as fast here; more would keep many probabilities (docs/LOG.md)."""
MOST_WASTE = 1.35
"""Padded over true scores of a head within a group …"""
FREE_WASTE = 2048
"""… beyond so many, whose arithmetic takes less time than another group's calls."""
MOST_SCORES = 1 << 20
"""Scores of a group, all heads: they are to stay in the cache between the product and the softmax."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring queries and the keys they see: the prompt's, then their own up to themselves."""

    start: int
    """First flat position that asks."""
    stop: int
    """Flat position after the last."""
    prompt_start: int
    """First flat position of the prompt that all of them see."""
    n_prompt: int
    """Prompt tokens; 0 where prompt and branch are one causal sequence."""

    @property
    def n_queries(self) -> int:
        """Positions that ask."""
        return self.stop - self.start

    @property
    def n_keys(self) -> int:
        """Positions that are seen."""
        return self.n_prompt + self.n_queries


@lru_cache(maxsize=16)
def pieces_of(layout: TreeLayout) -> tuple[Piece, ...]:
    """Each tree's prompt with its first branch as one causal sequence, then each further branch; in row order."""
    pieces = []
    for span in layout.spans:
        begin = span.start
        for number, length in enumerate(span.branch_lengths):
            n_prompt = span.n_prompt if number else 0
            stop = begin + length + (0 if number else span.n_prompt)
            pieces.append(Piece(begin, stop, span.start, n_prompt))
            begin = stop
    return tuple(pieces)


def is_short(layout: TreeLayout, products: torch.dtype) -> bool:
    """Whether every piece of the layout is short enough for this route with products of that dtype."""
    most = MOST_NARROW_KEYS if products == torch.bfloat16 else MOST_KEYS
    return max(piece.n_keys for piece in pieces_of(layout)) <= most


@dataclass(frozen=True, eq=False)
class Group:
    """Pieces of like size, padded to the largest; rows count (position, head) pairs of the flat row."""

    shape: tuple[int, int, int]
    """P, q, k."""
    query_rows: Int[Tensor, " P*H*q"]
    """Row of each padded query among the L·H; padding repeats a piece's first."""
    key_rows: Int[Tensor, " P*K*k"]
    """Row of each padded key among the L·K; padding repeats a piece's first."""
    first: Int[Tensor, "P q"]
    """The first key that a query sees, int32; 0 for padding."""
    last: Int[Tensor, "P q"]
    """The one behind the last; 0 for padding, which sees none."""
    dtype: torch.dtype
    """Of the mask."""

    @cached_property
    def asks(self) -> Float[Tensor, "P 1 q 1"]:
        """1 = a query, 0 = padding."""
        return (self.last > 0).to(self.dtype)[:, None, :, None]

    @cached_property
    def mask(self) -> Float[Tensor, "P 1 q k"]:
        """0 = seen, −inf = not seen; a padded query sees everything, so that no row is empty."""
        k, last = torch.arange(self.shape[2], dtype=torch.int32), self.last[..., None]
        unseen = ((k < self.first[..., None]) | (k >= last)) & (last > 0)
        return torch.zeros(unseen.shape, dtype=self.dtype).masked_fill_(unseen, -torch.inf)[:, None]


@dataclass(frozen=True, eq=False)
class Plan:
    """How a layout is cut into groups."""

    groups: tuple[Group, ...]
    """All pieces, each once."""
    places: Int[Tensor, " L*H"]
    """Where the output of each (position, head) stands among the groups' padded queries laid end to end."""
    n_real: int
    """Rows L·H that belong to a tree; behind them is filler."""


class DenseTreeAttention(torch.autograd.Function):
    """softmax(q·kᵀ·scale + mask)·v of a flat row, group by group."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "1 H L D"],
        key: Float[Tensor, "1 K L D"],
        value: Float[Tensor, "1 K L D"],
        layout: TreeLayout,
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "1 L H D"]:
        """The attention's output, laid out by position; scores and softmax are in float32 or wider."""
        n_heads, n_key_heads, wide = query.shape[1], key.shape[1], _wide(query.dtype)
        plan = plan_of(layout, n_heads, n_key_heads, window, wide, query.dtype == torch.bfloat16)
        queries, keys, values = (_by_row(t.transpose(1, 2)) for t in (query, key, value))
        outputs, kept = [], []
        for group in plan.groups:
            n_pieces, n_queries, n_keys = group.shape
            q = queries.index_select(0, group.query_rows).view(n_pieces * n_key_heads, -1, query.shape[-1])
            k, v = (t.index_select(0, group.key_rows).view(n_pieces * n_key_heads, n_keys, -1) for t in (keys, values))
            scores = torch.bmm(q, k.transpose(1, 2)).to(wide).mul_(scale)
            scores.view(n_pieces, n_heads, n_queries, n_keys).add_(group.mask)
            probs = scores.softmax(-1).to(q.dtype)
            outputs.append(torch.bmm(probs, v).view(-1, value.shape[-1]))
            kept += [q, k, v, probs]
        ctx.save_for_backward(*kept)
        ctx.plan, ctx.scale, ctx.shapes = plan, scale, (query.shape, key.shape, value.shape)
        return _put_back(outputs, plan).view(1, query.shape[2], n_heads, value.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        plan, kept = ctx.plan, ctx.saved_tensors
        query_shape, key_shape, value_shape = ctx.shapes
        narrow, wide = grads[0].dtype, _wide(grads[0].dtype)
        grad = _by_row(grads[0])
        # laid out as the projections are, [L, heads, size], so that what follows needs no copy
        grad_keys, grad_values = (grad.new_zeros(s[2] * s[1], s[3], dtype=wide) for s in (key_shape, value_shape))
        grad_queries = []
        for number, group in enumerate(plan.groups):
            q, k, v, probs = kept[4 * number : 4 * number + 4]
            n_pieces, n_queries, _ = group.shape
            grad_output = grad.index_select(0, group.query_rows).view(n_pieces, -1, n_queries, value_shape[-1])
            grad_output = grad_output.mul_(group.asks).view(len(k), -1, value_shape[-1])
            grad_probs = torch.bmm(grad_output, v.transpose(1, 2)).to(wide)
            grad_scores = torch._softmax_backward_data(grad_probs, probs.to(wide), -1, wide).mul_(ctx.scale).to(narrow)
            grad_queries.append(torch.bmm(grad_scores, k).view(-1, query_shape[-1]))
            # a padded key has probability 0 for every query, so what is added at its row is 0
            of_keys = torch.bmm(grad_scores.transpose(1, 2), q).view(-1, key_shape[-1])
            of_values = torch.bmm(probs.transpose(1, 2), grad_output).view(-1, value_shape[-1])
            grad_keys.index_add_(0, group.key_rows, of_keys.to(wide))
            grad_values.index_add_(0, group.key_rows, of_values.to(wide))
        found = (_put_back(grad_queries, plan), grad_keys.to(narrow), grad_values.to(narrow))
        shaped = (t.view(1, s[2], s[1], s[3]).transpose(1, 2) for t, s in zip(found, ctx.shapes, strict=True))
        return *shaped, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _by_row(tensor: Float[Tensor, "1 L h D"]) -> Float[Tensor, "L*h D"]:
    return tensor.reshape(-1, tensor.shape[-1])


def _put_back(parts: Sequence[Float[Tensor, "n D"]], plan: Plan) -> Float[Tensor, "L*H D"]:
    together = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    rows = together.index_select(0, plan.places)
    rows[plan.n_real :] = 0
    return rows


@lru_cache(maxsize=16)
def plan_of(
    layout: TreeLayout, n_heads: int, n_key_heads: int, window: int | None, dtype: torch.dtype, even: bool = False
) -> Plan:
    """The groups of a layout; kept, as each layer of a model asks for the same.

    Args: even: whether products are compiled for every shape, so that few shapes are to occur (`even_rows`).
    """
    groups, first = [], 0
    places = np.zeros((layout.n_positions, n_heads), dtype=np.int64)
    for pieces in grouped(pieces_of(layout), n_heads):
        start = np.array([piece.start for piece in pieces])[:, None]
        prompt_start = np.array([piece.prompt_start for piece in pieces])[:, None]
        n_queries = np.array([piece.n_queries for piece in pieces])[:, None]
        n_prompt = np.array([piece.n_prompt for piece in pieces])[:, None]
        most = n_queries.max(), (n_prompt + n_queries).max()
        q, k = (np.arange(even_number(int(n), FEW_PARTS) if even else n) for n in most)
        asks, is_key = q < n_queries, k < n_prompt + n_queries
        query_at = np.where(asks, start + q, start)
        key_at = np.where(is_key, np.where(k < n_prompt, prompt_start + k, start + k - n_prompt), start)
        # a query sees the prompt and its own piece up to itself, or the last `window` of them
        last = np.where(asks, n_prompt + q + 1, 0).astype(np.int32)
        first_seen = np.maximum(last - window, 0) if window else np.zeros_like(last)
        query_rows = query_at[:, None] * n_heads + np.arange(n_heads)[:, None]
        key_rows = key_at[:, None] * n_key_heads + np.arange(n_key_heads)[:, None]
        padded = first + np.arange(query_rows.size).reshape(query_rows.shape)
        places[query_at[asks]] = padded.transpose(0, 2, 1)[asks]
        first += query_rows.size
        groups.append(
            Group(
                shape=(len(pieces), len(q), len(k)),
                query_rows=torch.from_numpy(query_rows.reshape(-1)),
                key_rows=torch.from_numpy(key_rows.reshape(-1)),
                first=torch.from_numpy(first_seen),
                last=torch.from_numpy(last),
                dtype=dtype,
            )
        )
    return Plan(tuple(groups), torch.from_numpy(places.reshape(-1)), layout.spans[-1].stop * n_heads)


def grouped(pieces: Sequence[Piece], n_heads: int) -> list[list[Piece]]:
    """Pieces in groups that waste little: by whether they have a prompt apart, then by size."""
    groups: list[list[Piece]] = []
    true = most_queries = most_keys = 0
    for piece in sorted(pieces, key=lambda one: (one.n_prompt > 0, one.n_keys, one.n_queries, one.start)):
        own = piece.n_queries * piece.n_keys
        most_queries, most_keys = max(most_queries, piece.n_queries), max(most_keys, piece.n_keys)
        padded = most_queries * most_keys * (len(groups[-1]) + 1) if groups else 0
        if not groups or padded > MOST_WASTE * (true + own) + FREE_WASTE or padded * n_heads > MOST_SCORES:
            groups.append([])
            true, most_queries, most_keys = 0, piece.n_queries, piece.n_keys
        groups[-1].append(piece)
        true += own
    return groups
