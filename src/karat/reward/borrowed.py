"""A reward model's adapters, kept beside its merged trunk, so that it can stand on a trunk that is in memory already.

A policy with LoRA and a reward model that was trained with LoRA from the same model differ by their adapters alone. With
these in a file of their own the optimiser holds one frozen trunk for both. Knows files and trunks; knows nothing about
heads or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from karat.lm.adapter_files import FROZEN, frozen_digest, in_adapter
from karat.lm.adapters import is_adapted, trunk_beside
from karat.lm.headers import read_header_metadata, read_tensors, write_tensors
from karat.lm.load import LoadedLM
from karat.lm.logprobs import trunk_of
from karat.lm.narrow import use_narrow_products

ADAPTERS = "adapters.safetensors"
SCALING = "scaling"


def save_adapters(lm: LoadedLM, directory: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a reward model's adapters with the hash of the weights that they stand on; nothing where there are none."""
    trunk = trunk_of(lm.model)
    if not is_adapted(trunk):
        return
    tensors = {name: tensor.contiguous().cpu() for name, tensor in _adapters(trunk).items()}
    about = {**metadata, FROZEN: frozen_digest(trunk), SCALING: _scaling(trunk)}
    write_tensors(tensors, directory / ADAPTERS, about)


def borrowed_trunk(policy: LoadedLM, directory: Path) -> nn.Module | None:
    """The reward model's trunk as its adapters on the policy's frozen weights, the same memory.

    Returns: None where the directory holds no adapters, or the policy has none or others, or other weights below them.
    """
    path = directory / ADAPTERS
    if not (isinstance(policy.model, PeftModel) and path.is_file()):
        return None
    about = read_header_metadata(path)
    saved, there = read_tensors(path), _adapters(trunk_of(policy.model))
    alike = {name: tensor.shape for name, tensor in saved.items()} == {name: one.shape for name, one in there.items()}
    trunk = trunk_of(policy.model)
    if not alike or about.get(SCALING) != _scaling(trunk) or about.get(FROZEN) != frozen_digest(trunk):
        return None
    own = trunk_beside(policy.model)
    with torch.no_grad():
        for name, tensor in _adapters(own).items():
            tensor.copy_(saved[name])
    use_narrow_products(own, None)  # scores are taken in the precision of the weights, whatever the policy's products
    return own.requires_grad_(False).eval()


def _adapters(trunk: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in trunk.named_parameters() if in_adapter(name)}


def _scaling(trunk: nn.Module) -> str:
    """What each layer multiplies its update by."""
    layers = (module for module in trunk.modules() if isinstance(module, LoraLayer))
    return " ".join(sorted({f"{name}={value:g}" for layer in layers for name, value in layer.scaling.items()}))
