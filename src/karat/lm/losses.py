"""Token losses as sums with their counts, so that a step does not depend on how its batch was cut up.

Knows log-probabilities and masks; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from karat.errors import MaskError


class TokenNll(NamedTuple):
    """Negative log-likelihood of some tokens."""

    total: Float[Tensor, ""]
    """Sum over the tokens, in nats."""
    n_tokens: int
    """How many tokens were summed."""


def token_nll(logprobs: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None) -> TokenNll:
    """−Σ log π(token) over the tokens that count.

    Divide `total` by the number of tokens of the *whole* minibatch (see `n_tokens_of`), never by that of a micro-batch:
    the mean of means weights tokens by the company they keep.

    Args:
        mask: True = counts; None = all do.
    Raises: MaskError when nothing counts.
    Source: the fault of averaging micro-batch means is OpenRLHF c5bebd14.
    """
    n_tokens = logprobs.numel() if mask is None else int(mask.sum())
    if n_tokens == 0:
        raise MaskError(
            f"token_nll: found no token that counts in shape {tuple(logprobs.shape)}; expected at least one"
        )
    counted = logprobs if mask is None else logprobs.where(mask, 0.0)
    return TokenNll(-counted.sum(), n_tokens)


def total_nll(logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """−Σ log π(token) of a part of a minibatch that may hold no token: then 0, with a gradient of 0."""
    return -logprobs.sum()


def n_tokens_of(parts: Iterable[TokenNll]) -> int:
    """Tokens of a whole minibatch: the one denominator of all its parts."""
    return sum(part.n_tokens for part in parts)


def mean_nll(parts: Iterable[TokenNll]) -> float:
    """Nats per token over several parts, each token with equal weight."""
    known = list(parts)
    return sum(float(part.total.detach()) for part in known) / n_tokens_of(known)
