"""A last layer and its raters by turns: the weights' posterior for given raters, the raters for given scores.

Comparisons alone take a few turns. Where something speaks of single responses, offsets, gains and noise are fitted to draws of the
scores (a score that is known only so well is neither noise nor gain), until scores and gains stand still. Knows features, columns and
parameters; knows nothing about texts, trunks or files.

Dimension letters: N texts, d features, S draws.

Source: Dempster, Laird & Rubin 1977, JRSS B 39(1), pp. 1–38 (EM), with Laplace's approximation of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from karat.feedback_columns import FeedbackBatch, FeedbackParams
from karat.reward.channel_answers import batch_answers, centred_params, is_plain, log_scale, needs_level
from karat.reward.last_layer import LastLayer, fit_last_layer
from karat.reward.latents import fit_params
from karat.reward.raters import RaterPriors

MOST_TURNS = 40
"""Turns where offsets, gains or noise are fitted along; a few suffice but where little says what the scale is."""
SETTLED = 0.01
"""Change of scores, relative to their spread, and of gains in a turn, at which both stand still."""
N_DRAWS = 32
"""Draws of the scores that offsets, gains and noise are fitted to, in pairs around their mean."""


@dataclass(frozen=True, eq=False)
class TurnedLayer:
    """The weights' posterior with the raters that it was fitted with."""

    posterior: LastLayer
    """Of w; where there is more than comparisons of one scale, with what is not known of the raters in its covariance."""
    params: FeedbackParams
    """Of everybody, in units of φ·w."""
    n_turns: int
    """Fits of the weights."""


def fit_by_turns(
    features: np.ndarray,
    batch: FeedbackBatch,
    params: FeedbackParams,
    priors: RaterPriors,
    *,
    n_people: int,
    start: np.ndarray,
    n_turns: int = 2,
    prior_precision: float | None = None,
    averaged: bool = False,
) -> TurnedLayer:
    """The last layer of everything in a batch of one objective.

    Args:
        features: φ of every text, [N, d], measured from their mean where something speaks of single responses: those
            statements depend on where zero is.
        params: where raters begin.    n_people: raters who are people, see `centred_params`.    start: weights to begin from.
        n_turns: fits of the weights; up to 40 where something speaks of single responses, until all stands still.
        prior_precision, averaged: as `fit_last_layer` has them; only the last turn is averaged.
    Raises: what `fit_last_layer`, `fit_params` and `centred_params` raise.
    """
    level = needs_level(batch)
    if level:  # they were fitted to scores measured from elsewhere
        params = centred_params(fit_params(_column(features @ start), batch, params, priors), batch, n_people)
    most, settled = max(n_turns, MOST_TURNS) if level else n_turns, False
    rng = np.random.default_rng(0)  # the same draws at every fit: which ones they are is nobody's choice
    standard = rng.standard_normal((N_DRAWS // 2, features.shape[1])) if level else np.zeros((0, features.shape[1]))
    for turn in range(most):
        last = settled or turn + 1 == most
        posterior = fit_last_layer(
            features, batch_answers(batch, params, priors, known=not last or is_plain(batch)),
            prior_precision=prior_precision, start=start, averaged=averaged and last,
        )  # fmt: skip
        if last:
            return TurnedLayer(posterior, params, turn + 1)
        before, scale, start = features @ start, log_scale(params), posterior.mean
        scores = _drawn(features, posterior, standard) if level else _column(features @ start)
        params = centred_params(fit_params(scores, batch, params, priors), batch, n_people)
        after = features @ start
        moved = float(np.sqrt(np.mean((after - before) ** 2))) <= SETTLED * float(after.std())
        settled = level and turn + 2 >= n_turns and moved and abs(log_scale(params) - scale) <= SETTLED
    raise AssertionError("a last turn returns")


def _column(scores: np.ndarray) -> Tensor:
    return torch.from_numpy(scores).float().unsqueeze(-1)


def _drawn(features: np.ndarray, posterior: LastLayer, standard: np.ndarray) -> Tensor:
    """Joint draws of the scores [S, N, 1], in pairs around their mean."""
    beside = standard @ (features @ np.linalg.cholesky(posterior.covariance)).T
    return torch.from_numpy(np.concatenate([beside, -beside]) + features @ posterior.mean).unsqueeze(-1)
