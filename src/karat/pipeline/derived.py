"""What a configuration comes to: batches, optimiser steps, tokens, memory and disk, before anything is run.

Pure arithmetic on settings and counts. Knows the configuration; reads no file and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from karat.lm.dense_attention import MOST_KEYS, MOST_NARROW_KEYS
from karat.lm.memory import ModelSize, Work, cache_bytes, lora_parameters, training_bytes
from karat.pipeline.gating import GATE_FRAC
from karat.pipeline.settings import RunConfig
from karat.policy.method_settings import DirectConfig, ExpertConfig, GroupConfig, ImplicitQConfig, OnlineDPOConfig
from karat.policy.settings import PPOConfig, RolloutSettings

PADDED = 1.15
"""Positions of a group of pieces, padding included, over its own."""
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
    typical_prompt: int = 0
    """Mean tokens; 0 = as long as the longest."""
    typical_response: int = 0
    """Mean tokens of a demonstration; 0 = as long as what is drawn may be."""


def derived(config: RunConfig, counts: Counts, size: ModelSize, *, n_shards: int = 1) -> list[Derived]:
    """Batches, steps, tokens, memory and disk of every stage, in the order of the river.

    Args: n_shards: processes that part what is trained among them; memory is then that of one of them.
    """
    return [
        *_sft(config, counts),
        *_reward(config, counts),
        *(_offline(config, counts) if config.rollout is None else _online(config, counts)),
        *_memory(config, counts, size, n_shards),
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


def _online(config: RunConfig, counts: Counts) -> list[Derived]:
    """Of the methods that draw responses: PPO, RLOO, GRPO, REINFORCE++, online DPO, expert iteration."""
    name, method, rollout = config.section, config.method, config.rollout
    assert isinstance(method, PPOConfig | GroupConfig | OnlineDPOConfig | ExpertConfig)
    assert rollout is not None
    update, n_sequences = method.update, rollout.n_prompts * rollout.n_samples
    prompts = rollout.n_prompts // update.n_minibatches
    # expert iteration learns one response a prompt, the others the whole tree
    learnt = 1 if isinstance(method, ExpertConfig) else rollout.n_samples
    tree = counts.longest_prompt + learnt * rollout.max_new_tokens
    trees = max(1, update.token_budget // tree)
    steps = method.steps_per_iteration
    passes = round(100 * method.n_iterations * rollout.n_prompts / max(counts.policy_prompts, 1))
    dealt = "rollout/n_minibatches" if learnt > 1 else "n_prompts/n_minibatches: the best of each prompt"
    return [
        Derived(f"{name}.rollout", n_sequences, "responses", "n_prompts·n_samples"),
        Derived(f"{name}.minibatch", prompts * learnt, "responses", f"{dealt}, one optimiser step"),
        Derived(
            f"{name}.micro_batches", math.ceil(prompts / trees), "a minibatch",
            f"at most: {tree} tokens the longest tree, {update.token_budget} the budget",
        ),
        Derived(f"{name}.steps_an_epoch", update.n_minibatches, "optimiser steps", "n_minibatches"),
        Derived(f"{name}.steps_an_iteration", steps, "optimiser steps", "n_epochs·n_minibatches"),
        Derived(f"{name}.steps", steps * method.n_iterations, "optimiser steps", "n_iterations·n_epochs·n_minibatches"),
        Derived(
            f"{name}.tokens", n_sequences * rollout.max_new_tokens * method.n_iterations, "response tokens",
            "at most: every response as long as max_new_tokens",
        ),
        Derived(
            f"{name}.passes", passes, "% of the prompts", "n_iterations·n_prompts of the rollout/prompts, 100 = each once"
        ),
    ]  # fmt: skip


def _offline(config: RunConfig, counts: Counts) -> list[Derived]:
    """Of the methods that read given data: DPO, IPO, KTO, implicit Q-learning."""
    name, method = config.section, config.method
    assert isinstance(method, DirectConfig | ImplicitQConfig)
    if isinstance(method, ImplicitQConfig):
        n, what = counts.collect_prompts * config.collect.n_samples, "responses"
        how = "at most: n_samples of each prompt whose responses are judged"
        longest = counts.longest_prompt + config.collect.max_new_tokens
    elif method.loss == "kto":
        n, what, how = 2 * counts.votes, "responses", "at most: two a vote; ties give none"
        longest = counts.longest_prompt + config.collect.max_new_tokens
    else:
        n, what, how = counts.votes, "comparisons", "at most: every vote decided; ties are left out"
        longest = counts.longest_prompt + 2 * config.collect.max_new_tokens
    batch = min(method.batch_size, max(n, 1))
    steps = method.n_steps(max(n, 1))
    return [
        Derived(f"{name}.examples", n, what, how),
        Derived(f"{name}.minibatch", batch, what, "batch_size, one optimiser step"),
        Derived(
            f"{name}.micro_batches", math.ceil(batch / max(1, method.token_budget // longest)), "a minibatch",
            f"at most: {longest} tokens the longest tree, {method.token_budget} the budget",
        ),
        Derived(f"{name}.steps_an_epoch", math.ceil(n / method.batch_size), "optimiser steps", "⌈examples/batch_size⌉"),
        Derived(f"{name}.steps", steps, "optimiser steps", "epochs·examples/batch_size, at least 1"),
    ]  # fmt: skip


def _memory(config: RunConfig, counts: Counts, size: ModelSize, n_shards: int) -> list[Derived]:
    trained = lora_parameters(size, config.lora.rank) if config.lora else size.parameters
    name, method, rollout = config.section, config.method, config.rollout
    # the reward model, which is adapters on the policy's weights where both learn by adapters, and the policy's reference,
    # which is the adapter switched off where there is one
    copies, held_beside = 2, "reference policy and reward model beside them"
    if config.lora:
        copies = int(config.reward_model is not None)
        held_beside = "reward model beside them" if copies else "reference policy and reward model on the same weights"
    elif rollout is None:  # a reference to measure the KL from, and the loss's own where it keeps one
        copies += isinstance(method, DirectConfig) and (method.loss == "kto" or not method.precompute_reference)
    separate = isinstance(method, PPOConfig) and method.value.critic == "separate"
    # weights, gradient and two moments; of adapters alone where the trunk is the policy's
    critic = 4 * (trained if config.lora else size.parameters) * size.bytes_per_number if separate else 0
    options = {"n_trained": trained, "n_shards": n_shards}
    policy = _peak(
        size, _of_method(config, counts, size), n_copies=copies, n_beside=critic, n_before=2, **options
    )  # fmt: skip
    drawn = rollout or RolloutSettings(n_samples=config.watch.n_samples)
    cache = cache_bytes(
        size, n_prompts=max(1, drawn.decode_rows // drawn.n_samples), prompt_tokens=counts.longest_prompt,
        n_rows=drawn.decode_rows, response_tokens=config.policy_tokens,
    )  # fmt: skip
    own = counts.typical_response or config.collect.max_new_tokens
    shown = _works(counts, size, config.sft.batch_size, (1, own), config.sft.token_budget)
    sft = _peak(size, shown, **options)
    judged = _works(counts, size, math.ceil(config.reward.batch_responses / 2), (2, own), config.reward.token_budget)
    judged = [replace(work, logits=False) for work in judged]
    # the last block is computed at the last token of each response alone; the best epoch's weights are kept
    reward = _peak(replace(size, layers=max(1, size.layers - 1)), judged, n_kept=1, n_before=1, **options)
    held = "libraries, weights, gradients, Adam, activations of a micro-batch, logits"
    if n_shards > 1:
        held = f"of each process: libraries, 1/{n_shards} of weights, gradients and Adam; a block, embeddings, activations, logits"
    checkpoint = size.weight_bytes + 2 * trained * size.bytes_per_number
    # the watcher's best while it runs is one of the five; of a panel's candidates only some are new between checkpoints
    n_models = N_SAVED_MODELS + (config.watch.panel.candidates if config.watch.panel is not None else 0)
    return [
        Derived("model.parameters", size.parameters, "numbers", "tied weights once"),
        Derived("model.trained", trained, "numbers", "adapters on every linear layer" if config.lora else "all weights"),
        Derived("memory.sft", sft, "bytes", held),
        Derived("memory.reward", reward, "bytes", held),
        Derived(f"memory.{name}", policy, "bytes", f"{held}; {held_beside}"),
        Derived("memory.decode_cache", cache, "bytes", "while sampling; with decode: graph in between too"),
        Derived(
            "disk", n_models * size.weight_bytes + 2 * checkpoint, "bytes",
            f"{n_models} models and two checkpoints of weights and moments",
        ),
    ]  # fmt: skip


def _peak(size: ModelSize, works: list[Work], **options: int) -> int:
    """The most that any of the kinds of micro-batches takes."""
    return max(training_bytes(size, work=work, **options) for work in works)


def _of_method(config: RunConfig, counts: Counts, size: ModelSize) -> list[Work]:
    """Micro-batches of the optimiser."""
    method, rollout = config.method, config.rollout
    if rollout is None:
        assert isinstance(method, DirectConfig | ImplicitQConfig)
        paired = isinstance(method, DirectConfig) and method.loss != "kto"
        own = counts.typical_response or config.collect.max_new_tokens
        return _works(counts, size, method.batch_size, (1 + paired, own), method.token_budget)
    update = method.update  # type: ignore[union-attr]
    learnt = 1 if isinstance(method, ExpertConfig) else rollout.n_samples
    trees = rollout.n_prompts // update.n_minibatches
    return _works(counts, size, trees, (learnt, rollout.max_new_tokens), update.token_budget)


def _works(counts: Counts, size: ModelSize, n_trees: int, branches: tuple[int, int], token_budget: int) -> list[Work]:
    """Micro-batches of an optimiser step over so many prompts: of short texts, of long ones, or both where there are both.

    Args:
        branches: responses of a prompt, and the tokens of each.
    """
    n_branches, n_new = branches
    prompt = counts.typical_prompt or counts.longest_prompt
    longest = counts.longest_prompt + n_branches * n_new
    n_tokens = min(max(token_budget, longest), n_trees * (prompt + n_branches * n_new))
    most = MOST_NARROW_KEYS if size.narrow else MOST_KEYS
    n_keys, longest_keys = prompt + n_new, counts.longest_prompt + n_new
    # pieces of like size are padded to the longest of a group
    found = [Work(n_tokens, n_keys=round(PADDED * n_keys))] if n_keys <= most else []
    return found + ([Work(n_tokens)] if longest_keys > most else [])
