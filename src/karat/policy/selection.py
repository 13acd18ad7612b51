"""Which of several responses to one prompt are learned from.

Pure; knows scores and log-ratios as tensors. Knows nothing about texts or models.

Dimension letters: P prompts, K responses a prompt, C comparisons.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.errors import ConfigError, InputError


class ScoredPairs(NamedTuple):
    """Comparisons that a score makes, as rows of the responses."""

    better: Int[Tensor, "C"]
    """Row (prompt·K + sample) of the response with the higher score."""
    worse: Int[Tensor, "C"]
    """Row of the other."""
    difference: Float[Tensor, "C"]
    """Score of the better less that of the worse, ≥ 0."""


def best_indices(scores: Float[Tensor, "P K"]) -> Int[Tensor, "P"]:
    """The response with the highest score of each prompt, the first among equals.

    Raises: InputError for anything but a table of scores.
    """
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise InputError(f"best_indices: found scores of shape {tuple(scores.shape)}; expected [P, K] with K ≥ 1")
    # argmax promises no order among equals
    is_best = scores == scores.amax(1, keepdim=True)
    return is_best.int().cumsum(1).eq(1).logical_and(is_best).int().argmax(1)


def scored_pairs(scores: Float[Tensor, "P K"], which: Literal["extremes", "all"]) -> ScoredPairs:
    """Pairs of responses to one prompt, the one with the higher score first.

    Args:
        which: extremes = best against worst, one pair a prompt; all = every pair of different responses.
    Returns: pairs in order of prompts; where scores tie, the earlier response counts as the better with difference 0.
    Raises: InputError for fewer than two responses a prompt; ConfigError for another word.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(f"scored_pairs: found scores of shape {tuple(scores.shape)}; expected [P, K] with K ≥ 2")
    if which not in ("extremes", "all"):
        raise ConfigError(f"scored_pairs: found {which!r}; expected extremes or all")
    n_prompts, n_samples = scores.shape
    rows = torch.arange(n_prompts, device=scores.device).unsqueeze(1) * n_samples
    if which == "extremes":
        order = scores.argsort(dim=1, descending=True, stable=True)
        first, second = order[:, :1], order[:, -1:]
    else:
        i, j = torch.triu_indices(n_samples, n_samples, 1, device=scores.device)
        first, second = i.expand(n_prompts, -1), j.expand(n_prompts, -1)
    better, worse = (rows + first).flatten(), (rows + second).flatten()
    flat = scores.flatten()
    swap = flat[better] < flat[worse]
    better, worse = torch.where(swap, worse, better), torch.where(swap, better, worse)
    return ScoredPairs(better, worse, flat[better] - flat[worse])
