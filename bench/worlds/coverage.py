"""Sandbox populations whose true utility an interval should cover.

The target is the mean over the planted population of each rater's mean utility, as differences within prompts; gold is
measured beside it. Votes are drawn as simulated raters draw them: tastes, attention, competence, side bias and lapses
of each rater, three levels.
"""

from __future__ import annotations

from dataclasses import dataclass

from karat.sandbox import PopulationConfig, careful_population, default_population, unchecked_facts


@dataclass(frozen=True)
class CoverageWorld:
    """One population."""

    name: str
    """How the tables call it."""
    why: str
    """What it stands for, and what is expected there."""
    population: PopulationConfig
    """Its raters."""
    n_prompts: int = 300
    """Prompts that are voted on."""
    n_votes: int = 1200
    """Votes in all, each by a rater drawn at random."""
    n_samples: int = 4
    """Responses to each prompt, by the demonstrator."""
    n_test: int = 1500
    """Pairs on other prompts that coverage is counted on."""
    tie_width: float = 0.4
    """Half-width of the tie region in logits."""


WORLDS = (
    CoverageWorld(
        "careful",
        "raters who check every fact and differ only in taste, competence and noise: both targets should be covered",
        careful_population(),
    ),
    CoverageWorld(
        "unchecked facts",
        "raters who check nothing: their own utility should be covered, gold should not",
        unchecked_facts(),
    ),
    CoverageWorld(
        "realistic",
        "groups far apart, attention that comes and goes from text to text, hidden facts: no likelihood of one utility fits; chosen to defeat the interval",
        default_population(),
    ),
)
