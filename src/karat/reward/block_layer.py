"""How much each block of features is trusted, by marginal likelihood: one prior precision a block.

    w_k ~ N(0, I/λ_k)        λ_k ← γ_k/‖w_k‖², γ_k = d_k − λ_k·tr(H⁻¹)_kk

A block whose columns are multiplied by λ_1^½/λ_k^½ has the first block's precision, so that what is found is one factor a
block and `fit_last_layer` stays as it is. Knows features and answers; knows nothing about what the blocks are.

Source: MacKay 1992, Neural Computation 4(3), pp. 415–447, with one hyperparameter a group of weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from karat.reward.last_layer import LastLayer, fit_last_layer
from karat.reward.linear_answers import Answers

ROUNDS = 12
SETTLED = 0.1
"""Nats of evidence a round has to gain."""
MOST_CHANGE = 4.0
"""Factor by which a block's scale may change in a round."""
SMALLEST = 1e-3
"""Scale below which a block counts as off, relative to where it began."""
START = 0.3
"""Root mean square of a block's rows at the beginning, relative to the first block's."""


def block_scales(
    features: np.ndarray,
    widths: Sequence[int],
    observations: Sequence[Answers],
    *,
    tolerance: float = 1e-2,
) -> tuple[np.ndarray, LastLayer]:
    """The factor of each block, the first one's being 1, and the posterior over the weights of the scaled features.

    Args:
        features: the blocks side by side, [N, Σ widths].    tolerance: as `fit_last_layer` has it, of the fits on the way.
    """
    edges = np.concatenate([[0], np.cumsum(widths)])
    blocks = [slice(a, b) for a, b in itertools.pairwise(edges)]
    size = np.array([_rms(features[:, block]) for block in blocks])
    begin = np.where(np.arange(len(blocks)) == 0, 1.0, START * size[0] / np.maximum(size, 1e-12))
    scales, best = begin.copy(), None
    start: np.ndarray | None = None
    for _ in range(ROUNDS if len(blocks) > 1 else 1):
        layer = fit_last_layer(features * spread(scales, widths), observations, start=start, tolerance=tolerance)
        if best is not None and layer.log_evidence < best[1].log_evidence + SETTLED:
            best = max(best, (scales, layer), key=lambda one: one[1].log_evidence)
            break
        best = (scales, layer)
        free = np.diag(layer.covariance)
        wanted = []
        for block in blocks:
            known = (block.stop - block.start) - layer.prior_precision * float(free[block].sum())
            size_of = float((layer.mean[block] ** 2).sum())
            wanted.append(layer.prior_precision * size_of / max(known, 1e-6))  # (λ/λ_k) of the block
        change = np.sqrt(np.array(wanted) / wanted[0]).clip(1 / MOST_CHANGE, MOST_CHANGE)
        new = np.maximum(scales * change, begin * SMALLEST)
        new[0] = 1.0
        start = layer.mean * spread(scales / new, widths)
        scales = new
    assert best is not None
    return best


def spread(scales: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """One factor a column."""
    return np.repeat(scales, widths)


def _rms(block: np.ndarray) -> float:
    return float(np.sqrt((block**2).sum(1).mean()))
