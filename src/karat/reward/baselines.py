"""What a reward model must beat: length alone, and words and characters counted, fitted to the same votes.

Both are ordinal choice models with a linear score, so that their likelihoods can be set beside the reward model's vote
by vote. Knows votes and texts; knows nothing about trunks.

Dimension letters: C comparisons, N texts, F features, K levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from karat.choice import RaterParams, VoteBatch, comparison_loglik, raw_cutpoints, symmetric_cutpoints
from karat.errors import ConvergenceError, InputError
from karat.ngrams import column_weights, ngram_counts, weighted_counts
from karat.reward.calibration import VoteModel, fit_temperature
from karat.reward.data import VoteData
from karat.reward.model import log_lengths
from karat.reward.raters import CUTPOINT_SD, RaterPriors, fit_slope, prior_raters


class Baseline(Protocol):
    """A fitted baseline: scores for texts, and what turns them into probabilities."""

    vote_model: VoteModel

    def scores(self, texts: Sequence[str]) -> Float[Tensor, "1 N"]:
        """Scores in logits, one row because there is one draw."""
        ...


@dataclass(frozen=True)
class LengthBaseline:
    """score = γ·log(1 + characters)."""

    slope: float
    """γ; > 0 = longer is preferred."""
    vote_model: VoteModel
    """Cutpoints and the same rater priors as the reward model's."""

    def scores(self, texts: Sequence[str]) -> Float[Tensor, "1 N"]:
        """γ·log(1 + characters) of each text."""
        return (self.slope * log_lengths(texts)).unsqueeze(0)


@dataclass(frozen=True, eq=False)
class NgramBaseline:
    """A linear score on hashed word and character n-grams."""

    weights: np.ndarray
    """One weight a hashed feature, [F]."""
    column_weight: np.ndarray
    """Scaled inverse document frequency in the training texts, [F]."""
    vote_model: VoteModel
    """Cutpoints and the same rater priors as the reward model's."""

    def scores(self, texts: Sequence[str]) -> Float[Tensor, "1 N"]:
        """Scores of texts, seen or not."""
        return (
            torch.from_numpy(weighted_counts(ngram_counts(texts), self.column_weight) @ self.weights)
            .float()
            .unsqueeze(0)
        )


def length_baseline(data: VoteData, priors: RaterPriors) -> LengthBaseline:
    """Fit γ and the cutpoints to votes, then a temperature for raters never seen.

    Raises: InputError when all texts have one length: the baseline then says nothing.
    """
    log_length = log_lengths(data.texts)
    if len({len(text) for text in data.texts}) < 2:
        raise InputError(f"length baseline: all {len(data.texts)} texts have the same length; expected them to differ")
    start = prior_raters(1, data.n_levels, priors).cutpoints
    slope, cutpoints = fit_slope(log_length, data.columns, start)
    model = VoteModel(priors, tuple(cutpoints.tolist()))
    temperature = fit_temperature((slope * log_length).unsqueeze(0), data.columns, model)
    return LengthBaseline(slope / temperature, model)


def ngram_baseline(data: VoteData, priors: RaterPriors, *, l2: float = 1.0) -> NgramBaseline:
    """Fit an L2-regularised ordinal (K = 2: Bradley–Terry) model on n-gram features.

        max Σ_c log P(y_c | X·w) − λ/2·‖w‖²

    Args:
        l2: λ > 0 in votes; an average text has features of length 1 in each of the two families (words, characters).
    Raises: ConvergenceError when L-BFGS does not converge.
    """
    counts = ngram_counts(data.texts)
    column_weight = column_weights(counts)
    every = weighted_counts(counts, column_weight)
    used = np.unique(every.indices)
    features = every[:, used]
    columns, weights = _distinct(data.columns)
    n_half = (data.n_levels - 1) // 2
    start = raw_cutpoints(prior_raters(1, data.n_levels, priors).cutpoints.double()).numpy()

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        w, raw = parameters[: features.shape[1]], parameters[features.shape[1] :]
        scores = torch.from_numpy(features @ w).requires_grad_()
        cut_raw = torch.from_numpy(raw).requires_grad_()
        raters = RaterParams(
            torch.ones(1, dtype=torch.float64),
            torch.zeros(1, dtype=torch.float64),
            torch.zeros(1, dtype=torch.float64),
            symmetric_cutpoints(cut_raw, data.n_levels),
        )
        loss = -(weights * comparison_loglik(scores, columns, raters)).sum()
        loss = loss + (cut_raw / CUTPOINT_SD).square().sum() / 2
        loss.backward()
        assert scores.grad is not None
        cut_gradient = np.zeros(n_half) if cut_raw.grad is None else cut_raw.grad.numpy()
        gradient = np.concatenate([features.T @ scores.grad.numpy() + l2 * w, cut_gradient])
        return float(loss.detach()) + l2 / 2 * float(w @ w), gradient

    result = minimize(
        objective, np.concatenate([np.zeros(features.shape[1]), start]), jac=True, method="L-BFGS-B",
        options={"maxiter": 500, "ftol": 1e-9, "gtol": 1e-4},
    )  # fmt: skip
    if not result.success:
        raise ConvergenceError(f"n-gram baseline: {result.message}; expected convergence. Raise l2 (found {l2})")
    cutpoints = symmetric_cutpoints(torch.from_numpy(result.x[features.shape[1] :]), data.n_levels)
    coefficients = np.zeros(every.shape[1])
    coefficients[used] = result.x[: features.shape[1]]
    model = VoteModel(priors, tuple(cutpoints.tolist()))
    raw = torch.from_numpy(every @ coefficients).unsqueeze(0)
    return NgramBaseline(coefficients / fit_temperature(raw, data.columns, model), column_weight, model)


def _distinct(votes: VoteBatch) -> tuple[VoteBatch, Float[Tensor, " D"]]:
    """Votes on the same pair with the same answer counted once, with their number; raters and sides are left out."""
    stacked, counts = torch.stack([votes.a, votes.b, votes.level]).unique(dim=1, return_counts=True)
    a, b, level = stacked
    zeros = torch.zeros(len(a), dtype=torch.float64)
    return VoteBatch(a, b, level, zeros, torch.zeros(len(a), dtype=torch.long), votes.n_levels), counts.double()
