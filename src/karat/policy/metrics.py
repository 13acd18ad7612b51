"""The figures of one rollout, as they are logged; docs/ppo.md gives the formula and denominator of each.

Pure: a rollout and its targets in, named numbers out. Knows nothing about the update or about who reads them.
"""

from __future__ import annotations

from torch import Tensor

from karat.policy.advantages import Advantages, explained_variance
from karat.policy.kl import KlSummary
from karat.policy.rollout import Rollout
from karat.tensors import masked_mean


def rollout_metrics(
    rollout: Rollout, paid: Tensor, kl: KlSummary, targets: Advantages | None = None
) -> dict[str, float]:
    """Score, KL, entropy, value and length figures of a rollout, all over counted tokens or responses.

    Args:
        paid: scores after clipping and the rule for truncated responses.
        targets: returns not whitened; None = there is no critic.
    """
    mask, lengths = rollout.response_mask, rollout.lengths.float()
    gap_max, gap_mean = rollout.sampler_gap
    metrics = {
        "score/mean": float(rollout.scores.mean()),
        "score/std": float(rollout.scores.std(correction=0)),
        "score/paid_mean": float(paid.mean()),
        "kl/k1_per_sequence": kl.k1_per_sequence,
        "kl/k2_per_sequence": kl.k2_per_sequence,
        "kl/k3_per_sequence": kl.k3_per_sequence,
        "kl/k1_per_token": kl.k1_per_token,
        "kl/k2_per_token": kl.k2_per_token,
        "kl/k3_per_token": kl.k3_per_token,
        "policy/entropy_estimate": -float(masked_mean(rollout.logprobs, mask)),
        "policy/sampler_gap_max": gap_max,
        "policy/sampler_gap_mean": gap_mean,
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/stopped_frac": float(rollout.stopped_mask.float().mean()),
        "response/distinct_frac": len(set(rollout.texts)) / len(rollout.texts),
    }
    if rollout.entropy is not None:
        metrics["policy/entropy"] = float(masked_mean(rollout.entropy, mask))
    if rollout.exact_kl is not None:
        exact = rollout.exact_kl.cpu().double()
        metrics["kl/exact_per_sequence"] = float(exact.sum(1).mean())
        metrics["kl/exact_per_token"] = float(masked_mean(exact, mask.cpu()))
    if targets is None or rollout.values is None:
        return metrics
    metrics["value/mean"] = float(masked_mean(rollout.values, mask))
    metrics["value/return_mean"] = float(masked_mean(targets.returns, mask))
    explained = explained_variance(rollout.values, targets.returns, mask)
    if explained is not None:
        metrics["value/explained_variance"] = explained
    return metrics
