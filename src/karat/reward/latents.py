"""The raters of every kind of feedback as latent variables: their most probable parameters, given what the texts score.

Kinds that compare share a rater's competence, side bias and lapse; every scale has its own cutpoints. What raters wrote
is preferred by a virtual rater, one a kind, whose competence is fitted like a person's, so that texts written to be
better cannot shout down those who compare. A rating has the rater's offset, gain and noise around the population's, a
label her threshold. Where nobody compares on an objective, gain fixes the scale of its scores and is not fitted.

Knows scores and columns; knows nothing about texts or trunks.

Dimension letters: C statements, N texts, O objectives, A raters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from karat.choice import RaterParams, VoteBatch, rater_log_prior, raw_cutpoints, symmetric_cutpoints
from karat.feedback_columns import (
    VIRTUAL,
    Channel,
    FeedbackBatch,
    FeedbackParams,
    LabelBatch,
    LabelParams,
    RankBatch,
    RatingBatch,
)
from karat.feedback_likelihood import channel_loglik, local_loglik
from karat.ratings import RatingParams, censored_precision
from karat.reward.raters import CUTPOINT_SD, LAPSE_FLOOR, RaterPriors, fit_raters, minimise, prior_raters

RATING_GAIN = 0.15
"""Share of a rating scale for one logit: a response at the 84th percentile of rewards with sd 1.5 gains a quarter of
it, the usual sd of ratings. Prior centre, and the fixed gain where nobody compares."""
LOG_GAIN_SD = 0.7
"""Weak prior on the logarithm of a gain that is fitted."""
RATING_NOISE = 0.2
"""Where the fit of the noise starts, as a share of the scale."""
LOG_NOISE_SD = 0.5
"""Prior on the logarithm of the population's noise, .075 to .53 of the scale in 95 %: ratings have an sd of a quarter of it, of which raters who
agree as people do (ICC .1 to .9) leave .08 to .24. Few ratings do not say: in many features they can be met exactly without noise, or, where
all lie at the ends of the scale, with noise wider than the scale. A few hundred outweigh it."""
MEAN_SD = 1.0
"""Weak prior on the population's offset around the middle of the scale, as a share of it, for the same reason."""
LEAST_NOISE = 0.01
"""A rater who always repeats one number must not get infinite weight."""
OFFSET_LOGITS = 8.0
"""Logits that a whole scale of ordinal ratings spans, by which `offset_sd` is turned into logits."""
THRESHOLD_MEAN_SD = 10.0
"""Weak normal prior on the population's threshold, logits: one answer only must not send it to infinity."""
TIE_SD = 3.0
"""Weak normal prior on log δ of rankings with ties."""


def is_comparing(channel: Channel) -> bool:
    """True for channels in which responses are held against one another."""
    return isinstance(channel.columns, VoteBatch | RankBatch)


def prior_params(channels: Sequence[Channel], n_annotators: int, priors: RaterPriors) -> FeedbackParams:
    """Everybody at the centre of her prior, before anything is fitted.

    Rating and label vectors have one entry behind the real raters: the population's typical rater.

    Args:
        channels: of the training statements, and of the held-out ones, which may hold a scale that those do not.
    """
    written = any(channel.kind in VIRTUAL and isinstance(channel.columns, VoteBatch) for channel in channels)
    n_comparing = n_annotators + (len(VIRTUAL) if written else 0)
    params = FeedbackParams(
        torch.ones(n_comparing), torch.zeros(n_comparing), torch.full((n_comparing,), priors.mean_lapse)
    )
    cutpoints: dict[str, Tensor] = {}
    ratings: dict[str, RatingParams] = {}
    labels: dict[str, LabelParams] = {}
    largest_tie = 0
    for channel in channels:
        columns = channel.columns
        if isinstance(columns, VoteBatch):
            cutpoints[channel.name] = prior_raters(1, columns.n_levels, priors).cutpoints
        elif isinstance(columns, RankBatch) and channel.kind == "ranking":
            largest_tie = max(largest_tie, _largest_tie(columns))
        elif isinstance(columns, RatingBatch):
            ratings[channel.name] = _prior_rating(columns, n_annotators + 1)
        elif isinstance(columns, LabelBatch):
            labels[channel.name] = LabelParams(torch.zeros(n_annotators + 1), torch.ones(()))
    log_tie = torch.full((largest_tie - 1,), -1.0) if largest_tie else None
    return dataclasses.replace(params, cutpoints=cutpoints, ratings=ratings, labels=labels, log_tie=log_tie)


