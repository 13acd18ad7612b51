"""Supervised fine-tuning: demonstrations in, a policy that imitates them out.

The same recipe trains the sandbox's base model, where the "response" is a whole text. Shared prompts are encoded
once, rows are packed without padding, and the loss of a minibatch is divided by its own count of response tokens,
however it is cut up for memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from karat.errors import InputError
from karat.identity import content_id
from karat.lm import losses, parallel
from karat.lm.chat import prompt_tokens, response_tokens
from karat.lm.load import LoadedLM
from karat.lm.logprobs import response_logprobs
from karat.lm.loop import LoopConfig, Reporter, TrainState, check_skipped, linear_warmup_decay, optimiser_step, run_loop
from karat.lm.loop_identity import identity_of
from karat.lm.losses import token_nll
from karat.lm.sharding import even_share
from karat.lm.trees import Tree, cut_trees, empty_batch, pack_trees
from karat.records import Demonstration
from karat.seeding import torch_generator
from karat.sft.loss import n_response_tokens, trees_of
from karat.sft.settings import SFTConfig


@dataclass(frozen=True)
class SFTResult:
    """What a run of fine-tuning came to."""

    n_steps: int
    """Optimiser steps done."""
    n_demonstrations: int
    """Demonstrations trained on."""
    last_nll: float
    """Negative log-likelihood per response token of the last minibatch, before its step."""
    held_out_nll: float | None
    """The same on demonstrations kept out, after training; None = none were kept."""


def tokenised(lm: LoadedLM, demonstrations: Sequence[Demonstration]) -> list[tuple[list[int], list[int]]]:
    """(prompt tokens, response tokens with the end mark) of each demonstration.

    Raises: InputError for an empty list, or for one that does not fit the model's context.
    """
    if not demonstrations:
        raise InputError("sft: found no demonstrations; expected at least one")
    pairs = []
    for demonstration in demonstrations:
        prompt = prompt_tokens(lm.tokenizer, demonstration.prompt.turns)
        response = response_tokens(lm.tokenizer, demonstration.text, lm.eos_ids[0])
        if len(prompt) + len(response) > lm.context_length:
            raise InputError(
                f"{demonstration.source or 'demonstrations'}: found a demonstration of {len(prompt)} prompt and {len(response)} "
                f"response tokens ({demonstration.text[:40]!r}); expected at most {lm.context_length} in all, the model's "
                "context. Shorten it or take it out, or use a model of longer context"
            )
        pairs.append((prompt, response))
    return pairs


def train_sft(
    lm: LoadedLM,
    demonstrations: Sequence[Demonstration],
    config: SFTConfig,
    *,
    seed: int,
    held_out: Sequence[Demonstration] = (),
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
) -> SFTResult:
    """Fine-tune `lm.model` in place on the responses of demonstrations.

    Args:
        held_out: demonstrations of other prompts, only measured.    directory: for checkpoints and resume.
    """
    held_out_pairs = tokenised(lm, held_out) if held_out else []
    return train_on_pairs(
        lm, tokenised(lm, demonstrations), config, seed=seed, held_out=held_out_pairs, directory=directory,
        reporters=reporters,
    )  # fmt: skip


def train_on_texts(
    lm: LoadedLM,
    texts: Sequence[str],
    config: SFTConfig,
    *,
    seed: int,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
) -> SFTResult:
    """Train on whole texts, every token counted: a base model from nothing.

    The end mark stands in for the missing prompt, so that the first word is learnt too.
    """
    pairs = [([lm.eos_ids[0]], response_tokens(lm.tokenizer, text, lm.eos_ids[0])) for text in texts]
    if not pairs:
        raise InputError("base model: found no texts; expected at least one")
    return train_on_pairs(lm, pairs, config, seed=seed, directory=directory, reporters=reporters)


def train_on_pairs(
    lm: LoadedLM,
    pairs: Sequence[tuple[list[int], list[int]]],
    config: SFTConfig,
    *,
    seed: int,
    held_out: Sequence[tuple[list[int], list[int]]] = (),
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
) -> SFTResult:
    """The recipe itself: minibatches of pairs, packed as trees, one optimiser step each."""
    # 1. what is trained
    parameters = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    state = TrainState({"policy": lm.model}, {"policy": optimiser})
    n_steps = config.n_steps(len(pairs))
    n_warmup = round(config.warmup_frac * n_steps)
    last_nll = float("nan")

    # 2. one step: a minibatch, its forward and backward passes, one update
    def step(index: int) -> Mapping[str, float]:
        nonlocal last_nll
        trees = minibatch_trees(pairs, config.batch_size, seed=seed, step=index)
        n_tokens = n_response_tokens(trees)
        sums: list[Tensor] = []

        def micro_losses():
            token_budget = parallel.budget(config.token_budget, sum(tree.n_tokens for tree in trees))
            # texts without a prompt are one tree, which is cut only where several processes are to share it
            pieces = trees if parallel.count() == 1 else cut_trees(trees, token_budget)
            for batch in even_share(pack_trees(pieces, token_budget=token_budget), empty_batch):
                loss = -response_logprobs(lm.model, batch.to(lm.model.device)).logprobs.sum() / n_tokens
                sums.append(loss.detach())  # read when all are under way: to read is to wait for the device
                yield loss

        rate = linear_warmup_decay(index, n_steps=n_steps, peak=config.learning_rate, n_warmup=n_warmup)
        norm = optimiser_step(
            state, "policy", micro_losses(), max_grad_norm=config.max_grad_norm, learning_rate=rate, shared=True
        )
        check_skipped(state, index + 1)
        last_nll = parallel.total(sum(map(float, sums)))
        return {"nll_per_token": last_nll, "grad_norm": norm, "learning_rate": rate, "n_tokens": float(n_tokens)}

    # 3. the loop, then what was kept out
    identity: dict[str, Any] = {}
    if directory is not None:  # else nobody asks what run it is, and to say so takes a pass over the weights
        identity = identity_of(config, seed, {"demonstrations": [list(map(list, pair)) for pair in pairs]}, lm.model)
    loop = LoopConfig(n_steps, config.checkpoint_every)
    run_loop(
        state, step, loop, directory=directory, fingerprint=content_id("sft", identity), identity=identity, reporters=reporters
    )  # fmt: skip
    kept_out = mean_nll(lm, held_out, config.token_budget) if held_out else None
    return SFTResult(state.step, len(pairs), last_nll, kept_out)


def minibatch_trees(
    pairs: Sequence[tuple[list[int], list[int]]], batch_size: int, *, seed: int, step: int
) -> list[Tree]:
    """The trees of step i: each epoch is a fresh seeded shuffle, read on from where the last minibatch ended."""
    chosen = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, len(pairs))
        if not chosen or offset == 0:
            order = torch.randperm(len(pairs), generator=torch_generator(seed, "sft", "epoch", epoch)).tolist()
        chosen.append(pairs[order[offset]])
    return trees_of([prompt for prompt, _ in chosen], [response for _, response in chosen])


@torch.no_grad()
def mean_nll(lm: LoadedLM, pairs: Sequence[tuple[list[int], list[int]]], token_budget: int) -> float:
    """Mean negative log-likelihood per response token, in nats, without training."""
    trees = trees_of([prompt for prompt, _ in pairs], [response for _, response in pairs])
    batches = [batch.to(lm.model.device) for batch in pack_trees(trees, token_budget=token_budget)]
    return losses.mean_nll(token_nll(response_logprobs(lm.model, batch).logprobs.cpu().double()) for batch in batches)
