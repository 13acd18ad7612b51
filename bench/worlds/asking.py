"""Pools of pairs to ask about: does choosing the questions save labels?

Pairs are differences of features; the reward is linear in them, r = w·φ, and a rater answers P(a ≻ b) = σ(w·Δφ), or by
a coin where the pair cannot be judged. Accuracy is that of the sign on other pairs of the same pool that can be judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AskingWorld:
    """One kind of pool."""

    name: str
    """How the tables call it."""
    why: str
    """What it stands for, and what is expected there."""
    reward_sd: float
    """Standard deviation of Δr over ordinary pairs, logits."""
    twin_frac: float = 0.0
    """Share of pairs that are nearly the same response twice."""
    twin_scale: float = 0.1
    """Their size, where an ordinary pair has 1."""
    outlier_frac: float = 0.0
    """Share of pairs that are far apart and that nobody can judge: they are answered by a coin."""
    outlier_scale: float = 4.0
    """Their size."""
    n_features: int = 24
    """Features that the reward is linear in."""
    n_pool: int = 2000
    """Pairs that could be asked."""
    n_test: int = 4000
    """Pairs that accuracy is taken on."""


WORLDS = (
    AskingWorld(
        "heterogeneous",
        "a sharpened policy mostly writes the same thing twice: most pairs say little; choosing should save half of the labels",
        reward_sd=3.0,
        twin_frac=0.85,
    ),
    AskingWorld(
        "near ties",
        "every pair is nearly a tie and none says more than another; choosing has nothing to gain and must lose nothing",
        reward_sd=0.5,
    ),
    AskingWorld(
        "outliers",
        "the pairs that look most informative are ones that nobody can judge: chosen to defeat asking by information",
        reward_sd=1.5,
        outlier_frac=0.15,
    ),
)


@dataclass(frozen=True, eq=False)
class AskingPool:
    """One draw of a world."""

    features: np.ndarray
    """Δφ of the pairs that could be asked, [pool, d]."""
    delta: np.ndarray
    """Their Δr, logits."""
    judgeable: np.ndarray
    """False = answered by a coin."""
    test_features: np.ndarray
    """Δφ of the pairs that accuracy is taken on."""
    test_delta: np.ndarray
    """Their Δr."""


def draw_pool(world: AskingWorld, rng: np.random.Generator) -> AskingPool:
    """One pool, its reward and its test pairs."""
    weights = rng.standard_normal(world.n_features)
    weights *= world.reward_sd / np.linalg.norm(weights)

    def pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
        kind = rng.random(n)
        scale = np.where(kind < world.twin_frac, world.twin_scale, 1.0)
        scale = np.where(kind > 1 - world.outlier_frac, world.outlier_scale, scale)
        return rng.standard_normal((n, world.n_features)) * scale[:, None], kind <= 1 - world.outlier_frac

    features, judgeable = pairs(world.n_pool)
    test, test_judgeable = pairs(world.n_test)
    test = test[test_judgeable]
    return AskingPool(features, features @ weights, judgeable, test, test @ weights)


def answers(pool: AskingPool, rng: np.random.Generator) -> np.ndarray:
    """What a rater would answer to each pair of the pool: 1 = a, 0 = b."""
    p = np.where(pool.judgeable, 1 / (1 + np.exp(-pool.delta)), 0.5)
    return (rng.random(len(p)) < p).astype(int)
