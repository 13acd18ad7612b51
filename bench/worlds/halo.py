"""Ratings of two attributes of the same responses by raters whose liking of the whole answer spills into both.

    y_o = ½ + offset + g·φ·(w_o + u_o) + s·e_o        corr(e_1, e_2) = halo        corr(u_1, u_2) = spilt

The target is what the population wants of both together, φ·(w_1 + w_2), and apart, φ·(w_1 − w_2), as differences. Weights of the two are independent.
In the third world nothing of the noise is shared and half of the tastes is: chosen to defeat a halo that is known as a correlation of single answers. In the
fourth nothing is shared at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from karat.feedback_columns import Channel, FeedbackBatch, RatingBatch


@dataclass(frozen=True)
class HaloWorld:
    """Who rates what, and what spills."""

    name: str
    """How the tables call it."""
    halo: float
    """Correlation of the noise of a rater's two answers about one response."""
    taste_sd: float = 0.0
    """τ of each objective, where weights have a standard deviation of 1; 0 = raters are of one taste, and fitted so."""
    spilt: float = 0.0
    """Correlation of a rater's tastes in the two objectives."""
    n_raters: int = 25
    """Raters; who answers is drawn for each response."""
    n_texts: int = 90
    """Responses."""
    n_asked: int = 240
    """Ratings of each objective: the same rater and response in both."""
    n_features: int = 4
    """d, standard normal."""


WORLDS = (
    HaloWorld("one taste", halo=0.6),
    HaloWorld("tastes", halo=0.6, taste_sd=0.6),
    HaloWorld("spilt tastes", halo=0.0, taste_sd=0.6, spilt=0.5),
    HaloWorld("no halo", halo=0.0, taste_sd=0.6),
)


def drawn_world(spec: HaloWorld, seed: int) -> tuple[np.ndarray, FeedbackBatch, np.ndarray]:
    """Features [N, d] around 0, ratings of both objectives, and the population's weights of each [2, d]."""
    rng = np.random.default_rng([seed, len(spec.name), 7])
    d, n = spec.n_features, spec.n_asked
    features = rng.standard_normal((spec.n_texts, d))
    features -= features.mean(0)
    weights = rng.standard_normal((2, d))

    def alike(correlation: float, shape: tuple[int, ...]) -> np.ndarray:
        return correlation**0.5 * rng.standard_normal(shape) + (1 - correlation) ** 0.5 * rng.standard_normal(
            (2, *shape)
        )

    own = weights[:, None] + spec.taste_sd * alike(spec.spilt, (spec.n_raters, d))
    noise = 0.12 * alike(spec.halo, (n,))
    asked = rng.choice(spec.n_raters * spec.n_texts, n, replace=False)
    who, text = np.divmod(asked, spec.n_texts)
    channels = []
    for o in range(2):
        offset = 0.5 + 0.1 * rng.standard_normal(spec.n_raters)
        value = offset[who] + 0.15 * (features[text] * own[o, who]).sum(1) + noise[o]
        columns = RatingBatch(*map(torch.from_numpy, (text, value.clip(0, 1), who)))
        channels.append(Channel(f"rating/{o}", "rating", o, columns, columns.annotator, torch.ones(n), torch.arange(n)))
    return features, FeedbackBatch(tuple(channels)), weights
