"""Jaakkola and Jordan's bound on the ordinal link: what makes every step of the users' EM closed form.

    log σ(t) ≥ log σ(ξ) + (t − ξ)/2 − λ(ξ)·(t² − ξ²)        λ(ξ) = tanh(ξ/2)/(4ξ)

A vote is two sigmoids, log P = log σ(u − η) + log σ(η − l) + log(1 − e^{l − u}), so two bounds make it quadratic in η.
Knows means and variances of η; knows nothing about who voted or what η is made of.

Source: Jaakkola & Jordan 2000, Statistics and Computing 10, pp. 25–37.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_expit

from karat.reward.linear_votes import STEP_RATE, STEP_SHAPE, edges, step_log_prior, step_matrix


@dataclass(frozen=True, eq=False)
class Expected:
    """The bound at its tightest for η ~ N(mean, var): linear·η − weight·η²/2 + const, and its expectation."""

    weight: np.ndarray
    """[C] curvature of the bound in η."""
    linear: np.ndarray
    """[C] slope of the bound in η at 0."""
    upper: np.ndarray
    """[C] λ at the cutpoint above, 0 where there is none."""
    lower: np.ndarray
    """[C] λ at the cutpoint below, 0 where there is none."""
    value: np.ndarray
    """[C] expectation of the bound."""


def expected_terms(mean: np.ndarray, var: np.ndarray, level: np.ndarray, cuts: np.ndarray) -> Expected:
    """The terms at ξ_u² = E[(u − η)²], ξ_l² = E[(η − l)²], where the bound is tightest.

    There E[bound of log σ(t)] = log σ(ξ) + (E[t] − ξ)/2.
    """
    upper, lower = cuts[level + 1], cuts[level]
    has_upper, has_lower = np.isfinite(upper), np.isfinite(lower)
    u, low = np.where(has_upper, upper, 0.0), np.where(has_lower, lower, 0.0)
    at_upper, at_lower = np.sqrt((u - mean) ** 2 + var), np.sqrt((mean - low) ** 2 + var)
    by_upper, by_lower = np.where(has_upper, _lambda(at_upper), 0.0), np.where(has_lower, _lambda(at_lower), 0.0)
    with np.errstate(over="ignore"):
        value = np.log1p(-np.exp(lower - upper))
    value = value + has_upper * (log_expit(at_upper) + (u - mean - at_upper) / 2)
    value = value + has_lower * (log_expit(at_lower) + (mean - low - at_lower) / 2)
    linear = 2 * by_upper * u + 2 * by_lower * low + (has_lower.astype(float) - has_upper) / 2
    return Expected(2 * (by_upper + by_lower), linear, by_upper, by_lower, value)


def best_steps(steps: np.ndarray, mean: np.ndarray, terms: Expected, level: np.ndarray, n_levels: int) -> np.ndarray:
    """The steps between cutpoints at the maximum of the bound, all else held; concave, by Newton's method."""
    if not len(steps):
        return steps
    jacobian = step_matrix(n_levels)
    of_upper, of_lower = jacobian[level + 1], jacobian[level]
    gap = of_upper - of_lower
    inner = ((level > 0) & (level < n_levels - 1)).astype(float)  # only there is log(1 − e^{l − u}) not 0

    def value(s: np.ndarray) -> float:
        u, low = of_upper @ s, of_lower @ s
        width = np.where(inner > 0, gap @ s, 1.0)
        found = u / 2 - terms.upper * (u - mean) ** 2 - low / 2 - terms.lower * (mean - low) ** 2
        return float((found + inner * np.log1p(-np.exp(-width))).sum()) + step_log_prior(s)

    now = value(steps)
    for _ in range(50):
        u, low, width = of_upper @ steps, of_lower @ steps, np.where(inner > 0, gap @ steps, 1.0)
        inverse = inner / np.expm1(width)
        gradient = of_upper.T @ (0.5 - 2 * terms.upper * (u - mean)) + gap.T @ inverse
        gradient += of_lower.T @ (2 * terms.lower * (mean - low) - 0.5) + (STEP_SHAPE - 1) / steps - STEP_RATE
        curvature = 2 * of_upper.T @ (terms.upper[:, None] * of_upper)
        curvature += 2 * of_lower.T @ (terms.lower[:, None] * of_lower)
        curvature += gap.T @ ((inverse * (1 + inverse))[:, None] * gap) + np.diag((STEP_SHAPE - 1) / steps**2)
        move = np.linalg.solve(curvature, gradient)
        if float(gradient @ move) < 1e-10:
            break
        size = 1.0
        while size > 1e-9:
            new = steps + size * move
            if (new > 0).all() and (better := value(new)) >= now:
                steps, now = new, better
                break
            size /= 2
        else:
            break
    return steps


def _lambda(xi: np.ndarray) -> np.ndarray:
    small = xi < 1e-4
    safe = np.where(small, 1.0, xi)
    return np.where(small, 0.125 - xi**2 / 96, np.tanh(safe / 2) / (4 * safe))


__all__ = ["Expected", "best_steps", "edges", "expected_terms"]
