"""All kinds of feedback as columns: one batch of channels, and the parameters of those who judged.

A channel holds the statements that share a link and its thresholds: comparisons of one scale, rankings, best-of-k,
what was written against what was there, ratings of one objective on one scale, labels of one objective from one kind
of judgement. `karat.feedback_likelihood` says how likely they are. Knows statements and indices; knows nothing about
texts, models or files.

Dimension letters: C statements, K candidates or levels, N texts, A raters, O objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from karat.choice import RaterParams, VoteBatch
from karat.errors import InputError
from karat.ratings import RatingParams
from karat.statements import Best, Labelled, Preferred, Ranked, Rated, Statement

VIRTUAL = ("correction", "demonstration", "critique")
"""Kinds whose written texts are preferred by a virtual rater, behind the real ones in the vectors of RaterParams."""


@dataclass(frozen=True, eq=False)
class RankBatch:
    """Rankings, or choices of the best, as columns."""

    responses: Int[Tensor, "C K"]
    """Indices of the candidates in the vector of scores; any index where the mask is False."""
    mask: Bool[Tensor, "C K"]
    """True = the candidate takes part."""
    ranks: Int[Tensor, "C K"]
    """1 = best, equal = tied; a choice of the best has 1 for it and 2 for the others."""
    annotator: Int[Tensor, "C"]
    """Index of the rater."""


@dataclass(frozen=True, eq=False)
class RatingBatch:
    """Ratings on one scale as columns."""

    response: Int[Tensor, "C"]
    """Index of the response in the vector of scores."""
    value: Float[Tensor, "C"]
    """Gaussian: (rating − low)/(high − low), so that 0 … 1 is the scale. Ordinal: rating − low, whole steps."""
    annotator: Int[Tensor, "C"]
    """Index of the rater."""
    n_levels: int | None = None
    """Steps of an ordinal scale; None = Gaussian."""
    step: float = 0.0
    """Gaussian: distance of two ratings where all are whole steps of their scale, as a share of it; 0 = they are not."""


@dataclass(frozen=True, eq=False)
class LabelBatch:
    """Good/bad labels as columns."""

    response: Int[Tensor, "C"]
    """Index of the response in the vector of scores."""
    good: Bool[Tensor, "C"]
    """True = good."""
    annotator: Int[Tensor, "C"]
    """Index of the rater."""


Columns = VoteBatch | RankBatch | RatingBatch | LabelBatch


@dataclass(frozen=True, eq=False)
class Channel:
    """Statements that share a link and its thresholds."""

    name: str
    """Unique: `comparison/3`, `ranking`, `rating/helpful/1-7`, `label/preference`, `correction`."""
    kind: str
    """The kind of judgement that they come from."""
    objective: int
    """Index of the objective whose scores they speak about."""
    columns: Columns
    """What was said."""
    rater: Int[Tensor, "C"]
    """Index of the person who judged, by whom statements are weighted and resampled; never a virtual rater."""
    weight: Float[Tensor, "C"]
    """Share of a judgement that the statement is."""
    place: Int[Tensor, "C"]
    """Position of the statement in the sequence that the batch was made from."""

    def __len__(self) -> int:
        return self.rater.shape[0]

    @property
    def texts(self) -> Int[Tensor, "C K"]:
        """Indices of the texts that each statement is about; a repeated index stands for none."""
        columns = self.columns
        if isinstance(columns, VoteBatch):
            return torch.stack([columns.a, columns.b], dim=1)
        if isinstance(columns, RankBatch):
            return torch.where(columns.mask, columns.responses, columns.responses[:, :1])
        return columns.response.unsqueeze(1)

    def select(self, index: Tensor) -> Channel:
        """The statements at the given positions of the channel, or where a bool mask is True."""
        return Channel(
            self.name, self.kind, self.objective, _select(self.columns, index), self.rater[index], self.weight[index],
            self.place[index],
        )  # fmt: skip

    def renumbered(self, place: Int[Tensor, "N"]) -> Channel:
        """The same statements about texts that are numbered anew: text i is now place[i]."""
        return Channel(
            self.name, self.kind, self.objective, _renumbered(self.columns, place), self.rater, self.weight, self.place
        )


@dataclass(frozen=True, eq=False)
class FeedbackBatch:
    """Everything that was said, channel by channel."""

    channels: tuple[Channel, ...]
    """Channels that hold something."""

    def __len__(self) -> int:
        return sum(map(len, self.channels))

    def select(self, places: Bool[Tensor, "statements"]) -> FeedbackBatch:
        """The statements at places (in the sequence the batch was made from) where the mask is True."""
        kept = (channel.select(places[channel.place]) for channel in self.channels)
        return FeedbackBatch(tuple(channel for channel in kept if len(channel)))

    def renumbered(self, place: Int[Tensor, "N"]) -> FeedbackBatch:
        """The same statements about texts that are numbered anew: text i is now place[i]."""
        return FeedbackBatch(tuple(channel.renumbered(place) for channel in self.channels))


@dataclass(frozen=True, eq=False)
class LabelParams:
    """What the labels of a channel depend on, apart from the response."""

    threshold: Float[Tensor, "A"]
    """t_w: how good a response must be for this rater, in logits."""
    gain: Float[Tensor, ""]
    """g: logits of the label for one logit of score."""


@dataclass(frozen=True, eq=False)
class FeedbackParams:
    """The raters, and the thresholds of every channel."""

    competence: Float[Tensor, "A"]
    """a_w of every rater, the virtual ones behind the real ones (see `VIRTUAL`)."""
    side_bias: Float[Tensor, "A"]
    """b_w."""
    lapse: Float[Tensor, "A"]
    """ε_w."""
    cutpoints: Mapping[str, Float[Tensor, "thresholds"]] = field(default_factory=dict)
    """Channel → thresholds of its scale, comparisons and written texts."""
    log_tie: Float[Tensor, "M"] | None = None
    """log δ₂ … of rankings; None or empty = rankings without ties (Plackett–Luce)."""
    ratings: Mapping[str, RatingParams] = field(default_factory=dict)
    """Channel → offset, gain and noise of every rater."""
    labels: Mapping[str, LabelParams] = field(default_factory=dict)
    """Channel → thresholds of every rater, and the gain."""

    def raters(self, channel: str) -> RaterParams:
        """The parameters of a comparing channel with cutpoints.

        Raises: InputError when the channel has none.
        """
        if channel not in self.cutpoints:
            raise InputError(f"feedback: found no cutpoints for {channel}; expected one of {sorted(self.cutpoints)}")
        return RaterParams(self.competence, self.side_bias, self.lapse, self.cutpoints[channel])


def feedback_batch(
    statements: Sequence[Statement],
    response_index: Mapping[str, int],
    annotator_index: Mapping[str, int],
    objectives: Sequence[str],
    *,
    ordinal: bool = False,
) -> FeedbackBatch:
    """The columns of some statements, sorted into channels.

    Args:
        response_index: Response.id → position in the scores.    annotator_index: Annotator.id → position of the rater.
        objectives: names in the order of the scores' last axis.    ordinal: True = ratings are whole steps of a scale.
    Raises: InputError for no statements, for an id or objective that is not known, and for an ordinal rating between
        two steps.
    """
    if not statements:
        raise InputError("feedback: found nothing that a rater said; expected at least one judgement with an answer")
    sorted_places: dict[tuple[str, str, str], list[int]] = {}
    for place, one in enumerate(statements):
        _check_known(one, response_index, annotator_index, objectives)
        sorted_places.setdefault(_channel_of(one), []).append(place)
    channels = []
    for (name, kind, objective), places in sorted_places.items():
        own = [statements[place] for place in places]
        rater = torch.tensor([annotator_index[one.annotator] for one in own])
        columns = _columns(own, rater, response_index, len(annotator_index), ordinal=ordinal)
        weight = torch.tensor([one.share if isinstance(one, Preferred) else 1.0 for one in own])
        channels.append(Channel(name, kind, objectives.index(objective), columns, rater, weight, torch.tensor(places)))
    return FeedbackBatch(tuple(channels))


def comparisons_alone(votes: VoteBatch) -> FeedbackBatch:
    """Comparisons of one scale as a batch of one channel."""
    n = len(votes)
    channel = Channel(
        f"comparison/{votes.n_levels}", "comparison", 0, votes, votes.annotator, torch.ones(n), torch.arange(n)
    )
    return FeedbackBatch((channel,))


def _channel_of(one: Statement) -> tuple[str, str, str]:
    kind, objective = one.kind, one.objective
    if isinstance(one, Rated):
        return f"rating/{objective}/{one.low:g}-{one.high:g}", kind, objective
    if isinstance(one, Labelled):
        return f"{'label' if kind == 'label' else f'{kind}-label'}/{objective}", kind, objective
    if isinstance(one, Ranked | Best | Preferred):
        return kind, kind, objective
    return f"comparison/{one.n_levels}", kind, objective


def _columns(
    own: Sequence[Statement],
    rater: Int[Tensor, "C"],
    index: Mapping[str, int],
    n_raters: int,
    *,
    ordinal: bool,
) -> Columns:
    """The columns of the statements of one channel; all are of one type."""
    first = own[0]
    texts = [[index[one] for one in statement.response_ids] for statement in own]
    if isinstance(first, Labelled):
        return LabelBatch(torch.tensor(texts)[:, 0], torch.tensor([one.good for one in own]), rater)  # type: ignore[union-attr]
    if isinstance(first, Rated):
        values = [one.value - one.low for one in own]  # type: ignore[union-attr]
        if ordinal and (odd := [one for one, step in zip(own, values, strict=True) if step != round(step)]):
            raise InputError(
                f"rating {odd[0].judgement_id}: found {odd[0].value}, between two steps; expected whole steps for "  # type: ignore[union-attr]
                "ordinal ratings. Use ratings: gaussian"
            )
        value = torch.tensor(values, dtype=torch.float32)
        response = torch.tensor(texts)[:, 0]
        if ordinal:
            return RatingBatch(response, value, rater, round(first.high - first.low) + 1)
        step = 1 / (first.high - first.low) if all(one == round(one) for one in values) else 0.0
        return RatingBatch(response, value / (first.high - first.low), rater, step=step)
    if isinstance(first, Ranked | Best):
        return _rank_columns(own, texts, rater)  # type: ignore[arg-type]
    pairs = torch.tensor(texts)
    if isinstance(first, Preferred):
        virtual = torch.full_like(rater, n_raters + VIRTUAL.index(first.kind))
        return VoteBatch(
            pairs[:, 0], pairs[:, 1], torch.ones_like(rater), torch.zeros(len(own)), virtual, n_levels=2
        )  # fmt: skip
    level = torch.tensor([one.level for one in own])  # type: ignore[union-attr]
    side = torch.tensor([float(one.side) for one in own])  # type: ignore[union-attr]
    return VoteBatch(pairs[:, 0], pairs[:, 1], level, side, rater, first.n_levels)


def _rank_columns(own: Sequence[Ranked | Best], texts: Sequence[Sequence[int]], rater: Int[Tensor, "C"]) -> RankBatch:
    width = max(map(len, texts))
    responses = torch.zeros(len(own), width, dtype=torch.long)
    ranks = torch.ones(len(own), width, dtype=torch.long)
    mask = torch.zeros(len(own), width, dtype=torch.bool)
    for row, (one, candidates) in enumerate(zip(own, texts, strict=True)):
        n = len(candidates)
        given = one.ranks if isinstance(one, Ranked) else [1 if i == one.best else 2 for i in range(n)]
        responses[row, :n], ranks[row, :n], mask[row, :n] = torch.tensor(candidates), torch.tensor(given), True
        responses[row, n:] = candidates[0]
        ranks[row, n:] = 2  # never the best, and masked
    return RankBatch(responses, mask, ranks, rater)


def _check_known(
    one: Statement, response_index: Mapping[str, int], annotator_index: Mapping[str, int], objectives: Sequence[str]
) -> None:
    known = [("response", name, response_index) for name in one.response_ids]
    for kind, name, index in [*known, ("annotator", one.annotator, annotator_index)]:
        if name not in index:
            raise InputError(f"{one.kind} {one.judgement_id}: {kind} {name!r} is not in the index of {len(index)}")
    if one.objective not in objectives:
        raise InputError(
            f"{one.kind} {one.judgement_id}: objective {one.objective!r} is none of {', '.join(objectives)}"
        )
    if not isinstance(one, Ranked | Best | Preferred | Rated | Labelled) and not 0 <= one.level < one.n_levels:
        raise InputError(f"vote {one.judgement_id}: found level {one.level}; expected 0 … {one.n_levels - 1}")


def _select(columns: Columns, index: Tensor) -> Columns:
    if isinstance(columns, VoteBatch):
        return columns.select(index)
    if isinstance(columns, RatingBatch):
        kept = (columns.response[index], columns.value[index], columns.annotator[index])
        return RatingBatch(*kept, columns.n_levels, columns.step)
    return type(columns)(*(getattr(columns, name)[index] for name in vars(columns)))


def _renumbered(columns: Columns, place: Int[Tensor, "N"]) -> Columns:
    if isinstance(columns, VoteBatch):
        rest = (columns.level, columns.side, columns.annotator, columns.n_levels)
        return VoteBatch(place[columns.a], place[columns.b], *rest)
    if isinstance(columns, RankBatch):
        return RankBatch(place[columns.responses], columns.mask, columns.ranks, columns.annotator)
    if isinstance(columns, RatingBatch):
        return RatingBatch(place[columns.response], columns.value, columns.annotator, columns.n_levels, columns.step)
    return LabelBatch(place[columns.response], columns.good, columns.annotator)
