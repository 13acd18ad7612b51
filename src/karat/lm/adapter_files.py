"""Directories of adapters as peft and trainers built on it write them: the model that they name, and both together.

Knows peft's files; knows nothing about what was trained.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

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
    except (OSError, ValueError) as error:
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
        if named and place.is_dir():
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


def check_what_they_stand_on(path: Path, trunk: nn.Module, name: str) -> None:
    """Refuse adapters that say that they were trained on other weights; peft's own say nothing, and shapes tell little.

    Args: name: of the model, for the message.
    """
    frozen = read_header_metadata(path / ADAPTER_WEIGHTS).get(FROZEN)
    if frozen is not None and frozen != frozen_digest(trunk):
        raise CheckpointError(
            f"{path}: the adapters were trained on other weights than those of {name}; expected the same model, loaded in the "
            "same dtype"
        )


def with_adapters(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """The model with a directory's adapters added into its weights. Raises: CheckpointError where they do not fit it."""
    check_what_they_stand_on(path, trunk_of(model), model.name_or_path)
    try:
        with peft_at_peace():
            return PeftModel.from_pretrained(model, path).merge_and_unload()
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: the adapters do not fit the model that they name ({said})") from error


@contextmanager
def peft_at_peace() -> Iterator[None]:
    """Within the block nobody hears that peft 0.21 asks transformers for a name that transformers has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