def fit_params(
    scores: Float[Tensor, "*S N O"],
    batch: FeedbackBatch,
    start: FeedbackParams,
    priors: RaterPriors,
    *,
    max_steps: int = 60,
) -> FeedbackParams:
    """The most probable parameters of all raters and channels for fixed scores.

        max Σ_c log P(statement c | scores, raters) + Σ log prior        channel by channel where they share nothing

    Args:
        scores: raw score units, not trained here. Joint draws of them are scores known only so well: ratings and labels are
            fitted to all draws, so that what is not known of scores is neither noise nor gain; comparing kinds to their mean.
        start: where to begin.
    Returns: FeedbackParams in the dtype of `start`. Channels that the batch does not hold stay as they were.
    Raises: ConvergenceError when an objective is not finite.
    """
    comparing = [channel for channel in batch.channels if is_comparing(channel)]
    compared = {channel.objective for channel in comparing}
    params = start
    if comparing:
        mean = scores if scores.ndim == 2 else scores.mean(0)
        params = _fit_comparing(mean, comparing, params, priors, max_steps)
    ratings, labels = dict(params.ratings), dict(params.labels)
    for channel in batch.channels:
        own = scores[..., channel.objective].detach().double()
        free_gain = channel.objective in compared
        if isinstance(channel.columns, RatingBatch):
            ratings[channel.name] = _fit_rating(own, channel, params, priors, free_gain=free_gain)
        elif isinstance(channel.columns, LabelBatch):
            labels[channel.name] = _fit_label(own, channel, params, priors, free_gain=free_gain)
    return dataclasses.replace(params, ratings=ratings, labels=labels)


def _fit_comparing(
    scores: Float[Tensor, "N O"],
    channels: Sequence[Channel],
    start: FeedbackParams,
    priors: RaterPriors,
    max_steps: int,
) -> FeedbackParams:
    first = channels[0]
    if len(channels) == 1 and isinstance(first.columns, VoteBatch) and first.kind == "comparison":
        fitted = fit_raters(scores[:, first.objective], first.columns, start.raters(first.name), priors)
        return dataclasses.replace(
            start,
            competence=fitted.competence,
            side_bias=fitted.side_bias,
            lapse=fitted.lapse,
            cutpoints={**start.cutpoints, first.name: fitted.cutpoints},
        )
    wide = [_double(channel) for channel in channels]
    score_of = {channel.name: scores[:, channel.objective].detach().double() for channel in channels}
    total_weight = sum(float(channel.weight.sum()) for channel in channels)
    free = _FreeRaters(channels, start, priors)

    def objective() -> Tensor:
        params = free.params()
        total = sum((channel_loglik(score_of[c.name], c, params) * c.weight).sum() for c in wide)
        return -(total + free.log_prior(params)) / total_weight

    if tensors := free.tensors():
        minimise(objective, tensors, max_steps)
    with torch.no_grad():
        best = free.params()
    dtype = start.competence.dtype
    return dataclasses.replace(
        start,
        competence=best.competence.detach().to(dtype),
        side_bias=best.side_bias.detach().to(dtype),
        lapse=best.lapse.detach().to(dtype),
        cutpoints={name: cut.detach().to(dtype) for name, cut in best.cutpoints.items()},
        log_tie=None if best.log_tie is None else best.log_tie.detach().to(dtype),
    )


