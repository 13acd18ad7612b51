"""A stage's model, ready to be trained: all of its weights, or adapters on frozen ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from karat.lm.adapters import add_lora
from karat.lm.load import LoadedLM, load_lm
from karat.pipeline.settings import LoraSettings


def load_for_training(path: Path, lora: LoraSettings | None, *, seed: int) -> LoadedLM:
    """The model in a directory; with adapters only they are trained.

    Args:
        seed: of the adapters' random half.
    """
    if lora is None:
        return load_lm(path, for_training=True)
    lm = load_lm(path)
    return dataclasses.replace(lm, model=add_lora(lm.model, lora.rank, lora.alpha, seed=seed))
