"""Counts of marked votes against an honest crowd of unequal people: a beta-binomial that some raters may not belong to.

A mark is anything a vote has or has not (too quick to have read, pasted into). Knows counts only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions
from scipy.special import betaln, gammaln

from karat.errors import InputError

OUTSIDERS = 0.1
"""Share of raters that the fit expects to come from anywhere: counts uniform over 0 … n."""
USUAL_CORRELATION = 0.1
"""Prior mean of how much raters differ in a mark."""
_MEANS = np.array(
    [
        1e-5,
        1e-4,
        3e-4,
        0.001,
        0.003,
        0.01,
        0.02,
        0.03,
        0.05,
        0.07,
        0.1,
        0.13,
        0.16,
        0.2,
        0.25,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        0.97,
    ]
)
_CORRELATIONS = np.array([0.002, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8])


@dataclass(frozen=True)
class Crowd:
    """How often honest raters' votes are marked: each has a rate of his own, rate ~ Beta."""

    mean: float
    """Mean rate."""
    correlation: float
    """1 / (α + β + 1): 0 = all have one rate, 1 = all or nothing."""

    @property
    def shape(self) -> tuple[float, float]:
        """α and β of the Beta distribution of rates."""
        size = 1 / self.correlation - 1
        return self.mean * size, (1 - self.mean) * size


def fit_crowd(n_marked: np.ndarray, n: np.ndarray) -> Crowd:
    """The crowd that explains most raters' counts best, where a tenth may be outsiders.

        max over (mean, correlation) of
            Σ_w log[(1 − OUTSIDERS)·BetaBinomial(k_w; n_w) + OUTSIDERS / (n_w + 1)] − correlation / USUAL_CORRELATION

    The last term (an exponential prior) decides where marks are so rare that nothing else does. On a grid: a likelihood this flat asks for no more digits. Without any count the crowd is half marked and of any
    kind, which flags nobody.

    Raises: InputError unless 0 ≤ marked ≤ n.
    """
    k, n = np.asarray(n_marked, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if k.shape != n.shape or np.any(k < 0) or np.any(k > n):
        raise InputError("fit_crowd: found more marked votes than votes; expected 0 ≤ marked ≤ n for each rater")
    # raters with the same counts are counted once
    pairs, count = np.unique(np.column_stack([k, n])[n > 0], axis=0, return_counts=True)
    if len(pairs) == 0:
        return Crowd(0.5, 0.8)
    mean, correlation = (grid.ravel() for grid in np.meshgrid(_MEANS, _CORRELATIONS))
    size = 1 / correlation - 1
    k, n = pairs[:, :1], pairs[:, 1:]
    log_p = (
        _log_choose(n, k) + betaln(k + mean * size, n - k + (1 - mean) * size) - betaln(mean * size, (1 - mean) * size)
    )
    fit = count @ np.log((1 - OUTSIDERS) * np.exp(log_p) + OUTSIDERS / (n + 1))
    best = int(np.argmax(fit - correlation / USUAL_CORRELATION))
    return Crowd(float(mean[best]), float(correlation[best]))


def crowd_p_values(n_marked: np.ndarray, n: np.ndarray, crowd: Crowd) -> np.ndarray:
    """P(at least as many marked votes) for an honest rater with as many votes."""
    return np.asarray(distributions.betabinom.sf(np.asarray(n_marked) - 1, np.asarray(n), *crowd.shape))


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
