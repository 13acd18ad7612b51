"""Log-probabilities of tokens from an output layer whose products are bfloat16 (`narrow`).

Products are of many rows, because each packs the whole output layer anew; logits are float32 for a few of them at a time,
so few that they stay in the processor's cache. What the backward pass needs of them is kept rounded, as it enters a
product there anyway, up to as many bytes as in float32, and made again beyond. Knows tensors only.

Dimension letters: n response tokens, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from karat.lm.logits import chosen_logprobs, finished, pieces, softmax_
from karat.lm.memory import KEPT_NUMBERS, LEAST_ROWS
from karat.lm.narrow import narrowed

CACHED_NUMBERS = 1 << 19
"""Logits in float32 at a time: 2 MB."""
FEWEST_ROWS = 8
"""Of them at least so many rows."""


Choose = Callable[[Tensor, Tensor, Tensor | None, float, Tensor], None]
"""choose(logits, tokens, bias, temperature, found): `_chosen` in one pass over memory."""


class NarrowLogprobs(torch.autograd.Function):
    """log softmax((W·h + b)/temperature)[token], without a soft cap; no gradient of an entropy."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n d"],
        weight: Float[Tensor, "V d"],
        bias: Tensor | None,
        token_ids: Tensor,
        options: tuple[float, torch.dtype, bool, Choose | None],
    ) -> Float[Tensor, " n"]:
        """Args: options: temperature, dtype of the products, whether a gradient will be asked for, a faster `_chosen`."""
        temperature, products, learns, choose = options
        rounded, narrow = hidden.to(products), narrowed(weight, products)
        n, room = len(hidden), 2 * KEPT_NUMBERS if learns else 0  # two bytes each instead of four
        logprobs = hidden.new_empty(n, dtype=torch.float32)
        kept: list[Tensor] = []  # of the first blocks: p, but p − 1 at the tokens
        for block in pieces(0, n, _block_rows(len(weight))):
            store = torch.mm(rounded[block], narrow.t())
            (choose or _chosen)(store, token_ids[block], bias, temperature, logprobs[block])
            room -= store.numel()
            if room >= 0:
                kept.append(store)
        ctx.save_for_backward(hidden, narrow, bias, token_ids)
        ctx.kept, ctx.temperature, ctx.of_weight, ctx.choose = kept, temperature, weight.dtype, choose or _chosen
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias in their own dtypes."""
        hidden, narrow, bias, token_ids = ctx.saved_tensors
        of_weight = ctx.of_weight
        rounded = hidden.to(narrow.dtype)
        # of each row, what its probabilities are multiplied by: taken to the hidden states, which are fewer than logits
        scale = grads[0] / -ctx.temperature
        scaled = (hidden * scale[:, None]).to(narrow.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(narrow, dtype=of_weight) if not len(hidden) else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for number, block in enumerate(pieces(0, len(hidden), _block_rows(len(narrow)))):
            if number < len(ctx.kept):
                of_logits = ctx.kept[number]
            else:
                of_logits = torch.mm(rounded[block], narrow.t())
                ctx.choose(of_logits, token_ids[block], bias, ctx.temperature, torch.empty_like(scale[block]))
            if grad_hidden is not None:
                grad_hidden[block] = of_logits @ narrow
            if grad_bias is not None:
                for part in pieces(0, len(of_logits), _few_rows(len(narrow))):
                    grad_bias += scale[block][part] @ of_logits[part].float()
            if ctx.needs_input_grad[1]:
                product = (of_logits.t() @ scaled[block]).to(of_weight)
                grad_weight = product if grad_weight is None else grad_weight.add_(product)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale[:, None])
        return grad_hidden, grad_weight, grad_bias, None, None


def _chosen(
    store: Float[Tensor, "m V"], tokens: Tensor, bias: Tensor | None, temperature: float, found: Float[Tensor, " m"]
) -> None:
    """Logits become probabilities, less 1 at each row's token, whose log-probability goes into `found`.

    A few rows at a time in float32, so that the next ones are written over them while they are in the cache.
    """
    few = _few_rows(store.shape[1])
    wide = store.new_empty(min(few, len(store)), store.shape[1], dtype=torch.float32)
    for part in pieces(0, len(store), few):
        own = store[part]
        probs = softmax_(finished(wide[: len(own)].copy_(own), bias, temperature))

        def again(rows: Tensor, own: Tensor = own) -> Tensor:
            return finished(own[rows].float(), bias, temperature)

        found[part] = chosen_logprobs(probs, tokens[part], again)
        # p − 1 in float32: the difference of two rounded numbers would be nothing where p is near 1
        own.copy_(probs.scatter_(1, tokens[part, None], torch.expm1(found[part])[:, None]))


def _block_rows(vocabulary: int) -> int:
    """Rows of a product, and of the gradients of logits that exist at once."""
    return max(LEAST_ROWS, KEPT_NUMBERS // vocabulary)


def _few_rows(vocabulary: int) -> int:
    """Rows whose logits exist at once in float32."""
    return max(FEWEST_ROWS, CACHED_NUMBERS // vocabulary)
