"""Answers that depend on the weights of a linear head through one number each: their likelihood, slope and curvature.

    η_c = slope_c·(φ_a − φ_b)·w + offset_c        gradient Σ ∂_c·Δφ_c        curvature Σ κ_c·Δφ_cΔφ_cᵀ

What `reward.last_layer` climbs on. Differences Δφ are never held all at once. Knows features and answers as columns;
knows nothing about priors, trunks or files.

Dimension letters: C answers, N texts, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

CHUNK = 8192
"""Rows multiplied at a time: 48 MB at 768 features."""
N_NODES = 15  # Gauss–Hermite; log P of an answer is smooth, and nearly straight in its tails

Derivatives = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Of log P(answer) by η: the value, the first derivative, the exact curvature κ = −∂², and a curvature ≥ max(κ, 0)."""


@dataclass(frozen=True, eq=False)
class Observations:
    """Answers that each depend on the weights through one number: η = slope·(φ_a − φ_b)·w + offset."""

    a: np.ndarray
    """Row of φ_a in the features, [C]."""
    b: np.ndarray
    """Row of φ_b, [C]; −1 = nothing is subtracted (a rating or a label of one response)."""
    slope: np.ndarray
    """The rater's competence or gain, [C]."""
    offset: np.ndarray
    """The rater's bias in logits, [C]."""
    derivatives: Callable[[np.ndarray, np.ndarray], Derivatives]
    """derivatives(η, rows) of the answers at these rows."""

    def __len__(self) -> int:
        return len(self.a)


class LinearAnswers:
    """The answers with the features they depend on; one pass gives η, one gives a Hessian."""

    def __init__(self, features: np.ndarray, observations: Sequence[Observations], *, every: int = 1) -> None:
        self.features = features
        self.parts = [(one, np.arange(0, len(one), every)) for one in observations]
        self.a, self.b, self.slope, self.offset = (
            np.concatenate([getattr(one, name)[kept] for one, kept in self.parts])
            for name in ("a", "b", "slope", "offset")
        )
        if every > 1:  # texts of the other answers would be multiplied at every pass
            used = np.unique(np.concatenate([self.a, self.b[self.b >= 0]]))
            self.features = features = self.features[used]
            self.a = np.searchsorted(used, self.a)
            self.b = np.where(self.b < 0, -1, np.searchsorted(used, self.b))
        n, number, paired = len(self.a), np.arange(len(self.a)), self.b >= 0
        entries = np.concatenate([self.slope, -self.slope[paired]])
        places = np.concatenate([number, number[paired]]), np.concatenate([self.a, self.b[paired]])
        self.incidence = sparse.csr_matrix((entries, places), shape=(n, len(features)), dtype=np.float64)
        self.spread: np.ndarray | None = None

    def at(self, w: np.ndarray) -> Derivatives:
        """log P, ∂, κ and working κ of every answer; averaged over η's spread where there is one."""
        eta = self.incidence @ (self.features @ w) + self.offset
        if self.spread is None:
            return self._derivatives(eta)
        nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
        columns = zip(
            *(self._derivatives(eta + node * self.spread) for node in nodes), strict=True
        )  # of each column, one a node
        value, first, exact, working = (np.tensordot(weights / weights.sum(), column, 1) for column in columns)
        return value, first, exact, working

    def _derivatives(self, eta: np.ndarray) -> Derivatives:
        found, n_before = [], 0
        for one, kept in self.parts:
            found.append(one.derivatives(eta[n_before : n_before + len(kept)], kept))
            n_before += len(kept)
        value, first, exact, working = (np.concatenate(column) for column in zip(*found, strict=True))
        return value, first, exact, working

    def gradient(self, first: np.ndarray) -> np.ndarray:
        """Σ_c ∂_c·Δφ_c."""
        return self.features.T @ (self.incidence.T @ first)

    def deltas(self, every: int = 1) -> Iterator[tuple[slice, np.ndarray]]:
        """slope·Δφ of some answers at a time; of every so manieth."""
        for begin in range(0, len(self.a), CHUNK * every):
            part = slice(begin, begin + CHUNK * every, every)
            delta, paired = self.features[self.a[part]], self.b[part] >= 0
            delta[paired] -= self.features[self.b[part][paired]]
            delta *= self.slope[part, None]
            yield part, delta

    def hessian(self, curvature: np.ndarray, *, every: int = 1) -> np.ndarray:
        """Σ_c κ_c·Δφ_cΔφ_cᵀ, over answers or over texts, whichever are fewer.

        Args:
            every: above 1 an estimate, from every so manieth answer.
        """
        d = self.features.shape[1]
        total = np.zeros((d, d))
        if len(self.a) <= every * len(self.features):
            for part, delta in self.deltas(every):
                total += _squares(delta, every * curvature[part])
            return total
        laplacian = (self.incidence.T @ sparse.diags(curvature) @ self.incidence).tocsr()
        for begin in range(0, len(self.features), CHUNK):
            total += self.features[begin : begin + CHUNK].T @ (laplacian[begin : begin + CHUNK] @ self.features)
        return (total + total.T) / 2

    def spread_under(self, factor: np.ndarray) -> np.ndarray:
        """Standard deviation of η where the weights have the covariance factor·factorᵀ."""
        return np.sqrt(np.concatenate([((delta @ factor) ** 2).sum(1) for _, delta in self.deltas()]))


def _squares(delta: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """ΔᵀκΔ as a difference of squares: a product of a matrix with itself costs half of one of two matrices."""
    below = curvature < 0  # a lapse can bend the likelihood of a surprising answer upwards
    delta *= np.sqrt(np.abs(curvature))[:, None]
    if not below.any():
        return delta.T @ delta
    negative = delta[below]
    delta[below] = 0.0
    return delta.T @ delta - negative.T @ negative
