"""The update on one rollout: epochs, minibatches (one optimiser step each), micro-batches of whole trees.

Knows networks, objectives and the optimiser step; knows nothing about prompts, scores or how rewards were made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from karat.errors import InvariantError
from karat.lm.logprobs import response_logprobs
from karat.lm.loop import TrainState, optimiser_step
from karat.lm.trees import TreeBatch, flat_of
from karat.policy.actor import ActorCritic, pack, token_scores, token_values
from karat.policy.advantages import Advantages
from karat.policy.objectives import ppo_policy_loss, ppo_value_loss
from karat.policy.rollout import Rollout
from karat.policy.settings import PPOConfig

POLICY, CRITIC = "policy", "critic"


class StepCounts:
    """How often each optimiser was asked to step, and how often it skipped; part of the checkpoint."""

    def __init__(self) -> None:
        self.attempted: dict[str, int] = {}
        self.skipped: dict[str, int] = {}

    def add(self, name: str, *, skipped: bool) -> None:
        """One more request to the optimiser of this name."""
        self.attempted[name] = self.attempted.get(name, 0) + 1
        self.skipped[name] = self.skipped.get(name, 0) + skipped

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"attempted": dict(self.attempted), "skipped": dict(self.skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        self.attempted, self.skipped = dict(state["attempted"]), dict(state["skipped"])


@dataclass
class UpdateStats:
    """Running sums over the minibatches of one update; every mean is over counted tokens."""

    n_tokens: float = 0.0
    """Counted tokens of all minibatches: each token once an epoch."""
    policy_loss: float = 0.0
    """Sum over tokens of the clipped policy loss."""
    value_loss: float = 0.0
    """Sum over tokens of the value loss."""
    n_clipped: float = 0.0
    """Tokens whose ratio was clipped."""
    n_value_clipped: float = 0.0
    """Tokens whose value was clipped."""
    approx_kl: float = 0.0
    """Sum over tokens of the estimated KL from the rollout's policy, in nats."""
    ratio_max: float = 0.0
    """Largest ratio of new to old probability at any token."""
    ratio_error_first: float | None = None
    """Largest |ratio − 1| before the first optimiser step, when it should be 0; None = the policy was not updated."""
    grad_norms: list[float] = field(default_factory=list)
    """Gradient norm of each optimiser step before clipping; not finite = the step was skipped."""
    n_minibatches: int = 0
    """Minibatches so far, one step of each optimiser."""
    ended_early: bool = False
    """True = the estimated KL passed its limit, and the remaining minibatches were left out."""

    def metrics(self, *, with_policy: bool) -> dict[str, float]:
        """Means for the log; policy figures are left out where the policy was not updated."""
        n = max(self.n_tokens, 1.0)
        finite = [norm for norm in self.grad_norms if math.isfinite(norm)]
        result = {
            "value/loss": self.value_loss / n,
            "value/clip_frac": self.n_value_clipped / n,
            "update/n_optimiser_steps": float(self.n_minibatches),
            "update/ended_early": float(self.ended_early),
            "update/finite_grad_frac": len(finite) / max(len(self.grad_norms), 1),
        }
        if finite:
            result["update/grad_norm"] = sum(finite) / len(finite)
        if with_policy:
            result |= {
                "policy/loss": self.policy_loss / n,
                "policy/clip_frac": self.n_clipped / n,
                "policy/approx_kl": self.approx_kl / n,
                "policy/ratio_max": self.ratio_max,
            }
            if self.ratio_error_first is not None:
                result["policy/ratio_error_first"] = self.ratio_error_first
        return result


@dataclass(frozen=True)
class Minibatch:
    """Some prompts of a rollout with all their responses, cut into micro-batches."""

    batches: list[TreeBatch]
    """Packed micro-batches; their branch numbers count the rows of this minibatch."""
    rows: Tensor
    """Rollout row of each of those branches."""
    n_tokens: int
    """Counted tokens: the denominator of the losses."""


@dataclass(frozen=True)
class _Update:
    """What all minibatches of one update share."""

    actor: ActorCritic
    rollout: Rollout
    targets: Advantages
    config: PPOConfig
    train_policy: bool
    stats: UpdateStats


def update_on_rollout(
    actor: ActorCritic,
    state: TrainState,
    rollout: Rollout,
    targets: Advantages,
    config: PPOConfig,
    *,
    learning_rates: Mapping[str, float],
    generator: torch.Generator,
    train_policy: bool = True,
) -> UpdateStats:
    """Epochs × minibatches optimiser steps towards higher advantages and better values.

    Args:
        state: optimisers "policy" (and "critic", if it is a separate one) and a `StepCounts` as controller "steps".
        targets: advantages (whitened or not) and returns of the rollout.
        learning_rates: by optimiser name, constant within the update.
        generator: deals the prompts into minibatches anew in each epoch.
        train_policy: False = only the critic learns (warm-up).
    Raises: InvariantError if log-probabilities before the first step are not those of the rollout.
    """
    counts = state.controllers["steps"]
    assert isinstance(counts, StepCounts)
    update = _Update(actor, rollout, targets, config, train_policy, UpdateStats())
    stats = update.stats
    names = [POLICY] if actor.critic is None else [POLICY, CRITIC] if train_policy else [CRITIC]
    for _ in range(config.update.n_epochs):
        order = torch.randperm(len(rollout.trees), generator=generator)
        for part in order.tensor_split(config.update.n_minibatches):
            minibatch = cut_minibatch(rollout, part.tolist(), config.update.token_budget)
            before = stats.approx_kl
            for name in names:
                norm = optimiser_step(
                    state,
                    name,
                    minibatch_losses(update, minibatch, name),
                    max_grad_norm=config.update.max_grad_norm,
                    learning_rate=learning_rates[name],
                )
                stats.grad_norms.append(norm)
                counts.add(name, skipped=not math.isfinite(norm))
            stats.n_minibatches += 1
            stats.n_tokens += minibatch.n_tokens
            limit = config.update.max_approx_kl
            if train_policy and limit is not None and (stats.approx_kl - before) / minibatch.n_tokens > limit:
                stats.ended_early = True
                return stats
    return stats


