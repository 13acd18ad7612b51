"""Karat's reward with plain features beside the trunk's, as `reward.beside` sets it: whole answers, and tokens of answers.

Every function looks at the outcomes of training rows only. Knows arrays and texts.

Dimension letters: N answers or tokens, d features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from bench.real.spans import Tokens
from bench.real.systems import THRESHOLD_SCALE, centred, label_observations, right_over_wrong

from karat.choice import RaterParams, VoteBatch
from karat.plain_features import sentence_starts
from karat.records import user_prompt
from karat.reward.block_layer import block_scales, spread
from karat.reward.dense import MarkedTokens, fit_marks
from karat.reward.last_layer import comparison_observations
from karat.reward.mark_ridges import chosen_ridges
from karat.reward.side import Beside, ngram_basis, side_features
from karat.reward.token_side import Row, token_side

BLOCKS: tuple[Beside, ...] = ("ngrams", "place", "overlap")
QUESTION_WIDTH = 200
"""Directions of the question's n-grams, which a label needs and a comparison cannot read."""


def answer_blocks(
    features: np.ndarray, questions: Sequence[str], texts: Sequence[str], train: np.ndarray
) -> list[np.ndarray]:
    """Trunk and length, n-grams, place and overlap of the answers, n-grams of the questions."""
    prompts, own = [user_prompt(question) for question in questions], np.flatnonzero(train)
    side = side_features(BLOCKS, [prompts[i] for i in own], [texts[i] for i in own])
    of_question = ngram_basis([questions[i] for i in own], QUESTION_WIDTH).of(questions)
    return [features.astype(float), *side.blocks(prompts, texts), of_question]


def standard(columns: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and variance 1 over the training rows, as plain features have them."""
    return (columns - columns[train].mean(0)) / np.maximum(columns[train].std(0), 1e-6)


def label_scores(blocks: Sequence[np.ndarray], right: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Scores [N] of the last layer fitted to labels, a prior precision a block by marginal likelihood."""
    own = [centred(block, train) for block in blocks]
    own[0] = np.concatenate([own[0], np.full((len(right), 1), THRESHOLD_SCALE)], axis=1)
    phi, widths = np.concatenate(own, axis=1), [block.shape[1] for block in own]
    scales, layer = block_scales(phi[train], widths, [label_observations(right[train])])
    return phi @ (layer.mean * spread(scales, widths))


def comparison_scores(
    blocks: Sequence[np.ndarray], right: np.ndarray, key: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """The same fitted to comparisons: of each training question, every right answer ≻ every wrong one."""
    better, worse = right_over_wrong(right, key, train)
    none = torch.zeros(len(better))
    votes = VoteBatch(
        torch.from_numpy(better),
        torch.from_numpy(worse),
        torch.ones(len(better), dtype=torch.long),
        none,
        none.long(),
        2,
    )
    rater = RaterParams(torch.ones(1), torch.zeros(1), torch.zeros(1), torch.zeros(1))
    own = [centred(block, train) for block in blocks]
    phi, widths = np.concatenate(own, axis=1), [block.shape[1] for block in own]
    scales, layer = block_scales(phi, widths, [comparison_observations(votes, rater)])
    return phi @ (layer.mean * spread(scales, widths))


def marked(features: np.ndarray, tokens: Tokens, answers: Sequence[int]) -> list[MarkedTokens]:
    """Some answers as the fit of marks reads them."""
    read = []
    for number in answers:
        own = slice(*np.searchsorted(tokens.answer, [number, number + 1]))
        phi = torch.from_numpy(np.asarray(features[own], dtype=np.float32))
        nothing = torch.zeros(0, len(phi), dtype=torch.bool)
        inside = {name: torch.from_numpy(tokens.inside[own, k].copy()) for k, name in enumerate(tokens.names)}
        read.append(MarkedTokens(phi, nothing, torch.zeros(0, dtype=torch.long), inside))
    return read


def span_beside(
    rows: Sequence[Row], features: np.ndarray, tokens: Tokens, key: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Log-odds [N, K] of heads on the trunk's states and on the plain features of tokens, ridges chosen on training answers.

    Args:
        rows: prompt, answer and tokens of each answer.    key: the question of each answer.    train: of tokens.
    """
    answers = np.unique(tokens.answer[train])
    side = token_side(BLOCKS, [rows[i] for i in answers])
    whole = np.concatenate([features, np.concatenate([side.of(*row) for row in rows])], axis=1).astype(np.float32)
    widths = [features.shape[1], *side.widths.values()]
    return _heads(whole, widths, BLOCKS, tokens, key, answers)[0]


def span_chosen(
    variants: dict[str, np.ndarray], tokens: Tokens, key: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, str]:
    """Log-odds of heads on the variant of the trunk's features that is likeliest on the inner fold, all classes together."""
    answers = np.unique(tokens.answer[train])
    found = {
        name: _heads(features, [features.shape[1]], (), tokens, key, answers) for name, features in variants.items()
    }
    best = min(found, key=lambda name: found[name][1])
    return found[best][0], best


def _heads(
    features: np.ndarray,
    widths: list[int],
    blocks: Sequence[Beside],
    tokens: Tokens,
    key: np.ndarray,
    answers: np.ndarray,
) -> tuple[np.ndarray, float]:
    read = marked(features, tokens, answers.tolist())
    ridge, loss = chosen_ridges(read, tokens.names, widths, blocks, [str(key[i]) for i in answers])
    fit = fit_marks(read, tokens.names, ridge=ridge)
    return features.astype(np.float64) @ fit.weight.double().numpy().T - fit.threshold.double().numpy(), sum(loss)


def with_sentence_means(features: np.ndarray, texts: Sequence[str], tokens: Tokens) -> np.ndarray:
    """States beside the mean state of the token's sentence."""
    means = np.zeros_like(features)
    for number, text in enumerate(texts):
        own = np.flatnonzero(tokens.answer == number)
        sentence = np.searchsorted(sentence_starts(text), tokens.spans[own, 0], side="right") - 1
        for one in np.unique(sentence):
            inside = own[sentence == one]
            means[inside] = features[inside].mean(0)
    return np.concatenate([features, means], axis=1)
