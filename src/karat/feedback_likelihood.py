"""How likely each statement is, draws from the same likelihood, and how much a statement tells about the reward.

    comparison, written   ordinal link of `karat.choice`; what was written is preferred by a virtual rater
    ranking               (1 − ε)·Davidson–Luce(a·r) + ε/number of orders          without ties Plackett–Luce
    best of k             (1 − ε)·softmax(a·r) + ε/k
    rating                y = o_w + g_w·r + s_w·noise, at an end of the scale "there or beyond", or the ordinal link with offset and gain
    label                 P(good) = σ(g·r − t_w)

Competence a and lapse ε of a rater are the same in all kinds that compare. Every channel has one `channel_loglik` and
one `sample_channel`. Knows scores in logits and columns. Knows nothing about texts, models or files.

Dimension letters: C statements, K candidates or levels, N texts, S draws.

Source: Jeon, Milli & Dragan 2020, arXiv:2002.04833 (one model of choice for every kind of feedback).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from karat.choice import VoteBatch, comparison_logprobs
from karat.errors import InputError
from karat.feedback_columns import Channel, Columns, FeedbackParams, LabelBatch, RankBatch, RatingBatch
from karat.ranking import (
    best_of_loglik,
    davidson_luce_loglik,
    plackett_luce_loglik,
    sample_best_of,
    sample_davidson_luce,
    sample_plackett_luce,
)
from karat.ratings import censored_rating_logpdf, censored_to_scale, draw_level, ordinal_logprobs, sample_rating


def channel_loglik(scores: Float[Tensor, "*S N"], channel: Channel, params: FeedbackParams) -> Float[Tensor, "*S C"]:
    """Log-likelihood (of a Gaussian rating: log density) of each statement of a channel.

    Args:
        scores: logits of the channel's objective, or joint draws of them.
        params: of everybody who judged, in the units of these scores.
    Raises: InputError when the parameters do not fit the channel.
    """
    return local_loglik(scores[..., channel.texts], channel, params)


def local_loglik(local: Float[Tensor, "*S C K"], channel: Channel, params: FeedbackParams) -> Float[Tensor, "*S C"]:
    """The same from the scores of each statement's own texts (`Channel.texts`): rows share nothing."""
    columns = channel.columns
    if isinstance(columns, VoteBatch):
        logprobs = _vote_logprobs(local, channel, params)
        return logprobs.gather(-1, _to_draws(columns.level, logprobs)).squeeze(-1)
    if isinstance(columns, RankBatch):
        if local.ndim > 2:
            return torch.stack([local_loglik(one, channel, params) for one in local])
        return _rank_loglik(local, channel, params)
    if isinstance(columns, LabelBatch):
        margin = _label_margin(local, channel, params)
        return functional.logsigmoid(torch.where(columns.good, margin, -margin))
    own = params.ratings[channel.name]
    if own.cutpoints is None:
        mean = own.offset[columns.annotator] + own.gain[columns.annotator] * local[..., 0]
        return censored_rating_logpdf(columns.value, mean, own.sd[columns.annotator], step=columns.step)
    logprobs = _rating_logprobs(local, channel, params)
    return logprobs.gather(-1, _to_draws(columns.value.long(), logprobs)).squeeze(-1)


def sample_channel(
    scores: Float[Tensor, "N"], channel: Channel, params: FeedbackParams, *, generator: torch.Generator
) -> Channel:
    """The same questions to the same raters with answers drawn anew from the likelihood.

    Raises: InputError for rankings with ties of more than 10 candidates.
    """
    local = scores.detach()[channel.texts]
    columns: Columns = channel.columns
    if isinstance(columns, VoteBatch):
        level = draw_level(_vote_logprobs(local, channel, params), generator)
        columns = dataclasses.replace(columns, level=level)
    elif isinstance(columns, RankBatch):
        columns = dataclasses.replace(columns, ranks=_sample_ranks(local, channel, params, generator))
    elif isinstance(columns, LabelBatch):
        uniform = torch.rand(len(channel), generator=generator, dtype=torch.float64)
        good = uniform < torch.sigmoid(_label_margin(local, channel, params).double())
        columns = dataclasses.replace(columns, good=good)
    elif params.ratings[channel.name].cutpoints is None:
        own = params.ratings[channel.name]
        value = sample_rating(local[:, 0], columns.annotator, own, generator=generator)
        columns = dataclasses.replace(columns, value=censored_to_scale(value, step=columns.step))
    else:
        level = draw_level(_rating_logprobs(local, channel, params), generator)
        columns = dataclasses.replace(columns, value=level.to(local))
    return dataclasses.replace(channel, columns=columns)


