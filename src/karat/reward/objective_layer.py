"""The Bayesian last layer of one objective: its weights' posterior and draws, from all that was said about it.

Every statement names one objective, and nothing of a rater is shared by two (competence is of those who compare, offsets and
gains of a scale): given the features, objectives are fitted one by one, and so are their draws. Knows features, columns and a
starting point; knows nothing about trunks or files.

Dimension letters: S draws, N texts, d features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from karat.choice import RaterParams
from karat.errors import ConfigError
from karat.feedback_columns import FeedbackBatch, FeedbackParams, RankBatch
from karat.hamiltonian import Counted
from karat.records import Estimate, Finding
from karat.reward.block_layer import block_scales
from karat.reward.channel_answers import batch_answers, needs_level
from karat.reward.last_layer import LastLayer
from karat.reward.latents import is_comparing
from karat.reward.layer_turns import fit_by_turns
from karat.reward.population_layer import population_of, with_tastes
from karat.reward.settings import RewardConfig

MOST_EFFECTS = 3_000
"""Training texts that may have effects of their own."""
AVERAGED_UP_TO = 20_000
"""Statements up to which slopes and curvatures are averaged over the posterior; beyond, it is narrow and costs more."""
CHOICES_AVERAGED_UP_TO = 2_000
"""Rankings and choices of the best up to which that is so: each is averaged over some 30 points."""


@dataclass(frozen=True, eq=False)
class Spoken:
    """What was said about one objective, with the features of the texts that it is about."""

    objective: str
    """Its name."""
    batch: FeedbackBatch
    """Its channels; texts are rows of `phi`, and scores have one objective, 0."""
    texts: np.ndarray
    """Which of all texts those are, [N]."""
    phi: np.ndarray
    """Features of the trunk, and the length's where the objective has a length term, [N, d]."""
    blocks: tuple[np.ndarray, ...] = ()
    """Plain features beside them, [N, q_k] each."""

    @property
    def level(self) -> bool:
        """Whether something speaks of single responses, so that features are measured from their mean."""
        return needs_level(self.batch)


@dataclass(frozen=True, eq=False)
class ObjectiveLayer:
    """The last layer of one objective."""

    objective: str
    """Its name."""
    posterior: LastLayer
    """Of the weights of features and scaled blocks."""
    draws: np.ndarray
    """[S, d], with the posterior's mean."""
    params: FeedbackParams
    """Of everybody who spoke about it, in units of its raw scores."""
    scales: np.ndarray
    """What each block is multiplied by."""
    centre: np.ndarray
    """Features from which thresholds and offsets are measured, [d]; zeros where nothing speaks of single responses."""
    figures: dict[str, float]
    """Of the fit, and spreads of the raters."""
    findings: tuple[Finding, ...]
    """What a reader must know about it."""

    def raw(self, phi: np.ndarray) -> np.ndarray:
        """Scores of features with their scaled blocks [N, d], measured from the objective's own zero, [S, N]."""
        return self.draws @ (phi - self.centre).T


def spoken_about(
    batch: FeedbackBatch, number: int, objective: str, phi: np.ndarray, blocks: Sequence[np.ndarray]
) -> Spoken:
    """The part of a batch that is about one objective.

    Args:
        number: its index in the batch.    phi, blocks: of all texts.
    """
    channels = [dataclasses.replace(one, objective=0) for one in batch.channels if one.objective == number]
    texts = np.unique(np.concatenate([one.texts.numpy().ravel() for one in channels]))
    own = FeedbackBatch(tuple(channels)).renumbered(_places(texts, len(phi)))
    return Spoken(objective, own, texts, phi[texts], tuple(block[texts] for block in blocks))


