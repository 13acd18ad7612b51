"""Directories of adapters as peft and trainers built on it write them: the model that they name, and both together.

Knows peft's files; knows nothing about what was trained.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from karat.damaged import MISFITS
from karat.errors import CheckpointError
from karat.lm.headers import read_header_metadata
from karat.lm.logprobs import trunk_of
from karat.lm.loop_identity import tensors_digest

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of a directory of adapters, as peft names them."""
FROZEN = "frozen"
"""In the header of a file of adapters: the digest of the weights that they stand on."""


def holds_adapters(path: Path) -> bool:
    """Whether a directory says that it holds adapters, not a whole model."""
    return (path / ADAPTER).is_file()


def adapter_settings(path: Path) -> dict[str, Any]:
    """peft's settings of a directory of adapters. Raises: CheckpointError where they cannot be read."""
    try:
        settings = json.loads((path / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {ADAPTER} cannot be read ({type(error).__name__})") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: found {ADAPTER} of another form; expected peft's settings")
    return settings


def adapted_model(path: Path) -> Path:
    """The directory of the model that adapters were trained on: as it is named, or so named beside them.

    Raises: CheckpointError where it is no directory here, or the adapters are no safetensors.
    """
    named = str(adapter_settings(path).get("base_model_name_or_path") or "")
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{path}: found no {ADAPTER_WEIGHTS}; expected adapters as safetensors")
    for place in (Path(named), path.parent / named):
        if named and os.path.isdir(place):  # also false of what could be no path
            return place
    raise CheckpointError(
        f"{path}: found adapters of {named or 'no model'}, which is no directory here; expected one: download it and set "
        f"base_model_name_or_path in {ADAPTER}"
    )


def in_adapter(name: str) -> bool:
    """Whether the parameter of that name belongs to an adapter, by peft's names."""
    return "lora_" in name


def frozen_digest(trunk: nn.Module) -> str:
    """SHA-256 of the weights below the adapters, by the names that they have without any."""
    return tensors_digest(
        (f"{name.replace('.base_layer.', '.')} {tensor.dtype} {tuple(tensor.shape)}", tensor)
        for name, tensor in trunk.named_parameters()
        if not in_adapter(name)
    )


def adapters_on(model: PreTrainedModel, path: Path, name: str, *, for_training: bool = False) -> PeftModel:
    """A model with the adapters of a directory on it.

    Args: name: of the model, for messages.
    Raises: CheckpointError where they cannot be read, do not fit or are not complete, or say that they were trained on other
        weights; peft's own say nothing, and shapes tell little.
    """
    frozen = read_header_metadata(path / ADAPTER_WEIGHTS).get(FROZEN)
    if frozen is not None and frozen != frozen_digest(trunk_of(model)):
        raise CheckpointError(
            f"{path}: the adapters were trained on other weights than those of {name}; expected the same model, loaded in the "
            "same dtype"
        )
    try:
        with peft_at_peace():
            adapted = PeftModel.from_pretrained(model, path, is_trainable=for_training)
            # which names its file had too many only the second reading says
            adapter = adapted.active_adapter
            again = adapted.load_adapter(str(path), adapter, is_trainable=for_training)
    except (*MISFITS, ImportError, UserWarning) as error:
        said = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: the adapters do not fit {name} ({said}); expected those that were trained on that model"
        ) from error
    if (unknown := sorted(again.unexpected_keys)) and not adapted.active_peft_config.is_prompt_learning:
        raise CheckpointError(
            f"{path}: {ADAPTER_WEIGHTS} holds {len(unknown)} weights that {ADAPTER} does not put anywhere in {name} (first: "
            f"{unknown[0]}); expected those of its target_modules and modules_to_save alone"
        )
    return adapted


def with_adapters(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """The model with a directory's adapters added into its weights.

    Raises: CheckpointError as `adapters_on` does, and for a kind that cannot be added into weights.
    """
    adapted = adapters_on(model, path, f"the model that they name, {model.name_or_path}")
    if adapted.active_peft_config.is_prompt_learning:
        kind = adapted.active_peft_config.peft_type.value
        raise CheckpointError(f"{path}: found {kind}; expected adapters that can be added into weights, such as LoRA")
    try:
        return adapted.merge_and_unload()
    except NotImplementedError as error:
        raise CheckpointError(
            f"{path}: found {ADAPTER} of adapters that cannot be added into weights ({error})"
        ) from error


@contextmanager
def peft_at_peace() -> Iterator[None]:
    """Within: that adapters are missing in a file is an error, where peft warns and goes on with random ones.

    And nobody hears that peft 0.21 asks transformers for a name that transformers has deprecated.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
