"""Feedback of every kind as answers that a Bayesian last layer is fitted to, each by the one likelihood.

    comparison, written   ordinal link of a·(r_a − r_b) + b·side, with lapses
    rating                Gaussian, at an end of the scale "there or beyond", or ordinal link, of g·r + o
    label                 logistic link of g·r − t
    ranking, best of k    (1 − ε)·P(order | a·r) + ε/orders: slopes and curvatures by automatic differentiation

All but the last depend on one number, with slopes and curvatures in closed form. With lapses

    ∂ = s·∂_0        κ = s·κ_0 − s·(1 − s)·∂_0∂_0ᵀ        s = (1 − ε)·P_0/P

where P_0 is the likelihood without them. All P_0 are log-concave, so that s·κ_0 has no negative eigenvalue. Competences, biases, gains,
offsets and thresholds are fitted with the weights: `FittedRaters` says which. Knows columns and parameters; knows nothing about texts.

Dimension letters: C statements, K candidates, A raters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import special

from karat.choice import VoteBatch
from karat.errors import ConvergenceError
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
from karat.feedback_likelihood import in_double, local_loglik
from karat.ratings import RatingParams
from karat.reward.last_layer import comparison_observations, ordinal_derivatives
from karat.reward.latents import LOG_GAIN_SD, OFFSET_LOGITS, THRESHOLD_MEAN_SD, is_comparing
from karat.reward.linear_answers import Answers, Choices, Derivatives, FittedRaters, Observations
from karat.reward.rated_layer import rating_observations
from karat.reward.raters import RaterPriors

FLAT = 1e-6
"""Prior precision of a population's offset that has no prior of its own."""
LEAST_COMPETENCE = 0.05
"""Mean competence that counts as clearly positive."""


def batch_answers(
    batch: FeedbackBatch, params: FeedbackParams, priors: RaterPriors, *, known: bool = False
) -> list[Answers]:
    """The statements of every channel of one objective by raters whose parameters are taken as given.

    Args:
        params: of all that the channels need, in the units of the scores φ·w.    priors: of the raters.
        known: True = the parameters are known; False = they were fitted, and the posterior's covariance is to say so.
    """
    free_gain = any(is_comparing(channel) for channel in batch.channels)
    n_people = len({int(who) for channel in batch.channels for who in channel.rater})
    found = []
    for channel in batch.channels:
        answers = _answers(channel, params)
        if not known:
            raters = _fitted(channel, params, priors, free_gain=free_gain, alone=n_people < 2)
            answers = dataclasses.replace(answers, raters=raters)
        found.append(answers)
    return found


def _answers(channel: Channel, params: FeedbackParams) -> Answers:
    columns = channel.columns
    if isinstance(columns, RankBatch):
        return _choices(channel, params)
    if isinstance(columns, VoteBatch):
        found = comparison_observations(columns, params.raters(channel.name))
    elif isinstance(columns, LabelBatch):
        found = _labels(columns, params.labels[channel.name])
    else:
        found = _ratings(columns, params.ratings[channel.name])
    return _weighted(found, channel.weight.double().numpy())


def _fitted(
    channel: Channel, params: FeedbackParams, priors: RaterPriors, *, free_gain: bool, alone: bool
) -> FittedRaters | None:
    """Which parameters of a channel's raters were fitted: (name: fixed, scaled, own sd, population's sd)."""
    columns, n = channel.columns, len(channel)
    who, one, none = columns.annotator, np.ones(n), np.zeros(n)
    if isinstance(columns, VoteBatch | RankBatch):
        if not priors.modelled:
            return None
        rows = []
        if not alone or channel.kind in VIRTUAL:  # one person's competence is 1
            competence = params.competence[who].double().numpy()
            steady = np.where(np.abs(competence) < LEAST_COMPETENCE, LEAST_COMPETENCE, competence)
            rows.append((none, 1 / steady, priors.competence_sd, 0.0))
        if isinstance(columns, VoteBatch) and channel.kind not in VIRTUAL:
            rows.append((columns.side.double().numpy(), none, priors.side_bias_sd, 0.0))
    elif isinstance(columns, LabelBatch):
        rows = [(-one, none, priors.threshold_sd, THRESHOLD_MEAN_SD), (none, one, 0.0, LOG_GAIN_SD * free_gain)]
    else:
        own = params.ratings[channel.name]
        ordinal = own.cutpoints is not None  # cutpoints may move together: that is the population's offset
        fixed, sd = (one, OFFSET_LOGITS) if ordinal else (1 / own.sd[who].double().numpy(), 1.0)
        rows = [(fixed, none, sd * priors.offset_sd, FLAT**-0.5), (none, one, priors.gain_sd, LOG_GAIN_SD * free_gain)]
    if not rows:
        return None
    fixed, scaled, own_sd, common_sd = zip(*rows, strict=True)
    with np.errstate(divide="ignore"):
        own_precision = np.array(own_sd) ** -2.0 if priors.modelled else np.full(len(rows), np.inf)
        common = np.array(common_sd, dtype=float) ** -2.0
    return FittedRaters(who.numpy(), np.stack(fixed, 1), np.stack(scaled, 1), own_precision, common)


