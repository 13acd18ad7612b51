"""The reward model: S linear heads on one trunk, each with its own fixed random prior function.

    r_s(x, y) = (w_s + β·p_s)·φ(x, y) + γ_s·log(1 + characters of y)        logits: r_s / T

With several objectives each has such heads of its own on the same features; the length term and T belong to the first.
p_s is drawn once and never trained. Because it is linear in the features, the mean over the heads is one linear
layer, and a decoder's mean head loads as an ordinary sequence-classification model. Knows features and lengths;
knows nothing about votes or raters.

Dimension letters: S heads (posterior draws), N texts, O objectives, A annotators, d features.

Source: randomised prior functions are Osband et al. 2018, arXiv:1806.03335; last-token scores and the initial scale
    1/√(d + 1) are Stiennon et al. 2020, arXiv:2009.01325, as in openai/lm-human-preferences@cbfd210.
Differs: the prior functions share the trunk, so they diversify the last layer only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from karat.errors import ConfigError
from karat.reward.settings import Bootstrap, HeadConfig
from karat.reward.trunk import Encoded, Trunk
from karat.seeding import numpy_generator, torch_generator
from karat.statements import PREFERENCE


class RewardModel(nn.Module):
    """A trunk and S heads; `forward` gives raw scores, `logits` the calibrated ones."""

    def __init__(
        self, trunk: Trunk, config: HeadConfig, *, seed: int, objectives: Sequence[str] = (PREFERENCE,)
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.config = config
        self.objectives = tuple(objectives)
        self.trunk_module = trunk.module
        shape = (config.n_heads, trunk.width)
        scale = 1 / math.sqrt(trunk.width + 1)
        initial = torch.randn(shape, generator=torch_generator(seed, "reward", "heads")) * (scale * config.init_scale)
        prior = torch.randn(shape, generator=torch_generator(seed, "reward", "prior")) * (scale * config.prior_scale)
        # drawn on the processor, so that a seed draws the same wherever the trunk works
        device = next(trunk.module.parameters()).device
        self.weight = nn.Parameter(initial.to(device))
        self.length_coef = nn.Parameter(torch.zeros(config.n_heads, device=device), requires_grad=config.length_term)
        self.register_buffer("prior", prior.to(device))
        self.register_buffer("temperature", torch.ones((), device=device))
        n_further = len(self.objectives) - 1
        generators = (
            torch_generator(seed, "reward", "heads", "further"),
            torch_generator(seed, "reward", "prior", "further"),
        )
        drawn = [torch.randn(n_further, *shape, generator=generator) * scale for generator in generators]
        self.further_weight = nn.Parameter((drawn[0] * config.init_scale).to(device), requires_grad=n_further > 0)
        self.register_buffer("further_prior", (drawn[1] * config.prior_scale).to(device))

    @property
    def n_heads(self) -> int:
        """S."""
        return self.config.n_heads

    @property
    def scores_preference(self) -> bool:
        """True = the first objective is what comparisons speak of, so that votes can tell its scale."""
        return self.objectives[0] == PREFERENCE

    def features(self, items: Sequence[Encoded], *, token_budget: int) -> Float[Tensor, "N d"]:
        """Features of the texts, in the order given."""
        return self.trunk.features(items, token_budget=token_budget)

    def forward(
        self, features: Float[Tensor, "N d"], log_length: Float[Tensor, " N"], *, with_length: bool = True
    ) -> Float[Tensor, "S N"]:
        """Raw scores of each head for the first objective; divide by `temperature` for logits.

        Args:
            log_length: log(1 + characters) of each response, see `log_lengths`.
            with_length: False = the length term is left out, which answers "what does it say beyond length?".
        """
        scores = (self.weight + self.prior) @ features.T
        if self.config.length_term and with_length:
            scores = scores + self.length_coef[:, None] * log_length.to(scores)
        return scores

    def logits(
        self, features: Float[Tensor, "N d"], log_length: Float[Tensor, " N"], *, with_length: bool = True
    ) -> Float[Tensor, "S N"]:
        """Calibrated scores: raw / T."""
        return self(features, log_length, with_length=with_length) / self.temperature

    def every(
        self, features: Float[Tensor, "N d"], log_length: Float[Tensor, " N"], *, with_length: bool = True
    ) -> Float[Tensor, "S N O"]:
        """Raw scores of each head for every objective."""
        first = self(features, log_length, with_length=with_length).unsqueeze(-1)
        if len(self.objectives) == 1:
            return first
        further = (self.further_weight + self.further_prior) @ features.T  # [O − 1, S, N]
        return torch.cat([first, further.permute(1, 2, 0)], dim=-1)

    def calibrated(self, raw: Float[Tensor, "S N O"]) -> Float[Tensor, "S N O"]:
        """Logits of raw scores, wherever those are: the first objective divided by T, the others as they are."""
        return torch.cat([raw[..., :1] / self.temperature.to(raw.device), raw[..., 1:]], dim=-1)

    def mean_weight(self) -> Float[Tensor, " d"]:
        """The one linear layer that gives the mean of the first objective's logits, without the length term."""
        return ((self.weight + self.prior).mean(0) / self.temperature).detach()


def log_lengths(texts: Sequence[str]) -> Float[Tensor, " N"]:
    """log(1 + characters): a length that no tokenizer and no truncation changes."""
    return torch.tensor([math.log1p(len(text)) for text in texts], dtype=torch.float32)


def bootstrap_weights(n_heads: int, annotators: Sequence[str], *, kind: Bootstrap, seed: int) -> Float[Tensor, "S A"]:
    """How much each head trusts each annotator: Exponential(1), Poisson(1) or 1, a function of (seed, head, name).

    Whole raters are resampled, because the votes of one rater are not independent.

    Raises: ConfigError when Poisson weights leave a head without any rater.
    Source: Rubin 1981 (Bayesian bootstrap) for the exponential weights.
    """
    if kind == "none":
        return torch.ones(n_heads, len(annotators))
    rows = np.empty((n_heads, len(annotators)))
    for head in range(n_heads):
        for column, name in enumerate(annotators):
            rng = numpy_generator(seed, "reward", "bootstrap", head, name)
            rows[head, column] = rng.exponential() if kind == "exponential" else rng.poisson()
    totals = rows.sum(1, keepdims=True)
    if (totals == 0).any():
        raise ConfigError(
            f"bootstrap: Poisson weights left a head with none of {len(annotators)} raters; use bootstrap: exponential"
        )
    return torch.tensor(rows / totals * len(annotators), dtype=torch.float32)
