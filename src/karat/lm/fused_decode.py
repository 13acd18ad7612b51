"""A decoder block for the sampler's prompts and steps: products, and between them one compiled pass each.

What `fused_block` is to rows of trees this is to one token of each running row, whose norms, angles, keys and values to keep and
attention over them are one pass (`decode_rows` of native_sampler.c), and to prompts, which are trees of one branch. Steps that
are compiled or recorded take the block's own way. Knows weights and the sampler's cache; knows nothing about tokens.

Dimension letters: N tokens, n of them that are read, d hidden size, H query heads, K key heads, D head size, m MLP size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.devices import CPU
from karat.lm.cache import DecodeCache, DecodeStep
from karat.lm.fused_attention import Frame, Sizes, over_trees, turned_heads
from karat.lm.kernels import even_rows, for_many_products, times
from karat.lm.low_rank import LowRank
from karat.lm.narrow import round_together
from karat.lm.native import GivenHeads, address, library

MOST_SHARED, LONGEST_SHARED = 1 << 16, 2048
"""Keys of a prompt times the rows that share it, and those keys: up to here measured to be faster than PyTorch's products."""


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """A layer's weights as the steps of one call of the sampler multiply by them."""

    sizes: Sizes
    """Of the block."""
    norms: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    """Weights before attention, before the MLP, of queries, of keys."""
    of_qkv: tuple[Tensor, ...]
    """[·, d] of queries, keys and values: one for all or one each; like all of them as `kernels.times` takes them."""
    of_output: Float[Tensor, "d H*D"]
    """Of the attention's output."""
    of_gate_up: tuple[Tensor, ...]
    """[·, d] of gate and up: one for both or one each."""
    of_down: Float[Tensor, "d m"]
    """Of the MLP's output."""
    adapters: tuple[LowRank | None, ...] = (None,) * 7
    """Of queries, keys, values, output, gate, up, down."""


def layer_weights(
    sizes: Sizes, weights: Sequence[Tensor | None], adapters: Sequence[LowRank | None], products: torch.dtype
) -> LayerWeights:
    """Args: weights: in the order of `fused_block.weights_of`.    products: their dtype; in float32 nothing is copied."""
    norm, wq, wk, wv, wo, norm_mlp, gate, up, down, norm_q, norm_k = weights

    def together(*parts: Tensor) -> tuple[Tensor, ...]:
        if products == torch.float32:  # one above the other they would be another copy of the model
            return tuple(part.detach() for part in parts)
        return (for_many_products(round_together(parts, products)),)

    return LayerWeights(
        sizes,
        (norm, norm_mlp, norm_q, norm_k),
        together(wq, wk, wv),
        *together(wo),
        together(gate, up),
        *together(down),
        tuple(adapters),
    )


