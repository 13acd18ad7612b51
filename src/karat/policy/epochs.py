"""Epochs of minibatches on one rollout, one optimiser step each, whatever the loss: the part that all methods share.

Knows the optimiser step, how prompts are dealt into minibatches, and what is counted on the way. Knows nothing about
losses, rewards or networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from karat.errors import InvariantError
from karat.lm import parallel
from karat.lm.loop import TrainState, check_skipped, optimiser_step
from karat.lm.sharding import even_share
from karat.lm.trees import Tree, TreeBatch, empty_batch
from karat.policy.actor import pack
from karat.policy.objectives import PolicyLoss
from karat.policy.step_limit import HeldWeights, Move, shortened

POLICY, CRITIC = "policy", "critic"


class StepSettings(Protocol):
    """What the epochs need to know of a method's settings; `settings` documents each."""

    @property
    def n_epochs(self) -> int:
        """Times each rollout is gone through."""
        ...

    @property
    def n_minibatches(self) -> int:
        """Optimiser steps an epoch."""
        ...

    @property
    def max_grad_norm(self) -> float:
        """Gradients are scaled down to this norm."""
        ...

    @property
    def max_approx_kl(self) -> float | None:
        """Epochs end after a minibatch whose KL from the rollout's policy, per token, exceeds this."""
        ...

    @property
    def max_step_kl(self) -> float | None:
        """An optimiser step that moves the policy further, in nats per token, is shortened."""
        ...

    @property
    def ratio_tolerance(self) -> float:
        """Largest |ratio − 1| before the first step."""
        ...


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
    """Running sums over the minibatches of one update. An entry is what a ratio belongs to: a token, or a response.

    With several processes the counts are of whole minibatches throughout, the rest is of this process's micro-batches
    until `put_together`.
    """

    n_tokens: float = 0.0
    """Counted tokens of all minibatches: each token once an epoch."""
    n_entries: float = 0.0
    """Entries of all minibatches."""
    denominator: float = 0.0
    """Sum of the minibatches' denominators."""
    policy_loss: float = 0.0
    """Sum of minibatch losses, each times its denominator, without the KL term."""
    penalty: float = 0.0
    """The same for the KL term of the loss, before its coefficient."""
    value_loss: float = 0.0
    """Sum over tokens of the value loss."""
    data_loss: float = 0.0
    """Sum over tokens of the negative log-likelihood of data beside the rollout (ptx)."""
    n_data_tokens: float = 0.0
    """Those tokens."""
    n_clipped: float = 0.0
    """Entries whose ratio was clipped."""
    n_value_clipped: float = 0.0
    """Tokens whose value was clipped."""
    approx_kl: float = 0.0
    """Sum over entries of the estimated KL from the rollout's policy, in nats."""
    ratio_max: float = 0.0
    """Largest ratio of new to old probability at any entry."""
    ratio_error_first: float | None = None
    """Largest |ratio − 1| before the first optimiser step, when it should be 0; None = the policy was not updated."""
    grad_norms: list[float] = field(default_factory=list)
    """Gradient norms before clipping; nan where a step was skipped."""
    n_minibatches: int = 0
    """Minibatches gone through."""
    ended_early: bool = False
    """True = the epochs were cut short by `max_approx_kl`."""
    before: list[Tensor] | None = None
    """log π of the tokens of this process's micro-batches before the step that is being made; None = nobody asks."""
    moves: list[Move] = field(default_factory=list)
    """How far each step moved the policy, where `max_step_kl` limits it; the same in every process."""

    def put_together(self) -> None:
        """Replace this process's sums and maxima by those of all processes."""
        sums = parallel.totals([getattr(self, name) for name in SUMMED])
        for name, value in zip(SUMMED, sums, strict=True):
            setattr(self, name, value)
        everybody = parallel.gathered((self.ratio_max, self.ratio_error_first))
        self.ratio_max = max(largest for largest, _ in everybody)
        self.ratio_error_first = max((error for _, error in everybody if error is not None), default=None)

    def metrics(self, *, with_policy: bool = True, with_value: bool = False) -> dict[str, float]:
        """Means for the log; policy figures are left out where the policy was not updated."""
        finite = [norm for norm in self.grad_norms if math.isfinite(norm)]
        result = {
            "update/n_optimiser_steps": float(self.n_minibatches),
            "update/ended_early": float(self.ended_early),
            "update/finite_grad_frac": len(finite) / max(len(self.grad_norms), 1),
        }
        if finite:
            result["update/grad_norm"] = sum(finite) / len(finite)
        if self.moves:
            result |= step_metrics(self.moves)
        if with_value:
            n = max(self.n_tokens, 1.0)
            result |= {"value/loss": self.value_loss / n, "value/clip_frac": self.n_value_clipped / n}
        if with_policy:
            n = max(self.n_entries, 1.0)
            result |= {
                "policy/loss": self.policy_loss / max(self.denominator, 1e-12),
                "policy/clip_frac": self.n_clipped / n,
                "policy/approx_kl": self.approx_kl / n,
                "policy/ratio_max": self.ratio_max,
            }
            if self.ratio_error_first is not None:
                result["policy/ratio_error_first"] = self.ratio_error_first
        if self.n_data_tokens:
            result["policy/data_nll"] = self.data_loss / self.n_data_tokens
        return result


