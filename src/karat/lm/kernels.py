"""Faster routes for the operations that fill a CPU's time: linear layers, embeddings, RMS norms and rotary angles.

`use_fast_kernels` gives the layers of a loaded model another forward function of the same value: float32 matrix
products through oneDNN where the processor has AVX-512 and is not Intel's (PyTorch sends them to MKL, which leaves half
of other makers' machines idle; on Intel's, and without AVX-512, MKL is the faster one), RMS norms with a hand-written
gradient, and embeddings whose gradients may come by rows. Weights, names and classes stay as they are. Knows modules; knows nothing about language.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from karat.devices import INTEL, processor_maker
from karat.lm.narrow import narrow_linear, products_of
from karat.lm.native import turned
from karat.lm.rotation import fast_rotation
from karat.lm.row_gradients import embedding_forward, is_plain
from karat.lm.shapes import PARTS, even_number

# Multiply-adds below which the call overhead of oneDNN (about 10 µs) outweighs its rate, measured on Zen 5.
SMALLEST_PRODUCT = 1 << 20
PROBE_TOLERANCE = 1e-5
MOST_FEW = 256
"""Rows up to which an output layer may be turned round."""


def use_fast_kernels(model: nn.Module) -> int:
    """Route linear layers, embeddings, RMS norms and rotary angles of a model through the faster kernels, where they give the same values.

    A norm whose formula is not weight·x/rms or (1 + weight)·x/rms on a random input is left alone, as is everything on
    other devices and in other dtypes at call time.

    Returns: number of layers rerouted.
    """
    n_rerouted = 0
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = MethodType(_linear_forward, module)
        elif type(module) is Conv1D:
            module.forward = MethodType(_conv1d_forward, module)
        elif type(module).__name__.endswith("RMSNorm") and (forward := _norm_forward(module)) is not None:
            module.forward = MethodType(forward, module)
        elif is_plain(module):
            module.forward = MethodType(embedding_forward, module)
        elif (attend := fast_rotation(module)) is not None:
            module.forward = MethodType(attend, module)
        else:
            continue
        n_rerouted += 1
    return n_rerouted


def linear(
    x: Float[Tensor, "*rows i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None = None,
    products: torch.dtype | None = None,
) -> Float[Tensor, "*rows o"]:
    """x·weightᵀ + bias: `torch.nn.functional.linear`, through oneDNN where that is faster.

    Args: products: dtype of the product (`narrow`); None = that of the weight.
    """
    if products is not None:
        return narrow_linear(x, weight, bias, products)
    if not _suits(x, weight) or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


def weight_gradient(
    grad: Float[Tensor, "n o"], factor: Float[Tensor, "n i"], *, wide: bool = False
) -> Float[Tensor, "o i"]:
    """gradᵀ·factor without gradients: of the weight of a linear layer, whose factor its input was.

    Args: wide: True = there are many times more outputs than inputs. What oneDNN multiplies is laid out anew; then that is
        the factor, and the result once more.
    """
    if wide and grad.dtype == torch.float32 and _suits(factor.t(), grad.t()):
        return turned(_onednn(_laid_out(factor.t()), grad.t(), None))
    return matmul(grad.t(), factor)


def matmul(left: Float[Tensor, "n k"], right: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """left·right without gradients, through oneDNN where that is faster."""
    if left.dtype != torch.float32:  # asked of every product of a sampler's step in bfloat16
        return torch.mm(left, right)
    if not _suits(left, right.t()):
        return left @ right
    return _onednn(_laid_out(left), right.t(), None)


def rms_norm(
    x: Float[Tensor, "*rows d"], weight: Float[Tensor, " d"], *, eps: float, offset: float = 0.0
) -> Float[Tensor, "*rows d"]:
    """(weight + offset)·x/√(mean(x²) + eps), in the dtype of x.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467 eq. 4; offset 1 as in Gemma.
    """
    return _RmsNorm.apply(x, weight + offset if offset else weight, eps)


def for_many_products(weight: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
    """A weight as `times` multiplies by it over and over: in bfloat16 a copy in oneDNN's own order, else as it is.

    oneDNN turns a weight round for every product otherwise, which takes as long again as that of a few dozen rows.
    """
    own = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and onednn_multiplies()
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None) if own else weight


def times(x: Float[Tensor, "n i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "n o"]:
    """x·weightᵀ without gradients; the weight as it is or from `for_many_products`."""
    return _onednn(x, weight, None) if weight.is_mkldnn else matmul(x, weight.t())


@contextmanager
def for_few_rows(head: nn.Module) -> Iterator[None]:
    """Within the block, in which no weight changes, an output layer multiplies a few rows without gradients in the fastest way.

    Products in bfloat16 are by a copy of the weight (`for_many_products`). In float32, on other processors than Intel's,
    W·xᵀ is computed and handed back as its transpose: the same numbers in another memory order, where PyTorch's own product takes
    1.4 times as long for a few dozen rows against thousands of outputs. Other layers, and more than MOST_FEW rows in float32, are left alone.
    """
    own = type(head) is nn.Linear and head.weight.device.type == "cpu" and head.weight.dtype == torch.float32
    narrow = own and products_of(head) == torch.bfloat16 and onednn_multiplies()
    if not own or not (narrow or processor_maker() != INTEL):
        yield
        return
    before = head.__dict__.get("forward")
    head.forward = MethodType(_many_narrow(head.forward) if narrow else _turned_round(head.forward), head)
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before


def _turned_round(plain: Callable[[Tensor], Tensor]) -> Callable[[nn.Linear, Tensor], Tensor]:
    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled() or len(rows) > MOST_FEW or products_of(self) or _suits(x, self.weight):
            return plain(x)
        wide = self.weight @ rows.t() if self.bias is None else torch.addmm(self.bias[:, None], self.weight, rows.t())
        return wide.t().unflatten(0, x.shape[:-1])

    return forward


def _many_narrow(plain: Callable[[Tensor], Tensor]) -> Callable[[nn.Linear, Tensor], Tensor]:
    kept: list[Tensor] = []  # of the first product: before it, a weight may be in shards

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return plain(x)
        if not kept:
            kept.append(for_many_products(self.weight.detach().to(torch.bfloat16)))
        output = times(x.reshape(-1, x.shape[-1]).to(torch.bfloat16), kept[0]).to(x.dtype)
        return (output if self.bias is None else output.add_(self.bias)).unflatten(0, x.shape[:-1])

    return forward


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= SMALLEST_PRODUCT
        and onednn_is_faster()
    )


def onednn_is_faster() -> bool:
    """Whether float32 products are oneDNN's rather than MKL's (decision 0029)."""
    return onednn_multiplies() and processor_maker() != INTEL


@functools.cache
def onednn_multiplies() -> bool:
    """Whether oneDNN has code for the processor that is worth having, and this build of PyTorch the operations: internal ones."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        operation = torch.ops.mkldnn._linear_pointwise and torch.ops.mkldnn._reorder_linear_weight
    except (AttributeError, RuntimeError):
        return False
    return operation is not None and torch.backends.mkldnn.is_available()


