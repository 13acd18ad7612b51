"""Log-probabilities of tokens of a wide vocabulary: logits in tiles of rows × columns, so that no product leaves the cache.

A chunk of whole rows would have to be either a few rows, for each of which the output layer and its gradient go through
memory, or more than a cache holds. Here a part of the output layer is read once for all rows, and its gradient written
once. Logits are made again for the gradient. Knows tensors only.

Dimension letters: n response tokens, d hidden size, V vocabulary, K tiles of it, C columns of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.lm.kernels import matmul, weight_gradient
from karat.lm.logits import cap_slope, logits_of, pieces, softmax_

COLUMNS, ROWS = 4096, 512
"""Of a tile: 8 MB of float32. Twice or half of either is as fast."""


class TiledLogprobs(torch.autograd.Function):
    """log softmax(cap·tanh((W·h + b)/cap)/temperature)[token]; no gradient of an entropy.

    A tile's softmax is over its own columns: log Σ exp of the row is the log-sum-exp of the tiles' own, and
    p = softmax of the tile · exp(log-sum-exp of the tile − of the row).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n d"],
        weight: Float[Tensor, "V d"],
        bias: Float[Tensor, " V"] | None,
        token_ids: Int[Tensor, " n"],
        options: tuple[float, float | None, torch.dtype | None],
    ) -> Float[Tensor, " n"]:
        """Args: options: temperature, soft cap, dtype of the products (None = that of the weight)."""
        tiles = list(pieces(0, len(weight), COLUMNS))
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        chosen = hidden.new_zeros(len(hidden), dtype=wide)
        normalisers = hidden.new_empty(len(tiles), len(hidden), dtype=wide)
        factor = hidden.to(options[2] or hidden.dtype)
        for number, tile in enumerate(tiles):
            own, own_bias = _tile_of(weight, bias, tile, options[2])
            for part in pieces(0, len(hidden), ROWS):
                logits = logits_of(factor[part], own, own_bias, *options[:2])
                inside, column = _place_of(token_ids[part], tile)
                chosen[part] += torch.where(inside, logits.gather(1, column[:, None]).squeeze(1), 0)
                peak = logits.amax(1)
                normalisers[number, part] = peak - softmax_(logits).amax(1).log()
        normaliser = normalisers.logsumexp(0)
        ctx.save_for_backward(hidden, weight, bias, token_ids, normalisers, normaliser)
        ctx.options = options
        return chosen - normaliser

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias in their own dtypes."""
        hidden, weight, bias, token_ids, normalisers, normaliser = ctx.saved_tensors
        temperature, softcap, products = ctx.options
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        factor = hidden.to(products or hidden.dtype)
        # of each row, what its probabilities are multiplied by: taken to the hidden states, which are fewer than logits
        scale = grads[0] / -temperature
        scaled = (hidden * scale[:, None]).to(factor.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=normaliser.dtype) if wants_hidden else None
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and wants_bias else None
        for number, tile in enumerate(pieces(0, len(weight), COLUMNS)):
            own, own_bias = _tile_of(weight, bias, tile, products)
            of_weight: Tensor | None = None
            for part in pieces(0, len(hidden), ROWS):
                logits = logits_of(factor[part], own, own_bias, temperature, softcap)
                slope = None if softcap is None else cap_slope(logits, temperature, softcap)
                grad = softmax_(logits).mul_((normalisers[number, part] - normaliser[part]).exp_()[:, None])
                inside, column = _place_of(token_ids[part], tile)
                grad.scatter_add_(1, column[:, None], -inside.to(grad.dtype)[:, None])
                if slope is not None:
                    grad.mul_(slope)
                narrow = grad.to(factor.dtype)
                if grad_hidden is not None:
                    grad_hidden[part] += matmul(narrow, own)
                if wants_weight:
                    product = weight_gradient(narrow, scaled[part], wide=True).to(normaliser.dtype)
                    of_weight = product if of_weight is None else of_weight.add_(product)
                if grad_bias is not None:
                    grad_bias[tile] += (scale[part] @ grad).to(grad_bias.dtype)
            if grad_weight is not None:
                grad_weight[tile] = 0 if of_weight is None else of_weight
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale[:, None]).to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


def _tile_of(
    weight: Tensor, bias: Tensor | None, tile: slice, products: torch.dtype | None
) -> tuple[Float[Tensor, "C d"], Float[Tensor, " C"] | None]:
    return weight[tile].detach().to(products or weight.dtype), None if bias is None else bias[tile]


def _place_of(token_ids: Int[Tensor, " r"], tile: slice) -> tuple[Tensor, Int[Tensor, " r"]]:
    """Whether each token is in a tile, and its column there; any column if it is not."""
    column = token_ids - tile.start
    inside = (column >= 0) & (column < tile.stop - tile.start)
    return inside, column.clamp(0, tile.stop - tile.start - 1)
