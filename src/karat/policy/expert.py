"""Expert iteration: sample n responses, keep the best, imitate it, begin again.

Reads top to bottom in the order things happen. Gets scores as a `ScoreFn` and knows nothing about reward models.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from karat.errors import InputError
from karat.lm.load import LoadedLM
from karat.lm.loop import Reporter, TrainState, linear_warmup_decay
from karat.lm.loop_identity import identity_of
from karat.lm.losses import total_nll
from karat.lm.narrow import tolerance
from karat.lm.trees import Tree
from karat.policy.actor import Policy, build_policy, policy_logprobs
from karat.policy.beside import Beside
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
from karat.policy.method_settings import ExpertConfig
from karat.policy.metrics import rollout_metrics
from karat.policy.rollout import check_start_at_reference, collect_rollout, paid_scores
from karat.policy.selection import best_indices
from karat.policy.watcher import Watcher
from karat.records import Prompt, ScoreFn
from karat.seeding import child_seed, torch_generator


def train_expert(
    lm: LoadedLM,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    config: ExpertConfig,
    *,
    seed: int,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
    watcher: Watcher | None = None,
    evaluate: Evaluate | None = None,
    beside: Beside | None = None,
) -> PolicyResult:
    """Train a policy to write what it would have chosen as best of n.

        π ← argmax_π E_{y ~ best of n of the policy before}[log π(y|x)]

    Arguments and errors are those of `ppo.train_ppo`; of `beside`, only `paid_by` is used. Where the imitation is exact, k rounds of best of n are best of
    n^k of the reference (`overopt.best_of_n_kl` has its KL).

    Source: Anthony et al. 2017, arXiv:1705.08439; Dong et al. 2023, arXiv:2304.06767 (RAFT).
    """
    # 1. the networks and their optimiser
    if not prompts:
        raise InputError("expert iteration: found no prompts; expected at least one")
    inputs = {"prompts": prompt_ids(prompts)} | (beside or Beside()).inputs
    identity = identity_of(config, seed, inputs, lm.model)
    policy = build_policy(lm)
    update = config.update
    state = policy_state(lm, learning_rate=update.learning_rate, adam_eps=update.adam_eps, controllers={})

    def step(iteration: int) -> dict[str, float]:
        return expert_iteration(policy, state, prompts, score_fn, config, iteration=iteration, seed=seed)

    # 2. the iterations
    result = run_course(
        "expert_iteration",
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


def expert_iteration(
    policy: Policy,
    state: TrainState,
    prompts: Sequence[Prompt],
    score_fn: ScoreFn,
    config: ExpertConfig,
    *,
    iteration: int,
    seed: int,
) -> dict[str, float]:
    """One rollout, the best of each prompt, and the imitation; every draw is a function of (seed, iteration)."""
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
    # 2. the best of each prompt
    paid = paid_scores(rollout, config.reward)
    groups = paid.unflatten(0, (-1, rollout.n_samples))
    chosen = best_indices(groups)
    trees = [Tree(tree.prompt, (tree.branches[i],)) for tree, i in zip(rollout.trees, chosen.tolist(), strict=True)]
    # 3. epochs of minibatches
    started = time.perf_counter()
    stats = UpdateStats()
    own_logprobs = partial(policy_logprobs, policy.lm, temperature=config.rollout.temperature)

    def minibatch(indices: Sequence[int]) -> Minibatch:
        return packed_minibatch(
            trees, indices, n_samples=1, token_budget=config.update.token_budget, device=paid.device
        )

    def losses(part: Minibatch, name: str) -> Iterator[Tensor]:
        del name
        for batch in part.batches:
            logprobs = own_logprobs(batch)
            note_logprobs(stats, logprobs)
            total = total_nll(logprobs)
            stats.data_loss += float(total.detach())
            yield total / part.denominator
        stats.n_data_tokens += part.n_tokens

    rate = linear_warmup_decay(
        iteration,
        n_steps=config.n_iterations,
        peak=config.update.learning_rate,
        n_warmup=config.update.lr_warmup_iterations,
    )
    run_epochs(
        state,
        stats,
        Pass(len(trees), minibatch, losses, own_logprobs),
        config.update,
        learning_rates={POLICY: rate},
        generator=torch_generator(seed, "ppo", "minibatches", iteration),
        watch_kl=False,
    )
    # 4. checks and metrics
    kl = kl_summary(rollout.logprobs, rollout.ref_logprobs, rollout.response_mask)
    metrics = rollout_metrics(rollout, paid, kl) | stats.metrics(with_policy=False)
    metrics |= check_steps(state, config.update.max_skipped_frac)
    metrics |= {"score/best_mean": float(groups.amax(1).mean()), "update/learning_rate": rate}
    metrics |= {f"seconds/{part}": spent for part, spent in rollout.seconds.items()}
    return metrics | {"seconds/update": time.perf_counter() - started}