SUMMED = ("policy_loss", "penalty", "value_loss", "data_loss", "n_clipped", "n_value_clipped", "approx_kl")
"""What each process adds up over its own micro-batches."""


@dataclass(frozen=True)
class Minibatch:
    """Some prompts of a rollout with their responses, cut into micro-batches; all counts are of the whole."""

    batches: list[TreeBatch]
    """This process's packed micro-batches; their branch numbers count the rows of this minibatch."""
    rows: Tensor
    """Rollout row of each of those branches."""
    n_tokens: int
    """Counted tokens."""
    denominator: float
    """What the loss's sum is divided by."""
    n_entries: int
    """How many ratios its loss has: tokens, or responses."""


@dataclass(frozen=True)
class Pass:
    """What goes through the epochs."""

    n_units: int
    """Prompts of the rollout: what is dealt into minibatches."""
    minibatch: Callable[[Sequence[int]], Minibatch]
    """The minibatch of some prompts."""
    losses: Callable[[Minibatch, str], Iterator[Tensor]]
    """The loss of each micro-batch for the optimiser of that name, divided by the minibatch's denominator; fills the
    statistics. A generator, so that only one micro-batch's graph is alive at a time."""
    logprobs: Callable[[TreeBatch], Tensor] | None = None
    """log π of a micro-batch's tokens by the policy as it is; None = it is not being trained."""


def run_epochs(
    state: TrainState,
    stats: UpdateStats,
    work: Pass,
    settings: StepSettings,
    *,
    learning_rates: Mapping[str, float],
    generator: torch.Generator,
    names: Sequence[str] = (POLICY,),
    watch_kl: bool = True,
) -> None:
    """Epochs × minibatches optimiser steps, each over the micro-batches of all processes.

    Args:
        state: optimisers by name and a `StepCounts` as controller "steps".    stats: is filled.
        learning_rates: by optimiser name, constant within the call.
        generator: deals the prompts into minibatches anew in each epoch.
        names: optimisers to step for each minibatch.    watch_kl: False = `max_approx_kl` does not apply.
    """
    counts = state.controllers["steps"]
    assert isinstance(counts, StepCounts)
    for _ in range(settings.n_epochs):
        order = torch.randperm(work.n_units, generator=generator)
        for part in order.tensor_split(settings.n_minibatches):
            minibatch = work.minibatch(part.tolist())
            before = stats.approx_kl
            for name in names:
                limited = name == POLICY and settings.max_step_kl is not None and work.logprobs is not None
                stats.before = [] if limited else None
                held: list[HeldWeights] = []
                norm = optimiser_step(
                    state,
                    name,
                    work.losses(minibatch, name),
                    max_grad_norm=settings.max_grad_norm,
                    learning_rate=learning_rates[name],
                    shared=True,
                    before_step=partial(_hold, held, state.optimisers[name]) if limited else None,
                )
                if held:
                    stats.moves.append(_limited(held[0], stats, work, minibatch, settings))
                stats.before = None
                stats.grad_norms.append(norm)
                counts.add(name, skipped=not math.isfinite(norm))
            stats.n_minibatches += 1
            stats.n_tokens += minibatch.n_tokens
            stats.n_entries += minibatch.n_entries
            stats.denominator += minibatch.denominator
            limit = settings.max_approx_kl
            if watch_kl and limit is not None and parallel.total(stats.approx_kl - before) / minibatch.n_tokens > limit:
                stats.ended_early = True
                break
        if stats.ended_early:
            break
    stats.put_together()


def _hold(held: list[HeldWeights], optimiser: torch.optim.Optimizer) -> None:
    """Keep what is trained as it is: only now, when no activations lie beside it any more."""
    held.append(HeldWeights(optimiser))


