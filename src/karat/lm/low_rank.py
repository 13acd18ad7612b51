"""What a linear layer of peft's LoRA multiplies by, taken apart: its own weight, and the two narrow ones of its update.

Knows peft's layers; knows nothing about blocks or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn


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
