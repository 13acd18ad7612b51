"""What raters of labels and ratings bring to their answers, as coordinates that are drawn with the weights.

    label               η = g·r − t_w       t_w = t + τ_t·z_w                                   g = 1 where nobody compares
    rating              η = g_w·r + o_w     o_w = o + τ_o·z_w     g_w = g·(1 + τ_g·z′_w)        g = 0.15, or 1, where nobody compares
    Gaussian rating     noise s_w = exp(log s + τ_s·z″_w) + least     ordinal: cutpoints c_1, c_2 − c_1 = exp …
    comparison          cutpoints J·exp(m + s·z) of its scale

A block turns its coordinates into slopes, offsets, cutpoints and noise, and derivatives by those into a gradient; it has the
priors of `karat.reward.latents`. Coordinates begin at 0, where the first fit is. A gain is drawn as what it makes of the scores as they
are: twice the weights with half of the gain are nearly the same answers, and chains would creep along that ridge. Knows columns and
fitted parameters.

What a rater brings is her population's and her own: x_w = x + τ·z_w. Where she says much, her answers fix x_w, and a chain that moves x would have
to move all z_w against it; where she says little, z_w is the prior's. Coordinates therefore go z_w = z_w⁰ + ζ_w − a_w·(x − x⁰)/τ with a_w = τ²h_w/(1 + τ²h_w), h_w her
answers' curvature (Papaspiliopoulos, Roberts & Sköld 2007, Statistical Science 22(1), pp. 59–73).

Dimension letters: A raters of the channel, K levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from karat.feedback_columns import Channel, LabelBatch, LabelParams, RatingBatch
from karat.ratings import RatingParams
from karat.reward.latents import (
    LEAST_NOISE,
    LOG_GAIN_SD,
    LOG_NOISE_SD,
    MEAN_SD,
    OFFSET_LOGITS,
    RATING_GAIN,
    RATING_NOISE,
    THRESHOLD_MEAN_SD,
)
from karat.reward.linear_votes import step_matrix
from karat.reward.raters import RaterPriors

BINARY_CURVATURE = 0.2
"""−∂² log P of a label or an ordinal rating, logits, about."""
CUT_SD = 10.0
"""Weak normal prior on raw cutpoints of ordinal ratings, as `latents` has it."""


@dataclass(frozen=True, eq=False)
class Given:
    """What a block's coordinates stand for."""

    slope: np.ndarray
    """What multiplies scores."""
    offset: np.ndarray
    """What is added to them."""
    cuts: np.ndarray
    """Thresholds with their infinite ends, which are 0 here and never read, [K + 1]."""
    noise: np.ndarray
    """Standard deviations."""


NONE = np.zeros(0)


class Block(Protocol):
    """The coordinates of a channel's thresholds and raters."""

    n_dims: int
    who: np.ndarray
    """Place of each answer's rater in what the block gives, [C]."""

    def at(self, z: np.ndarray, shift: float = 0.0) -> Given:
        """What the coordinates stand for, where gains that are free are moved by `shift` in their logarithm."""
        ...

    def pull(self, z: np.ndarray, by: Given, shift: float = 0.0) -> tuple[float, np.ndarray, float]:
        """Log prior, and the gradient of likelihood and prior by coordinates and shift, from derivatives by what they stand for."""
        ...


class ScaleBlock:
    """The cutpoints of a scale of comparisons; of two levels nothing is to be found."""

    def __init__(self, n_levels: int, prior: tuple[float, float]) -> None:
        self.steps, self.prior = step_matrix(n_levels), prior
        self.n_dims, self.who = self.steps.shape[1], np.zeros(0, dtype=int)

    def at(self, z: np.ndarray, shift: float = 0.0) -> Given:  # noqa: ARG002 a protocol
        """Cutpoints."""
        return Given(NONE, NONE, self.steps @ np.exp(self.prior[0] + self.prior[1] * z), NONE)

    def pull(self, z: np.ndarray, by: Given, shift: float = 0.0) -> tuple[float, np.ndarray, float]:  # noqa: ARG002
        """Steps are log-normal."""
        lengths = np.exp(self.prior[0] + self.prior[1] * z)
        return -float(z @ z) / 2, self.prior[1] * lengths * (self.steps.T @ by.cuts) - z, 0.0


