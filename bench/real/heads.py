"""Heads on the features that a trained encoder leaves behind: its own, a Bayesian last layer, and one that reads n-grams too.

The last layers are fitted as `reward.bayes` fits them, raters and their lapses from the trained scores. Knows features, votes
and texts; knows nothing about consensus or folds.

Dimension letters: N texts, d features.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from bench.real.tuned import Found, Known

from karat.choice import RaterParams, VoteBatch, vote_batch
from karat.reward.block_layer import block_scales, spread
from karat.reward.last_layer import comparison_observations, fit_last_layer
from karat.reward.model import log_lengths
from karat.reward.raters import RaterPriors, fit_raters, prior_raters
from karat.reward.side import side_features

OWN, LAYER, EFFECTS, NGRAMS = "own", "last layer", "last layer, effects of texts", "last layer, n-grams"
HEADS: dict[str, tuple[str, ...]] = {"plain": (OWN,), "karat": (OWN, LAYER, EFFECTS, NGRAMS)}
"""What the inner folds choose between; the plain fine-tune has its own head only."""


@dataclass(frozen=True, eq=False)
class Score:
    """Scores of all texts by one fit."""

    residual: np.ndarray
    """Without the length term, [N]."""
    gamma: float
    """Slope of the length term."""


def head_scores(head: str, found: Found, known: Known) -> Score:
    """Scores by the head of that name."""
    own = Score(found["scores"].mean(0).astype(float), float(found["gamma"].mean()))
    return own if head == OWN else _layer(found, known, own, head)


def _layer(found: Found, known: Known, own: Score, head: str) -> Score:
    texts = [one.text for one in known.responses.values()]
    length = log_lengths(texts).double().numpy()
    columns, raters = _raters(known, own, length)
    used = np.unique(np.concatenate([columns.a.numpy(), columns.b.numpy()]))
    phi = np.concatenate([found["features"].astype(float), length[:, None]], axis=1)
    observed = [comparison_observations(columns, raters)]
    width = phi.shape[1]
    if head == LAYER:
        weight = fit_last_layer(phi, observed, tolerance=1e-4).mean
    else:
        prompts = [known.prompts[one.prompt_id] for one in known.responses.values()]
        if head == NGRAMS:
            side = side_features(("ngrams",), [prompts[i] for i in used], [texts[i] for i in used])
            (block,) = side.blocks(prompts, texts)
        else:
            block = np.zeros((len(texts), len(used)))
            block[used, np.arange(len(used))] = 1
        phi = np.concatenate([phi, block], axis=1)
        scales, layer = block_scales(phi, [width, block.shape[1]], observed)
        weight = layer.mean * spread(scales, [width, block.shape[1]])
    gamma = float(weight[width - 1])
    return Score(phi @ weight - gamma * length, gamma)


def _raters(known: Known, own: Score, length: np.ndarray) -> tuple[VoteBatch, RaterParams]:
    """Votes as columns, and their raters fitted to the trained scores."""
    index = {one: place for place, one in enumerate(known.responses)}
    names = {name: place for place, name in enumerate(dict.fromkeys(vote.annotator for vote in known.votes))}
    columns, priors = _columns(known, tuple(index), tuple(names)), RaterPriors()
    scores = torch.from_numpy(own.residual + own.gamma * length).float()
    return columns, fit_raters(scores, columns, prior_raters(len(names), columns.n_levels, priors), priors)


@functools.lru_cache(maxsize=8)
def _columns(known: Known, ids: tuple[str, ...], names: tuple[str, ...]) -> VoteBatch:
    index = {one: place for place, one in enumerate(ids)}
    return vote_batch(known.votes, index, {name: place for place, name in enumerate(names)})
