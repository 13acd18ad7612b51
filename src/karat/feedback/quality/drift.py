"""Has a rater changed? CUSUM charts of gold results and of residuals, with a stated rate of false alarms.

A chart sums what is worse than expected and forgets what is better; it alarms at a threshold that is solved for, so that
a rater who has not changed is flagged once in ARL₀ answers on average. An alarm asks a person to look, nothing more.
Knows one rater's results in the order in which she gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy import linalg, optimize
from scipy import stats as distributions

from karat.errors import ConvergenceError, InputError
from karat.records import Estimate

N_STATES = 201
"""States of the Markov chain of a chart of continuous increments; doubling it moves an ARL of 500 by less than 0.1 %."""
MOST_STATES = 4000
"""A chart of gold results that would need more is refused: the linear system would take minutes."""
SMALLEST_FRACTION = 60
"""Largest denominator of the reference value of a gold chart: makes its Markov chain exact and small."""
Cdf = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Chart:
    """One rater's chart."""

    path: tuple[float, ...]
    """Of the sum after each answer, 0 = as expected; of the larger side where both are watched."""
    threshold: float
    """Alarms are at or above it."""
    alarms: tuple[int, ...]
    """Places of the answers at which it alarmed; it starts again from 0 after each."""
    arl0: float
    """Answers between two false alarms on average, for a rater who has not changed."""
    n: int
    """Answers charted."""
    method: str
    """What was charted against what."""

    @property
    def false_alarms(self) -> float:
        """Alarms to be expected of a rater who has not changed, in as many answers: n / ARL₀."""
        return self.n / self.arl0


def gold_chart(passed: Sequence[bool], *, p0: float, p1: float, arl0: float = 500.0) -> Chart:
    """A chart of results on gold items that alarms when the share passed has fallen.

        S ← max(0, S + fail − γ)        γ between 1 − p0 and 1 − p1: the log-likelihood ratio's reference value

    γ is rounded to a fraction, so that S moves on a lattice and its ARL₀ is exact (a Markov chain, one linear system).

    Args:
        passed: in the order in which they were given.    p0: share passed by a rater as she should be (the pool's, or
            her own first results; an estimate of it that is too high makes false alarms more frequent).
        p1: share that should be noticed soon, < p0.    arl0: at least this many answers between false alarms.
    Returns: the chart; its `arl0` is the exact one of the smallest threshold that suffices.
    Raises: InputError unless 0 < p1 < p0 < 1 and arl0 > 1.
    Source: Reynolds & Stoumbos 1999, Journal of Quality Technology 31(1), pp. 87–108 (Bernoulli CUSUM).
    """
    if not 0 < p1 < p0 < 1:
        raise InputError(f"gold_chart: found p0 = {p0}, p1 = {p1}; expected 0 < p1 < p0 < 1")
    _check_arl(arl0)
    reference = bernoulli_reference(1 - p0, 1 - p1)
    unit = reference.denominator
    threshold, found = _bernoulli_threshold(1 - p0, reference, arl0)
    steps = np.where(np.asarray(passed, dtype=bool), -reference.numerator, unit - reference.numerator)
    path, alarms = _run(steps.astype(float), threshold)
    method = f"Bernoulli CUSUM of gold results, p0 = {p0:g}, p1 = {p1:g}, ARL₀ = {found:.0f} (exact)"
    return Chart(tuple(x / unit for x in path), threshold / unit, alarms, found, len(steps), method)


