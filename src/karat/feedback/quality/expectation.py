"""What a rater is expected to answer, given what is known of the responses and of her: probabilities, agreement.

Uncertainty of scores and raters is integrated, not ignored; a rater without votes is a draw from the prior. Knows a
fitted `Reliability` and columns of comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karat.errors import InputError
from karat.feedback.quality.ordinal import Comparisons, level_probs
from karat.feedback.quality.reliability import Reliability

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
"""Gauss–Hermite nodes: measured error below 1e-5 for a spread of up to 3 logits."""
CHUNK = 1 << 15
"""Comparisons integrated at once."""
PRIOR_LAPSE = 0.05
"""Mean of Beta(1, 19): the lapse of a rater of whom nothing is known, where lapses are fitted."""


@dataclass(frozen=True, eq=False)
class ExpectedAgreement:
    """How often each rater agreed with the others, and how often she was expected to, one entry a rater."""

    observed: np.ndarray
    """Mean share of the others on the same pair who answered as she did."""
    expected: np.ndarray
    """The same share expected of her answers, the others' being as they are; NaN as observed without overlap."""
    sd: np.ndarray
    """Standard deviation of the observed share under the expectation."""
    n: np.ndarray
    """Her answers on pairs that somebody else answered too."""

    @property
    def z(self) -> np.ndarray:
        """(observed − expected) / sd: far below 0 = agrees less than somebody honest would."""
        return np.divide(self.observed - self.expected, self.sd, out=np.full(len(self.sd), np.nan), where=self.sd > 0)


def predicted_probs(
    fit: Reliability,
    delta: np.ndarray,
    delta_var: np.ndarray,
    side: np.ndarray,
    annotator: np.ndarray,
    n_levels: int,
) -> np.ndarray:
    """Probability of every level, [C, K], with what is not known integrated.

        η ~ N(a·Δ + b·side, (a² + Var a)·Var Δ + [Δ side]·Cov(a, b)·[Δ side]ᵀ)

    Args:
        delta, delta_var: s_a − s_b and its variance (`Reliability.difference`).    side: +1, −1, 0.
        annotator: index of the rater, −1 = one of whom no vote is known: N(1, τ²), N(0, τ_b²), the mean lapse.
        n_levels: a scale on which the model was fitted.
    Raises: InputError for another scale.
    """
    if n_levels not in fit.cutpoints:
        raise InputError(f"predicted_probs: found a scale of {n_levels} levels; fitted were {sorted(fit.cutpoints)}")
    priors = fit.priors
    unknown = np.asarray(annotator) < 0
    place = np.where(unknown, 0, annotator)
    a, b = np.where(unknown, 1.0, fit.competence[place]), np.where(unknown, 0.0, fit.side_bias[place])
    prior = np.diag([priors.competence_sd**2, priors.side_bias_sd**2])
    cov = np.where(unknown[:, None, None], prior, fit.rater_cov[place])
    lapse = np.where(unknown, PRIOR_LAPSE if priors.lapse is None else priors.lapse, fit.lapse[place])
    seen = np.stack([np.broadcast_to(delta, a.shape), np.broadcast_to(side, a.shape)], axis=-1).astype(float)
    spread = np.sqrt((a**2 + cov[:, 0, 0]) * delta_var + np.einsum("ci,cij,cj->c", seen, cov, seen))
    mean = a * seen[:, 0] + b * seen[:, 1]
    found = np.empty((len(mean), n_levels))
    for start in range(0, len(mean), CHUNK):
        part = slice(start, start + CHUNK)
        eta = mean[part, None] + spread[part, None] * NODES
        probs = level_probs(eta, fit.cutpoints[n_levels], lapse[part, None])
        found[part] = np.einsum("cnk,n->ck", probs, WEIGHTS / WEIGHTS.sum())
    return found


def direction_probs(fit: Reliability, votes: Comparisons, *, typical: bool) -> np.ndarray:
    """Probability that each comparison goes to b, is a tie, goes to a: [C, 3].

    Args:
        typical: True = as answered by a rater from the prior; False = by the rater who answered.
    """
    delta, delta_var = fit.difference(votes.a, votes.b)
    annotator = np.full(len(votes), -1) if typical else votes.annotator
    found = np.zeros((len(votes), 3))
    for k in np.unique(votes.n_levels).tolist():
        rows = votes.n_levels == k
        probs = predicted_probs(fit, delta[rows], delta_var[rows], votes.side[rows], annotator[rows], k)
        half = k // 2
        found[rows, 0], found[rows, 2] = probs[:, :half].sum(axis=1), probs[:, k - half :].sum(axis=1)
        found[rows, 1] = probs[:, half : k - half].sum(axis=1)
    return found


def expected_agreement(fit: Reliability, votes: Comparisons, *, typical: bool = True) -> ExpectedAgreement:
    """Agreement of each rater with the others on the same pairs, beside what the scores of the pairs let expect.

        observed = mean_i f_i(y_i)        expected = mean_i Σ_d P_i(d)·f_i(d)        f_i = shares of the others' answers

    Answers count by their direction: b better, tie, a better. The others' answers are taken as given, so hard pairs and
    careless others lower both sides alike.

    Args:
        typical: True = expected of a rater from the prior (is she worse than somebody honest?); False = of herself (does
            the model describe her?).
    Differs: the scores rest on her own votes too, which raises `expected` a little where a pair has few.
    """
    probs = direction_probs(fit, votes, typical=typical)
    top = votes.n_levels - 1
    given = 1 + np.sign(2 * votes.level - top)
    turned = votes.a > votes.b
    given, probs = np.where(turned, 2 - given, given), np.where(turned[:, None], probs[:, ::-1], probs)
    pair = np.minimum(votes.a, votes.b) * votes.n_scores + np.maximum(votes.a, votes.b)
    _, item = np.unique(pair, return_inverse=True)
    counts = np.zeros((int(item.max()) + 1 if len(item) else 0, 3))
    np.add.at(counts, (item, given), 1.0)
    others = counts[item] - np.eye(3)[given]
    n_others = others.sum(axis=1)
    rows = n_others > 0
    share = others[rows] / n_others[rows, None]
    mean = (probs[rows] * share).sum(axis=1)
    variance = (probs[rows] * share**2).sum(axis=1) - mean**2
    seen = share[np.arange(len(share)), given[rows]]
    n, *sums = (
        np.bincount(votes.annotator[rows], column, votes.n_annotators)
        for column in (np.ones(len(mean)), seen, mean, variance)
    )
    observed, expected = (np.divide(part, n, out=np.full(len(n), np.nan), where=n > 0) for part in sums[:2])
    sd = np.divide(np.sqrt(np.maximum(sums[2], 0)), n, out=np.zeros(len(n)), where=n > 0)
    return ExpectedAgreement(observed, expected, sd, n.astype(np.int64))
