"""Sampling responses: what is drawn, from which distribution, with which random numbers.

The loop that draws them is `decoder`'s. Knows nothing about texts, templates or rewards: token ids in, token ids out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.errors import ConfigError, InputError
from karat.lm.decoder import Decoder, OnToken, Progress, Row, drawing_device
from karat.lm.native import draw_of
from karat.lm.sampling import draw_tokens, forbid, likeliest_tokens, token_uniforms, truncate_logits
from karat.lm.segments import way_for
from karat.records import Sample

if TYPE_CHECKING:
    from karat.lm.load import LoadedLM


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn."""

    max_new_tokens: int
    """Longest response in tokens, the stop token included."""
    temperature: float = 1.0
    """Logits are divided by it, > 0; recorded log-probabilities are those of the divided logits."""
    top_k: int = 0
    """Draw among the k likeliest tokens only; 0 = all. Log-probabilities are renormalised over what is left."""
    top_p: float = 1.0
    """Draw among the likeliest tokens of total probability p only; 1 = all. Renormalised likewise."""
    batch_rows: int = 128
    """Most responses under way at the same time."""
    min_new_tokens: int = 0
    """Stop tokens are impossible before this many others were drawn; renormalised likewise."""

    def __post_init__(self) -> None:
        for name, lowest in (("max_new_tokens", 1), ("top_k", 0), ("batch_rows", 1), ("min_new_tokens", 0)):
            if getattr(self, name) < lowest:
                raise ConfigError(f"SamplingConfig.{name}: found {getattr(self, name)}; expected ≥ {lowest}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"SamplingConfig.temperature: found {self.temperature}; expected > 0; for the likeliest token use greedy"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"SamplingConfig.top_p: found {self.top_p}; expected a probability in (0, 1]")


class _Drawing:
    """A token by its uniform number, from the distribution that a configuration makes of the model's."""

    def __init__(self, lm: LoadedLM, config: SamplingConfig) -> None:
        self.draws, self.counts = True, config.min_new_tokens > 0
        self.temperature, self.top_k, self.top_p = config.temperature, config.top_k, config.top_p
        self.min_new_tokens = config.min_new_tokens
        self.settings = "drawing", self.temperature, self.top_k, self.top_p, self.min_new_tokens
        self.stops = torch.tensor(sorted(lm.eos_ids), device=drawing_device(lm.model))

    def __call__(
        self,
        logits: Float[Tensor, "R V"],
        uniforms: Float[Tensor, " R"] | None,
        n_drawn: Int[Tensor, " R"] | None,
        *,
        recorded: bool = False,
    ) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
        if self.temperature != 1:
            logits = logits.div_(self.temperature)  # nobody else reads them
        if self.min_new_tokens:
            forbid(logits, self.stops, n_drawn < self.min_new_tokens)
        if self.top_k or self.top_p < 1:
            logits = truncate_logits(logits, top_k=self.top_k, top_p=self.top_p)
        quick = None if recorded else draw_of(logits)
        return (quick or draw_tokens)(logits, uniforms)


class _Likeliest:
    """The likeliest token."""

    draws = counts = False
    settings = "likeliest"

    def __call__(self, logits: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return likeliest_tokens(logits)


def sample(
    lm: LoadedLM,
    prompts: Sequence[Sequence[int]],
    *,
    n_samples: int,
    config: SamplingConfig,
    seed: int,
    prompt_keys: Sequence[int] | None = None,
    progress: Progress | None = None,
    on_token: OnToken | None = None,
) -> list[list[Sample]]:
    """Draw n_samples responses to each prompt from the model's own distribution.

        token_t ~ softmax(logits_t / temperature), restricted by top_k, top_p and min_new_tokens

    Args:
        prompts: token ids, each at least one token.
        seed: with the prompt's key, the sample's number and the position it decides every draw; neither the order
            of the prompts nor batch_rows does, beyond the model's rounding.
        prompt_keys: an integer a prompt; prompts with equal keys share their random numbers. None = a hash of the
            token ids and of how often the same prompt came before in this call.
        progress: called for every step.    on_token: called with the indices of prompt and sample, and the token.
    Returns: the samples of each prompt, in the order given.
    Raises: InputError for a prompt that is empty, names an unknown token or leaves too little room in the context;
        InvariantError when the model's logits are not numbers.
    Differs: from `generate` of transformers: the prompt is read once for its samples, and the recorded
        log-probability is that of the distribution drawn from.
    """
    if n_samples < 1:
        raise ConfigError(f"sample: found n_samples {n_samples}; expected ≥ 1")
    _check_prompts(lm, prompts, config.max_new_tokens)
    keys = default_keys(prompts) if prompt_keys is None else list(prompt_keys)
    if len(keys) != len(prompts):
        raise InputError(f"sample: found {len(keys)} prompt keys for {len(prompts)} prompts; expected one each")
    groups = [[Row(index, number, len(prompt)) for number in range(n_samples)] for index, prompt in enumerate(prompts)]

    def uniforms(rows: Sequence[Row]) -> np.ndarray:
        own = [keys[row.prompt] for row in rows], [row.sample for row in rows]
        return token_uniforms(seed, *own, config.max_new_tokens)

    choose = _Drawing(lm, config)
    longest, way = config.max_new_tokens, way_for(lm.model)
    given = lm, prompts, groups, choose, longest, config.batch_rows, progress
    Decoder(*given, way=way, uniforms=uniforms).run(on_token)
    return [[row.result(prompts[row.prompt]) for row in rows] for rows in groups]


def greedy(
    lm: LoadedLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_rows: int = 128,
    progress: Progress | None = None,
    on_token: OnToken | None = None,
) -> list[Sample]:
    """The likeliest token at every position; log-probabilities under the model's own distribution.

    Raises: InputError, InvariantError as `sample` does.
    """
    SamplingConfig(max_new_tokens, batch_rows=batch_rows)
    _check_prompts(lm, prompts, max_new_tokens)
    groups = [[Row(index, 0, len(prompt))] for index, prompt in enumerate(prompts)]
    way = way_for(lm.model)
    Decoder(lm, prompts, groups, _Likeliest(), max_new_tokens, batch_rows, progress, way=way).run(on_token)
    return [rows[0].result(prompts[rows[0].prompt]) for rows in groups]


def default_keys(prompts: Sequence[Sequence[int]]) -> list[int]:
    """A 64-bit key for each prompt: SHA-256 of its token ids and of how many equal prompts came before it."""
    seen: Counter[tuple[int, ...]] = Counter()
    keys = []
    for prompt in map(tuple, prompts):
        text = " ".join(map(str, (seen[prompt], *prompt)))
        keys.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        seen[prompt] += 1
    return keys


def _check_prompts(lm: LoadedLM, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    n_ids = lm.model.get_input_embeddings().weight.shape[0]
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise InputError(f"prompt {index} has no tokens; expected at least one; add a begin token or a template")
        if len(prompt) + max_new_tokens > lm.context_length:
            raise InputError(
                f"prompt {index} has {len(prompt)} tokens and up to {max_new_tokens} new ones; expected at most "
                f"{lm.context_length} together, the model's context; shorten the prompt or lower max_new_tokens"
            )
        foreign = next((token for token in prompt if not 0 <= token < n_ids), None)
        if foreign is not None:
            raise InputError(
                f"prompt {index} contains token {foreign}; expected ids from 0 to {n_ids - 1}, the model's "
                "vocabulary; use the model's own tokenizer"
            )