def residual_chart(
    residuals: Sequence[float],
    *,
    arl0: float = 500.0,
    shift: float = 1.0,
    two_sided: bool = False,
    null: Sequence[float] | None = None,
) -> Chart:
    """A chart of residuals against what the posterior expected, that alarms when their mean has moved.

        S⁻ ← max(0, S⁻ − z − shift/2)        two-sided also S⁺ ← max(0, S⁺ + z − shift/2)

    Args:
        residuals: (observed − expected) / standard deviation, in the order of her answers; below 0 = worse.
        shift: the change of the mean, in standard deviations, that should be noticed soon.
        two_sided: True = better alarms too (a rater who suddenly agrees with everybody).
        null: residuals of raters who have not changed, at least 200: their distribution instead of the normal one. Votes
            have few levels, so their residuals are not normal, and the normal threshold would not keep its promise.
    Returns: the chart; ARL₀ by a Markov chain of 201 states (Brook & Evans); for two sides 1/ARL₀ = 1/ARL⁻ + 1/ARL⁺.
    Raises: InputError for residuals that are not finite or too few `null` ones.
    Source: Page 1954, Biometrika 41, pp. 100–115; Brook & Evans 1972, Biometrika 59, pp. 539–549.
    """
    z = _finite("residual_chart", residuals)
    _check_arl(arl0)
    if not shift > 0:
        raise InputError(f"residual_chart: found a shift of {shift}; expected standard deviations above 0")
    reference = shift / 2
    signs = (-1.0, 1.0) if two_sided else (-1.0,)
    cdfs = [_increments(sign, reference, null) for sign in signs]

    def combined(threshold: float) -> float:
        return 1 / sum(1 / average_run_length(cdf, threshold) for cdf in cdfs)

    threshold = solve_threshold(combined, arl0)
    sides = [sign * z - reference for sign in signs]
    path, alarms = _run_sides(np.array(sides).reshape(len(signs), -1), threshold)
    shape = "normal" if null is None else f"{len(null)} residuals without change"
    sides_text = "both sides" if two_sided else "worsening only"
    method = f"CUSUM of residuals, {sides_text}, k = {reference:g}, null: {shape}, ARL₀ = {combined(threshold):.0f}"
    return Chart(path, threshold, alarms, combined(threshold), len(z), method)


def average_run_length(cdf: Cdf, threshold: float, n_states: int = N_STATES) -> float:
    """Answers until S ← max(0, S + increment) first reaches the threshold, from 0, on average.

        ARL = 1ᵀ-sum of (I − Q)⁻¹        Q_ij = F((j − i + ½)·w) − F((j − i − ½)·w),  Q_i0 = F((½ − i)·w)

    Args:
        cdf: of one increment.    threshold: > 0.    n_states: of the chain; w = threshold / (n_states − ½).
    Source: Brook & Evans 1972, Biometrika 59, pp. 539–549.
    """
    if not threshold > 0:
        raise InputError(f"average_run_length: found a threshold of {threshold}; expected above 0")
    width = threshold / (n_states - 0.5)
    steps = np.arange(-n_states + 0.5, n_states) * width  # upper edges of the moves −n+1 … n−1, with one below them
    at = np.asarray(cdf(steps), dtype=float)
    moves = np.diff(at)  # P(move by −n+1 … n−1 states)
    place = np.arange(n_states)
    chain = moves[place[None, :] - place[:, None] + n_states - 1]
    chain[:, 0] = at[n_states - place]
    length = linalg.solve(np.eye(n_states) - chain, np.ones(n_states))
    return float(length[0]) if length[0] > 0 else float("inf")


def gaussian_arl(threshold: float, reference: float, shift: float = 0.0) -> float:
    """Average run length of a one-sided CUSUM of standard normal values whose mean has moved by `shift`."""
    return average_run_length(lambda x: distributions.norm.cdf(x + reference - shift), threshold)


def bernoulli_arl(p: float, reference: Fraction, threshold: int) -> float:
    """Exact average run length of S ← max(0, S + X − γ) with X = 1 with probability p, from 0.

    Args:
        reference: γ as a fraction n/m.    threshold: in units of 1/m.
    """
    up, down = reference.denominator - reference.numerator, reference.numerator
    system = np.eye(threshold)
    state = np.arange(threshold)
    np.subtract.at(system, (state, np.maximum(state - down, 0)), 1 - p)
    inside = state + up < threshold
    np.subtract.at(system, (state[inside], state[inside] + up), p)
    length = np.linalg.solve(system, np.ones(threshold))
    return float(length[0])


def bernoulli_reference(p0: float, p1: float) -> Fraction:
    """The reference value γ between two probabilities of a failure, as a fraction with a small denominator.

    γ = log((1 − p0) / (1 − p1)) / log(p1·(1 − p0) / (p0·(1 − p1)))
    """
    exact = np.log((1 - p0) / (1 - p1)) / np.log(p1 * (1 - p0) / (p0 * (1 - p1)))
    for limit in range(1, SMALLEST_FRACTION + 1):
        found = Fraction(float(exact)).limit_denominator(limit)
        if p0 < found < p1 and abs(float(found) - exact) < 0.1 * min(exact - p0, p1 - exact):
            return found
    raise InputError(
        f"found failure rates of {p0:g} and {p1:g}, too close for a chart; expected rates that differ by more"
    )


