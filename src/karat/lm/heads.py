"""Scalar outputs on hidden states: values of a policy, heads of a reward model. Knows vectors only."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """One or several linear read-outs of a hidden state.

        out = W·h + b,   W ~ N(0, 1/(d + 1)) (standard deviation 1/√(d + 1)),   b = 0

    Source: openai/lm-human-preferences@cbfd210 rewards.py and Huang et al., "The N Implementation Details of RLHF with
        PPO", RM-2: reward heads start at N(0, 1/√(d_model + 1)) with zero bias.
    """

    def __init__(self, hidden_size: int, n_heads: int = 1, *, generator: torch.Generator | None = None) -> None:
        """Args: generator: draws the weights; None = all weights 0 (a value head that starts by saying nothing)."""
        super().__init__()
        weight = torch.zeros(n_heads, hidden_size)
        if generator is not None:
            weight.normal_(0.0, (hidden_size + 1) ** -0.5, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(n_heads))

    def forward(self, hidden: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows heads"]:
        """Read-outs in the dtype of the head, whatever the trunk's."""
        return nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
