"""Draws responses from a policy and measures how far it has moved from its reference.

Knows models and texts; what a response is worth it is told by functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from karat.lm import parallel
from karat.lm.chat import check_fits, prompt_tokens, response_text
from karat.lm.generate import SamplingConfig
from karat.lm.load import LoadedLM
from karat.lm.logprobs import response_logprobs
from karat.lm.together import sample_together
from karat.lm.trees import Tree, pack_trees
from karat.records import Prompt, Sample

Array = NDArray[np.float64]


def draw(
    lm: LoadedLM,
    prompts: Sequence[Prompt],
    *,
    n_samples: int,
    max_new_tokens: int,
    seed: int,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[list[Sample]]:
    """n_samples responses to each prompt at temperature 1, the processes sharing them; a function of (seed, prompt, sample) alone."""
    tokens = [prompt_tokens(lm.tokenizer, prompt.turns) for prompt in prompts]
    for row in tokens:
        check_fits(row, max_new_tokens, lm.context_length)
    keys = [int(prompt.id.split(":")[1][:15], 16) for prompt in prompts]
    config = SamplingConfig(max_new_tokens=max_new_tokens)
    return sample_together(
        lm, tokens, n_samples=n_samples, config=config, seed=seed, prompt_keys=keys, progress=progress
    )


def texts_of(lm: LoadedLM, samples: Sequence[Sequence[Sample]]) -> list[list[str]]:
    """The text of each sample, without its end mark."""
    return [[response_text(lm.tokenizer, one.response_tokens, lm.eos_ids) for one in group] for group in samples]


@torch.inference_mode()
def sequence_kl(ref: LoadedLM, samples: Sequence[Sequence[Sample]], *, token_budget: int = 8192) -> Array:
    """log π(y|x) − log π_ref(y|x) of each sampled response, nats: [P, N]; its mean estimates KL(π ‖ π_ref).

    The processes share the forward passes. The policy's log-probabilities are those recorded when the tokens were drawn.
    """
    trees = [Tree(group[0].prompt_tokens, tuple(one.response_tokens for one in group)) for group in samples]
    flat = torch.zeros(sum(len(group) for group in samples), dtype=torch.float64)
    budget = parallel.budget(token_budget, sum(tree.n_tokens for tree in trees))
    batches = pack_trees(trees, token_budget=budget)
    found = parallel.each(batches, lambda batch: response_logprobs(ref.model, batch).logprobs.double())
    for batch, logprobs in zip(batches, found, strict=True):
        flat.index_add_(0, batch.branch_id[batch.branch_of], logprobs)
    policy = np.array([[sum(one.logprobs) for one in group] for group in samples])
    return policy - flat.numpy().reshape(policy.shape)
