"""An invented world with a known gold reward, and its people. Pure: numbers and words only."""

from karat.sandbox.gold import PARTS, TOPICS, Claim, GoldWeights, ParsedResponse, Question
from karat.sandbox.marking import Sentence, rater_marks, true_marks
from karat.sandbox.raters import (
    PopulationConfig,
    RaterPopulation,
    RaterTraits,
    Tastes,
    careful_population,
    default_population,
    length_liking,
    unchecked_facts,
)
from karat.sandbox.world import World, WorldConfig
from karat.sandbox.writing import Scale, Scales, corrected, demonstrated

__all__ = [
    "PARTS",
    "TOPICS",
    "Claim",
    "GoldWeights",
    "ParsedResponse",
    "PopulationConfig",
    "Question",
    "RaterPopulation",
    "RaterTraits",
    "Scale",
    "Scales",
    "Sentence",
    "Tastes",
    "World",
    "WorldConfig",
    "careful_population",
    "corrected",
    "default_population",
    "demonstrated",
    "length_liking",
    "rater_marks",
    "true_marks",
    "unchecked_facts",
]
