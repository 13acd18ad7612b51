"""Attention over trees by PyTorch's FlexAttention: one kernel a layer for all trees of a row, blocks nobody sees left out.

For accelerators, where `torch.compile` makes a kernel of it; a processor has faster ways (`attention`, `dense_attention`)
and runs this one uncompiled, without gradients, for tests. Knows queries, keys and layouts; knows nothing about models.

Dimension letters: H query heads, K key heads, D head size, L flat positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from karat.lm.trees import TreeLayout

DEVICES = ("cuda", "xpu")
"""Where it is tried: PyTorch has kernels for it there, forward and backward."""


def flex_tree_attention(
    query: Float[Tensor, "1 H L D"],
    key: Float[Tensor, "1 K L D"],
    value: Float[Tensor, "1 K L D"],
    layout: TreeLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "1 L H D"]:
    """softmax(cap·tanh(q·kᵀ·scale/cap) + mask)·v of a flat row; what stands behind the last tree attends to itself."""
    attend = _compiled() if query.device.type in DEVICES else flex_attention
    mask = _block_mask(layout, window, query.device)
    gqa = query.shape[1] != key.shape[1]
    found = attend(
        query, key, value, score_mod=_capped(softcap, query.device), block_mask=mask, scale=scale, enable_gqa=gqa
    )
    return found.transpose(1, 2).contiguous()


def places_of(layout: TreeLayout) -> Int[Tensor, "3 L"]:
    """Of each flat position its tree, its part of it (0 = prompt, else the branch) and its place in the text.

    What stands behind the last tree is a tree of its own, position by position.
    """
    rows: list[Tensor] = []
    for number, span in enumerate(layout.spans):
        lengths = torch.tensor([span.n_prompt, *span.branch_lengths])
        part = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        before = (lengths.cumsum(0) - lengths)[part]
        place = torch.arange(len(part)) - before + (part > 0) * span.n_prompt
        rows.append(torch.stack([torch.full_like(part, number), part, place]))
    n_filler = layout.n_positions - layout.spans[-1].stop
    own = torch.arange(n_filler) + len(layout.spans)
    rows.append(torch.stack([own, torch.zeros_like(own), torch.zeros_like(own)]))
    return torch.cat(rows, dim=1)


@functools.lru_cache(maxsize=4)
def _block_mask(layout: TreeLayout, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of a layout are seen at all; kept, as each layer of a model asks for the same."""
    with torch.inference_mode(False), torch.no_grad():
        tree, part, place = places_of(layout).to(device)
        # a tensor, as is the cap below: numbers of Python in these functions are compiled anew, or not at all
        reach = torch.tensor(layout.n_positions if window is None else window, device=device)

        def seen(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            own = (tree[i] == tree[j]) & ((part[j] == 0) | (part[i] == part[j]))
            distance = place[i] - place[j]
            return own & (distance >= 0) & (distance < reach)

        return create_block_mask(seen, None, None, layout.n_positions, layout.n_positions, device=device)


def _capped(softcap: float | None, device: torch.device) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None
    with torch.inference_mode(False):
        most = torch.tensor(softcap, device=device)

    def cap(score: Tensor, _batch: Tensor, _head: Tensor, _i: Tensor, _j: Tensor) -> Tensor:
        return torch.tanh(score / most) * most

    return cap


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)
