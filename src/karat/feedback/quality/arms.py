"""What a randomised arm did: pay, guideline version or interface, measured on raters, who were randomised.

The rater is the unit, however many votes she gave: votes of one rater are not independent, and to count them as if they
were finds effects where there are none. Knows one number a row, the rater, and her arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions

from karat.errors import InputError
from karat.records import Estimate
from karat.resampling import draw_chunks

LEVEL = 0.95
FEWEST = 2
"""Raters an arm needs for an interval; below, its mean stands alone."""


@dataclass(frozen=True)
class ArmEffect:
    """One arm beside the reference."""

    arm: str
    """Its name."""
    mean: Estimate
    """Mean over its raters of each rater's own mean."""
    difference: Estimate | None
    """Its mean minus the reference's; None for the reference itself."""
    p_value: float | None
    """Permutation test of no difference from the reference, two-sided; None for the reference."""

    @property
    def verdict(self) -> str:
        """What can be said of the difference, in words; "" for the reference.

        It is told from 0 only where interval and test both say so: with few raters Welch's interval can be too narrow.
        """
        gap = self.difference
        if gap is None or gap.value is None:
            return ""
        if gap.low is None or gap.high is None:
            return "cannot be told"
        if gap.low <= 0 <= gap.high or (self.p_value or 0.0) > 1 - LEVEL:
            return "not distinguishable from 0"
        return "above 0" if gap.value > 0 else "below 0"


@dataclass(frozen=True)
class ArmReport:
    """All arms of one experiment on one outcome."""

    arms: tuple[ArmEffect, ...]
    """The reference first, then the others by name."""
    p_value: float | None
    """Permutation test that all arms are alike; None with fewer than two arms of two raters."""
    n_raters: int
    """Raters that count."""
    method: str
    """Which test, with how many draws."""


def arm_effect(
    outcomes: Sequence[float],
    annotator: Sequence[str],
    arm_of: Mapping[str, str],
    rng: np.random.Generator,
    *,
    reference: str | None = None,
    strata: Mapping[str, str] | None = None,
    n_draws: int = 10_000,
    unit: str = "rater",
) -> ArmReport:
    """The effect of each arm on an outcome of raters: agreement with others, seconds an answer, level of strength.

        difference = mean_w∈arm ȳ_w − mean_w∈reference ȳ_w        Welch's t interval over raters
        p = (1 + #{permutations of arms among raters as far from 0}) / (1 + n_draws)

    Args:
        outcomes: one number a row (a vote, or already one a rater); rows that are not finite are refused.
        annotator: the rater of each row.    arm_of: her arm; raters in no arm are left out.
        reference: the arm compared with; None = the first by name.
        strata: raters are permuted within these groups only, as they were randomised; None = all together.
        unit: what was drawn, in words of the method: where tasks were, `annotator` names tasks.
    Raises: InputError for no raters in any arm, an unknown reference, or outcomes that are not finite.
    Source: Fisher 1935, The Design of Experiments, section 21; Welch 1947, Biometrika 34, pp. 28–35.
    """
    y = np.asarray(outcomes, dtype=float)
    if y.shape != (len(annotator),) or not np.isfinite(y).all():
        raise InputError(
            f"arm_effect: found {y.shape} outcomes of {len(annotator)} rows; expected one finite number each"
        )
    raters = sorted({one for one in annotator if one in arm_of})
    if not raters:
        raise InputError("arm_effect: found no rater in any arm; expected arm_of to name the arms of these raters")
    place = {rater: i for i, rater in enumerate(raters)}
    rows = np.array([place.get(one, -1) for one in annotator])
    counted = rows >= 0
    means = np.bincount(rows[counted], y[counted], len(raters)) / np.bincount(rows[counted], minlength=len(raters))
    names = sorted({arm_of[one] for one in raters})
    reference = names[0] if reference is None else reference
    if reference not in names:
        raise InputError(f"arm_effect: found no rater in the reference arm {reference!r}; arms are {', '.join(names)}")
    names = [reference, *(name for name in names if name != reference)]
    arm = np.array([names.index(arm_of[one]) for one in raters])
    stratum = _codes(np.array([0 if strata is None else _stratum(strata, one) for one in raters]))
    _, overall = _permuted(means, arm, stratum, len(names), rng, n_draws)
    effects = [ArmEffect(reference, _mean(means[arm == 0], unit), None, None)]
    for i, name in enumerate(names[1:], start=1):
        # only these two arms are shuffled: a third arm's effect would widen the null
        both = (arm == 0) | (arm == i)
        two = (arm[both] == i).astype(int)
        drawn, _ = _permuted(means[both], two, stratum[both], 2, rng, n_draws)
        observed = abs(means[arm == i].mean() - means[arm == 0].mean())
        gap = np.abs(drawn[:, 1] - drawn[:, 0]) >= observed * (1 - 1e-12) - 1e-15
        p = (1 + int(gap.sum())) / (1 + n_draws)
        gap_now = _difference(means[arm == i], means[arm == 0], unit)
        effects.append(ArmEffect(name, _mean(means[arm == i], unit), gap_now, p))
    within = "" if strata is None else ", within strata"
    method = f"permutation of {unit}s among arms{within}, {n_draws} draws; Welch's t intervals, {LEVEL:.0%}"
    return ArmReport(tuple(effects), overall, len(raters), method)


