"""Pools of responses that can be compared or rated: does mixing the two kinds save time?

A response is φ = N(0, I); its reward is linear, r = w·φ, with sd `reward_sd` within a prompt, so that two raters who
compare by P(a ≻ b) = σ(r_a − r_b) agree in 64, 71 or 76 % of pairs at 1, 1.5 and 2 logits. Rater u rates

    y = ½ + 0.15·(offset_u + gain_u·(r + level_p + halo) + σ·e)        e ~ N(0, 1)

on a scale of length 1 that is not cut off at its ends. σ is set through the ratings' ICC, the correlation of two raters'
ratings of the same response once offsets and gains are taken out: ICC = T²/(T² + σ²), T² = Var(r + level + halo).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

UNIT = 0.15
"""Share of the rating scale for one logit, `karat.reward.latents.RATING_GAIN`."""


@dataclass(frozen=True)
class HybridWorld:
    """One kind of pool and of raters."""

    name: str
    """How the tables call it."""
    why: str
    """What it stands for, and what is expected there."""
    reward_sd: float
    """Standard deviation of r over a prompt's responses, logits."""
    level_sd: float = 0.0
    """Sd of what all ratings of one prompt's responses share and the features do not show, logits."""
    halo_sd: float = 0.0
    """Sd of what ratings see in a response and comparisons do not: a direction of φ across w, logits."""
    offset_sd: float = 1.0
    """Sd of the raters' offsets, logits."""
    gain_sd: float = 0.2
    """Sd of the raters' gains around 1."""
    n_raters: int = 10
    """Each answer is a random one's."""
    n_features: int = 24
    """d of φ."""
    n_prompts: int = 1000
    """Prompts in the pool."""
    n_responses: int = 4
    """Responses to each."""

    @property
    def true_sd(self) -> float:
        """T: sd of what two raters' ratings of one response share, logits."""
        return math.sqrt(self.reward_sd**2 + self.level_sd**2 + self.halo_sd**2)

    def rating_sd(self, icc: float) -> float:
        """σ in logits that gives this ICC."""
        return self.true_sd * math.sqrt(1 / icc - 1)


WORLDS = (
    HybridWorld("one scale, 64 %", "hard comparisons: two raters agree in 64 %; ratings share one scale", reward_sd=1.0),
    HybridWorld("one scale, 71 %", "the same with agreement of 71 %", reward_sd=1.5),
    HybridWorld("one scale, 76 %", "the same with agreement of 76 %: comparisons say less of large differences", reward_sd=2.0),
    HybridWorld(
        "prompt levels",
        "every answer to a hard prompt is rated low: raters agree on what no comparison asks, so the ICC promises too much",
        reward_sd=1.5,
        level_sd=1.5,
    ),
    HybridWorld(
        "halo",
        "ratings reward a trait that comparisons do not: precise about the wrong thing, chosen to defeat the allocator",
        reward_sd=1.5,
        halo_sd=1.0,
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class HybridPool:
    """One draw of a world."""

    features: np.ndarray
    """φ, [prompts · responses, d]; a prompt's responses are consecutive."""
    weights: np.ndarray
    """w, [d]."""
    rated: np.ndarray
    """r + level + halo of each response, logits."""
    offset: np.ndarray
    """Of each rater, logits."""
    gain: np.ndarray
    """Of each rater."""

    @property
    def reward(self) -> np.ndarray:
        """r of each response, logits."""
        return self.features @ self.weights

    def accuracy(self, weights: np.ndarray) -> float:
        """Share of fresh pairs whose sign these weights get right: 1 − angle(ŵ, w)/π, exact for normal features."""
        cosine = float(weights @ self.weights) / max(
            float(np.linalg.norm(weights) * np.linalg.norm(self.weights)), 1e-12
        )
        return 1 - math.acos(min(max(cosine, -1.0), 1.0)) / math.pi


def draw_pool(world: HybridWorld, rng: np.random.Generator) -> HybridPool:
    """One pool, its reward and its raters."""
    d, n = world.n_features, world.n_prompts
    features = rng.standard_normal((n * world.n_responses, d))
    basis = np.linalg.qr(rng.standard_normal((d, 2)))[0]
    weights, halo = world.reward_sd * basis[:, 0], world.halo_sd * basis[:, 1]
    level = world.level_sd * np.repeat(rng.standard_normal(n), world.n_responses)
    offset = world.offset_sd * rng.standard_normal(world.n_raters)
    gain = 1 + world.gain_sd * rng.standard_normal(world.n_raters)
    return HybridPool(features, weights, features @ (weights + halo) + level, offset, gain.clip(min=0.2))


def compared(pool: HybridPool, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Answers to comparisons of responses a and b: 1 = a, 0 = b."""
    delta = (pool.features[a] - pool.features[b]) @ pool.weights
    return (rng.random(len(a)) < 1 / (1 + np.exp(-delta))).astype(int)


def rated(
    pool: HybridPool, responses: np.ndarray, rater: np.ndarray, sd: float, rng: np.random.Generator
) -> np.ndarray:
    """Ratings y of responses by raters, with noise of sd logits."""
    noise = sd * rng.standard_normal(len(responses))
    return 0.5 + UNIT * (pool.offset[rater] + pool.gain[rater] * pool.rated[responses] + noise)
