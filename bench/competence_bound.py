"""The most that a rater's votes let anybody know of her competence: every other parameter is given as it was planted."""

from __future__ import annotations

import numpy as np

from karat.feedback.quality.ordinal import Comparisons, level_probs

SIDE_BIAS_SD = 0.2
"""Planted, of raters with a planted competence."""


def known_scores_competence(votes: Comparisons, delta: np.ndarray, cuts: np.ndarray, sd: float) -> np.ndarray:
    """Posterior mean of each rater's competence where everything else is known but her side bias; on a grid, [W]."""
    competence = np.linspace(1 - 5 * sd, 1 + 5 * sd, 161)
    bias = SIDE_BIAS_SD * np.linspace(-4, 4, 21)
    log_prior = -(((competence - 1) / sd) ** 2)[:, None] / 2 - (bias / SIDE_BIAS_SD) ** 2 / 2
    found = np.empty(votes.n_annotators)
    for rater in range(votes.n_annotators):
        rows = np.flatnonzero(votes.annotator == rater)
        eta = competence[:, None, None] * delta[rows] + bias[None, :, None] * votes.side[rows]
        probs = level_probs(eta, cuts, 0.05)[:, :, np.arange(len(rows)), votes.level[rows]]
        log_weight = np.log(probs).sum(-1) + log_prior
        weight = np.exp(log_weight - log_weight.max()).sum(1)
        found[rater] = weight @ competence / weight.sum()
    return found
