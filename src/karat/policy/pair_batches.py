"""Comparisons as trees: one prompt with the responses that are compared, and the loss of some of them.

Knows trees, log-probabilities and the preference losses; knows nothing about where comparisons come from.

Dimension letters: P trees, K responses a tree, C comparisons a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.errors import InputError
from karat.lm.trees import Tree, TreeBatch, branch_sums
from karat.policy.preference_objectives import PairLoss, dpo_loss, ipo_loss


@dataclass(frozen=True)
class ComparedTrees:
    """Trees of K responses each, and which of them are compared with which."""

    trees: tuple[Tree, ...]
    """One prompt with its K responses each."""
    better: Int[Tensor, "P C"]
    """Branch of the better response of each comparison."""
    worse: Int[Tensor, "P C"]
    """Branch of the other."""
    better_prob: Float[Tensor, "P C"] | None
    """Probability that the better one wins; None = it won."""
    ref_sums: Float[Tensor, "P K"] | None
    """log π_ref of each whole response; None = to be computed when needed."""

    @property
    def n_branches(self) -> int:
        """K."""
        return len(self.trees[0].branches)

    @property
    def n_compared(self) -> int:
        """C."""
        return self.better.shape[1]

    def __post_init__(self) -> None:
        sizes = {len(tree.branches) for tree in self.trees}
        if len(sizes) != 1 or self.better.shape != self.worse.shape or self.better.shape[0] != len(self.trees):
            raise InputError(
                f"ComparedTrees: found {len(self.trees)} trees of {sorted(sizes)} responses and comparisons "
                f"{tuple(self.better.shape)}, {tuple(self.worse.shape)}; expected one size, [P, C] and [P, C]"
            )


@dataclass(frozen=True)
class PairObjective:
    """Which loss, and its constants as plain values."""

    loss: str
    """dpo or ipo."""
    beta: float
    """β."""
    label_smoothing: float = 0.0
    """dpo: ε."""
    per_token: bool = False
    """ipo: True = log-ratios are means over tokens."""


def pair_batch_loss(
    compared: ComparedTrees,
    indices: Sequence[int],
    batch: TreeBatch,
    *,
    logprobs: Float[Tensor, " n"],
    ref_logprobs: Float[Tensor, " n"] | None,
    objective: PairObjective,
    denominator: float,
) -> PairLoss:
    """The loss of the comparisons in one micro-batch.

    Args:
        indices: trees of the minibatch, in the order in which its branches are numbered.
        batch: some of those trees, whole.    logprobs: log π of its response tokens; carries the gradient.
        ref_logprobs: log π_ref of the same; None = from `compared.ref_sums`.
        denominator: comparisons of the whole minibatch.
    """
    k = compared.n_branches
    # a tree's branches follow one another, so that rows of K sums are trees in the order of the batch
    place = batch.branch_id.view(-1, k)[:, 0] // k
    trees = torch.as_tensor(indices, device=place.device)[place]
    sums = branch_sums(logprobs, batch).view(-1, k)
    if ref_logprobs is not None:
        ref = branch_sums(ref_logprobs, batch).view(-1, k)
    elif compared.ref_sums is not None:
        ref = compared.ref_sums[trees].to(sums.dtype)
    else:
        raise InputError("pair_batch_loss: found no reference log-probabilities; expected them here or in ref_sums")
    log_ratio = sums - ref
    if objective.per_token:
        log_ratio = log_ratio / batch.lengths.view(-1, k)
    better = log_ratio.gather(1, compared.better[trees]).flatten()
    worse = log_ratio.gather(1, compared.worse[trees]).flatten()
    if objective.loss == "ipo":
        return ipo_loss(better, worse, beta=objective.beta, denominator=denominator)
    prob = None if compared.better_prob is None else compared.better_prob[trees].flatten().to(better.dtype)
    return dpo_loss(
        better,
        worse,
        beta=objective.beta,
        denominator=denominator,
        label_smoothing=objective.label_smoothing,
        better_prob=prob,
    )


def sums_of_trees(
    flats: Sequence[Float[Tensor, " n"]], batches: Sequence[TreeBatch], n_branches: int
) -> Float[Tensor, "P K"]:
    """Per-token values of packed trees of K branches each, summed over each branch, in the caller's order."""
    sums = torch.cat([branch_sums(flat, batch) for flat, batch in zip(flats, batches, strict=True)])
    order = torch.cat([batch.branch_id for batch in batches])
    return torch.empty_like(sums).index_copy(0, order, sums).view(-1, n_branches)
