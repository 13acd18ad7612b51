"""Coefficients of agreement as functions of weighted items, so that a bootstrap of items is one matrix product.

Each coefficient reads a table of answers once and returns how many items it rests on and a function from weights of
those items, [draws, items], to its values, [draws]; NaN where it is not defined. Weights of 1 give the value itself.
Knows nothing about intervals.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from karat.errors import InputError
from karat.feedback.quality.answer_table import AnswerTable

Evaluate = Callable[[np.ndarray], np.ndarray]
Coefficient = Callable[[AnswerTable], tuple[int, Evaluate]]


def raw_agreement(table: AnswerTable) -> tuple[int, Evaluate]:
    """Share of the pairs of answers to one item that are equal: Σ n(n − 1) / Σ N(N − 1)."""
    counts = _pairable(table)
    total = _row_sums(counts)
    equal, pairs = _row_sums(counts.multiply(counts)) - total, total * (total - 1)
    return len(total), lambda weights: _ratio(weights @ equal, weights @ pairs)


def nominal_alpha(table: AnswerTable) -> tuple[int, Evaluate]:
    """Krippendorff's alpha where values are names: α = 1 − D_o / D_e, a pair counts if its values differ."""
    counts = _pairable(table)
    total = _row_sums(counts)
    apart = (total**2 - _row_sums(counts.multiply(counts))) / (total - 1)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        pooled = _product(weights, counts)
        n = pooled.sum(axis=1)
        return 1 - _ratio((weights @ apart) * (n - 1), n**2 - (pooled**2).sum(axis=1))

    return len(total), evaluate


def interval_alpha(table: AnswerTable) -> tuple[int, Evaluate]:
    """Krippendorff's alpha where values are numbers: a pair counts by its squared difference."""
    counts = _pairable(table)
    total = _row_sums(counts)
    numbers = table.numbers - (
        table.numbers.mean() if table.domain else 0.0
    )  # α is free of the origin, rounding is not
    first, second = counts @ numbers, counts @ numbers**2
    apart = 2 * (total * second - first**2) / (total - 1)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        n, sums, squares = weights @ total, weights @ first, weights @ second
        return 1 - _ratio((weights @ apart) * (n - 1), _no_rounding(2 * (n * squares - sums**2), n * squares))

    return len(total), evaluate


def ordinal_alpha(table: AnswerTable) -> tuple[int, Evaluate]:
    """Krippendorff's alpha where values are ordered: a pair counts by the squared difference of their mid-ranks.

        δ_ck = Σ_{g = c}^{k} n_g − (n_c + n_k) / 2

    which is the difference of the mid-ranks of c and k among all values that are compared.
    """
    counts = _pairable(table)
    total = _row_sums(counts)

    def one(weights: np.ndarray) -> float:
        pooled = counts.T @ weights
        ranks = np.cumsum(pooled) - pooled / 2
        ranks = ranks - ranks.mean()
        first, second = counts @ ranks, counts @ ranks**2
        apart = 2 * (total * second - first**2) / (total - 1)
        n, sums, squares = weights @ total, weights @ first, weights @ second
        return 1 - float(_ratio((weights @ apart) * (n - 1), _no_rounding(2 * (n * squares - sums**2), n * squares)))

    return len(total), lambda weights: np.array([one(row) for row in weights])


def fleiss_kappa(table: AnswerTable) -> tuple[int, Evaluate]:
    """Fleiss' kappa: (p_a − Σ π_c²) / (1 − Σ π_c²), p_a the mean over items, π_c the mean share of value c.

    Source: Fleiss 1971, Psychological Bulletin 76, pp. 378–382; for items with unequally many answers Gwet 2014,
    Handbook of Inter-Rater Reliability, 4th ed.: items with one answer count in π_c, not in p_a.
    """
    return _chance_corrected(table, lambda shares: (shares**2).sum(axis=1))


