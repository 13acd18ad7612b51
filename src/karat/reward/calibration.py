"""What the scores say in probabilities: predictions for raters never seen, temperature, and how far to trust them.

Everything here is in logits; the optimiser's scale never enters. Knows scores and votes as columns; knows nothing
about texts or trunks.

Dimension letters: S heads, C comparisons, K levels, N texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from karat.choice import VoteBatch, marginal_logprobs
from karat.reward.raters import RaterPriors

LOG_TEMPERATURE_BOUND = math.log(20.0)  # beyond it the scores say nothing (or everything), which is a finding


@dataclass(frozen=True)
class VoteModel:
    """What turns differences of scores into probabilities for a rater of whom no vote is known."""

    priors: RaterPriors
    """Priors over which raters are integrated."""
    cutpoints: tuple[float, ...]
    """Thresholds of the scale in logits, ascending and antisymmetric."""

    @property
    def n_levels(self) -> int:
        """Levels of the scale."""
        return len(self.cutpoints) + 1


def predicted_probs(
    scores: Float[Tensor, "S N"], votes: VoteBatch, model: VoteModel, *, temperature: float = 1.0
) -> Float[Tensor, "C K"]:
    """Probability of every level for each comparison: the mean over heads, with the rater integrated out.

        P(y = k) = (1/S)·Σ_s ∫ P(y = k | a·Δ_s/T + b·side) dprior(a, b)

    Args:
        scores: raw scores of each head (logits when T is already applied).    temperature: T > 0.
    """
    distinct, inverse = torch.stack([votes.a.double(), votes.b.double(), votes.side.double()]).unique(
        dim=1, return_inverse=True
    )
    a, b, side = distinct[0].long(), distinct[1].long(), distinct[2]
    wide = scores.detach().double()
    delta = (wide[:, a] - wide[:, b]) / temperature  # [S, distinct]
    if model.priors.modelled:
        spread = {"competence_sd": model.priors.competence_sd, "side_bias_sd": model.priors.side_bias_sd}
    else:
        spread = {"competence_sd": 0.0, "side_bias_sd": 0.0}
    logprobs = marginal_logprobs(
        delta.flatten(),
        **spread,
        lapse=model.priors.mean_lapse,
        cutpoints=torch.tensor(model.cutpoints, dtype=torch.float64),
        side=side.repeat(delta.shape[0]),
    )
    return logprobs.exp().view(*delta.shape, model.n_levels).mean(0)[inverse]


def vote_nll(probs: Float[Tensor, "C K"], votes: VoteBatch) -> Float[Tensor, " C"]:
    """−log P(the level that was chosen), nats."""
    return -probs.gather(1, votes.level.unsqueeze(1)).squeeze(1).clamp_min(1e-300).log()


def fit_temperature(scores: Float[Tensor, "S N"], votes: VoteBatch, model: VoteModel) -> float:
    """The temperature T that makes held-out votes most likely; scores in logits are raw/T.

    Cutpoints stay: they are properties of the scale, T of the model's confidence.

    Returns: T in [1/20, 20]; a value at the bound means that the scores carry nothing.
    Source: Guo et al. 2017, arXiv:1706.04599 §4.2, for the ordinal link.
    """

    def mean_nll(log_temperature: float) -> float:
        probs = predicted_probs(scores, votes, model, temperature=math.exp(log_temperature))
        return float(vote_nll(probs, votes).mean())

    bound = LOG_TEMPERATURE_BOUND
    found = minimize_scalar(mean_nll, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-3, "maxiter": 40})
    return math.exp(float(found.x))


def decided_probs(probs: Float[Tensor, "C K"], votes: VoteBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability that a is preferred, given that one is; what was preferred; and which votes these are.

    Returns: p [D], outcome [D] (1 = a preferred), positions [D] of the votes that are not ties.
    """
    k = votes.n_levels
    low, high = probs[:, : k // 2].sum(1), probs[:, (k + 1) // 2 :].sum(1)
    decided = (votes.level * 2 != k - 1).nonzero().squeeze(1)
    p = (high / (high + low))[decided].numpy()
    outcome = (votes.level[decided] * 2 > k - 1).double().numpy()
    return p, outcome, decided.numpy()
