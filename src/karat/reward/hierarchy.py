"""The reward of a population, with everything that is not known of its raters drawn along with it.

    r(person, text) = φ·(w + u_person) + v_text        a ~ N(1, σ²)   u_rj ~ N(0, τ_j²)   b_r ~ N(0, β²)   ε_r ~ Beta   w ~ N(0, I/λ)

Every kind of feedback enters by its own likelihood (`drawn_answers`), with raters' offsets, gains, thresholds and noise drawn too
(`drawn_raters`). v are effects of single texts, N(0, size²/λ), where there are some; u_r is a rater's taste; ν is what the same rater
weighs otherwise from one answer to the next (attention that comes and goes), integrated by κ (MacKay 1992, Neural Computation 4(5),
eq. 10). Taken as known, each of σ, τ, ν, c and ε moves the size of w, and an interval that does not know them is too short.

What somebody wrote leans her own way: it has her taste, and the competence of the virtual rater of its kind. How prone rankings are to
ties is taken as fitted. Knows features and columns; knows nothing about trunks, texts or files.

Dimension letters: C answers, A raters, d features, K levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from karat.choice import VoteBatch
from karat.feedback_columns import Channel, FeedbackBatch, FeedbackParams, LabelBatch, RankBatch
from karat.reward.drawn_answers import PROBIT, ChoiceRows, LinearRows, NumberRows, ScaleRows
from karat.reward.drawn_raters import Block, Given, LabelBlock, RatingBlock, ScaleBlock
from karat.reward.latents import is_comparing
from karat.reward.raters import RaterPriors

Normal = tuple[float, float]
"""Mean and standard deviation of a logarithm."""
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
class Directions:
    """The features in the directions that are drawn."""

    features: np.ndarray
    """φ of every text, [N, d]."""
    known: np.ndarray
    """What the other directions add to its score, [N]."""
    centre: np.ndarray
    """w = centre + factor·x, [d]."""
    factor: np.ndarray
    """[d, d]."""
    effect_size: float = 0.0
    """Standard deviation of effects of single texts relative to that of a weight; 0 = there are none."""


@dataclass(eq=False)
class _Pull:
    """Derivatives of the likelihood by what the coordinates stand for."""

    theta: np.ndarray
    """By each person's weights, [A, d]."""
    nu2: np.ndarray
    texts: np.ndarray
    slope: np.ndarray
    offset: np.ndarray
    lapse: np.ndarray
    cuts: np.ndarray
    noise: np.ndarray


