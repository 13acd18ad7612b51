"""Generalised advantage estimates over the counted tokens of each response.

Pure: rewards, values and a mask in, advantages and returns out. Knows nothing about where rewards or values come
from, nor about whitening (`tensors.whiten`) or losses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from karat.errors import ConfigError, InputError
from karat.tensors import check_response_mask, masked_variance


class Advantages(NamedTuple):
    """What the critic's error says about each token."""

    advantages: Float[Tensor, "B T"]
    """Âₜ, zero where masked, not whitened."""
    returns: Float[Tensor, "B T"]
    """Rₜ = Âₜ + vₜ, the value target, zero where masked."""


def gae_advantages(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
    gae_lambda: float,
    bootstrap_values: Float[Tensor, "B"] | None = None,
) -> Advantages:
    """Generalised advantage estimates and the returns they imply.

        δₜ = rₜ + γ·vₜ₊₁ − vₜ        Âₜ = δₜ + γλ·Âₜ₊₁        Rₜ = Âₜ + vₜ

    Args:
        rewards: per token, in units of the score; ignored where the mask is False.
        values: estimate before token t, same unit.
        response_mask: True = produced by the policy and counted; right-padded, no True after a False.
        gamma: discount per token, (0, 1].    gae_lambda: [0, 1]; 1 gives Monte-Carlo returns minus values.
        bootstrap_values: value after each row's last counted token; None = 0 everywhere (responses terminate). A
            caller that bootstraps truncated responses passes 0 for those that ended.
    Returns: Advantages(advantages, returns), each "B T", zero where masked, not whitened.
    Raises: MaskError if a row counts no token or counts one after a gap; ConfigError for γ or λ out of range;
        InputError for shapes that differ.
    Source: Schulman et al. 2016, arXiv:1506.02438 eq. 16; openai/lm-human-preferences@cbfd210 train_policy.py `loss`.
    Differs: starts the recursion at the last counted token instead of running through padding.

    >>> mask = torch.tensor([[True, True, False]])
    >>> gae_advantages(torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.25, 9.0]]), mask, gamma=1.0,
    ...                gae_lambda=1.0).advantages.tolist()
    [[0.5, 0.75, 0.0]]
    """
    if not (0 < gamma <= 1 and 0 <= gae_lambda <= 1):
        raise ConfigError(f"gae_advantages: found γ={gamma}, λ={gae_lambda}; expected γ in (0, 1] and λ in [0, 1]")
    if rewards.shape != response_mask.shape or values.shape != response_mask.shape:
        raise InputError(
            f"gae_advantages: found rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask "
            f"{tuple(response_mask.shape)}; expected one shape [B, T]"
        )
    check_response_mask(response_mask, "gae_advantages")
    n_rows, n_tokens = rewards.shape
    zeros = torch.zeros(n_rows, dtype=rewards.dtype, device=rewards.device)
    after = zeros if bootstrap_values is None else bootstrap_values.to(rewards.dtype)
    advantage = zeros
    columns: list[Tensor] = []
    for t in range(n_tokens - 1, -1, -1):
        counts = response_mask[:, t]
        delta = rewards[:, t] + gamma * after - values[:, t]
        # A padded column leaves both carries untouched, so the recursion starts at each row's last counted token.
        advantage = torch.where(counts, delta + gamma * gae_lambda * advantage, advantage)
        after = torch.where(counts, values[:, t], after)
        columns.append(torch.where(counts, advantage, zeros))
    advantages = torch.stack(columns[::-1], dim=1)
    return Advantages(advantages, torch.where(response_mask, advantages + values, torch.zeros_like(values)))


def explained_variance(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]
) -> float | None:
    """Share of the returns' variance over counted tokens that the critic explains: 1 − Var(R − v)/Var(R).

    Returns: a number ≤ 1 (negative = worse than a constant), or None where the returns do not vary.
    """
    total = float(masked_variance(returns, response_mask))
    if total <= 1e-12:  # equal returns: a share of nothing
        return None
    return 1.0 - float(masked_variance(returns - values, response_mask)) / total
