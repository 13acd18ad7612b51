"""What raters who differ make of a last layer of one taste: its weights' posterior and draws, and how far raters are apart.

Knows features, columns and a first fit; knows nothing about trunks, texts or files.

Dimension letters: S draws, N texts, d features.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from karat.feedback_columns import FeedbackBatch, FeedbackParams
from karat.hamiltonian import Counted
from karat.records import Estimate, Finding
from karat.reward.channel_answers import compares_only
from karat.reward.last_layer import LastLayer, comparison_observations
from karat.reward.latents import fit_params, is_comparing
from karat.reward.layer_turns import N_DRAWS, TurnedLayer
from karat.reward.linear_answers import joined
from karat.reward.sampled_layer import MIXED, SampledLayer, sample_population
from karat.reward.settings import RewardConfig
from karat.reward.tastes import fit_population

SAMPLED_UP_TO, BY_MOMENTS_UP_TO = 5_000, 20_000
"""Statements up to which raters who differ are drawn with the weights; beyond, that takes minutes, and moments serve, of comparisons alone;
beyond those too, raters are taken as fitted."""


@dataclass(frozen=True, eq=False)
class Population:
    """A posterior and its draws, of the population's mean taste."""

    posterior: LastLayer
    """Of features without effects of single texts."""
    draws: np.ndarray
    """[S, d], with the posterior's mean."""
    params: FeedbackParams
    """The raters, in units of the posterior's scores."""
    figures: dict[str, float]
    """Spreads of the raters, and whether chains agree where there are some."""
    findings: tuple[Finding, ...] = ()
    """What a reader must know."""


def with_tastes(batch: FeedbackBatch, n_people: int, config: RewardConfig) -> bool:
    """Whether raters who differ are drawn along, or known by moments: several of them, and not too many answers."""
    most = BY_MOMENTS_UP_TO if compares_only(batch) else SAMPLED_UP_TO
    return config.laplace.tastes and n_people > 1 and len(batch) <= most


def population_of(
    turned: TurnedLayer,
    batch: FeedbackBatch,
    phi: np.ndarray,
    effects: np.ndarray,
    *,
    n_people: int,
    config: RewardConfig,
    rng: np.random.Generator,
    counted: Counted | None = None,
) -> Population:
    """What raters who differ do to a posterior of one taste: drawn with it, by moments, or nothing.

    Args:
        turned: the fit of one taste, of features and effects.    effects: of single texts, [N, e].    rng: of the draws.
        phi: features [N, d], measured from their mean where something speaks of single responses.
        counted: hears of every draw of raters.
    """
    settings, width, params = config.laplace, phi.shape[1], turned.params
    posterior = without_effects(turned.posterior, width)
    if not with_tastes(batch, n_people, config):
        none = {"taste_sd": 0.0, "competence_sd": 0.0}
        findings = (_one_taste(batch),) if settings.tastes and n_people > 1 else ()
        return Population(posterior, posterior.draws(settings.n_draws, rng), params, none, findings)
    if len(batch) > SAMPLED_UP_TO:
        votes = [(channel.columns, channel.name) for channel in batch.channels]
        found = fit_population(
            np.concatenate([phi, effects], axis=1),
            joined([comparison_observations(columns, params.raters(name)) for columns, name in votes]),
            np.concatenate([columns.annotator.numpy() for columns, _ in votes]), n_taste=width,
            prior_precision=settings.prior_precision, competence_known=not config.raters.modelled,
        )  # fmt: skip
        spreads = {"taste_sd": found.taste_sd, "competence_sd": found.competence_sd}
        found_layer = without_effects(found.posterior, width)
        return Population(found_layer, found_layer.draws(settings.n_draws, rng), params, spreads)
    sampled = sample_population(
        phi, batch, params, posterior, rng, raters=config.raters, prior_precision=settings.prior_precision,
        effect_size=float(effects[0, 0]) if effects.size else 0.0, counted=counted,
    )  # fmt: skip
    drawn = some_draws(sampled, settings.n_draws)
    figures = {name: sampled.spreads[name] for name in ("taste_sd", "competence_sd", "waver_sd")}
    findings = (_apart(sampled, len(batch)), *([] if sampled.rhat <= MIXED else [_not_mixed(sampled.rhat, len(batch))]))
    params = _at_drawn_scores(phi @ some_draws(sampled, N_DRAWS).T, batch, params, config)
    return Population(sampled.posterior, drawn, params, figures | {"rhat": sampled.rhat}, findings)


def some_draws(sampled: SampledLayer, n: int) -> np.ndarray:
    """So many draws, spread over the chains; they have the mean of all, which few would miss."""
    every = np.linspace(0, len(sampled.draws) - 1, n).round().astype(int)
    drawn = sampled.draws[every]
    return drawn + (sampled.posterior.mean - drawn.mean(0))


def _at_drawn_scores(
    scores: np.ndarray, batch: FeedbackBatch, params: FeedbackParams, config: RewardConfig
) -> FeedbackParams:
    """The raters with gains, offsets, thresholds and noise of ratings and labels that fit drawn scores [N, S].

    They predict people who are not known: their noise holds what the tastes of those who are make of it.
    """
    if all(map(is_comparing, batch.channels)):
        return params
    found = fit_params(torch.from_numpy(scores.T.copy()).unsqueeze(-1), batch, params, config.raters)
    return dataclasses.replace(params, ratings=found.ratings, labels=found.labels)


def without_effects(posterior: LastLayer, width: int) -> LastLayer:
    """The posterior of the first weights alone: effects of single texts are integrated out."""
    covariance = posterior.covariance[:width, :width]
    n_effective = width - posterior.prior_precision * float(np.trace(covariance))
    return dataclasses.replace(posterior, mean=posterior.mean[:width], covariance=covariance, n_effective=n_effective)


def _apart(sampled: SampledLayer, n_said: int) -> Finding:
    spreads = sampled.spreads
    return Finding(
        "reward.last_layer_raters",
        "How far apart are the raters who are drawn along with the last layer?",
        "info",
        Estimate(
            spreads["taste_sd"], None, None, n_said, "sd of tastes, raw logits a unit of a feature; median of the draws"
        ),
        detail=f"sd of competences around 1: {spreads['competence_sd']:.2g}; of what one rater weighs otherwise from answer to answer: "
        f"{spreads['waver_sd']:.2g}; R̂ {sampled.rhat:.2f}.",
    )


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
        detail=f"No: raters are drawn along up to {SAMPLED_UP_TO:,} statements (comparisons alone: known by moments up to "
        f"{BY_MOMENTS_UP_TO:,}), found {len(batch):,} of {names}. Where tastes differ its intervals are too short.",
    )
