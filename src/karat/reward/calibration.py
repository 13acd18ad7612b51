"""What the scores say in probabilities: predictions for raters never seen, temperature, and how far to trust them.

Everything here is in logits; the optimiser's scale never enters. Knows scores and votes as columns; knows nothing
about texts or trunks.

Dimension letters: S heads, C comparisons, K levels, N texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from karat.choice import VoteBatch, marginal_logprobs
from karat.errors import InputError
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


@dataclass(frozen=True)
class SliceCalibration:
    """How far the probabilities of one slice of held-out votes can be trusted."""

    n: int
    """Votes of the slice."""
    temperature: float | None
    """T that its votes would have chosen, relative to the model's; None = fewer than `MIN_SLICE`. 1 = no correction."""
    nll: float
    """Mean −log P at the model's own temperature, nats."""
    nll_corrected: float | None
    """The same at the slice's temperature, chosen on one half of its votes and measured on the other, and the reverse."""


MIN_SLICE = 40
"""Votes from which a temperature of their own is fitted: below, its standard error is about a quarter of it."""


def slice_calibration(
    logits: Float[Tensor, "S N"], votes: VoteBatch, model: VoteModel, names: Sequence[str]
) -> dict[str, SliceCalibration]:
    """Temperature of each slice of held-out votes: by group of raters, by kind of feedback, by topic.

    One temperature over all votes hides a group for whom the scores are too sure and one for whom they are not sure
    enough. Reported, and applied only where the corrected likelihood says that it helps (`nll_corrected` < `nll`).

    Args:
        logits: calibrated scores of each draw.    names: the slice of each vote.
    Raises: InputError when names and votes differ in number.
    """
    if len(names) != len(votes):
        raise InputError(f"slice_calibration: found {len(names)} names for {len(votes)} votes; expected one each")
    labels, found = np.asarray(names), {}
    for name in sorted(set(names)):
        rows = torch.from_numpy(np.flatnonzero(labels == name))
        own = votes.select(rows)
        nll = float(vote_nll(predicted_probs(logits, own, model), own).mean())
        if len(own) < MIN_SLICE:
            found[name] = SliceCalibration(len(own), None, nll, None)
            continue
        crossed = 0.0
        for half in (0, 1):
            fit, test = own.select(torch.arange(half, len(own), 2)), own.select(torch.arange(1 - half, len(own), 2))
            own_temperature = fit_temperature(logits, fit, model)
            crossed += float(vote_nll(predicted_probs(logits, test, model, temperature=own_temperature), test).sum())
        found[name] = SliceCalibration(len(own), fit_temperature(logits, own, model), nll, crossed / len(own))
    return found


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
