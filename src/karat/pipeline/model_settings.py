"""How a run's models are trained: all weights or adapters, and the dtype of their matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from karat.errors import ConfigError

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters instead of all weights; the reference policy is then the adapter switched off."""

    rank: int = 16
    """r, ≥ 1."""
    alpha: float = 32.0
    """The update is scaled by alpha/r."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(f"lora: found rank={self.rank}, alpha={self.alpha}; expected ≥ 1 and > 0")


def dtype_key(dtype: Dtype) -> list[str]:
    """The dtype as a stage's settings name it; [] for float32, so that stages done before it could be set stay done."""
    return [] if dtype == "float32" else [dtype]
