"""The supervised loss: the negative log-likelihood of response tokens, and of nothing else.

Knows tokens and trees; nothing about files, optimisers or where demonstrations come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from karat.errors import InputError
from karat.lm.trees import Tree


def trees_of(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tree]:
    """One tree for each different prompt, its responses as branches, in the order of first appearance.

    Args:
        prompts: token ids, one list per demonstration.    responses: token ids including the end mark.
    Raises: InputError when the lists differ in length or one is empty.
    """
    if len(prompts) != len(responses) or not prompts:
        raise InputError(
            f"trees_of: found {len(prompts)} prompts and {len(responses)} responses; expected as many, ≥ 1"
        )
    branches: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prompt, response in zip(prompts, responses, strict=True):
        branches.setdefault(tuple(prompt), []).append(tuple(response))
    return [Tree(prompt, tuple(group)) for prompt, group in branches.items()]


def n_response_tokens(trees: Sequence[Tree]) -> int:
    """The denominator of the loss: response tokens counted once each, over the whole minibatch."""
    return sum(len(branch) for tree in trees for branch in tree.branches)
