"""PPO: the recipe, from prompts and a score function to a policy that earns more without leaving its reference.

Reads top to bottom in the order things happen. Gets scores as a `ScoreFn` and knows nothing about reward models.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from karat.errors import ConfigError, InputError, InvariantError
from karat.lm.adapters import train_adapters, trunk_beside
from karat.lm.load import LoadedLM
from karat.lm.logprobs import trunk_of
from karat.lm.loop import Reporter, TrainState, linear_warmup_decay
from karat.lm.loop_identity import identity_of
from karat.lm.narrow import tolerance
from karat.policy.actor import ActorCritic, build_actor
from karat.policy.advantages import Advantages, gae_advantages
from karat.policy.beside import (
    Beside,
    check_beside,
    data_losses,
    dense_metrics,
    dense_rewards,
    response_costs,
)
from karat.policy.controllers import AdaptiveKL, FixedKL
from karat.policy.course import Around, Evaluate, Rhythm, prompt_batch, prompt_ids, run_course
from karat.policy.epochs import CRITIC, POLICY, StepCounts, check_optimiser_steps, check_steps
from karat.policy.kl import kl_summary
from karat.policy.metrics import rollout_metrics
from karat.policy.rollout import Rollout, check_start_at_reference, collect_rollout, paid_scores
from karat.policy.settings import PPOConfig
from karat.policy.shaping import token_rewards
from karat.policy.update import update_on_rollout
from karat.policy.watcher import Watcher
from karat.records import Prompt, ScoreFn
from karat.seeding import child_seed, torch_generator
from karat.tensors import whiten


@dataclass(frozen=True)
class PPOResult:
    """What a run of PPO ended with; the policy itself was trained in place."""

    actor: ActorCritic
    """Policy, critic and reference as they ended."""
    n_iterations: int
    """Finished iterations."""
    stop_reason: str | None
    """Which rule ended the run early; None = it ran to the end."""
    best_step: int | None
    """Iteration whose policy was best by the watcher; None = nothing was compared."""
    best_path: Path | None
    """Where that policy was saved, if it was."""
    n_skipped: int
    """Optimiser steps skipped because a gradient was not finite."""
    last_metrics: Mapping[str, float]
    """Metrics of the last iteration run here; empty when there was nothing left to run."""


def train_ppo(
    lm: LoadedLM,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    config: PPOConfig,
    *,
    seed: int,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
    watcher: Watcher | None = None,
    evaluate: Evaluate | None = None,
    critic: nn.Module | None = None,
    beside: Beside | None = None,
) -> PPOResult:
    """Train a policy by PPO with a KL penalty against itself as it started.

        maximise  E[score(x, y)] − β·KL(π(·|x) ‖ π_ref(·|x))

    Args:
        lm: the policy, trained in place: loaded for training, or with LoRA adapters, and as yet untrained by PPO (it is
            the reference).
        prompts: read in a shuffled order, again and again.    score_fn: scores of decoded responses.
        seed: decides every draw; with the same inputs two runs are equal to the bit on a CPU.
        directory: checkpoints; an interrupted run called again with equal arguments continues. None = none.
        reporters: get the metrics of each iteration (docs/ppo.md defines them).
        watcher: keeps the best policy and stops by its rules.
        evaluate: called before the first and after every `evaluate_every`-th iteration and after the last.
        critic: trunk for a separate critic (a reward model's, say), trained in place, of one with adapters these alone;
            None = a copy of the policy, or with LoRA a copy of its adapters on the same frozen weights.
        beside: a cost to keep below a limit, rewards inside a response, demonstrations for `update.ptx_coef`.
    Returns: PPOResult.
    Raises: InvariantError where the run is not what it claims; ConfigError, InputError, LedgerError as their names say.
    Source: Ziegler et al. 2019, arXiv:1909.08593; Huang et al. 2024, arXiv:2403.17031; docs/decisions/0002.
    """
    beside = beside or Beside()
    # 1. the networks and their optimisers
    _check_inputs(prompts, config, critic, beside)
    inputs = {"prompts": prompt_ids(prompts)} | beside.inputs
    identity = identity_of(config, seed, inputs, lm.model, critic)
    actor = build_actor(
        lm,
        critic=_critic_trunk(lm, config, critic),
        zero_head=config.value.zero_head,
        generator=torch_generator(seed, "ppo", "value head"),
    )
    controllers = {"kl": config.reward.controller(), "steps": StepCounts()}
    if config.constraint is not None:
        controllers["cost"] = config.constraint.multiplier()
    state = _train_state(actor, config, controllers)

    def step(iteration: int) -> dict[str, float]:
        return ppo_iteration(actor, state, prompts, score_fn, config, iteration=iteration, seed=seed, beside=beside)

    # 2. the iterations
    ended = run_course(
        "ppo",
        lm,
        state,
        step,
        Rhythm(config.n_iterations, config.checkpoint_every, config.evaluate_every),
        around=Around(directory, reporters, watcher, evaluate),
        identity=identity,
    )
    # 3. the recipe did what it says
    ended_early = config.update.max_approx_kl is not None
    check_optimiser_steps(state, expected=None if ended_early else state.step * config.steps_per_iteration)
    return PPOResult(
        actor, ended.n_steps, ended.stop_reason, ended.best_step, ended.best_path, ended.n_skipped, ended.last_metrics
    )


def ppo_iteration(
    actor: ActorCritic,
    state: TrainState,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    config: PPOConfig,
    *,
    iteration: int,
    seed: int,
    beside: Beside,
) -> dict[str, float]:
    """One rollout and the update on it; every draw is a function of (seed, iteration)."""
    controller = state.controllers["kl"]
    assert isinstance(controller, FixedKL | AdaptiveKL)
    # 1. sample and score
    chosen = prompt_batch(len(prompts), config.rollout.n_prompts, iteration, seed)
    rollout = collect_rollout(
        actor,
        [prompts[i] for i in chosen],
        score_fn,
        settings=config.rollout,
        token_budget=config.update.token_budget,
        seed=child_seed(seed, "ppo", "sample", iteration),
        with_last_values=config.reward.bootstrap_truncated,
    )
    kl = kl_summary(rollout.logprobs, rollout.ref_logprobs, rollout.response_mask)
    if iteration == 0:
        check_start_at_reference(rollout, tolerance(actor.lm.model, config.update.ratio_tolerance))
    # 2. rewards and advantages
    coef = controller.coef
    inside = dense_rewards(rollout, beside, lm=actor.lm)
    paid = paid_scores(rollout, config.reward, inside)
    costs = response_costs(state, rollout, beside)
    rewards = rollout_rewards(rollout, costs.charged(paid), config, kl_coef=coef, inside=inside)
    if iteration == 0 and config.value.start_at_mean:
        rollout = start_at_mean(actor, rollout, rewards)
    targets = rollout_advantages(rollout, rewards, config)
    # 3. epochs of minibatches
    started = time.perf_counter()
    learning_rates = _learning_rates(config, iteration)
    train_policy = iteration >= config.value.warmup_iterations
    stats = update_on_rollout(
        actor,
        state,
        rollout,
        targets,
        config,
        learning_rates=learning_rates,
        generator=torch_generator(seed, "ppo", "minibatches", iteration),
        train_policy=train_policy,
        extra=data_losses(actor.lm, beside, config.update, iteration=iteration, seed=seed),
    )
    # 4. β, checks and metrics
    controller.update(kl.k1_per_sequence, config.n_sequences)
    metrics = rollout_metrics(rollout, paid, kl, targets) | stats.metrics(with_policy=train_policy, with_value=True)
    metrics |= dense_metrics(inside) | costs.settle(state) | check_steps(state, config.update.max_skipped_frac)
    metrics |= {"kl/coef": coef, "update/learning_rate": learning_rates[POLICY]}
    metrics |= {f"seconds/{part}": spent for part, spent in rollout.seconds.items()}
    return metrics | {"seconds/update": time.perf_counter() - started}


def rollout_rewards(
    rollout: Rollout, paid: Tensor, config: PPOConfig, *, kl_coef: float, inside: Tensor | None = None
) -> Tensor:
    """Token rewards [B, T]: the score, spread as `inside` says, and the KL penalty, whitened without a shift of mean if asked."""
    mask = rollout.response_mask
    rewards = token_rewards(paid, rollout.logprobs - rollout.ref_logprobs, mask, kl_coef=kl_coef, inside=inside)
    return whiten(rewards, mask, center=False) if config.reward.whiten_rewards else rewards


def start_at_mean(actor: ActorCritic, rollout: Rollout, rewards: Tensor) -> Rollout:
    """Shift the critic by the mean reward of a response; returns the rollout as that critic would have seen it.

        b ← b + Σ_{i,t} r_{i,t} / B

    From there the advantage of a token is γλ^(T−t)·(score − mean): its sign is right from the first update on. A
    critic that starts at 0 gives every late token an advantage for the mean score alone, whitening then pushes early
    tokens down and late ones up whatever they say, and the policy learns little until the critic has caught up.

    Args:
        rewards: token rewards, 0 where masked.
    Differs: lm-human-preferences normalises the reward model to mean 0 on the reference policy instead, which a score
        function from outside does not allow.
    """
    mean = rewards.sum(1).mean()
    with torch.no_grad():
        actor.value_head.bias += float(mean)  # a number: the bias may be in shards
    values = torch.where(rollout.response_mask, rollout.values + mean, rollout.values)
    last = None if rollout.last_values is None else rollout.last_values + mean
    return replace(rollout, values=values, last_values=last)


def rollout_advantages(rollout: Rollout, rewards: Tensor, config: PPOConfig) -> Advantages:
    """GAE over token rewards, then advantages whitened over the rollout if asked.

    Returns: Advantages; the returns are never whitened, they are what the critic predicts.
    """
    mask = rollout.response_mask
    bootstrap = None
    if config.reward.bootstrap_truncated:
        if rollout.last_values is None:
            raise InvariantError("PPO: bootstrap_truncated needs a rollout with last values; found none")
        bootstrap = torch.where(rollout.stopped_mask, torch.zeros_like(rollout.last_values), rollout.last_values)
    targets = gae_advantages(
        rewards,
        rollout.values,
        mask,
        gamma=config.update.gamma,
        gae_lambda=config.update.gae_lambda,
        bootstrap_values=bootstrap,
    )
    if config.update.whiten_advantages:
        return Advantages(whiten(targets.advantages, mask, center=True), targets.returns)
    return targets


def _check_inputs(prompts: Sequence[Prompt], config: PPOConfig, critic: nn.Module | None, beside: Beside) -> None:
    if not prompts:
        raise InputError("PPO: found no prompts; expected at least one")
    if critic is not None and config.value.critic == "shared":
        raise ConfigError("PPO: found a critic trunk with value.critic = shared; set value.critic = separate")
    check_beside(beside, ptx_coef=config.update.ptx_coef, constraint=config.constraint)


def _critic_trunk(lm: LoadedLM, config: PPOConfig, critic: nn.Module | None) -> nn.Module | None:
    if config.value.critic == "shared":
        return None
    if critic is not None:
        return train_adapters(critic).eval()
    if isinstance(lm.model, PeftModel):
        return train_adapters(trunk_beside(lm.model))
    return copy.deepcopy(trunk_of(lm.model)).requires_grad_(True)


def _train_state(actor: ActorCritic, config: PPOConfig, controllers: dict[str, Any]) -> TrainState:
    """Modules and optimisers; the learning rates are set at every step, `lr_scale` is relative to them."""
    head = list(actor.value_head.parameters())
    policy = [p for p in actor.lm.model.parameters() if p.requires_grad]
    modules: dict[str, nn.Module] = {"policy": actor.lm.model, "value_head": actor.value_head}
    options = {"lr": config.update.learning_rate, "eps": config.update.adam_eps, "fused": True}
    if actor.critic is None:
        groups = [
            {"params": policy, "lr_scale": 1.0},
            {"params": head, "lr_scale": config.value.head_lr_scale},
        ]
        return TrainState(modules, {POLICY: torch.optim.Adam(groups, **options)}, controllers)
    modules["critic"] = actor.critic
    critic = [p for p in actor.critic.parameters() if p.requires_grad]
    optimisers: dict[str, torch.optim.Optimizer] = {
        POLICY: torch.optim.Adam(policy, **options),
        CRITIC: torch.optim.Adam([*critic, *head], **options),
    }
    return TrainState(modules, optimisers, controllers)


def _learning_rates(config: PPOConfig, iteration: int) -> dict[str, float]:
    def annealed(peak: float) -> float:
        return linear_warmup_decay(
            iteration, n_steps=config.n_iterations, peak=peak, n_warmup=config.update.lr_warmup_iterations
        )

    critic = config.value.critic_learning_rate
    policy = config.update.learning_rate
    return {POLICY: annealed(policy), CRITIC: annealed(policy if critic is None else critic)}
