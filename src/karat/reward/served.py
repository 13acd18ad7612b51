"""Whom a reward serves: accuracy by person, by group, and for the worst-served tenth, with intervals over people.

Knows whether each held-out vote was predicted, who gave it and her group; knows nothing about the reward.

Dimension letters: C comparisons, U people, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from karat.errors import InputError
from karat.records import Estimate
from karat.resampling import (
    FEW_CLUSTERS,
    N_DRAWS,
    cluster_sums,
    cluster_weights,
    not_estimable,
    percent,
    percentile_interval,
)
from karat.stats import proportion

DECILE = 0.1


@dataclass(frozen=True)
class Served:
    """How well one reward predicts the votes of whom."""

    overall: Estimate
    """Accuracy over all votes, interval over people."""
    by_group: tuple[tuple[str, Estimate], ...]
    """Accuracy of each group, in the order of the names."""
    worst_group: Estimate
    """The smallest of them; the interval finds the smallest anew on each draw. Not estimable without two groups."""
    worst_decile: Estimate
    """Mean accuracy of the worst-served tenth of the people, found anew on each draw."""
    if_equal: float | None
    """What the worst tenth would show if everybody were served alike: chance alone makes one. None without people."""


def predicted_side(probs: np.ndarray) -> np.ndarray:
    """[C] 1 = a is predicted, 0 = b, ½ = both are as likely, from probabilities of the levels [C, K]."""
    half = probs.shape[1] // 2
    gap = probs[:, probs.shape[1] - half :].sum(1) - probs[:, :half].sum(1)
    return 0.5 + 0.5 * np.sign(gap)


def correct(predicted: np.ndarray, level: np.ndarray, n_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether decided votes were predicted (½ where no side was), and which votes these are.

    Returns: [D] in {0, ½, 1} and [D] positions of the votes that are no ties.
    """
    doubled = 2 * np.asarray(level) - (n_levels - 1)
    decided = np.flatnonzero(doubled)
    said = (doubled[decided] > 0).astype(float)
    return 1 - np.abs(np.asarray(predicted)[decided] - said), decided


def served(
    right: np.ndarray,
    person: np.ndarray,
    rng: np.random.Generator,
    *,
    group: np.ndarray | None = None,
    groups: Sequence[str] = (),
    min_votes: int = 5,
    n_draws: int = N_DRAWS,
) -> Served:
    """Accuracy over all, by group, in the worst group and for the worst tenth.

    Args:
        right: [C] in [0, 1], one a held-out vote.    person: [C] her index.    rng: draws people.
        group: [U] index into `groups` of each person; None = no groups are known.
        min_votes: people with fewer held-out votes are left out of the worst tenth: one vote is right or wrong.
    Raises: InputError for unequal lengths.
    """
    right, person = np.asarray(right, dtype=float), np.asarray(person, dtype=np.int64)
    if right.shape != person.shape or right.ndim != 1:
        raise InputError(f"served: found {right.shape} outcomes of {person.shape} people; expected one of each a vote")
    overall = proportion(right, person, rng, n_draws=n_draws)
    by_group = []
    if group is not None:
        of_vote = np.asarray(group)[person]
        by_group = [
            (name, proportion(right[of_vote == g], person[of_vote == g], rng, n_draws=n_draws))
            for g, name in enumerate(groups)
        ]
    worst_group = _worst_group(right, person, group, by_group, rng, n_draws)
    worst, equal = worst_decile(right, person, rng, min_votes=min_votes, n_draws=n_draws)
    return Served(overall, tuple(by_group), worst_group, worst, equal)


def worst_decile(
    right: np.ndarray, person: np.ndarray, rng: np.random.Generator, *, min_votes: int = 5, n_draws: int = N_DRAWS
) -> tuple[Estimate, float | None]:
    """Mean accuracy of the worst-served tenth of the people (at least one), and what chance alone would show.

        mean of the ⌈U/10⌉ smallest accuracies        alike: the same with Binomial(n_u, overall accuracy)/n_u

    The smallest of noisy accuracies are small by chance too; the second number says how small.

    Returns: percentile interval over people drawn with replacement; not estimable below ten people.
    """
    sums, counts = cluster_sums("worst_decile", right, person)
    kept = counts >= min_votes
    sums, counts = sums[kept], counts[kept]
    n = len(sums)
    if n < 10:
        return not_estimable(f"{n} people with {min_votes} held-out votes; the worst tenth needs 10 people", n), None
    accuracy = sums / counts
    draws = np.array([_lowest(accuracy[rng.integers(0, n, n)]) for _ in range(n_draws)])
    what = f"mean accuracy of the worst-served {-(-n // 10)} of {n} people"
    level = float(sums.sum() / counts.sum())
    alike = np.mean([_lowest(rng.binomial(counts.astype(int), level) / counts) for _ in range(200)])
    return percentile_interval(_lowest(accuracy), draws, n, level=0.95, what=what), float(alike)


def _lowest(accuracy: np.ndarray) -> float:
    n = -(-len(accuracy) // 10)
    return float(np.partition(accuracy, n - 1)[:n].mean())


def _worst_group(
    right: np.ndarray,
    person: np.ndarray,
    group: np.ndarray | None,
    by_group: Sequence[tuple[str, Estimate]],
    rng: np.random.Generator,
    n_draws: int,
) -> Estimate:
    known = [(name, one.value) for name, one in by_group if one.value is not None]
    if group is None or len(known) < 2:
        return not_estimable("fewer than two groups have held-out votes", len(known))
    name, value = min(known, key=lambda pair: pair[1])
    what = f"accuracy of the worst-served group ({name})"
    rows = [np.asarray(group)[person] == g for g, (_, estimate) in enumerate(by_group) if estimate.value is not None]
    if min(len(np.unique(person[mine])) for mine in rows) < FEW_CLUSTERS:
        return _worst_of_few(what, value, [(right[mine], person[mine]) for mine in rows], rng, n_draws)
    draws = []
    for mine in rows:
        sums, counts = cluster_sums("served", right[mine], person[mine])
        draws.append(np.concatenate([w @ sums / (w @ counts) for w in cluster_weights(len(sums), rng, n_draws)]))
    return percentile_interval(value, np.min(draws, axis=0), len(np.unique(person)), level=0.95, what=what)


def _worst_of_few(
    what: str, value: float, groups: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator, n_draws: int
) -> Estimate:
    """The worst group's accuracy where a group has few people, of whom a bootstrap would show too little spread.

    Where all k groups' intervals at 1 − .05/k hold, the least of their true accuracies lies between the least of their
    lower and the least of their upper ends.
    """
    level = 1 - 0.05 / len(groups)
    each = [proportion(outcomes, people, rng, level=level, n_draws=n_draws) for outcomes, people in groups]
    n = sum(len(np.unique(people)) for _, people in groups)
    lows, highs = ([getattr(one, end) for one in each if one.low is not None] for end in ("low", "high"))
    if len(lows) < len(each):
        return Estimate(value, None, None, n, f"{what}; no interval: a group has 1 person, an interval needs 2")
    method = f"{what}, least ends of {len(groups)} groups' intervals over people at {percent(round(level, 4))} each, {percent(0.95)}"
    return Estimate(value, min(lows), min(highs), n, method)
