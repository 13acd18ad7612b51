"""Answers of every kind for the density that draws weights, tastes and raters together: log-likelihoods and first derivatives.

    one number          η = slope·(Δφ·(w + u) + Δv) + offset
      by a scale        P(y ≤ k) = (1 − ε)·σ((c_k − η)/κ) + ε·(k + 1)/K        κ² = 1 + π/8·slope²·Σ_j ν_j²Δφ_j²
      Gaussian rating   N(y; η, s²), at an end of the scale "there or beyond"
    several scores      s_k = a·r_k/κ        P = (1 − ε)·P_0(order | s) + ε/orders        κ with the mean of Δφ_j² over pairs

u is the person's taste, v what single texts are liked for, ν what attention that comes and goes does, which Gaussian ratings keep in
their noise. Knows columns and features; knows nothing about priors.

Dimension letters: C answers, K candidates or levels, N texts, d features, A raters.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse, special

from karat.feedback_columns import Channel, FeedbackParams, RankBatch
from karat.feedback_likelihood import in_double, local_loglik
from karat.reward.channel_answers import by_autograd

PROBIT = math.pi / 8
ABSENT = 1e6
"""Score, below zero, of a candidate that is not there: none that is comes near it, and differences of two stay numbers."""


@dataclass(eq=False)
class Pull:
    """Derivatives of the likelihood by what the coordinates stand for."""

    theta: np.ndarray
    """By each person's weights, [A, d]."""
    nu2: np.ndarray
    """By ν², [d]."""
    texts: np.ndarray
    """By effects of texts, [N]; zeros where they have none."""
    slope: np.ndarray
    """By every slope."""
    offset: np.ndarray
    """By every offset."""
    lapse: np.ndarray
    """By the judges' lapses, and by that of those who never lapse."""
    cuts: np.ndarray
    """By the thresholds of all scales."""
    noise: np.ndarray
    """By every standard deviation."""


@dataclass(frozen=True, eq=False)
class ByPerson:
    """Sums over the answers of each person, which lie together."""

    present: np.ndarray
    """Who answered."""
    first: np.ndarray
    """Where the answers of each of them begin."""

    @classmethod
    def of(cls, person: np.ndarray) -> ByPerson:
        """person: of each answer, not falling."""
        return cls(*np.unique(person, return_index=True))

    def add(self, to: np.ndarray, each: np.ndarray) -> None:
        """Adds [C, d] to [A, d]."""
        to[self.present] += np.add.reduceat(each, self.first)


@dataclass(frozen=True, eq=False)
class LinearRows:
    """Answers that each depend on one number, person by person."""

    delta: np.ndarray
    """Δφ in the drawn directions, [C, d]."""
    squared: np.ndarray
    """Its squares."""
    known: np.ndarray
    """What the other directions add, [C]."""
    incidence: sparse.csr_matrix | None
    """±1 at the texts of each answer, [C, N]; None = texts have no effects of their own."""
    people: ByPerson
    """Whose answers lie where."""
    person: np.ndarray
    """Whose taste it is, [C]."""
    weight: np.ndarray
    """Share of a judgement, [C]."""
    slope: np.ndarray
    """Place of its slope among all slopes, [C]."""
    offset: np.ndarray
    """Place of its offset, [C]."""
    sign: np.ndarray
    """What the offset is multiplied by, [C]: the side, for a bias to a side."""

    @classmethod
    def of(
        cls, columns: dict[str, np.ndarray], features: np.ndarray, known: np.ndarray, *, with_effects: bool
    ) -> LinearRows:
        """columns: of answers sorted by person.    features, known: of every text."""
        a, b = columns["a"], columns["b"]
        paired, n, number = b >= 0, len(a), np.arange(len(a))
        delta, beside = features[a].copy(), known[a].copy()
        delta[paired] -= features[b[paired]]
        beside[paired] -= known[b[paired]]
        incidence = None
        if with_effects:
            entries = np.concatenate([np.ones(n), -np.ones(int(paired.sum()))])
            places = np.concatenate([number, number[paired]]), np.concatenate([a, b[paired]])
            incidence = sparse.csr_matrix((entries, places), shape=(n, len(features)))
        fields = (columns[name] for name in ("person", "weight", "slope", "offset", "sign"))
        return cls(delta, delta**2, beside, incidence, ByPerson.of(columns["person"]), *fields)

    def __len__(self) -> int:
        return len(self.slope)

    def score(self, theta: np.ndarray, of_texts: np.ndarray | None) -> np.ndarray:
        """Δφ·θ and what is added to it, [C]."""
        e = np.einsum("cd,cd->c", self.delta, theta[self.person]) + self.known
        return e if of_texts is None or self.incidence is None else e + self.incidence @ of_texts

    def pull(self, by: Pull, d_eta: np.ndarray, d_slope: np.ndarray, slope: np.ndarray) -> None:
        """Add what derivatives by η and slope of each answer are by everything else."""
        d_score = d_eta * slope
        self.people.add(by.theta, d_score[:, None] * self.delta)
        if self.incidence is not None:
            by.texts += self.incidence.T @ d_score
        by.slope += np.bincount(self.slope, d_slope, len(by.slope))
        by.offset += np.bincount(self.offset, d_eta * self.sign, len(by.offset))