class LabelBlock:
    """Thresholds of those who label, and the gain where others fix the scale."""

    def __init__(self, channel: Channel, own: LabelParams, priors: RaterPriors, *, free_gain: bool) -> None:
        assert isinstance(channel.columns, LabelBatch)
        present, self.who = np.unique(channel.columns.annotator.numpy(), return_inverse=True)
        self.sd, n = (priors.threshold_sd if priors.modelled else 0.0), len(present)
        threshold = own.threshold.double().numpy()
        self.mean = float(threshold[-1])
        self.first = (threshold[present] - self.mean) / self.sd if self.sd else np.zeros(n)
        self.log_gain, self.free = math.log(float(own.gain)), float(free_gain)
        self.step = min(1.0, 2.2 / math.sqrt(len(channel)) + self.sd / math.sqrt(n))
        self.taken = _fixed(self.sd, BINARY_CURVATURE * np.bincount(self.who))
        self.n_dims = 2 + n

    def _values(self, z: np.ndarray, shift: float) -> tuple[float, float, np.ndarray]:
        log_gain = self.log_gain + self.free * (LOG_GAIN_SD / 4 * z[1] + shift)
        return self.mean + self.step * z[0], log_gain, self.first + z[2:] - self.step * z[0] * self.taken

    def at(self, z: np.ndarray, shift: float = 0.0) -> Given:
        """One gain, a threshold a rater, and the cutpoint 0 of good and bad."""
        mean, log_gain, own = self._values(z, shift)
        return Given(np.array([math.exp(log_gain)]), -(mean + self.sd * own), np.zeros(3), NONE)

    def pull(self, z: np.ndarray, by: Given, shift: float = 0.0) -> tuple[float, np.ndarray, float]:
        """t ~ N(0, 10²), log g ~ N(0, 0.7²), z ~ N(0, 1)."""
        mean, log_gain, own = self._values(z, shift)
        d_mean = -float(by.offset.sum()) - mean / THRESHOLD_MEAN_SD**2
        d_gain = float(by.slope[0]) * math.exp(log_gain) - log_gain / LOG_GAIN_SD**2
        log_prior = (
            -((mean / THRESHOLD_MEAN_SD) ** 2 + self.free * (log_gain / LOG_GAIN_SD) ** 2 + float(own @ own)) / 2
        )
        pinned = (1 - self.free) * z[1]  # a coordinate that stands for nothing is drawn from its prior
        d_fixed = d_gain * LOG_GAIN_SD / 4 * self.free - pinned
        d_own = -self.sd * by.offset - own
        gradient = np.concatenate([[self.step * (d_mean - float(d_own @ self.taken)), d_fixed], d_own])
        return log_prior - pinned * z[1] / 2, gradient, self.free * d_gain


