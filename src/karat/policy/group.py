"""RLOO, GRPO and REINFORCE++: the recipe of policy gradients without a critic, with a choice of advantage.

Reads top to bottom in the order things happen. Gets scores as a `ScoreFn` and knows nothing about reward models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.errors import InputError
from karat.lm import parallel
from karat.lm.load import LoadedLM
from karat.lm.loop import Reporter, TrainState, linear_warmup_decay
from karat.lm.loop_identity import identity_of
from karat.lm.narrow import tolerance
from karat.lm.trees import TreeBatch, branch_sums, flat_of
from karat.policy.actor import Policy, build_policy, policy_logprobs
from karat.policy.beside import Beside, check_beside, data_losses, dense_metrics, dense_rewards, response_costs
from karat.policy.controllers import AdaptiveKL, FixedKL
from karat.policy.course import (
    Around,
    Evaluate,
    PolicyResult,
    Rhythm,
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
    note_logprobs,
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
    one_pass = updates_in_one_pass(config)
    # 1. sample and score
    rollout = collect_rollout(
        policy,
        [prompts[i] for i in prompt_batch(len(prompts), config.rollout.n_prompts, iteration, seed)],
        score_fn,
        settings=config.rollout,
        token_budget=config.update.token_budget,
        seed=child_seed(seed, "ppo", "sample", iteration),
        with_logprobs=not one_pass,
    )
    if iteration == 0 and not one_pass:
        check_start_at_reference(rollout, tolerance(policy.lm.model, config.update.ratio_tolerance))
    # 2. advantages
    coef = controller.coef
    inside = dense_rewards(rollout, beside, lm=policy.lm)
    paid = paid_scores(rollout, config.reward, inside)
    costs = response_costs(state, rollout, beside)
    own = torch.zeros_like(rollout.logprobs) if one_pass else None
    earned = Earned(rollout, costs.charged(paid), inside, config, coef)
    # 3. epochs of minibatches
    started = time.perf_counter()
    extra = data_losses(policy.lm, beside, config.update, iteration=iteration, seed=seed)
    work = GroupUpdate(policy, earned, UpdateStats(), extra or no_extra, own)
    rate = linear_warmup_decay(
        iteration,
        n_steps=config.n_iterations,
        peak=config.update.learning_rate,
        n_warmup=config.update.lr_warmup_iterations,
    )
    run_epochs(
        state,
        work.stats,
        Pass(len(rollout.trees), work.minibatch, work.losses, work.logprobs),
        config.update,
        learning_rates={POLICY: rate},
        generator=torch_generator(seed, "ppo", "minibatches", iteration),
    )
    # 4. β, checks and metrics
    if own is not None:
        rollout = replace(rollout, logprobs=torch.stack(parallel.gathered(own)).sum(0).to(own.device))
        if iteration == 0:
            check_start_at_reference(rollout, tolerance(policy.lm.model, config.update.ratio_tolerance))
    kl = kl_summary(rollout.logprobs, rollout.ref_logprobs, rollout.response_mask)
    controller.update(kl.k1_per_sequence, config.n_sequences)
    metrics = rollout_metrics(rollout, paid, kl) | group_metrics(work, paid)
    metrics |= costs.settle(state) | dense_metrics(inside) | check_steps(state, config.update.max_skipped_frac)
    metrics |= {"kl/coef": coef, "update/learning_rate": rate}
    metrics |= {f"seconds/{part}": spent for part, spent in rollout.seconds.items()}
    return metrics | {"seconds/update": time.perf_counter() - started}


def group_metrics(work: GroupUpdate, paid: Float[Tensor, "B"]) -> dict[str, float]:
    """Figures of an update, and how many prompts say nothing because all their responses are paid alike."""
    metrics, stats = work.stats.metrics(), work.stats
    if work.config.choices.kl != "reward":
        metrics["policy/kl_penalty"] = stats.penalty / stats.denominator
    by_prompt = paid.unflatten(0, (-1, work.rollout.n_samples))
    return metrics | {"score/tied_frac": float((by_prompt == by_prompt[:, :1]).all(1).float().mean())}


def updates_in_one_pass(config: GroupConfig) -> bool:
    """Whether the update's own forward pass can be that of the policy that sampled.

    So it is with one optimiser step a rollout, where all ratios are 1, unless something needs log π of other prompts
    before: advantages normalised over the batch of what a KL in the reward leaves, or the entropy of the rollout.
    """
    choices = config.choices
    apart = choices.kl != "reward" or (config.method != "reinforce_pp" and choices.scale != "batch")
    return config.steps_per_iteration == 1 and apart and not config.rollout.exact_entropy


@dataclass(frozen=True)
class Earned:
    """What the responses of a rollout have earned, and what their tokens' advantages are made of."""

    rollout: Rollout
    """The responses."""
    scores: Float[Tensor, "B"]
    """What each is paid in all, less what it is charged."""
    inside: Float[Tensor, "B T"] | None
    """What of it each token earns; None = all at the end."""
    config: GroupConfig
    """The method."""
    kl_coef: float
    """β; enters only where the KL is paid as a reward."""

    def advantages(self, rows: Int[Tensor, " b"], logprobs: Float[Tensor, "b T"]) -> Float[Tensor, "b T"]:
        """The advantage of each token: its own (REINFORCE++), or that of its response.

        Args:
            rows: of whole prompts, in the rollout's order.    logprobs: log π of their tokens when they were drawn.
        Returns: 0 where masked.
        """
        config, choices, n_samples = self.config, self.config.choices, self.rollout.n_samples
        mask, coef = self.rollout.response_mask[rows], self.kl_coef if choices.kl == "reward" else 0.0
        # without a KL in the reward log π may not be known yet
        log_ratio = logprobs - self.rollout.ref_logprobs[rows] if coef else torch.zeros_like(logprobs)
        inside = None if self.inside is None else self.inside[rows]
        rewards = token_rewards(self.scores[rows], log_ratio, mask, kl_coef=coef, inside=inside)
        if config.method == "reinforce_pp":
            return reinforce_pp_advantages(
                rewards, mask, n_samples=n_samples, group_baseline=config.group_baseline,
                normalise=choices.scale == "batch",
            )  # fmt: skip
        groups = rewards.sum(1).unflatten(0, (-1, n_samples))
        found = rloo_advantages(groups) if config.method == "rloo" else grpo_advantages(groups, scale=choices.scale)
        return torch.where(mask, found.flatten().unsqueeze(1), torch.zeros_like(rewards))


