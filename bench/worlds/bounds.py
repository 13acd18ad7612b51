"""Candidates to choose the best of: do ensembles and lower bounds protect from over-optimisation?

A candidate is x ~ N(0, I). Gold is linear in its qualities, with standard deviation 1 over candidates; where the world
has a length, gold loses its square. Raters vote on random pairs by what they like; a share of the votes is flipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BoundsWorld:
    """One kind of world."""

    name: str
    """How the tables call it."""
    why: str
    """What it stands for, and what is expected there."""
    n_pairs: int
    """Votes to learn from, one a pair."""
    flip_frac: float = 0.25
    """Share of the votes that are flipped."""
    length_liking: float = 0.0
    """What all raters like in length (the last feature), as much as 1 sd of quality."""
    length_cost: float = 0.0
    """What gold loses by the square of the length."""
    n_features: int = 16
    """Features of a candidate; the last one is its length where length matters."""
    gain: float = 2.0
    """Logits a vote gives to one sd of what raters like."""


WORLDS = (
    BoundsWorld(
        "finite data",
        "few noisy votes and a flexible model: its errors are its own, other members make others, so averaging should help",
        n_pairs=600,
    ),
    BoundsWorld(
        "plenty of data",
        "a hundred times the votes: little error is left, so nothing is to be gained or lost",
        n_pairs=60_000,
    ),
    BoundsWorld(
        "shared misspecification",
        "all raters like length, which gold does not: every member errs alike; chosen to defeat ensembles and bounds",
        n_pairs=6000,
        length_liking=1.0,
        length_cost=0.25,
    ),
)


@dataclass(frozen=True, eq=False)
class Bounds:
    """One draw of a world: tastes, and the votes on pairs."""

    quality: np.ndarray
    """Weights of gold's linear part, norm 1, 0 at the length."""
    liking: np.ndarray
    """Weights of what raters like."""
    a: np.ndarray
    """Candidates shown as a, [pairs, d]."""
    b: np.ndarray
    """Candidates shown as b."""
    vote: np.ndarray
    """1 = a preferred."""


def draw_bounds(world: BoundsWorld, rng: np.random.Generator) -> Bounds:
    """Tastes and votes."""
    quality = rng.standard_normal(world.n_features)
    if world.length_liking or world.length_cost:
        quality[-1] = 0.0
    quality /= np.linalg.norm(quality)
    liking = quality.copy()
    liking[-1] += world.length_liking
    a, b = rng.standard_normal((2, world.n_pairs, world.n_features))
    p = 1 / (1 + np.exp(-world.gain * (a - b) @ liking))
    vote = rng.random(world.n_pairs) < p
    flipped = rng.random(world.n_pairs) < world.flip_frac
    return Bounds(quality, liking, a, b, (vote ^ flipped).astype(int))


def gold(world: BoundsWorld, drawn: Bounds, candidates: np.ndarray) -> np.ndarray:
    """Gold of candidates [n, d], in standard deviations of quality."""
    return candidates @ drawn.quality - world.length_cost * candidates[:, -1] ** 2
