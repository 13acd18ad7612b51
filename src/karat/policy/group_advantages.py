"""Advantages without a critic: from the rewards of a group of responses to one prompt, or of a whole batch.

Pure: rewards in, advantages out. Knows nothing about where rewards come from, nor about losses.

Dimension letters: P prompts, K responses a prompt, B responses, T response tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from karat.errors import ConfigError, InputError
from karat.tensors import check_response_mask, whiten

Scale = Literal["none", "group", "batch"]
STD_FLOOR = 1e-4
"""Added to a standard deviation before it divides. Source: TRL 1.16.0 grpo_trainer.py; a group of equal rewards then
has advantage 0, not 0/0."""


def rloo_advantages(rewards: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
    """REINFORCE leave-one-out: each reward less the mean of its siblings'.

        Âᵢ = rᵢ − 1/(K − 1)·Σ_{j≠i} rⱼ

    The baseline does not depend on response i, so the gradient is unbiased.

    Args:
        rewards: one for each response, the KL penalty included where it is paid as a reward.
    Raises: InputError for fewer than two responses a prompt.
    Source: Ahmadian et al. 2024, arXiv:2402.14740 eq. 6; Kool et al. 2019.

    >>> rloo_advantages(torch.tensor([[1.0, 2.0, 6.0]])).tolist()
    [[-3.0, -1.5, 4.5]]
    """
    n_samples = _group_size(rewards, "rloo_advantages")
    return (rewards - rewards.mean(1, keepdim=True)) * (n_samples / (n_samples - 1))


def grpo_advantages(rewards: Float[Tensor, "P K"], *, scale: Scale) -> Float[Tensor, "P K"]:
    """Group-relative advantages: each reward less its group's mean, divided by a standard deviation.

        Âᵢ = (rᵢ − r̄)/(σ + 10⁻⁴)        σ with K − 1 (group) or B − 1 (batch) in the denominator; no division: none

    The mean contains response i, which shrinks the expected gradient of the reward by (K − 1)/K; with the KL in the
    loss, β therefore acts as β·K/(K − 1). Dividing by the group's σ makes β act as β·σ, prompt by prompt.

    Args:
        rewards: one for each response.    scale: which standard deviation divides.
    Raises: InputError for fewer than two responses a prompt; ConfigError for an unknown scale.
    Source: Shao et al. 2024, arXiv:2402.03300 §4.1.2 (group); Liu et al. 2025, arXiv:2503.20783 (none, "Dr. GRPO");
        TRL 1.16.0 grpo_trainer.py `scale_rewards`.
    """
    _group_size(rewards, "grpo_advantages")
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "none":
        return centred
    if scale == "group":
        return centred / (rewards.std(1, keepdim=True) + STD_FLOOR)
    if scale == "batch":
        return centred / (rewards.std() + STD_FLOOR)
    raise ConfigError(f"grpo_advantages: found scale {scale!r}; expected none, group or batch")


def reinforce_pp_advantages(
    rewards: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    n_samples: int,
    group_baseline: bool,
    normalise: bool,
) -> Float[Tensor, "B T"]:
    """REINFORCE++: what a response still earns from each token on, normalised over all tokens of the batch.

        Gₜ = Σ_{s ≥ t} rₛ  [less the group's mean of G₁]        Âₜ = (Gₜ − mean over all tokens)/σ over all tokens

    Mean and σ are those of the batch, not of a group: one number each, so no prompt's β is rescaled by its own spread.

    Args:
        rewards: per token (`shaping.token_rewards`), 0 where masked; rows run over prompts, then over samples.
        response_mask: True = counts.    n_samples: responses a prompt.
        group_baseline: True = the mean return of the prompt's responses is subtracted first (needs n_samples ≥ 2).
        normalise: False = neither mean nor σ of the batch.
    Returns: 0 where masked.
    Raises: MaskError for a row without a counted token or with a gap; InputError where the rows are not whole groups.
    Source: Hu, Liu & Shen 2025, arXiv:2501.03262 (with group_baseline: "REINFORCE++-baseline").
    Differs: the biased variance of `tensors.whiten`; over tokens, each with equal weight.
    """
    check_response_mask(response_mask, "reinforce_pp_advantages")
    if rewards.shape != response_mask.shape or n_samples < 1 or rewards.shape[0] % n_samples:
        raise InputError(
            f"reinforce_pp_advantages: found rewards {tuple(rewards.shape)}, mask {tuple(response_mask.shape)} and "
            f"{n_samples} samples a prompt; expected one shape [B, T] with B a multiple of the samples"
        )
    paid = torch.where(response_mask, rewards, torch.zeros_like(rewards))
    returns = paid.flip(1).cumsum(1).flip(1)
    if group_baseline:
        whole = returns[:, 0].unflatten(0, (-1, n_samples))
        _group_size(whole, "reinforce_pp_advantages")
        returns = returns - whole.mean(1).repeat_interleave(n_samples).unsqueeze(1)
    if normalise:
        return whiten(returns, response_mask, center=True)
    return torch.where(response_mask, returns, torch.zeros_like(returns))


def _group_size(rewards: Tensor, caller: str) -> int:
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise InputError(
            f"{caller}: found rewards of shape {tuple(rewards.shape)}; expected [P, K] with at least 2 responses a prompt"
        )
    return rewards.shape[1]
