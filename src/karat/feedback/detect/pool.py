"""What the others say: for every vote, how likely each answer is, judged from everybody but the rater who gave it.

A light estimator, made to be left out of: two texts' strengths from a ridge Bradley–Terry fit to the raters of the
other folds, then the item's own votes without the rater's. Knows columns of votes. Knows nothing about habits or tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from karat.errors import ConvergenceError, InputError
from karat.feedback.detect.evidence import VoteRecord

N_FOLDS = 4
"""Raters are left out by quarters for the texts' strengths; on the item itself each is left out alone."""
RIDGE = 0.5
"""Inverse prior variance of a text's strength, in logits⁻²."""
CONCENTRATIONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Tried weights of the texts' strengths against the item's own votes, in votes."""
TIE_CONCENTRATION = 2.0
"""How many votes on an item the usual share of ties is worth."""


@dataclass(frozen=True, eq=False)
class Pool:
    """The answer of the others to the question of each vote; columns of length C, in the orientation of `direction`."""

    prior: np.ndarray
    """P(a decided vote prefers the text with the lower index), from the strengths of its texts alone."""
    counts: np.ndarray
    """Weight of the other raters' votes on the same item for the higher-index text, a tie, the lower-index text, "C 3"."""
    weight: np.ndarray
    """ω of the rater of each vote."""
    concentration: float
    """κ: how many votes on an item the prediction from its texts' strengths is worth."""
    usual_tie: float
    """Share of ties in the whole record."""

    @property
    def up(self) -> np.ndarray:
        """P(a decided vote of another rater prefers the text with the lower index)."""
        decided = self.counts[:, 0] + self.counts[:, 2]
        return (self.concentration * self.prior + self.counts[:, 2]) / (self.concentration + decided)

    @property
    def logit(self) -> np.ndarray:
        """Log-odds of `up`."""
        return np.log(self.up) - np.log1p(-self.up)

    @property
    def tie(self) -> np.ndarray:
        """P(another rater calls a tie)."""
        return (TIE_CONCENTRATION * self.usual_tie + self.counts[:, 1]) / (TIE_CONCENTRATION + self.counts.sum(axis=1))

    @property
    def probs(self) -> np.ndarray:
        """P(answer of another rater): higher-index text, tie, lower-index text, "C 3"."""
        return np.column_stack([(1 - self.tie) * (1 - self.up), self.tie, (1 - self.tie) * self.up])

    def without(self, rows: np.ndarray, unheard: np.ndarray) -> Pool:
        """The pool of some votes where other votes on their items are not heard.

        Args:
            rows: votes, "R".    unheard: weight of votes to leave out for each of them, "R 3".
        """
        counts = np.maximum(self.counts[rows] - unheard, 0.0)
        return Pool(self.prior[rows], counts, self.weight[rows], self.concentration, self.usual_tie)


def pool_view(record: VoteRecord, weights: np.ndarray | None = None) -> Pool:
    """What the others say about the question of each vote, its rater left out.

        s from the raters of the other folds:  log-odds(x over y) = s_x − s_y,  s ~ N(0, 1/RIDGE)
        p = (κ·σ(s_x − s_y) + Σ_{others} ω·[x preferred]) / (κ + Σ_{others} ω·[decided])

    Args:
        weights: ω of each rater, ≥ 0: 1 = a full vote, 0 = heard by nobody; None = 1 for all.
    Returns: the pool; κ is the one of CONCENTRATIONS that predicts the left-out votes best.
    Raises: InputError unless there is one weight ≥ 0 for each rater.
    Source: Bradley & Terry 1952, Biometrika 39; the item's share smoothed as a Beta posterior mean.
    Differs: no full posterior: a fit per left-out rater would be as many fits as raters; the strengths leave out a
        quarter of the raters at a time, which costs power (fewer votes), never independence.
    """
    omega = np.ones(record.n_annotators) if weights is None else np.asarray(weights, dtype=np.float64)
    if omega.shape != (record.n_annotators,) or np.any(~(omega >= 0)):
        raise InputError(f"pool_view: found weights of shape {omega.shape}; expected {record.n_annotators} numbers ≥ 0")
    direction, weight = record.direction, omega[record.annotator]
    decided = direction != 0
    prior = 1 / (1 + np.exp(-_predicted_gaps(record, weight * decided)))
    counts = np.column_stack([_others(record, weight * (direction == sign)) for sign in (-1, 0, 1)])
    kappa = _best_concentration(prior[decided], counts[decided], direction[decided] > 0, weight[decided])
    usual_tie = ((weight * ~decided).sum() + 1) / (weight.sum() + 3)
    return Pool(prior, counts, weight, kappa, float(usual_tie))