def solve_threshold(arl: Callable[[float], float], arl0: float) -> float:
    """The threshold at which a run length, which grows with it, is `arl0`.

    Raises: ConvergenceError where no threshold up to 1,000 reaches it.
    """
    high = 1.0
    while arl(high) < arl0:
        high *= 1.5
        if high > 1000:
            raise ConvergenceError(
                f"solve_threshold: no threshold below 1,000 has an ARL₀ of {arl0}; give a smaller one"
            )
    low = high
    while arl(low) > arl0 and low > 1e-3:
        low /= 1.5
    if arl(low) > arl0:
        return low
    return float(optimize.brentq(lambda h: np.log(arl(h) / arl0), low, high, xtol=1e-4))


def simulated_arl(
    increments: Callable[[np.random.Generator, int], np.ndarray],
    threshold: float,
    rng: np.random.Generator,
    *,
    n_runs: int = 400,
    longest: int = 20_000,
) -> Estimate:
    """The average run length of a chart by simulation, with its interval: what a solved threshold is checked against.

    Args:
        increments: (rng, n) → n increments of raters who have not changed.
        n_runs: charts run to their first alarm.    longest: answers after which a run is cut off.
    Returns: mean with a 95 % normal interval; value None where runs were cut off, for their mean is not known.
    """
    level, length = np.zeros(n_runs), np.zeros(n_runs, dtype=int)
    running = np.arange(n_runs)
    for _ in range(longest):
        if not len(running):
            break
        length[running] += 1
        level[running] = np.maximum(0.0, level[running] + increments(rng, len(running)))
        running = running[level[running] < threshold]
    if len(running):
        return Estimate(
            None, None, None, n_runs, f"undefined: {len(running)} of {n_runs} runs reached {longest} answers"
        )
    half = 1.96 * float(length.std(ddof=1)) / n_runs**0.5
    mean = float(length.mean())
    return Estimate(mean, mean - half, mean + half, n_runs, "mean run length of simulated charts, 95 % normal interval")


def _increments(sign: float, reference: float, null: Sequence[float] | None) -> Cdf:
    if null is None:
        return lambda x: distributions.norm.cdf(x + reference)
    values = _finite("residual_chart", null)
    if len(values) < 200:
        raise InputError(f"residual_chart: found {len(values)} null residuals; expected at least 200")
    ordered = np.sort(sign * values - reference)
    return lambda x: np.searchsorted(ordered, x, side="right") / len(ordered)


def _bernoulli_threshold(p: float, reference: Fraction, arl0: float) -> tuple[int, float]:
    low, high = 0, reference.denominator
    while (found := bernoulli_arl(p, reference, high)) < arl0:
        low, high = high, 2 * high
        if high > MOST_STATES:
            raise ConvergenceError(f"gold_chart: an ARL₀ of {arl0} needs over {MOST_STATES} states; give a smaller one")
    while high - low > 1:
        middle = (low + high) // 2
        at_middle = bernoulli_arl(p, reference, middle)
        if at_middle < arl0:
            low = middle
        else:
            high, found = middle, at_middle
    return high, found


def _run(steps: np.ndarray, threshold: float) -> tuple[tuple[float, ...], tuple[int, ...]]:
    return _run_sides(steps[None, :], threshold)


def _run_sides(steps: np.ndarray, threshold: float) -> tuple[tuple[float, ...], tuple[int, ...]]:
    level = np.zeros(len(steps))
    path, alarms = [], []
    for place in range(steps.shape[1]):
        level = np.maximum(0.0, level + steps[:, place])
        path.append(float(level.max()))
        if level.max() >= threshold:
            alarms.append(place)
            level = np.zeros(len(steps))
    return tuple(path), tuple(alarms)


def _finite(caller: str, values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise InputError(
            f"{caller}: found values that are not finite numbers in a row; expected one residual an answer"
        )
    return found


def _check_arl(arl0: float) -> None:
    if not arl0 > 1:
        raise InputError(f"found an ARL₀ of {arl0}; expected answers between two false alarms, above 1")
