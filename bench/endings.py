"""Natural endings from random weights: the end token's logit raised until it has a stated probability a step.

Read in the peers' environments too: torch only.
"""

from __future__ import annotations

import math

import torch
from torch import nn

END_PROBABILITY = 1 / 40


def raise_end_token(model: nn.Module, eos_id: int) -> None:
    """Give the output layer a bias under which a model with nearly even logits ends with END_PROBABILITY a step."""
    head = model.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[eos_id] = math.log(END_PROBABILITY / (1 - END_PROBABILITY) * len(bias))
    head.bias = nn.Parameter(bias, requires_grad=False)
