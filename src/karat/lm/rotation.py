"""Rotary angles in half the passes over memory.

transformers rotates a query as x·cos + rotate_half(x)·sin, which is five operations, each over all numbers, and as many
tensors; here it is a product and two sums in place, and the gradient, which is the rotation back, likewise. Knows
modules of transformers and tensors; knows nothing of what is attended to.

Dimension letters: H heads, L positions, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROTATES = "apply_rotary_pos_emb"
"""The function by which attention in transformers rotates queries and keys."""
PROBE_TOLERANCE = 1e-6
FEWEST = 1 << 16
"""Numbers below which the call overhead outweighs what is saved: the steps of sampling."""


class _Rotation(torch.autograd.Function):
    """[x₁·c₁ − x₂·s₁, x₂·c₂ + x₁·s₂] of the halves of each head."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "B H L D"], cos: Float[Tensor, "B 1 L D"], sin: Float[Tensor, "B 1 L D"]
    ) -> Float[Tensor, "B H L D"]:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        turned = x * cos
        turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return turned

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        grad, half = grads[0], cos.shape[-1] // 2
        back = grad * cos
        back[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        back[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        return back, None, None


def fast_rotation(module: nn.Module) -> Callable[..., Any] | None:
    """A forward function for an attention module that rotates faster; None where its own is not known to be the same.

    It is the module's own function, but for what it calls `apply_rotary_pos_emb`; compared with the original on random
    numbers.
    """
    own = type(module).forward
    size = getattr(module, "head_dim", None)
    if not isinstance(own, FunctionType) or ROTATES not in own.__code__.co_names or not isinstance(size, int):
        return None
    return _rotating_faster(own, size)


@cache
def _rotating_faster(own: FunctionType, size: int) -> FunctionType | None:
    plain = own.__globals__.get(ROTATES)
    if hasattr(own, "__wrapped__") or not callable(plain) or size % 2:
        return None

    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if args or options or q.device.type != "cpu" or {q.dtype, k.dtype, cos.dtype, sin.dtype} != {torch.float32}:
            return plain(q, k, cos, sin, *args, **options)
        whole = cos.ndim == 3 and cos.shape == sin.shape and cos.shape[-1] == q.shape[-1] == k.shape[-1]
        if not whole or q.numel() < FEWEST or cos.requires_grad:  # a part of each head is another's affair
            return plain(q, k, cos, sin)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)

    if not _agree(plain, size):
        return None
    faster = FunctionType(
        own.__code__, {**own.__globals__, ROTATES: rotated}, own.__name__, own.__defaults__, own.__closure__
    )
    faster.__kwdefaults__ = own.__kwdefaults__
    return faster


def _agree(plain: Callable[..., Any], size: int) -> bool:
    """Whether a function rotates as `_Rotation` does, on numbers that have nothing to do with angles."""
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (
        torch.randn(shape, generator=generator)
        for shape in ((2, 4, 3, size), (2, 2, 3, size), (2, 3, size), (2, 3, size))
    )
    try:
        expected = plain(q, k, cos, sin)
        found = [_Rotation.apply(x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (q, k)]
        return len(expected) == 2 and all(
            torch.allclose(one, other, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE)
            for one, other in zip(found, expected, strict=True)
        )
    except Exception:  # whatever a function of another signature raises: then it stays
        return False
