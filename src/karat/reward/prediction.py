"""What scores say about statements that nobody has seen: raters unknown, their priors integrated, kind by kind.

Knows scores in logits, columns and fitted parameters; knows nothing about texts or trunks.

Dimension letters: S heads, C statements, N texts, O objectives, K levels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from karat.choice import VoteBatch
from karat.feedback_columns import (
    VIRTUAL,
    Channel,
    FeedbackBatch,
    FeedbackParams,
    LabelBatch,
    RankBatch,
    RatingBatch,
)
from karat.feedback_likelihood import channel_loglik, local_loglik
from karat.ratings import censored_rating_logpdf, ordinal_logprobs
from karat.records import Estimate
from karat.reward.calibration import (
    SliceCalibration,
    VoteModel,
    best_temperature,
    predicted_probs,
    slice_figures,
    temperature_interval,
    vote_nll,
)
from karat.reward.latents import OFFSET_LOGITS
from karat.reward.raters import RaterPriors

NODES = 32
"""Gauss–Hermite nodes over a rater's parameter; the integrands are smooth on the scale of its prior."""


def predicted_nll(
    scores: Float[Tensor, "S N"],
    channel: Channel,
    params: FeedbackParams,
    priors: RaterPriors,
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " C"]:
    """−log P of each statement, nats: the mean over heads, with the rater integrated out.

    Competence, thresholds, offsets and gains are integrated; noise and lapses are the typical rater's. A written text
    is preferred by its kind's virtual rater, who is known.

    Args:
        scores: raw scores of each head, of the channel's objective.    params: fitted in the same units.
        temperature: divides the scores of channels that compare; T > 0.
    """
    columns = channel.columns
    if isinstance(columns, VoteBatch) and channel.kind not in VIRTUAL:
        cutpoints = params.cutpoints[channel.name].tolist()
        model = VoteModel(priors, tuple(cutpoints))
        return vote_nll(predicted_probs(scores, columns, model, temperature=temperature), columns)
    wide = scores.detach().double()
    if isinstance(columns, VoteBatch):
        virtual = len(params.competence) - len(VIRTUAL) + VIRTUAL.index(channel.kind)
        known = dataclasses.replace(columns, annotator=torch.full_like(columns.annotator, virtual))
        return -_mean_exp(channel_loglik(wide / temperature, dataclasses.replace(channel, columns=known), params))
    if isinstance(columns, RankBatch):
        return -_ranked(wide / temperature, channel, params, priors)
    if isinstance(columns, LabelBatch):
        return -_labelled(wide, channel, params, priors)
    return -_rated(wide, channel, params, priors)


def held_out_nll(
    scores: Float[Tensor, "S N O"],
    batch: FeedbackBatch,
    params: FeedbackParams,
    priors: RaterPriors,
    *,
    n_judgements: int,
    temperature: float = 1.0,
) -> float:
    """Mean −log P of a judgement, over all kinds; the temperature belongs to the first objective."""
    total = 0.0
    for channel in batch.channels:
        own = temperature if channel.objective == 0 else 1.0
        nll = predicted_nll(scores[..., channel.objective], channel, params, priors, temperature=own)
        total += float((nll * channel.weight).sum())
    return total / n_judgements


def fit_feedback_temperature(
    scores: Float[Tensor, "S N O"], batch: FeedbackBatch, params: FeedbackParams, priors: RaterPriors
) -> Estimate | None:
    """The temperature T that makes held-out comparisons, rankings and choices of the first objective most likely.

    Ratings and labels fix their own gain, and what was written has no held-out rater, so neither speaks about T.

    Returns: T in [1/20, 20] with its 95 % profile-likelihood interval, or None where nothing held out compares.
    Source: Guo et al. 2017, arXiv:1706.04599 §4.2, for these links.
    """
    channels = [
        channel
        for channel in batch.channels
        if channel.objective == 0 and isinstance(channel.columns, VoteBatch | RankBatch) and channel.kind not in VIRTUAL
    ]
    n = sum(map(len, channels))
    if not n:
        return None

    def mean_nll(t: float) -> float:
        return sum(float(predicted_nll(scores[..., 0], c, params, priors, temperature=t).sum()) for c in channels) / n

    best = best_temperature(mean_nll)
    method = "maximum likelihood on held-out raters' judgements, cutpoints fixed; profile likelihood, 95 %, taken as independent"
    return Estimate(best, *temperature_interval(mean_nll, n, best), n, method)


