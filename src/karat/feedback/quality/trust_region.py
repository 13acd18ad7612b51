"""Newton's method in a trust region, for many unknowns and a curvature that need not be that of a minimum.

    min over |z|_D ≤ ρ of gᵀz + ½·zᵀHz        by conjugate gradients that stop at the edge or where H bends downwards

Products with H are all that is needed, so nothing is factorised; D is the size of H's diagonal. Knows functions of one
vector; knows nothing about votes.

Source: Steihaug 1983, SIAM J. Numer. Anal. 20(3), pp. 626–637; Nocedal & Wright 2006, Numerical Optimization, algorithms
    4.1 and 7.2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Value = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""value(x) → the function and its gradient."""
Product = Callable[[np.ndarray], np.ndarray]
"""product(z) → H·z at the point for which it was made."""
Curve = Callable[[np.ndarray], tuple[Product, np.ndarray]]
"""curve(x) → products with the curvature at x, and the curvature's diagonal."""

MOST_INNER = 250
"""Conjugate-gradient steps for one step of Newton's method."""


def minimise(
    value: Value, curve: Curve, x: np.ndarray, *, tol: float, max_iter: int = 200, radius: float | None = None
) -> np.ndarray:
    """A point where no entry of the gradient exceeds `tol`, or the best one after `max_iter` steps.

    Args:
        radius: of the first trust region, in units in which the diagonal of the curvature is 1; None = every unknown may
            move by about one.
    """
    radius = float(len(x)) ** 0.5 if radius is None else radius
    now, gradient = value(x)
    product, scale = _at(curve, x)
    for _ in range(max_iter):
        size = float(np.abs(gradient).max())
        if size < tol or radius < 1e-12:
            break
        step, predicted, at_edge = _inside(gradient, product, scale, radius, min(0.1, size**0.5))
        new, new_gradient = value(x + step)
        ratio = (now - new) / predicted if predicted > 0 else 0.0
        # near the end both are rounding: a step that the model trusts and that raises nothing is taken
        taken = ratio > 1e-4 or (new <= now + 1e-12 * abs(now) and predicted < 1e-9 * max(1.0, abs(now)))
        if ratio < 0.25 and not (taken and ratio >= 0):
            radius = 0.25 * _length(step, scale)
        elif ratio > 0.75 and at_edge:
            radius *= 2
        if taken:
            x, now, gradient = x + step, new, new_gradient
            product, scale = _at(curve, x)
    return x


def _at(curve: Curve, x: np.ndarray) -> tuple[Product, np.ndarray]:
    product, diagonal = curve(x)
    return product, np.maximum(np.abs(diagonal), 1e-8)


def _length(step: np.ndarray, scale: np.ndarray) -> float:
    return float(np.sqrt(scale @ step**2))


def _inside(
    gradient: np.ndarray, product: Product, scale: np.ndarray, radius: float, accuracy: float
) -> tuple[np.ndarray, float, bool]:
    """The step, by how much the model says it lowers the function, and whether it ends at the edge."""
    z, bent = np.zeros_like(gradient), np.zeros_like(gradient)
    rest, near = gradient.copy(), gradient / scale
    ahead, strength = -near, float(gradient @ near)
    goal = accuracy**2 * strength
    at_edge = False
    for _ in range(MOST_INNER):
        moved = product(ahead)
        curvature = float(ahead @ moved)
        far = z + (strength / curvature) * ahead if curvature > 0 else None
        if far is None or _length(far, scale) >= radius:
            reach = _to_edge(z, ahead, scale, radius)
            z, bent, at_edge = z + reach * ahead, bent + reach * moved, True
            break
        alpha = strength / curvature
        z, bent, rest = far, bent + alpha * moved, rest + alpha * moved
        near = rest / scale
        before, strength = strength, float(rest @ near)
        if strength < goal:
            break
        ahead = -near + (strength / before) * ahead
    return z, -float(gradient @ z + 0.5 * z @ bent), at_edge


def _to_edge(z: np.ndarray, ahead: np.ndarray, scale: np.ndarray, radius: float) -> float:
    """How far along `ahead` from z the edge of the region is: the positive root of a quadratic."""
    a, b, c = float(scale @ ahead**2), float(scale @ (z * ahead)), float(scale @ z**2) - radius**2
    return (-b + float(np.sqrt(max(b * b - a * c, 0.0)))) / a
