"""The reward of a population, with everything that is not known of its raters drawn along with it.

    η = a_r·(Δφ·(w + u_r) + Δv) + b_r·side        P(y ≤ k) = (1 − ε_r)·σ((c_k − η)/κ) + ε_r·(k + 1)/K
    a_r ~ N(1, σ²)   u_rj ~ N(0, τ_j²)   b_r ~ N(0, β²)   ε_r ~ Beta   w ~ N(0, I/λ)   κ² = 1 + π/8·a_r²·Σ_j ν_j²Δφ_j²

v are effects of single texts, N(0, size²/λ), where there are some; u_r is a rater's taste; ν is what the same rater weighs otherwise from one answer to the next (attention that comes and
goes), integrated by κ (MacKay 1992, Neural Computation 4(5), eq. 10). Taken as known, each of σ, τ, ν, c and ε moves the
size of w, and an interval that does not know them is too short.

Knows differences of features, levels, raters and sides; knows nothing about texts, trunks or files.

Dimension letters: C answers, A raters, d features, K levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from karat.choice import VoteBatch
from karat.reward.linear_votes import step_matrix

Normal = tuple[float, float]
"""Mean and standard deviation of a logarithm."""
PROBIT = math.pi / 8
TINY = 1e-12
FARTHEST = 40.0
"""Coordinates beyond which the density counts as 0; they are roughly standard normal."""


@dataclass(frozen=True)
class HierarchyPriors:
    """Log-normal beliefs about spreads before the first answer; wide enough that a few hundred answers outweigh them."""

    competence: Normal = (math.log(0.3), 0.7)
    """Of σ."""
    side: Normal = (math.log(0.3), 0.7)
    """Of β, logits."""
    taste: Normal = (math.log(0.3), 1.0)
    """Of what all τ_j share, in units of 1/√λ, the size of a weight."""
    wavering: Normal = (math.log(0.3), 1.0)
    """Of what all ν_j share, in the same units."""
    apart: float = 0.7
    """How far log τ_j and log ν_j lie from what they share."""
    step: Normal = (math.log(0.5), 1.0)
    """Of each step between cutpoints, logits."""
    precision: Normal = (0.0, 3.0)
    """Of λ."""
    lapse: tuple[float, float] = (1.0, 19.0)
    """Beta of ε."""


@dataclass(frozen=True, eq=False)
class TextEffects:
    """What each text is liked for that no feature says."""

    incidence: sparse.csr_matrix
    """+1 at the first text of an answer, −1 at the second, [C, N]."""
    size: float
    """Standard deviation relative to that of a weight."""


class HierarchyDensity:
    """log p(answers, raters, spreads, w) and its gradient, in coordinates that are roughly standard normal."""

    def __init__(
        self, delta: np.ndarray, votes: VoteBatch, *, known: np.ndarray, centre: np.ndarray, factor: np.ndarray,
        priors: HierarchyPriors, effects: TextEffects | None = None,
    ) -> None:  # fmt: skip
        """delta: [C, d] of Δφ.    known: [C] logits besides, before competence.    centre, factor: w = centre + factor·x."""
        self.delta, self.squared, self.known = delta, delta**2, known
        self.level, self.rater, self.side = votes.level.numpy(), votes.annotator.numpy(), votes.side.double().numpy()
        self.centre, self.factor, self.priors, self.n_levels = centre, factor, priors, votes.n_levels
        n, d, n_levels = len(delta), delta.shape[1], votes.n_levels
        self.n_raters = int(self.rater.max()) + 1
        self.by_rater = sparse.csr_matrix((np.ones(n), (self.rater, np.arange(n))), shape=(self.n_raters, n))
        self.steps = step_matrix(n_levels)
        a, self.effects = self.n_raters, effects
        n_effects = 0 if effects is None else effects.incidence.shape[1]
        sizes = {"w": d, "competence": a, "side": a, "lapse": a, "taste": a * d, "apart": d, "waver": d,
                 "step": self.steps.shape[1], "spreads": 5, "effect": n_effects}  # fmt: skip
        ends = np.cumsum(list(sizes.values()))
        self.place = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self.n_dims = int(ends[-1])

    def start(self) -> np.ndarray:
        """Everything at its prior's centre, w at the first fit."""
        x = np.zeros(self.n_dims)
        x[self.place["lapse"]] = math.log(self.priors.lapse[0] / self.priors.lapse[1])
        spread = 1 / max(float((self.centre**2).mean()), 1e-6)
        at = (math.log(spread) - self.priors.precision[0]) / self.priors.precision[1]
        x[self.place["spreads"]][4] = min(max(at, -3.0), 3.0)
        return x

    def weights(self, x: np.ndarray) -> np.ndarray:
        """w of draws [S, n_dims]."""
        return self.centre + x[..., self.place["w"]] @ self.factor.T

    def spreads(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """σ, β, what τ and ν share (logits a unit of a feature), and λ, of draws [S, n_dims]."""
        p, z = self.priors, x[..., self.place["spreads"]]
        logs = [m + s * z[..., i] for i, (m, s) in enumerate((p.competence, p.side, p.taste, p.wavering, p.precision))]
        return {"competence_sd": np.exp(logs[0]), "side_sd": np.exp(logs[1]), "taste_sd": np.exp(logs[2] - logs[4] / 2),
                "waver_sd": np.exp(logs[3] - logs[4] / 2), "precision": np.exp(logs[4])}  # fmt: skip

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """log density and gradient at [n_dims]."""
        if float(np.abs(x).max()) > FARTHEST:  # a step that went astray: nothing is to be gained there
            return -math.inf, np.zeros_like(x)
        p, part, a_n = self.priors, {name: x[where] for name, where in self.place.items()}, self.n_raters
        scale = self.spreads(x)
        sigma, beta, lam = float(scale["competence_sd"]), float(scale["side_sd"]), float(scale["precision"])
        w = self.centre + self.factor @ part["w"]
        tau = scale["taste_sd"] * np.exp(p.apart * part["apart"])
        nu2 = (scale["waver_sd"] * np.exp(p.apart * part["waver"])) ** 2
        standard = part["taste"].reshape(a_n, -1)
        a, lapse = 1 + sigma * part["competence"], 1 / (1 + np.exp(-part["lapse"]))
        lengths = np.exp(p.step[0] + p.step[1] * part["step"])
        # 1. the answers
        r = self.rater
        e = np.einsum("cd,cd->c", self.delta, (w + standard * tau)[r]) + self.known
        if self.effects is not None:
            of_texts = self.effects.size / math.sqrt(lam) * part["effect"]
            e = e + self.effects.incidence @ of_texts
        waver = self.squared @ nu2
        kappa = np.sqrt(1 + PROBIT * a[r] ** 2 * waver)
        eta = a[r] * e + beta * part["side"][r] * self.side
        value, d_eta, d_kappa, d_lapse, by_cut = self._answers(eta, kappa, lapse, self.steps @ lengths)
        # 2. their gradient
        d_kappa = d_kappa * PROBIT / (2 * kappa)
        pull = (d_eta * a[r])[:, None] * self.delta
        d_taste = self.by_rater @ pull
        d_a = self.by_rater @ (d_eta * e + d_kappa * 2 * a[r] * waver)
        d_b = self.by_rater @ (d_eta * self.side)
        d_w = d_taste.sum(0) - lam * w
        d_tau = (d_taste * standard).sum(0) * tau
        d_nu = 2 * nu2 * (self.squared.T @ (d_kappa * a[r] ** 2))
        d_lam = len(w) / 2 - lam * float(w @ w) / 2 - (float(d_tau.sum()) + float(d_nu.sum())) / 2
        gradient = -x  # of the standard normal coordinates
        if self.effects is not None:
            d_texts = self.effects.incidence.T @ (d_eta * a[r])
            d_lam -= float(d_texts @ of_texts) / 2
            gradient[self.place["effect"]] += self.effects.size / math.sqrt(lam) * d_texts
        gradient[self.place["w"]] = self.factor.T @ d_w
        gradient[self.place["competence"]] += sigma * d_a
        gradient[self.place["side"]] += beta * d_b
        gradient[self.place["taste"]] += (d_taste * tau).ravel()
        gradient[self.place["apart"]] += p.apart * d_tau
        gradient[self.place["waver"]] += p.apart * d_nu
        gradient[self.place["step"]] += p.step[1] * lengths * (self.steps.T @ by_cut)
        alpha, omega = p.lapse
        gradient[self.place["lapse"]] = (
            (self.by_rater @ d_lapse) * lapse * (1 - lapse) + alpha - (alpha + omega) * lapse
        )
        gradient[self.place["spreads"]] += np.array([
            p.competence[1] * sigma * float(d_a @ part["competence"]), p.side[1] * beta * float(d_b @ part["side"]),
            p.taste[1] * float(d_tau.sum()), p.wavering[1] * float(d_nu.sum()), p.precision[1] * d_lam,
        ])  # fmt: skip
        # 3. the priors
        normal = float(x @ x) - float(part["w"] @ part["w"]) - float(part["lapse"] @ part["lapse"])
        value += len(w) / 2 * math.log(lam) - lam * float(w @ w) / 2 - normal / 2
        value += float((alpha * np.log(lapse + TINY) + omega * np.log1p(-lapse)).sum())
        return value, gradient

    def _answers(
        self, eta: np.ndarray, kappa: np.ndarray, lapse: np.ndarray, cuts: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Σ log P and its derivatives by η, κ, ε of each answer and by cutpoints."""
        k, miss = self.n_levels, lapse[self.rater]
        u, low = (cuts[self.level + 1] - eta) / kappa, (cuts[self.level] - eta) / kappa
        top, bottom = self.level == k - 1, self.level == 0
        u, low = np.where(top, 500.0, u), np.where(bottom, -500.0, low)
        flip = np.where(u + low > 0, -1.0, 1.0)  # differences of probabilities near 0, not near 1
        p_u, p_low = _sigmoid(flip * u), _sigmoid(flip * low)
        q = np.abs(p_u - p_low)
        prob = (1 - miss) * q + miss / k + 1e-300
        d_u, d_low = (1 - miss) * p_u * (1 - p_u) / prob, -(1 - miss) * p_low * (1 - p_low) / prob
        by_cut = np.bincount(self.level + 1, d_u / kappa, k + 1) + np.bincount(self.level, d_low / kappa, k + 1)
        d_eta, d_kappa = -(d_u + d_low) / kappa, -(u * d_u + low * d_low) / kappa
        return float(np.log(prob).sum()), d_eta, d_kappa, (1 / k - q) / prob, by_cut


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))
