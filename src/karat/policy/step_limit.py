"""A limit on how far one optimiser step may move the policy: a step that goes too far is shortened, in the same direction.

Knows weights and log-probabilities of a minibatch's tokens before and after a step; knows nothing about losses, rewards
or where the tokens come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from karat.lm import parallel
from karat.lm.sharding import whole
from karat.policy.kl import k3

MOST_TRIES = 6
"""Lengths tried after the step's own; what is too long even then is taken back."""
AIM = 0.9
"""Share of the limit that a try aims at, so that one is mostly enough."""
LEAST_FACTOR = 0.1
"""No try is shorter than this share of the one before, however wild the divergence."""
GROWTH, GROWTHS = 1.5, (0.5, 2.0)
"""With which power of its length a step's divergence grows: a first guess (2 where steps are short, less where they are
long), and between what the last two lengths may set it."""


@dataclass(frozen=True)
class Move:
    """How far one optimiser step moved the policy."""

    kl_asked: float
    """Nats a token by the step as the optimiser made it."""
    kl: float
    """Nats a token by what was left of it."""
    share: float
    """What was left of its length: 1 = all."""


class HeldWeights:
    """What an optimiser trains as it was before a step: one more copy of those weights, for as long as the step lasts."""

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self.parameters = [_own(p) for group in optimiser.param_groups for p in group["params"]]
        self.before = [p.clone() for p in self.parameters]

    def shorten(self, factor: float) -> None:
        """Leave that share of the way from the weights before to those now: w ← w₀ + factor·(w − w₀)."""
        if factor == 0:  # w₀ to the bit
            torch._foreach_copy_(self.parameters, self.before)
        else:
            torch._foreach_lerp_(self.parameters, self.before, 1 - factor)


def shortened(
    held: HeldWeights,
    before: Sequence[Tensor],
    after: Callable[[], Iterable[Tensor]],
    *,
    n_tokens: int,
    limit: float,
) -> Move:
    """Shorten the step just made until the policy is at most `limit` nats a token from where it was.

        KL = Σ (ρ − 1 − log ρ) / n_tokens,  ρ = π_after / π_before        w ← w₀ + f·(w − w₀),  f = (0.9·limit/KL)^(1/g)

    again and again until KL ≤ limit, where KL grows with the g-th power of the length: 1.5 at first, then as measured.
    All processes decide alike: they add up their sums.

    Args:
        before: log π of this process's tokens, micro-batch by micro-batch, before the step.
        after: makes the same of the weights as they are.
        n_tokens: of the whole minibatch, in all processes.
    Returns: how far the policy went; a step that is never short enough is taken back (share 0).
    Source: Schulman et al. 2015, arXiv:1502.05477 (TRPO), appendix C: a step is scaled down until its KL is within
        the limit.
    Differs: the direction is the optimiser's own, whose moments stay as they are; KL is estimated on the minibatch's
        tokens alone.
    """
    share, kl, growth = 1.0, _step_kl(before, after, n_tokens), GROWTH
    asked = kl
    for _ in range(MOST_TRIES):
        if kl <= limit:
            break
        factor = max((AIM * limit / kl) ** (1 / growth), LEAST_FACTOR) if kl < math.inf else LEAST_FACTOR
        held.shorten(factor)
        share, last, kl = share * factor, kl, _step_kl(before, after, n_tokens)
        if 0 < kl < math.inf and last < math.inf:
            growth = min(max(math.log(last / kl) / -math.log(factor), GROWTHS[0]), GROWTHS[1])
    if not kl <= limit:
        held.shorten(0.0)
        share = kl = 0.0
    return Move(asked, kl, share)


def _step_kl(before: Sequence[Tensor], after: Callable[[], Iterable[Tensor]], n_tokens: int) -> float:
    """Mean k3 over the tokens of all processes; infinite where it is not a number."""
    with whole(), torch.no_grad():
        # on the processor: one number is read of each, and not every device has float64
        pairs = ((old.cpu().double(), new.cpu().double()) for old, new in zip(before, after(), strict=True))
        sums = [float(k3(old, new).sum()) for old, new in pairs]
    kl = parallel.total(math.fsum(sums) if all(map(math.isfinite, sums)) else math.inf) / n_tokens
    return kl if math.isfinite(kl) else math.inf


def _own(parameter: Tensor) -> Tensor:
    """The numbers of a parameter that this process holds, in place."""
    held = parameter.detach()
    return held.to_local() if isinstance(held, DTensor) else held