class _FreeRaters:
    """Competence, side bias, lapse, cutpoints and ties as unconstrained numbers, with their prior."""

    def __init__(self, channels: Sequence[Channel], start: FeedbackParams, priors: RaterPriors) -> None:
        self.start, self.priors = start, priors
        persons = {int(i) for channel in channels if channel.kind not in VIRTUAL for i in channel.rater.tolist()}
        n_virtual = len(VIRTUAL) if any(channel.kind in VIRTUAL for channel in channels) else 0
        self.pinned = torch.zeros(len(start.competence), dtype=torch.bool)
        # one person's competence cannot be told from the scale of the scores
        self.pinned[: len(start.competence) - n_virtual] = len(persons) < 2
        self.competence = start.competence.double().clone().requires_grad_(priors.modelled)
        self.side_bias = start.side_bias.double().clone().requires_grad_(priors.modelled)
        inside = (start.lapse.double() - LAPSE_FLOOR) / (1 - 2 * LAPSE_FLOOR)
        self.lapse_raw = torch.logit(inside.clamp(LAPSE_FLOOR, 0.99)).requires_grad_(priors.modelled)
        self.n_levels = {c.name: c.columns.n_levels for c in channels if isinstance(c.columns, VoteBatch)}
        self.cut_raw = {
            name: raw_cutpoints(start.cutpoints[name].double()).requires_grad_(n_levels > 2)
            for name, n_levels in self.n_levels.items()
        }
        tie = start.log_tie
        self.log_tie = None if tie is None else tie.double().clone().requires_grad_(len(tie) > 0)

    def tensors(self) -> list[Tensor]:
        """What may move."""
        every = (self.competence, self.side_bias, self.lapse_raw, self.log_tie, *self.cut_raw.values())
        return [tensor for tensor in every if tensor is not None and tensor.requires_grad]

    def params(self) -> FeedbackParams:
        """The parameters that the numbers stand for."""
        lapse = torch.zeros_like(self.side_bias)
        if self.priors.modelled:
            lapse = LAPSE_FLOOR + (1 - 2 * LAPSE_FLOOR) * torch.sigmoid(self.lapse_raw)
        cutpoints = {name: symmetric_cutpoints(raw, self.n_levels[name]) for name, raw in self.cut_raw.items()}
        steady = torch.where(self.pinned, torch.ones_like(self.competence), self.competence)
        return FeedbackParams(steady, self.side_bias, lapse, {**self.start.cutpoints, **cutpoints}, self.log_tie)

    def log_prior(self, params: FeedbackParams) -> Tensor:
        """Their log prior density."""
        total = -sum((raw / CUTPOINT_SD).square().sum() / 2 for raw in self.cut_raw.values())
        total = torch.as_tensor(total, dtype=torch.float64)
        if self.log_tie is not None:
            total = total - (self.log_tie / TIE_SD).square().sum() / 2
        if not self.priors.modelled:
            return total
        raters = RaterParams(params.competence, self.side_bias, params.lapse, self.side_bias.new_zeros(1))
        return total + rater_log_prior(
            raters,
            competence_sd=self.priors.competence_sd,
            side_bias_sd=self.priors.side_bias_sd,
            lapse_a=self.priors.lapse_a,
            lapse_b=self.priors.lapse_b,
        )


def _fit_rating(
    scores: Float[Tensor, "*S N"], channel: Channel, start: FeedbackParams, priors: RaterPriors, *, free_gain: bool
) -> RatingParams:
    """Offsets, gains and noise of all raters around the population's, by non-centred variables.

    Offsets of Gaussian ratings are integrated, not only maximised: of raters with a rating each, offsets would explain all of
    it and leave no noise. ½ Σ_w log(1 + n_w·τ²/s_w²) is the difference, exact where the likelihood is normal in the offset; a
    rating at an end of the scale counts as the part of one that its curvature is (Laplace).
    """
    before = start.ratings[channel.name]
    n, dtype = len(before.offset), before.offset.dtype
    ordinal = before.cutpoints is not None
    free_raters = torch.ones(n, dtype=torch.float64) * float(priors.modelled)
    free_raters[-1] = 0.0  # the typical rater
    gain_prior = 1.0 if ordinal else RATING_GAIN
    offset_sd = priors.offset_sd * (OFFSET_LOGITS if ordinal else 1.0)
    log_gain = before.gain[-1].double().log().clone().requires_grad_(free_gain)
    mean = before.offset[-1].double().clone().requires_grad_(not ordinal)
    log_sd = before.sd[-1].double().log().clone().requires_grad_(not ordinal)
    deviations = torch.zeros(3, n, dtype=torch.float64, requires_grad=priors.modelled)
    cuts = torch.zeros(0) if before.cutpoints is None else before.cutpoints.double()
    raw = torch.cat([cuts[:1], cuts.diff().log()]).requires_grad_(ordinal)
    wide = _double(channel)
    local, n_draws = scores[..., channel.texts], scores[..., 0].numel()
    assert isinstance(wide.columns, RatingBatch)
    # a rating in whole steps is no more precise than its rounding, whose sd is that of a uniform draw
    least = max(LEAST_NOISE, wide.columns.step / math.sqrt(12))

    def current() -> RatingParams:
        z = deviations * free_raters
        gain = log_gain.exp() * (1 + priors.gain_sd * z[1])
        sd = (log_sd + priors.noise_sd * z[2]).exp() + least
        cutpoints = torch.cat([raw[:1], raw[:1] + raw[1:].exp().cumsum(0)]) if ordinal else None
        return RatingParams(mean + offset_sd * z[0], gain, sd, cutpoints)

    def objective() -> Tensor:
        params = dataclasses.replace(start, ratings={channel.name: current()})
        total = (local_loglik(local, wide, params) * wide.weight).sum() / n_draws - deviations.square().sum() / 2
        if not ordinal:
            total = total - _log_offset_volume(local, wide, params, offset_sd * free_raters)
            total = total - ((log_sd - math.log(RATING_NOISE)) / LOG_NOISE_SD).square() / 2
            total = total - ((mean - 0.5) / MEAN_SD).square() / 2
        total = total - ((log_gain - math.log(gain_prior)) / LOG_GAIN_SD).square() / 2
        return -(total - (raw / 10).square().sum() / 2) / len(channel)

    free = [p for p in (log_gain, mean, log_sd, deviations, raw) if p.requires_grad]
    minimise(objective, free, 60)
    with torch.no_grad():
        best = current()
    fields = (best.offset, best.gain, best.sd)
    cutpoints = None if best.cutpoints is None else best.cutpoints.to(dtype)
    return RatingParams(*(value.to(dtype) for value in fields), cutpoints)


