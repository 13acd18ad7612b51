"""The trunk of a saved reward: a plain sequence classifier beside the heads, written so and read back.

Knows model directories and what a card says of the trunk; knows nothing of heads.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from karat.errors import CheckpointError
from karat.lm.adapters import merged_trunk
from karat.lm.attention import NAME as TREE_ATTENTION
from karat.lm.checksums import LISTED, check_files
from karat.lm.classifiers import load_classifier
from karat.lm.headers import add_header_metadata
from karat.lm.load import LoadedEncoder, LoadedLM, load_encoder, quiet
from karat.lm.tokenizer_files import model_tokenizer
from karat.reward.borrowed import borrowed_trunk, save_adapters
from karat.reward.classifier import ClassifierTrunk
from karat.reward.model import RewardModel
from karat.reward.trunk import DecoderTrunk, EncoderTrunk, Trunk


def save_classifier(model: RewardModel, lm: LoadedLM, directory: Path, metadata: Mapping[str, str]) -> None:
    """The trunk with the mean of its heads as transformers' sequence classifier; adapters are saved beside it."""
    config = copy.deepcopy(lm.model.config)
    config.num_labels = 1
    config.pad_token_id = lm.pad_id
    classifier = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")  # never run
    classifier.to(next(model.trunk_module.parameters()).dtype)
    classifier.base_model.load_state_dict(merged_trunk(lm).state_dict())
    head = classifier.score
    if head.bias is not None or tuple(head.weight.shape) != (1, model.trunk.width):
        raise CheckpointError(
            f"{lm.path}: its classification head is {head}; expected one linear layer without bias from "
            f"{model.trunk.width} features"
        )
    head.weight.data.copy_(model.mean_weight().unsqueeze(0))
    directory.parent.mkdir(parents=True, exist_ok=True)
    with quiet(silent=True):
        classifier.save_pretrained(directory, max_shard_size="4GB")
    lm.tokenizer.save_pretrained(directory)
    plain = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    plain["karat"] = dict(metadata)
    (directory / "config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in sorted(directory.glob("*.safetensors")):
        add_header_metadata(file, {**metadata, **LISTED})
    save_adapters(lm, directory, metadata=metadata)


def load_trunk(directory: Path, card: Mapping[str, Any], device: str | torch.device, on: LoadedLM | None) -> Trunk:
    """The trunk that a card describes.

    Args:
        on: a policy with adapters, on which a reward trained on the same weights stands.
    Raises: CheckpointError (one line) for a kind that there is not, or files that cannot be read.
    """
    described = dict(card["trunk"])
    kind = described.pop("kind")
    if kind == "encoder":
        encoder: LoadedEncoder = load_encoder(directory, device=device)
        return EncoderTrunk(encoder, **described)
    if kind == "classifier":
        return ClassifierTrunk(load_classifier(directory, device=device))
    if kind != "decoder":
        raise CheckpointError(
            f"{directory}: found a trunk of kind {kind!r}; expected decoder, encoder or classifier"
        )  # fmt: skip
    check_files(directory)
    tokenizer = described.pop("tokenizer")
    trunk = borrowed_trunk(on, directory) if on is not None and described["use_trees"] else None
    try:
        with quiet(silent=True):
            trunk = trunk or AutoModel.from_pretrained(
                directory, attn_implementation=TREE_ATTENTION if described["use_trees"] else None, use_safetensors=True
            )
    except Exception as error:  # of several libraries, some with classes of their own
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{directory}: not loadable ({type(error).__name__}: {said})") from None
    lm = LoadedLM(
        model=trunk.to(device).eval(),
        tokenizer=model_tokenizer(directory),
        eos_ids=tuple(tokenizer["eos_ids"]),
        pad_id=tokenizer["pad_id"],
        context_length=tokenizer["context_length"],
        path=str(directory),
    )
    return DecoderTrunk(lm, **described)
