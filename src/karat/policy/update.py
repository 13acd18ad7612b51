"""The update on one rollout: epochs, minibatches (one optimiser step each), micro-batches of whole trees.

Knows networks, objectives and the optimiser step; knows nothing about prompts, scores or how rewards were made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from karat.lm.loop import TrainState
from karat.lm.narrow import tolerance
from karat.lm.trees import TreeBatch, flat_of
from karat.policy.actor import ActorCritic, policy_logprobs, token_scores, token_values
from karat.policy.advantages import Advantages
from karat.policy.epochs import (
    CRITIC,
    POLICY,
    Minibatch,
    Pass,
    UpdateStats,
    check_first_ratio,
    note_logprobs,
    note_policy_loss,
    packed_minibatch,
    read_together,
    run_epochs,
)
from karat.policy.objectives import ppo_policy_loss, ppo_value_loss
from karat.policy.rollout import Rollout
from karat.policy.settings import PPOConfig

ExtraLosses = Callable[[UpdateStats], Iterator[Tensor]]
"""extra(stats): losses added to a minibatch's, each with its own denominator; notes its figures in the statistics."""


def no_extra(stats: UpdateStats) -> Iterator[Tensor]:
    """Nothing beside the rollout."""
    del stats
    yield from ()


@dataclass(frozen=True)
class _Update:
    """What all minibatches of one update share."""

    actor: ActorCritic
    rollout: Rollout
    targets: Advantages
    config: PPOConfig
    train_policy: bool
    stats: UpdateStats
    extra: ExtraLosses = no_extra


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
    extra: ExtraLosses | None = None,
) -> UpdateStats:
    """Epochs × minibatches optimiser steps towards higher advantages and better values.

    Args:
        state: optimisers "policy" (and "critic", if it is a separate one) and a `StepCounts` as controller "steps".
        targets: advantages (whitened or not) and returns of the rollout.
        learning_rates: by optimiser name, constant within the update.
        generator: deals the prompts into minibatches anew in each epoch.
        train_policy: False = only the critic learns (warm-up).
        extra: further losses of the policy's optimiser for each minibatch (ptx).
    Raises: InvariantError if log-probabilities before the first step are not those of the rollout.
    """
    update = _Update(actor, rollout, targets, config, train_policy, UpdateStats(), extra or no_extra)
    names = [POLICY] if actor.critic is None else [POLICY, CRITIC] if train_policy else [CRITIC]
    work = Pass(
        n_units=len(rollout.trees),
        minibatch=lambda indices: cut_minibatch(rollout, indices, config.update.token_budget),
        losses=lambda minibatch, name: minibatch_losses(update, minibatch, name),
        logprobs=partial(policy_logprobs, actor.lm, temperature=config.rollout.temperature) if train_policy else None,
    )
    run_epochs(
        state,
        update.stats,
        work,
        config.update,
        learning_rates=learning_rates,
        generator=generator,
        names=names,
        watch_kl=train_policy,
    )
    return update.stats


def cut_minibatch(rollout: Rollout, tree_indices: Sequence[int], token_budget: int) -> Minibatch:
    """The given trees of a rollout, packed; all responses of a prompt stay in one tree."""
    return packed_minibatch(
        rollout.trees,
        tree_indices,
        n_samples=rollout.n_samples,
        token_budget=token_budget,
        device=rollout.logprobs.device,
    )


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
            logprobs = policy_logprobs(actor.lm, batch, temperature=temperature)
            yield _policy_part(update, minibatch, batch, logprobs, first=first)
        else:
            scores = token_scores(actor, batch, temperature=temperature)
            policy_loss = _policy_part(update, minibatch, batch, scores.logprobs, first=first)
            value_loss = _value_part(update, minibatch, batch, scores.values)
            yield policy_loss + update.config.value.vf_coef * value_loss
    if first:
        check_first_ratio(update.stats, tolerance(actor.lm.model, update.config.update.ratio_tolerance))
    if update.train_policy and name == POLICY:
        yield from update.extra(update.stats)


def _policy_part(update: _Update, minibatch: Minibatch, batch: TreeBatch, logprobs: Tensor, *, first: bool) -> Tensor:
    stats, settings = update.stats, update.config.update
    note_logprobs(stats, logprobs)
    found = ppo_policy_loss(
        logprobs,
        flat_of(update.rollout.logprobs[minibatch.rows], batch),
        flat_of(update.targets.advantages[minibatch.rows], batch),
        torch.ones_like(logprobs, dtype=torch.bool),
        denominator=minibatch.n_tokens,
        clip_range=settings.clip_range,
        dual_clip=settings.dual_clip,
    )
    note_policy_loss(stats, found, denominator=minibatch.denominator, first=first)
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
    loss, n_clipped = read_together(found.loss, found.n_clipped)
    update.stats.value_loss += loss * minibatch.n_tokens
    update.stats.n_value_clipped += n_clipped
    return found.loss
