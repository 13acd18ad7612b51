"""How far raters agree: raw pairwise agreement and Krippendorff's alpha, with intervals over items or over raters.

Individual votes in, Estimates out. Knows nothing about models of raters; a consensus is somebody else's view.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import krippendorff
import numpy as np
from scipy import stats as distributions

from karat.errors import InputError
from karat.records import Estimate, Vote

Over = Literal["item", "annotator"]
LEVEL = 0.95
N_GROUPS = 20
"""Groups of raters in the jackknife: t with 19 degrees of freedom."""


def pairwise_agreement(
    votes: Sequence[Vote], rng: np.random.Generator, *, ties: bool = True, over: Over = "item", n_draws: int = 1000
) -> Estimate:
    """How often two different raters of the same pair of responses gave the same answer.

        Σ_items Σ_levels n(n − 1) / Σ_items N(N − 1)        n votes of one level, N votes on the item

    Strength counts only by its direction: a better, tie, b better.

    Args:
        ties: False = votes that are ties are left out first.
        over: "item" = bootstrap of items; "annotator" = jackknife over groups of raters.
    Returns: the estimate; n counts items with at least two votes (or raters), value None where there are none.
    """
    return _estimate(_Table(votes, ties=ties), rng, _agreement, "pairwise agreement", over=over, n_draws=n_draws)


def alpha(
    votes: Sequence[Vote],
    rng: np.random.Generator,
    *,
    measurement: Literal["nominal", "ordinal", "interval"] = "nominal",
    over: Over = "item",
    n_draws: int = 300,
) -> Estimate:
    """Krippendorff's alpha of the direction of votes: 1 = perfect agreement, 0 = that of chance.

        α = 1 − observed disagreement / disagreement expected from the pooled votes

    Args:
        measurement: metric of the difference between two votes.    over: as in `pairwise_agreement`.
    Returns: the estimate; value None with method "undefined: …" where all votes are equal or no item has two votes.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"; package krippendorff.
    """

    def statistic(counts: np.ndarray) -> float | None:
        return _alpha(counts, measurement)

    return _estimate(_Table(votes, ties=True), rng, statistic, f"{measurement} alpha", over=over, n_draws=n_draws)


class _Table:
    """Votes as columns: item, rater, direction (0 b, 1 tie, 2 a, seen from the first text of the item)."""

    def __init__(self, votes: Sequence[Vote], *, ties: bool) -> None:
        kept = [vote for vote in votes if ties or 2 * vote.level != vote.n_levels - 1]
        items: dict[tuple[str, str], int] = {}
        raters: dict[str, int] = {}
        self.item = np.zeros(len(kept), dtype=np.int64)
        self.rater = np.zeros(len(kept), dtype=np.int64)
        self.value = np.zeros(len(kept), dtype=np.int64)
        for i, vote in enumerate(kept):
            direction = int(np.sign(2 * vote.level - (vote.n_levels - 1)))
            first, second = sorted((vote.a, vote.b))
            self.item[i] = items.setdefault((first, second), len(items))
            self.rater[i] = raters.setdefault(vote.annotator, len(raters))
            self.value[i] = 1 + (direction if first == vote.a else -direction)
        self.n_items, self.n_raters = len(items), len(raters)

    def counts(self, keep_mask: np.ndarray | None = None) -> np.ndarray:
        """Votes of each direction on each item, "N 3"."""
        counts = np.zeros((self.n_items, 3), dtype=np.int64)
        chosen = slice(None) if keep_mask is None else keep_mask
        np.add.at(counts, (self.item[chosen], self.value[chosen]), 1)
        return counts


def _estimate(
    table: _Table,
    rng: np.random.Generator,
    statistic: Callable[[np.ndarray], float | None],
    name: str,
    *,
    over: Over,
    n_draws: int,
) -> Estimate:
    if over not in ("item", "annotator"):
        raise InputError(f"{name}: found over={over!r}; expected 'item' or 'annotator'")
    counts = table.counts()
    counts = counts[counts.sum(axis=1) >= 2]
    n = len(counts) if over == "item" else table.n_raters
    if len(counts) == 0:
        return Estimate(None, None, None, n, "undefined: no item has two votes")
    value = statistic(counts)
    if value is None:
        return Estimate(None, None, None, n, "undefined: no variation")
    if over == "item":
        drawn = [statistic(counts[rng.integers(len(counts), size=len(counts))]) for _ in range(n_draws)]
        known = [each for each in drawn if each is not None]
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if known else (None, None)
        method = f"{name}; {LEVEL:.0%} percentile bootstrap over items, {len(known)} draws"
    else:
        low, high = _jackknife(table, rng, statistic, value)
        method = f"{name}; {LEVEL:.0%} jackknife over {min(N_GROUPS, table.n_raters)} groups of raters, t interval"
    return Estimate(value, _float(low), _float(high), n, method)


def _jackknife(
    table: _Table, rng: np.random.Generator, statistic: Callable[[np.ndarray], float | None], value: float
) -> tuple[float | None, float | None]:
    """Interval from leaving out one group of raters at a time.

    Not a bootstrap: a rater drawn twice would agree with herself, and agreement would be biased upwards.
    """
    n_groups = min(N_GROUPS, table.n_raters)
    group = rng.permutation(table.n_raters) % n_groups
    without = [statistic(table.counts(group[table.rater] != one)) for one in range(n_groups)]
    known = np.array([each for each in without if each is not None])
    if len(known) < max(2, n_groups):
        return None, None
    error = np.sqrt((len(known) - 1) / len(known) * ((known - known.mean()) ** 2).sum())
    reach = distributions.t.ppf((1 + LEVEL) / 2, len(known) - 1) * error
    return value - reach, value + reach


def _agreement(counts: np.ndarray) -> float | None:
    n_votes = counts.sum(axis=1)
    pairs = (n_votes * (n_votes - 1)).sum()
    return None if pairs == 0 else float((counts * (counts - 1)).sum() / pairs)


def _alpha(counts: np.ndarray, measurement: str) -> float | None:
    counts = counts[counts.sum(axis=1) >= 2]
    if (counts.sum(axis=0) > 0).sum() < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(krippendorff.alpha(value_counts=counts, value_domain=[0, 1, 2], level_of_measurement=measurement))


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
