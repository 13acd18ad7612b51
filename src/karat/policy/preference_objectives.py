"""The losses that learn from comparisons or labels directly, without a reward model.

All of them see the policy through log-ratios of whole responses, Σₜ (log π − log π_ref). A loss is a sum over pairs or
responses divided by a denominator of the *whole* minibatch. Pure; knows nothing about models or where judgements come
from.

Dimension letters: C comparisons, B responses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from karat.errors import ConfigError, InputError


class PairLoss(NamedTuple):
    """The loss of some comparisons, and what is logged about them as plain sums."""

    loss: Float[Tensor, ""]
    """Σ losses / denominator; carries the gradient."""
    n_right: Float[Tensor, ""]
    """Comparisons whose better response has the larger log-ratio."""
    margin_sum: Float[Tensor, ""]
    """Σ β·(log-ratio of the better − that of the worse): the implied difference of reward."""


class LabelLoss(NamedTuple):
    """The loss of some labelled responses, and what is logged about them as plain sums."""

    loss: Float[Tensor, ""]
    """Σ losses / denominator; carries the gradient."""
    good_reward_sum: Float[Tensor, ""]
    """Σ β·log-ratio over good responses."""
    bad_reward_sum: Float[Tensor, ""]
    """Σ β·log-ratio over bad ones."""


def dpo_loss(
    better: Float[Tensor, "C"],
    worse: Float[Tensor, "C"],
    *,
    beta: float,
    denominator: float,
    label_smoothing: float = 0.0,
    better_prob: Float[Tensor, "C"] | None = None,
    weights: Float[Tensor, "C"] | None = None,
) -> PairLoss:
    """Direct preference optimisation: a Bradley–Terry likelihood of the log-ratios.

        h = log-ratio(better) − log-ratio(worse)        ℓ = −p·log σ(β·h) − (1 − p)·log σ(−β·h)        p = 1 − ε

    Where votes follow σ(r(y) − r(y′)), the minimum is π_ref·e^{r/β}, whatever pairs were asked about.

    Args:
        better, worse: log-ratios of the two responses; carry the gradient.    beta: > 0, score per nat.
        denominator: comparisons of the minibatch, > 0.
        label_smoothing: ε in [0, ½), the share of votes taken to be mistaken.
        better_prob: p of each comparison instead, where it is known (a score's σ(Δ)): the loss in expectation over the
            vote, without its noise.
        weights: how much each comparison counts, ≥ 0; None = 1 each.
    Raises: ConfigError for β or ε out of range; InputError for shapes that differ or a denominator ≤ 0.
    Source: Rafailov et al. 2023, arXiv:2305.18290 eq. 7; ε: Mitchell 2023, "A note on DPO with noisy preferences".
    """
    _check_pairs("dpo_loss", better, worse, beta, denominator)
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"dpo_loss: found label_smoothing={label_smoothing}; expected [0, 0.5)")
    margin = beta * (better - worse)
    prob = torch.full_like(margin, 1 - label_smoothing) if better_prob is None else better_prob
    if prob.shape != margin.shape or (better_prob is not None and label_smoothing):
        raise InputError(
            f"dpo_loss: found better_prob {tuple(prob.shape)} with label_smoothing={label_smoothing}; expected one "
            f"probability for each of {margin.shape[0]} comparisons, and no smoothing beside it"
        )
    losses = -prob * functional.logsigmoid(margin) - (1 - prob) * functional.logsigmoid(-margin)
    return _pair_loss(losses, margin, denominator, weights)


def ipo_loss(
    better: Float[Tensor, "C"],
    worse: Float[Tensor, "C"],
    *,
    beta: float,
    denominator: float,
    weights: Float[Tensor, "C"] | None = None,
) -> PairLoss:
    """Identity preference optimisation: a squared distance that stays finite where votes are unanimous.

        ℓ = (log-ratio(better) − log-ratio(worse) − 1/(2β))²

    With pairs of independent draws from μ, the minimum is π_ref·e^{E_{y′∼μ}[p*(y ≻ y′)]/β}, whatever p* is.

    Args:
        better, worse: log-ratios; carry the gradient. Sums over tokens as in the paper, or means over tokens, as TRL
            and the paper's experiments have it; then β is in units of a mean.
        beta: τ of the paper, > 0.    denominator: comparisons of the minibatch, > 0.
        weights: how much each comparison counts, ≥ 0; None = 1 each.
    Raises: ConfigError for β ≤ 0; InputError for shapes that differ or a denominator ≤ 0.
    Source: Azar et al. 2023, arXiv:2310.12036 eq. 17.
    """
    _check_pairs("ipo_loss", better, worse, beta, denominator)
    gap = better - worse
    return _pair_loss((gap - 1 / (2 * beta)).square(), beta * gap, denominator, weights)


def kto_loss(
    log_ratio: Float[Tensor, "B"],
    good_mask: Bool[Tensor, "B"],
    kl: Float[Tensor, ""],
    *,
    beta: float,
    denominator: float,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
    weights: Float[Tensor, "B"] | None = None,
) -> LabelLoss:
    """Kahneman–Tversky optimisation: labels on single responses, valued from a reference point.

        good: λ_D·(1 − σ(β·(log-ratio − z₀)))        bad: λ_U·(1 − σ(β·(z₀ − log-ratio)))        z₀ = max(0, KL), detached

    Args:
        log_ratio: of each response; carries the gradient.    good_mask: True = judged good.
        kl: estimate of KL(π ‖ π_ref) in nats per response, from mismatched pairs or samples; no gradient is taken.
        beta: > 0.    denominator: responses of the minibatch, > 0.
        good_weight, bad_weight: λ_D, λ_U > 0; λ_D·n_good/(λ_U·n_bad) in [1, 4/3] is advised.
        weights: how much each response counts, ≥ 0; None = 1 each.
    Raises: ConfigError for β or a weight ≤ 0; InputError for shapes that differ or a denominator ≤ 0.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306 eq. 8.
    """
    if log_ratio.shape != good_mask.shape or log_ratio.ndim != 1:
        raise InputError(
            f"kto_loss: found {tuple(log_ratio.shape)} log-ratios and {tuple(good_mask.shape)} labels; expected [B] and [B]"
        )
    _check_positive("kto_loss", beta=beta, good_weight=good_weight, bad_weight=bad_weight)
    _check_denominator("kto_loss", denominator)
    start = kl.detach().clamp_min(0)
    good = good_weight * (1 - torch.sigmoid(beta * (log_ratio - start)))
    bad = bad_weight * (1 - torch.sigmoid(beta * (start - log_ratio)))
    implied, zeros = beta * log_ratio.detach(), torch.zeros_like(log_ratio)
    losses = torch.where(good_mask, good, bad)
    return LabelLoss(
        (losses if weights is None else weights * losses).sum() / denominator,
        torch.where(good_mask, implied, zeros).sum(),
        torch.where(good_mask, zeros, implied).sum(),
    )


def mismatched_kl(logprobs: Float[Tensor, "B"], ref_logprobs: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """KTO's estimate of KL(π ‖ π_ref): max(0, mean log-ratio) of responses that belong to other prompts.

    Biased and cheap: the responses are not the policy's own. It only has to tell how far the policy has moved on texts
    that nobody asked for.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306 §4.1 ("KL estimate").
    """
    return (logprobs - ref_logprobs).mean().detach().clamp_min(0)


def _pair_loss(losses: Tensor, margin: Tensor, denominator: float, weights: Tensor | None) -> PairLoss:
    still = margin.detach()
    total = (losses if weights is None else weights * losses).sum()
    return PairLoss(total / denominator, (still > 0).sum().float(), still.sum())


def _check_pairs(caller: str, better: Tensor, worse: Tensor, beta: float, denominator: float) -> None:
    if better.shape != worse.shape or better.ndim != 1:
        raise InputError(
            f"{caller}: found {tuple(better.shape)} better and {tuple(worse.shape)} worse responses; expected [C] and [C]"
        )
    _check_positive(caller, beta=beta)
    _check_denominator(caller, denominator)


def _check_positive(caller: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{caller}: found {name}={value}; expected a finite number > 0")


def _check_denominator(caller: str, denominator: float) -> None:
    if not denominator > 0:
        raise InputError(f"{caller}: found the denominator {denominator}; expected the minibatch's count, > 0")