def _log_offset_volume(
    local: Tensor, channel: Channel, params: FeedbackParams, offset_sd: Float[Tensor, " A"]
) -> Tensor:
    """½ Σ_w log(1 + n_w·τ²/s_w²) over raters w."""
    columns, own = channel.columns, params.ratings[channel.name]
    assert isinstance(columns, RatingBatch)
    who = columns.annotator
    scores = local[..., 0] if local.ndim == 2 else local[..., 0].mean(0)
    mean = own.offset[who] + own.gain[who] * scores
    counts = censored_precision(columns.value, mean, own.sd[who], step=columns.step) * channel.weight
    n_ratings = torch.zeros_like(own.sd).index_add(0, who, counts)
    return (n_ratings * (offset_sd / own.sd).square()).log1p().sum() / 2


def _fit_label(
    scores: Float[Tensor, "*S N"], channel: Channel, start: FeedbackParams, priors: RaterPriors, *, free_gain: bool
) -> LabelParams:
    """Thresholds of all raters around the population's; the gain where others fix the scale."""
    before = start.labels[channel.name]
    n, dtype = len(before.threshold), before.threshold.dtype
    free_raters = torch.ones(n, dtype=torch.float64) * float(priors.modelled)
    free_raters[-1] = 0.0
    log_gain = before.gain.double().log().clone().requires_grad_(free_gain)
    mean = before.threshold[-1].double().clone().requires_grad_()
    deviations = torch.zeros(n, dtype=torch.float64, requires_grad=priors.modelled)
    wide = _double(channel)
    local, n_draws = scores[..., channel.texts], scores[..., 0].numel()

    def current() -> LabelParams:
        return LabelParams(mean + priors.threshold_sd * deviations * free_raters, log_gain.exp())

    def objective() -> Tensor:
        params = dataclasses.replace(start, labels={channel.name: current()})
        total = (local_loglik(local, wide, params) * wide.weight).sum() / n_draws - deviations.square().sum() / 2
        return -(total - (mean / THRESHOLD_MEAN_SD).square() / 2 - (log_gain / LOG_GAIN_SD).square() / 2) / len(channel)

    minimise(objective, [p for p in (log_gain, mean, deviations) if p.requires_grad], 60)
    with torch.no_grad():
        best = current()
    return LabelParams(best.threshold.to(dtype), best.gain.to(dtype))


def _prior_rating(columns: RatingBatch, n: int) -> RatingParams:
    if columns.n_levels is None:
        mean = float(columns.value.mean())
        return RatingParams(torch.full((n,), mean), torch.full((n,), RATING_GAIN), torch.full((n,), RATING_NOISE))
    n_cuts = columns.n_levels - 1
    cutpoints = torch.arange(n_cuts, dtype=torch.float32) - (n_cuts - 1) / 2
    return RatingParams(torch.zeros(n), torch.ones(n), torch.full((n,), RATING_NOISE), cutpoints)


def _largest_tie(columns: RankBatch) -> int:
    same = (columns.ranks.unsqueeze(1) == columns.ranks.unsqueeze(2)) & (
        columns.mask.unsqueeze(1) & columns.mask.unsqueeze(2)
    )
    return int(same.sum(-1).max())


def _double(channel: Channel) -> Channel:
    columns = channel.columns
    if isinstance(columns, VoteBatch):
        columns = dataclasses.replace(columns, side=columns.side.double())
    return dataclasses.replace(channel, columns=columns, weight=channel.weight.double())
