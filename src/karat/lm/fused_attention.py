"""Attention over trees between two products, in compiled passes (`native`): norms and angles, then each tree by itself.

Of scores only those that are seen are computed, a few queries' at a time; for the gradient heads and probabilities are made
again from the projections. Knows queries, keys and layouts; knows nothing about models, tokens or losses.

Dimension letters: L flat positions, H query heads, K key heads, D head size, P pieces of trees, T trees.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.lm.dense_attention import pieces_of
from karat.lm.native import AskedTrees, address
from karat.lm.trees import TreeLayout

NO_WINDOW = 2**31 - 1
"""More positions than there are."""


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
    layout: TreeLayout
    """Which positions belong together."""
    sizes: Sizes
    """Of the block."""
    products: torch.dtype
    """Of all matrix products."""
    cosine: Float[Tensor, "L D"]
    """Of each position's angles."""
    sine: Float[Tensor, "L D"]
    """The same."""


@lru_cache(maxsize=16)
def placed(layout: TreeLayout) -> tuple[Int[Tensor, "P 4"], Int[Tensor, " T+1"]]:
    """Pieces as int32 [first position that asks, the one behind the last, first and number of the prompt's keys], and the
    piece with which each tree begins, last their number; kept, as each layer of a model asks for the same."""
    pieces = [(one.start, one.stop, one.prompt_start, one.n_prompt) for one in pieces_of(layout)]
    begins = [0, *torch.tensor([len(span.branch_lengths) for span in layout.spans]).cumsum(0).tolist()]
    return torch.tensor(pieces, dtype=torch.int32), torch.tensor(begins, dtype=torch.int32)


def attend(
    frame: Frame,
    qkv: Float[Tensor, "L (H+2K)*D"],
    norms: Sequence[Tensor | None],
    read: Int[Tensor, " n"] | None,
) -> tuple[Float[Tensor, "L H*D"], list[Tensor]]:
    """What attention gives each position, and what its gradient needs beside qkv.

    Args: read: positions at which the output is used; elsewhere it means nothing. None = everywhere.
    Raises: MemoryError where memory is short.
    """
    q, k, v = qkv.split(frame.sizes.widths, dim=1)
    turned, scales = turned_heads(frame, (q, k), norms)
    output, sums = over_trees(frame, turned, v, read)
    return output, [*scales, sums]


def over_trees(
    frame: Frame,
    turned: tuple[Float[Tensor, "L H*D"], Float[Tensor, "L K*D"]],
    values: Float[Tensor, "L K*D"],
    read: Int[Tensor, " n"] | None,
) -> tuple[Float[Tensor, "L H*D"], Float[Tensor, "L H"]]:
    """What attention gives each position from turned queries and keys, and log Σ e^score of each head."""
    n = len(values)
    output = _room(frame, values, frame.sizes.widths[0], partly=read is not None)
    sums, marks = frame.cosine.new_empty(n, frame.sizes.heads), _marks(n, read)
    frame.call.attend_trees(_asked(frame, turned, values, marks), address(output), address(sums))
    return output, sums


