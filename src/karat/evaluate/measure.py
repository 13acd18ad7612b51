"""Draws responses from a policy and measures how far it has moved from its reference.

Knows models and texts; what a response is worth it is told by functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from karat.errors import InputError
from karat.lm import parallel
from karat.lm.chat import check_fits, prompt_tokens, response_text, response_tokens
from karat.lm.endpoint import Endpoint, EndpointReply
from karat.lm.generate import SamplingConfig
from karat.lm.load import LoadedLM
from karat.lm.logprobs import response_logprobs
from karat.lm.together import sample_together
from karat.lm.trees import Tree, TreeBatch, pack_trees
from karat.records import Prompt, Sample

Array = NDArray[np.float64]
ALIKE = -6.0
"""log₁₀ of the chance below which equal responses to every prompt are no draws."""


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


def draw_served(
    server: Endpoint, lm: LoadedLM, prompts: Sequence[Prompt], *, n_samples: int, seed: int
) -> list[list[Sample]]:
    """n_samples responses of a server that serves a checkpoint, as if they had been drawn here.

    A server gives texts. Their tokens are those into which the checkpoint's tokenizer cuts them, and the log-probabilities
    the checkpoint's: what stands in for `Sample.logprobs` where the server drew the same text in other tokens, or under
    settings of its own (top_k, a penalty), is log π of the text's usual tokens.

    Args:
        server: at temperature 1.    lm: the checkpoint that it serves.
    Raises: InputError for a server that fails, that gives the likeliest text instead of draws, or whose responses with
        their prompts do not fit into the context.
    """
    replies = parallel.from_main(lambda: server.replies(prompts, n_samples=n_samples, seed=seed))
    trees = []
    for prompt, group in zip(prompts, replies, strict=True):
        tokens = tuple(prompt_tokens(lm.tokenizer, prompt.turns))
        branches = [tuple(_tokens_of(lm, reply)) for reply in group]
        check_fits(tokens, max(map(len, branches)), lm.context_length)
        trees.append(Tree(tokens, tuple(branches)))
    logprobs = iter(_logprobs(lm, trees))
    samples = [
        [
            Sample(tree.prompt, branch, tuple(next(logprobs)), reply.stopped, number)
            for number, (branch, reply) in enumerate(zip(tree.branches, group, strict=True))
        ]
        for tree, group in zip(trees, replies, strict=True)
    ]
    check_drawn(samples, server.url)
    return samples


def check_drawn(samples: Sequence[Sequence[Sample]], url: str) -> None:
    """Raise InputError where a server said one and the same of every prompt, and draws would hardly have done so.

    P(all N alike) ≤ Π over prompts of π(y)^(N − 1), for the y that it gave
    """
    if any(one.response_tokens != group[0].response_tokens for group in samples for one in group):
        return
    chance = sum((len(group) - 1) * min(0.0, sum(group[0].logprobs)) for group in samples) / math.log(10)
    if chance < ALIKE:
        raise InputError(
            f"endpoint {url}: found {len(samples[0])} equal responses to each of {len(samples)} prompts, which draws from the "
            f"checkpoint give once in 10^{-chance:.0f}; expected draws at temperature 1: set do_sample: true and top_k: 0 in "
            "the generation_config.json that it serves"
        )


def _tokens_of(lm: LoadedLM, reply: EndpointReply) -> list[int]:
    tokens = response_tokens(lm.tokenizer, reply.text, lm.eos_ids[0])
    return tokens if reply.stopped or len(tokens) == 1 else tokens[:-1]  # never without a token


@torch.inference_mode()
def _logprobs(lm: LoadedLM, trees: Sequence[Tree], *, token_budget: int = 8192) -> list[list[float]]:
    """log π of the tokens of every branch, the processes sharing the forward passes."""
    found: list[list[float]] = [[] for tree in trees for _ in tree.branches]
    budget = parallel.budget(token_budget, sum(tree.n_tokens for tree in trees))
    batches = pack_trees(trees, token_budget=budget)

    def one_pass(batch: TreeBatch) -> Tensor:
        return response_logprobs(lm.model, batch.to(lm.model.device)).logprobs.cpu().double()

    passes = parallel.each(batches, one_pass)
    for batch, logprobs in zip(batches, passes, strict=True):
        for branch, value in zip(batch.branch_id[batch.branch_of].tolist(), logprobs.tolist(), strict=True):
            found[branch].append(value)
    return found


def sequence_kl(ref: LoadedLM, samples: Sequence[Sequence[Sample]], *, token_budget: int = 8192) -> Array:
    """log π(y|x) − log π_ref(y|x) of each sampled response, nats: [P, N]; its mean estimates KL(π ‖ π_ref).

    The processes share the forward passes. The policy's log-probabilities are those recorded when the tokens were drawn.
    """
    trees = [Tree(group[0].prompt_tokens, tuple(one.response_tokens for one in group)) for group in samples]
    reference = np.array([sum(each) for each in _logprobs(ref, trees, token_budget=token_budget)])
    policy = np.array([[sum(one.logprobs) for one in group] for group in samples])
    return policy - reference.reshape(policy.shape)
