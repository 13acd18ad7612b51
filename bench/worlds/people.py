"""Populations whose members want different things, and raters of different competence.

A pair is a difference of features x ~ N(0, 1), scaled by the world; a person's reward is linear, r_u = θ_u·φ, and she
votes by the ordinal link with three levels, ties within ± 0.4 logits. Accuracy is that of the sign on fresh ordinary
pairs, against what she truly prefers, without the noise of votes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TasteWorld:
    """One kind of population."""

    name: str
    """How the tables call it."""
    why: str
    """What it stands for, and what is expected there."""
    n_directions: int
    """Directions in which people differ continuously."""
    spread: float
    """Their sd in each of these directions, logits."""
    minority_frac: float = 0.0
    """Share of a group that wants the opposite in the main direction."""
    n_people: int = 120
    """People whose votes the population is fitted on."""
    n_votes: int = 40
    """Votes of each."""
    n_features: int = 12
    """Features of a pair."""
    twin_frac: float = 0.0
    """Share of the pairs that could be asked that are nearly the same response twice (a tenth of the size)."""
    pair_scale: float = 1.0
    """Size of the pairs that are voted on: 1 = ordinary, 0.25 = nearly ties."""

    def draw(self, rng: np.random.Generator, n_people: int) -> np.ndarray:
        """[n, d] weights of people; what is shared belongs to the world, so draw all people at once."""
        d = self.n_features
        main, *others = np.linalg.qr(rng.normal(size=(d, d)))[0].T
        shared = 0.7 * np.sum(others[: d // 3], axis=0) / (d // 3) ** 0.5
        sign = np.where(rng.random(n_people) < self.minority_frac, -1.0, 1.0)
        tastes = rng.normal(size=(n_people, self.n_directions)) * self.spread
        strength = 1.6 if self.minority_frac else 0.0  # the minority is as decided as the majority
        return shared + np.outer(sign * strength, main) + tastes @ np.array(others[: self.n_directions]).reshape(-1, d)


GROUPS = (
    TasteWorld(
        "two groups",
        "a fifth of the people wants the opposite of the others: one reward serves the majority",
        n_directions=1,
        spread=0.4,
        minority_frac=0.2,
    ),
    TasteWorld(
        "continuous",
        "nobody belongs to a group, tastes spread along three directions: one reward serves who is near the middle",
        n_directions=3,
        spread=1.6,
    ),
    TasteWorld(
        "every direction, few votes",
        "people differ in as many directions as pairs have features and give eight votes each: chosen to defeat low rank",
        n_directions=11,
        spread=0.8,
        n_votes=8,
    ),
)

PERSONAL = (
    GROUPS[1],
    TasteWorld(
        "mostly twins",
        "a sharpened policy mostly writes the same thing twice: a random question wastes her answer",
        n_directions=3,
        spread=1.6,
        twin_frac=0.85,
    ),
    TasteWorld(
        "a group and directions",
        "a fifth wants the opposite, and within groups people differ: the first questions decide the group",
        n_directions=2,
        spread=1.0,
        minority_frac=0.2,
    ),
    TasteWorld(
        "near ties",
        "all pairs that could be asked are nearly ties, none tells more than another: chosen to defeat asking well",
        n_directions=3,
        spread=1.6,
        pair_scale=0.25,
    ),
)


@dataclass(frozen=True)
class CompetenceWorld:
    """Raters with a planted competence, 30 votes each."""

    name: str
    """How the tables call it."""
    why: str
    """What it stands for, and what is expected there."""
    n_levels: int
    """Levels of the scale."""
    score_sd: float
    """sd of the responses' scores, logits."""
    per_prompt: int | None = None
    """Responses to a prompt, compared only with one another; None = all with all."""
    n_scores: int = 40
    """Responses."""
    competence_sd: float = 0.8
    """Planted sd of competence around 1."""
    n_raters: int = 100
    """Raters."""
    n_votes: int = 30
    """Votes of each rater."""


COMPETENCE = (
    CompetenceWorld(
        "all with all",
        "forty responses, all compared with all on five levels",
        n_levels=5,
        score_sd=2.0,
    ),
    CompetenceWorld(
        "prompts of four",
        "four responses a prompt on three levels, as a policy's samples are",
        n_levels=3,
        score_sd=2.0,
        per_prompt=4,
        n_scores=200,
    ),
    CompetenceWorld(
        "near ties",
        "responses that hardly differ: competence shows in no vote; chosen to defeat it",
        n_levels=5,
        score_sd=0.4,
    ),
)
