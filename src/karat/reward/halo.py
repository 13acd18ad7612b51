"""What moves a rater's answers about several objectives of one response at once: a halo, and the joint posterior that knows it.

    y_cok = o + g·φ_k·w_o + s·(√ρ·h_c + √(1 − ρ)·e_co)        h_c of one rater and one response, common to the objectives asked there

Objectives are fitted one by one. Noise that two of them share then makes both means err alike: they seem to agree more than
they do, and a weighted sum is less certain than its parts, taken as independent, say. ρ_op is the correlation of what the fits leave of two
answers of one rater to one response, e = ∂/√κ by η, brought towards 0 by what chance alone would make of it. With x = √κ·∂η/∂w and K_o = Σ_c x_c·x_cᵀ
over all answers about o, the sums Σ_c x_c·e_c from which the means were made have the covariance

    M_op = ρ_op·K_o^−½·(Σ_c x_co·x_cpᵀ)·K_p^−½        in units of their own spread; M_oo = I

so that, of D_o = Σ_o⁻¹ − λ_o·I, what answers say of w_o, and b_o = Σ_o⁻¹·m_o,

    Σ⁻¹ = D^½·M⁻¹·D^½ + λ        m = Σ·D^½·M⁻¹·D^−½·b

which is what there was where ρ = 0. Draws are moved by the linear map that makes them so with the least motion. Where objectives share
a rater's tastes, D_o holds what tastes leave, and ρ is taken to hold for it too. What many raters like in a text that no feature says counts
as a halo here: it makes means err alike in the same way. A halo that is a function of the features cannot be told from liking.
Knows fitted layers and what they were fitted to; knows nothing about trunks or files.

Dimension letters: O objectives, C answers, d features of one objective, S draws.

Source: Zellner 1962, JASA 57(298), pp. 348–368 (regressions whose errors are correlated); Thorndike 1920, J. Appl. Psych. 4(1), pp. 25–29 (halo).
Differs: for answers of any kind of one number, by their slopes and curvatures; beside beliefs about weights.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from karat.feedback_columns import LabelBatch, RatingBatch
from karat.reward.channel_answers import batch_answers
from karat.reward.linear_answers import LinearAnswers
from karat.reward.objective_layer import ObjectiveLayer, Spoken
from karat.reward.raters import RaterPriors

LEAST_SHARED = 30
"""Answers about two objectives of one response by one rater below which nothing is said of what they share."""
MOST_WEIGHTS = 3_000
"""Weights of all objectives up to which their posterior is made joint: a matrix of so many rows is decomposed twice."""


@dataclass(frozen=True, eq=False)
class Halo:
    """What answers about two objectives share."""

    objectives: tuple[str, str]
    """Their names."""
    correlation: float
    """ρ as it was found, of what the fits leave."""
    sd: float
    """Its standard error over raters."""
    n_shared: int
    """Answers by one rater to one response about both."""

    @property
    def shrunk(self) -> float:
        """ρ less what chance makes of it (the positive part of James and Stein's estimate)."""
        return self.correlation * max(0.0, 1 - (self.sd / self.correlation) ** 2) if self.correlation else 0.0


@dataclass(frozen=True, eq=False)
class _Left:
    """What a fit leaves of answers to single responses, and how much all answers say."""

    asked: np.ndarray
    """Rater and text, [C, 2]; no two are equal."""
    apart: np.ndarray
    """e = ∂/√κ, [C]."""
    rows: np.ndarray
    """x·K^−½, [C, d]."""


def joint_layers(
    layers: Sequence[ObjectiveLayer], said: Sequence[Spoken], raters: RaterPriors
) -> tuple[list[ObjectiveLayer], list[Halo]]:
    """The layers of several objectives with posteriors and draws that know what answers about them share.

    Args:
        said: what each was fitted to.
    Returns: the same layers where nothing is shared, or nothing that chance would not explain.
    """
    left = [_left(layer, own, raters) for layer, own in zip(layers, said, strict=True)]
    correlation, cross, found = np.eye(len(layers)), {}, []
    for o, p in itertools.combinations(range(len(layers)), 2):
        one, other = _shared(left[o], left[p])
        if len(one) < LEAST_SHARED:
            continue
        halo = _halo((layers[o].objective, layers[p].objective), left[o], left[p], one, other)
        found.append(halo)
        correlation[o, p] = correlation[p, o] = halo.shrunk
        cross[o, p] = left[o].rows[one].T @ left[p].rows[other]
    n_weights = sum(len(layer.posterior.mean) for layer in layers)
    if not (correlation - np.eye(len(layers))).any() or n_weights > MOST_WEIGHTS:
        return list(layers), found
    return _joined(layers, _possible(correlation), cross), found


def _left(layer: ObjectiveLayer, said: Spoken, raters: RaterPriors) -> _Left:
    """Residuals of ratings and labels at the posterior's mean."""
    blocks = (block * scale for block, scale in zip(said.blocks, layer.scales, strict=True))
    features, mean = np.concatenate([said.phi, *blocks], axis=1) - layer.centre, layer.posterior.mean
    answers = batch_answers(said.batch, layer.params, raters, known=True)
    whole = LinearAnswers(features, answers)
    _, _, exact, _ = whole.at(mean)
    values, vectors = linalg.eigh(whole.hessian(whole.positive(exact)))
    kept = values > 1e-9 * max(float(values[-1]), 1e-300)
    root = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
    asked, apart, rows = [np.zeros((0, 2), dtype=int)], [np.zeros(0)], [np.zeros((0, len(mean)))]
    for channel, one in zip(said.batch.channels, answers, strict=True):
        if isinstance(channel.columns, RatingBatch | LabelBatch):
            eta = one.slope * (features[one.a] @ mean) + one.offset
            _, first, exact, _ = one.derivatives(eta, np.arange(len(one)))
            weight = np.sqrt(np.maximum(exact, 1e-12))
            asked.append(np.stack([channel.rater.numpy(), said.texts[one.a]], axis=1))
            apart.append(first / weight)
            rows.append((weight * one.slope)[:, None] * features[one.a] @ root)
    pairs, place = np.unique(np.concatenate(asked), axis=0, return_index=True)
    return _Left(pairs, np.concatenate(apart)[place], np.concatenate(rows)[place])


def _shared(one: _Left, other: _Left) -> tuple[np.ndarray, np.ndarray]:
    """Places of the answers by the same rater to the same response."""
    most = 1 + max(int(part.asked[:, 1].max(initial=0)) for part in (one, other))
    keys = [part.asked[:, 0] * most + part.asked[:, 1] for part in (one, other)]
    _, first, second = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    return first, second


def _halo(names: tuple[str, str], one: _Left, other: _Left, first: np.ndarray, second: np.ndarray) -> Halo:
    """Σ e·e′/√(Σe²·Σe′²), with raters as clusters."""
    a, b, who = one.apart[first], other.apart[second], one.asked[first, 0]
    size = float(np.sqrt((a @ a) * (b @ b)))
    rho = float(a @ b) / max(size, 1e-300)
    off = a * b / max(size, 1e-300) - rho * (a * a / max(float(a @ a), 1e-300) + b * b / max(float(b @ b), 1e-300)) / 2
    sd = float(np.sqrt((np.bincount(who, off) ** 2).sum()))
    return Halo(names, rho, max(sd, 1e-6), len(first))


def _possible(correlation: np.ndarray) -> np.ndarray:
    """The matrix with no eigenvalue below .02: correlations found pair by pair need not fit together."""
    values, vectors = np.linalg.eigh(correlation)
    if values[0] >= 0.02:
        return correlation
    fitting = (vectors * values.clip(min=0.02)) @ vectors.T
    unit = 1 / np.sqrt(np.diag(fitting))
    return fitting * np.outer(unit, unit)


def _joined(layers: Sequence[ObjectiveLayer], correlation: np.ndarray, cross: dict) -> list[ObjectiveLayer]:
    """Posteriors and draws under the noise that answers share."""
    ends = np.cumsum([0, *(len(layer.posterior.mean) for layer in layers)])
    own = [slice(start, end) for start, end in itertools.pairwise(ends)]
    n = int(ends[-1])
    noise, half, back, prior, before = np.eye(n), *(np.zeros((n, n)) for _ in range(4))
    for (o, p), found in cross.items():
        noise[own[o], own[p]] = correlation[o, p] * found
        noise[own[p], own[o]] = noise[own[o], own[p]].T
    told = np.zeros(n)
    for layer, at in zip(layers, own, strict=True):
        posterior = layer.posterior
        spread, into = linalg.eigh(posterior.covariance)
        spread = np.maximum(spread, 1e-300)
        said = np.maximum(1 / spread - posterior.prior_precision, 0.0)  # D in the directions of Σ
        half[at, at] = (into * np.sqrt(said)) @ into.T
        back[at, at] = (into * np.where(said > 0, 1 / np.sqrt(np.where(said > 0, said, 1.0)), 0.0)) @ into.T
        prior[at, at] = (into * (1 / spread - said)) @ into.T
        before[at, at] = (into * np.sqrt(spread)) @ into.T
        told[at] = (into / spread) @ into.T @ posterior.mean
    precision = half @ linalg.solve(noise, half, assume_a="pos") + prior
    covariance = linalg.inv((precision + precision.T) / 2)
    covariance = (covariance + covariance.T) / 2
    heard = half @ linalg.solve(noise, back @ told, assume_a="pos") + told - half @ (back @ told)
    mean = covariance @ heard
    values, vectors = linalg.eigh(before @ covariance @ before)
    inner = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    unit = linalg.inv(before)
    moved = unit @ inner @ unit  # Gelbrich 1990, Math. Nachr. 147(1): of all maps to that covariance the shortest
    old = np.concatenate([layer.draws - layer.posterior.mean for layer in layers], axis=1)
    drawn = old @ moved + mean
    return [
        dataclasses.replace(
            layer, draws=drawn[:, at],
            posterior=dataclasses.replace(layer.posterior, mean=mean[at], covariance=covariance[at, at]),
        )
        for layer, at in zip(layers, own, strict=True)
    ]  # fmt: skip
