"""Answers that depend on the weights of a linear head: their likelihood, slope and curvature.

    one number each      η_c = slope_c·(φ_a − φ_b)·w + offset_c       gradient Σ ∂_c·Δφ_c       curvature Σ κ_c·Δφ_cΔφ_cᵀ
    several scores each  r_ck = φ_ck·w                                gradient Σ Φ_cᵀ∂_c        curvature Σ Φ_cᵀK_cΦ_c

What `reward.last_layer` climbs on. Differences Δφ are never held all at once. Knows features and answers as columns;
knows nothing about priors, trunks or files.

Dimension letters: C answers, N texts, d features, A raters, K candidates of one choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

CHUNK = 8192
"""Rows multiplied at a time: 48 MB at 768 features."""
N_NODES = 15  # Gauss–Hermite; log P of an answer is smooth, and nearly straight in its tails
MOST_EXACT = 4  # candidates up to which scores are averaged to degree 5: 33 points; 5 would have negative weights

Derivatives = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Of log P(answer) by η: the value, the first derivative, the exact curvature κ = −∂², and a curvature ≥ max(κ, 0).
Of a choice by its scores: [C], [C, K], [C, K, K], and K × K matrices without negative eigenvalues."""


@dataclass(frozen=True, eq=False)
class FittedRaters:
    """Parameters of raters that are fitted with the weights, and therefore known only so well: offsets, gains, competences.

    ∂η/∂parameter = fixed + scaled·(η − offset): of an offset the first, of (the logarithm of) a gain the second. m parameters.
    """

    who: np.ndarray
    """Index of each answer's rater, [C]."""
    fixed: np.ndarray
    """[C, m]."""
    scaled: np.ndarray
    """[C, m]."""
    own: np.ndarray
    """Prior precision of a rater's parameter around the population's, [m]; ∞ = all raters have the population's."""
    common: np.ndarray
    """Prior precision of the population's, [m]; ∞ = it is known."""


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
    raters: FittedRaters | None = None
    """What of `slope` and `offset` is fitted along; None = all is known."""

    def __len__(self) -> int:
        return len(self.a)


def joined(parts: Sequence[Observations]) -> Observations:
    """Answers of several scales as those of one kind, in the same order; nothing of their raters is fitted along."""
    if len(parts) == 1:
        return parts[0]
    begins = np.cumsum([0, *map(len, parts)])

    def derivatives(eta: np.ndarray, rows: np.ndarray) -> Derivatives:
        found = np.zeros((4, len(rows)))
        for one, begin, end in zip(parts, begins, begins[1:], strict=False):
            own = (rows >= begin) & (rows < end)
            found[:, own] = one.derivatives(eta[own], rows[own] - begin)
        value, first, exact, working = found
        return value, first, exact, working

    columns = (np.concatenate([getattr(one, name) for one in parts]) for name in ("a", "b", "slope", "offset"))
    return Observations(*columns, derivatives)


@dataclass(frozen=True, eq=False)
class Choices:
    """Answers that each depend on the weights through the scores of several texts: r_k = φ_k·w."""

    texts: np.ndarray
    """Rows of the candidates in the features, [C, K]; one that is repeated stands for none."""
    derivatives: Callable[[np.ndarray, np.ndarray, bool], Derivatives]
    """derivatives(scores [n, K], rows, curved) of the answers at these rows; curvatures are empty where `curved` is False."""
    raters: FittedRaters | None = None
    """Competences that are fitted along, of which all scores of a choice are a multiple; None = all is known."""

    def __len__(self) -> int:
        return len(self.texts)


Answers = Observations | Choices