def attend_back(
    frame: Frame,
    grad: Float[Tensor, "L H*D"],
    qkv: Tensor,
    norms: Sequence[Tensor | None],
    known: tuple[Sequence[Tensor], Int[Tensor, " n"] | None],
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of what `attend` was given: of [queries, keys, values], and of the norms' weights.

    Args: known: what it gave for this, and its `read`.
    """
    (*scales, sums), read = known
    q, k, v = qkv.split(frame.sizes.widths, dim=1)
    turned, _ = turned_heads(frame, (q, k), norms)
    marks = _marks(len(qkv), read)
    partly = (read is not None, False, False)  # the pass writes no queries that are not read, but all keys and values
    found = [_room(frame, frame.cosine, *one) for one in zip(frame.sizes.widths, partly, strict=True)]
    asked = _asked(frame, turned, v, marks)
    frame.call.attend_trees_back(asked, address(grad), address(sums), *map(address, found))
    return turned_back(frame, qkv, norms, scales, found)


def _room(frame: Frame, like: Tensor, width: int, partly: bool) -> Float[Tensor, "L width"]:
    """Where the compiled pass writes every position of a tree, or some of them (`partly`); 0 where it writes nothing."""
    n, stop = len(like), 0 if partly else frame.layout.spans[-1].stop
    room = like.new_empty(n, width)
    if stop < n:
        room[stop:].zero_()
    return room


def _marks(n: int, read: Int[Tensor, " n"] | None) -> Tensor | None:
    """1 at the positions that are read, as the compiled pass wants to know it."""
    return None if read is None else torch.zeros(n, dtype=torch.uint8).index_fill_(0, read, 1)


def _asked(frame: Frame, turned: Sequence[Tensor], values: Tensor, marks: Tensor | None) -> ctypes.c_void_p:
    """What the compiled pass is told; tensors must outlive the call."""
    sizes, (pieces, trees) = frame.sizes, placed(frame.layout)
    query_width, key_width, _ = sizes.widths
    return ctypes.byref(
        AskedTrees(
            *map(address, (*turned, values)), query_width, key_width, values.stride(0),
            sizes.heads, sizes.key_heads, sizes.size, address(pieces), address(trees), len(trees) - 1,
            sizes.window or NO_WINDOW, address(marks), sizes.scale,
        )
    )  # fmt: skip


def turned_heads(
    frame: Frame, heads: tuple[Float[Tensor, "L H*D"], Float[Tensor, "L K*D"]], norms: Sequence[Tensor | None]
) -> tuple[tuple[Float[Tensor, "L H*D"], Float[Tensor, "L K*D"]], list[Tensor]]:
    """Queries and keys, normed and turned by their positions' angles, and the scales of their norms.

    Args: heads: rows may lie apart, numbers of a row may not.
    """
    sizes, turned, scales = frame.sizes, [], []
    for own, n_heads, norm, eps in zip(heads, (sizes.heads, sizes.key_heads), norms, sizes.eps[1:3], strict=True):
        n = len(own)
        made, scale = own.new_empty(n, n_heads * sizes.size), frame.cosine.new_empty(n, n_heads)
        frame.call.heads_forward(
            address(own), own.stride(0), n, n_heads, sizes.size, address(norm), eps, address(frame.cosine),
            address(frame.sine), address(made), address(scale),
        )  # fmt: skip
        turned.append(made)
        scales.append(scale)
    return tuple(turned), scales


def turned_back(
    frame: Frame,
    qkv: Float[Tensor, "L (H+2K)*D"],
    norms: Sequence[Tensor | None],
    scales: Sequence[Tensor],
    found: Sequence[Tensor],
) -> tuple[Float[Tensor, "L (H+2K)*D"], list[Tensor | None]]:
    """The way back of `turned_heads`: gradients of [queries, keys, values], and of the norms' weights.

    Args: found: gradients of turned queries, turned keys and values, float32.
    """
    (n, width), call, sizes = qkv.shape, frame.call, frame.sizes
    H, K, D = sizes.heads, sizes.key_heads, sizes.size
    grad_qkv, of_norms = torch.empty_like(qkv), [None if norm is None else torch.empty_like(norm) for norm in norms]
    for first, n_heads, at in ((0, H, 0), (H * D, K, 1)):
        call.heads_backward(
            address(qkv, first), width, n, n_heads, D, address(norms[at]), address(frame.cosine), address(frame.sine),
            address(scales[at]), address(found[at]), address(grad_qkv, first), width, address(of_norms[at]),
        )  # fmt: skip
    call.narrow_rows(address(found[2]), None, n, K * D, address(grad_qkv, (H + K) * D), width)
    return grad_qkv, of_norms
