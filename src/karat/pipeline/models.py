"""A stage's model: what a stage that reads it records, and the model ready to be trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from karat.ledger.artifacts import ArtifactRef, ref_of
from karat.lm.adapter_files import adapted_model, holds_adapters
from karat.lm.adapters import add_lora
from karat.lm.load import LoadedLM, load_lm
from karat.pipeline.model_settings import Dtype, LoraSettings

PRODUCTS: dict[Dtype, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
"""What a stage's model is loaded with (`lm.load.load_lm`); None = the dtype of its weights, which is float32."""
WEIGHTS = frozenset((".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth"))
"""Ends the names of files of weights."""


def model_refs(run_dir: Path, model: Path, name: str) -> tuple[ArtifactRef, ...]:
    """A model from outside as stages read it: its directory last, before it what adapters stand on, of which they say nothing.

    Raises: CheckpointError for adapters of a model that is not here; LedgerError where nothing is there.
    """
    below = (ref_of(run_dir, adapted_model(model).resolve(), "model", "adapted"),) if holds_adapters(model) else ()
    return (*below, ref_of(run_dir, model.resolve(), "model", name))


def measuring_files(model: Path) -> tuple[Path, ...]:
    """Files of a model that texts are measured by: its tokenizer, its settings, its context; none where it is no directory.

    The weights, which may be many gigabytes, measure nothing.
    """
    places = [*([adapted_model(model)] if holds_adapters(model) else []), model]
    found = (one for place in places if place.is_dir() for one in sorted(place.iterdir()))
    return tuple(one for one in found if one.is_file() and one.suffix not in WEIGHTS)


def load_for_training(path: Path, lora: LoraSettings | None, *, seed: int, dtype: Dtype = "float32") -> LoadedLM:
    """The model in a directory; with adapters only they are trained.

    Args:
        seed: of the adapters' random half.    dtype: of the matrix products; the weights are float32 in any case.
    """
    products = PRODUCTS[dtype]
    if lora is None:
        return load_lm(path, for_training=True, products=products)
    lm = load_lm(path, products=products)
    return dataclasses.replace(lm, model=add_lora(lm.model, lora.rank, lora.alpha, seed=seed))