def centred_params(params: FeedbackParams, batch: FeedbackBatch, n_people: int) -> FeedbackParams:
    """The same raters with a mean competence of 1 of those who compare, and gains that fit.

    Twice the scores and half of every competence and gain are the same statements. Fitted by turns, the prior that holds the weights
    small would move their size into the competences, and every difference would come out too small.

    Args:
        n_people: raters who are people; virtual ones stand behind them, and count where no person compares.
    Returns: the parameters as they are where nobody compares: there gains fix the scale.
    Raises: ConvergenceError where the mean competence is not clearly positive: most raters vote against the scores.
    """
    who = [_annotator(channel) for channel in batch.channels if is_comparing(channel)]
    if not who:
        return params
    everyone = torch.cat(who).unique()
    people = everyone[everyone < n_people]
    mean = float(params.competence[people if len(people) else everyone].mean())
    if not mean > LEAST_COMPETENCE:
        raise ConvergenceError(
            f"last layer: the raters' mean competence is {mean:.3g}; expected it clearly above 0. Look at the raters"
        )
    ratings = {name: dataclasses.replace(own, gain=own.gain / mean) for name, own in params.ratings.items()}
    labels = {name: dataclasses.replace(own, gain=own.gain / mean) for name, own in params.labels.items()}
    return dataclasses.replace(params, competence=params.competence / mean, ratings=ratings, labels=labels)


def is_plain(batch: FeedbackBatch) -> bool:
    """True for comparisons of one scale and nothing else."""
    return len(batch.channels) == 1 and batch.channels[0].kind == "comparison" and is_comparing(batch.channels[0])


def compares_only(batch: FeedbackBatch) -> bool:
    """True for comparisons, of one scale or several, and nothing else."""
    return all(channel.kind == "comparison" and is_comparing(channel) for channel in batch.channels)


def needs_level(batch: FeedbackBatch) -> bool:
    """True where something speaks of one response alone, so that it matters where zero is."""
    return not all(is_comparing(channel) for channel in batch.channels)


def _annotator(channel: Channel) -> torch.Tensor:
    return channel.columns.annotator


def _labels(columns: LabelBatch, own: LabelParams) -> Observations:
    """P(good) = σ(g·r − t_w): the ordinal link of two levels."""
    n = len(columns.annotator)
    return Observations(
        a=columns.response.numpy(), b=np.full(n, -1), slope=np.full(n, float(own.gain)),
        offset=-own.threshold[columns.annotator].double().numpy(),
        derivatives=_ordinal(columns.good.long().numpy(), np.zeros(1)),
    )  # fmt: skip


def _ratings(columns: RatingBatch, own: RatingParams) -> Observations:
    if own.cutpoints is None:
        return _censored(columns, own)
    who = columns.annotator
    return Observations(
        a=columns.response.numpy(), b=np.full(len(who), -1), slope=own.gain[who].double().numpy(),
        offset=own.offset[who].double().numpy(),
        derivatives=_ordinal(columns.value.long().numpy(), own.cutpoints.double().numpy()),
    )  # fmt: skip


