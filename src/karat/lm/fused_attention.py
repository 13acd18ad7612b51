"""Attention over trees of short texts between two products: norms, angles, groups and softmax in compiled passes (`native`).

The same groups of pieces as in `dense_attention`; what is not a product reads and writes its numbers once, and of a group's
scores only those that are seen. Knows queries, keys and plans; knows nothing about models, tokens or losses.

Dimension letters: L flat positions, H query heads, K key heads, D head size; of a group: P pieces, q and k their queries and
keys.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.lm.dense_attention import Plan
from karat.lm.native import address
from karat.lm.row_tiles import RowTiles


@dataclass(frozen=True, eq=False)
class Sizes:
    """What is known of a block beside its weights."""

    heads: int
    """Query heads H."""
    key_heads: int
    """Key heads K."""
    size: int
    """Numbers D of a head."""
    scale: float
    """By which scores are multiplied."""
    eps: tuple[float, float, float, float]
    """Of the norms: before attention, of queries, of keys, before the MLP."""
    window: int | None
    """Positions that a position sees at most; None = all before it."""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Columns of queries, keys and values."""
        return self.heads * self.size, self.key_heads * self.size, self.key_heads * self.size


@dataclass(frozen=True, eq=False)
class Frame:
    """What a block's passes share beside its weights and numbers."""

    call: ctypes.CDLL
    """The compiled functions."""
    plan: Plan | RowTiles
    """The groups of the layout, or its tiles where texts are long."""
    sizes: Sizes
    """Of the block."""
    products: torch.dtype
    """Of all matrix products."""
    cosine: Float[Tensor, "L D"]
    """Of each position's angles."""
    sine: Float[Tensor, "L D"]
    """The same."""


def attend(
    frame: Frame, plan: Plan, qkv: Float[Tensor, "L (H+2K)*D"], norms: Sequence[Tensor | None]
) -> tuple[Float[Tensor, "L H*D"], list[Tensor]]:
    """What attention gives each position, and what its gradient needs."""
    (n, width), call, sizes = qkv.shape, frame.call, frame.sizes
    H, K, D = sizes.heads, sizes.key_heads, sizes.size
    turned, scales = turned_heads(frame, qkv, norms)
    kept, outputs = [], []
    for group in plan.groups:
        n_pieces, n_queries, n_keys = group.shape
        q = qkv.new_empty(n_pieces * K, H // K * n_queries, D)
        k, v = (qkv.new_empty(n_pieces * K, n_keys, D) for _ in range(2))
        call.gather_heads(address(turned[0]), H * D, H, D, address(group.query_rows), len(group.query_rows), address(q))
        call.gather_heads(address(turned[1]), K * D, K, D, address(group.key_rows), len(group.key_rows), address(k))
        call.gather_heads(
            address(qkv, (H + K) * D), width, K, D, address(group.key_rows), len(group.key_rows), address(v)
        )
        probs = torch.bmm(q, k.transpose(1, 2))
        call.attend_forward(
            address(probs), n_pieces, H, n_queries, n_keys, address(group.first), address(group.last), sizes.scale
        )
        outputs.append(torch.bmm(probs, v).view(-1, D))
        kept += [q, k, v, probs]
    together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return together.index_select(0, plan.places).view(n, H * D), [*scales, *kept]


def attend_back(
    frame: Frame,
    plan: Plan,
    grad: Float[Tensor, "L H*D"],
    qkv: Tensor,
    norms: Sequence[Tensor | None],
    kept: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of what `attend` was given: of [queries, keys, values], and of the norms' weights."""
    call, sizes = frame.call, frame.sizes
    H, K, D = sizes.heads, sizes.key_heads, sizes.size
    scales, kept = kept[:2], kept[2:]
    of_keys, of_values = (frame.cosine.new_zeros(len(qkv), K * D) for _ in range(2))
    of_queries = []
    for number, group in enumerate(plan.groups):
        q, k, v, probs = kept[4 * number : 4 * number + 4]
        n_pieces, n_queries, n_keys = group.shape
        own = torch.empty_like(q)
        call.gather_heads(address(grad), H * D, H, D, address(group.query_rows), len(group.query_rows), address(own))
        scores = torch.bmm(own, v.transpose(1, 2))
        call.attend_backward(address(probs), address(scores), n_pieces * H * n_queries, n_keys, sizes.scale)
        of_queries.append(torch.bmm(scores, k).view(-1, D))
        parts = torch.bmm(scores.transpose(1, 2), q), torch.bmm(probs.transpose(1, 2), own)
        for part, total in zip(parts, (of_keys, of_values), strict=True):
            call.scatter_heads(address(part), address(group.key_rows), n_pieces, K, n_keys, D, address(total))
    together = of_queries[0] if len(of_queries) == 1 else torch.cat(of_queries)
    return turned_back(frame, qkv, norms, scales, (together, plan.places), of_keys, of_values)


def turned_heads(
    frame: Frame, qkv: Float[Tensor, "L (H+2K)*D"], norms: Sequence[Tensor | None]
) -> tuple[tuple[Float[Tensor, "L H*D"], Float[Tensor, "L K*D"]], list[Tensor]]:
    """Queries and keys, normed and turned by their positions' angles, and the scales of their norms."""
    (n, width), sizes = qkv.shape, frame.sizes
    H, K, D = sizes.heads, sizes.key_heads, sizes.size
    turned, scales = [], []
    for first, n_heads, norm, eps in ((0, H, norms[0], sizes.eps[1]), (H * D, K, norms[1], sizes.eps[2])):
        heads, scale = qkv.new_empty(n, n_heads * D), frame.cosine.new_empty(n, n_heads)
        frame.call.heads_forward(
            address(qkv, first), width, n, n_heads, D, address(norm), eps, address(frame.cosine), address(frame.sine),
            address(heads), address(scale),
        )  # fmt: skip
        turned.append(heads)
        scales.append(scale)
    return tuple(turned), scales


def turned_back(
    frame: Frame,
    qkv: Float[Tensor, "L (H+2K)*D"],
    norms: Sequence[Tensor | None],
    scales: Sequence[Tensor],
    of_queries: tuple[Tensor, Int[Tensor, " L*H"]],
    of_keys: Float[Tensor, "L K*D"],
    of_values: Float[Tensor, "L K*D"],
) -> tuple[Float[Tensor, "L (H+2K)*D"], list[Tensor | None]]:
    """The way back of `turned_heads`: gradients of [queries, keys, values], and of the norms' weights.

    Args: of_queries: gradients of heads in any order, and where that of each (position, head) stands among them.
    """
    (n, width), call, sizes = qkv.shape, frame.call, frame.sizes
    H, K, D = sizes.heads, sizes.key_heads, sizes.size
    grad_qkv, of_norms = torch.empty_like(qkv), [None if norm is None else torch.empty_like(norm) for norm in norms]
    for first, n_heads, at in ((0, H, 0), (H * D, K, 1)):
        given = (None, *map(address, of_queries)) if at == 0 else (address(of_keys), None, None)
        call.heads_backward(
            address(qkv, first), width, n, n_heads, D, address(norms[at]), address(frame.cosine), address(frame.sine),
            address(scales[at]), *given, address(grad_qkv, first), width, address(of_norms[at]),
        )  # fmt: skip
    call.narrow_rows(address(of_values), None, n, K * D, address(grad_qkv, (H + K) * D), width)
    return grad_qkv, of_norms
