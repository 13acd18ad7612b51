"""How questions are chosen, by name, and how many stay random. Knows no belief and no question."""

from __future__ import annotations

from typing import Literal

Strategy = Literal["random", "bald", "variance"]
STRATEGIES = ("random", "bald", "variance")
LEAST_RANDOM = 0.1
"""Smallest share of a batch that is drawn at random: held-out figures, calibration and the gate need it."""