class HierarchyDensity:
    """log p(answers, raters, spreads, w) and its gradient, in coordinates that are roughly standard normal."""

    def __init__(
        self, batch: FeedbackBatch, at: Directions, params: FeedbackParams, *, priors: HierarchyPriors, raters: RaterPriors
    ) -> None:  # fmt: skip
        """batch: of one objective.    params: a fit of labels, ratings and ties, which their coordinates begin at."""
        self.at, self.priors = at, priors
        comparing = [one for one in batch.channels if is_comparing(one)]
        self.n_judges = max([0, *(int(one.columns.annotator.max()) + 1 for one in comparing)])
        self.n_people = max(int(one.rater.max()) + 1 for one in batch.channels)
        self.blocks: list[Block] = []
        self._lay_out(batch.channels, params, raters, free_gain=bool(comparing))
        self.choices = [
            ChoiceRows(one, at.features, at.known, params, self.n_people)
            for one in comparing
            if isinstance(one.columns, RankBatch)
        ]
        a, d = self.n_judges, at.features.shape[1]
        sizes = {"w": d, "competence": a, "side": a, "lapse": a, "taste": self.n_people * d, "apart": d, "waver": d,
                 "blocks": sum(one.n_dims for one in self.blocks), "spreads": 5,
                 "effect": len(at.features) if at.effect_size > 0 else 0}  # fmt: skip
        ends = np.cumsum(list(sizes.values()))
        self.place = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self.n_dims = int(ends[-1])
        self.second = at.features.T @ at.features / len(at.features)
        self.doubt = float(np.trace(at.factor.T @ self.second @ at.factor))  # where w is 0, its size is not

    def _size(self, w: np.ndarray) -> float:
        """Mean square of what weights make of the texts, and of what is not known of it."""
        return float(w @ self.second @ w) + self.doubt

    def _lay_out(
        self, channels: Sequence[Channel], params: FeedbackParams, raters: RaterPriors, *, free_gain: bool
    ) -> None:
        """Rows of all answers of one number, and the blocks of their channels' thresholds and raters."""
        sizes = [self.n_judges, self.n_judges, 0, 0]  # slopes, offsets, cutpoints, noise: judges first
        scales: list[dict[str, np.ndarray]] = []
        numbers: list[dict[str, np.ndarray]] = []
        for channel in channels:
            if isinstance(channel.columns, RankBatch):
                continue
            block = self._block(channel, params, raters, free_gain=free_gain)
            self.blocks.append(block)
            row = self._row(channel, block, sizes)
            (numbers if "noise" in row else scales).append(row)
            now = block.at(np.zeros(block.n_dims))
            for i, name in enumerate(("slope", "offset", "cuts", "noise")):
                sizes[i] += len(getattr(now, name))
        columns = {name: np.concatenate([row[name] for row in scales]) for name in scales[0]} if scales else {}
        self.scales = _rows(columns, self.at, self.n_people) if scales else None
        self.levels = (
            ScaleRows(*(columns[f] for f in ("upper", "top", "bottom", "n_levels", "lapse"))) if scales else None
        )
        columns = {name: np.concatenate([row[name] for row in numbers]) for name in numbers[0]} if numbers else {}
        self.numbers = _rows(columns, self.at, self.n_people) if numbers else None
        self.values = NumberRows(*(columns[f] for f in ("value", "half_step", "noise"))) if numbers else None

    def _block(self, channel: Channel, params: FeedbackParams, raters: RaterPriors, *, free_gain: bool) -> Block:
        if isinstance(channel.columns, VoteBatch):
            return ScaleBlock(channel.columns.n_levels, self.priors.step)
        if isinstance(channel.columns, LabelBatch):
            return LabelBlock(channel, params.labels[channel.name], raters, free_gain=free_gain)
        return RatingBlock(channel, params.ratings[channel.name], raters, free_gain=free_gain)

    def _row(self, channel: Channel, block: Block, sizes: Sequence[int]) -> dict[str, np.ndarray]:
        """The columns of a channel's answers, with places behind what earlier channels need."""
        columns, n = channel.columns, len(channel)
        slopes, offsets, cuts, noise = sizes
        texts, zero = channel.texts.numpy(), np.zeros(n, dtype=int)
        row = {"a": texts[:, 0], "b": texts[:, 1] if texts.shape[1] > 1 else zero - 1,
               "person": channel.rater.numpy(), "weight": channel.weight.double().numpy(), "sign": np.ones(n)}  # fmt: skip
        if isinstance(columns, VoteBatch):
            judge = columns.annotator.numpy()
            row |= {"slope": judge, "offset": judge, "lapse": judge, "sign": columns.side.double().numpy()}
            level, n_levels = columns.level.numpy(), columns.n_levels
        elif isinstance(columns, LabelBatch):
            row |= {"slope": zero + slopes, "offset": block.who + offsets, "lapse": zero + self.n_judges}
            level, n_levels = columns.good.long().numpy(), 2
        else:
            row |= {"slope": block.who + slopes, "offset": block.who + offsets}
            if columns.n_levels is None:
                half = np.full(n, columns.step / 2)
                return row | {"value": columns.value.double().numpy(), "half_step": half, "noise": block.who + noise}
            row |= {"lapse": zero + self.n_judges}
            level, n_levels = columns.value.long().numpy(), columns.n_levels
        return row | {"upper": cuts + level + 1, "top": level == n_levels - 1, "bottom": level == 0,
                      "n_levels": zero + n_levels}  # fmt: skip

    def start(self) -> np.ndarray:
        """Everything at its prior's centre, w and raters of labels and ratings at the first fit."""
        x = np.zeros(self.n_dims)
        x[self.place["lapse"]] = math.log(self.priors.lapse[0] / self.priors.lapse[1])
        spread = 1 / max(float((self.at.centre**2).mean()), 1e-6)
        at = (math.log(spread) - self.priors.precision[0]) / self.priors.precision[1]
        x[self.place["spreads"]][4] = min(max(at, -3.0), 3.0)
        return x

    def weights(self, x: np.ndarray) -> np.ndarray:
        """w of draws [S, n_dims]."""
        return self.at.centre + x[..., self.place["w"]] @ self.at.factor.T

    def spreads(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """σ, β, what τ and ν share (logits a unit of a feature), and λ, of draws [S, n_dims]."""
        p, z = self.priors, x[..., self.place["spreads"]]
        logs = [m + s * z[..., i] for i, (m, s) in enumerate((p.competence, p.side, p.taste, p.wavering, p.precision))]
        return {"competence_sd": np.exp(logs[0]), "side_sd": np.exp(logs[1]), "taste_sd": np.exp(logs[2] - logs[4] / 2),
                "waver_sd": np.exp(logs[3] - logs[4] / 2), "precision": np.exp(logs[4])}  # fmt: skip

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """log density and gradient at [n_dims]."""
        if not float(np.abs(x).max()) <= FARTHEST:  # a step that went astray: nothing is to be gained there
            return -math.inf, np.zeros_like(x)
        with np.errstate(over="ignore", invalid="ignore"):  # on the way there
            value, gradient = self._at(x)
        return (value, gradient) if math.isfinite(value) else (-math.inf, np.zeros_like(x))

    def _at(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        p, part = self.priors, {name: x[where] for name, where in self.place.items()}
        scale = self.spreads(x)
        sigma, beta, lam = float(scale["competence_sd"]), float(scale["side_sd"]), float(scale["precision"])
        w = self.at.centre + self.at.factor @ part["w"]
        tau = scale["taste_sd"] * np.exp(p.apart * part["apart"])
        nu2 = (scale["waver_sd"] * np.exp(p.apart * part["waver"])) ** 2
        standard = part["taste"].reshape(self.n_people, -1)
        lapse = 1 / (1 + np.exp(-part["lapse"]))
        of_texts = self.at.effect_size / math.sqrt(lam) * part["effect"] if len(part["effect"]) else None
        shift = (math.log(self._size(self.at.centre)) - math.log(self._size(w))) / 2
        given = self._given(part["blocks"], shift)
        slope = np.concatenate([1 + sigma * part["competence"], *(one.slope for one in given)])
        offset = np.concatenate([beta * part["side"], *(one.offset for one in given)])
        # 1. the answers
        value, by = self._answers(w + standard * tau, nu2, of_texts, slope, offset, lapse, given)
        # 2. their gradient
        n, own = self.n_judges, slice(0, self.n_judges)
        d_a, d_b = by.slope[own], by.offset[own]
        log_prior, d_blocks, d_shift = self._pulled(part["blocks"], given, by, shift)
        d_w = by.theta.sum(0) - lam * w - d_shift / self._size(w) * (self.second @ w)
        d_tau, d_nu = (by.theta * standard).sum(0) * tau, 2 * nu2 * by.nu2
        d_lam = len(w) / 2 - lam * float(w @ w) / 2 - (float(d_tau.sum()) + float(d_nu.sum())) / 2
        gradient = -x  # of the standard normal coordinates
        if of_texts is not None:
            d_lam -= float(by.texts @ of_texts) / 2
            gradient[self.place["effect"]] += self.at.effect_size / math.sqrt(lam) * by.texts
        gradient[self.place["blocks"]] = d_blocks
        gradient[self.place["w"]] = self.at.factor.T @ d_w
        gradient[self.place["competence"]] += sigma * d_a
        gradient[self.place["side"]] += beta * d_b
        gradient[self.place["taste"]] += (by.theta * tau).ravel()
        gradient[self.place["apart"]] += p.apart * d_tau
        gradient[self.place["waver"]] += p.apart * d_nu
        alpha, omega = p.lapse
        gradient[self.place["lapse"]] = by.lapse[:n] * lapse * (1 - lapse) + alpha - (alpha + omega) * lapse
        gradient[self.place["spreads"]] += np.array([
            p.competence[1] * sigma * float(d_a @ part["competence"]), p.side[1] * beta * float(d_b @ part["side"]),
            p.taste[1] * float(d_tau.sum()), p.wavering[1] * float(d_nu.sum()), p.precision[1] * d_lam,
        ])  # fmt: skip
        # 3. the priors
        normal = float(x @ x) - sum(float(part[name] @ part[name]) for name in ("w", "lapse", "blocks"))
        value += len(w) / 2 * math.log(lam) - lam * float(w @ w) / 2 - normal / 2 + log_prior
        value += float((alpha * np.log(lapse + TINY) + omega * np.log1p(-lapse)).sum())
        return value, gradient

    def _given(self, z: np.ndarray, shift: float) -> list[Given]:
        ends = np.cumsum([one.n_dims for one in self.blocks])
        parts = np.split(z, ends[:-1]) if self.blocks else []
        return [block.at(part, shift) for block, part in zip(self.blocks, parts, strict=True)]

    def _pulled(
        self, z: np.ndarray, given: Sequence[Given], by: _Pull, shift: float
    ) -> tuple[float, np.ndarray, float]:
        """Log prior of the blocks, and the gradient by their coordinates and by the shift of their gains."""
        total, d_shift, found, places = 0.0, 0.0, [np.zeros(0)], [self.n_judges, self.n_judges, 0, 0]
        parts = np.split(z, np.cumsum([one.n_dims for one in self.blocks])[:-1]) if self.blocks else []
        for block, part, now in zip(self.blocks, parts, given, strict=True):
            each = []
            for i, name in enumerate(("slope", "offset", "cuts", "noise")):
                end = places[i] + len(getattr(now, name))
                each.append(getattr(by, name)[places[i] : end])
                places[i] = end
            log_prior, gradient, d_own = block.pull(part, Given(*each), shift)
            total, d_shift = total + log_prior, d_shift + d_own
            found.append(gradient)
        return total, np.concatenate(found), d_shift

    def _answers(
        self, theta: np.ndarray, nu2: np.ndarray, of_texts: np.ndarray | None, slope: np.ndarray, offset: np.ndarray,
        lapse: np.ndarray, given: Sequence[Given],
    ) -> tuple[float, _Pull]:  # fmt: skip
        """Σ log P of everything, and its derivatives by what the coordinates stand for."""
        cuts, noise = (np.concatenate([np.zeros(0), *(getattr(g, name) for g in given)]) for name in ("cuts", "noise"))
        sizes = (len(self.at.features), len(slope), len(offset), self.n_judges + 1, len(cuts), len(noise))
        by = _Pull(np.zeros_like(theta), np.zeros_like(nu2), *(np.zeros(size) for size in sizes))
        value, never = 0.0, np.append(lapse, 0.0)
        if self.scales is not None and self.levels is not None:
            rows, levels = self.scales, self.levels
            e, a = _score(rows, theta, of_texts), slope[rows.slope]
            waver = rows.squared @ nu2
            kappa = np.sqrt(1 + PROBIT * a**2 * waver)
            each, *found = levels.loglik(a * e + offset[rows.offset] * rows.sign, kappa, never, cuts)
            d_eta, d_kappa, d_lapse, d_up, d_low = (rows.weight * column for column in found)
            d_kappa = d_kappa * PROBIT / (2 * kappa)
            value += float(rows.weight @ each)
            _pull_rows(by, rows, d_eta, d_eta * e + d_kappa * 2 * a * waver, a)
            by.nu2 += rows.squared.T @ (d_kappa * a**2)
            by.lapse += np.bincount(levels.lapse, d_lapse, len(by.lapse))
            by.cuts += np.bincount(levels.upper, d_up, len(cuts)) + np.bincount(levels.upper - 1, d_low, len(cuts))
        if self.numbers is not None and self.values is not None:
            rows = self.numbers
            e, a = _score(rows, theta, of_texts), slope[rows.slope]
            each, *found = self.values.loglik(a * e + offset[rows.offset] * rows.sign, noise)
            d_eta, d_sd = (rows.weight * column for column in found)
            value += float(rows.weight @ each)
            _pull_rows(by, rows, d_eta, d_eta * e, a)
            by.noise += np.bincount(self.values.noise, d_sd, len(noise))
        for one in self.choices:
            each_value, d_local, d_a, d_lapse, d_nu2 = one.loglik(theta, of_texts, slope, lapse, nu2)
            value += each_value
            by.theta += one.by_person @ (d_local.ravel()[:, None] * one.phi.reshape(-1, theta.shape[1]))
            by.slope += np.bincount(one.judge, d_a, len(slope))
            by.lapse += np.bincount(one.judge, d_lapse, len(by.lapse))
            by.nu2 += d_nu2
            by.texts += np.bincount(one.texts.ravel(), d_local.ravel(), len(by.texts))
        return value, by


def _score(rows: LinearRows, theta: np.ndarray, of_texts: np.ndarray | None) -> np.ndarray:
    e = np.einsum("cd,cd->c", rows.delta, theta[rows.person]) + rows.known
    return e if of_texts is None else e + rows.incidence @ of_texts


def _pull_rows(by: _Pull, rows: LinearRows, d_eta: np.ndarray, d_slope: np.ndarray, slope: np.ndarray) -> None:
    d_score = d_eta * slope
    by.theta += rows.by_person @ (d_score[:, None] * rows.delta)
    by.texts += rows.incidence.T @ d_score
    by.slope += np.bincount(rows.slope, d_slope, len(by.slope))
    by.offset += np.bincount(rows.offset, d_eta * rows.sign, len(by.offset))


def _rows(columns: dict[str, np.ndarray], at: Directions, n_people: int) -> LinearRows:
    a, b = columns["a"], columns["b"]
    paired, n, number = b >= 0, len(a), np.arange(len(a))
    delta, known = at.features[a].copy(), at.known[a].copy()
    delta[paired] -= at.features[b[paired]]
    known[paired] -= at.known[b[paired]]
    entries = np.concatenate([np.ones(n), -np.ones(int(paired.sum()))])
    places = np.concatenate([number, number[paired]]), np.concatenate([a, b[paired]])
    incidence = sparse.csr_matrix((entries, places), shape=(n, len(at.features)))
    by_person = sparse.csr_matrix((np.ones(n), (columns["person"], number)), shape=(n_people, n))
    fields = (columns[name] for name in ("person", "weight", "slope", "offset", "sign"))
    return LinearRows(delta, delta**2, known, incidence, by_person, *fields)