def kind_calibration(
    scores: Float[Tensor, "S N O"],
    batch: FeedbackBatch,
    params: FeedbackParams,
    priors: RaterPriors,
    *,
    temperature: float,
) -> dict[str, SliceCalibration]:
    """What each kind of feedback about the first objective says of the one temperature, as `slice_calibration` does of groups.

    Args:
        scores: raw.    batch: held-out statements.    temperature: the model's; figures are relative to it.
    Ratings and labels have a gain g of their own, which no temperature divides. Theirs is the T of

        r̄ + (r − r̄)/T        r̄ = mean score of the judged responses

    so that it changes what differences count for and not how kind raters are: above 1, g is too large for new responses.

    Returns: by the channel's name (`comparison/3`, `ranking`); kinds whose thresholds were not fitted are left out.
    """
    found = {}
    for channel in batch.channels:
        if channel.objective != 0 or not len(channel) or not _fitted(channel, params):
            continue

        def nll_at(relative: float, channel: Channel = channel) -> Tensor:
            own = _about_mean(scores[..., 0], channel, relative)
            return predicted_nll(own, channel, params, priors, temperature=temperature * relative)

        found[channel.name] = slice_figures(nll_at)
    return found


def _about_mean(scores: Float[Tensor, "S N"], channel: Channel, temperature: float) -> Float[Tensor, "S N"]:
    """Scores drawn towards the mean of what a channel of ratings or labels judges; of what compares, as they are."""
    if isinstance(channel.columns, VoteBatch | RankBatch):
        return scores
    mean = scores[:, channel.columns.response].mean(1, keepdim=True)
    return mean + (scores - mean) / temperature


def _fitted(channel: Channel, params: FeedbackParams) -> bool:
    """Whether training saw this channel, so that its thresholds are known."""
    if isinstance(channel.columns, RankBatch):
        return params.log_tie is not None
    known = params.cutpoints if isinstance(channel.columns, VoteBatch) else {**params.ratings, **params.labels}
    return channel.name in known


def _ranked(scores: Float[Tensor, "S N"], channel: Channel, params: FeedbackParams, priors: RaterPriors) -> Tensor:
    columns = channel.columns
    assert isinstance(columns, RankBatch)
    one = dataclasses.replace(
        channel, columns=dataclasses.replace(columns, annotator=torch.zeros_like(columns.annotator))
    )
    local = scores[:, channel.texts]
    nodes, log_weights = _hermite() if priors.modelled else ([0.0], [0.0])
    lapse = torch.tensor([priors.mean_lapse], dtype=torch.float64)
    each = []
    for node, log_weight in zip(nodes, log_weights, strict=True):
        competence = torch.tensor([1 + priors.competence_sd * node], dtype=torch.float64)
        rater = dataclasses.replace(params, competence=competence, lapse=lapse)
        each.append(_mean_exp(local_loglik(local, one, rater)) + log_weight)
    return torch.logsumexp(torch.stack(each), dim=0)


def _labelled(scores: Float[Tensor, "S N"], channel: Channel, params: FeedbackParams, priors: RaterPriors) -> Tensor:
    columns, own = channel.columns, params.labels[channel.name]
    assert isinstance(columns, LabelBatch)
    margin = own.gain.double() * scores[:, columns.response] - own.threshold[-1].double()
    signed = torch.where(columns.good, margin, -margin)
    sd = priors.threshold_sd if priors.modelled else 0.0
    return _mean_exp(_over_normal(signed, torch.tensor(sd, dtype=torch.float64), torch.nn.functional.logsigmoid))


def _rated(scores: Float[Tensor, "S N"], channel: Channel, params: FeedbackParams, priors: RaterPriors) -> Tensor:
    columns, own = channel.columns, params.ratings[channel.name]
    assert isinstance(columns, RatingBatch)
    offset, gain, sd = (value[-1].double() for value in (own.offset, own.gain, own.sd))
    local = gain * scores[:, columns.response]
    known = float(priors.modelled)
    if own.cutpoints is None:
        variance = sd.square() + known * (priors.offset_sd**2 + (priors.gain_sd * local).square())
        return _mean_exp(censored_rating_logpdf(columns.value, offset + local, variance.sqrt(), step=columns.step))
    spread = known * ((OFFSET_LOGITS * priors.offset_sd) ** 2 + (priors.gain_sd * local).square()).sqrt()
    cutpoints = own.cutpoints.double()
    level = columns.value.long()

    def at(eta: Tensor) -> Tensor:
        return ordinal_logprobs(eta, cutpoints).gather(-1, level.expand(eta.shape).unsqueeze(-1)).squeeze(-1)

    return _mean_exp(_over_normal(local, spread, at))


def _over_normal(mean: Float[Tensor, "S C"], sd: Tensor, loglik: Callable[[Tensor], Tensor]) -> Float[Tensor, "S C"]:
    """log E[exp loglik(x)] for x ~ N(mean, sd²)."""
    nodes, log_weights = _hermite()
    each = [loglik(mean + sd * node) + log_weight for node, log_weight in zip(nodes, log_weights, strict=True)]
    return torch.logsumexp(torch.stack(each), dim=0)


def _mean_exp(loglik: Float[Tensor, "S C"]) -> Float[Tensor, " C"]:
    return torch.logsumexp(loglik, dim=0) - math.log(loglik.shape[0])


def _hermite() -> tuple[Sequence[float], Sequence[float]]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return nodes.tolist(), (np.log(weights) - 0.5 * math.log(2 * math.pi)).tolist()
