"""What many answers to one item come to: Dawid–Skene, one coin, and the majority as a view.

A posterior over the values of an item, never one label in their place, with how well each rater tells them apart.
Knows answers as columns. Knows nothing about what a value means, or about differences between items in difficulty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy import stats as distributions
from scipy.special import logsumexp

from karat.errors import ConvergenceError, InputError
from karat.feedback.quality.answer_table import AnswerTable

PRIOR_ACCURACY = 0.7
"""Where a rater of whom nothing is known is expected: two raters of preferences agree on 63–77 % (docs/quality.md)."""
SMALLEST = 1e-300
"""Keeps the logarithm of a share of 0 finite, where no prior does."""


@dataclass(frozen=True, eq=False)
class Consensus:
    """Posteriors of items and the ability of raters at the maximum of the posterior."""

    posterior: np.ndarray
    """P(true value | answers), one row an item of the table, one column a value of its domain."""
    prevalence: np.ndarray
    """Share of each true value among the items."""
    confusion: np.ndarray
    """P(answer | true value) of each rater, [raters, true, answer]; rows sum to 1."""
    accuracy: np.ndarray
    """Probability that each rater answers an item of this mixture rightly: Σ π_c·θ_cc."""
    accuracy_low: np.ndarray
    """Lower end of its 95 % interval, the posteriors of the items taken as given; NaN = without a prior there is none."""
    accuracy_high: np.ndarray
    """Upper end."""
    n_answers: np.ndarray
    """Answers of each rater."""
    log_posterior: tuple[float, ...]
    """After each iteration; it never falls."""
    method: str
    """Which model, with its prior."""

    @property
    def certainty(self) -> np.ndarray:
        """Posterior of each item's most probable value."""
        return self.posterior.max(axis=1)


@dataclass(frozen=True, eq=False)
class Majority:
    """The most frequent answer to each item: a view, not a model; every rater counts alike."""

    winner: np.ndarray
    """Index into the domain; −1 = two values are equally frequent, or nobody answered."""
    shares: np.ndarray
    """Share of each value among the answers to each item; 0 without answers."""
    n_answers: np.ndarray
    """Answers to each item."""


def majority(table: AnswerTable) -> Majority:
    """The shares of the answers to each item and the value that most gave, −1 where no value leads."""
    counts = _counts(table)
    n = counts.sum(axis=1)
    top = counts.max(axis=1, initial=0)
    alone = ((counts == top[:, None]).sum(axis=1) == 1) & (n > 0)
    shares = np.divide(counts, n[:, None], out=np.zeros_like(counts), where=n[:, None] > 0)
    return Majority(np.where(alone, counts.argmax(axis=1), -1), shares, n.astype(np.int64))


def dawid_skene(table: AnswerTable, *, smoothing: float = 2.0, tol: float = 1e-9, max_iter: int = 5000) -> Consensus:
    """Dawid and Skene's model: every rater has her own probabilities of each answer given the true value.

        P(answers of i) = Σ_c π_c·Π_w θ_w[c, answer of w]        θ_w[c, ·] ~ Dirichlet(1 + smoothing·shares)

    Expectation–maximisation from the shares of the answers.

    Args:
        smoothing: answers that the prior is worth for each true value, 70 % of them right; 0 = maximum likelihood.
        tol: it has converged when an iteration raises the log posterior by less than this for each answer.
    Raises: InputError without answers or for a domain of one value; ConvergenceError after `max_iter` iterations.
    Source: Dawid & Skene 1979, Applied Statistics 28(1), pp. 20–28, eqs 2.3–2.5.
    Differs: a prior, so that a rater with few answers is neither perfect nor impossible.
    """
    k, n_raters = _checked("dawid_skene", table, smoothing), len(table.annotators)
    pseudo = smoothing * np.where(np.eye(k) == 1, PRIOR_ACCURACY, (1 - PRIOR_ACCURACY) / (k - 1))
    cells = sparse.csr_matrix(
        (np.ones(len(table)), (table.item, table.annotator * k + table.code)), (len(table.items), n_raters * k)
    )
    back = cells.T.tocsr()

    def maximise(posterior: np.ndarray) -> np.ndarray:
        counts = np.asarray(back @ posterior).reshape(n_raters, k, k).transpose(0, 2, 1) + pseudo
        total = counts.sum(axis=2, keepdims=True)
        # a true value that nobody can have seen leaves this rater's row free; even shares say nothing
        return np.divide(counts, total, out=np.full_like(counts, 1 / k), where=total > 0)

    def loglik(confusion: np.ndarray) -> tuple[np.ndarray, float]:
        logs = np.log(np.maximum(confusion, SMALLEST))
        prior = float((pseudo * logs).sum()) if smoothing else 0.0
        return np.asarray(cells @ logs.transpose(0, 2, 1).reshape(n_raters * k, k)), prior

    start = majority(table).shares
    posterior, prevalence, confusion, path = _em(start, maximise, loglik, table, (smoothing, tol, max_iter))
    n = np.asarray(back @ posterior).reshape(n_raters, k, k).sum(axis=1) + smoothing
    right = np.einsum("wcc->wc", confusion)
    variance = (prevalence**2 * right * (1 - right) / (n + 1)).sum(axis=1)
    return _consensus(
        table, posterior, prevalence, confusion, variance, path, f"Dawid–Skene, prior worth {smoothing:g}"
    )