def _others(record: VoteRecord, amount: np.ndarray) -> np.ndarray:
    """The sum of an amount over the votes on the same item by other raters, for each vote."""
    whole = np.bincount(record.item, amount, record.n_items)
    _, place = np.unique(record.item * record.n_annotators + record.annotator, return_inverse=True)
    own = np.bincount(place, amount) if len(place) else np.empty(0)
    return np.maximum(whole[record.item] - own[place], 0.0)


def _best_concentration(prior: np.ndarray, counts: np.ndarray, up: np.ndarray, weight: np.ndarray) -> float:
    def fit(kappa: float) -> float:
        p = (kappa * prior + counts[:, 2]) / (kappa + counts[:, 0] + counts[:, 2])
        return float((weight * np.log(np.where(up, p, 1 - p))).sum())

    return max(CONCENTRATIONS, key=fit)


def _predicted_gaps(record: VoteRecord, weight: np.ndarray) -> np.ndarray:
    """s_x − s_y for each vote, from raters of other folds than its own."""
    if len(record) == 0:
        return np.empty(0)
    low, high = record.texts_in_order
    first = np.unique(record.item, return_index=True)[1]
    pairs = np.zeros((record.n_items, 2), dtype=np.int64)
    pairs[record.item[first]] = np.column_stack([low[first], high[first]])
    fold, up = record.annotator % N_FOLDS, record.direction > 0
    gaps = np.empty(len(record))
    for one in range(N_FOLDS):
        used = weight * (fold != one)
        strengths = _strengths(
            pairs, np.bincount(record.item, used * up, record.n_items), np.bincount(record.item, used, record.n_items),
            len(record.texts),
        )  # fmt: skip
        mine = fold == one
        gaps[mine] = strengths[low[mine]] - strengths[high[mine]]
    return gaps


def _strengths(pairs: np.ndarray, ups: np.ndarray, n: np.ndarray, n_texts: int, *, most_steps: int = 30) -> np.ndarray:
    """Ridge Bradley–Terry strengths by Newton's method, each step solved by conjugate gradients."""
    rows = np.repeat(np.arange(len(pairs)), 2)
    signs = np.tile([1.0, -1.0], len(pairs))
    design = sparse.csr_array((signs, (rows, pairs.ravel())), shape=(len(pairs), n_texts))
    turned = design.T.tocsr()
    strengths = np.zeros(n_texts)
    for _ in range(most_steps):
        p = 1 / (1 + np.exp(-(design @ strengths)))
        gradient = turned @ (ups - n * p) - RIDGE * strengths
        if np.abs(gradient).max(initial=0.0) < 1e-4 * (1 + n.max(initial=0.0)):
            return strengths
        curvature = n * p * (1 - p)
        # a step in logits is cut where the quadratic model is not to be trusted
        strengths = strengths + np.clip(_solve(design, turned, curvature, gradient), -2.0, 2.0)
    raise ConvergenceError(
        f"pool_view: the strengths of {n_texts} texts did not settle in {most_steps} steps; look for broken votes"
    )


def _solve(design: sparse.csr_array, turned: sparse.csr_array, curvature: np.ndarray, target: np.ndarray) -> np.ndarray:
    """x with (Dᵀ·diag(curvature)·D + RIDGE·I)·x = target, by conjugate gradients scaled by the diagonal."""
    scale = 1 / (abs(turned) @ curvature + RIDGE)
    x, residual = np.zeros_like(target), target.copy()
    step = scaled = scale * residual
    size = residual @ scaled
    for _ in range(50):
        if size <= 1e-12 * (target @ (scale * target) + 1e-300):
            break
        image = turned @ (curvature * (design @ step)) + RIDGE * step
        length = size / (step @ image)
        x, residual = x + length * step, residual - length * image
        scaled = scale * residual
        size, before = residual @ scaled, size
        step = scaled + (size / before) * step
    return x
