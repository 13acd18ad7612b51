"""What a configuration comes to: batches, optimiser steps, tokens, memory and disk, before anything is run.

Pure arithmetic on settings and counts. Knows the configuration; reads no file and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from karat.lm.memory import ModelSize, cache_bytes, lora_parameters, training_bytes
from karat.pipeline.rewarding import GATE_FRAC
from karat.pipeline.settings import RunConfig

N_SAVED_MODELS = 5
"""Models that a run keeps: base, sft, reward, ppo, and the watcher's best while it runs."""


@dataclass(frozen=True)
class Derived:
    """A number that follows from the configuration."""

    name: str
    """stage.what"""
    value: int
    """The number."""
    unit: str
    """Its unit."""
    how: str
    """How it was come by, with the settings' names."""


@dataclass(frozen=True)
class Counts:
    """What the source holds."""

    demonstrations: int
    """Demonstrations."""
    policy_prompts: int
    """Prompts that the optimiser samples from."""
    collect_prompts: int
    """Prompts whose responses are judged."""
    votes: int
    """Votes given or to be asked for."""
    longest_prompt: int
    """Tokens."""


def derived(config: RunConfig, counts: Counts, size: ModelSize) -> list[Derived]:
    """Batches, steps, tokens, memory and disk of every stage, in the order of the river."""
    return [
        *_sft(config, counts),
        *_reward(config, counts),
        *(_ppo(config, counts) if config.algorithm == "ppo" else []),
        *_memory(config, counts, size),
    ]


def _sft(config: RunConfig, counts: Counts) -> list[Derived]:
    kept_out = max(1, counts.demonstrations // 20) if counts.demonstrations else 0
    n = counts.demonstrations - kept_out
    if n <= 0:
        return [Derived("sft.demonstrations", counts.demonstrations, "", "none to train on: the checkpoint is kept")]
    return [
        Derived("sft.demonstrations", n, "", f"{counts.demonstrations} less {kept_out} kept out to measure"),
        Derived("sft.steps_an_epoch", math.ceil(n / config.sft.batch_size), "optimiser steps", "⌈n/batch_size⌉"),
        Derived("sft.steps", config.sft.n_steps(n), "optimiser steps", "epochs·n/batch_size"),
    ]


def _reward(config: RunConfig, counts: Counts) -> list[Derived]:
    share = (1 - GATE_FRAC) * (1 - config.reward.holdout_frac)
    texts = round(counts.collect_prompts * config.collect.n_samples * (1 - GATE_FRAC))
    steps = math.ceil(texts / config.reward.batch_responses)
    n_models = config.reward.ensemble.models if config.reward.posterior == "ensemble" else 1
    how = "at most: patience may end it early" + (f"; {n_models} models" if n_models > 1 else "")
    return [
        Derived("collect.votes", counts.votes, "votes", "n_tasks·overlap, or the votes of the file"),
        Derived(
            "reward.votes", round(counts.votes * share), "votes", "about: less those of the gate and held-out raters"
        ),
        Derived("reward.steps_an_epoch", steps, "optimiser steps", "about: judged responses/batch_responses"),
        Derived("reward.steps", n_models * steps * config.reward.n_epochs, "optimiser steps", how),
    ]


def _ppo(config: RunConfig, counts: Counts) -> list[Derived]:
    ppo, rollout, update = config.ppo, config.ppo.rollout, config.ppo.update
    prompts = rollout.n_prompts // update.n_minibatches
    tree = counts.longest_prompt + rollout.n_samples * rollout.max_new_tokens
    trees = max(1, update.token_budget // tree)
    steps = ppo.steps_per_iteration
    passes = round(100 * ppo.n_iterations * rollout.n_prompts / max(counts.policy_prompts, 1))
    return [
        Derived("ppo.rollout", ppo.n_sequences, "responses", "n_prompts·n_samples"),
        Derived("ppo.minibatch", prompts * rollout.n_samples, "responses", "rollout/n_minibatches, one optimiser step"),
        Derived(
            "ppo.micro_batches", math.ceil(prompts / trees), "a minibatch",
            f"at most: {tree} tokens the longest tree, {update.token_budget} the budget",
        ),
        Derived("ppo.steps_an_epoch", update.n_minibatches, "optimiser steps", "n_minibatches"),
        Derived("ppo.steps_an_iteration", steps, "optimiser steps", "n_epochs·n_minibatches"),
        Derived("ppo.steps", steps * ppo.n_iterations, "optimiser steps", "n_iterations·n_epochs·n_minibatches"),
        Derived(
            "ppo.tokens", ppo.n_sequences * rollout.max_new_tokens * ppo.n_iterations, "response tokens",
            "at most: every response as long as max_new_tokens",
        ),
        Derived("ppo.passes", passes, "% of the prompts", "n_iterations·n_prompts of the rollout/prompts, 100 = each once"),
    ]  # fmt: skip


def _memory(config: RunConfig, counts: Counts, size: ModelSize) -> list[Derived]:
    trained = lora_parameters(size, config.lora.rank) if config.lora else size.parameters
    rollout, update = config.ppo.rollout, config.ppo.update
    tree = counts.longest_prompt + rollout.n_samples * rollout.max_new_tokens
    copies = (0 if config.lora else 1) + 1  # the reference policy, and the reward model
    separate = config.ppo.value.critic == "separate"
    critic = 4 * size.weight_bytes if separate else 0
    ppo = training_bytes(size, n_trained=trained, n_tokens=max(update.token_budget, tree), n_copies=copies) + critic
    cache = cache_bytes(
        size, n_prompts=max(1, rollout.decode_rows // rollout.n_samples), prompt_tokens=counts.longest_prompt,
        n_rows=rollout.decode_rows, response_tokens=rollout.max_new_tokens,
    )  # fmt: skip
    sft = training_bytes(size, n_trained=trained, n_tokens=config.sft.token_budget)
    reward = training_bytes(size, n_trained=trained, n_tokens=config.reward.token_budget)
    held = "weights, gradients, Adam, activations of token_budget tokens, logits"
    checkpoint = size.weight_bytes + 2 * trained * size.bytes_per_number
    return [
        Derived("model.parameters", size.parameters, "numbers", "tied weights once"),
        Derived("model.trained", trained, "numbers", "adapters on every linear layer" if config.lora else "all weights"),
        Derived("memory.sft", sft, "bytes", held),
        Derived("memory.reward", reward, "bytes", held),
        Derived("memory.ppo", ppo, "bytes", f"{held}; reference policy and reward model beside them"),
        Derived("memory.decode_cache", cache, "bytes", "while sampling, when no activations are held"),
        Derived(
            "disk", N_SAVED_MODELS * size.weight_bytes + 2 * checkpoint, "bytes",
            f"{N_SAVED_MODELS} models and two checkpoints of weights and moments",
        ),
    ]  # fmt: skip
