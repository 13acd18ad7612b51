"""The two losses of PPO, as sums over counted tokens divided by a denominator that the caller states.

The denominator is the number of counted tokens of the *whole* minibatch, so that cutting the minibatch into
micro-batches changes nothing. Pure; knows nothing about models, rollouts or optimisers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from karat.errors import ConfigError, InputError

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
    clip_range: float = CLIP_RANGE,
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
        clip_range: ε in (0, 1).    dual_clip: c > 1 bounds the loss of bad tokens that became likely; None = off.
    Returns: PolicyLoss.
    Raises: InputError for shapes that differ or a denominator ≤ 0; ConfigError for ε or c out of range.
    Source: Schulman et al. 2017, arXiv:1707.06347 eq. 7; dual clip Ye et al. 2020, arXiv:1912.09729 eq. 5.
    Differs: log-ratio clamped before exp (`LOG_RATIO_LIMIT`); sums are divided by a stated denominator.
    """
    _check(logprobs, response_mask, denominator, "ppo_policy_loss", old_logprobs, advantages)
    if not 0 < clip_range < 1 or (dual_clip is not None and dual_clip <= 1):
        raise ConfigError(
            f"ppo_policy_loss: found clip_range={clip_range}, dual_clip={dual_clip}; expected (0, 1) and > 1 or None"
        )
    zeros = torch.zeros_like(logprobs)
    # Masked entries become 0 before exp: an inf or nan in padding would otherwise reach the gradient as 0·inf.
    log_ratio = torch.where(response_mask, logprobs - old_logprobs, zeros)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    advantages = torch.where(response_mask, advantages, zeros)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    token_loss = torch.maximum(plain, clipped)
    chosen_clip = clipped > plain
    if dual_clip is not None:
        bound = -dual_clip * advantages
        chosen_clip = chosen_clip | ((advantages < 0) & (bound < token_loss))
        token_loss = torch.where(advantages < 0, torch.minimum(token_loss, bound), token_loss)
    loss = torch.where(response_mask, token_loss, zeros).sum() / denominator
    with torch.no_grad():
        raw = log_ratio.exp()
        counts = response_mask.any()
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


def _check(first: Tensor, mask: Tensor, denominator: float, caller: str, *others: Tensor) -> None:
    shapes = [tuple(t.shape) for t in (first, mask, *others)]
    if len(set(shapes)) != 1:
        raise InputError(f"{caller}: found shapes {shapes}; expected one shape for all tensors and the mask")
    if not denominator > 0:
        raise InputError(f"{caller}: found the denominator {denominator}; expected the minibatch's counted tokens, > 0")
