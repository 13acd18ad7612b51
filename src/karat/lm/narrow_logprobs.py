"""Log-probabilities of tokens from an output layer whose products are bfloat16 (`narrow`).

Logits are float32 for a few rows at a time, so few that they stay in the processor's cache; what the backward pass needs
of them is kept rounded, as it enters a product there anyway, up to as many bytes as in float32, and made again beyond.
Knows tensors only.

Dimension letters: n response tokens, d hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from karat.lm.logits import chosen_logprobs, logits_of, pieces, softmax_
from karat.lm.memory import KEPT_NUMBERS, LEAST_ROWS
from karat.lm.narrow import narrowed

CACHED_NUMBERS = 1 << 20
"""Logits in float32 at a time: 4 MB."""
FEWEST_ROWS = 64
"""Of them at least so many rows: with fewer a product does little more than read the output layer."""


class NarrowLogprobs(torch.autograd.Function):
    """log softmax((W·h + b)/temperature)[token], without a soft cap; no gradient of an entropy."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n d"],
        weight: Float[Tensor, "V d"],
        bias: Tensor | None,
        token_ids: Tensor,
        options: tuple[float, torch.dtype, bool],
    ) -> Float[Tensor, " n"]:
        """Args: options: temperature, dtype of the products, whether a gradient will be asked for."""
        temperature, products, learns = options
        rounded, narrow = hidden.to(products), narrowed(weight, products)
        n, room = len(hidden), 2 * KEPT_NUMBERS if learns else 0  # two bytes each instead of four
        logprobs = hidden.new_empty(n, dtype=torch.float32)
        kept: list[Tensor] = []  # probabilities of the first blocks
        for block in pieces(0, n, _block_rows(len(weight))):
            room -= (block.stop - block.start) * len(weight)
            if room >= 0:
                kept.append(rounded.new_empty(block.stop - block.start, len(weight)))
            for part in pieces(block.start, block.stop, _few_rows(len(weight))):
                own = rounded[part]

                def again(rows: Tensor, own: Tensor = own) -> Tensor:
                    return logits_of(own[rows], narrow, bias, temperature)

                probs = softmax_(logits_of(own, narrow, bias, temperature))
                logprobs[part] = chosen_logprobs(probs, token_ids[part], again)
                if room >= 0:
                    kept[-1][part.start - block.start : part.stop - block.start] = probs
        ctx.save_for_backward(hidden, narrow, bias, token_ids, logprobs)
        ctx.kept, ctx.temperature, ctx.of_weight = kept, temperature, weight.dtype
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias in their own dtypes."""
        hidden, narrow, bias, token_ids, logprobs = ctx.saved_tensors
        temperature, of_weight = ctx.temperature, ctx.of_weight
        rounded = hidden.to(narrow.dtype)
        # of each row, what its probabilities are multiplied by: taken to the hidden states, which are fewer than logits
        scale = grads[0] / -temperature
        scaled = (hidden * scale[:, None]).to(narrow.dtype)
        kept, ctx.kept = ctx.kept, []  # overwritten below; a second pass through this graph makes them again
        # p − 1 in float32: the difference of two rounded numbers would be nothing where p is near 1
        chosen = torch.expm1(logprobs).to(narrow.dtype)[:, None]
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(narrow, dtype=of_weight) if not len(hidden) else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for number, block in enumerate(pieces(0, len(hidden), _block_rows(len(narrow)))):
            known = number < len(kept)
            of_logits = kept[number] if known else rounded.new_empty(block.stop - block.start, len(narrow))
            for part in pieces(block.start, block.stop, _few_rows(len(narrow))):
                own = of_logits[part.start - block.start : part.stop - block.start]
                if not known:
                    own.copy_(softmax_(logits_of(rounded[part], narrow, bias, temperature)))
                own.scatter_(1, token_ids[part, None], chosen[part])
                if grad_hidden is not None:
                    grad_hidden[part] = own @ narrow
                if grad_bias is not None:
                    grad_bias += scale[part] @ own.float()
            if ctx.needs_input_grad[1]:
                product = (of_logits.t() @ scaled[block]).to(of_weight)
                grad_weight = product if grad_weight is None else grad_weight.add_(product)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale[:, None])
        return grad_hidden, grad_weight, grad_bias, None, None


def _block_rows(vocabulary: int) -> int:
    """Rows whose gradients of logits exist at once."""
    return max(LEAST_ROWS, KEPT_NUMBERS // vocabulary)


def _few_rows(vocabulary: int) -> int:
    """Rows whose logits exist at once in float32."""
    return max(FEWEST_ROWS, CACHED_NUMBERS // vocabulary)
