"""Raters as latent variables: their most probable parameters, given what the texts score.

The reward model and the raters are fitted to one objective by turns: gradient steps on the trunk with the raters
fixed, and this exact maximum over the raters with the scores fixed. Knows scores and votes; knows nothing about
texts or trunks.

Dimension letters: C comparisons, N texts, A annotators, K levels.

Differs: gradient steps on rater parameters inside the minibatches would move a rater with three votes by the
    optimiser's step size instead of by her evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from karat.choice import (
    RaterParams,
    VoteBatch,
    comparison_loglik,
    rater_log_prior,
    raw_cutpoints,
    symmetric_cutpoints,
)
from karat.errors import ConvergenceError
from karat.reward.settings import RaterPriors

CUTPOINT_SD = 3.0  # weak normal prior on the raw cutpoints: a level that nobody used must not send them to −∞
SLOPE_SD = 10.0  # weak normal prior on a slope: votes that one feature separates must not send it to infinity
LAPSE_FLOOR = 1e-4  # where the lapse's likelihood is still differentiable


def prior_raters(n_annotators: int, n_levels: int, priors: RaterPriors) -> RaterParams:
    """Every rater at her prior's centre, cutpoints half a logit wide a step."""
    raw = torch.full(((n_levels - 1) // 2,), math.log(math.expm1(0.5)))
    return RaterParams(
        torch.ones(n_annotators),
        torch.zeros(n_annotators),
        torch.full((n_annotators,), priors.mean_lapse),
        symmetric_cutpoints(raw, n_levels),
    )


def fit_raters(
    scores: Float[Tensor, " N"], votes: VoteBatch, start: RaterParams, priors: RaterPriors, *, max_steps: int = 200
) -> RaterParams:
    """The most probable competence, side bias, lapse and cutpoints for fixed scores.

        max Σ_c log P(y_c | scores, raters) + Σ_w log prior(a_w, b_w, ε_w)

    Raters without votes stay at their prior's mode. Where `priors.modelled` is False, and where there is one rater
    only (her competence cannot be told from the scale of the scores), competence stays 1.

    Args:
        scores: in logits, not trained here.    start: where to begin; fixes the number of raters.
        max_steps: L-BFGS iterations, float64.
    Returns: RaterParams in the dtype of `start`.
    Raises: ConvergenceError when the objective is not finite.
    """
    scores = scores.detach().double()
    n_annotators = start.competence.shape[0]
    one_rater = len(set(votes.annotator.tolist())) < 2
    competence = start.competence.double().clone().requires_grad_(priors.modelled and not one_rater)
    side_bias = start.side_bias.double().clone().requires_grad_(priors.modelled)
    inside = (start.lapse.double() - LAPSE_FLOOR) / (1 - 2 * LAPSE_FLOOR)
    lapse_raw = torch.logit(inside.clamp(LAPSE_FLOOR, 0.99)).requires_grad_(priors.modelled)
    cut_raw = raw_cutpoints(start.cutpoints.double()).requires_grad_(start.cutpoints.shape[0] > 1)
    columns = VoteBatch(votes.a, votes.b, votes.level, votes.side.double(), votes.annotator, votes.n_levels)
    free = [p for p in (competence, side_bias, lapse_raw, cut_raw) if p.requires_grad]
    if not free:
        return start

    def current() -> RaterParams:
        if not priors.modelled:
            zeros = torch.zeros(n_annotators, dtype=torch.float64)
            return RaterParams(competence, side_bias, zeros, symmetric_cutpoints(cut_raw, votes.n_levels))
        # the prior's mode is ε = 0, where log ε has no gradient: a long step of the line search must not get there
        lapse = LAPSE_FLOOR + (1 - 2 * LAPSE_FLOOR) * torch.sigmoid(lapse_raw)
        return RaterParams(competence, side_bias, lapse, symmetric_cutpoints(cut_raw, votes.n_levels))

    def objective() -> Tensor:
        raters = current()
        total = comparison_loglik(scores, columns, raters).sum() - (cut_raw / CUTPOINT_SD).square().sum() / 2
        if priors.modelled:
            total = total + rater_log_prior(
                raters,
                competence_sd=priors.competence_sd,
                side_bias_sd=priors.side_bias_sd,
                lapse_a=priors.lapse_a,
                lapse_b=priors.lapse_b,
            )
        return -total / len(votes)

    minimise(objective, free, max_steps)
    with torch.no_grad():
        best = current()
    fields = (best.competence, best.side_bias, best.lapse, best.cutpoints)
    return RaterParams(*(field.detach().to(start.competence.dtype) for field in fields))


def fit_slope(
    feature: Float[Tensor, " N"], votes: VoteBatch, cutpoints: Float[Tensor, "K-1"], *, free: bool = True
) -> tuple[float, Float[Tensor, "K-1"]]:
    """The slope γ on one feature, and the cutpoints, that make votes by average raters most likely.

        max Σ_c log P(y_c | γ·feature)        a_w = 1, b_w = 0, ε_w = 0

    Args:
        cutpoints: where to begin.    free: False = γ stays 0 and only the cutpoints are fitted.
    """
    n_annotators = int(votes.annotator.max()) + 1
    wide = feature.detach().double()
    slope = torch.zeros((), dtype=torch.float64, requires_grad=free)
    cut_raw = raw_cutpoints(cutpoints.double()).requires_grad_(cutpoints.shape[0] > 1)
    columns = VoteBatch(votes.a, votes.b, votes.level, votes.side.double(), votes.annotator, votes.n_levels)
    ones, zeros = torch.ones(n_annotators, dtype=torch.float64), torch.zeros(n_annotators, dtype=torch.float64)

    def objective() -> Tensor:
        raters = RaterParams(ones, zeros, zeros, symmetric_cutpoints(cut_raw, votes.n_levels))
        ridge = (cut_raw / CUTPOINT_SD).square().sum() + (slope / SLOPE_SD).square()
        return (ridge / 2 - comparison_loglik(slope * wide, columns, raters).sum()) / len(votes)

    parameters = [p for p in (slope, cut_raw) if p.requires_grad]
    if parameters:
        minimise(objective, parameters, 100)
    return float(slope.detach()), symmetric_cutpoints(cut_raw.detach(), votes.n_levels).to(cutpoints.dtype)


def minimise(objective: Callable[[], Tensor], free: list[Tensor], max_steps: int) -> None:
    """Move the free tensors, in place, to a minimum of the objective, by L-BFGS.

    Raises: ConvergenceError when the objective ends up not finite.
    """
    optimiser = torch.optim.LBFGS(
        free, max_iter=max_steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-9,
        tolerance_change=1e-10,
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimiser.step(closure)
    final = objective()
    if not bool(torch.isfinite(final)):
        raise ConvergenceError("rater fit: the likelihood is not finite; expected finite scores. Look at the scores")
