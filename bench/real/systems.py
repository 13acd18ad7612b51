"""What is compared: karat's linear reward on features, length, n-grams, and an encoder trained on labels.

Every function takes a mask of training rows, looks at no other outcome, and scores the others (most score all rows). Knows arrays and texts.

Dimension letters: N answers, d features, F n-grams, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bench.real.features import open_encoder
from bench.real.measures import members_of
from scipy import sparse
from scipy.optimize import minimize

from karat.choice import RaterParams, VoteBatch
from karat.ngrams import column_weights, ngram_counts, weighted_counts
from karat.progress import Progress
from karat.records import Response, user_prompt
from karat.reward.last_layer import Observations, comparison_observations, fit_last_layer, ordinal_derivatives
from karat.reward.model import log_lengths
from karat.reward.score import scorer_of
from karat.reward.settings import ENCODER_CONFIG
from karat.reward.train import planned_steps, train_reward
from karat.reward.trunk import EncoderTrunk
from karat.statements import Labelled

L2_GRID = (0.0625, 0.25, 1.0, 4.0, 16.0)
"""Regularisations of the n-gram baseline, of which the inner fold chooses."""
THRESHOLD_SCALE = 10.0
"""The constant feature behind the threshold: large, so that the prior on the weights leaves the threshold free."""
MAX_TOKENS = 128
"""Of a question and its answer, for the encoder that is trained; the longest answers of truthfulqa_labels fit."""


def label_observations(right: np.ndarray) -> Observations:
    """Labels by one rater for `fit_last_layer`: P(right) = σ(w·φ), the threshold being one of the weights."""
    level, none, zero = right.astype(int), np.zeros(len(right)), np.zeros(1)
    return Observations(
        a=np.arange(len(right)),
        b=np.full(len(right), -1),
        slope=np.ones(len(right)),
        offset=none,
        derivatives=lambda eta, rows: ordinal_derivatives(eta, level[rows], none[rows], zero),
    )


def label_reward(features: np.ndarray, right: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Scores [N] of the Bayesian last layer fitted to labels, its prior precision by marginal likelihood."""
    phi = centred(features, train)
    phi = np.concatenate([phi, np.full((len(phi), 1), THRESHOLD_SCALE)], axis=1)
    return phi @ fit_last_layer(phi[train], [label_observations(right[train])]).mean


