"""How far more votes would carry a reward model: a power law through measured held-out accuracies, with its doubt.

Extrapolates, and says how badly: where the curve's end is not known, neither is the number of votes. Knows numbers of
votes and accuracies. Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from karat.errors import ConvergenceError, InputError
from karat.records import Estimate
from karat.resampling import finite_row

LEVEL = 0.95
EXPONENTS = (0.05, 2.0)
"""Exponents considered: measured ones lie between 0.1 and 1 (Hestness et al. 2017, arXiv:1712.00409)."""
FARTHEST = 1e9
"""More votes than this are "never"."""


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Held-out accuracy as a function of votes: c − a·n^(−b)."""

    ceiling: float
    """c: accuracy with endless votes; never above 1."""
    gap: float
    """a ≥ 0."""
    exponent: float
    """b > 0."""
    draws: np.ndarray
    """(c, a, b) fitted to redrawn measurements, one a row."""
    n_points: int
    """Measurements it was fitted to."""
    most_votes: float
    """The largest number of votes measured: beyond it everything is extrapolation."""

    def accuracy_at(self, n_votes: float) -> Estimate:
        """Accuracy to be expected of `n_votes`, with a 95 % interval."""
        value = self.ceiling - self.gap * n_votes**-self.exponent
        drawn = self.draws[:, 0] - self.draws[:, 1] * n_votes ** -self.draws[:, 2]
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(float(value), float(low), float(high), self.n_points, self._method(n_votes))

    def votes_for(self, accuracy: float) -> Estimate:
        """Votes that the accuracy needs, with a 95 % interval.

        Returns: value None where the fitted ceiling is below it; `high` None where more than 2.5 % of the draws never
            reach it: then no number of votes can be promised.
        """
        value = _votes(accuracy, np.array([[self.ceiling, self.gap, self.exponent]]))[0]
        drawn = _votes(accuracy, self.draws)
        never = float((drawn >= FARTHEST).mean())
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if value >= FARTHEST:
            reason = f"undefined: the fitted ceiling is {self.ceiling:.3f}; {never:.0%} of the draws never reach {accuracy:g}"
            return Estimate(None, float(low) if low < FARTHEST else None, None, self.n_points, reason)
        top = None if high >= FARTHEST else float(high)
        doubt = f"; {never:.0%} of the draws never reach it" if never else ""
        return Estimate(float(value), float(low), top, self.n_points, self._method(value) + doubt)

    def _method(self, n_votes: float) -> str:
        beyond = f", {n_votes / self.most_votes:.1f}-fold extrapolation" if n_votes > self.most_votes else ""
        return f"power law through {self.n_points} measurements, {LEVEL:.0%} parametric bootstrap{beyond}"


def fit_learning_curve(
    n_votes: ArrayLike, accuracy: ArrayLike, standard_error: ArrayLike, rng: np.random.Generator, *, n_draws: int = 300
) -> LearningCurve:
    """The power law c − a·n^(−b) nearest to measured accuracies, weighted by their standard errors.

    Args:
        n_votes: training votes of each measurement, > 0, at least three different numbers.
        accuracy: held-out, in [0, 1].    standard_error: of each, > 0.    rng: redraws the measurements.
    Raises: InputError for fewer than three numbers of votes; ConvergenceError where the fit fails.
    Source: Hestness et al. 2017, arXiv:1712.00409; Viering & Loog 2023, IEEE TPAMI 45(6), section 4 (power laws
        extrapolate well, not always).
    """
    n, y, se = (finite_row("fit_learning_curve", column) for column in (n_votes, accuracy, standard_error))
    if not n.shape == y.shape == se.shape or len(np.unique(n)) < 3 or n.min() <= 0 or se.min() <= 0:
        raise InputError(
            f"fit_learning_curve: found {len(np.unique(n))} different numbers of votes; expected 3 or more, above 0, "
            "each with an accuracy and a standard error above 0"
        )
    best = _fit(n, y, se, None)
    draws = np.array([_fit(n, y + se * rng.standard_normal(len(y)), se, best) for _ in range(n_draws)])
    return LearningCurve(*map(float, best), draws, len(n), float(n.max()))


def _fit(n: np.ndarray, y: np.ndarray, se: np.ndarray, start: np.ndarray | None) -> np.ndarray:
    scale = float(np.exp(np.log(n).mean()))  # around the middle of the data, a and b are nearly uncorrelated

    def rest(x: np.ndarray) -> np.ndarray:
        return (x[0] - x[1] * (n / scale) ** -x[2] - y) / se

    starts = [(min(float(y.max()) + 0.02, 0.99), 0.05, b) for b in (0.2, 0.5, 1.0)]
    if start is not None:
        starts = [(start[0], start[1] * scale ** -start[2], start[2])]
    bounds = ([0.0, 0.0, EXPONENTS[0]], [1.0, 1.0, EXPONENTS[1]])
    inside = [np.clip(one, np.array(bounds[0]) + 1e-6, np.array(bounds[1]) - 1e-6) for one in starts]
    found = [optimize.least_squares(rest, one, bounds=bounds, x_scale=(0.1, 0.1, 1.0)) for one in inside]
    best = min(found, key=lambda one: one.cost)
    if not best.success:
        raise ConvergenceError(f"fit_learning_curve: {best.message}; measure more numbers of votes")
    c, a, b = best.x
    return np.array([c, a * scale**b, b])


def _votes(accuracy: float, draws: np.ndarray) -> np.ndarray:
    c, a, b = draws.T
    room = c - accuracy
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        log_n = (np.log(np.maximum(a, 1e-12)) - np.log(np.maximum(room, 1e-300))) / b
    found = np.exp(np.minimum(log_n, np.log(FARTHEST)))
    return np.where(room > 0, np.maximum(found, 1.0), FARTHEST)