def _limited(held: HeldWeights, stats: UpdateStats, work: Pass, minibatch: Minibatch, settings: StepSettings) -> Move:
    """Shorten the step just made where it went too far on its own minibatch."""
    logprobs, limit = work.logprobs, settings.max_step_kl
    assert logprobs is not None
    assert limit is not None
    assert stats.before is not None

    def after() -> Iterator[Tensor]:
        return (logprobs(batch) for batch in minibatch.batches)

    return shortened(held, stats.before, after, n_tokens=minibatch.n_tokens, limit=limit)


def step_metrics(moves: Sequence[Move]) -> dict[str, float]:
    """How far optimiser steps moved the policy, for the log."""
    n = len(moves)
    return {
        "policy/step_kl": sum(move.kl for move in moves) / n,
        "policy/step_kl_asked": sum(move.kl_asked for move in moves) / n,
        "policy/step_share": sum(move.share for move in moves) / n,
        "policy/step_shortened_frac": sum(move.share < 1 for move in moves) / n,
    }


def note_logprobs(stats: UpdateStats, logprobs: Tensor) -> None:
    """Keep log π of a micro-batch's tokens before the step, where somebody asks how far it goes."""
    if stats.before is not None:
        stats.before.append(logprobs.detach())


def packed_minibatch(
    trees: Sequence[Tree], tree_indices: Sequence[int], *, n_samples: int, token_budget: int, device: torch.device
) -> Minibatch:
    """The given trees, packed, with counted tokens as entries and denominator; a prompt's responses stay together.

    Args:
        n_samples: branches of every tree; row = tree·n_samples + branch.
    """
    chosen = [trees[i] for i in tree_indices]
    rows = torch.tensor([i * n_samples + j for i in tree_indices for j in range(n_samples)], device=device)
    n_tokens = sum(len(branch) for tree in chosen for branch in tree.branches)
    return Minibatch(my_batches(chosen, token_budget, device), rows, n_tokens, float(n_tokens), n_tokens)


def my_batches(trees: Sequence[Tree], token_budget: int, device: torch.device) -> list[TreeBatch]:
    """This process's share of the trees' micro-batches, cut so that there is something for every process."""
    budget = parallel.budget(token_budget, sum(tree.n_tokens for tree in trees))
    return even_share(pack(trees, budget, device), lambda: empty_batch(device))


def note_policy_loss(stats: UpdateStats, found: PolicyLoss, *, denominator: float, first: bool) -> None:
    """Add a policy loss to the running sums.

    Args:
        denominator: of its minibatch.    first: True = before the first optimiser step of the rollout.
    """
    figures = (found.loss, found.n_clipped, found.approx_kl_sum, found.ratio_max, found.ratio_error)
    loss, n_clipped, approx_kl, ratio_max, ratio_error = read_together(*figures)
    stats.policy_loss += loss * denominator
    stats.n_clipped += n_clipped
    stats.approx_kl += approx_kl
    stats.ratio_max = max(stats.ratio_max, ratio_max)
    if first:
        stats.ratio_error_first = max(stats.ratio_error_first or 0.0, ratio_error)


def read_together(*figures: Tensor) -> list[float]:
    """Scalars as numbers, in one message: each one waits for the device."""
    first = figures[0].detach()
    return torch.stack([first, *(one.detach().to(first.dtype) for one in figures[1:])]).tolist()


def check_first_ratio(stats: UpdateStats, tolerance: float) -> None:
    """Raise InvariantError unless old and new log-probabilities agreed; call it before the first optimiser step."""
    errors = [error for error in parallel.gathered(stats.ratio_error_first) if error is not None]
    error = next((one for one in errors if not one <= tolerance), None)
    if error is not None or not errors:
        raise InvariantError(
            f"policy: before the first update of a rollout the ratio differs from 1 by {error}; expected at most "
            f"{tolerance}. Old and new log-probabilities come from different computations (dropout, "
            "positions, temperature or precision); in half precision raise update.ratio_tolerance"
        )


def check_steps(state: TrainState, max_skipped_frac: float) -> dict[str, float]:
    """The share of optimiser steps skipped since the beginning, for the log.

    Raises: InvariantError when it exceeds the limit.
    """
    counts = state.controllers["steps"]
    assert isinstance(counts, StepCounts)
    n_attempted = sum(counts.attempted.values())
    check_skipped(state, n_attempted, max_frac=max_skipped_frac)
    return {"update/skipped_frac": state.n_skipped / max(n_attempted, 1)}


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
                f"policy: the {name} optimiser made {made} steps; expected {asked} minibatches less {skipped} skipped ones"
            )
    busiest = max(counts.attempted.values(), default=0)
    if expected is not None and busiest != expected:
        raise InvariantError(
            f"policy: {busiest} optimiser steps were asked for; expected {expected} = iterations × epochs × minibatches"
        )