def _censored(columns: RatingBatch, own: RatingParams) -> Observations:
    """Gaussian ratings, of which an end of the scale says only that the rating is there or beyond.

    log P = log Φ(t), t = ±(η − c)        ∂ = ±m        κ = m·(m + t)        m = φ(t)/Φ(t)
    """
    plain, value = rating_observations(columns, own), columns.value.double().numpy()
    sd = own.sd[columns.annotator].double().numpy()
    side = np.where(value >= 1, 1.0, np.where(value <= 0, -1.0, 0.0))
    edge = np.where(side > 0, 1 - columns.step / 2, columns.step / 2) / sd

    def derivatives(eta: np.ndarray, rows: np.ndarray) -> Derivatives:
        value, first, exact, working = plain.derivatives(eta, rows)
        ends = side[rows] != 0
        sign = side[rows][ends]
        t = sign * (eta[ends] - edge[rows][ends])
        ratio = math.sqrt(2 / math.pi) / special.erfcx(
            -t / math.sqrt(2)
        )  # of logarithms, 1e10 apart, nothing would be left
        value[ends], first[ends] = special.log_ndtr(t), sign * ratio
        exact, working = exact.copy(), working.copy()  # they may be one array
        exact[ends] = working[ends] = np.maximum(ratio * (ratio + t), 0.0)
        return value, first, exact, working

    return dataclasses.replace(plain, derivatives=derivatives)


def _ordinal(level: np.ndarray, cutpoints: np.ndarray):
    def derivatives(eta: np.ndarray, rows: np.ndarray) -> Derivatives:
        return ordinal_derivatives(eta, level[rows], np.zeros(len(rows)), cutpoints)

    return derivatives


def _weighted(observations: Observations, weight: np.ndarray) -> Observations:
    """A statement of weight 1/k counts as a k-th of one: a demonstration held against k responses says one thing."""
    if (weight == 1).all():
        return observations
    derivatives = observations.derivatives

    def weighted(eta: np.ndarray, rows: np.ndarray) -> Derivatives:
        value, first, exact, working = derivatives(eta, rows)
        own = weight[rows]
        return own * value, own * first, own * exact, own * working

    return dataclasses.replace(observations, derivatives=weighted)


def _choices(channel: Channel, params: FeedbackParams) -> Choices:
    """Rankings and choices of the best, by the likelihood that trains and simulates them."""
    assert isinstance(channel.columns, RankBatch)
    known = in_double(params)
    attentive = dataclasses.replace(known, lapse=torch.zeros_like(known.lapse))
    lapse = known.lapse[channel.columns.annotator].numpy()
    weight = channel.weight.double().numpy()

    def derivatives(scores: np.ndarray, rows: np.ndarray, curved: bool) -> Derivatives:
        part = channel if len(rows) == len(channel) else channel.select(torch.from_numpy(rows))
        local = torch.from_numpy(scores)
        value = local_loglik(local, part, known).numpy()
        plain, first, curvature = by_autograd(local, part, attentive, curved=curved)
        miss, own = lapse[rows], weight[rows]
        share = np.exp(np.log1p(-miss) + plain - value)
        pull = (own * share)[:, None] * first
        if not curved:
            return own * value, pull, np.zeros(0), np.zeros(0)
        working = (own * share)[:, None, None] * curvature
        outer = first[:, :, None] * first[:, None, :]
        return own * value, pull, working - (own * share * (1 - share))[:, None, None] * outer, working

    return Choices(channel.texts.numpy(), derivatives)


def by_autograd(
    local: torch.Tensor, channel: Channel, params: FeedbackParams, *, curved: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log P [C], its slope [C, K] and its curvature −∂² [C, K, K] by the scores of each statement's own texts."""
    leaf = local.detach().clone().requires_grad_()
    loglik = local_loglik(leaf, channel, params)
    (first,) = torch.autograd.grad(loglik.sum(), leaf, create_graph=curved)
    rows: Sequence[torch.Tensor] = []
    if curved:
        k = leaf.shape[1]
        rows = [torch.autograd.grad(first[:, i].sum(), leaf, retain_graph=i + 1 < k)[0] for i in range(k)]
    curvature = -torch.stack(list(rows), dim=1).numpy() if curved else np.zeros(0)
    return loglik.detach().numpy(), first.detach().numpy(), curvature


def log_scale(params: FeedbackParams) -> float:
    """Mean logarithm of gains: what creeps when scores and gains are fitted by turns."""
    gains = [own.gain[-1] for own in params.ratings.values()] + [own.gain for own in params.labels.values()]
    return float(np.mean([math.log(float(gain)) for gain in gains])) if gains else 0.0
