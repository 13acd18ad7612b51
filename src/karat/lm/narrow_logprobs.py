"""Log-probabilities of tokens from an output layer whose products are bfloat16 (`narrow`).

Logits are float32 for a few rows at a time, so few that they stay in the processor's cache; what the backward pass needs
of them is kept rounded, as it enters a product there anyway, up to as many bytes as in float32, and made again beyond.
Knows tensors only.

Dimension letters: n response tokens, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from karat.lm.memory import KEPT_NUMBERS, LEAST_ROWS
from karat.lm.narrow import narrowed

CACHED_NUMBERS = 1 << 20
"""Logits in float32 at a time: 4 MB."""
FEWEST_ROWS = 64
"""Of them at least so many rows: with fewer a product does little more than read the output layer."""
SMALLEST = 1e-30
"""Probability below which float32 loses digits."""


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
        for block in _pieces(slice(0, n), _block_rows(len(weight))):
            room -= (block.stop - block.start) * len(weight)
            if room >= 0:
                kept.append(rounded.new_empty(block.stop - block.start, len(weight)))
            for part in _pieces(block, _few_rows(len(weight))):
                logits = _logits(rounded[part], narrow, bias, temperature)
                probs = logits.softmax(1)
                logprobs[part] = _log_of(probs, logits, token_ids[part, None])
                if room >= 0:
                    kept[-1][part.start - block.start : part.stop - block.start] = probs
        ctx.save_for_backward(rounded, narrow, bias, token_ids, logprobs)
        ctx.kept, ctx.temperature, ctx.dtypes = kept, temperature, (hidden.dtype, weight.dtype)
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias in their own dtypes."""
        rounded, narrow, bias, token_ids, logprobs = ctx.saved_tensors
        (grad,), temperature, (of_hidden, of_weight) = grads, ctx.temperature, ctx.dtypes
        kept, ctx.kept = ctx.kept, []  # overwritten below; a second pass through this graph makes them again
        grad_hidden = torch.empty_like(rounded, dtype=of_hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(narrow, dtype=of_weight) if not len(rounded) else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for number, block in enumerate(_pieces(slice(0, len(rounded)), _block_rows(len(narrow)))):
            known = number < len(kept)
            of_logits = kept[number] if known else rounded.new_empty(block.stop - block.start, len(narrow))
            for part in _pieces(block, _few_rows(len(narrow))):
                own = of_logits[part.start - block.start : part.stop - block.start]
                if not known:
                    own.copy_(_logits(rounded[part], narrow, bias, temperature).softmax(1))
                upstream = (grad[part] / temperature).to(own.dtype)
                own.mul_(-upstream[:, None])
                # 1 − π in float32: the difference of two rounded numbers would be nothing where π is near 1
                chosen = (upstream * -torch.expm1(logprobs[part])).to(own.dtype)
                own.scatter_(1, token_ids[part, None], chosen[:, None])
                if grad_hidden is not None:
                    grad_hidden[part] = own @ narrow
                if grad_bias is not None:
                    grad_bias += own.sum(0, dtype=torch.float32)
            if ctx.needs_input_grad[1]:
                product = (of_logits.t() @ rounded[block]).to(of_weight)
                grad_weight = product if grad_weight is None else grad_weight.add_(product)
        return grad_hidden, grad_weight, grad_bias, None, None


def _log_of(probs: Float[Tensor, "r V"], logits: Float[Tensor, "r V"], tokens: Tensor) -> Float[Tensor, " r"]:
    """log probs[token]; where that is too small for float32, from the logits."""
    found = probs.gather(1, tokens).squeeze(1)
    logprobs = found.log()
    small = found < SMALLEST
    if small.any():
        logprobs[small] = logits[small].log_softmax(1).gather(1, tokens[small]).squeeze(1)
    return logprobs


def _logits(rounded: Tensor, narrow: Tensor, bias: Tensor | None, temperature: float) -> Float[Tensor, "r V"]:
    logits = (rounded @ narrow.t()).float()
    if bias is not None:
        logits = logits.add_(bias)
    return logits.div_(temperature) if temperature != 1.0 else logits


def _pieces(rows: slice, at_a_time: int) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, at_a_time):
        yield slice(start, min(start + at_a_time, rows.stop))


def _block_rows(vocabulary: int) -> int:
    """Rows whose gradients of logits exist at once."""
    return max(LEAST_ROWS, KEPT_NUMBERS // vocabulary)


def _few_rows(vocabulary: int) -> int:
    """Rows whose logits exist at once in float32."""
    return max(FEWEST_ROWS, CACHED_NUMBERS // vocabulary)
