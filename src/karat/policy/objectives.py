"""The losses of the online methods, as sums over counted tokens divided by a denominator that the caller states.

The denominator is a figure of the *whole* minibatch (its counted tokens, its responses), so that cutting the minibatch
into micro-batches changes nothing. The entries may be tokens or whole responses: a ratio of whole responses is that of
their summed log-probabilities. Pure; knows nothing about models, rollouts or optimisers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from karat.errors import ConfigError, InputError
from karat.policy.kl import ESTIMATORS

CLIP_RANGE = 0.2  # Schulman et al. 2017 table 3; openai/lm-human-preferences@cbfd210 train_policy.py `cliprange`
LOG_RATIO_LIMIT = 20.0
"""exp(20) ≈ 5e8 is far outside any clip range, yet squares and sums stay finite in float32 (exp overflows at 88.7).
Source: OpenRLHF 3c3be623 and verl 1dda039b9 clamp at ±20. A token beyond it gets no gradient."""


class PolicyLoss(NamedTuple):
    """The loss and, as plain sums over counted tokens, what is logged about it."""

    loss: Float[Tensor, ""]
    """Σ counted token losses / denominator; carries the gradient."""
    n_clipped: Float[Tensor, ""]
    """Tokens whose clipped term was the one chosen, so that they have no gradient."""
    approx_kl_sum: Float[Tensor, ""]
    """Σ (ρ − 1 − log ρ): an estimate of KL(old ‖ new) that is never negative, unclamped."""
    ratio_max: Float[Tensor, ""]
    """Largest ρ among counted tokens, unclamped (0 where none counts)."""
    ratio_error: Float[Tensor, ""]
    """Largest |ρ − 1| among counted tokens, unclamped."""


class ValueLoss(NamedTuple):
    """The value loss and how often its clip was active."""

    loss: Float[Tensor, ""]
    """Σ counted token losses / denominator; carries the gradient."""
    n_clipped: Float[Tensor, ""]
    """Tokens where the clipped error was the larger one."""


def ppo_policy_loss(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    response_mask: Bool[Tensor, "*shape"],
    *,
    denominator: float,
    clip_range: float | None = CLIP_RANGE,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """The clipped surrogate of PPO.

        ρ = exp(clamp(log π − log π_old, ±20))        ℓ = max(−Â·ρ, −Â·clip(ρ, 1 − ε, 1 + ε))
        dual clip, where Â < 0:  ℓ ← min(ℓ, −c·Â)     loss = Σ m·ℓ / denominator

    Args:
        logprobs: log π of the sampled token under the policy being trained; carries the gradient.
        old_logprobs: the same under the policy that sampled, from the same scoring function.
        advantages: Â per token, usually whitened over the batch.
        response_mask: True = counts.
        denominator: counted tokens of the whole minibatch, > 0.
        clip_range: ε in (0, 1); None = no clip, the plain importance-weighted policy gradient.
        dual_clip: c > 1 bounds the loss of bad tokens that became likely; None = off.
    Returns: PolicyLoss.
    Raises: InputError for shapes that differ or a denominator ≤ 0; ConfigError for ε or c out of range.
    Source: Schulman et al. 2017, arXiv:1707.06347 eq. 7; dual clip Ye et al. 2020, arXiv:1912.09729 eq. 5.
    Differs: log-ratio clamped before exp (`LOG_RATIO_LIMIT`); sums are divided by a stated denominator.
    """
    _check(logprobs, response_mask, denominator, "ppo_policy_loss", old_logprobs, advantages)
    if (clip_range is not None and not 0 < clip_range < 1) or (dual_clip is not None and dual_clip <= 1):
        raise ConfigError(
            f"ppo_policy_loss: found clip_range={clip_range}, dual_clip={dual_clip}; expected (0, 1) or None and > 1 or None"
        )
    zeros = torch.zeros_like(logprobs)
    # Masked entries become 0 before exp: an inf or nan in padding would otherwise reach the gradient as 0·inf.
    log_ratio = torch.where(response_mask, logprobs - old_logprobs, zeros)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    advantages = torch.where(response_mask, advantages, zeros)
    plain = -advantages * ratio
    clipped = plain if clip_range is None else -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    token_loss = torch.maximum(plain, clipped)
    chosen_clip = clipped > plain
    if dual_clip is not None:
        bound = -dual_clip * advantages
        chosen_clip = chosen_clip | ((advantages < 0) & (bound < token_loss))
        token_loss = torch.where(advantages < 0, torch.minimum(token_loss, bound), token_loss)
    loss = torch.where(response_mask, token_loss, zeros).sum() / denominator
    with torch.no_grad():
        raw = log_ratio.exp()
        counts = response_mask.numel() > 0  # of none that counts the largest is 0 by the masking
        return PolicyLoss(
            loss=loss,
            n_clipped=(chosen_clip & response_mask).sum().float(),
            approx_kl_sum=torch.where(response_mask, torch.expm1(log_ratio) - log_ratio, zeros).sum(),
            ratio_max=torch.where(response_mask, raw, zeros).max() if counts else zeros.sum(),
            ratio_error=torch.where(response_mask, (raw - 1).abs(), zeros).max() if counts else zeros.sum(),
        )


def ppo_value_loss(
    values: Float[Tensor, "*shape"],
    old_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    response_mask: Bool[Tensor, "*shape"],
    *,
    denominator: float,
    clip_range: float | None = CLIP_RANGE,
) -> ValueLoss:
    """Half the squared error to the returns, pessimistically clipped around the old values.

        v̂ = v_old + clip(v − v_old, ±ε)        loss = ½ Σ m·max((v − R)², (v̂ − R)²) / denominator

    Args:
        values: critic's estimates; carry the gradient.    old_values: those of the rollout.
        returns: targets.    response_mask: True = counts.
        denominator: counted tokens of the whole minibatch, > 0.
        clip_range: ε > 0 in units of the score, or None = plain squared error.
    Returns: ValueLoss.
    Raises: InputError for shapes that differ or a denominator ≤ 0; ConfigError for ε ≤ 0.
    Source: openai/lm-human-preferences@cbfd210 train_policy.py `loss` (cliprange_value 0.2, ½·max).
    """
    _check(values, response_mask, denominator, "ppo_value_loss", old_values, returns)
    if clip_range is not None and clip_range <= 0:
        raise ConfigError(f"ppo_value_loss: found clip_range={clip_range}; expected > 0 or None")
    zeros = torch.zeros_like(values)
    error = torch.where(response_mask, values - returns, zeros)
    square = error.square()
    n_clipped = zeros.sum().detach()
    if clip_range is not None:
        moved = torch.where(response_mask, values - old_values, zeros).clamp(-clip_range, clip_range)
        clipped = torch.where(response_mask, old_values + moved - returns, zeros).square()
        n_clipped = (clipped > square).sum().float()
        square = torch.maximum(square, clipped)
    return ValueLoss(0.5 * square.sum() / denominator, n_clipped)


class PenaltyLoss(NamedTuple):
    """A KL penalty as a loss."""

    loss: Float[Tensor, ""]
    """Σ w·sg(ρ)·k / denominator; carries the gradient."""
    kl_sum: Float[Tensor, ""]
    """Σ sg(ρ)·k over counted entries, unclamped."""


def kl_penalty_loss(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    ref_logprobs: Float[Tensor, "*shape"],
    response_mask: Bool[Tensor, "*shape"],
    *,
    estimator: Literal["k2", "k3"],
    denominator: float,
    importance: bool = True,
    weights: Float[Tensor, "*shape"] | None = None,
) -> PenaltyLoss:
    """KL(π ‖ π_ref) as a loss on entries that another version of the policy drew.

        k2: ½(log π − log π_ref)²      k3: π_ref/π − 1 − log(π_ref/π)      ρ = exp(clamp(log π − log π_old, ±20)), detached
        loss = Σ m·w·sg(ρ)·k / denominator

    k2's expected gradient is that of KL(π ‖ π_ref): over whole responses that of the KL of responses, over tokens that
    of the token KLs at the prefixes drawn, without what a token changes about later prefixes. k3's is that of
    KL(π_ref ‖ π), another divergence; it is here for parity with GRPO. k1 has none in expectation and is refused.

    Args:
        logprobs: log π of what was drawn, of tokens or of whole responses; carries the gradient.
        old_logprobs: under the policy that drew.    ref_logprobs: under the reference.    response_mask: True = counts.
        denominator: > 0.    importance: False = ρ is left out (GRPO as published), biased once π has moved.
        weights: w of each entry, ≥ 0 (1/length for means over responses); None = 1.
    Raises: ConfigError for another estimator; InputError for shapes that differ or a denominator ≤ 0.
    Source: Schulman 2020, joschu.net/blog/kl-approx.html (the estimators); GRPO, arXiv:2402.03300 eq. 4 (k3 as a loss).
    """
    _check(logprobs, response_mask, denominator, "kl_penalty_loss", old_logprobs, ref_logprobs)
    if estimator not in ("k2", "k3"):
        raise ConfigError(
            f"kl_penalty_loss: found the estimator {estimator!r}; expected k2 or k3 (the gradient of k1 is 0 in expectation)"
        )
    zeros = torch.zeros_like(logprobs)
    # Masked entries become 0 first: an inf in padding would otherwise reach the gradient as 0·inf.
    new = torch.where(response_mask, logprobs, zeros)
    ref = torch.where(response_mask, ref_logprobs, zeros)
    per_entry = ESTIMATORS[estimator](new, ref)
    if importance:
        moved = torch.where(response_mask, logprobs - old_logprobs, zeros).detach()
        per_entry = per_entry * moved.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    per_entry = torch.where(response_mask, per_entry, zeros)
    weighted = per_entry if weights is None else torch.where(response_mask, weights * per_entry, zeros)
    return PenaltyLoss(weighted.sum() / denominator, per_entry.detach().sum())


def _check(first: Tensor, mask: Tensor, denominator: float, caller: str, *others: Tensor) -> None:
    shapes = [tuple(t.shape) for t in (first, mask, *others)]
    if len(set(shapes)) != 1:
        raise InputError(f"{caller}: found shapes {shapes}; expected one shape for all tensors and the mask")
    if not denominator > 0:
        raise InputError(f"{caller}: found the denominator {denominator}; expected the minibatch's counted tokens, > 0")
