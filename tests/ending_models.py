"""Tiny models whose responses end by themselves, and prompts of many lengths for them."""

from __future__ import annotations

import numpy as np
import torch

from karat.lm.load import LoadedLM
from tiny_models import tiny_model, tiny_tokenizer

KINDS = ("gpt2", "llama", "qwen3", "gemma", "gemma3")
EOS = {"gpt2": (0,), "llama": (1,), "qwen3": (2, 0), "gemma": (1,), "gemma3": (1,)}
RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(3, 250, size=int(n)).tolist() for n in (1, 17, 4, 30, 9, 9, 2, 23)]


def make_lm(kind: str, dtype: torch.dtype = torch.float32, stop_logit: float = 0.0) -> LoadedLM:
    """A tiny model whose stop tokens have their logits raised, so that responses end by themselves."""
    model = tiny_model(kind, dtype=dtype).eval()
    if kind == "gemma":
        model.config._attn_implementation = "eager"  # the only plain attention with a soft cap
    if stop_logit:
        bias = torch.zeros(model.config.vocab_size, dtype=dtype)
        bias[list(EOS[kind])] = stop_logit
        model.lm_head.bias = torch.nn.Parameter(bias)
    return LoadedLM(
        model=model, tokenizer=tiny_tokenizer(kind), eos_ids=EOS[kind], pad_id=3, context_length=128, path="memory"
    )


def flat(samples):
    """The samples of all prompts in one list."""
    return [one for group in samples for one in group]