class LinearAnswers:
    """The answers with the features they depend on; one pass gives η, one gives a Hessian.

    Choices stand behind the others: slopes and curvatures are flat, first one number an answer, then [C, K] and [C, K, K].
    """

    def __init__(self, features: np.ndarray, observations: Sequence[Answers], *, every: int = 1) -> None:
        self.features = features
        self.parts = [(one, np.arange(0, len(one), every)) for one in observations if isinstance(one, Observations)]
        self.choices = [(one, np.arange(0, len(one), every)) for one in observations if isinstance(one, Choices)]
        self.texts = [one.texts[kept] for one, kept in self.choices]
        self.a, self.b = (_joined([getattr(one, name)[kept] for one, kept in self.parts], int) for name in ("a", "b"))
        self.slope, self.offset = (
            _joined([getattr(one, name)[kept] for one, kept in self.parts], float) for name in ("slope", "offset")
        )
        if every > 1:  # texts of the other answers would be multiplied at every pass
            used = np.unique(np.concatenate([self.a, self.b[self.b >= 0], *(texts.ravel() for texts in self.texts)]))
            self.features = features = self.features[used]
            self.a = np.searchsorted(used, self.a)
            self.b = np.where(self.b < 0, -1, np.searchsorted(used, self.b))
            self.texts = [np.searchsorted(used, texts) for texts in self.texts]
        n, number, paired = len(self.a), np.arange(len(self.a)), self.b >= 0
        entries = np.concatenate([self.slope, -self.slope[paired]])
        places = np.concatenate([number, number[paired]]), np.concatenate([self.a, self.b[paired]])
        self.incidence = sparse.csr_matrix((entries, places), shape=(n, len(features)), dtype=np.float64)
        self.spread: np.ndarray | None = None

    def at(self, w: np.ndarray, *, curved: bool = True) -> Derivatives:
        """log P, ∂, κ and working κ of every answer; averaged over what the weights are not known by, where there is a spread.

        Args:
            curved: False = of choices no curvature, which is most of their cost.
        """
        scores = self.features @ w
        eta = self.incidence @ scores + self.offset
        if self.spread is None:
            found = [self._derivatives(eta)]
        else:
            nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
            columns = zip(
                *(self._derivatives(eta + node * self.spread[: len(eta)]) for node in nodes), strict=True
            )  # of each column, one a node
            value, first, exact, working = (np.tensordot(weights / weights.sum(), column, 1) for column in columns)
            found = [(value, first, exact, working)]
        factors: Sequence[np.ndarray | None] = [None] * len(self.texts)
        if self.spread is not None:
            factors = self._factors(self.spread[len(eta) :])
        for (one, kept), texts, factor in zip(self.choices, self.texts, factors, strict=True):
            found.append(_of_choices(one, kept, scores[texts], factor, curved=curved))
        value, first, exact, working = (_joined(column, float) for column in zip(*found, strict=True))
        return value, first, exact, working

    def _derivatives(self, eta: np.ndarray) -> Derivatives:
        found, n_before = [], 0
        for one, kept in self.parts:
            found.append(one.derivatives(eta[n_before : n_before + len(kept)], kept))
            n_before += len(kept)
        value, first, exact, working = (
            _joined(column, float) for column in (zip(*found, strict=True) if found else [[]] * 4)
        )
        return value, first, exact, working

    def gradient(self, first: np.ndarray) -> np.ndarray:
        """Σ_c ∂_c·Δφ_c, and Σ_c Φ_cᵀ∂_c of choices."""
        by_text = self.incidence.T @ first[: len(self.a)]
        n_before = len(self.a)
        for texts in self.texts:
            own = first[n_before : n_before + texts.size]
            by_text = by_text + np.bincount(texts.ravel(), own, minlength=len(by_text))
            n_before += texts.size
        return self.features.T @ by_text

    def deltas(self, every: int = 1) -> Iterator[tuple[slice, np.ndarray]]:
        """slope·Δφ of some answers at a time; of every so manieth."""
        for begin in range(0, len(self.a), CHUNK * every):
            part = slice(begin, begin + CHUNK * every, every)
            delta, paired = self.features[self.a[part]], self.b[part] >= 0
            delta[paired] -= self.features[self.b[part][paired]]
            delta *= self.slope[part, None]
            yield part, delta

    def hessian(self, curvature: np.ndarray, *, every: int = 1) -> np.ndarray:
        """Σ_c κ_c·Δφ_cΔφ_cᵀ, over answers or over texts, whichever are fewer, and Σ_c Φ_cᵀK_cΦ_c of choices.

        Args:
            every: above 1 an estimate, from every so manieth answer; choices are always counted whole.
        """
        d, n = self.features.shape[1], len(self.a)
        total, laplacian = np.zeros((d, d)), None
        if n <= every * len(self.features):
            single = curvature[:n]
            for part, delta in self.deltas(every):
                total += _squares(delta, every * single[part])
        else:
            laplacian = (self.incidence.T @ sparse.diags(curvature[:n]) @ self.incidence).tocsr()
        if self.texts:
            of_choices = self._laplacian_of_choices(curvature[n:])
            laplacian = of_choices if laplacian is None else (laplacian + of_choices).tocsr()
        if laplacian is None:
            return total
        for begin in range(0, len(self.features), CHUNK):
            total += self.features[begin : begin + CHUNK].T @ (laplacian[begin : begin + CHUNK] @ self.features)
        return (total + total.T) / 2

    def _laplacian_of_choices(self, curvature: np.ndarray) -> sparse.csr_matrix:
        """What choices say of the scores of texts: K_c of every choice at the places of its candidates, [N, N]."""
        total, n_before = sparse.csr_matrix((len(self.features), len(self.features))), 0
        for texts in self.texts:
            n, k = texts.shape
            entries = curvature[n_before : n_before + n * k * k]
            places = np.repeat(texts, k, axis=1).ravel(), np.tile(texts, (1, k)).ravel()
            total = total + sparse.csr_matrix((entries, places), shape=total.shape)
            n_before += n * k * k
        return total

    def spread_under(self, factor: np.ndarray) -> np.ndarray:
        """How far η may lie from its mean where the weights have the covariance factor·factorᵀ.

        Returns: its standard deviation, [C]; of choices, behind it and flat, the Cholesky factor of their scores' covariance.
        """
        found = [
            np.sqrt(np.concatenate([np.zeros(0), *(((delta @ factor) ** 2).sum(1) for _, delta in self.deltas())]))
        ]
        if self.texts:
            moved = self.features @ factor
            for texts in self.texts:
                for own in np.array_split(texts, max(1, texts.size // CHUNK)):
                    rows = moved[own]
                    covariance = rows @ rows.transpose(0, 2, 1)
                    # candidates that stand for none are copies, and a copy has no variance of its own
                    least = 1e-9 * np.trace(covariance, axis1=1, axis2=2).max(initial=1e-9)
                    found.append(np.linalg.cholesky(covariance + least * np.eye(own.shape[1])).ravel())
        return np.concatenate(found)

    def _factors(self, flat: np.ndarray) -> list[np.ndarray]:
        """The Cholesky factors of each block of choices, [C, K, K]."""
        if not self.texts:
            return []
        sizes = [texts.size * texts.shape[1] for texts in self.texts]
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        return [own.reshape(*texts.shape, -1) for own, texts in zip(parts, self.texts, strict=True)]

    def positive(self, curvature: np.ndarray) -> np.ndarray:
        """The same without what bends upwards: single numbers below 0 are 0, and so are negative eigenvalues of choices."""
        found, n_before = [curvature[: len(self.a)].clip(min=0)], len(self.a)
        for texts in self.texts:
            k = texts.shape[1]
            own = curvature[n_before : n_before + texts.size * k].reshape(-1, k, k)
            n_before += own.size
            values, vectors = np.linalg.eigh(own)
            found.append(((vectors * values.clip(min=0)[:, None, :]) @ vectors.transpose(0, 2, 1)).ravel())
        return np.concatenate(found)

    def lost_to_raters(self, w: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        """What the weights' precision loses because raters are fitted with them: H_wρ·H_ρρ⁻¹·H_ρw, [d, d].

        H_wρ = Σ_c κ_c·Δφ_c·(∂η_c/∂ρ)ᵀ is the Gauss–Newton part: what it leaves out, Σ_c ∂_c·∂²η_c/∂w∂ρ, is noise around 0
        where the model fits, and with it the whole might have no inverse.

        Args:
            curvature: see `positive`.
        """
        scores, n, d = self.features @ w, len(self.a), self.features.shape[1]
        lost, n_before = np.zeros((d, d)), 0
        pull = self.incidence @ scores
        for one, kept in self.parts:
            part = slice(n_before, n_before + len(kept))
            n_before += len(kept)
            if one.raters is not None:
                push = one.raters.fixed[kept] + one.raters.scaled[kept] * pull[part, None]
                known = curvature[part, None, None] * push[:, :, None] * push[:, None, :]
                rows = [sparse.diags(curvature[part] * column) @ self.incidence[part] for column in push.T]
                lost += self._lost(one.raters, one.raters.who[kept], rows, known)
        for (one, kept), texts in zip(self.choices, self.texts, strict=True):
            k = texts.shape[1]
            own = curvature[n : n + len(texts) * k * k].reshape(-1, k, k)
            n += own.size
            if one.raters is not None:
                push = one.raters.scaled[kept] * scores[texts]
                by_text = (own @ push[:, :, None])[..., 0]
                places = np.repeat(np.arange(len(texts)), k), texts.ravel()
                rows = [sparse.csr_matrix((by_text.ravel(), places), shape=(len(texts), len(self.features)))]
                lost += self._lost(one.raters, one.raters.who[kept], rows, (push * by_text).sum(1)[:, None, None])
        return lost

    def _lost(
        self, raters: FittedRaters, who: np.ndarray, rows: Sequence[sparse.spmatrix], known: np.ndarray
    ) -> np.ndarray:
        """Raters' own parameters meet one rater each and are taken out one by one, the population's after them.

        Args:
            rows: of each parameter, κ·∂η·∂η/∂r of each answer by text, [C, N].    known: κ·∂η/∂ρ·∂η/∂ρᵀ, [C, m, m].
        """
        n, m = int(who.max()) + 1, len(rows)
        by_whom = sparse.csr_matrix((np.ones(len(who)), (who, np.arange(len(who)))), shape=(n, len(who)))
        cross = np.stack([(by_whom @ row) @ self.features for row in rows], axis=1)  # [A, m, d]
        square = (by_whom @ known.reshape(len(who), m * m)).reshape(n, m, m)
        own, common = np.isfinite(raters.own), np.isfinite(raters.common)
        of_own = np.linalg.inv(square[:, own][:, :, own] + np.diag(raters.own[own]))
        freed = of_own @ cross[:, own]
        lost = np.einsum("aid,aie->de", cross[:, own], freed, optimize=True)
        if common.any():
            between = square[:, common][:, :, own]
            left = (cross[:, common] - between @ freed).sum(0)
            inner = square[:, common][:, :, common] - between @ of_own @ between.transpose(0, 2, 1)
            lost += left.T @ np.linalg.solve(inner.sum(0) + np.diag(raters.common[common]), left)
        return lost


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=kind), *parts]) if len(parts) != 1 else parts[0]


