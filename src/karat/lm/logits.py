"""Logits of an output layer and the probabilities that they become, in as few passes over memory as PyTorch allows.

Knows tensors only.

Dimension letters: n rows, d hidden size, V vocabulary or a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.lm.kernels import linear

SMALLEST = 1e-30
"""Probability below which float32 loses digits."""


def logits_of(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "V d"],
    bias: Float[Tensor, " V"] | None,
    temperature: float,
    softcap: float | None = None,
) -> Float[Tensor, "n V"]:
    """cap·tanh((W·h + b)/cap)/temperature, in float32 or wider; the caller may overwrite it."""
    narrow = bias is not None and bias.dtype != weight.dtype  # products narrower than the weights: the sum is not
    logits = linear(hidden, weight, None if narrow else bias)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return finished(logits, bias if narrow else None, temperature, softcap)


def finished(
    logits: Float[Tensor, "n V"], bias: Float[Tensor, " V"] | None, temperature: float, softcap: float | None = None
) -> Float[Tensor, "n V"]:
    """cap·tanh((z + b)/cap)/temperature of what a product gave, in its place."""
    if bias is not None:
        logits = logits.add_(bias)
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    return logits.div_(temperature) if temperature != 1.0 else logits


def cap_slope(logits: Float[Tensor, "n V"], temperature: float, softcap: float) -> Float[Tensor, "n V"]:
    """d(cap·tanh(z/cap))/dz, from the capped logits over the temperature: 1 − (logit·temperature/cap)²."""
    return 1 - (logits * (temperature / softcap)).square_()


def softmax_(logits: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """Softmax of each row, over the logits where that is safe: one pass instead of a maximum, a difference, exp and a sum.

    PyTorch's own kernel takes two thirds of the time of exp alone; without gradient.
    """
    return torch.softmax(logits, 1, out=logits) if logits.device.type == "cpu" else logits.softmax(1)


def chosen_logprobs(
    probs: Float[Tensor, "n V"], tokens: Int[Tensor, " n"], logits: Callable[[Tensor], Float[Tensor, "m V"]]
) -> Float[Tensor, " n"]:
    """log probs[token]; where that is too small for float32, from the logits.

    Args: logits: makes those of some rows, which are given as a mask.
    """
    found = probs.gather(1, tokens[:, None]).squeeze(1)
    logprobs = found.log()
    small = found < SMALLEST
    if small.any():
        logprobs[small] = logits(small).log_softmax(1).gather(1, tokens[small, None]).squeeze(1)
    return logprobs


def pieces(start: int, stop: int, at_a_time: int) -> Iterator[slice]:
    """start … stop in slices of at most so many."""
    for first in range(start, stop, at_a_time):
        yield slice(first, min(first + at_a_time, stop))