def comparison_reward(features: np.ndarray, right: np.ndarray, key: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Scores [N] of the same layer fitted to comparisons: of each training question, every right answer ≻ every wrong one."""
    phi = centred(features, train)
    better, worse = right_over_wrong(right, key, train)
    n = len(better)
    none = torch.zeros(n)
    votes = VoteBatch(
        torch.from_numpy(better), torch.from_numpy(worse), torch.ones(n, dtype=torch.long), none, none.long(), 2
    )
    rater = RaterParams(torch.ones(1), torch.zeros(1), torch.zeros(1), torch.zeros(1))
    return phi @ fit_last_layer(phi, [comparison_observations(votes, rater)]).mean


def right_over_wrong(right: np.ndarray, key: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a right and a wrong answer to one training question: rows of the right and of the wrong ones."""
    better, worse = [], []
    rows = np.flatnonzero(train)
    for members in members_of(key[train]):
        own = rows[members]
        for i in own[right[own]]:
            for j in own[~right[own]]:
                better.append(i)
                worse.append(j)
    return np.array(better, dtype=np.int64), np.array(worse, dtype=np.int64)


def length_features(questions: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """log(1 + characters) of answer and question, and their squares, [N, 4]."""
    columns = [log_lengths(own).double().numpy() for own in (texts, questions)]
    return np.stack([*columns, *(column**2 for column in columns)], axis=1)


def with_length(features: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Features beside the reward's length term, [N, d + 1]."""
    return np.concatenate([features, log_lengths(texts).numpy()[:, None]], axis=1).astype(np.float64)


def centred(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Features measured from their training mean; the reward's weights then say nothing about a threshold."""
    return features.astype(np.float64) - features[train].mean(0, dtype=np.float64)


def standardised(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Features of training mean 0 and training variance 1."""
    return centred(features, train) / np.maximum(features[train].std(0, dtype=np.float64), 1e-9)


Weights = tuple[list[np.ndarray], np.ndarray]
"""Of each block of n-grams [F, K], and the thresholds [K]."""


@dataclass(frozen=True, eq=False)
class Grams:
    """N-grams of some texts, and which of these texts each row has."""

    counts: sparse.csr_matrix
    """Of each text, [texts, F]."""
    rows: np.ndarray
    """The text of each row, [N]."""


def grams_of(texts: Sequence[str]) -> Grams:
    """N-grams of one text a row; texts that are equal are counted once."""
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return Grams(ngram_counts(list(place)), np.array([place[text] for text in texts]))


@dataclass(frozen=True, eq=False)
class _Block:
    matrix: sparse.csr_matrix
    """Weighted n-grams of every text that occur in training, [texts, used]."""
    rows: np.ndarray

    def of(self, mask: np.ndarray) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Texts of the rows that count, and which text each of these rows has as a 0/1 matrix."""
        texts, place = np.unique(self.rows[mask], return_inverse=True)
        which = sparse.csr_matrix((np.ones(len(place)), (np.arange(len(place)), place)), (len(place), len(texts)))
        return self.matrix[texts], which


def ngram_scores(
    grams: Sequence[Grams], outcomes: np.ndarray, weight: np.ndarray, fit: np.ndarray, choose: np.ndarray
) -> tuple[np.ndarray, float]:
    """Scores [N, K] of a logistic model on n-grams, and its regularisation, chosen on the inner fold.

    Args:
        grams: blocks with weights of their own (answer, question).    outcomes: bool [N, K].    weight: of each row.
        fit, choose: masks of the inner folds; the chosen model is fitted to both.
    """
    design, loss, start = _Design(grams, fit), {}, None
    for l2 in sorted(L2_GRID, reverse=True):  # from the stiffest: each fit begins where the one before ended
        start = design.fitted(outcomes, weight, l2, start)
        eta = design.scores(start, choose)
        loss[l2] = float((weight[choose, None] * np.logaddexp(0, -_signs(outcomes[choose]) * eta)).sum())
    best = min(loss, key=loss.__getitem__)
    design = _Design(grams, fit | choose)
    found = design.fitted(outcomes, weight, best, None)
    return design.scores(found, np.ones(len(weight), dtype=bool)), best


class _Design:
    """The n-grams that occur in some training rows, weighted as they occur there."""

    def __init__(self, grams: Sequence[Grams], train: np.ndarray) -> None:
        self.train = train
        self.blocks = [_block(one, train) for one in grams]
        self.parts = [block.of(train) for block in self.blocks]

    def fitted(self, outcomes: np.ndarray, weight: np.ndarray, l2: float, start: Weights | None) -> Weights:
        """Fit to the training rows."""
        return fit_logistic(self.parts, outcomes[self.train], weight[self.train], l2, start)

    def scores(self, fitted: Weights, wanted: np.ndarray) -> np.ndarray:
        """Log-odds of the rows wanted, [n, K]."""
        weights, threshold = fitted
        scores = threshold
        for block, own in zip(self.blocks, weights, strict=True):
            matrix, which = block.of(wanted)
            scores = scores + which @ (matrix @ own)
        return scores


def _block(grams: Grams, train: np.ndarray) -> _Block:
    used = np.unique(grams.rows[train])
    matrix = weighted_counts(grams.counts, column_weights(grams.counts[used]))
    return _Block(matrix[:, np.unique(matrix[used].indices)].tocsr(), grams.rows)


def fit_logistic(
    blocks: Sequence[tuple[sparse.csr_matrix, sparse.csr_matrix]],
    outcomes: np.ndarray,
    weight: np.ndarray,
    l2: float,
    start: Weights | None = None,
) -> Weights:
    """Weights of each block [F, K] and thresholds [K] of an L2-regularised logistic model.

        max Σ_n weight_n·log σ(±(Σ_blocks R·X·W + b)_n) − l2/2·‖W‖²

    Args:
        blocks: features X of texts, and the 0/1 matrix R that says which text a row has.    outcomes: bool [N, K].
        start: where to begin; None = at 0.
    """
    n_classes = outcomes.shape[1]
    sizes = [matrix.shape[1] * n_classes for matrix, _ in blocks]
    cuts = np.cumsum(sizes)
    sign = _signs(outcomes)

    def parts(flat: np.ndarray) -> Weights:
        *weights, threshold = np.split(flat, cuts)
        return [own.reshape(-1, n_classes) for own in weights], threshold

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, threshold = parts(flat)
        eta = threshold + sum(
            which @ (matrix @ own) for (matrix, which), own in zip(blocks, weights, strict=True)
        )  # [N, K]
        margin = sign * eta
        residual = -sign * weight[:, None] * np.exp(-np.logaddexp(0, margin))
        gradients = [
            (matrix.T @ (which.T @ residual) + l2 * own).ravel()
            for (matrix, which), own in zip(blocks, weights, strict=True)
        ]
        loss = float((weight[:, None] * np.logaddexp(0, -margin)).sum())
        loss += l2 / 2 * sum(float((own**2).sum()) for own in weights)
        return loss, np.concatenate([*gradients, residual.sum(0)])

    begin = np.zeros(sum(sizes) + n_classes)
    if start is not None:
        begin = np.concatenate([*(own.ravel() for own in start[0]), start[1]])
    options = {"maxiter": 500, "ftol": 1e-7, "gtol": 1e-4}
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options)
    if not found.success:
        raise SystemExit(f"real_data_study: the n-gram fit ended with {found.message}; expected convergence")
    return parts(found.x)


def _signs(outcomes: np.ndarray) -> np.ndarray:
    return np.where(outcomes, 1.0, -1.0)


def trained_reward(
    questions: Sequence[str],
    texts: Sequence[str],
    right: np.ndarray,
    train: np.ndarray,
    seed: int,
    stage: tuple[Progress, str],
) -> np.ndarray:
    """Scores [N] of an encoder that `train_reward` fitted to the labels of the training rows; NaN for these.

    The settings are those of the argument data (`reward.study`): nothing is chosen on these data.

    Args:
        stage: where its steps are shown, and under which name.
    """
    prompts = [user_prompt(question) for question in questions]
    responses = [Response(prompt.id, text, "answers") for prompt, text in zip(prompts, texts, strict=True)]
    said = [
        Labelled(f"label {i}", prompts[i].id, (responses[i].id,), bool(right[i]), "people")
        for i in np.flatnonzero(train).tolist()
    ]
    by_prompt = {prompt.id: prompt for prompt in prompts}
    by_response = {response.id: response for response in responses}
    trunk = EncoderTrunk(open_encoder(), max_tokens=MAX_TOKENS, with_prompt=True)
    known = (said, by_prompt, by_response)
    n_steps = planned_steps(*known, config=ENCODER_CONFIG, seed=seed)
    progress, name = stage
    with progress.stage(name, n_steps, "steps") as bar:
        fit = train_reward(trunk, *known, config=ENCODER_CONFIG, seed=seed, validation=[], reporters=[bar])
    scores, test = np.full(len(texts), np.nan), np.flatnonzero(~train).tolist()
    logits = scorer_of(fit).logits([prompts[i] for i in test], [texts[i] for i in test])
    scores[test] = logits.mean(0).numpy()
    return scores