class RatingBlock:
    """Offsets, gains and noise of those who rate; of ordinal ratings offsets, gains and cutpoints."""

    def __init__(self, channel: Channel, own: RatingParams, priors: RaterPriors, *, free_gain: bool) -> None:
        columns = channel.columns
        assert isinstance(columns, RatingBatch)
        self.ordinal, known = own.cutpoints is not None, float(priors.modelled)
        present, self.who = np.unique(columns.annotator.numpy(), return_inverse=True)
        n = self.n = len(present)
        self.offset_sd = known * priors.offset_sd * (OFFSET_LOGITS if self.ordinal else 1.0)
        self.gain_sd, self.noise_sd = known * priors.gain_sd, known * priors.noise_sd
        gain, offset, sd = (getattr(own, name).double().numpy() for name in ("gain", "offset", "sd"))
        self.log_gain, self.free = math.log(float(gain[-1])), float(free_gain)
        self.gain_centre = 0.0 if self.ordinal else math.log(RATING_GAIN)
        self.least = max(LEAST_NOISE, columns.step / math.sqrt(12))
        self.mean, self.log_sd = float(offset[-1]), math.log(max(float(sd[-1]) - self.least, 1e-4))
        cuts = own.cutpoints.double().numpy() if own.cutpoints is not None else NONE
        self.raw = np.concatenate([cuts[:1], np.log(np.diff(cuts))]) if self.ordinal else NONE
        self.first = np.zeros((3, n))
        if known:
            self.first[0] = (offset[present] - self.mean) / self.offset_sd
            self.first[1] = (gain[present] / gain[-1] - 1) / self.gain_sd
        noise = float(sd[-1]) / math.sqrt(len(channel))
        self.step = 0.3 if self.ordinal else noise + self.offset_sd / math.sqrt(n)
        # population's offset or cutpoints, gain, noise; then each rater's
        n_each, n_said = np.bincount(self.who), len(channel)
        # few ratings are fitted too well: the belief counts as five more
        variance = (n_said * float(sd[-1]) ** 2 + 5 * RATING_NOISE**2) / (n_said + 5)
        known_by = BINARY_CURVATURE * n_each if self.ordinal else n_each / variance
        self.taken = _fixed(self.offset_sd, known_by) * (-1.0 if self.ordinal else 1.0)  # cutpoints up is offsets down
        signal = 0.0 if self.ordinal else max(float(columns.value.double().var(correction=0)) / variance - 1, 0.0)
        self.taken_gain = self.free * _fixed(self.gain_sd, signal * n_each)
        self.common = len(self.raw) if self.ordinal else 1
        self.n_dims = self.common + 2 + 3 * n

    def _values(self, z: np.ndarray, shift: float) -> tuple[np.ndarray, float, float, np.ndarray]:
        """The population's offset or raw cutpoints, log gain and log noise; the raters' deviations, [3, A]."""
        start = self.raw if self.ordinal else np.array([self.mean])
        log_gain, log_sd = z[self.common : self.common + 2] * (LOG_GAIN_SD / 4 * self.free, 0.2)
        own = self.first + z[self.common + 2 :].reshape(3, self.n)
        own[0] -= self.step * z[0] * self.taken
        own[1] -= log_gain * self.taken_gain
        log_gain += self.free * shift
        return start + self.step * z[: self.common], self.log_gain + log_gain, self.log_sd + log_sd, own

    def at(self, z: np.ndarray, shift: float = 0.0) -> Given:
        """A gain, an offset and a noise a rater, and cutpoints of an ordinal scale."""
        common, log_gain, log_sd, own = self._values(z, shift)
        mean, cuts = (0.0, np.zeros(len(common) + 2)) if self.ordinal else (common[0], NONE)
        if self.ordinal:
            cuts[1:-1] = common[0] + np.concatenate([[0.0], np.exp(common[1:]).cumsum()])
        noise = NONE if self.ordinal else np.exp(log_sd + self.noise_sd * own[2]) + self.least
        return Given(math.exp(log_gain) * (1 + self.gain_sd * own[1]), mean + self.offset_sd * own[0], cuts, noise)

    def pull(self, z: np.ndarray, by: Given, shift: float = 0.0) -> tuple[float, np.ndarray, float]:
        """o ~ N(½, 1), log g ~ N(centre, 0.7²), log s ~ N(log 0.2, 0.5²), raw cutpoints ~ N(0, 10²), z ~ N(0, 1)."""
        common, log_gain, log_sd, own = self._values(z, shift)
        gain = math.exp(log_gain)
        if self.ordinal:
            beyond = by.cuts[1:-1][::-1].cumsum()[::-1]  # a step moves all cutpoints behind it
            d_common = beyond * np.concatenate([[1.0], np.exp(common[1:])]) - common / CUT_SD**2
            log_prior = -float(common @ common) / CUT_SD**2 / 2
        else:
            d_common = np.array([by.offset.sum()]) - (common - 0.5) / MEAN_SD**2
            log_prior = -((float(common[0]) - 0.5) ** 2) / MEAN_SD**2 / 2
        off = (log_gain - self.gain_centre) / LOG_GAIN_SD
        d_gain = float(by.slope @ (1 + self.gain_sd * own[1])) * gain - off / LOG_GAIN_SD
        d_own = -own
        d_own[0] += self.offset_sd * by.offset
        d_own[1] += self.gain_sd * gain * by.slope
        d_common[0] -= float(d_own[0] @ self.taken)
        pinned, at = np.array([1 - self.free, float(self.ordinal)]), z[self.common : self.common + 2]
        d_log = d_gain - float(d_own[1] @ self.taken_gain)
        d_two = np.array([d_log * LOG_GAIN_SD / 4 * self.free, 0.0]) - pinned * at
        if not self.ordinal:
            free_noise = np.exp(log_sd + self.noise_sd * own[2]) * by.noise
            loud = (log_sd - math.log(RATING_NOISE)) / LOG_NOISE_SD
            d_two[1] += 0.2 * (float(free_noise.sum()) - loud / LOG_NOISE_SD)
            d_own[2] += self.noise_sd * free_noise
            log_prior -= loud**2 / 2
        log_prior -= (self.free * off**2 + float((own * own).sum()) + float(pinned @ at**2)) / 2
        return log_prior, np.concatenate([self.step * d_common, d_two, d_own.ravel()]), self.free * d_gain


def _fixed(sd: float, curvature: np.ndarray) -> np.ndarray:
    """a_w/τ: how far answers of this curvature fix what a rater brings, [A]; 0 where all are the same."""
    return sd * curvature / (1 + sd**2 * curvature)