def _of_choices(
    one: Choices, rows: np.ndarray, scores: np.ndarray, factor: np.ndarray | None, *, curved: bool
) -> Derivatives:
    """log P and its derivatives, flat; averaged over scores that are known only so well where there is a factor."""
    nodes, weights = (np.zeros((1, scores.shape[1])), np.ones(1)) if factor is None else _ball(scores.shape[1])
    total: list[np.ndarray] = []
    for node, weight in zip(nodes, weights, strict=True):
        moved = scores if factor is None else scores + factor @ node
        found = [weight * column for column in one.derivatives(moved, rows, curved)]
        total = found if not total else [sum_ + column for sum_, column in zip(total, found, strict=True)]
    value, first, exact, working = (column.ravel() for column in total)
    return value, first, exact, working


def _ball(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, k] and weights whose mean is that of a standard normal for polynomials of degree 5, from 5 candidates on of degree 3.

    Source: Stroud 1971, Approximate Calculation of Multiple Integrals, formulas E_n^{r²} 5-2 and 3-1.
    """
    axes = np.concatenate([np.eye(k), -np.eye(k)])
    if k > MOST_EXACT:
        return math.sqrt(k) * axes, np.full(2 * k, 1 / (2 * k))
    pairs = [
        np.eye(k)[i] * si + np.eye(k)[j] * sj
        for i, j in itertools.combinations(range(k), 2)
        for si, sj in itertools.product((1, -1), repeat=2)
    ]
    points = np.concatenate([np.zeros((1, k)), math.sqrt(k + 2) * axes, math.sqrt((k + 2) / 2) * np.array(pairs)])
    of_axes, of_pairs = (4 - k) / (2 * (k + 2) ** 2), 1 / (k + 2) ** 2
    return points, np.array([2 / (k + 2)] + [of_axes] * len(axes) + [of_pairs] * len(pairs))


def _squares(delta: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """ΔᵀκΔ as a difference of squares: a product of a matrix with itself costs half of one of two matrices."""
    below = curvature < 0  # a lapse can bend the likelihood of a surprising answer upwards
    delta *= np.sqrt(np.abs(curvature))[:, None]
    if not below.any():
        return delta.T @ delta
    negative = delta[below]
    delta[below] = 0.0
    return delta.T @ delta - negative.T @ negative
