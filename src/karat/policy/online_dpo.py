"""Online DPO: the recipe of learning from comparisons among the policy's own responses, made by the score function.

Reads top to bottom in the order things happen. Gets scores as a `ScoreFn` and knows nothing about reward models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from karat.errors import InputError
from karat.lm import parallel
from karat.lm.load import LoadedLM
from karat.lm.loop import Reporter, TrainState, linear_warmup_decay
from karat.lm.loop_identity import identity_of
from karat.lm.narrow import tolerance
from karat.lm.trees import Tree, TreeBatch
from karat.policy.actor import Policy, build_policy, policy_logprobs
from karat.policy.beside import Beside, check_beside, data_losses
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
    check_optimiser_steps,
    check_steps,
    note_logprobs,
    packed_minibatch,
    run_epochs,
)
from karat.policy.kl import kl_summary
from karat.policy.method_settings import OnlineDPOConfig
from karat.policy.metrics import rollout_metrics
from karat.policy.pair_batches import ComparedTrees, PairObjective, pair_batch_loss
from karat.policy.rollout import Rollout, check_start_at_reference, collect_rollout, paid_scores
from karat.policy.selection import scored_pairs
from karat.policy.update import ExtraLosses, no_extra
from karat.policy.watcher import Watcher
from karat.records import Prompt, ScoreFn
from karat.seeding import child_seed, torch_generator


def train_online_dpo(
    lm: LoadedLM,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    config: OnlineDPOConfig,
    *,
    seed: int,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
    watcher: Watcher | None = None,
    evaluate: Evaluate | None = None,
    beside: Beside | None = None,
) -> PolicyResult:
    """Train a policy by DPO on fresh pairs of its own responses, against itself as it started.

    Arguments and errors are those of `ppo.train_ppo`; of `beside`, only demonstrations are used.

    Source: Guo et al. 2024, arXiv:2402.04792 (online DPO with an annotator).
    Differs: the annotator is a score function; with soft labels its verdict enters as a probability, not as a draw.
    """
    beside = beside or Beside()
    # 1. the networks and their optimiser
    if not prompts:
        raise InputError("online_dpo: found no prompts; expected at least one")
    check_beside(beside, ptx_coef=config.update.ptx_coef, constraint=None)
    identity = identity_of(config, seed, {"prompts": prompt_ids(prompts)} | beside.inputs, lm.model)
    policy = build_policy(lm)
    update = config.update
    state = policy_state(lm, learning_rate=update.learning_rate, adam_eps=update.adam_eps, controllers={})

    def step(iteration: int) -> dict[str, float]:
        return online_dpo_iteration(
            policy, state, prompts, score_fn, config, iteration=iteration, seed=seed, beside=beside
        )

    # 2. the iterations
    result = run_course(
        "online_dpo",
        lm,
        state,
        step,
        Rhythm(config.n_iterations, config.checkpoint_every, config.evaluate_every),
        around=Around(directory, reporters, watcher, evaluate),
        identity=identity,
    )
    # 3. the recipe did what it says
    check_optimiser_steps(state, expected=state.step * config.steps_per_iteration)
    return result


def online_dpo_iteration(
    policy: Policy,
    state: TrainState,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    config: OnlineDPOConfig,
    *,
    iteration: int,
    seed: int,
    beside: Beside,
) -> dict[str, float]:
    """One rollout, its pairs, and the update on them; every draw is a function of (seed, iteration)."""
    # 1. sample and score
    rollout = collect_rollout(
        policy,
        [prompts[i] for i in prompt_batch(len(prompts), config.rollout.n_prompts, iteration, seed)],
        score_fn,
        settings=config.rollout,
        token_budget=config.update.token_budget,
        seed=child_seed(seed, "ppo", "sample", iteration),
    )
    if iteration == 0:
        check_start_at_reference(rollout, tolerance(policy.lm.model, config.update.ratio_tolerance))
    # 2. pairs
    paid = paid_scores(rollout, config.reward)
    compared = compared_responses(rollout, paid, config)
    # 3. epochs of minibatches
    started = time.perf_counter()
    extra = data_losses(policy.lm, beside, config.update, iteration=iteration, seed=seed)
    work = PairUpdate(policy, compared, config, UpdateStats(), PairStats(), extra or no_extra)
    rate = linear_warmup_decay(
        iteration,
        n_steps=config.n_iterations,
        peak=config.update.learning_rate,
        n_warmup=config.update.lr_warmup_iterations,
    )
    run_epochs(
        state,
        work.stats,
        Pass(len(compared.trees), work.minibatch, work.losses, work.logprobs),
        config.update,
        learning_rates={POLICY: rate},
        generator=torch_generator(seed, "ppo", "minibatches", iteration),
        watch_kl=False,
    )
    work.seen.put_together()
    # 4. checks and metrics
    kl = kl_summary(rollout.logprobs, rollout.ref_logprobs, rollout.response_mask)
    metrics = rollout_metrics(rollout, paid, kl) | work.stats.metrics(with_policy=False) | work.seen.metrics()
    metrics |= check_steps(state, config.update.max_skipped_frac)
    metrics |= {"kl/coef": config.reward.kl_coef, "update/learning_rate": rate}
    metrics |= {f"seconds/{part}": spent for part, spent in rollout.seconds.items()}
    return metrics | {"seconds/update": time.perf_counter() - started}


@dataclass(frozen=True)
class PairUpdate:
    """What all minibatches of one update share, and their losses."""

    policy: Policy
    """What is trained."""
    compared: ComparedTrees
    """The pairs."""
    config: OnlineDPOConfig
    """The method."""
    stats: UpdateStats
    """Is filled."""
    seen: PairStats
    """Is filled."""
    extra: ExtraLosses = no_extra
    """Losses beside the pairs."""

    def minibatch(self, indices: Sequence[int]) -> Minibatch:
        """The trees of the given prompts."""
        return packed_minibatch(
            self.compared.trees,
            indices,
            n_samples=self.compared.n_branches,
            token_budget=self.config.update.token_budget,
            device=self.policy.lm.model.device,
        )

    @property
    def logprobs(self) -> Callable[[TreeBatch], Tensor]:
        """log π of a micro-batch's tokens."""
        return partial(policy_logprobs, self.policy.lm, temperature=self.config.rollout.temperature)

    def losses(self, part: Minibatch, name: str) -> Iterator[Tensor]:
        """The loss of each micro-batch, divided by the minibatch's comparisons; fills the statistics."""
        del name
        k, config = self.compared.n_branches, self.config
        indices = (part.rows.view(-1, k)[:, 0] // k).tolist()
        n_pairs = len(indices) * self.compared.n_compared
        for batch in part.batches:
            logprobs = self.logprobs(batch)
            note_logprobs(self.stats, logprobs)
            found = pair_batch_loss(
                self.compared,
                indices,
                batch,
                logprobs=logprobs,
                ref_logprobs=None,
                objective=PairObjective(config.loss, config.reward.kl_coef),
                denominator=n_pairs,
            )
            self.seen.add(float(found.loss.detach()) * n_pairs, float(found.n_right), float(found.margin_sum))
            yield found.loss
        self.seen.n += n_pairs
        yield from self.extra(self.stats)


class PairStats:
    """Running sums over the comparisons of one update; but for `n`, of this process's until `put_together`."""

    def __init__(self) -> None:
        self.n = 0
        self.loss = self.n_right = self.margin = 0.0

    def add(self, loss: float, n_right: float, margin: float) -> None:
        """Sums of one micro-batch."""
        self.loss, self.n_right, self.margin = self.loss + loss, self.n_right + n_right, self.margin + margin

    def put_together(self) -> None:
        """Replace this process's sums by those of all processes."""
        self.loss, self.n_right, self.margin = parallel.totals([self.loss, self.n_right, self.margin])

    def metrics(self) -> dict[str, float]:
        """Means over comparisons."""
        n = max(self.n, 1)
        return {
            "pairs/loss": self.loss / n,
            "pairs/right_frac": self.n_right / n,
            "pairs/margin_mean": self.margin / n,
        }


def compared_responses(rollout: Rollout, scores: Tensor, config: OnlineDPOConfig) -> ComparedTrees:
    """The pairs of a rollout as trees: two branches a prompt for extremes, all branches for all pairs."""
    k = rollout.n_samples
    pairs = scored_pairs(scores.unflatten(0, (-1, k)), config.pairs)
    prob = torch.sigmoid(pairs.difference) if config.labels == "soft" else None
    ref = torch.where(rollout.response_mask, rollout.ref_logprobs, torch.zeros_like(rollout.ref_logprobs)).sum(1)
    n_prompts = len(rollout.trees)
    if config.pairs == "all":
        better, worse = (rows.view(n_prompts, -1) % k for rows in (pairs.better, pairs.worse))
        return ComparedTrees(
            rollout.trees, better, worse, None if prob is None else prob.view(n_prompts, -1), ref.view(n_prompts, k)
        )
    trees = tuple(
        Tree(tree.prompt, (tree.branches[i % k], tree.branches[j % k]))
        for tree, i, j in zip(rollout.trees, pairs.better.tolist(), pairs.worse.tolist(), strict=True)
    )
    first = torch.zeros(n_prompts, 1, dtype=torch.long, device=scores.device)
    ref_sums = torch.stack([ref[pairs.better], ref[pairs.worse]], dim=1)
    return ComparedTrees(trees, first, first + 1, None if prob is None else prob.unsqueeze(1), ref_sums)
