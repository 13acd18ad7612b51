"""The trunk of a reward that is to be trained: a decoder's or an encoder's directory, looked at and opened.

Knows model directories; knows nothing of what is trained on top.
"""

from __future__ import annotations

from pathlib import Path

from karat.lm.adapter_files import adapted_model, holds_adapters
from karat.lm.load import load_encoder, load_lm, model_config
from karat.lm.tokenizer_files import has_tokenizer, model_tokenizer
from karat.pipeline.model_settings import Dtype
from karat.pipeline.models import PRODUCTS
from karat.reward.trunk import DecoderTrunk, EncoderTrunk, Trunk


def open_trunk(path: Path, dtype: Dtype = "float32") -> Trunk:
    """A decoder as a trunk, or an encoder where the checkpoint says that it is a bare model (`BertModel`).

    Raises: CheckpointError for a directory that holds neither.
    """
    if _is_encoder(path):
        return EncoderTrunk(load_encoder(path, products=PRODUCTS[dtype]))
    return DecoderTrunk(load_lm(path, for_training=True, products=PRODUCTS[dtype]))


def check_trunk(path: Path) -> None:
    """Raise CheckpointError for a directory that holds no trunk, before votes are read; its weights are not loaded."""
    base = adapted_model(path) if holds_adapters(path) else path
    model_config(base)
    model_tokenizer(path if has_tokenizer(path) else base)


def _is_encoder(path: Path) -> bool:
    named = [] if holds_adapters(path) else model_config(path).architectures
    return bool(named) and named[0].endswith("Model") and not named[0].endswith("LMHeadModel")