def channel_information(
    scores: Float[Tensor, "N"],
    channel: Channel,
    params: FeedbackParams,
    group_sizes: Int[Tensor, "N"],
    *,
    generator: torch.Generator,
    n_draws: int = 32,
) -> Float[Tensor, "C"]:
    """Fisher information of each statement about the differences of scores within its prompt.

        I_c = E_y ‖P·∇_r log P(y | r)‖²        P = I − 11ᵀ/n

    P takes away the mean over the n responses to the prompt, which no preference depends on. For a comparison between
    equals without ties this is 2·¼, for a rating (1 − 1/n)·g²/s². The expectation is over n_draws drawn answers.

    Args:
        group_sizes: n of the prompt that each text answers.
    Returns: per statement, in units of 1/logit², times the statement's weight.
    """
    drawn = torch.zeros(len(channel), dtype=torch.float64)
    local = scores.detach().double()[channel.texts]
    n = group_sizes[channel.texts[:, 0]].double()
    wide = in_double(params)
    for _ in range(n_draws):
        answered = sample_channel(scores, channel, params, generator=generator)
        leaf = local.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(local_loglik(leaf, answered, wide).sum(), leaf)
        drawn += gradient.square().sum(-1) - gradient.sum(-1).square() / n
    return (drawn / n_draws).clamp_min(0) * channel.weight


def n_weak_orders(n_candidates: int, largest_tie: int) -> list[int]:
    """How many rankings of 0 … n candidates there are when at most `largest_tie` may share a rank.

        a(n) = Σ_{m = 1}^{min(n, largest)} (n choose m)·a(n − m)        a(0) = 1

    >>> n_weak_orders(4, 4)
    [1, 1, 3, 13, 75]
    """
    counts = [1]
    for n in range(1, n_candidates + 1):
        counts.append(sum(math.comb(n, m) * counts[n - m] for m in range(1, min(n, largest_tie) + 1)))
    return counts


def _vote_logprobs(local: Tensor, channel: Channel, params: FeedbackParams) -> Float[Tensor, "*S C K"]:
    columns = channel.columns
    assert isinstance(columns, VoteBatch)
    raters = params.raters(channel.name)
    if columns.n_levels != raters.n_levels:
        raise InputError(
            f"{channel.name}: votes on {columns.n_levels} levels, cutpoints for {raters.n_levels}; expected the same"
        )
    return comparison_logprobs(local[..., 0] - local[..., 1], columns.side, columns.annotator, raters)


def _label_margin(local: Tensor, channel: Channel, params: FeedbackParams) -> Float[Tensor, "*S C"]:
    columns, own = channel.columns, params.labels[channel.name]
    assert isinstance(columns, LabelBatch)
    return own.gain * local[..., 0] - own.threshold[columns.annotator]


def _rating_logprobs(local: Tensor, channel: Channel, params: FeedbackParams) -> Float[Tensor, "*S C K"]:
    columns, own = channel.columns, params.ratings[channel.name]
    assert isinstance(columns, RatingBatch)
    assert own.cutpoints is not None
    return ordinal_logprobs(own.gain[columns.annotator] * local[..., 0] + own.offset[columns.annotator], own.cutpoints)


