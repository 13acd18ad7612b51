"""Masked reductions and whitening. One mask polarity everywhere: True = counts.

Dimension letters: B responses, T response tokens, L all tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from karat.errors import MaskError

VARIANCE_FLOOR = 1e-8  # openai/lm-human-preferences@cbfd210 core.py `whiten`: rsqrt(var + 1e-8)


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the entries that count: Σ m·v / Σ m.

    Raises: MaskError when nothing counts; there is no mean of nothing.
    """
    n_counted = mask.sum()
    if n_counted == 0:
        raise MaskError(f"masked_mean: the mask of shape {tuple(mask.shape)} counts no entry; expected at least one")
    return torch.where(mask, values, torch.zeros_like(values)).sum() / n_counted


def masked_variance(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Biased variance over the entries that count: Σ m·(v − v̄)² / Σ m.

    Source: the biased form is openai/lm-human-preferences@cbfd210 core.py `whiten` (tf.nn.moments).
    """
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def whiten(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, center: bool) -> Float[Tensor, "*shape"]:
    """Scale to variance 1 over the entries that count, and to mean 0 if `center`.

        w = (v − v̄)/√(var + 1e-8)  [+ v̄ unless center]

    Args:
        values: any shape.    mask: True = counts; other entries come back as 0.
        center: True = the result has mean 0; False = the mean is kept (used for rewards, whose mean matters).
    Raises: MaskError when nothing counts.
    Source: openai/lm-human-preferences@cbfd210 core.py `whiten(shift_mean)`.
    Differs: entries that do not count are 0, and the flag names its effect.
    """
    mean = masked_mean(values, mask)
    scaled = (values - mean) * torch.rsqrt(masked_variance(values, mask) + VARIANCE_FLOOR)
    if not center:
        scaled = scaled + mean
    return torch.where(mask, scaled, torch.zeros_like(scaled))


def gather_logprobs(logits: Float[Tensor, "*rows V"], token_ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """log softmax(logits)[token], computed in float32 whatever the dtype of the logits (float64 stays)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    chosen = wide.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return chosen - wide.logsumexp(-1)


def check_response_mask(mask: Bool[Tensor, "B T"], caller: str) -> None:
    """Raise MaskError unless every row counts at least one token, from the first on and without a gap."""
    if mask.dtype != torch.bool:
        raise MaskError(f"{caller}: the mask has dtype {mask.dtype}; expected bool with True = counts")
    if mask.ndim != 2 or mask.shape[1] == 0:
        raise MaskError(f"{caller}: the mask has shape {tuple(mask.shape)}; expected [B, T] with T ≥ 1")
    empty = ~mask[:, 0]
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise MaskError(f"{caller}: row {row} does not count its first token; expected right-padded rows of ≥ 1 token")
    gap = mask[:, 1:] & ~mask[:, :-1]
    if bool(gap.any()):
        row = int(gap.any(1).nonzero()[0])
        raise MaskError(f"{caller}: row {row} counts a token after a gap; expected one run of counted tokens")
