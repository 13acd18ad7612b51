"""What a run's policy is paid or charged beside the score: rewards inside responses, and a cost kept within a limit.

Knows numbers and names; knows nothing about where rewards and costs come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from karat.errors import ConfigError
from karat.policy.settings import ConstraintSettings
from karat.records import Finding
from karat.reward.settings import RewardConfig

METHODS = ("ppo", "rloo", "grpo", "reinforce_pp")
"""Methods that can pay inside a response and keep a cost within a limit."""
VOTE_METHODS = ("dpo", "ipo", "kto")
"""Methods that ask for no score: they learn from votes and labels."""


@dataclass(frozen=True)
class DenseSettings:
    """Rewards inside responses, from marks that raters set there (`reward.dense`)."""

    weights: dict[str, float] = field(default_factory=dict)
    """Class of marks → score of a response that is wholly of it: `step` (its mean mark, −1 … 1), `edited`, a span's
    class; negative for what is wrong. Empty = the score is paid at the end of the response."""
    step_pay: Literal["mean", "every"] = "mean"
    """What `step` weighs: the mean mark, or `every`: log P(not wrong) of each step, at its end, so that one wrong step
    counts whole in a long response."""

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.weights.values())) or (self.weights and not any(self.weights.values())):
            raise ConfigError(f"dense.weights: found {self.weights}; expected finite numbers, not all 0")
        if self.step_pay != "mean" and "step" not in self.weights:
            raise ConfigError(f"dense.step_pay: found {self.step_pay} without a weight of `step`; expected one")


@dataclass(frozen=True)
class ConstraintConfig:
    """A bound on the mean of one objective, kept by a price that follows it along the run (a Lagrange multiplier)."""

    objective: str = ""
    """What is bounded: an objective of the reward model, in logits relative to its reference responses."""
    cost: str = ""
    """What is bounded instead of an objective: `module:function`, or an http address, one number a response."""
    keep: Literal["above", "below"] = "above"
    """The side of the limit on which the mean is to stay: above for what is good, below for what is bad."""
    limit: float = 0.0
    """The bound on the mean over a rollout's responses."""
    start: float = 0.0
    """Price λ at the start, score per unit."""
    learning_rate: float = 0.05
    """Change of λ per iteration for a mean one unit beyond the limit."""
    largest: float = 100.0
    """λ never exceeds this."""

    def __post_init__(self) -> None:
        if bool(self.objective) == bool(self.cost):
            raise ConfigError(
                f"constraint: found {'both' if self.objective else 'neither'} of `objective` and `cost`; expected one"
            )
        if not math.isfinite(self.limit):
            raise ConfigError(f"constraint.limit: found {self.limit}; expected a finite number")
        _ = self.settings

    @property
    def sign(self) -> float:
        """What the bounded figure is multiplied by to be a cost, of which less is better."""
        return 1.0 if self.keep == "below" else -1.0

    @property
    def settings(self) -> ConstraintSettings:
        """The same for the optimiser, which keeps a cost at or below its limit."""
        return ConstraintSettings(self.sign * self.limit, self.start, self.learning_rate, self.largest)


def check_beside_settings(
    algorithm: str, dense: DenseSettings, constraint: ConstraintConfig | None, score: str = ""
) -> None:
    """Raise ConfigError for what the method cannot do: nothing that was asked for is passed over."""
    if score and algorithm in VOTE_METHODS:
        raise ConfigError(
            f"score: found {score!r} with algorithm={algorithm}, which learns from votes and is paid by nobody; expected none, "
            "or a method that is paid (ppo, rloo, …, ilql)"
        )
    named = ["dense.weights"] * bool(dense.weights) + ["constraint"] * (constraint is not None)
    if named and algorithm not in METHODS:
        raise ConfigError(f"{named[0]}: found with algorithm={algorithm}; expected one of {', '.join(METHODS)}")


def check_beside_read(reward: RewardConfig, *, marks: bool) -> None:
    """Refuse plain features that nothing would read.

    Args:
        marks: True = heads of marks inside responses are fitted.
    Raises: ConfigError.
    """
    if reward.beside and reward.posterior != "laplace" and not marks:
        raise ConfigError(
            f"reward.beside: found {', '.join(reward.beside)} with posterior {reward.posterior} and no heads of marks to read "
            "them; expected posterior: laplace, with which whole responses are scored by them too, or marks inside responses "
            "(span_marks, step_marks or corrections on a decoder; in a run dense.weights)"
        )


def beside_finding(reward: RewardConfig, classes: Sequence[str]) -> list[Finding]:
    """What reads the plain features where the reward of whole responses does not; nothing where it does.

    Args:
        classes: of marks whose heads were fitted.
    """
    if not reward.beside or reward.posterior == "laplace":
        return []
    detail = (
        f"heads of marks ({', '.join(classes)}) read {', '.join(reward.beside)}; whole responses are scored by the trunk alone: "
        "reward.posterior: laplace would let them read it too"
    )
    return [Finding("reward.beside", "What does the reward read beside the trunk?", "info", detail=detail)]


def check_measurable(aggregator: str, max_sycophancy: float | None, *, people: bool, pairs: bool) -> None:
    """Refuse what could not be computed or measured once everything is trained.

    Args:
        people: True = a population is fitted.    pairs: True = pairs of wrong beliefs are there, or the gate is off.
    Raises: ConfigError.
    """
    if aggregator == "jury_median" and not people:
        raise ConfigError(
            "aggregator: found jury_median without people to sit on the jury; expected pluralism.enabled: true"
        )
    if max_sycophancy is not None and not pairs:
        raise ConfigError(
            "gate.max_sycophancy: found a bound where nothing can be measured, for only the sandbox has pairs of wrong "
            "beliefs; expected null, or allow_ungated_reward: true"
        )