@dataclass(frozen=True, eq=False)
class ScaleRows:
    """What is chosen on scales with cutpoints; one entry an answer."""

    upper: np.ndarray
    """Place of the threshold above the chosen level; the one below stands before it."""
    top: np.ndarray
    """True = the highest level, which has none above."""
    bottom: np.ndarray
    """True = the lowest level."""
    n_levels: np.ndarray
    """K."""
    lapse: np.ndarray
    """Place of the lapse among the judges'; the last place is of those who never lapse."""

    def loglik(
        self, eta: np.ndarray, kappa: np.ndarray, lapse: np.ndarray, cuts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """log P of each answer and its derivatives by η, κ, ε and by the threshold above and the one below."""
        miss, k = lapse[self.lapse], self.n_levels
        u, low = (cuts[self.upper] - eta) / kappa, (cuts[self.upper - 1] - eta) / kappa
        u, low = np.where(self.top, 500.0, u), np.where(self.bottom, -500.0, low)
        flip = np.where(u + low > 0, -1.0, 1.0)  # differences of probabilities near 0, not near 1
        p_u, p_low = _sigmoid(flip * u), _sigmoid(flip * low)
        q = np.abs(p_u - p_low)
        prob = (1 - miss) * q + miss / k + 1e-300
        d_u, d_low = (1 - miss) * p_u * (1 - p_u) / prob, -(1 - miss) * p_low * (1 - p_low) / prob
        d_kappa = -(u * d_u + low * d_low) / kappa
        return np.log(prob), -(d_u + d_low) / kappa, d_kappa, (1 / k - q) / prob, d_u / kappa, d_low / kappa


@dataclass(frozen=True, eq=False)
class NumberRows:
    """What is given on Gaussian scales; one entry an answer."""

    value: np.ndarray
    """Share of the scale."""
    half_step: np.ndarray
    """Half the distance of two ratings."""
    noise: np.ndarray
    """Place of the rater's noise."""

    def loglik(self, eta: np.ndarray, sd: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """log P of each answer and its derivatives by η and by s (`ratings.censored_rating_logpdf`)."""
        s = sd[self.noise]
        gap = (self.value - eta) / s
        value, first = -(gap**2) / 2 - np.log(s) - math.log(2 * math.pi) / 2, gap / s
        by_sd = (gap**2 - 1) / s
        ends = (self.value >= 1) | (self.value <= 0)
        if ends.any():
            sign = np.where(self.value[ends] >= 1, 1.0, -1.0)
            edge = np.where(sign > 0, 1 - self.half_step[ends], self.half_step[ends])
            t = sign * (eta[ends] - edge) / s[ends]
            value[ends] = special.log_ndtr(t)
            ratio = math.sqrt(2 / math.pi) / special.erfcx(-t / math.sqrt(2))
            first[ends], by_sd[ends] = sign * ratio / s[ends], -ratio * t / s[ends]
        return value, first, by_sd


class ChoiceRows:
    """Rankings and choices of the best of one channel, by the likelihood that trains and simulates them."""

    def __init__(self, channel: Channel, features: np.ndarray, known: np.ndarray, params: FeedbackParams) -> None:
        channel = channel.select(torch.argsort(channel.rater, stable=True))
        columns = channel.columns
        assert isinstance(columns, RankBatch)
        self.channel, self.texts, self.mask = channel, channel.texts.numpy(), columns.mask.numpy()
        self.phi, self.known = features[self.texts], known[self.texts]
        self.person, self.judge = channel.rater.numpy(), columns.annotator.numpy()
        self.weight = channel.weight.double().numpy()
        counted = self.mask[:, :, None].astype(float)
        n = counted.sum(1)
        apart = (self.phi - (self.phi * counted).sum(1, keepdims=True) / n[:, None]) * counted
        self.squared = 2 * (apart**2).sum(1) / np.maximum(n - 1, 1)  # mean of Δφ² over pairs of candidates
        c, k = self.texts.shape
        self.people, self.plain_text = ByPerson.of(self.person), self.texts.ravel()
        wide = in_double(params)
        self.plain = dataclasses.replace(
            wide, competence=torch.ones_like(wide.competence), lapse=torch.zeros_like(wide.lapse)
        )
        self.order: np.ndarray | None = None
        ties = params.log_tie is not None and len(params.log_tie) > 0
        if channel.kind == "best_of" or not ties:
            ranks = np.where(self.mask, columns.ranks.numpy(), np.iinfo(np.int64).max)
            order = np.argsort(ranks, axis=1, kind="stable")
            counted = np.take_along_axis(self.mask, order, 1)
            self.stage = counted & ((np.arange(k) == 0) | (channel.kind != "best_of"))
            self.order, self.absent = order + k * np.arange(c)[:, None], ~counted  # places in the whole table
            self.not_before = np.tril(np.ones((k, k)))
        always = dataclasses.replace(self.plain, lapse=torch.ones_like(wide.lapse))
        self.log_blind = local_loglik(torch.zeros(c, k, dtype=torch.float64), channel, always).numpy()

    def loglik(
        self, theta: np.ndarray, of_texts: np.ndarray | None, competence: np.ndarray, lapse: np.ndarray, nu2: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Σ log P, and its derivatives by each score [C, K], by competence and lapse of each answer, and by ν².

        Args:
            theta: weights of each person, [A, d].    of_texts: v, [N]; None = no effects.
        """
        local = np.einsum("ckd,cd->ck", self.phi, theta[self.person]) + self.known
        if of_texts is not None:
            local = local + of_texts[self.texts]
        a, miss = competence[self.judge], lapse[self.judge]
        waver = self.squared @ nu2
        kappa = np.sqrt(1 + PROBIT * a**2 * waver)
        scores = local * (a / kappa)[:, None]
        plain, first = self._plain(scores)
        attentive, blind = np.exp(plain), np.exp(self.log_blind)
        prob = (1 - miss) * attentive + miss * blind + 1e-300
        pull = (self.weight * (1 - miss) * attentive / prob)[:, None] * first
        d_kappa = -(pull * scores).sum(1) / kappa
        d_a = (pull * local).sum(1) / kappa + d_kappa * PROBIT * a * waver / kappa
        d_nu2 = self.squared.T @ (d_kappa * PROBIT * a**2 / (2 * kappa))
        d_lapse = self.weight * (blind - attentive) / prob
        return float(self.weight @ np.log(prob)), pull * (a / kappa)[:, None], d_a, d_lapse, d_nu2

    def _plain(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log P_0 and its slopes: in closed form where nobody ties, which is five times as fast as by automatic differentiation.

        log P_0 = Σ_{j ≤ stages} s_(j) − log Σ_{l ≥ j} exp s_(l)        a choice of the best is the first stage alone
        """
        if self.order is None:
            value, first, _ = by_autograd(torch.from_numpy(scores), self.channel, self.plain, curved=False)
            return value, first
        ordered = scores.ravel()[self.order]
        ordered[self.absent] = -ABSENT
        left = np.logaddexp.accumulate(ordered[:, ::-1], axis=1)[:, ::-1]
        value = ((ordered - left) * self.stage).sum(1)
        left[~self.stage] = ABSENT  # what is no stage takes nothing away
        share = np.einsum(
            "cij,ij->ci", np.exp(np.minimum(ordered[:, :, None] - left[:, None, :], 0.0)), self.not_before
        )
        first = np.empty_like(scores)
        first.ravel()[self.order] = self.stage - share
        return value, first


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))