@dataclass(frozen=True)
class GroupUpdate:
    """What all minibatches of one update share, and their losses."""

    policy: Policy
    """What is trained."""
    earned: Earned
    """The responses and what they earned."""
    stats: UpdateStats
    """Is filled."""
    extra: ExtraLosses = no_extra
    """Losses beside the rollout."""
    own_logprobs: Float[Tensor, "B T"] | None = None
    """Where log π of this process's responses is put, 0 elsewhere, when the rollout has none; None = it has."""

    @property
    def config(self) -> GroupConfig:
        """The method."""
        return self.earned.config

    @property
    def rollout(self) -> Rollout:
        """The responses."""
        return self.earned.rollout

    @cached_property
    def advantages(self) -> Float[Tensor, "B T"]:
        """Of each token, by what the rollout says of it."""
        everyone = torch.arange(len(self.rollout.scores), device=self.rollout.scores.device)
        return self.earned.advantages(everyone, self.rollout.logprobs)

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

    @property
    def logprobs(self) -> Callable[[TreeBatch], Tensor]:
        """log π of a micro-batch's tokens."""
        return partial(policy_logprobs, self.policy.lm, temperature=self.config.rollout.temperature)

    def losses(self, minibatch: Minibatch, name: str) -> Iterator[Tensor]:
        """The loss of each micro-batch, divided by the minibatch's denominator; fills the statistics."""
        first = self.stats.n_minibatches == 0
        for batch in minibatch.batches:
            logprobs = self.logprobs(batch)
            note_logprobs(self.stats, logprobs)
            if self.own_logprobs is not None:
                self.own_logprobs[minibatch.rows[batch.branch_id[batch.branch_of]], batch.offset_of] = logprobs.detach()
            yield self._loss(minibatch, batch, logprobs, first=first)
        if first:
            check_first_ratio(self.stats, tolerance(self.policy.lm.model, self.config.update.ratio_tolerance))
        yield from self.extra(self.stats)
        del name

    def _loss(self, minibatch: Minibatch, batch: TreeBatch, logprobs: Tensor, *, first: bool) -> Tensor:
        choices = self.config.choices
        recorded = self.rollout.logprobs if self.own_logprobs is None else self.own_logprobs
        old, ref = (flat_of(rows[minibatch.rows], batch) for rows in (recorded, self.rollout.ref_logprobs))
        advantages = flat_of(self._advantages(minibatch, batch), batch)
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
            importance=choices.kl == "loss_k2" or self.config.weigh_k3,
            weights=weights,
        )
        self.stats.penalty += float(penalty.loss.detach()) * minibatch.denominator
        return found.loss + self.earned.kl_coef * penalty.loss

    def _advantages(self, minibatch: Minibatch, batch: TreeBatch) -> Float[Tensor, "m T"]:
        """The advantages of a minibatch's rows; where log π comes now and counts, those of this micro-batch alone.

        A micro-batch holds whole prompts, and one pass is made only where prompts do not count for one another.
        """
        if self.own_logprobs is None or self.config.choices.kl != "reward":
            return self.advantages[minibatch.rows]
        local = batch.branch_id.sort().values
        if not len(local):  # a pass for the other processes' sake
            return self.own_logprobs.new_zeros((len(minibatch.rows), self.own_logprobs.shape[1]))
        rows = minibatch.rows[local]
        found = self.own_logprobs.new_zeros((len(minibatch.rows), self.own_logprobs.shape[1]))
        found[local] = self.earned.advantages(rows, self.own_logprobs[rows])
        return found
