"""Candidates to choose the best of: do ensembles and lower bounds protect from over-optimisation?

A candidate is x ~ N(0, I). Gold is linear in its qualities, with standard deviation 1 over candidates; where the world
has a length, gold loses its square. Raters vote on random pairs by what they like; a share of the votes is flipped.

Where the world has strangeness, its last features hardly vary in the texts that are voted on. A few candidates are
strange: there these features are large, as in texts that only an optimised policy writes, and gold loses their square.
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
    n_strange: int = 0
    """The last features that only strange candidates have; gold's linear part does not read them."""
    strange_frac: float = 0.0
    """Share of the candidates that are strange; of the texts that are voted on none is."""
    strange_scale: float = 3.0
    """Their standard deviation in strange candidates."""
    usual_scale: float = 0.1
    """Their standard deviation in all other texts."""
    strange_cost: float = 0.0
    """What gold loses by the sum of their squares."""


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
    BoundsWorld(
        "strange texts",
        "one candidate in twenty is of a kind that nobody voted on and that is bad: what a single model says of it is an "
        "accident, and members disagree. Added after the others had been measured, because none of them can show the claim",
        n_pairs=600,
        n_strange=8,
        strange_frac=0.05,
        strange_cost=0.03,
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
    if world.n_strange:
        quality[-world.n_strange :] = 0.0
    quality /= np.linalg.norm(quality)
    liking = quality.copy()
    liking[-1] += world.length_liking
    a, b = rng.standard_normal((2, world.n_pairs, world.n_features))
    if world.n_strange:
        a[:, -world.n_strange :] *= world.usual_scale
        b[:, -world.n_strange :] *= world.usual_scale
    p = 1 / (1 + np.exp(-world.gain * (a - b) @ liking))
    vote = rng.random(world.n_pairs) < p
    flipped = rng.random(world.n_pairs) < world.flip_frac
    return Bounds(quality, liking, a, b, (vote ^ flipped).astype(int))


def draw_candidates(world: BoundsWorld, n: int, rng: np.random.Generator) -> np.ndarray:
    """Texts to choose from, [n, d]."""
    x = rng.standard_normal((n, world.n_features))
    if world.n_strange:
        strange = rng.random(n) < world.strange_frac
        x[:, -world.n_strange :] *= np.where(strange, world.strange_scale, world.usual_scale)[:, None]
    return x


def gold(world: BoundsWorld, drawn: Bounds, candidates: np.ndarray) -> np.ndarray:
    """Gold of candidates [n, d], in standard deviations of quality."""
    strange = candidates[:, world.n_features - world.n_strange :]
    lost = world.length_cost * candidates[:, -1] ** 2 + world.strange_cost * (strange**2).sum(1)
    return candidates @ drawn.quality - lost
