"""What a linear layer of peft's LoRA multiplies by, taken apart: its own weight, and the two narrow ones of its update.

For the sampler without gradient (`LowRank`), for training with (`SharedInput`). Knows peft's layers; knows nothing about
blocks or models.

Dimension letters: n rows, i inputs, o outputs, r rank, R ranks of all updates that read the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from karat.lm.kernels import matmul


@dataclass(frozen=True, eq=False)
class LowRank:
    """x·down·up is added to what the layer's own weight gives."""

    down: Float[Tensor, "i r"]
    """Aᵀ, of all active adapters side by side."""
    up: Float[Tensor, "r o"]
    """(alpha/r)·Bᵀ."""

    def add_to(self, output: Float[Tensor, "n o"], x: Float[Tensor, "n i"]) -> None:
        """output += x·down·up, in place."""
        output.addmm_(x @ self.down, self.up)


def base_of(layer: nn.Module | None) -> nn.Module | None:
    """The layer that adapters were put onto, or the layer itself; None where it does more than add x·A·B (or is watched)."""
    if type(layer) is not LoraLinear:
        return layer
    adds_more = layer.lora_variant or any(layer.lora_bias.values()) or (layer.merged and layer.disable_adapters)
    idle = all(isinstance(layer.lora_dropout[name], nn.Identity) or not layer.training for name in _active(layer))
    parts = (layer.base_layer, *layer.lora_A.values(), *layer.lora_B.values())
    watched = any(part._forward_hooks or part._forward_pre_hooks for part in parts) or "forward" in vars(layer)
    return None if adds_more or not idle or watched else layer.base_layer


def low_rank_of(layer: nn.Module, products: torch.dtype) -> LowRank | None:
    """What the adapters of a layer add, without gradient; None where they add nothing."""
    if type(layer) is not LoraLinear or layer.disable_adapters or layer.merged or not (names := _active(layer)):
        return None
    down = torch.cat([layer.lora_A[name].weight.detach() for name in names])
    up = torch.cat([layer.lora_B[name].weight.detach() * layer.scaling[name] for name in names], 1)
    return LowRank(down.t().to(products), up.t().to(products))


def _active(layer: LoraLinear) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


@dataclass(frozen=True, eq=False)
class TrainedLowRank:
    """scale·x·downᵀ·upᵀ is added to what the layer's own weight gives; both learn."""

    down: Float[Tensor, "r i"]
    """A."""
    up: Float[Tensor, "o r"]
    """B."""
    scale: float
    """alpha/r."""


NO_UPDATES: tuple[TrainedLowRank | None, ...] = (None,) * 7
"""Of the layers of a block without adapters."""


def trained_low_ranks(layers: Sequence[nn.Module | None]) -> list[TrainedLowRank | None] | None:
    """What adapters add to each of some layers, with their own weights; None where one has several at once."""
    found: list[TrainedLowRank | None] = []
    for layer in layers:
        own = None
        if type(layer) is LoraLinear and not (layer.disable_adapters or layer.merged):
            names = _active(layer)
            if len(names) > 1:
                return None
            if names:
                down, up = layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight
                if not all(w.dtype == torch.float32 and w.is_contiguous() for w in (down, up)):
                    return None
                own = TrainedLowRank(down, up, float(layer.scaling[names[0]]))
        found.append(own)
    return found


class SharedInput:
    """The updates of layers that read the same x and whose outputs stand side by side.

    y[:, own] += scale·(x·Aᵀ)·Bᵀ,   ∂x += scale·(∂y·B)·A,   ∂A = scale·(∂y·B)ᵀ·x,   ∂B = scale·∂yᵀ·(x·Aᵀ)
    """

    def __init__(
        self, widths: Sequence[int], narrow: Sequence[Tensor | None], scales: Sequence[float], products: torch.dtype
    ) -> None:
        """Args: widths: columns of each layer.    narrow: A and B of each, or None and None."""
        downs, self.parts, rank, column = [], [], 0, 0
        for number, (width, scale) in enumerate(zip(widths, scales, strict=True)):
            down, up = narrow[2 * number : 2 * number + 2]
            if down is None or up is None:
                self.parts.append(None)
            else:
                downs.append(down.detach())
                ranks = slice(rank, rank + len(down))
                # rounded after the scale, as the sampler has it
                self.parts.append((slice(column, column + width), ranks, (up.detach() * scale).to(products), scale))
                rank = ranks.stop
            column += width
        self.down: Tensor | None = torch.cat(downs).to(products) if downs else None
        """[R, i]: the A of all of them, one above the other."""

    def add_to(self, output: Float[Tensor, "n o"], x: Float[Tensor, "n i"]) -> Float[Tensor, "n R"] | None:
        """Add the updates of x in place; returns x·Aᵀ, which the gradient needs."""
        if self.down is None:
            return None
        low = matmul(x, self.down.t())
        for columns, ranks, up, _ in filter(None, self.parts):
            output[:, columns].addmm_(low[:, ranks], up.t())
        return low

    def back(self, grad: Float[Tensor, "n o"], of_x: Float[Tensor, "n i"] | None) -> Float[Tensor, "n R"] | None:
        """Add their share of x's gradient in place, where it is asked for; returns scale·∂y·B."""
        if self.down is None:
            return None
        of_low = grad.new_empty(len(grad), len(self.down))
        for columns, ranks, up, _ in filter(None, self.parts):
            of_low[:, ranks] = torch.mm(grad[:, columns], up)
        if of_x is not None:
            of_x.addmm_(of_low, self.down)
        return of_low

    def gradients(
        self, grad: Float[Tensor, "n o"], x: Float[Tensor, "n i"], low: Tensor | None, of_low: Tensor | None
    ) -> list[Tensor | None]:
        """Of A and B of each layer, float32.

        Args: low: as `add_to` gave it.    of_low: as `back` gave it.
        """
        if low is None or of_low is None:
            return [None] * (2 * len(self.parts))
        of_down, found = matmul(of_low.t(), x).float(), []
        for part in self.parts:
            if part is None:
                found += [None, None]
                continue
            columns, ranks, _, scale = part
            # not `matmul`: of rows with gaps between them oneDNN takes its reference way, 300 times as slow
            of_up = torch.mm(low[:, ranks].t(), grad[:, columns]).t()
            found += [of_down[ranks], of_up.float() * scale]
        return found
