"""Coordinates of weights and tastes that stay roughly standard normal while size and spreads are drawn along with them.

    w′ = c + F·x        (w, τ, 1/√λ) = e^ℓ/ρ·(w′, τ′, 1/√λ_0)        ρ = size of the scores of w′ and τ′ over that at first; λ given: ℓ = log ρ
    z_rj = t_j·(g_rj − h_rj·(w_j/e^ℓ − c_j))/(1 + t_j²·h_rj) + (1 + t_j²·h_rj)^−½·x_rj        t = τ/e^ℓ        u_rj = τ_j·z_rj, z ~ N(0, 1)

A chain creeps where one number has to move many others along. Twice the size of everything, of weights, tastes and their spreads, with
half of every gain, is nearly the same answers where few comparisons are among them: that is one coordinate, ℓ. A given size says of λ only what
d weights say of a variance: that is the length of x. A handful of answers leaves a person to τ and many leave τ to the persons: h and g,
curvature and slope of each person's answers at a first fit c, weigh one against the other; a step of w at constant x_r takes those along who
have said little, and leaves the others where they are. What is drawn from is the same whatever c, F, h and g are: |∂(w, log λ)/∂(x, ℓ)| is
(e^ℓ/ρ)^d·|F|, which the prior N(w; 0, 1/λ) cancels but for exp(−λ_0·|w′|²/2). Knows numbers alone.

Dimension letters: S draws, A people, d directions.

Source: Papaspiliopoulos, Roberts & Sköld 2007, Statistical Science 22(1), pp. 59–73 (partial non-centring); Betancourt & Girolami 2013,
    arXiv:1312.0906 (funnels of hierarchies).
Differs: size and shape apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

KNOWN = 0.05
"""Spread of log 1/√λ before the first answer below which λ counts as given."""


@dataclass(frozen=True, eq=False)
class SizedWeights:
    """The weights, by their size and their shape."""

    centre: np.ndarray
    """c, where x = 0 leads, [d]."""
    factor: np.ndarray
    """F: w′ = c + F·x, [d, d]."""
    second: np.ndarray
    """Second moments of the texts' features, [d, d]."""
    doubt: float
    """What is not known adds to the mean square of the scores: where w′ and τ′ are 0, their size is not."""
    begin: float
    """That mean square at first."""
    log_first: float
    """log λ where size and shape are those of the first fit."""
    step: float
    """Of the logarithm of the size."""
    follows: float
    """1 = λ is known, and the size is that of w′ as it is; 0 = the length of x moves λ alone."""

    @classmethod
    def around(
        cls,
        centre: np.ndarray,
        curvature: np.ndarray,
        second: np.ndarray,
        taste: np.ndarray,
        *,
        log_first: float,
        prior_sd: float,
    ) -> SizedWeights:
        """Scales at a first fit.

        Args:
            curvature: of answers by w at c, [d, d]; what of it is negative counts as 0.    second: see the field.
            taste: τ at first, [d].    log_first: log λ.    prior_sd: of the logarithm of 1/√λ.
        """
        first = math.exp(log_first)
        along, follows = second @ centre, float(prior_sd < KNOWN)
        tastes = float(np.diag(second) @ taste**2)
        whole = (curvature + curvature.T) / 2
        most = float(centre @ along) + tastes + float(np.trace(second)) / first / 10
        flat = np.eye(len(centre)) - (1 - follows) * np.outer(centre, along) / most
        values, rotation = np.linalg.eigh(flat.T @ whole @ flat)
        factor = (rotation / np.sqrt(np.maximum(values, 0.0) + first)) @ rotation.T
        doubt = float(np.trace(factor @ second @ factor))
        begin = float(centre @ along) + tastes + doubt
        step = 1 / math.sqrt(max(float(centre @ whole @ centre), 0.0) + 1 / prior_sd**2)
        return cls(centre, factor, second, doubt, begin, log_first, step, follows)

    @property
    def first(self) -> float:
        """λ of the first fit."""
        return math.exp(self.log_first)

    def at(self, x: np.ndarray, size: np.ndarray, tau: np.ndarray) -> PlacedWeights:
        """Weights of coordinates [S, d], the coordinate of the size [S] and τ′ [S, d]."""
        plain = self.centre + x @ self.factor
        square = np.einsum("...i,ij,...j->...", plain, self.second, plain) + tau**2 @ np.diag(self.second) + self.doubt
        ratio = np.log(square / self.begin) / 2
        return PlacedWeights(plain, tau, square, ratio, self.step * size + self.follows * ratio, self.log_first)

    def pull(
        self, now: PlacedWeights, by_shape: np.ndarray, by_spread: np.ndarray, by_ratio: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives by x and by log τ′, [d] each, of what hangs on shape, log spread and ratio, and of the prior of the weights."""
        d_ratio = (by_ratio - float(now.shape @ by_shape) - float(by_spread.sum())) / float(now.square)
        d_plain = by_shape * math.exp(-float(now.log_ratio)) + d_ratio * (self.second @ now.plain)
        return self.factor @ (d_plain - self.first * now.plain), by_spread + d_ratio * np.diag(self.second) * now.tau**2


@dataclass(frozen=True, eq=False)
class PlacedWeights:
    """Weights for given coordinates, or draws of them."""

    plain: np.ndarray
    """w′, [S, d]."""
    tau: np.ndarray
    """τ′, [S, d]."""
    square: np.ndarray
    """Mean square of what w′ and τ′ make of the texts, [S]."""
    log_ratio: np.ndarray
    """log ρ, [S]."""
    log_size: np.ndarray
    """ℓ, [S]."""
    log_first: float
    """log λ where both are 0."""

    @property
    def shape(self) -> np.ndarray:
        """w/e^ℓ, [S, d]."""
        return self.plain * np.exp(-self.log_ratio)[..., None]

    @property
    def spread(self) -> np.ndarray:
        """τ/e^ℓ, [S, d]."""
        return self.tau * np.exp(-self.log_ratio)[..., None]

    @property
    def weights(self) -> np.ndarray:
        """w, [S, d]."""
        return self.shape * np.exp(self.log_size)[..., None]

    @property
    def log_precision(self) -> np.ndarray:
        """log λ, [S]."""
        return self.log_first - 2 * self.log_unit

    @property
    def log_unit(self) -> np.ndarray:
        """By how much log 1/√λ lies above the first fit's, [S]."""
        return self.log_size - self.log_ratio


@dataclass(frozen=True, eq=False)
class TasteScale:
    """What each person weighs otherwise, whose spread is known to her answers and to everybody's τ together."""

    centre: np.ndarray
    """c, [d]."""
    curvature: np.ndarray
    """h ≥ 0 of each person, [A, d]."""
    slope: np.ndarray
    """g of each person, [A, d]."""

    def at(self, x: np.ndarray, w: np.ndarray, tau: np.ndarray) -> PlacedTastes:
        """Standard tastes of coordinates [A, d], weights [d] and spreads [d]."""
        share = 1 / (1 + tau**2 * self.curvature)
        apart = x * np.sqrt(share)
        middle = tau * share * (self.slope - self.curvature * (w - self.centre))
        return PlacedTastes(self, share, apart, middle, tau)


@dataclass(frozen=True, eq=False)
class PlacedTastes:
    """Tastes for given weights and spreads."""

    scale: TasteScale
    """What is known of the people."""
    share: np.ndarray
    """1/(1 + τ²h): of a taste's spread that her own answers leave, squared."""
    apart: np.ndarray
    """What of z her coordinates are."""
    middle: np.ndarray
    """What of z her answers at the first fit and the weights say."""
    tau: np.ndarray
    """τ/e^ℓ, [d]."""

    @property
    def standard(self) -> np.ndarray:
        """z, [A, d]."""
        return self.middle + self.apart

    def log_volume(self) -> float:
        """log |∂z/∂x|."""
        return float(np.log(self.share).sum()) / 2

    def pull(self, by: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derivatives by x [A, d], w [d] and log τ [d] from those by z; that of the volume by log τ is in the last."""
        taken = 1 - self.share
        d_w = -self.tau * (by * self.share * self.scale.curvature).sum(0)
        d_tau = (by * (self.middle * (1 - 2 * taken) - taken * self.apart) - taken).sum(0)
        return by * np.sqrt(self.share), d_w, d_tau