def gwet_ac1(table: AnswerTable) -> tuple[int, Evaluate]:
    """Gwet's AC1: (p_a − p_e) / (1 − p_e), p_e = Σ π_c(1 − π_c) / (q − 1), q values in the domain.

    Unlike alpha and kappa it does not fall to 0 when nearly everything gets the same value.

    Source: Gwet 2008, British Journal of Mathematical and Statistical Psychology 61, pp. 29–48.
    """
    q = len(table.domain)
    if q < 2:
        raise InputError(f"gwet_ac1: found a domain of {q} values; expected all that can be given, 2 or more")
    return _chance_corrected(table, lambda shares: (shares * (1 - shares)).sum(axis=1) / (q - 1))


def cohen_kappa(table: AnswerTable) -> tuple[int, Evaluate]:
    """Cohen's kappa of exactly two raters: (p_o − Σ p_c·q_c) / (1 − Σ p_c·q_c) over the items both answered.

    Raises: InputError unless the answers are by two raters.
    Source: Cohen 1960, Educational and Psychological Measurement 20, pp. 37–46.
    """
    raters = np.unique(table.annotator)
    if len(raters) != 2:
        raise InputError(f"cohen_kappa: found {len(raters)} raters; expected 2 (more: Fleiss' kappa, alpha or AC1)")
    given = np.full((2, len(table.items)), -1)
    for place, rater in enumerate(raters):
        mine = table.annotator == rater
        given[place, table.item[mine]] = table.code[mine]
    first, second = given[:, (given >= 0).all(axis=0)]
    one, two = (np.eye(len(table.domain))[codes] for codes in (first, second))
    same = (first == second).astype(float)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        n = weights.sum(axis=1)
        chance = _ratio(((weights @ one) * (weights @ two)).sum(axis=1), n * n)
        return _ratio(_ratio(weights @ same, n) - chance, 1 - chance)

    return len(same), evaluate


def _chance_corrected(table: AnswerTable, chance: Callable[[np.ndarray], np.ndarray]) -> tuple[int, Evaluate]:
    counts = _counts(table)
    total = _row_sums(counts)
    pairs = total * (total - 1)
    paired = pairs > 0
    equal = np.divide(_row_sums(counts.multiply(counts)) - total, pairs, out=np.zeros_like(total), where=paired)
    shares = sparse.diags(1 / total) @ counts

    def evaluate(weights: np.ndarray) -> np.ndarray:
        observed = _ratio(weights @ equal, weights @ paired)
        by_chance = chance(_product(weights, shares) / weights.sum(axis=1, keepdims=True))
        varies = (_product(weights, counts) > 0).sum(axis=1) > 1
        return np.where(varies, _ratio(observed - by_chance, 1 - by_chance), np.nan)

    return (len(total) if paired.any() else 0), evaluate


def _counts(table: AnswerTable) -> sparse.csr_matrix:
    """Answers of each value to each item that was answered, [items, values]."""
    items, row = np.unique(table.item, return_inverse=True)
    shape = (len(items), len(table.domain))
    return sparse.csr_matrix((np.ones(len(table)), (row, table.code)), shape=shape)


def _pairable(table: AnswerTable) -> sparse.csr_matrix:
    counts = _counts(table)
    return counts[_row_sums(counts) >= 2]


def _row_sums(matrix: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1)).ravel()


def _product(weights: np.ndarray, matrix: sparse.csr_matrix) -> np.ndarray:
    return (matrix.T @ weights.T).T


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    below = np.asarray(below, dtype=float)
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)


def _no_rounding(spread: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A spread that is nothing but the rounding of its terms is 0."""
    return np.where(spread > 1e-12 * np.abs(scale), spread, 0.0)


COEFFICIENTS: dict[str, Coefficient] = {
    "agreement": raw_agreement,
    "nominal alpha": nominal_alpha,
    "ordinal alpha": ordinal_alpha,
    "interval alpha": interval_alpha,
    "Cohen's kappa": cohen_kappa,
    "Fleiss' kappa": fleiss_kappa,
    "Gwet's AC1": gwet_ac1,
}
"""Every coefficient by the name under which it is reported."""