def decodes(x: Tensor, cache: object, products: torch.dtype) -> bool:
    """Whether these are the sampler's prompts or a step of it, such that the compiled passes can take them."""
    if not isinstance(cache, DecodeCache):
        return False
    now = cache.now
    if isinstance(now, DecodeStep):
        n_shared, width = now.layout.row_at.shape[1], now.layout.prompt_width
        few = n_shared * width <= MOST_SHARED and width <= LONGEST_SHARED
        suits = not now.recorded and (n_shared == 1 or few)
    else:
        suits = now is not None
    return (
        suits
        and (cache.dtype or torch.float32) == products
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def decoded(
    x: Float[Tensor, "1 N d"],
    angles: tuple[Tensor, Tensor],
    own: LayerWeights,
    cache: DecodeCache,
    layer: int,
    rows: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "1 N d"]:
    """The block's output for whole prompts, or for one token of each row; keys and values go into the cache.

    Args:
        angles: cosines and sines [1, N, D].    rows: at which the output is read; None = all.
    """
    sizes, products = own.sizes, own.of_output.dtype
    call, x, (n, d) = library(products), x.contiguous(), x.shape[1:]
    assert call is not None
    norm, norm_mlp = own.norms[:2]
    normed, scale = _room(n, d, products), x.new_empty(n)
    call.norm_forward(address(x), None, None, n, d, address(norm), sizes.eps[0], None, address(normed), address(scale))
    qkv = _products(normed, own.of_qkv, sizes.widths, own.adapters[:3])
    attended = _attended([part[:n] for part in qkv], angles, own, cache, layer, rows)
    n_read, m = n if rows is None else rows.shape[0], own.of_down.shape[1]
    between, normed_mlp = x.new_empty(n_read, d), _room(n_read, d, products)
    (change,) = _products(attended, (own.of_output,), (d,), own.adapters[3:4])
    call.norm_forward(
        address(x), address(change), address(rows), n_read, d, address(norm_mlp), sizes.eps[3], address(between),
        address(normed_mlp), address(scale),
    )  # fmt: skip
    gate, up = _products(normed_mlp, own.of_gate_up, (m, m), own.adapters[4:6])
    gated, output = _room(n_read, m, products), torch.empty_like(x) if rows is None else torch.zeros_like(x)
    call.gate_forward(address(gate), address(up), gate.stride(0), n_read, m, address(gated))
    (change,) = _products(gated, (own.of_down,), (d,), own.adapters[6:])
    call.add_rows(address(between), address(change), address(rows), n_read, d, address(output))
    return output


def _room(n: int, width: int, dtype: torch.dtype) -> Tensor:
    """Place for n rows, and rows of 0 behind them where that makes a number which products are compiled for (`even_rows`)."""
    made = torch.empty(even_rows(n, CPU, dtype), width, dtype=dtype)
    if len(made) > n:  # to fill nothing takes as long as a small product
        made[n:] = 0
    return made


def _products(
    x: Tensor, weights: Sequence[Tensor], widths: Sequence[int], adapters: Sequence[LowRank | None]
) -> Sequence[Tensor]:
    """x times each of the parts, which stand in one matrix or in one each, with what adapters add to them."""
    found = [times(x, weight) for weight in weights]
    parts = found[0].split(widths, dim=1) if len(found) < len(widths) else found
    for part, adapter in zip(parts, adapters, strict=True):
        if adapter is not None:
            adapter.add_to(part, x)
    return parts


def _attended(
    qkv: Sequence[Tensor],  # [N, ·] of queries, keys and values
    angles: tuple[Tensor, Tensor],
    own: LayerWeights,
    cache: DecodeCache,
    layer: int,
    rows: Int[Tensor, " n"] | None,
) -> Tensor:  # [n, H·D] and what `_room` adds
    (q, k, v), sizes, now, n = qkv, own.sizes, cache.now, qkv[0].shape[0]
    H, K, D = sizes.heads, sizes.key_heads, sizes.size
    cosine, sine = (angle.reshape(-1, D).contiguous() for angle in angles)
    n_read, call = n if rows is None else rows.shape[0], library(q.dtype)
    attended = _room(n_read, H * D, q.dtype)
    if not isinstance(now, DecodeStep):
        frame = Frame(call, now.row, sizes, q.dtype, cosine, sine)
        turned, _ = turned_heads(frame, (q, k), own.norms[2:])
        cache.update(*(states.view(1, n, K, D).transpose(1, 2) for states in (turned[1], v)), layer)
        found, _ = over_trees(frame, turned, v, rows)
        attended[:n_read] = found if rows is None else found.index_select(0, rows)
        return attended
    cache.reserve_layer(layer, *(states.view(1, n, K, D).transpose(1, 2) for states in (k, v)))
    given = GivenHeads(
        *map(address, (q, k, v)), q.stride(0), k.stride(0), v.stride(0), H // K, K, D, address(own.norms[2]),
        address(own.norms[3]), *sizes.eps[1:3], address(cosine), address(sine), sizes.scale,
    )  # fmt: skip
    prompts, responses = cache.prompts[layer], cache.responses[layer]
    call.decode_rows(
        ctypes.byref(given), n, *map(address, prompts), prompts[0].shape[2], address(now.layout.slots),
        address(now.layout.prompt_lengths), *map(address, responses), responses[0].shape[2], address(now.offsets),
        sizes.window or 0, address(attended),
    )  # fmt: skip
    return attended
