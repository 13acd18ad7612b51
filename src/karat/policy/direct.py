"""DPO, IPO and KTO: the recipe of learning from judgements that were given, without a reward model and without samples.

Reads top to bottom in the order things happen. Knows nothing about who judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from karat.errors import InputError
from karat.lm import parallel
from karat.lm.load import LoadedLM
from karat.lm.logprobs import response_logprobs
from karat.lm.loop import Reporter, TrainState, linear_warmup_decay, optimiser_step
from karat.lm.loop_identity import identity_of
from karat.lm.trees import Tree, branch_sums
from karat.policy.actor import Policy, build_policy, pack, reference_logprobs
from karat.policy.course import Around, Evaluate, PolicyResult, Rhythm, policy_state, run_course
from karat.policy.epochs import POLICY, StepCounts, check_optimiser_steps, check_steps, my_batches
from karat.policy.method_settings import DirectConfig
from karat.policy.offline_data import LabelledResponse, Preference, dealt, labelled, tree_of
from karat.policy.online_dpo import PairStats
from karat.policy.pair_batches import ComparedTrees, PairObjective, pair_batch_loss, sums_of_trees
from karat.policy.preference_objectives import kto_loss, mismatched_kl
from karat.policy.watcher import Watcher


def train_direct(
    lm: LoadedLM,
    preferences: Sequence[Preference],
    config: DirectConfig,
    *,
    seed: int,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
    watcher: Watcher | None = None,
    evaluate: Evaluate | None = None,
    labels: Sequence[LabelledResponse] = (),
) -> PolicyResult:
    """Train a policy by DPO, IPO or KTO on given comparisons, against itself as it started.

    Args:
        lm: the policy, trained in place; loaded for training, or with LoRA adapters.
        preferences: KTO reads each as two labels.    seed: decides the order of the data.
        labels: of KTO: responses judged by themselves, beside the comparisons or instead of them.
        directory, reporters, watcher, evaluate: as in `ppo.train_ppo`, in optimiser steps.
    Returns: PolicyResult; its steps are optimiser steps.
    Raises: InputError for no data or a response that does not fit the context; LedgerError for another run's checkpoint.
    Source: Rafailov et al. 2023, arXiv:2305.18290; Azar et al. 2023, arXiv:2310.12036; Ethayarajh et al. 2024,
        arXiv:2402.01306.
    """
    config.check()
    if labels and config.loss != "kto":
        raise InputError(f"{config.loss}: found {len(labels)} labels; expected none: it reads comparisons")
    if not preferences and not labels:
        raise InputError(f"{config.loss}: found no comparisons; expected at least one")
    # 1. data as trees, the reference's view of them, the optimiser
    data = [[one.prompt.id, one.better, one.worse] for one in preferences]
    inputs: dict[str, Any] = {"comparisons": data}
    if labels:
        inputs["labels"] = [[one.prompt.id, one.text, one.good] for one in labels]
    identity = identity_of(config, seed, inputs, lm.model)
    examples = _Labels(lm, [*labelled(preferences), *labels]) if config.loss == "kto" else _Pairs(lm, preferences)
    # KTO's reference point asks the reference about responses to other prompts, in every step
    needs_reference = config.loss == "kto" or not config.precompute_reference
    policy = build_policy(lm) if needs_reference else Policy(lm, None)
    ref_sums = reference_sums(lm, examples.trees, config.token_budget) if config.precompute_reference else None
    state = policy_state(lm, learning_rate=config.learning_rate, adam_eps=config.adam_eps, controllers={})
    batch_of = dealt(len(examples.trees), config.batch_size, seed=seed, shuffle=config.shuffle)
    n_steps = config.n_steps(len(examples.trees))
    n_warmup = round(config.warmup_frac * n_steps)

    # 2. one step: a minibatch, its losses, one update
    def step(index: int) -> dict[str, float]:
        rate = linear_warmup_decay(index, n_steps=n_steps, peak=config.learning_rate, n_warmup=n_warmup)
        work = DirectStep(policy, examples.trees, batch_of(index), ref_sums, config)
        losses = work.label_losses(examples.good) if isinstance(examples, _Labels) else work.pair_losses()
        return work.take(state, losses, learning_rate=rate)

    # 3. the loop
    result = run_course(
        config.loss,
        lm,
        state,
        step,
        Rhythm(n_steps, config.checkpoint_every, config.evaluate_every),
        around=Around(directory, reporters, watcher, evaluate),
        identity=identity,
    )
    check_optimiser_steps(state, expected=state.step)
    return result


class _Pairs:
    """Comparisons as trees of two branches, the better first."""

    def __init__(self, lm: LoadedLM, preferences: Sequence[Preference]) -> None:
        self.trees = [tree_of(lm, one.prompt, one.better, one.worse) for one in preferences]


class _Labels:
    """Labelled responses as trees of one branch."""

    def __init__(self, lm: LoadedLM, responses: Sequence[LabelledResponse]) -> None:
        self.trees = [tree_of(lm, one.prompt, one.text) for one in responses]
        self.good = torch.tensor([one.good for one in responses], device=lm.model.device)


def reference_sums(lm: LoadedLM, trees: Sequence[Tree], token_budget: int) -> Tensor:
    """[P, K]: log π of each whole response under the policy as it is, without gradient."""
    batches = pack(trees, token_budget, lm.model.device)
    with torch.no_grad():
        flats = parallel.each(batches, lambda batch: response_logprobs(lm.model, batch).logprobs)
    flats = [flat.to(lm.model.device) for flat in flats]
    return sums_of_trees(flats, batches, len(trees[0].branches))


@dataclass
class DirectStep:
    """One minibatch, and what is counted on the way."""

    policy: Policy
    """What is trained; its reference is used only where sums were not computed before."""
    trees: Sequence[Tree]
    """All examples."""
    indices: list[int]
    """Those of this minibatch."""
    ref_sums: Tensor | None
    """log π_ref of all examples, or None."""
    config: DirectConfig
    """The method."""

    def __post_init__(self) -> None:
        self.chosen = [self.trees[i] for i in self.indices]
        self.batches = my_batches(self.chosen, self.config.token_budget, self.policy.lm.model.device)
        self.loss, self.seen = 0.0, PairStats()
        self.figures: dict[str, float] = {}

    def take(self, state: TrainState, losses: Iterator[Tensor], *, learning_rate: float) -> dict[str, float]:
        """The optimiser step over these losses; returns its metrics."""
        counts = state.controllers["steps"]
        assert isinstance(counts, StepCounts)
        norm = optimiser_step(
            state, POLICY, losses, max_grad_norm=self.config.max_grad_norm, learning_rate=learning_rate, shared=True
        )
        counts.add(POLICY, skipped=norm != norm)
        n_tokens = sum(len(branch) for tree in self.chosen for branch in tree.branches)
        loss = parallel.total(self.loss)
        metrics = {"direct/loss": loss, "update/grad_norm": norm, "update/learning_rate": learning_rate}
        metrics |= {"data/n_tokens": float(n_tokens)} | self.figures
        return metrics | check_steps(state, self.config.max_skipped_frac)

    def pair_losses(self) -> Iterator[Tensor]:
        """DPO's or IPO's loss of each micro-batch."""
        n = len(self.chosen)
        first = torch.zeros(n, 1, dtype=torch.long, device=self.policy.lm.model.device)
        ref = None if self.ref_sums is None else self.ref_sums[self.indices]
        compared = ComparedTrees(tuple(self.chosen), first, first + 1, None, ref)
        config = self.config
        objective = PairObjective(config.loss, config.beta, config.label_smoothing, config.per_token)
        for batch in self.batches:
            reference = None if ref is not None else reference_logprobs(self.policy, batch, temperature=1.0)
            logprobs = response_logprobs(self.policy.lm.model, batch).logprobs
            found = pair_batch_loss(
                compared, range(n), batch, logprobs=logprobs, ref_logprobs=reference, objective=objective, denominator=n
            )
            self.loss += float(found.loss.detach())
            self.seen.add(float(found.loss.detach()) * n, float(found.n_right), float(found.margin_sum))
            yield found.loss
        self.seen.n = n
        self.seen.put_together()
        self.figures = {name: value for name, value in self.seen.metrics().items() if name != "pairs/loss"}

    def label_losses(self, good: Tensor) -> Iterator[Tensor]:
        """KTO's loss of each micro-batch; its reference point first, from responses to other prompts."""
        n, config = len(self.chosen), self.config
        start = self.mismatched_kl()
        mine = good[self.indices]
        sums = {True: 0.0, False: 0.0}
        for batch in self.batches:
            new = branch_sums(response_logprobs(self.policy.lm.model, batch).logprobs, batch)
            if self.ref_sums is not None:
                ref = self.ref_sums[self.indices][batch.branch_id, 0]
            else:
                ref = branch_sums(reference_logprobs(self.policy, batch, temperature=1.0), batch)
            found = kto_loss(
                new - ref.to(new.dtype), mine[batch.branch_id], start, beta=config.beta, denominator=n,
                good_weight=config.good_weight, bad_weight=config.bad_weight,
            )  # fmt: skip
            self.loss += float(found.loss.detach())
            sums[True] += float(found.good_reward_sum)
            sums[False] += float(found.bad_reward_sum)
            yield found.loss
        n_good = int(mine.sum())
        sums[True], sums[False] = parallel.totals([sums[True], sums[False]])
        self.figures = {"labels/kl": float(start), "labels/good_frac": n_good / n}
        if n_good:
            self.figures["labels/good_reward_mean"] = sums[True] / n_good
        if n_good < n:
            self.figures["labels/bad_reward_mean"] = sums[False] / (n - n_good)

    def mismatched_kl(self) -> Tensor:
        """KTO's reference point, each response behind the next other prompt; 0 where all prompts are the same.

        The two labels of one comparison are neighbours where nothing is shuffled: behind the next example's prompt every
        second response would stand behind its own.
        """
        n = len(self.chosen)
        device = self.policy.lm.model.device
        if n < 2:
            return torch.zeros((), device=device)
        longest = self.policy.lm.context_length
        prompts = [tree.prompt for tree in self.chosen]
        others = [next((p for p in (*prompts[i + 1 :], *prompts[:i]) if p != prompts[i]), None) for i in range(n)]
        shifted = [
            Tree(prompt, tree.branches) for prompt, tree in zip(others, self.chosen, strict=True) if prompt is not None
        ]
        fitting = [tree for tree in shifted if tree.n_tokens <= longest]
        if not fitting:
            return torch.zeros((), device=device)
        new, ref = [], []
        with torch.no_grad():
            for batch in pack(fitting, self.config.token_budget, device):
                new.append(branch_sums(response_logprobs(self.policy.lm.model, batch).logprobs, batch))
                ref.append(branch_sums(reference_logprobs(self.policy, batch, temperature=1.0), batch))
        return mismatched_kl(torch.cat(new), torch.cat(ref))