def prepares(products: torch.dtype | None) -> bool:
    """Whether products of this dtype on the processor are prepared for every shape and kept: oneDNN's are, MKL's are not.

    Args: products: None = float32.
    """
    return onednn_multiplies() and (products not in (None, torch.float32) or onednn_is_faster())


def even_rows(n: int, device: torch.device, products: torch.dtype | None, parts: int = PARTS) -> int:
    """How many rows to compute where n are wanted: more where products are oneDNN's (`shapes.even_number`), else n.

    oneDNN compiles its products for every number of rows, half a megabyte and half a millisecond each, and keeps a thousand
    of them; rows of packed texts are hardly ever as many twice (`bench/shapes_study.py`, docs/LOG.md).

    Args: products: their dtype, None = float32.
    """
    return even_number(n, parts) if device.type == "cpu" and prepares(products) else n


def _laid_out(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """As PyTorch hands it to oneDNN: it would copy a transpose itself, by one thread."""
    return x if x.is_contiguous() else turned(x.t())


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """x·Wᵀ + b by oneDNN, both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = matmul(grad, weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = matmul(grad.t(), x.reshape(-1, x.shape[-1]))
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_x, grad_weight, grad_bias


class _RmsNorm(torch.autograd.Function):
    """RMS norm that keeps x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # y = w·x̂, x̂ = s·x:  ∂x = s·(w·g − x̂·mean(w·g·x̂)),  ∂w = Σ g·x̂
        x, weight, scale = ctx.saved_tensors
        size = x.shape[-1]
        unit = x * scale
        product = grads[0] * unit
        grad_weight = product.reshape(-1, size).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        mean = torch.mv(product.reshape(-1, size), weight).view(scale.shape).div_(-size)
        grad_x = torch.mul(grads[0], weight, out=product).addcmul_(unit, mean).mul_(scale)
        return grad_x, grad_weight, None


def _linear_forward(self: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, self.weight, self.bias, products_of(self))


def _conv1d_forward(self: Conv1D, x: Tensor) -> Tensor:
    return linear(x, self.weight.t(), self.bias, products_of(self))


def _norm_forward(module: nn.Module) -> Any:
    """A forward function equal to the module's own, or None if no formula known here fits."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not isinstance(eps, float):
        return None
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return None
    probe = torch.linspace(-2, 3, 3 * weight.shape[0], dtype=weight.dtype).sin().view(3, -1)
    own = type(module).forward
    with torch.no_grad():
        expected = own(module, probe)
        for offset in (0.0, 1.0):
            found = rms_norm(probe, weight, eps=eps, offset=offset)
            if torch.allclose(found, expected, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE):
                break
        else:
            return None

    def forward(self: Any, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype or x.device.type != "cpu":
            return own(self, x)
        return rms_norm(x, self.weight, eps=eps, offset=offset)

    return forward