def cut_minibatch(rollout: Rollout, tree_indices: Sequence[int], token_budget: int) -> Minibatch:
    """The given trees of a rollout, packed; all responses of a prompt stay in one tree."""
    trees = [rollout.trees[i] for i in tree_indices]
    k = rollout.n_samples
    device = rollout.logprobs.device
    rows = torch.tensor([i * k + j for i in tree_indices for j in range(k)], device=device)
    n_tokens = sum(len(branch) for tree in trees for branch in tree.branches)
    return Minibatch(pack(trees, token_budget, device), rows, n_tokens)


def minibatch_losses(update: _Update, minibatch: Minibatch, name: str) -> Iterator[Tensor]:
    """The loss of each micro-batch for one optimiser, divided by the minibatch's tokens; fills the statistics.

    A generator, so that only one micro-batch's graph is alive at a time.
    """
    actor, temperature = update.actor, update.config.rollout.temperature
    first = update.train_policy and name == POLICY and update.stats.n_minibatches == 0
    for batch in minibatch.batches:
        if name == CRITIC or not update.train_policy:
            yield _value_part(update, minibatch, batch, token_values(actor, batch))
        elif actor.critic is not None:
            logprobs = response_logprobs(actor.lm.model, batch, temperature=temperature).logprobs
            yield _policy_part(update, minibatch, batch, logprobs, first=first)
        else:
            scores = token_scores(actor, batch, temperature=temperature)
            policy_loss = _policy_part(update, minibatch, batch, scores.logprobs, first=first)
            value_loss = _value_part(update, minibatch, batch, scores.values)
            yield policy_loss + update.config.value.vf_coef * value_loss
    if first:
        _check_first_ratio(update.stats, update.config)


def _policy_part(update: _Update, minibatch: Minibatch, batch: TreeBatch, logprobs: Tensor, *, first: bool) -> Tensor:
    stats, settings = update.stats, update.config.update
    found = ppo_policy_loss(
        logprobs,
        flat_of(update.rollout.logprobs[minibatch.rows], batch),
        flat_of(update.targets.advantages[minibatch.rows], batch),
        torch.ones_like(logprobs, dtype=torch.bool),
        denominator=minibatch.n_tokens,
        clip_range=settings.clip_range,
        dual_clip=settings.dual_clip,
    )
    stats.policy_loss += float(found.loss.detach()) * minibatch.n_tokens
    stats.n_clipped += float(found.n_clipped)
    stats.approx_kl += float(found.approx_kl_sum)
    stats.ratio_max = max(stats.ratio_max, float(found.ratio_max))
    if first:
        stats.ratio_error_first = max(stats.ratio_error_first or 0.0, float(found.ratio_error))
    return found.loss


def _value_part(update: _Update, minibatch: Minibatch, batch: TreeBatch, values: Tensor) -> Tensor:
    found = ppo_value_loss(
        values,
        flat_of(update.rollout.values[minibatch.rows], batch),
        flat_of(update.targets.returns[minibatch.rows], batch),
        torch.ones_like(values, dtype=torch.bool),
        denominator=minibatch.n_tokens,
        clip_range=update.config.value.clip_range,
    )
    update.stats.value_loss += float(found.loss.detach()) * minibatch.n_tokens
    update.stats.n_value_clipped += float(found.n_clipped)
    return found.loss


def _check_first_ratio(stats: UpdateStats, config: PPOConfig) -> None:
    """Runs after the last micro-batch of the first minibatch, before its optimiser step."""
    error = stats.ratio_error_first
    if error is None or not error <= config.update.ratio_tolerance:
        raise InvariantError(
            f"PPO: before the first update of a rollout the ratio differs from 1 by {error}; expected at most "
            f"{config.update.ratio_tolerance}. Old and new log-probabilities come from different computations (dropout, "
            "positions, temperature or precision); in half precision raise update.ratio_tolerance"
        )


def check_optimiser_steps(state: TrainState, *, expected: int | None) -> None:
    """Raise InvariantError unless every optimiser made the steps that the recipe asked for.

    Compares the optimisers' own counters with the requests minus the skipped ones; and, unless None, the requests of
    the busiest optimiser with `expected` = iterations × epochs × minibatches.
    """
    counts = state.controllers["steps"]
    assert isinstance(counts, StepCounts)
    for name, optimiser in state.optimisers.items():
        made = max((int(entry["step"]) for entry in optimiser.state.values()), default=0)
        asked, skipped = counts.attempted.get(name, 0), counts.skipped.get(name, 0)
        if made != asked - skipped:
            raise InvariantError(
                f"PPO: the {name} optimiser made {made} steps; expected {asked} minibatches less {skipped} skipped ones"
            )
    busiest = max(counts.attempted.values(), default=0)
    if expected is not None and busiest != expected:
        raise InvariantError(
            f"PPO: {busiest} optimiser steps were asked for; expected {expected} = iterations × epochs × minibatches"
        )
