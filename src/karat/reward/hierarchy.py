"""The reward of a population, with everything that is not known of its raters drawn along with it.

    r(person, text) = φ·(w + u_person) + v_text        a ~ N(1, σ²)   u_rj ~ N(0, τ_j²)   b_r ~ N(0, β²)   ε_r ~ Beta   w ~ N(0, I/λ)

Every kind of feedback enters by its own likelihood (`drawn_answers`), with raters' offsets, gains, thresholds and noise drawn too
(`drawn_raters`). v are effects of single texts, N(0, size²/λ), where there are some; u_r is a rater's taste; ν is what the same rater
weighs otherwise from one answer to the next (attention that comes and goes), integrated by κ (MacKay 1992, Neural Computation 4(5),
eq. 10). Taken as known, each of σ, τ, ν, c and ε moves the size of w, and an interval that does not know them is too short.

Whether anybody wavers is for the answers to say, so that none at all must be among what is believed:

    ν_j = n/√λ·|z|³·exp(0.7·(z_j − z̄))        z, z_j ~ N(0, 1)        p(ν̄√λ = x) ∝ x^−⅔·exp(−(x/n)^⅔/2)

A logarithm with a normal belief has hardly any density near 0: answers that speak against wavering push against a wall, and scores are
believed larger than they are. Here a third of the belief lies below n/12 and a twentieth above 7.5·n: a pole and a long tail, as the horseshoe has (Carvalho, Polson & Scott
2010, Biometrika 97(2), pp. 465–480). Answers know ν² alone, so that the density goes on smoothly through z = 0, and a chain meets no wall; the half z < 0 is
the same once more.

What somebody wrote leans her own way: it has her taste, and the competence of the virtual rater of its kind. How prone rankings are to
ties is taken as fitted. Knows features and columns; knows nothing about trunks, texts or files.

Dimension letters: C answers, A raters, d features, K levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from karat.choice import VoteBatch
from karat.feedback_columns import Channel, FeedbackBatch, FeedbackParams, LabelBatch, RankBatch
from karat.reward.drawn_answers import PROBIT, ChoiceRows, LinearRows, NumberRows, Pull, ScaleRows
from karat.reward.drawn_raters import Block, Given, LabelBlock, RatingBlock, ScaleBlock
from karat.reward.latents import is_comparing
from karat.reward.raters import RaterPriors
from karat.reward.whitened import PlacedWeights, SizedWeights, TasteScale

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
    wavering: float = 0.3
    """n: half of what is believed of what all ν_j share lies below .31·n, a twentieth above 7.5·n, in the same units."""
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
    """w of a first fit, [d]."""
    effect_size: float = 0.0
    """Standard deviation of effects of single texts relative to that of a weight; 0 = there are none."""


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
            ChoiceRows(one, at.features, at.known, params) for one in comparing if isinstance(one.columns, RankBatch)
        ]
        a, d = self.n_judges, at.features.shape[1]
        sizes = {"w": d, "competence": a, "side": a, "lapse": a, "taste": self.n_people * d, "apart": d, "waver": d,
                 "blocks": sum(one.n_dims for one in self.blocks), "spreads": 5,
                 "effect": len(at.features) if at.effect_size > 0 else 0}  # fmt: skip
        ends = np.cumsum(list(sizes.values()))
        self.place = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self.n_dims = int(ends[-1])
        ends = np.cumsum([0, *(one.n_dims for one in self.blocks)])
        self.own = [slice(start, end) for start, end in itertools.pairwise(ends)]
        self._scale()

    def _scale(self) -> None:
        """How far weights and tastes are fixed by the answers: curvature and slopes at the first fit, by differences."""
        at, m = self.at, self.priors.precision
        found = -math.log(max(float((at.centre**2).mean()), 1e-6))
        log_first = m[0] + min(max(found - m[0], -1.5 * m[1]), 1.5 * m[1])
        first = math.exp(log_first)
        whole, people, slope = self._curvature(1e-3 / math.sqrt(first), (0.3 * self.priors.wavering) ** 2 / first)
        # how far apart people are, by E g² = h + τ²h²; and what their tastes leave of the curvature
        middle, sd = self.priors.taste
        moment = np.maximum((slope**2 - people).sum(0), 0.0) / np.maximum((people**2).sum(0), TINY)
        tau2 = np.clip(moment, math.exp(2 * (middle - sd)) / first, math.exp(2 * (middle + 2 * sd)) / first)
        left = np.sqrt((people / (1 + tau2 * people)).sum(0) / np.maximum(people.sum(0), TINY))
        second = at.features.T @ at.features / len(at.features)
        self.sized = SizedWeights.around(
            at.centre, left[:, None] * whole * left, second, np.sqrt(tau2), log_first=log_first, prior_sd=m[1] / 2
        )
        self.people = TasteScale(at.centre, people, slope)
        self.first_taste = (float(np.log(tau2).mean() + log_first) / 2 - middle) / sd

    def _curvature(self, step: float, nu2: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """−∂²log P by weights that all share [d, d], by each person's [A, d], and ∂log P by the latter, at the first fit."""
        at, d = self.at, len(self.at.centre)
        given = self._given(np.zeros(sum(one.n_dims for one in self.blocks)), 0.0)
        slope = np.concatenate([np.ones(self.n_judges), *(one.slope for one in given)])
        offset = np.concatenate([np.zeros(self.n_judges), *(one.offset for one in given)])
        lapse = np.full(self.n_judges, self.priors.lapse[0] / sum(self.priors.lapse))
        none = np.zeros(len(at.features)) if at.effect_size > 0 else None

        def slopes(w: np.ndarray) -> np.ndarray:
            theta = np.tile(w, (self.n_people, 1))
            return self._answers(theta, np.full(d, nu2), none, slope, offset, lapse, given)[1].theta

        moved = [(slopes(at.centre - one) - slopes(at.centre + one)) / (2 * step) for one in step * np.eye(d)]
        people = np.stack([each[:, j] for j, each in enumerate(moved)], axis=1)
        return np.stack([each.sum(0) for each in moved]), np.maximum(people, 0.0), slopes(at.centre)

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
        at, effects = self.at, self.at.effect_size > 0
        columns = _by_person(scales)
        self.scales = LinearRows.of(columns, at.features, at.known, with_effects=effects) if scales else None
        self.levels = (
            ScaleRows(*(columns[f] for f in ("upper", "top", "bottom", "n_levels", "lapse"))) if scales else None
        )
        columns = _by_person(numbers)
        self.numbers = LinearRows.of(columns, at.features, at.known, with_effects=effects) if numbers else None
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
        """Everything at its prior's centre; w, what tastes share and raters of labels and ratings at the first fit."""
        x = np.zeros(self.n_dims)
        x[self.place["lapse"]] = math.log(self.priors.lapse[0] / self.priors.lapse[1])
        x[self.place["spreads"]][2] = self.first_taste
        return x

    def _placed(self, x: np.ndarray) -> PlacedWeights:
        z, p = x[..., self.place["spreads"]], self.priors
        tau = self._apart(p.taste[0] + p.taste[1] * z[..., 2], x[..., self.place["apart"]])
        return self.sized.at(x[..., self.place["w"]], z[..., 4], tau)

    def _apart(self, shared: np.ndarray, z: np.ndarray) -> np.ndarray:
        """τ′ or ν′, [d], whose geometric mean is what they share; in units of a weight this is the logarithm of that."""
        return np.exp(
            (shared - self.sized.log_first / 2)[..., None] + self.priors.apart * (z - z.mean(-1, keepdims=True))
        )

    def _unit_nu2(self, z: np.ndarray) -> np.ndarray:
        """ν′² of every direction, [d], where z = 1: what they share is n."""
        return self._apart(np.full(z.shape[:-1], math.log(self.priors.wavering)), z) ** 2

    def weights(self, x: np.ndarray) -> np.ndarray:
        """w of draws [S, n_dims]."""
        return self._placed(x).weights

    def spreads(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """σ, β, geometric means of τ and ν (logits a unit of a feature), and λ, of draws [S, n_dims]."""
        p, z, now = self.priors, x[..., self.place["spreads"]], self._placed(x)
        unit = now.log_unit - self.sized.log_first / 2
        logs = [m + s * z[..., i] for i, (m, s) in enumerate((p.competence, p.side, p.taste))]
        waver = p.wavering * np.abs(z[..., 3]) ** 3 * np.exp(unit)
        return {"competence_sd": np.exp(logs[0]), "side_sd": np.exp(logs[1]), "taste_sd": np.exp(logs[2] + unit),
                "waver_sd": waver, "precision": np.exp(now.log_precision)}  # fmt: skip

    def tastes(self, x: np.ndarray) -> np.ndarray:
        """u of every person, [A, d], at [n_dims]."""
        now, own = self._placed(x), x[self.place["taste"]].reshape(self.n_people, -1)
        return self.people.at(own, now.shape, now.spread).standard * now.spread * math.exp(float(now.log_size))

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """log density and gradient at [n_dims]."""
        if not float(np.abs(x).max()) <= FARTHEST:  # a step that went astray: nothing is to be gained there
            return -math.inf, np.zeros_like(x)
        with np.errstate(over="ignore", invalid="ignore"):  # on the way there
            value, gradient = self._at(x)
        return (value, gradient) if math.isfinite(value) else (-math.inf, np.zeros_like(x))

    def _at(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        p, part, now = self.priors, {name: x[where] for name, where in self.place.items()}, self._placed(x)
        z, log_size, tau = part["spreads"], float(now.log_size), now.spread
        sigma, beta = (math.exp(m + s * float(z[i])) for i, (m, s) in enumerate((p.competence, p.side)))
        size, unit = math.exp(log_size), math.exp(float(now.log_unit))
        unit_nu2 = unit**2 * self._unit_nu2(part["waver"])
        nu2 = z[3] ** 6 * unit_nu2
        tastes = self.people.at(part["taste"].reshape(self.n_people, -1), now.shape, tau)
        standard, lapse = tastes.standard, 1 / (1 + np.exp(-part["lapse"]))
        theta = size * (now.shape + tau * standard)
        effect_sd = self.at.effect_size * unit / math.sqrt(self.sized.first)
        of_texts = effect_sd * part["effect"] if len(part["effect"]) else None
        given = self._given(part["blocks"], -log_size)
        slope = np.concatenate([1 + sigma * part["competence"], *(one.slope for one in given)])
        offset = np.concatenate([beta * part["side"], *(one.offset for one in given)])
        # 1. the answers
        value, by = self._answers(theta, nu2, of_texts, slope, offset, lapse, given)
        # 2. their gradient, and that of what has normal priors
        n, own = self.n_judges, slice(0, self.n_judges)
        d_a, d_b = by.slope[own], by.offset[own]
        log_prior, d_blocks, d_shift = self._pulled(part["blocks"], given, by, -log_size)
        d_own, d_shape, d_spread = tastes.pull(size * tau * by.theta - standard)
        d_spread += size * (by.theta * standard).sum(0) * tau
        d_nu = 2 * nu2 * by.nu2
        # what tastes share before the mean of their own is added has the prior
        z_tau = float(z[2]) - p.apart * float(part["apart"].mean()) / p.taste[1]
        z_lam = (float(now.log_precision) - p.precision[0]) / p.precision[1]
        d_unit = 2 * z_lam / p.precision[1] + float(d_nu.sum())
        d_unit += float(by.texts @ of_texts) if of_texts is not None else 0.0
        d_size = float((by.theta * theta).sum()) - d_shift + d_unit
        d_x, d_tau = self.sized.pull(
            now, size * by.theta.sum(0) + d_shape, d_spread, self.sized.follows * d_size - d_unit
        )
        gradient = -x  # of the standard normal coordinates
        if of_texts is not None:
            gradient[self.place["effect"]] += effect_sd * by.texts
        gradient[self.place["w"]], gradient[self.place["blocks"]] = d_x, d_blocks
        gradient[self.place["competence"]] += sigma * d_a
        gradient[self.place["side"]] += beta * d_b
        gradient[self.place["taste"]] = d_own.ravel()
        gradient[self.place["apart"]] += p.apart * (d_tau - d_tau.mean() + z_tau / (len(d_tau) * p.taste[1]))
        gradient[self.place["waver"]] += p.apart * (d_nu - d_nu.mean())
        alpha, omega = p.lapse
        gradient[self.place["lapse"]] = by.lapse[:n] * lapse * (1 - lapse) + alpha - (alpha + omega) * lapse
        gradient[self.place["spreads"]] = np.array([
            p.competence[1] * sigma * float(d_a @ part["competence"]) - z[0], p.side[1] * beta * float(d_b @ part["side"]) - z[1],
            p.taste[1] * float(d_tau.sum()) - z_tau, 6 * z[3] ** 5 * float(by.nu2 @ unit_nu2) - z[3],
            self.sized.step * d_size,
        ])  # fmt: skip
        # 3. the priors
        plain = sum(float(part[name] @ part[name]) for name in ("competence", "side", "apart", "waver", "effect"))
        plain += z[0] ** 2 + z[1] ** 2 + z_tau**2 + z[3] ** 2 + z_lam**2 + float((standard * standard).sum())
        value += tastes.log_volume() - self.sized.first * float(now.plain @ now.plain) / 2 - plain / 2 + log_prior
        value += float((alpha * np.log(lapse + TINY) + omega * np.log1p(-lapse)).sum())
        return value, gradient

    def _given(self, z: np.ndarray, shift: float) -> list[Given]:
        return [block.at(z[own], shift) for block, own in zip(self.blocks, self.own, strict=True)]

    def _pulled(self, z: np.ndarray, given: Sequence[Given], by: Pull, shift: float) -> tuple[float, np.ndarray, float]:
        """Log prior of the blocks, and the gradient by their coordinates and by the shift of their gains."""
        total, d_shift, found, places = 0.0, 0.0, [np.zeros(0)], [self.n_judges, self.n_judges, 0, 0]
        for block, own, now in zip(self.blocks, self.own, given, strict=True):
            each = []
            for i, name in enumerate(("slope", "offset", "cuts", "noise")):
                end = places[i] + len(getattr(now, name))
                each.append(getattr(by, name)[places[i] : end])
                places[i] = end
            log_prior, gradient, d_own = block.pull(z[own], Given(*each), shift)
            total, d_shift = total + log_prior, d_shift + d_own
            found.append(gradient)
        return total, np.concatenate(found), d_shift

    def _answers(
        self, theta: np.ndarray, nu2: np.ndarray, of_texts: np.ndarray | None, slope: np.ndarray, offset: np.ndarray,
        lapse: np.ndarray, given: Sequence[Given],
    ) -> tuple[float, Pull]:  # fmt: skip
        """Σ log P of everything, and its derivatives by what the coordinates stand for."""
        cuts, noise = (np.concatenate([np.zeros(0), *(getattr(g, name) for g in given)]) for name in ("cuts", "noise"))
        sizes = (len(self.at.features), len(slope), len(offset), self.n_judges + 1, len(cuts), len(noise))
        by = Pull(np.zeros_like(theta), np.zeros_like(nu2), *(np.zeros(size) for size in sizes))
        value, never = 0.0, np.append(lapse, 0.0)
        if self.scales is not None and self.levels is not None:
            rows, levels = self.scales, self.levels
            e, a = rows.score(theta, of_texts), slope[rows.slope]
            waver = rows.squared @ nu2
            kappa = np.sqrt(1 + PROBIT * a**2 * waver)
            each, *found = levels.loglik(a * e + offset[rows.offset] * rows.sign, kappa, never, cuts)
            d_eta, d_kappa, d_lapse, d_up, d_low = (rows.weight * column for column in found)
            d_kappa = d_kappa * PROBIT / (2 * kappa)
            value += float(rows.weight @ each)
            rows.pull(by, d_eta, d_eta * e + d_kappa * 2 * a * waver, a)
            by.nu2 += rows.squared.T @ (d_kappa * a**2)
            by.lapse += np.bincount(levels.lapse, d_lapse, len(by.lapse))
            by.cuts += np.bincount(levels.upper, d_up, len(cuts)) + np.bincount(levels.upper - 1, d_low, len(cuts))
        if self.numbers is not None and self.values is not None:
            rows = self.numbers
            e, a = rows.score(theta, of_texts), slope[rows.slope]
            each, *found = self.values.loglik(a * e + offset[rows.offset] * rows.sign, noise)
            d_eta, d_sd = (rows.weight * column for column in found)
            value += float(rows.weight @ each)
            rows.pull(by, d_eta, d_eta * e, a)
            by.noise += np.bincount(self.values.noise, d_sd, len(noise))
        for one in self.choices:
            each_value, d_local, d_a, d_lapse, d_nu2 = one.loglik(theta, of_texts, slope, lapse, nu2)
            value += each_value
            one.people.add(by.theta, np.einsum("ck,ckd->cd", d_local, one.phi))
            by.slope += np.bincount(one.judge, d_a, len(slope))
            by.lapse += np.bincount(one.judge, d_lapse, len(by.lapse))
            by.nu2 += d_nu2
            if of_texts is not None:
                by.texts += np.bincount(one.plain_text, d_local.ravel(), len(by.texts))
        return value, by


def _by_person(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Columns of several channels, the answers of each person together."""
    if not rows:
        return {}
    order = np.argsort(np.concatenate([row["person"] for row in rows]), kind="stable")
    return {name: np.concatenate([row[name] for row in rows])[order] for name in rows[0]}
