"""From the heads' scores to a `Belief`: joint draws, and the reference that each prompt's draws are measured from.

Knows scores in logits and which prompt they belong to; knows nothing about trunks or texts.

Dimension letters: S heads (draws), B responses, P prompts.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.belief import Belief
from karat.errors import InputError


def belief_of(logits: Float[Tensor, "S B"], reference: Float[Tensor, "S P"], prompt_index: Int[Tensor, " B"]) -> Belief:
    """The belief of an ensemble: head s is joint draw s.

    Args:
        reference: mean logit of each head over the reference responses of each prompt; P = 1 = one for all.
        prompt_index: column of `reference` for each response.
    """
    return Belief(logits.unsqueeze(-1), reference.unsqueeze(-1), prompt_index)


def prompt_reference(
    logits: Float[Tensor, "S B"], prompt_index: Int[Tensor, " B"], n_prompts: int
) -> Float[Tensor, "S P"]:
    """Mean logit of each head over the responses to each prompt.

    Raises: InputError when a prompt has no response.
    """
    counts = torch.bincount(prompt_index, minlength=n_prompts)
    if bool((counts == 0).any()):
        raise InputError(
            f"prompt_reference: prompt {int((counts == 0).nonzero()[0])} of {n_prompts} has no reference response; "
            "expected at least one"
        )
    return torch.zeros(logits.shape[0], n_prompts).index_add_(1, prompt_index, logits) / counts