def one_coin(table: AnswerTable, *, smoothing: float = 2.0, tol: float = 1e-9, max_iter: int = 5000) -> Consensus:
    """One coin a rater: she is right with probability p_w, and otherwise gives any other value alike.

        P(answers of i) = Σ_c π_c·Π_w (p_w if she answered c, else (1 − p_w) / (K − 1))        p_w ~ Beta

    For raters with few answers, whose confusion nobody could estimate. Arguments, errors and start as `dawid_skene`.

    Source: Zhang, Chen, Zhou & Jordan 2016, JMLR 17(102), section 2 (one-coin model).
    Differs: unequal prevalence, and a prior.
    """
    k, n_raters = _checked("one_coin", table, smoothing), len(table.annotators)
    n_items, place = len(table.items), table.item * k + table.code
    n = np.bincount(table.annotator, minlength=n_raters)

    def maximise(posterior: np.ndarray) -> np.ndarray:
        right = np.bincount(table.annotator, posterior[table.item, table.code], n_raters) + smoothing * PRIOR_ACCURACY
        total = n + smoothing
        return np.divide(right, total, out=np.full(n_raters, 1 / k), where=total > 0)

    def loglik(p: np.ndarray) -> tuple[np.ndarray, float]:
        right, wrong = np.log(np.maximum(p, SMALLEST)), np.log(np.maximum((1 - p) / (k - 1), SMALLEST))
        base = np.bincount(table.item, wrong[table.annotator], n_items)
        gain = np.bincount(place, (right - wrong)[table.annotator], n_items * k).reshape(n_items, k)
        prior = float(smoothing * (PRIOR_ACCURACY * right + (1 - PRIOR_ACCURACY) * wrong).sum()) if smoothing else 0.0
        return base[:, None] + gain, prior

    start = majority(table).shares
    posterior, prevalence, p, path = _em(start, maximise, loglik, table, (smoothing, tol, max_iter))
    confusion = np.where(np.eye(k) == 1, p[:, None, None], ((1 - p) / (k - 1))[:, None, None])
    variance = p * (1 - p) / (n + smoothing + 1)
    return _consensus(table, posterior, prevalence, confusion, variance, path, f"one coin, prior worth {smoothing:g}")


def credible_sets(posterior: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Which values of each item belong to the smallest set that holds the true one with probability `level`: bool."""
    if not 0 < level < 1:
        raise InputError(f"credible_sets: found level {level}; expected a number in (0, 1)")
    order = np.argsort(-posterior, axis=1, kind="stable")
    mass = np.take_along_axis(posterior, order, axis=1).cumsum(axis=1)
    before = np.concatenate([np.zeros((len(mass), 1)), mass[:, :-1]], axis=1)
    chosen = np.zeros(posterior.shape, dtype=bool)
    np.put_along_axis(chosen, order, before < level, axis=1)
    return chosen


def _em(
    posterior: np.ndarray,
    maximise: Callable[[np.ndarray], np.ndarray],
    loglik: Callable[[np.ndarray], tuple[np.ndarray, float]],
    table: AnswerTable,
    settings: tuple[float, float, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...]]:
    smoothing, tol, max_iter = settings
    answered = np.bincount(table.item, minlength=len(posterior)) > 0
    k = posterior.shape[1]
    path: list[float] = []
    for _ in range(max_iter):
        weights = posterior[answered].sum(axis=0) + smoothing / k
        prevalence, ability = weights / weights.sum(), maximise(posterior)
        per_item, prior = loglik(ability)
        log_prevalence = np.log(np.maximum(prevalence, SMALLEST))
        joint = log_prevalence + per_item
        total = logsumexp(joint, axis=1)
        posterior = np.exp(joint - total[:, None])
        path.append(float(total[answered].sum()) + prior + float(smoothing / k * log_prevalence.sum()))
        if len(path) > 1 and path[-1] - path[-2] < tol * len(table):
            return posterior, prevalence, ability, tuple(path)
    raise ConvergenceError(
        f"after {max_iter} iterations the log posterior still rises by {path[-1] - path[-2]:.2g}; "
        "give more iterations, or a larger smoothing"
    )


def _consensus(
    table: AnswerTable, posterior: np.ndarray, prevalence: np.ndarray, confusion: np.ndarray, variance: np.ndarray,
    path: tuple[float, ...], method: str,
) -> Consensus:  # fmt: skip
    accuracy = np.einsum("wcc,c->w", confusion, prevalence)
    # a Beta distribution with this mean and variance; without variance (a rater who is never wrong, no prior) none
    known = (variance > 1e-9) & (variance < accuracy * (1 - accuracy))
    mean = accuracy[known]
    size = mean * (1 - mean) / variance[known] - 1
    low, high = np.full(len(accuracy), np.nan), np.full(len(accuracy), np.nan)
    low[known] = distributions.beta.ppf(0.025, mean * size, (1 - mean) * size)
    high[known] = distributions.beta.ppf(0.975, mean * size, (1 - mean) * size)
    n = np.bincount(table.annotator, minlength=len(table.annotators))
    text = f"{method}; {len(path)} iterations; accuracies with 95 % Beta intervals, posteriors of items as given"
    return Consensus(posterior, prevalence, confusion, accuracy, low, high, n, path, text)


def _checked(caller: str, table: AnswerTable, smoothing: float) -> int:
    if not len(table) or len(table.domain) < 2:
        raise InputError(
            f"{caller}: found {len(table)} answers of {len(table.domain)} values; expected answers of 2 values or more"
        )
    if smoothing < 0:
        raise InputError(f"{caller}: found a smoothing of {smoothing}; expected 0 or more")
    return len(table.domain)


def _counts(table: AnswerTable) -> np.ndarray:
    k = len(table.domain)
    return np.bincount(table.item * k + table.code, minlength=len(table.items) * k).reshape(-1, k).astype(float)
