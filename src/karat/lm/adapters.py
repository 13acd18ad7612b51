"""Low-rank adapters: train a few weights, and have the reference policy by switching them off.

Knows models; the adapters themselves are those of peft. Knows nothing about what is being trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from karat.destinations import filled_directory
from karat.errors import CheckpointError, InputError
from karat.lm.adapter_files import (
    ADAPTER_WEIGHTS,
    FROZEN,
    adapters_on,
    frozen_digest,
    in_adapter,
    peft_at_peace,
)
from karat.lm.checksums import LISTED, check_files, note_files
from karat.lm.headers import add_header_metadata, state_on_processor
from karat.lm.load import LoadedLM
from karat.lm.logprobs import trunk_of


def add_lora(
    model: PreTrainedModel, r: int, alpha: float, *, targets: str | Sequence[str] = "all-linear", seed: int = 0
) -> PeftModel:
    """Freeze a model and give its linear layers trainable low-rank updates that start at zero.

        W' = W + (alpha/r)·B·A,   A ∈ ℝ^{r×i} random, B ∈ ℝ^{o×r} = 0

    Args:
        r: rank, ≥ 1.    alpha: scale of the update.    seed: for A.
        targets: "all-linear" (every linear layer but the output layer) or names of layers.
    Source: Hu et al. 2021, arXiv:2106.09685 eq. 3; Dettmers et al. 2023, arXiv:2305.14314 for all linear layers.
    Raises: InputError for a rank below 1 or targets that the model does not have.
    """
    if r < 1:
        raise InputError(f"add_lora: found rank {r}; expected ≥ 1")
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), peft_at_peace():
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise InputError(f"add_lora: {str(error).splitlines()[0]}") from error
    return adapted.eval()


@contextmanager
def reference_mode(model: nn.Module) -> Iterator[None]:
    """Within the block, the adapted model is the model it was made from: the reference policy.

    Raises: InputError for a model without adapters, whose reference has to be a copy.
    """
    if not isinstance(model, PeftModel):
        raise InputError(f"reference_mode: found {type(model).__name__} without adapters; expected one from add_lora")
    with model.disable_adapter():
        yield


def is_adapted(module: nn.Module) -> bool:
    """Whether a model, or its trunk alone, carries adapters."""
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())


def trunk_beside(model: PeftModel) -> nn.Module:
    """A second trunk on the model's frozen weights, the same memory, with adapters of its own that start as the model's are."""
    trunk = trunk_of(model)
    shared = {id(p): p for name, p in trunk.named_parameters() if not in_adapter(name)}
    return copy.deepcopy(trunk, shared)


def train_adapters(module: nn.Module) -> nn.Module:
    """Have the adapters learn and nothing else; all of it where there are none."""
    adapted = is_adapted(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not adapted or in_adapter(name))
    return module


def merged(lm: LoadedLM) -> LoadedLM:
    """A copy of the model with its adapters added into the weights, ready for `save_lm`."""
    if not isinstance(lm.model, PeftModel):
        return lm
    return replace(lm, model=copy.deepcopy(lm.model).merge_and_unload())


def merged_trunk(lm: LoadedLM) -> nn.Module:
    """The trunk as `merged` leaves it: what is saved of a reward model that was trained with adapters."""
    return trunk_of(merged(lm).model)


def save_adapter(model: PeftModel, directory: str | Path, *, metadata: Mapping[str, str]) -> Path:
    """Save the adapters alone, as peft does, with who made them and what they stand on in the safetensors header."""
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with filled_directory(directory) as partial:
        model.save_pretrained(partial, state_dict=state_on_processor(model, in_adapter))
        for file in sorted(partial.glob("*.safetensors")):
            add_header_metadata(file, {**metadata, **LISTED, FROZEN: frozen_digest(trunk_of(model))})
        note_files(partial, "*.safetensors")  # the model that they name may be elsewhere tomorrow
    return directory


def load_adapter(lm: LoadedLM, directory: str | Path, *, for_training: bool = False) -> LoadedLM:
    """Put saved adapters onto the model they were trained on.

    Raises: CheckpointError when there are none, they are not safetensors, they do not fit the model, or they say that they
        were trained on other weights (`save_adapter` notes which; peft alone does not, and shapes tell little).
    """
    directory = Path(directory)
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{directory}: found no {ADAPTER_WEIGHTS}; expected a directory of save_adapter")
    check_files(directory)
    return replace(lm, model=adapters_on(lm.model, directory, lm.path, for_training=for_training).eval())
