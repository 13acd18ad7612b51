"""A toy for PPO: a tiny Qwen3-shaped model over twenty words, prompts of two words, and a reward for one word."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from karat.lm.fresh import DecoderShape, word_tokenizer, write_fresh_decoder
from karat.lm.load import LoadedLM, load_lm
from karat.policy.actor import ActorCritic, build_actor
from karat.policy.rollout import Rollout, collect_rollout
from karat.policy.settings import RolloutSettings
from karat.records import Prompt, user_prompt
from karat.seeding import torch_generator

WORDS = [f"w{i}" for i in range(20)]
PROMPTS = [user_prompt(f"w{i} w{j}" + " w0" * (i % 3)) for i in range(4) for j in range(4)]


@cache
def _directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="karat-policy-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    shape = DecoderShape(hidden=32, mlp=64, layers=2, heads=2, kv_heads=1, head_size=16, context=64)
    return write_fresh_decoder(directory, word_tokenizer(WORDS), shape, seed=0)


@cache
def _loaded(dtype: torch.dtype, products: torch.dtype | None) -> LoadedLM:
    return load_lm(_directory(), dtype=dtype, for_training=True, products=products)


def toy_lm(dtype: torch.dtype = torch.float32, *, products: torch.dtype | None = None) -> LoadedLM:
    """A fresh copy of the same untrained model."""
    lm = _loaded(dtype, products)
    return replace(lm, model=copy.deepcopy(lm.model))


def toy_actor(dtype: torch.dtype = torch.float32, *, critic: bool = False, zero_head: bool = False) -> ActorCritic:
    """Policy, reference and a random value head."""
    lm = toy_lm(dtype)
    trunk = toy_lm(dtype).model.base_model if critic else None
    return build_actor(lm, critic=trunk, zero_head=zero_head, generator=torch_generator(0, "head"))


def share_of_w3(prompts: list[Prompt], texts: list[str]) -> list[float]:
    """The fraction of a response's words that are w3."""
    assert len(prompts) == len(texts)
    return [text.split().count("w3") / max(len(text.split()), 1) for text in texts]


def toy_rollout(actor: ActorCritic, *, n_prompts: int = 4, seed: int = 0, **settings: object) -> Rollout:
    """Responses of up to six tokens, three a prompt unless told otherwise."""
    chosen = {"n_prompts": n_prompts, "n_samples": 3, "max_new_tokens": 6} | settings
    return collect_rollout(
        actor,
        PROMPTS[:n_prompts],
        share_of_w3,
        settings=RolloutSettings(**chosen),
        token_budget=60,
        seed=seed,
        with_last_values=True,
    )
