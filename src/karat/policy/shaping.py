"""From one score per response to one reward per token.

Pure; knows nothing about reward models (scores are numbers here) or about how KL is reported.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from karat.errors import ConfigError, InputError
from karat.tensors import check_response_mask


def final_scores(
    scores: Float[Tensor, "B"],
    stopped_mask: Bool[Tensor, "B"],
    *,
    score_clip: float | None = None,
    missing_eos_penalty: float | None = None,
    missing_eos_score: float | None = None,
) -> Float[Tensor, "B"]:
    """The score that is paid at the end of each response, after clipping and the rule for truncated ones.

        s ← clip(s, ±c);   not stopped:  s ← s − penalty   or   s ← fixed score

    Args:
        scores: as the ScoreFn gave them.    stopped_mask: True = ended by one of the stop tokens, as the sampler saw
            it (never derived from ids).
        score_clip: c > 0, or None = no clip.
        missing_eos_penalty: ≥ 0, subtracted from truncated responses.
        missing_eos_score: replaces the score of truncated responses; not clipped.
    Raises: ConfigError for both rules at once, a negative penalty or a clip ≤ 0; InputError for shapes that differ.
    Source: fixed score for truncated responses: Ziegler et al. 2019 §3.1.1 (−1); penalty: Huang et al. 2024,
        arXiv:2403.17031 ("EOS trick").
    """
    if scores.shape != stopped_mask.shape or scores.ndim != 1:
        raise InputError(
            f"final_scores: found {tuple(scores.shape)} and {tuple(stopped_mask.shape)}; expected [B] and [B]"
        )
    if missing_eos_penalty is not None and missing_eos_score is not None:
        raise ConfigError("final_scores: found a penalty and a fixed score for truncated responses; choose one")
    if missing_eos_penalty is not None and missing_eos_penalty < 0:
        raise ConfigError(f"final_scores: found missing_eos_penalty={missing_eos_penalty}; expected ≥ 0 (subtracted)")
    if score_clip is not None and score_clip <= 0:
        raise ConfigError(f"final_scores: found score_clip={score_clip}; expected > 0 or None")
    result = scores if score_clip is None else scores.clamp(-score_clip, score_clip)
    if missing_eos_penalty is not None:
        result = torch.where(stopped_mask, result, result - missing_eos_penalty)
    if missing_eos_score is not None:
        result = torch.where(stopped_mask, result, torch.full_like(result, missing_eos_score))
    return result


def token_rewards(
    scores: Float[Tensor, "B"],
    log_ratio: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    kl_coef: float,
    inside: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """The reward of each token: the KL penalty everywhere, the score at the last counted token or spread over tokens.

        rₜ = −β·(log πₜ − log π_ref,ₜ) + dₜ·[t < last] + (s − Σ_{u < last} d_u)·[t = last]

    However the score is spread, a response is paid s in all: what a clip or the rule for truncated responses takes away
    is settled at the last token. Where all of d is at the last token, the rewards are those without d, to the bit.

    Args:
        scores: what is paid at the end of each response (`final_scores`).
        log_ratio: log π − log π_ref of the sampled tokens under the policy that sampled (k1, unclamped).
        response_mask: True = counts.    kl_coef: β ≥ 0, units of score per nat.
        inside: d, the share of the score that each token earns, 0 where masked; None = all of it is paid at the end.
    Returns: "B T", zero where masked.
    Raises: MaskError for a row without a counted token or with a gap; InputError for shapes that differ;
        ConfigError for β < 0.
    Source: openai/lm-human-preferences@cbfd210 train_policy.py `compute_rewards`.
    Differs: the score goes to the last counted token (the stop token, or the last token of a truncated response),
        the same step for both; TRL's trainer puts it on the first PAD after a stop token.
    """
    check_response_mask(response_mask, "token_rewards")
    if log_ratio.shape != response_mask.shape or scores.shape != response_mask.shape[:1]:
        raise InputError(
            f"token_rewards: found scores {tuple(scores.shape)}, log_ratio {tuple(log_ratio.shape)} and mask "
            f"{tuple(response_mask.shape)}; expected [B], [B, T] and [B, T]"
        )
    if kl_coef < 0:
        raise ConfigError(f"token_rewards: found kl_coef={kl_coef}; expected ≥ 0")
    rewards = torch.where(response_mask, -kl_coef * log_ratio, torch.zeros_like(log_ratio))
    last = response_mask.sum(1, keepdim=True) - 1
    if inside is not None:
        if inside.shape != response_mask.shape:
            raise InputError(
                f"token_rewards: found inside {tuple(inside.shape)}; expected {tuple(response_mask.shape)}"
            )
        before = torch.where(response_mask, inside, torch.zeros_like(inside)).scatter(1, last, 0.0)
        rewards, scores = rewards + before, scores - before.sum(1)
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))
