"""Gold and proxy as functions of the distance moved: best-of-n curves and a policy's path, side by side.

Pure. Dimension letters: P prompts, N samples per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from karat.errors import InputError


@dataclass(frozen=True)
class FrontierPoint:
    """One point of a gold-against-KL curve."""

    name: str
    """What was measured: `best-of-16`, `ppo step 40`."""
    kl: float
    """Distance from the reference policy, nats per sequence."""
    proxy: float
    """Mean learned score, optimiser's units."""
    gold: float | None
    """Mean gold reward; None where no gold is known."""


def best_of_weights(n: int, n_samples: int) -> NDArray[np.float64]:
    """Probability that the i-th smallest of N exchangeable samples is the best of n drawn without replacement.

        w_i = C(i − 1, n − 1) / C(N, n),   i = 1 … N

    Args:
        n: draws, 1 ≤ n ≤ N.    n_samples: N.
    Raises: InputError when n is outside its range.
    Source: the usual order-statistic (U-statistic) identity; the unbiased best-of-n estimator of Nakano et al. 2021,
        arXiv:2112.09332 appendix, is Σ w_i·value_(i).
    """
    if not 1 <= n <= n_samples:
        raise InputError(f"best-of-n: found n = {n} with {n_samples} samples a prompt; expected 1 ≤ n ≤ {n_samples}")
    total = math.lgamma(n_samples + 1) - math.lgamma(n + 1) - math.lgamma(n_samples - n + 1)
    weights = np.zeros(n_samples)
    for i in range(n, n_samples + 1):
        weights[i - 1] = math.exp(math.lgamma(i) - math.lgamma(n) - math.lgamma(i - n + 1) - total)
    return weights


def best_of_means(proxy: NDArray[np.float64], values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Expected value of the sample that the proxy picks among n, for each prompt, from N ≥ n samples.

    Samples with equal proxy share their weight equally, as a fair tie-break would give them.

    Args:
        proxy: [P, N] scores that choose.    values: [P, N] what is averaged (gold, length, the proxy itself).
    Returns: [P].
    """
    if proxy.shape != values.shape or proxy.ndim != 2:
        raise InputError(f"best_of_means: found shapes {proxy.shape} and {values.shape}; expected the same [P, N]")
    weights = best_of_weights(n, proxy.shape[1])
    means = np.empty(proxy.shape[0])
    for row, (scores, outcome) in enumerate(zip(proxy, values, strict=True)):
        order = np.argsort(scores, kind="stable")
        shared = weights.copy()
        _, starts = np.unique(scores[order], return_index=True)
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            shared[start:stop] = weights[start:stop].mean()
        means[row] = float(shared @ outcome[order])
    return means


def best_of_kl_bound(n: int) -> float:
    """Upper bound of the best-of-n policy's KL to its base, nats: log n − (n − 1)/n.

    Source: Beirami et al. 2024, arXiv:2401.01879; equality only for a continuous score without ties.
    """
    return math.log(n) - (n - 1) / n


def interpolate_gold(path: Sequence[FrontierPoint], kl: float) -> float | None:
    """Gold at a given KL on a policy's path, linear in √KL between measured points; None outside the path."""
    points = sorted((math.sqrt(max(point.kl, 0.0)), point.gold) for point in path if point.gold is not None)
    distance = math.sqrt(kl)
    if not points or not points[0][0] <= distance <= points[-1][0]:
        return None
    return float(np.interp(distance, [d for d, _ in points], [gold for _, gold in points]))
