"""What raters who differ make of a last layer of one taste: its weights' posterior and draws, and how far raters are apart.

Knows features, columns and a first fit; knows nothing about trunks, texts or files.

Dimension letters: S draws, N texts, d features.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from karat.choice import RaterParams, VoteBatch
from karat.feedback_columns import FeedbackBatch
from karat.records import Estimate, Finding
from karat.reward.channel_answers import is_plain
from karat.reward.last_layer import LastLayer, comparison_observations
from karat.reward.layer_turns import TurnedLayer
from karat.reward.sampled_layer import MIXED, sample_population
from karat.reward.settings import RewardConfig
from karat.reward.tastes import fit_population

SAMPLED_UP_TO, BY_MOMENTS_UP_TO = 5_000, 20_000
"""Comparisons up to which raters who differ are drawn with the weights; beyond, that takes minutes and moments serve; beyond those too,
raters are taken as fitted."""


@dataclass(frozen=True, eq=False)
class Population:
    """A posterior and its draws, of the population's mean taste."""

    posterior: LastLayer
    """Of features without effects of single texts."""
    draws: np.ndarray
    """[S, d], with the posterior's mean."""
    figures: dict[str, float]
    """Spreads of the raters, and whether chains agree where there are some."""
    findings: tuple[Finding, ...] = ()
    """What a reader must know."""


def with_tastes(batch: FeedbackBatch, n_people: int, config: RewardConfig) -> bool:
    """Whether raters who differ are drawn along: comparisons of one scale by several, not too many."""
    return config.laplace.tastes and is_plain(batch) and n_people > 1 and len(batch) <= BY_MOMENTS_UP_TO


def population_of(
    turned: TurnedLayer,
    batch: FeedbackBatch,
    phi: np.ndarray,
    effects: np.ndarray,
    *,
    raters: RaterParams,
    config: RewardConfig,
    rng: np.random.Generator,
) -> Population:
    """What raters who differ do to a posterior of one taste: drawn with it, by moments, or nothing.

    Args:
        turned: the fit of one taste, of features and effects.    phi: features [N, d].    effects: of single texts, [N, e].
        raters: who are people, as fitted.    rng: of the draws.
    """
    settings, width = config.laplace, phi.shape[1]
    posterior = without_effects(turned.posterior, width)
    if not with_tastes(batch, len(raters.competence), config):
        none = {"taste_sd": 0.0, "competence_sd": 0.0}
        findings = (_one_taste(batch),) if settings.tastes and not is_plain(batch) else ()
        return Population(posterior, posterior.draws(settings.n_draws, rng), none, findings)
    votes = batch.channels[0].columns
    assert isinstance(votes, VoteBatch)
    if len(votes) > SAMPLED_UP_TO:
        found = fit_population(
            np.concatenate([phi, effects], axis=1), comparison_observations(votes, raters), votes.annotator.numpy(),
            prior_precision=settings.prior_precision, competence_known=not config.raters.modelled, n_taste=width,
        )  # fmt: skip
        spreads = {"taste_sd": found.taste_sd, "competence_sd": found.competence_sd}
        found_layer = without_effects(found.posterior, width)
        return Population(found_layer, found_layer.draws(settings.n_draws, rng), spreads)
    sampled = sample_population(
        phi, votes, posterior, rng, raters=config.raters, prior_precision=settings.prior_precision,
        effect_size=float(effects[0, 0]) if effects.size else 0.0,
    )  # fmt: skip
    every = np.linspace(0, len(sampled.draws) - 1, settings.n_draws).round().astype(int)
    drawn = sampled.draws[every]
    drawn += sampled.posterior.mean - drawn.mean(0)  # few draws: their mean is to be that of all
    figures = {name: sampled.spreads[name] for name in ("taste_sd", "competence_sd", "waver_sd")}
    findings = () if sampled.rhat <= MIXED else (_not_mixed(sampled.rhat, len(votes)),)
    return Population(sampled.posterior, drawn, figures | {"rhat": sampled.rhat}, findings)


def without_effects(posterior: LastLayer, width: int) -> LastLayer:
    """The posterior of the first weights alone: effects of single texts are integrated out."""
    covariance = posterior.covariance[:width, :width]
    n_effective = width - posterior.prior_precision * float(np.trace(covariance))
    return dataclasses.replace(posterior, mean=posterior.mean[:width], covariance=covariance, n_effective=n_effective)


def _not_mixed(rhat: float, n_votes: int) -> Finding:
    return Finding(
        "reward.last_layer_chains",
        "Do the chains that draw the last layer agree?",
        "warn",
        Estimate(rhat, None, None, n_votes, "the largest R̂ of a weight over the halves of two chains"),
        detail=f"Above {MIXED}: the spread of scores is uncertain. Train again with another seed, or set "
        "reward.laplace.tastes: false.",
    )


def _one_taste(batch: FeedbackBatch) -> Finding:
    names = ", ".join(channel.name for channel in batch.channels)
    return Finding(
        "reward.last_layer_tastes",
        "Does the posterior know that raters differ in taste?",
        "warn",
        Estimate(0.0, None, None, len(batch), "standard deviation of tastes, taken as 0"),
        detail=f"No: that takes comparisons of one scale alone (reward.kinds: [comparison]), found {names}. Competences, offsets "
        "and gains are in it; where tastes differ its intervals are too short.",
    )
