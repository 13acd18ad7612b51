"""RLOO, GRPO and REINFORCE++: the recipe of policy gradients without a critic, with a choice of advantage.

Reads top to bottom in the order things happen. Gets scores as a `ScoreFn` and knows nothing about reward models.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from karat.errors import InputError
from karat.lm.load import LoadedLM
from karat.lm.logprobs import response_logprobs
from karat.lm.loop import Reporter, TrainState, linear_warmup_decay
from karat.lm.trees import TreeBatch, branch_sums, flat_of
from karat.policy.actor import Policy, build_policy
from karat.policy.beside import Beside, check_beside, data_losses, dense_metrics, dense_rewards, response_costs
from karat.policy.controllers import AdaptiveKL, FixedKL
from karat.policy.course import (
    Around,
    Evaluate,
    PolicyResult,
    Rhythm,
    identity_of,
    policy_state,
    prompt_batch,
    prompt_ids,
    run_course,
)
from karat.policy.epochs import (
    POLICY,
    Minibatch,
    Pass,
    UpdateStats,
    check_first_ratio,
    check_optimiser_steps,
    check_steps,
    note_policy_loss,
    packed_minibatch,
    run_epochs,
)
from karat.policy.group_advantages import grpo_advantages, reinforce_pp_advantages, rloo_advantages
from karat.policy.kl import kl_summary
from karat.policy.method_settings import GroupConfig
from karat.policy.metrics import rollout_metrics
from karat.policy.objectives import kl_penalty_loss, ppo_policy_loss
from karat.policy.rollout import Rollout, check_start_at_reference, collect_rollout, paid_scores
from karat.policy.shaping import token_rewards
from karat.policy.update import ExtraLosses, no_extra
from karat.policy.watcher import Watcher
from karat.records import Prompt, ScoreFn
from karat.seeding import child_seed, torch_generator


def train_group(
    lm: LoadedLM,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    config: GroupConfig,
    *,
    seed: int,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
    watcher: Watcher | None = None,
    evaluate: Evaluate | None = None,
    beside: Beside | None = None,
) -> PolicyResult:
    """Train a policy by RLOO, GRPO or REINFORCE++ with a KL penalty against itself as it started.

        maximise  E[score(x, y)] − β·KL(π(·|x) ‖ π_ref(·|x))

    Arguments and errors are those of `ppo.train_ppo`; there is no critic. docs/optimisers.md says where each method's
    fixed point differs from π_ref·e^{score/β}.

    Source: Ahmadian et al. 2024, arXiv:2402.14740; Shao et al. 2024, arXiv:2402.03300; Hu et al. 2025, arXiv:2501.03262.
    """
    beside = beside or Beside()
    # 1. the networks and their optimiser
    if not prompts:
        raise InputError(f"{config.method}: found no prompts; expected at least one")
    _ = config.choices  # contradictions, before any work
    check_beside(beside, ptx_coef=config.update.ptx_coef, constraint=config.constraint)
    identity = identity_of(config, seed, {"prompts": prompt_ids(prompts)} | beside.inputs, lm.model)
    policy = build_policy(lm)
    controllers = {"kl": config.reward.controller()}
    if config.constraint is not None:
        controllers["cost"] = config.constraint.multiplier()
    update = config.update
    state = policy_state(lm, learning_rate=update.learning_rate, adam_eps=update.adam_eps, controllers=controllers)

    def step(iteration: int) -> dict[str, float]:
        return group_iteration(policy, state, prompts, score_fn, config, iteration=iteration, seed=seed, beside=beside)

    # 2. the iterations
    result = run_course(
        config.method,
        lm,
        state,
        step,
        Rhythm(config.n_iterations, config.checkpoint_every, config.evaluate_every),
        around=Around(directory, reporters, watcher, evaluate),
        identity=identity,
    )
    # 3. the recipe did what it says
    ended_early = update.max_approx_kl is not None
    check_optimiser_steps(state, expected=None if ended_early else state.step * config.steps_per_iteration)
    return result


def group_iteration(
    policy: Policy,
    state: TrainState,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    config: GroupConfig,
    *,
    iteration: int,
    seed: int,
    beside: Beside,
) -> dict[str, float]:
    """One rollout and the update on it; every draw is a function of (seed, iteration)."""
    controller = state.controllers["kl"]
    assert isinstance(controller, FixedKL | AdaptiveKL)
    # 1. sample and score
    rollout = collect_rollout(
        policy,
        [prompts[i] for i in prompt_batch(len(prompts), config.rollout.n_prompts, iteration, seed)],
        score_fn,
        settings=config.rollout,
        token_budget=config.update.token_budget,
        seed=child_seed(seed, "ppo", "sample", iteration),
    )
    kl = kl_summary(rollout.logprobs, rollout.ref_logprobs, rollout.response_mask)
    if iteration == 0:
        check_start_at_reference(rollout, config.update.ratio_tolerance)
    # 2. advantages
    coef = controller.coef
    inside = dense_rewards(rollout, beside, lm=policy.lm)
    paid = paid_scores(rollout, config.reward, inside)
    costs = response_costs(state, rollout, beside)
    advantages = group_advantages(rollout, costs.charged(paid), inside, config, kl_coef=coef)
    # 3. epochs of minibatches
    started = time.perf_counter()
    extra = data_losses(policy.lm, beside, config.update, iteration=iteration, seed=seed)
    work = GroupUpdate(policy, rollout, advantages, config, coef, UpdateStats(), extra or no_extra)
    rate = linear_warmup_decay(
        iteration,
        n_steps=config.n_iterations,
        peak=config.update.learning_rate,
        n_warmup=config.update.lr_warmup_iterations,
    )
    run_epochs(
        state,
        work.stats,
        Pass(len(rollout.trees), work.minibatch, work.losses),
        config.update,
        learning_rates={POLICY: rate},
        generator=torch_generator(seed, "ppo", "minibatches", iteration),
    )
    # 4. β, checks and metrics
    controller.update(kl.k1_per_sequence, config.n_sequences)
    metrics = rollout_metrics(rollout, paid, kl) | work.stats.metrics() | costs.settle(state) | dense_metrics(inside)
    metrics |= check_steps(state, config.update.max_skipped_frac)
    if config.choices.kl != "reward":
        metrics["policy/kl_penalty"] = work.stats.penalty / work.stats.denominator
    flat = paid.unflatten(0, (-1, rollout.n_samples))
    metrics["score/tied_frac"] = float((flat == flat[:, :1]).all(1).float().mean())
    metrics |= {"kl/coef": coef, "update/learning_rate": rate}
    metrics |= {f"seconds/{part}": spent for part, spent in rollout.seconds.items()}
    return metrics | {"seconds/update": time.perf_counter() - started}


def group_advantages(
    rollout: Rollout,
    scores: Float[Tensor, "B"],
    inside: Float[Tensor, "B T"] | None,
    config: GroupConfig,
    *,
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """The advantage of each token: its own (REINFORCE++), or that of its response.

    Args:
        scores: what each response is paid in all.    inside: what of it each token earns; None = all at the end.
        kl_coef: β; enters only where the KL is paid as a reward.
    Returns: 0 where masked.
    """
    choices, mask = config.choices, rollout.response_mask
    coef = kl_coef if choices.kl == "reward" else 0.0
    rewards = token_rewards(scores, rollout.logprobs - rollout.ref_logprobs, mask, kl_coef=coef, inside=inside)
    if config.method == "reinforce_pp":
        return reinforce_pp_advantages(
            rewards,
            mask,
            n_samples=rollout.n_samples,
            group_baseline=config.group_baseline,
            normalise=choices.scale == "batch",
        )
    groups = rewards.sum(1).unflatten(0, (-1, rollout.n_samples))
    found = rloo_advantages(groups) if config.method == "rloo" else grpo_advantages(groups, scale=choices.scale)
    return torch.where(mask, found.flatten().unsqueeze(1), torch.zeros_like(rewards))


@dataclass(frozen=True)
class GroupUpdate:
    """What all minibatches of one update share, and their losses."""

    policy: Policy
    """What is trained."""
    rollout: Rollout
    """The responses."""
    advantages: Float[Tensor, "B T"]
    """Of each token."""
    config: GroupConfig
    """The method."""
    kl_coef: float
    """β of this rollout."""
    stats: UpdateStats
    """Is filled."""
    extra: ExtraLosses = no_extra
    """Losses beside the rollout."""

    def minibatch(self, indices: Sequence[int]) -> Minibatch:
        """The given prompts with all their responses, and the method's denominator."""
        whole = packed_minibatch(
            self.rollout.trees,
            indices,
            n_samples=self.rollout.n_samples,
            token_budget=self.config.update.token_budget,
            device=self.rollout.logprobs.device,
        )
        choices, n_responses = self.config.choices, len(whole.rows)
        denominator = {
            "token": whole.n_tokens,
            "sequence": n_responses,
            "length": n_responses * self.config.rollout.max_new_tokens,
        }[choices.normalise]
        n_entries = n_responses if choices.level == "sequence" else whole.n_tokens
        return replace(whole, denominator=float(denominator), n_entries=n_entries)

    def losses(self, minibatch: Minibatch, name: str) -> Iterator[Tensor]:
        """The loss of each micro-batch, divided by the minibatch's denominator; fills the statistics."""
        first = self.stats.n_minibatches == 0
        for batch in minibatch.batches:
            logprobs = response_logprobs(
                self.policy.lm.model, batch, temperature=self.config.rollout.temperature
            ).logprobs
            yield self._loss(minibatch, batch, logprobs, first=first)
        if first:
            check_first_ratio(self.stats, self.config.update.ratio_tolerance)
        yield from self.extra(self.stats)
        del name

    def _loss(self, minibatch: Minibatch, batch: TreeBatch, logprobs: Tensor, *, first: bool) -> Tensor:
        choices = self.config.choices
        old, ref, advantages = (
            flat_of(rows[minibatch.rows], batch)
            for rows in (self.rollout.logprobs, self.rollout.ref_logprobs, self.advantages)
        )
        weights = torch.ones_like(logprobs)
        if choices.normalise == "sequence":
            weights = weights / batch.lengths[batch.branch_of]
        if choices.level == "sequence":
            # one entry a response: its tokens share one advantage, and their weights sum to 1
            advantages = branch_sums(weights * advantages, batch)
            logprobs, old, ref = (branch_sums(x, batch) for x in (logprobs, old, ref))
            weights = torch.ones_like(logprobs)
        every = torch.ones_like(logprobs, dtype=torch.bool)
        # a positive weight may go into the advantage: the clipped loss is homogeneous in it
        found = ppo_policy_loss(
            logprobs,
            old,
            weights * advantages,
            every,
            denominator=minibatch.denominator,
            clip_range=self.config.clip_range,
        )
        note_policy_loss(self.stats, found, denominator=minibatch.denominator, first=first)
        if choices.kl == "reward":
            return found.loss
        penalty = kl_penalty_loss(
            logprobs,
            old,
            ref,
            every,
            estimator="k2" if choices.kl == "loss_k2" else "k3",
            denominator=minibatch.denominator,
            importance=choices.kl == "loss_k2",
            weights=weights,
        )
        self.stats.penalty += float(penalty.loss.detach()) * minibatch.denominator
        return found.loss + self.kl_coef * penalty.loss
