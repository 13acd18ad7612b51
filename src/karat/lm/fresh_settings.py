"""The size of a new model. Knows numbers and their limits; knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from karat.config import in_range
from karat.errors import ConfigError


@dataclass(frozen=True)
class DecoderShape:
    """The size of a small decoder."""

    hidden: int = 128
    """Width of the residual stream."""
    mlp: int = 384
    """Width of the feed-forward layers."""
    layers: int = 3
    """Number of blocks."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 2
    """Key and value heads."""
    head_size: int = 32
    """Width of a head."""
    context: int = 128
    """Longest sequence in tokens."""

    def __post_init__(self) -> None:
        in_range("model", self, 1, inf, *vars(self))
        if self.heads % self.kv_heads:
            raise ConfigError(f"model: {self.heads} heads do not divide into {self.kv_heads} key-value heads")
