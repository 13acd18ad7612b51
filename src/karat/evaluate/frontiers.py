"""Gold and proxy as functions of the distance moved: best-of-n curves and a policy's path, side by side.

Pure. Dimension letters: P prompts, N samples per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FrontierPoint:
    """One point of a gold-against-KL curve."""

    name: str
    """What was measured: `best-of-16`, `ppo step 40`."""
    kl: float
    """Distance from the reference policy, nats per sequence."""
    proxy: float
    """Mean learned score, optimiser's units."""
    gold: float | None
    """Mean gold reward; None where no gold is known."""


def interpolate_gold(path: Sequence[FrontierPoint], kl: float) -> float | None:
    """Gold at a given KL on a policy's path, linear in √KL between measured points; None outside the path."""
    points = sorted((math.sqrt(max(point.kl, 0.0)), point.gold) for point in path if point.gold is not None)
    distance = math.sqrt(kl)
    if not points or not points[0][0] <= distance <= points[-1][0]:
        return None
    return float(np.interp(distance, [d for d, _ in points], [gold for _, gold in points]))
