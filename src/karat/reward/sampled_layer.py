"""The last layer of a population by sampling: draws of its weights together with all that is not known of its raters.

Directions of the features that answers say most about are sampled under `karat.reward.hierarchy`, and the size of what a first normal
fit found in the others, where the posterior is the prior's, nearly, and that fit is kept. Knows features, answers of every kind as columns and a first
fit; knows nothing about texts, trunks or files.

Dimension letters: S draws, N texts, d features, k directions.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from karat.feedback_columns import FeedbackBatch, FeedbackParams
from karat.hamiltonian import Counted, sample_chains, split_rhat
from karat.reward.hierarchy import Directions, HierarchyDensity, HierarchyPriors, Normal
from karat.reward.last_layer import LastLayer
from karat.reward.raters import RaterPriors

MOST_DIRECTIONS = 32
"""k: directions sampled, the last of them that of what the others leave of the mean. A few thousand answers determine fewer (`n_effective`), and each costs two spreads."""
N_CHAINS, N_WARM, N_DRAWS = 2, 200, 300
SIZE: Normal = (math.log(1.5), 1.0)
"""Mean and standard deviation of the logarithm of how far apart the scores of texts are, logits, before the first answer: .2 to 11 in 95 %. A few
answers say next to nothing of it: with a belief as wide as any number, scores of thousands of logits would be drawn after twenty labels."""
ENOUGH, LONGER = 1.05, 2
"""R̂ above which chains are drawn once more, so many times as long, and those that agree better are kept: an objective of twenty answers in four."""
MIXED = 1.1
"""R̂ up to which chains count as agreed (Gelman & Rubin 1992); tighter bounds are for tails that nobody reads here."""


@dataclass(frozen=True, eq=False)
class SampledLayer:
    """A last layer as draws, and what was found out about the raters on the way."""

    draws: np.ndarray
    """[S, d] of w, the population's mean taste."""
    posterior: LastLayer
    """The normal distribution with the draws' mean and covariance: what rank-1 updates start from."""
    spreads: dict[str, float]
    """Posterior medians: competence_sd and side_sd, taste_sd and waver_sd (logits a unit of a feature), precision."""
    rhat: float
    """The largest R̂ of a sampled weight; above `MIXED` the chains do not agree."""


def hierarchy_priors(raters: RaterPriors) -> HierarchyPriors:
    """The beliefs about spreads that fit those about raters; raters that are not modelled have none, and no lapses."""
    if raters.modelled:
        return HierarchyPriors(lapse=(raters.lapse_a, raters.lapse_b))
    return HierarchyPriors(competence=(-7.0, 0.1), side=(-7.0, 0.1), lapse=(1.0, 1e6))


def sample_population(
    features: np.ndarray,
    batch: FeedbackBatch,
    params: FeedbackParams,
    first: LastLayer,
    rng: np.random.Generator,
    *,
    raters: RaterPriors,
    prior_precision: float | None = None,
    effect_size: float = 0.0,
    counted: Counted | None = None,
) -> SampledLayer:
    """Draws of the population's mean taste, with raters, cutpoints and spreads drawn along.

    Args:
        features: φ of every text, [N, d], measured from their mean where something speaks of single responses.
        batch: answers of every kind, about one objective.    params: raters of labels and ratings, as `first` has them.
        first: a normal fit of the same answers.    rng: of the chains.
        raters: priors of a rater.    prior_precision: λ > 0; None = drawn too.
        effect_size: standard deviation of effects of single texts, relative to that of a weight; they are drawn along and left
            out of what is returned. 0 = texts have none.
        counted: hears of every draw; where chains did not agree, of those of longer ones anew.
    Raises: what `sample_chains` raises.
    """
    basis = _directions(first)
    centre = basis.T @ first.mean
    rest = first.mean - basis @ centre
    priors = dataclasses.replace(hierarchy_priors(raters), precision=_precision(features, prior_precision))
    at = Directions(features @ basis, features @ rest, centre, effect_size)
    density = HierarchyDensity(batch, at, params, priors=priors, raters=raters)
    rhat, chains = math.inf, None
    for times in (1, LONGER):
        again = sample_chains(
            density,
            density.start(),
            rng,
            n_chains=N_CHAINS,
            n_warm=times * N_WARM,
            n_draws=times * N_DRAWS,
            counted=counted,
        )
        found = float(split_rhat(density.weights(again.draws)).max())
        if chains is None or found < rhat:
            rhat, chains = found, again
        if rhat <= ENOUGH:
            break
    pooled = chains.pooled()
    sampled = density.weights(pooled)
    other = np.eye(len(rest)) - basis @ basis.T
    beside = (first.draws(len(sampled), rng) - first.mean) @ other
    covariance = basis @ np.atleast_2d(np.cov(sampled.T)) @ basis.T + other @ first.covariance @ other
    posterior = dataclasses.replace(
        first, mean=basis @ sampled.mean(0) + rest, covariance=(covariance + covariance.T) / 2
    )
    spreads = {name: float(np.median(values)) for name, values in density.spreads(pooled).items()}
    return SampledLayer(sampled @ basis.T + rest + beside, posterior, spreads, rhat)


def _precision(features: np.ndarray, given: float | None) -> Normal:
    """Of log λ: scores whose spread over these texts is that of `SIZE`, or what was given."""
    if given is not None:
        return math.log(given), 1e-3
    spread = max(float(features.var(0).sum()), 1e-12)
    return math.log(spread) - 2 * SIZE[0], 2 * SIZE[1]


def _directions(first: LastLayer) -> np.ndarray:
    """[d, k]: the axes themselves where there are few, else those that answers narrowed most, and what is left of the mean.

    The last one carries the size of all the others: held where a first fit shrank it, raters' competences would have to make up for it.
    """
    if len(first.mean) <= MOST_DIRECTIONS:
        return np.eye(len(first.mean))
    basis = linalg.eigh(first.covariance, subset_by_index=[0, MOST_DIRECTIONS - 2])[1]
    left = first.mean - basis @ (basis.T @ first.mean)
    length = float(np.linalg.norm(left))
    if length <= 1e-9 * max(float(np.linalg.norm(first.mean)), 1e-300):
        return basis
    return np.concatenate([basis, left[:, None] / length], axis=1)
