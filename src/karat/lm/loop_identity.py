"""What a training run is, in plain values: its checkpoints are taken up by the same run alone, and a refusal names what differs.

Knows settings, modules and hashes; knows nothing about steps or files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from karat.config import plain
from karat.identity import content_id
from karat.lm.narrow import described

LORA = "lora"


def identity_of(config: Any, seed: int, inputs: Mapping[str, Any], *modules: nn.Module | None) -> dict[str, Any]:
    """What a checkpoint must agree with: settings, seed, inputs and the weights at the start.

    Args:
        config: a dataclass of settings.
        inputs: further plain values by name; all but mappings are replaced by their hash, of mappings every key is kept.
        modules: whose weights count, and ranks and scales of adapters on them; None is passed over.
    """
    there = [module for module in modules if module is not None]
    weights = tensors_digest(named for module in there for named in module.state_dict().items())
    settings = plain(config)
    settings.pop("checkpoint_every", None)  # how often to write does not change what is computed
    hashed = {
        name: dict(value) if isinstance(value, Mapping) else content_id(name, value) for name, value in inputs.items()
    }
    narrow = [name for module in there for name in described(module)]
    products = {"products": narrow[0]} if narrow else {}  # absent where it is float32, as it always was
    adapters = [adapters_of(module) for module in there]
    lora = {LORA: next(filter(None, adapters))} if any(adapters) else {}
    return {"settings": settings, "seed": seed, **hashed, "starting weights": weights, **products, **lora}


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names and numbers, in their order."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def adapters_of(module: nn.Module) -> dict[str, Any]:
    """Rank and alpha of a module's adapters, as `lora` names them; {} where it has none."""
    for part in module.modules():
        if isinstance(part, LoraLayer) and part.r:
            name = next(iter(part.r))
            return {"rank": part.r[name], "alpha": float(part.lora_alpha[name])}
    return {}
