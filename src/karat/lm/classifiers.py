"""Sequence classifiers with one output, as reward trainers save them (`AutoModelForSequenceClassification`, or its adapters).

Knows model directories and the conventions of TRL's reward trainer; knows nothing about what the output means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from karat import devices
from karat.errors import CheckpointError, InputError
from karat.lm.adapter_files import ADAPTER_WEIGHTS, adapted_model, adapter_settings, holds_adapters, with_adapters
from karat.lm.checksums import check_files
from karat.lm.headers import tensor_names
from karat.lm.load import model_config, model_weights
from karat.lm.tokenizer_files import has_tokenizer, model_tokenizer
from karat.records import Turn


@dataclass(frozen=True)
class LoadedClassifier:
    """A decoder or encoder with a head of one output."""

    model: PreTrainedModel
    """The whole classifier, in eval mode, dropout off."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    head: nn.Linear
    """The last layer: features → the one output."""
    max_tokens: int
    """Longest input in tokens."""
    path: str
    """Where it was loaded from."""
    was_adapter: bool = False
    """True = its files are adapters, which were added into the weights of the model that they name."""


def is_classifier(path: Path) -> bool:
    """Whether a directory says that it holds a sequence classifier, or adapters of one."""
    if holds_adapters(path):
        return adapter_settings(path).get("task_type") == "SEQ_CLS"
    if not (path / "config.json").is_file():
        return False
    return any(name.endswith("ForSequenceClassification") for name in model_config(path).architectures or ())


def load_classifier(path: Path, *, device: str | torch.device | None = None) -> LoadedClassifier:
    """Load a sequence classifier with one output and check that all of it is there.

    Args: device: None = where this process works.
    Raises: CheckpointError (one line) for what `load_lm` refuses, more than one output, an encoder-decoder, or a head that
        is not one linear layer at the end.
    """
    adapted = holds_adapters(path)
    base = adapted_model(path) if adapted else path
    for place in dict.fromkeys((path, base)):
        check_files(place)
    config = model_config(base)
    if config.is_encoder_decoder:
        raise CheckpointError(f"{path}: unsupported kind: found an encoder-decoder; expected a decoder or an encoder")
    if adapted and not is_classifier(base):
        config.num_labels = 1  # as the trainer made a classifier of a language model
    if config.num_labels != 1:
        raise CheckpointError(f"{path}: found {config.num_labels} labels; expected a classifier with num_labels=1")
    tokenizer = model_tokenizer(path if has_tokenizer(path) else base)
    # transformers' SDPA leaves out the soft cap on attention scores (Gemma 2)
    attention = "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None
    kind = AutoModelForSequenceClassification
    given = _head_of(path) if adapted else ()
    model = model_weights(base, kind, config, *given, attn_implementation=attention)
    if adapted:
        model = with_adapters(model, path)
        model.config.pad_token_id = tokenizer.pad_token_id  # as the trainer sets it, and saves with whole models only
    model.to(device or devices.current()).eval().requires_grad_(False)
    return LoadedClassifier(model, tokenizer, _head(model, path), _longest(model, tokenizer), str(path), adapted)


def _head_of(path: Path) -> tuple[str, ...]:
    """Names of the whole layers that come with the adapters: the head, which a language model does not have."""
    saved = adapter_settings(path).get("modules_to_save") or ()
    names = tensor_names(path / ADAPTER_WEIGHTS)
    return tuple(name for name in dict.fromkeys(saved) if any(f".{name}." in key for key in names))


def classifier_tokens(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], response: str) -> list[int]:
    """What TRL's reward trainer feeds a classifier for a conversation and a response.

    With a chat template: the template over all turns, the response the last, no generation prompt. Without: the text of
    the only turn, the response right behind it, and the EOS token if the text does not end in it.

    Raises: InputError without a chat template for more than one turn, whose form nobody can know, or without an EOS token.
    Source: huggingface/trl 1.9.2, trl/trainer/reward_trainer.py `_prepare_dataset`.
    """
    if tokenizer.chat_template is not None:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        messages.append({"role": "assistant", "content": response})
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
    if len(turns) != 1:
        raise InputError(
            f"classifier: found {len(turns)} turns and a tokenizer without a chat template; expected one turn, or a "
            "chat_template in the model's directory"
        )
    if tokenizer.eos_token is None:
        return list(tokenizer(turns[0].content, response)["input_ids"])
    text = turns[0].content + response
    return list(tokenizer(text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token)["input_ids"])


def _head(model: PreTrainedModel, path: Path) -> nn.Linear:
    inside = {id(module) for module in model.base_model.modules()}
    heads = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module) not in inside and module.out_features == 1
    ]
    if len(heads) != 1:
        raise CheckpointError(
            f"{path}: found {len(heads)} linear layers with one output behind the trunk of {type(model).__name__}; expected 1"
        )
    return heads[0]


def _longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions is not None and getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # its positions begin behind the padding index
    return min(positions or 10**9, tokenizer.model_max_length)
