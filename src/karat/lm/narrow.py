"""Matrix products in bfloat16 under float32 weights.

A model that is marked here takes the products of its linear layers, its attention over trees and its output layer in
bfloat16: both factors are rounded, sums inside a product are float32. Everything else stays in float32: weights, their
gradients and moments, the residual stream, norms, softmax, log-probabilities and losses. Weights are rounded anew in
every pass, so that a step of 1e-6 is not lost, and nothing more than the float32 weights has to be saved for an exact
resume (docs/decisions/0020). Knows modules and tensors; knows nothing about language.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MARK = "karat_products"
"""Attribute of the modules of a model whose products are narrower than its weights; copies of the model keep it."""
ROUNDING = 0.1
"""Largest difference in nats expected between two computations of one log-probability whose products are bfloat16."""
RoundedWeights = dict[tuple[Any, ...], tuple[Any, tuple[Tensor, ...], Tensor]]
"""By weights and form: whose ids are in the key, the weights as they were asked for, and these rounded, one above the other."""
_KEPT: ContextVar[RoundedWeights | None] = ContextVar("karat_kept_weights", default=None)


def use_narrow_products(model: nn.Module, products: torch.dtype | None) -> None:
    """Mark a model and all its modules; None = products in the dtype of the weights."""
    for module in model.modules():
        setattr(module, MARK, products)


def products_of(module: nn.Module) -> torch.dtype | None:
    """The dtype that a module takes its products in; None = that of its weights."""
    return getattr(module, MARK, None)


def described(module: nn.Module) -> list[str]:
    """The dtype of a module's products for a fingerprint; [] where it is that of the weights, as it always was."""
    products = products_of(module)
    return [] if products is None else [str(products).removeprefix("torch.")]


def tolerance(module: nn.Module, stated: float) -> float:
    """What two computations of one log-probability may differ by: as stated, or the rounding of narrow products."""
    return stated if products_of(module) is None else max(stated, ROUNDING)


def fast_on(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32, as far as PyTorch can tell."""
    if device.type != "cpu":
        own = getattr(torch.get_device_module(device), "is_bf16_supported", None)
        return own is None or own()
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(question() for question in asked if question is not None)


@contextmanager
def weights_kept(rounded: RoundedWeights | None = None) -> Iterator[None]:
    """Within the block rounded weights are kept and used again: for passes between which no weight changes.

    Args: rounded: those of an earlier block, rounded anew where they lie; weights may have changed since.
    """
    rounded = {} if rounded is None else rounded
    for _, weights, narrow in rounded.values():
        _round_into(narrow, weights)
    token = _KEPT.set(rounded)
    try:
        yield
    finally:
        _KEPT.reset(token)


def narrowed(weight: Tensor, products: torch.dtype) -> Tensor:
    """A weight rounded for a product, without gradient."""
    kept = _KEPT.get()
    if kept is None:
        return weight.detach().to(products)
    # a transposed view is another object each time; a place in memory may be another weight's where weights are sharded
    own = weight._base if weight._base is not None else weight
    key = (id(own), weight.storage_offset(), weight.shape, weight.stride(), products)
    if key not in kept:
        weight = weight.detach()
        kept[key] = (own, (weight,), weight.to(products))  # with the weight itself, so that its id stays its own
    return kept[key][2]


def stacked(weights: tuple[Tensor, ...], products: torch.dtype) -> Float[Tensor, "n i"]:
    """Weights one above the other, rounded for a product, without gradient."""
    if len(weights) == 1:
        return narrowed(weights[0], products)
    kept, key = _KEPT.get(), (*map(id, weights), products)
    if kept is not None and key in kept:
        return kept[key][2]
    together = round_together(weights, products)
    if kept is not None:
        kept[key] = (weights, tuple(weight.detach() for weight in weights), together)
    return together


def round_together(weights: Sequence[Tensor], products: torch.dtype) -> Float[Tensor, "n i"]:
    """The same, a copy that nobody keeps."""
    parts = [weight.detach() for weight in weights]
    together = parts[0].new_empty(sum(map(len, parts)), parts[0].shape[1], dtype=products)
    _round_into(together, parts)
    return together


def _round_into(together: Tensor, weights: Sequence[Tensor]) -> None:
    for place, weight in zip(together.split([len(weight) for weight in weights]), weights, strict=True):
        place.copy_(weight)


def narrow_linear(
    x: Float[Tensor, "*rows i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, products: torch.dtype
) -> Float[Tensor, "*rows o"]:
    """x·weightᵀ + bias, the product and those of its gradient in a narrower dtype; in the dtype of x."""
    return _NarrowLinear.apply(x, weight, bias, products)


class _NarrowLinear(torch.autograd.Function):
    """Keeps the rounded factors; gradients come back in the dtypes of x and of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, products: torch.dtype) -> Tensor:
        rounded, narrow = x.to(products), narrowed(weight, products)
        ctx.save_for_backward(rounded, narrow)
        ctx.dtypes = x.dtype, weight.dtype
        output = F.linear(rounded, narrow).to(x.dtype)
        return output if bias is None else output.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rounded, narrow = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        wide = grads[0].reshape(-1, grads[0].shape[-1])
        grad = wide.to(narrow.dtype)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ narrow).to(of_x).view(rounded.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = (grad.t() @ rounded.reshape(-1, rounded.shape[-1])).to(of_weight)
        if ctx.needs_input_grad[2]:
            grad_bias = wide.sum(0)
        return grad_x, grad_weight, grad_bias, None