def _rank_loglik(local: Float[Tensor, "C K"], channel: Channel, params: FeedbackParams) -> Float[Tensor, "C"]:
    columns = channel.columns
    assert isinstance(columns, RankBatch)
    scores = params.competence[columns.annotator].unsqueeze(-1) * local
    n = columns.mask.sum(-1)
    if channel.kind == "best_of":
        best = torch.where(columns.mask, columns.ranks, columns.ranks.max() + 1).argmin(-1)
        loglik, log_outcomes = best_of_loglik(scores, best, columns.mask), n.to(scores).log()
    elif _largest_tie(params) == 1:
        order = torch.where(columns.mask, columns.ranks, columns.ranks.max() + 1).argsort(dim=-1, stable=True)
        loglik, log_outcomes = plackett_luce_loglik(scores, order, columns.mask), torch.lgamma(n.to(scores) + 1)
    else:
        assert params.log_tie is not None
        loglik = davidson_luce_loglik(scores, columns.ranks, params.log_tie.to(scores), columns.mask)
        counts = torch.tensor(n_weak_orders(int(n.max()), _largest_tie(params)), dtype=torch.float64)
        log_outcomes = counts.log().to(scores)[n]
    lapse = params.lapse[columns.annotator]
    return torch.logaddexp(torch.log1p(-lapse) + loglik, torch.log(lapse) - log_outcomes)


def _largest_tie(params: FeedbackParams) -> int:
    return 1 if params.log_tie is None else 1 + params.log_tie.shape[0]


def _sample_ranks(
    local: Float[Tensor, "C K"], channel: Channel, params: FeedbackParams, generator: torch.Generator
) -> Int[Tensor, "C K"]:
    columns = channel.columns
    assert isinstance(columns, RankBatch)
    scores = params.competence[columns.annotator].unsqueeze(-1) * local
    lapsed = torch.rand(len(channel), generator=generator) < params.lapse[columns.annotator]
    scores = torch.where(lapsed.unsqueeze(-1), torch.zeros_like(scores), scores)
    if channel.kind == "best_of":
        best = sample_best_of(scores, columns.mask, generator=generator)
        return torch.full_like(columns.ranks, 2).scatter(1, best.unsqueeze(1), 1)
    if _largest_tie(params) == 1:
        order = sample_plackett_luce(scores, columns.mask, generator=generator)
        return order.argsort(dim=-1) + 1
    assert params.log_tie is not None
    ranks = torch.full_like(columns.ranks, 2)
    n = columns.mask.sum(-1)
    for size in n.unique().tolist():  # candidates that take part stand first
        rows = (n == size).nonzero().squeeze(1)
        ranks[rows, :size] = sample_davidson_luce(scores[rows, :size], params.log_tie, generator=generator)
    for row in lapsed.nonzero().squeeze(1).tolist():
        ranks[row, : n[row]] = _uniform_weak_order(int(n[row]), _largest_tie(params), generator)
    return ranks


def _uniform_weak_order(n: int, largest: int, generator: torch.Generator) -> Int[Tensor, "n"]:
    """One of the rankings with ties of n candidates, all equally likely: the size of each group, then its members."""
    counts = n_weak_orders(n, largest)
    order, ranks, rank = torch.randperm(n, generator=generator), torch.zeros(n, dtype=torch.long), 0
    done = 0
    while done < n:
        left = n - done
        sizes = [math.comb(left, m) * counts[left - m] for m in range(1, min(left, largest) + 1)]
        shares = torch.tensor(sizes, dtype=torch.float64) / counts[left]
        size = 1 + int(torch.multinomial(shares, 1, generator=generator))
        rank += 1
        ranks[order[done : done + size]] = rank
        done += size
    return ranks


def _to_draws(level: Int[Tensor, "C"], logprobs: Float[Tensor, "*S C K"]) -> Int[Tensor, "*S C 1"]:
    return level.expand(logprobs.shape[:-1]).unsqueeze(-1)


def in_double(params: FeedbackParams) -> FeedbackParams:
    """The same parameters in float64."""

    def wide(record):
        values = {name: value.double() for name, value in vars(record).items() if isinstance(value, Tensor)}
        return dataclasses.replace(record, **values)

    return dataclasses.replace(
        wide(params),
        cutpoints={name: value.double() for name, value in params.cutpoints.items()},
        ratings={name: wide(own) for name, own in params.ratings.items()},
        labels={name: wide(own) for name, own in params.labels.items()},
    )
