"""How a model is fine-tuned. Knows numbers and their limits, nothing about what they do."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from karat.config import check_learning_rates, in_range
from karat.errors import ConfigError


@dataclass(frozen=True)
class SFTConfig:
    """How to imitate."""

    epochs: float = 1.0
    """Passes over the demonstrations."""
    batch_size: int = 64
    """Demonstrations per optimiser step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; linear warm-up, then linear to 0."""
    warmup_frac: float = 0.05
    """Share of the steps spent warming up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    token_budget: int = 8192
    """Tokens in one forward pass; memory, not the result, depends on it."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 = none."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1 or self.token_budget < 1:
            raise ConfigError(
                f"sft: found epochs={self.epochs}, batch_size={self.batch_size}, token_budget={self.token_budget}; "
                "expected all of them positive"
            )
        check_learning_rates("sft", self, "learning_rate")
        if not 0 <= self.warmup_frac < 1 or self.max_grad_norm <= 0:
            raise ConfigError(
                f"sft: found warmup_frac={self.warmup_frac}, max_grad_norm={self.max_grad_norm}; expected [0, 1) and > 0"
            )
        in_range("sft", self, 0, inf, "weight_decay", "checkpoint_every")

    def n_steps(self, n_examples: int) -> int:
        """Optimiser steps for that many demonstrations, at least 1."""
        return max(1, round(self.epochs * n_examples / self.batch_size))