def _stratum(strata: Mapping[str, str], rater: str) -> str:
    """The stratum of a rater. Raises: InputError where she has none."""
    if rater not in strata:
        raise InputError(
            f"arm_effect: found no stratum for the rater {rater!r}; expected one for every rater in an arm"
        )
    return strata[rater]


def _permuted(
    means: np.ndarray, arm: np.ndarray, stratum: np.ndarray, n_arms: int, rng: np.random.Generator, n_draws: int
) -> tuple[np.ndarray, float | None]:
    """Means of the arms on each permutation, and the p-value of all arms alike."""
    drawn = []
    for size in draw_chunks(n_draws, len(means)):
        shuffled = np.tile(arm, (size, 1))
        for one in np.unique(stratum):
            mine = np.flatnonzero(stratum == one)
            shuffled[:, mine] = rng.permuted(shuffled[:, mine], axis=1)
        drawn.append(_means(means, shuffled, n_arms))
    found = np.concatenate(drawn)
    n = np.bincount(arm, minlength=n_arms)
    if n_arms < 2 or (n >= FEWEST).sum() < 2:
        return found, None
    spread = (n * (found - means.mean()) ** 2).sum(axis=1)
    observed = float((n * (_means(means, arm[None, :], n_arms)[0] - means.mean()) ** 2).sum())
    return found, (1 + int((spread >= observed * (1 - 1e-12) - 1e-15).sum())) / (1 + n_draws)


def _means(means: np.ndarray, arms: np.ndarray, n_arms: int) -> np.ndarray:
    return np.stack(
        [np.where(arms == one, means, 0.0).sum(axis=1) / (arms == one).sum(axis=1) for one in range(n_arms)], 1
    )


def _mean(values: np.ndarray, unit: str) -> Estimate:
    mean, n = float(values.mean()), len(values)
    if n < FEWEST:
        return Estimate(mean, None, None, n, f"mean over {unit}s; no interval: found 1 {unit}, an interval needs 2")
    if not np.ptp(values) > 0:
        # a width of 0 would promise that the next one is the same
        return Estimate(mean, None, None, n, f"mean over {unit}s; no interval: {unit}s are all alike")
    half = float(distributions.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / n**0.5)
    return Estimate(mean, mean - half, mean + half, n, f"mean over {unit}s, Student t interval, {LEVEL:.0%}")


def _difference(a: np.ndarray, b: np.ndarray, unit: str) -> Estimate:
    value, n = float(a.mean() - b.mean()), len(a) + len(b)
    if min(len(a), len(b)) < FEWEST:
        return Estimate(value, None, None, n, f"difference over {unit}s; no interval: an arm has fewer than 2 {unit}s")
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    if not parts.sum() > 0:
        return Estimate(value, None, None, n, f"difference over {unit}s; no interval: {unit}s of an arm are all alike")
    freedom = parts.sum() ** 2 / (parts**2 / np.array([len(a) - 1, len(b) - 1])).sum()
    half = float(distributions.t.ppf((1 + LEVEL) / 2, freedom) * parts.sum() ** 0.5)
    return Estimate(value, value - half, value + half, n, f"difference over {unit}s, Welch's t interval, {LEVEL:.0%}")


def _codes(groups: np.ndarray) -> np.ndarray:
    return np.unique(groups, return_inverse=True)[1]
