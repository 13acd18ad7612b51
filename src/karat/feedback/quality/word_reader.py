"""What can be learned from votes by counting words: held-out accuracy at several numbers of votes, for a learning curve.

A reader of words is no reward model: it says what these votes are worth to the plainest one. Knows texts and who won;
knows nothing about where votes are kept, or about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from karat.errors import ConvergenceError, InputError
from karat.ngrams import column_weights, ngram_counts, weighted_counts

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the training prompts that are measured."""
FOLDS = 5
"""Each vote is held out once."""
L2 = 1.0
"""Penalty in votes, as for the n-gram baseline of the reward's gate."""


@dataclass(frozen=True)
class Measurement:
    """Held-out accuracy of a reader of words trained on so many votes."""

    n_votes: float
    """Decided votes that it was trained on, the mean over folds."""
    accuracy: float
    """Share of held-out decided votes whose winner it scores higher; equal scores count half."""
    standard_error: float
    """Over prompts; votes on one prompt stand or fall together."""
    n_held_out: int
    """Votes that were held out once each."""
    n_prompts: int
    """Prompts that they are about."""


def reader_accuracies(
    texts: Sequence[str],
    winner: ArrayLike,
    loser: ArrayLike,
    prompt: ArrayLike,
    rng: np.random.Generator,
    *,
    fractions: Sequence[float] = FRACTIONS,
) -> list[Measurement]:
    """Accuracy of a linear score of words and pieces of words on prompts that it was not trained on.

        max_w Σ log σ(w·(x_winner − x_loser)) − ½‖w‖²        five folds of prompts, each at growing shares of the others

    Args:
        winner, loser: index of the text of each decided vote.    prompt: what it is about, any label.
        rng: shuffles the prompts.    fractions: shares of the other folds' prompts to train on, ascending, in (0, 1].
    Returns: one measurement a fraction. They share their held-out votes, so that their errors go together.
    Raises: InputError for fewer prompts than folds or texts that do not differ; ConvergenceError where a fit fails.
    """
    won, lost = np.asarray(winner, dtype=np.int64), np.asarray(loser, dtype=np.int64)
    labels, codes = np.unique(np.asarray(prompt), return_inverse=True)
    if not won.shape == lost.shape == codes.shape or len(labels) < FOLDS:
        raise InputError(
            f"reader_accuracies: found {len(won)} votes on {len(labels)} prompts; expected {FOLDS} prompts or more, and "
            "one winner, loser and prompt a vote"
        )
    counts = ngram_counts(texts)
    features = weighted_counts(counts, column_weights(counts))
    gaps = (features[won] - features[lost]).tocsr()
    gaps.eliminate_zeros()
    if not gaps.nnz:
        raise InputError("reader_accuracies: the texts of every pair have the same words; expected them to differ")
    order = rng.permutation(len(labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels))
    found = []
    for fraction in fractions:
        right, trained = np.zeros(len(won)), []
        for out in range(FOLDS):
            others = np.sort(place[fold != out])
            last = others[max(0, round(fraction * len(others)) - 1)]
            train = (fold[codes] != out) & (place[codes] <= last)
            held = fold[codes] == out
            scores = gaps[held] @ reader_weights(gaps[train])
            right[held] = np.where(scores == 0, 0.5, scores > 0)
            trained.append(int(train.sum()))
        found.append(_measured(right, codes, float(np.mean(trained))))
    return found


def reader_weights(gaps: sparse.csr_matrix, *, l2: float = L2) -> np.ndarray:
    """The weights of a reader of words from the winners' features less the losers', [F].

    Raises: ConvergenceError where L-BFGS does not converge.
    """
    used = np.unique(gaps.indices)
    weights = np.zeros(gaps.shape[1])
    if not len(used):
        return weights
    rows = gaps[:, used]

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = rows @ w
        return l2 / 2 * float(w @ w) - float(log_expit(margin).sum()), l2 * w - rows.T @ expit(-margin)

    result = minimize(objective, np.zeros(len(used)), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    if not result.success:
        raise ConvergenceError(f"reader of words: {result.message}; expected convergence. Use fewer votes")
    weights[used] = result.x
    return weights


def _measured(right: np.ndarray, codes: np.ndarray, trained: float) -> Measurement:
    n, k = len(right), int(codes.max()) + 1
    mean = float(right.mean())
    sums, sizes = np.bincount(codes, right, k), np.bincount(codes, minlength=k)
    spread = float(((sums - sizes * mean) ** 2).sum()) * k / (k - 1)
    # where all prompts are alike, as uncertain as independent votes with one more on either side
    floor = float(np.sqrt((mean * n + 1) * ((1 - mean) * n + 1))) / (n + 2) ** 1.5
    return Measurement(trained, mean, max(spread**0.5 / n, floor), n, k)
