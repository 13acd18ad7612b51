"""How the KL coefficient β, and the price λ of a constraint, change over the run.

The unit of every KL here is nats per sequence. Each controller has `coef`, `update` and a plain-JSON state that belongs
to the checkpoint. Knows nothing about how KL or cost is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from karat.errors import ConfigError, InputError

OPENAI_COEF = 0.15
OPENAI_TARGET = 6.0
OPENAI_HORIZON = 10_000
ERROR_LIMIT = 0.2
"""Source of all four: openai/lm-human-preferences@cbfd210 train_policy.py `AdaptiveKLController`, launch.py;
Ziegler et al. 2019, arXiv:1909.08593 §2.2."""


class KLController(Protocol):
    """What the recipe needs to know of either controller."""

    coef: float
    """β, units of score per nat; a watcher may raise it."""

    def update(self, kl_per_sequence: float, n_sequences: int) -> None:
        """Take note of one rollout's KL."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        ...


class FixedKL:
    """β stays as it is."""

    def __init__(self, coef: float) -> None:
        self.coef = _positive("FixedKL", "coef", coef, zero=True)

    def update(self, kl_per_sequence: float, n_sequences: int) -> None:
        """Checks its arguments and changes nothing."""
        _check_update(kl_per_sequence, n_sequences)

    def state_dict(self) -> dict[str, Any]:
        """{"coef": β}"""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        self.coef = float(state["coef"])


class AdaptiveKL:
    """β follows the measured KL towards a target.

        e = clip(KL/target − 1, ±0.2)        β ← β·(1 + e·n/horizon)

    KL in nats per *sequence* (k1, before the update), n = sequences of the rollout, horizon in sequences.
    """

    def __init__(
        self, coef: float = OPENAI_COEF, *, target: float = OPENAI_TARGET, horizon: float = OPENAI_HORIZON
    ) -> None:
        self.coef = _positive("AdaptiveKL", "coef", coef)
        self.target = _positive("AdaptiveKL", "target", target)
        self.horizon = _positive("AdaptiveKL", "horizon", horizon)

    def update(self, kl_per_sequence: float, n_sequences: int) -> None:
        """One step of the proportional controller.

        Raises: InputError for a KL that is not finite or fewer than one sequence; ConfigError if the horizon is so
            short that β could turn negative.
        """
        _check_update(kl_per_sequence, n_sequences)
        error = min(max(kl_per_sequence / self.target - 1, -ERROR_LIMIT), ERROR_LIMIT)
        factor = 1 + error * n_sequences / self.horizon
        if factor <= 0:
            raise ConfigError(
                f"AdaptiveKL: {n_sequences} sequences a rollout with horizon {self.horizon:g} multiply β by {factor:g}; "
                f"expected a horizon above {ERROR_LIMIT * n_sequences:g}"
            )
        self.coef *= factor

    def state_dict(self) -> dict[str, Any]:
        """{"coef": β}; target and horizon are configuration."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        self.coef = float(state["coef"])


class LagrangeMultiplier:
    """The price λ that keeps a mean cost at or below its limit.

        λ ← max(0, λ + η·(mean cost − limit))

    At rest either λ = 0 and the limit is not reached, or the mean cost equals the limit (complementary slackness).

    Source: Dai et al. 2023, arXiv:2310.12773 eq. 11 (safe RLHF).
    Differs: projected ascent on λ itself, where safe-rlhf ascends log λ and never reaches 0; the reward is not divided
        by 1 + λ, so that β keeps its meaning.
    """

    def __init__(self, coef: float, *, limit: float, learning_rate: float, largest: float = math.inf) -> None:
        self.coef = _positive("LagrangeMultiplier", "coef", coef, zero=True)
        self.learning_rate = _positive("LagrangeMultiplier", "learning_rate", learning_rate)
        if not math.isfinite(limit) or not largest > 0:
            raise ConfigError(f"LagrangeMultiplier: found limit={limit}, largest={largest}; expected finite and > 0")
        self.limit, self.largest = float(limit), float(largest)

    def update(self, mean_cost: float) -> None:
        """One step on the mean cost of a rollout.

        Raises: InputError for a cost that is not finite.
        """
        if not math.isfinite(mean_cost):
            raise InputError(f"LagrangeMultiplier: found the mean cost {mean_cost}; expected a finite number")
        self.coef = min(max(0.0, self.coef + self.learning_rate * (mean_cost - self.limit)), self.largest)

    def state_dict(self) -> dict[str, Any]:
        """{"coef": λ}; limit and learning rate are configuration."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        self.coef = float(state["coef"])


def _positive(kind: str, name: str, value: float, *, zero: bool = False) -> float:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ConfigError(f"{kind}: found {name}={value}; expected a finite number {'≥' if zero else '>'} 0")
    return float(value)


def _check_update(kl_per_sequence: float, n_sequences: int) -> None:
    if not math.isfinite(kl_per_sequence) or n_sequences < 1:
        raise InputError(
            f"KL controller: found KL={kl_per_sequence} over {n_sequences} sequences; expected a finite KL and ≥ 1"
        )
