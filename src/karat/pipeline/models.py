"""A stage's model, ready to be trained: all of its weights, or adapters on frozen ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from karat.lm.adapters import add_lora
from karat.lm.load import LoadedLM, load_lm
from karat.pipeline.model_settings import PRODUCTS, Dtype, LoraSettings


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
