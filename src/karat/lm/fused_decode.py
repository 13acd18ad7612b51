"""A decoder block for one token of each running row: five products or eight, and between them one compiled pass each.

What `fused_block` is to rows of trees this is to the sampler's steps. Norms, angles, keys and values that are stored and the
attention over prompt and response are one pass over the rows (`native.decode_rows`), so that a row's numbers do not depend
on who runs beside it. Steps that are compiled or recorded take the block's own way. Knows weights and the sampler's cache;
knows nothing about tokens.

Dimension letters: R rows, d hidden size, H query heads, K key heads, D head size, m MLP size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from karat.lm.cache import DecodeCache, DecodeStep
from karat.lm.fused_attention import Sizes
from karat.lm.kernels import matmul
from karat.lm.narrow import stacked
from karat.lm.native import address, library

MOST_SHARED = 1024
"""Keys of a prompt times the rows that share it: with more, PyTorch's products read them once for all of its rows."""


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """A layer's weights as the steps of one call of the sampler multiply by them."""

    sizes: Sizes
    """Of the block."""
    norms: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    """Weights before attention, before the MLP, of queries, of keys."""
    of_qkv: tuple[Tensor, ...]
    """[d, ·] of queries, keys and values: one for all or one each."""
    of_output: Float[Tensor, "H*D d"]
    """Of the attention's output."""
    of_gate_up: tuple[Tensor, ...]
    """[d, ·] of gate and up: one for both or one each."""
    of_down: Float[Tensor, "m d"]
    """Of the MLP's output."""


def layer_weights(sizes: Sizes, weights: Sequence[Tensor | None], products: torch.dtype) -> LayerWeights:
    """Args: weights: in the order of `fused_block.weights_of`.    products: their dtype; in float32 nothing is copied."""
    norm, wq, wk, wv, wo, norm_mlp, gate, up, down, norm_q, norm_k = weights

    def together(*parts: Tensor) -> tuple[Tensor, ...]:
        if products == torch.float32:  # one above the other they would be another copy of the model
            return tuple(part.detach().t() for part in parts)
        return (stacked(parts, products).t(),)

    return LayerWeights(
        sizes,
        (norm, norm_mlp, norm_q, norm_k),
        together(wq, wk, wv),
        *together(wo),
        together(gate, up),
        *together(down),
    )


def decodes(x: Tensor, cache: object, products: torch.dtype) -> bool:
    """Whether this is a step of the sampler that the compiled passes can take."""
    return (
        isinstance(cache, DecodeCache)
        and isinstance(cache.now, DecodeStep)
        and not cache.now.recorded
        and (cache.dtype or torch.float32) == products
        and cache.now.layout.row_at.shape[1] * cache.now.layout.prompt_width <= MOST_SHARED
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def decoded(
    x: Float[Tensor, "1 R d"], angles: tuple[Tensor, Tensor], own: LayerWeights, cache: DecodeCache, layer: int
) -> Float[Tensor, "1 R d"]:
    """The block's output for one token of each row, whose keys and values go into the cache.

    Args: angles: cosines and sines [1, R, D].
    """
    sizes, products = own.sizes, own.of_output.dtype
    call, x, (n, d) = library(products), x.contiguous(), x.shape[1:]
    assert call is not None
    norm, norm_mlp = own.norms[:2]
    normed, scale = x.new_empty(n, d, dtype=products), x.new_empty(n)
    call.norm_forward(address(x), None, None, n, d, address(norm), sizes.eps[0], None, address(normed), address(scale))
    attended = _attended([_times(normed, weight) for weight in own.of_qkv], angles, own, cache, layer)
    change, between, normed_mlp = _times(attended, own.of_output), x.new_empty(n, d), torch.empty_like(normed)
    call.norm_forward(
        address(x), address(change), None, n, d, address(norm_mlp), sizes.eps[3], address(between), address(normed_mlp),
        address(scale),
    )  # fmt: skip
    gates = [_times(normed_mlp, weight) for weight in own.of_gate_up]
    m = len(own.of_down)
    gated, output = normed.new_empty(n, m), torch.empty_like(x)
    up = address(gates[0], m) if len(gates) == 1 else address(gates[1])
    call.gate_forward(address(gates[0]), up, gates[0].shape[1], n, m, address(gated))
    change = _times(gated, own.of_down)
    call.add_rows(address(between), address(change), None, n, d, address(output))
    return output


def _attended(
    qkv: Sequence[Tensor], angles: tuple[Tensor, Tensor], own: LayerWeights, cache: DecodeCache, layer: int
) -> Float[Tensor, "R H*D"]:
    sizes, step = own.sizes, cache.now
    assert isinstance(step, DecodeStep)
    H, K, D = sizes.heads, sizes.key_heads, sizes.size
    if len(qkv) == 1:
        width = (H + 2 * K) * D
        given = [(address(qkv[0], first * D), width) for first in (0, H, H + K)]
    else:
        given = [(address(part), part.shape[1]) for part in qkv]
    cosine, sine = (angle.reshape(-1, D).contiguous() for angle in angles)
    n, prompts, responses, layout = len(qkv[0]), cache.prompts[layer], cache.responses[layer], step.layout
    attended = qkv[0].new_empty(n, H * D)
    library(attended.dtype).decode_rows(
        *(number for part in given for number in part), n, H, K, D,
        address(own.norms[2]), sizes.eps[1], address(own.norms[3]), sizes.eps[2], address(cosine), address(sine),
        address(prompts[0]), address(prompts[1]), prompts[0].shape[2], address(layout.slots),
        address(layout.prompt_lengths), address(responses[0]), address(responses[1]), responses[0].shape[2],
        address(step.offsets), sizes.window or 0, sizes.scale, address(attended),
    )  # fmt: skip
    return attended


def _times(left: Tensor, right: Tensor) -> Tensor:
    return matmul(left, right) if left.dtype == torch.float32 else torch.mm(left, right)