def fit_objective(
    said: Spoken,
    params: FeedbackParams,
    start: np.ndarray,
    *,
    n_people: int,
    config: RewardConfig,
    rng: np.random.Generator,
    counted: Counted | None = None,
) -> ObjectiveLayer:
    """The last layer of what was said about one objective, with raters by turns.

    Args:
        params: where raters begin.    start: weights of `said.phi` to begin from.    n_people: raters who are people.
        rng: of the draws.    counted: hears of every draw where raters are drawn along.
    Raises: ConfigError for effects of too many texts; what `fit_by_turns` and the fits of populations raise.
    """
    settings, about = config.laplace, {channel.name for channel in said.batch.channels}
    own = dataclasses.replace(
        params,
        ratings={name: one for name, one in params.ratings.items() if name in about},
        labels={name: one for name, one in params.labels.items() if name in about},
    )
    scales, effects = _further(said, own, config)
    phi = np.concatenate([said.phi, *(block * scale for block, scale in zip(said.blocks, scales, strict=True))], axis=1)
    width = phi.shape[1]
    centre = phi.mean(0) if said.level else np.zeros(width)
    whole = np.concatenate([phi, effects], axis=1)
    turned = fit_by_turns(
        whole - whole.mean(0) if said.level else whole, said.batch, own, config.raters, n_people=n_people,
        start=np.concatenate([start, np.zeros(whole.shape[1] - len(start))]), n_turns=settings.n_turns,
        prior_precision=settings.prior_precision,
        averaged=_averaged(said.batch) and not with_tastes(said.batch, n_people, config),
    )  # fmt: skip
    population = population_of(
        turned, said.batch, phi - centre, effects, n_people=n_people, config=config, rng=rng, counted=counted
    )
    figures = {"prior_precision": population.posterior.prior_precision, "log_evidence": population.posterior.log_evidence,
               "n_effective": population.posterior.n_effective} | population.figures  # fmt: skip
    findings = (_finding(population.posterior, width, len(said.batch)), *population.findings)
    return ObjectiveLayer(
        said.objective, population.posterior, population.draws, population.params, scales, centre, figures, findings
    )


def people_of(params: FeedbackParams, n: int, cutpoints: torch.Tensor) -> RaterParams:
    """The raters who are people, with the cutpoints of one scale of comparisons as `params` has them.

    Args:
        cutpoints: that scale's so far.
    """
    now = params.cutpoints.get(f"comparison/{len(cutpoints) + 1}", cutpoints)
    return RaterParams(params.competence[:n], params.side_bias[:n], params.lapse[:n], now)


def joined_params(params: FeedbackParams, layers: Sequence[ObjectiveLayer], batch: FeedbackBatch) -> FeedbackParams:
    """The raters of all objectives: those who compare from the objective that they compare on, each channel from its own."""
    for number, layer in enumerate(layers):
        own = layer.params
        params = dataclasses.replace(
            params, ratings={**params.ratings, **own.ratings}, labels={**params.labels, **own.labels}
        )
        if any(is_comparing(channel) and channel.objective == number for channel in batch.channels):
            names = ("competence", "side_bias", "lapse", "log_tie", "cutpoints")
            params = dataclasses.replace(params, **{name: getattr(own, name) for name in names})
    return params


def _places(texts: np.ndarray, n_texts: int) -> torch.Tensor:
    place = torch.full((n_texts,), -1)
    place[torch.from_numpy(texts)] = torch.arange(len(texts))
    return place


def _averaged(batch: FeedbackBatch) -> bool:
    """Whether slopes and curvatures are averaged over the posterior."""
    n_choices = sum(len(channel) for channel in batch.channels if isinstance(channel.columns, RankBatch))
    return len(batch) <= AVERAGED_UP_TO and n_choices <= CHOICES_AVERAGED_UP_TO


def _further(said: Spoken, params: FeedbackParams, config: RewardConfig) -> tuple[np.ndarray, np.ndarray]:
    """Scales of the plain blocks, and effects of single texts [N, N] where asked for, each as large as makes what was said most probable.

    Raises: ConfigError for effects of too many texts.
    """
    n_texts, with_effects = len(said.texts), config.laplace.text_effects
    if with_effects and n_texts > MOST_EFFECTS:
        raise ConfigError(
            f"reward.laplace.text_effects: found {n_texts:,} texts; expected at most {MOST_EFFECTS:,}, its time grows with their cube"
        )
    blocks = [said.phi, *said.blocks, *([np.eye(n_texts)] if with_effects else [])]
    if len(blocks) == 1:
        return np.zeros(0), np.zeros((n_texts, 0))
    whole = np.concatenate(blocks, axis=1)
    observed = batch_answers(said.batch, params, config.raters, known=True)
    scales, _ = block_scales(
        whole - whole.mean(0) if said.level else whole, [block.shape[1] for block in blocks], observed
    )
    effects = scales[-1] * np.eye(n_texts) if with_effects else np.zeros((n_texts, 0))
    return scales[1 : 1 + len(said.blocks)], effects


def _finding(posterior: LastLayer, n_features: int, n_votes: int) -> Finding:
    return Finding(
        "reward.last_layer",
        "How much of the last layer did what was said determine?",
        "info",
        Estimate(
            posterior.n_effective, None, None, n_votes, "MacKay's γ = d − λ·tr H⁻¹, at the λ of the highest evidence"
        ),
        detail=f"of {n_features} features; prior precision {posterior.prior_precision:.3g}.",
    )
