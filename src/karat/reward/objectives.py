"""From several objectives to one: weights, and floors that others must not fall below.

Knows a belief with its objectives; knows nothing about models, texts or votes.

Dimension letters: S draws, B responses, O objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from karat.belief import Belief, to_reference
from karat.errors import ConfigError
from karat.reward.settings import ObjectivesConfig

COMBINED = "combined"
"""Name of the one objective that is left."""


def combined(belief: Belief, config: ObjectivesConfig) -> Belief:
    """One objective out of several, draw by draw, so that every aggregator reads it like any other belief.

        x_b = Σ_o w_o·(r_bo − ref_o) − λ·Σ_j max(0, floor_j − (r_bj − ref_j))

    Returns: draws of x relative to the prompt's reference, whose own draws are 0.
    Raises: ConfigError, with its name, for an objective that the belief does not have.
    Source: the penalty of a constrained problem (Bertsekas 1999, Nonlinear Programming §4.2) with a fixed multiplier.
    """
    check_known(config, belief.objectives)
    relative = to_reference(belief)
    place = {name: index for index, name in enumerate(belief.objectives)}
    weights = config.weights or {belief.objectives[0]: 1.0}
    total = torch.zeros_like(relative[..., 0])
    for name, weight in weights.items():
        total = total + weight * relative[..., place[name]]
    for name, floor in config.floors.items():
        total = total - config.multiplier * (floor - relative[..., place[name]]).clamp_min(0)
    zeros = torch.zeros_like(belief.reference[..., :1])
    return Belief(total.unsqueeze(-1), zeros, belief.prompt_index, (COMBINED,))


def check_known(config: ObjectivesConfig, objectives: Sequence[str]) -> None:
    """Raise ConfigError, with its name, for an objective that there is no output for."""
    if unknown := [name for name in config.wanted if name not in objectives]:
        raise ConfigError(
            f"objectives: found {unknown[0]!r}, for which the reward has no output; it has {', '.join(objectives)}"
        )


def plain_objectives(config: ObjectivesConfig) -> Mapping[str, object]:
    """The configuration as plain values, for the card."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(config).items()}
