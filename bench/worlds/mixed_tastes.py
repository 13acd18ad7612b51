"""Linear worlds whose raters differ in taste and give feedback of several kinds: does an interval cover the population's mean?

Every rater's utility is φ·(w + u), u ~ N(0, τ²), and she answers by the likelihoods of `karat.feedback_likelihood` with a competence,
side bias, lapse, offset, gain, noise and threshold of her own. The target is φ·w, as differences. Three worlds; in the third most of what
is said is of kinds whose scale is free (ratings, labels), and comparisons are few: chosen to defeat the interval.

`believed_world` asks the same questions where sizes and spreads are drawn from what the sampler believes of them before the first answer: there a
right sampler's intervals cover what they say, whatever they cover in one world that is held fixed (Cook, Gelman & Rubin 2006, J. Comp. Graph. Stat. 15(3)).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from karat.choice import VoteBatch
from karat.feedback_columns import (
    VIRTUAL,
    Channel,
    Columns,
    FeedbackBatch,
    FeedbackParams,
    LabelBatch,
    LabelParams,
    RankBatch,
    RatingBatch,
)
from karat.feedback_likelihood import sample_channel
from karat.ratings import RatingParams
from karat.reward.hierarchy import HierarchyPriors
from karat.reward.latents import LOG_GAIN_SD, LOG_NOISE_SD
from karat.reward.sampled_layer import SIZE

WIDTHS = {"comparison/3": 2, "comparison/5": 2, "correction": 2, "ranking": 4, "best_of": 3, "rating": 1, "label": 1}


@dataclass(frozen=True)
class TasteWorld:
    """What is asked of whom."""

    name: str
    """How the tables call it."""
    asked: dict[str, int]
    """Answers of each kind."""
    taste_sd: float = 0.6
    """τ, where weights have a standard deviation of 1."""
    n_raters: int = 25
    """Raters; who answers is drawn for each question."""
    n_texts: int = 120
    """Responses that are judged."""
    n_features: int = 4
    """d, standard normal."""
    competence_sd: float = 0.3
    """Of competence around 1."""


WORLDS = (
    TasteWorld("two scales", {"comparison/3": 300, "comparison/5": 300}),
    TasteWorld(
        "mixture",
        {
            "comparison/3": 150,
            "comparison/5": 80,
            "correction": 60,
            "ranking": 60,
            "best_of": 80,
            "rating": 120,
            "label": 120,
        },
    ),
    TasteWorld("few comparisons", {"comparison/3": 60, "rating": 300, "label": 300}),
)


def drawn_world(spec: TasteWorld, seed: int) -> tuple[np.ndarray, FeedbackBatch, np.ndarray]:
    """Features [N, d] around 0, what raters said, and the population's mean weights [d]."""
    rng = np.random.default_rng([seed, len(spec.name)])
    features = rng.standard_normal((spec.n_texts, spec.n_features))
    features -= features.mean(0)
    mean = rng.standard_normal(spec.n_features)
    own = mean + spec.taste_sd * rng.standard_normal((spec.n_raters, spec.n_features))
    params = _raters(spec, rng)
    channels = []
    for kind, n in spec.asked.items():
        channel = _questions(kind, n, spec, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        answers: list[Channel] = []
        for person in range(spec.n_raters):
            part = channel.select(channel.rater == person)
            scores = torch.from_numpy(features @ own[person])
            answers += [sample_channel(scores, part, params, generator=generator)] if len(part) else []
        channels.append(_joined(answers))
    return features, FeedbackBatch(tuple(channels)), mean


def believed_world(spec: TasteWorld, seed: int) -> tuple[np.ndarray, FeedbackBatch, np.ndarray]:
    """What `drawn_world` gives, with weights, tastes, wavering, competences, sides, steps and gains drawn from `HierarchyPriors`.

    Offsets and thresholds of the population stay the world's: what is believed of them is far wider than a scale, on purpose.
    """
    rng, beliefs, d = np.random.default_rng([seed, len(spec.name), 1]), HierarchyPriors(), spec.n_features

    def spread(belief: tuple[float, float]) -> float:
        return float(np.exp(belief[0] + belief[1] * rng.standard_normal()))

    features = rng.standard_normal((spec.n_texts, d))
    features -= features.mean(0)
    unit = spread(SIZE) / float(np.sqrt(features.var(0).sum()))
    mean = unit * rng.standard_normal(d)
    taste = unit * spread(beliefs.taste) * np.exp(beliefs.apart * rng.standard_normal(d))
    apart = rng.standard_normal(d)
    waver = beliefs.wavering * unit * abs(rng.standard_normal()) ** 3 * np.exp(beliefs.apart * (apart - apart.mean()))
    own = mean + taste * rng.standard_normal((spec.n_raters, d))
    spec = dataclasses.replace(spec, competence_sd=spread(beliefs.competence))
    params = _raters(spec, rng)
    n, column = spec.n_raters, torch.from_numpy
    steps = [spread(beliefs.step) for _ in range(3)]
    five = np.cumsum(steps[1:])
    gain = 0.15 * np.exp(LOG_GAIN_SD * rng.standard_normal())
    noise = 0.2 * np.exp(LOG_NOISE_SD * rng.standard_normal())
    rating = params.ratings["rating"]
    params = dataclasses.replace(
        params, competence=column(1 + spec.competence_sd * rng.standard_normal(n + 3)),
        side_bias=params.side_bias / 0.3 * spread(beliefs.side),
        cutpoints={**params.cutpoints, "comparison/3": column(np.array([-steps[0], steps[0]])),
                   "comparison/5": column(np.concatenate([-five[::-1], five]))},
        ratings={"rating": dataclasses.replace(rating, gain=rating.gain / 0.12 * gain, sd=rating.sd / 0.12 * noise)},
        labels={"label": dataclasses.replace(params.labels["label"], gain=torch.tensor(np.exp(LOG_GAIN_SD * rng.standard_normal())))},
    )  # fmt: skip
    channels = []
    for kind, count in spec.asked.items():
        channel = _questions(kind, count, spec, rng)
        # wavering in Gaussian ratings is part of their noise
        weights = own[channel.rater.numpy()] + (kind != "rating") * waver * rng.standard_normal((count, d))
        texts = channel.texts
        scores = np.einsum("ckd,cd->ck", features[texts.numpy()], weights).ravel()
        apiece = _placed(channel, torch.arange(texts.numel()).reshape(texts.shape))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        answers = sample_channel(column(scores), apiece, params, generator=generator)
        channels.append(_joined([_placed(answers, texts)]))
    return features, FeedbackBatch(tuple(channels)), mean


def _placed(channel: Channel, texts: torch.Tensor) -> Channel:
    """The same statements about other texts."""
    columns = channel.columns
    names = {VoteBatch: ("a", "b"), RankBatch: ("responses",)}.get(type(columns), ("response",))
    moved = dict(zip(names, texts.T, strict=True)) if len(names) == texts.shape[1] else {names[0]: texts}
    return dataclasses.replace(channel, columns=dataclasses.replace(columns, **moved))


def _raters(spec: TasteWorld, rng: np.random.Generator) -> FeedbackParams:
    n = spec.n_raters
    column = torch.from_numpy
    competence = np.concatenate([1 + spec.competence_sd * rng.standard_normal(n), [1.2, 0.9, 1.0]])
    return FeedbackParams(
        column(competence), column(np.concatenate([0.3 * rng.standard_normal(n), np.zeros(3)])),
        column(rng.beta(1, 19, n + 3)),
        {"comparison/3": torch.tensor([-0.5, 0.5]).double(), "comparison/5": torch.tensor([-1.5, -0.5, 0.5, 1.5]).double(),
         "correction": torch.zeros(1).double()},
        None,
        {"rating": RatingParams(column(0.5 + 0.15 * rng.standard_normal(n)), column(0.12 * (1 + 0.3 * rng.standard_normal(n))),
                                column(0.12 * np.exp(0.3 * rng.standard_normal(n))))},
        {"label": LabelParams(column(0.3 + rng.standard_normal(n)), torch.tensor(0.8).double())},
    )  # fmt: skip


def _questions(kind: str, n: int, spec: TasteWorld, rng: np.random.Generator) -> Channel:
    width = WIDTHS[kind]
    texts = torch.tensor(np.array([rng.choice(spec.n_texts, width, replace=False) for _ in range(n)]))
    who = torch.tensor(rng.integers(spec.n_raters, size=n))
    none, given = torch.zeros(n, dtype=torch.long), kind.split("/")[0]
    columns: Columns
    if given in VIRTUAL:
        judge = none + spec.n_raters + VIRTUAL.index(given)
        # which of the two was written is drawn with its worth: the level says that the first is better
        columns = VoteBatch(texts[:, 0], texts[:, 1], none + 1, torch.zeros(n), judge, 2)
    elif width == 2:
        side = torch.tensor(rng.choice([-1.0, 1.0], n)).double()
        columns = VoteBatch(texts[:, 0], texts[:, 1], none, side, who, int(kind.split("/")[1]))
    elif width > 2:
        columns = RankBatch(texts, torch.ones_like(texts, dtype=torch.bool), torch.ones_like(texts), who)
    elif given == "label":
        columns = LabelBatch(texts[:, 0], none.bool(), who)
    else:
        columns = RatingBatch(texts[:, 0], torch.zeros(n, dtype=torch.float64), who)
    return Channel(kind, given, 0, columns, who, torch.ones(n), torch.arange(n))


def _joined(parts: list[Channel]) -> Channel:
    """Parts of one channel behind one another; of a correction drawn the other way round, the texts change places."""
    columns = parts[0].columns
    names = [name for name, value in vars(columns).items() if isinstance(value, torch.Tensor)]
    whole = {name: torch.cat([getattr(one.columns, name) for one in parts]) for name in names}
    joined = dataclasses.replace(columns, **whole)
    if parts[0].kind in VIRTUAL:
        assert isinstance(joined, VoteBatch)
        swap = joined.level == 0
        a, b = torch.where(swap, joined.b, joined.a), torch.where(swap, joined.a, joined.b)
        joined = dataclasses.replace(joined, a=a, b=b, level=torch.ones_like(joined.level))
    fields = {name: torch.cat([getattr(one, name) for one in parts]) for name in ("rater", "weight", "place")}
    return dataclasses.replace(parts[0], columns=joined, **fields)
