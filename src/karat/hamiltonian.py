"""Draws from a smooth density by Hamiltonian Monte Carlo: one chain after the other, and whether they agree.

Knows a function that gives log density and gradient; knows nothing about what is drawn.

Dimension letters: M chains, S draws of each, d dimensions.

Source: Neal 2011, arXiv:1206.1901 (leapfrog, §5.2); Hoffman & Gelman 2014, JMLR 15, algorithm 5 (step size by dual
    averaging); Vehtari et al. 2021, arXiv:1903.08008 §3 (R̂ of split chains).
Differs: a trajectory has a fixed length with jitter instead of an adaptive one, and some are of short steps (Neal, §4.2); R̂ without rank normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from karat.errors import ConvergenceError, InputError

Density = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""log density up to a constant, and its gradient."""
Counted = Callable[[int, int], None]
"""Hears how many draws of how many are made."""

TARGET_ACCEPTANCE = 0.75
LENGTH = 1.6
"""Trajectory in units of a standard deviation: a quarter turn, after which a normal draw is independent of its start."""
MOST_STEPS = 40
FIRST_STEP = 0.03
SHORT, OFTEN = 0.2, 0.2
"""By how much, and in which share of the trajectories after the warm-up, steps are shorter. Where a density is stiffer than where the step was learned (a
noise near 0), every trajectory of one step length is refused, and a chain that came there stays for good; a short one leads on."""
WINDOWS = (0.15, 0.35, 0.7)
"""Shares of the warm-up between which the spread of each coordinate is learned, twice: the first time from a chain that knows none and creeps."""


@dataclass(frozen=True, eq=False)
class Chains:
    """What several chains drew."""

    draws: np.ndarray
    """[M, S, d]."""
    acceptance: float
    """Mean acceptance probability after the warm-up."""

    def pooled(self) -> np.ndarray:
        """All draws, [M·S, d]."""
        return self.draws.reshape(-1, self.draws.shape[-1])


def sample_chains(
    density: Density,
    start: np.ndarray,
    rng: np.random.Generator,
    *,
    n_chains: int,
    n_warm: int,
    n_draws: int,
    counted: Counted | None = None,
) -> Chains:
    """Draws of a density whose coordinates have spreads within a few orders of magnitude of 1.

    The step size is adapted throughout the warm-up; the spread of each coordinate is learned twice on the way (`WINDOWS`).

    Args:
        start: [d], around which chains start, a tenth of a unit away.    n_warm: ≥ 20, thrown away.
        counted: hears of every draw of every chain, those of the warm-up included.
    Raises: InputError for too few draws; ConvergenceError where the density is not finite at the start, or no step is
        accepted.
    """
    if n_chains < 1 or n_warm < 20 or n_draws < 4:
        raise InputError(f"sample_chains: found {n_chains} chains, {n_warm} + {n_draws} draws; expected ≥ 1, ≥ 20, ≥ 4")
    each, found = n_warm + n_draws, []
    for chain in range(n_chains):
        tell = partial(_tell, counted, chain * each, n_chains * each)
        found.append(_chain(density, start + 0.1 * rng.standard_normal(len(start)), rng, n_warm, n_draws, tell))
    acceptance = float(np.mean([accepted for _, accepted in found]))
    if acceptance < 0.2:
        raise ConvergenceError(f"sample_chains: {acceptance:.2f} of the steps were accepted; expected about 0.8")
    return Chains(np.stack([draws for draws, _ in found]), acceptance)


def split_rhat(draws: np.ndarray) -> np.ndarray:
    """R̂ of each coordinate: √(between + within over within) of half chains; 1 = they agree.

        R̂² = (n − 1)/n + B/(n·W)        B = n·Var of the half chains' means, W = mean of their variances

    Args:
        draws: [M, S, d], S ≥ 4.
    """
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, half : 2 * half]])
    within = halves.var(1, ddof=1).mean(0)
    between = halves.mean(1).var(0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(within > 0, np.sqrt((half - 1) / half + between / within), 1.0)


def _tell(counted: Counted | None, before: int, of: int, number: int) -> None:
    if counted is not None:
        counted(before + number, of)


def _chain(
    density: Density,
    x: np.ndarray,
    rng: np.random.Generator,
    n_warm: int,
    n_draws: int,
    tell: Callable[[int], None],
) -> tuple[np.ndarray, float]:
    value, gradient = density(x)
    if not (math.isfinite(value) and np.isfinite(gradient).all()):
        raise ConvergenceError("sample_chains: the density is not finite where the chain starts; look at the start")
    spread, seen = np.ones(len(x)), []
    kept, accepted = np.empty((n_draws, len(x))), []
    windows = [round(share * n_warm) for share in WINDOWS]
    step = _StepSize(FIRST_STEP)
    for number in range(n_warm + n_draws):
        warm = number < n_warm
        size = step.now if warm else step.settled
        n_steps = min(max(1, round(LENGTH * rng.uniform(0.7, 1.3) / size)), MOST_STEPS)
        if not warm and rng.random() < OFTEN:  # as many steps: it costs the same
            size *= SHORT
        momentum = rng.standard_normal(len(x))
        proposed = _trajectory(density, x, gradient, momentum, size * spread, n_steps)
        gain = proposed[1] - value + float(momentum @ momentum - proposed[3] @ proposed[3]) / 2
        chance = math.exp(min(0.0, gain)) if math.isfinite(gain) else 0.0
        if rng.random() < chance:
            x, value, gradient = proposed[:3]
        if warm:
            step.learn(chance)
            if windows[0] <= number < windows[-1]:
                seen.append(x)
            if number + 1 in windows[1:]:
                variance, n = np.var(seen, axis=0), len(seen)
                spread = np.sqrt((n * variance + 5e-3 * 5) / (n + 5))  # Stan's shrinkage towards small
                step, seen = _StepSize(step.settled), []
        else:
            kept[number - n_warm] = x
            accepted.append(chance)
        tell(number + 1)
    return kept, float(np.mean(accepted))


def _trajectory(
    density: Density, x: np.ndarray, gradient: np.ndarray, momentum: np.ndarray, size: np.ndarray, n_steps: int
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Where n leapfrog steps lead: position, log density, gradient, momentum."""
    momentum, value = momentum + size * gradient / 2, -math.inf
    for number in range(n_steps):
        x = x + size * momentum
        value, gradient = density(x)
        if not math.isfinite(value):
            break
        momentum = momentum + size * gradient * (0.5 if number + 1 == n_steps else 1.0)
    return x, value, gradient, momentum


class _StepSize:
    """Dual averaging of the logarithm of the step size."""

    def __init__(self, first: float) -> None:
        self.centre, self.now, self.settled = math.log(10 * first), first, first
        self.shortfall, self.count = 0.0, 0

    def learn(self, chance: float) -> None:
        """One more acceptance probability."""
        self.count += 1
        self.shortfall += (TARGET_ACCEPTANCE - chance - self.shortfall) / (self.count + 10)
        log_now = self.centre - math.sqrt(self.count) / 0.05 * self.shortfall
        share = self.count**-0.75
        self.settled = math.exp(share * log_now + (1 - share) * math.log(self.settled))
        self.now = math.exp(log_now)
