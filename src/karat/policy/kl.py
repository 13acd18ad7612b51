"""Estimates of the KL divergence from the reference policy, from the log-probabilities of sampled tokens.

Never clamped: a wild value is what the reader must see. Pure; knows nothing about penalties or controllers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from karat.errors import InputError
from karat.tensors import check_response_mask, masked_mean


def k1(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log π − log π_ref: unbiased for KL(π ‖ π_ref) under samples from π, may be negative.

    Source: Schulman 2020, joschu.net/blog/kl-approx.html. As a *loss* its expected gradient is 0, therefore it is
        used as a reward only.
    """
    return logprobs - ref_logprobs


def k2(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """½ (log π − log π_ref)²: biased, never negative; as a loss its expected gradient is that of KL(π ‖ π_ref).

    Source: Schulman 2020, joschu.net/blog/kl-approx.html.
    """
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(π_ref/π − 1) − log(π_ref/π): unbiased for KL(π ‖ π_ref) and never negative.

    Source: Schulman 2020, joschu.net/blog/kl-approx.html.
    Differs: expm1, so that small divergences keep their digits.
    """
    log_inverse = ref_logprobs - logprobs
    return torch.expm1(log_inverse) - log_inverse


def full_kl(logprobs: Float[Tensor, "n V"], ref_logprobs: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
    """Σ_v π(v)·(log π(v) − log π_ref(v)) at each step: the KL of the next token, without an estimator's noise.

    Summed over the tokens drawn by π it is unbiased for the KL of responses, with less variance than k1. Tokens that
    π cannot draw count 0; one that π_ref cannot draw and π can makes it infinite.

    Args:
        logprobs, ref_logprobs: log-probabilities of all tokens at n steps.
    """
    gap = torch.where(logprobs == -torch.inf, torch.zeros_like(logprobs), logprobs - ref_logprobs)
    return (logprobs.exp() * gap).sum(-1)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True)
class KlSummary:
    """KL(π ‖ π_ref) over a batch, in nats, by each estimator."""

    k1_per_sequence: float
    """Mean over responses of Σₜ k1: the unit of the KL budget and of the adaptive controller."""
    k2_per_sequence: float
    """Mean over responses of Σₜ k2."""
    k3_per_sequence: float
    """Mean over responses of Σₜ k3 (token-wise k3 summed, not k3 of the whole response's ratio)."""
    k1_per_token: float
    """Σ k1 / counted tokens of the batch."""
    k2_per_token: float
    """Σ k2 / counted tokens of the batch."""
    k3_per_token: float
    """Σ k3 / counted tokens of the batch."""


def sequence_kl(
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    estimator: str = "k1",
) -> Float[Tensor, "B"]:
    """Σₜ m·k(t) for each response, in nats.

    Raises: InputError for an unknown estimator; MaskError for a row without a counted token or with a gap.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"sequence_kl: found the estimator {estimator!r}; expected one of {', '.join(ESTIMATORS)}")
    check_response_mask(response_mask, "sequence_kl")
    per_token = ESTIMATORS[estimator](logprobs, ref_logprobs)
    return torch.where(response_mask, per_token, torch.zeros_like(per_token)).sum(1)


def kl_summary(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]
) -> KlSummary:
    """All three estimators, per sequence and per token, masked and unclamped, summed in float64."""
    # on the processor: a dozen numbers are read one by one, and not every device has float64
    new, ref, response_mask = logprobs.cpu().double(), ref_logprobs.cpu().double(), response_mask.cpu()
    figures: dict[str, float] = {}
    for name, estimator in ESTIMATORS.items():
        figures[f"{name}_per_sequence"] = float(sequence_kl(new, ref, response_mask, estimator=name).mean())
        figures[f"{name}_per_token"] = float(masked_mean(estimator(new, ref), response_mask))
    return KlSummary(**figures)
