"""How well scores tell right from wrong, and what a pick by them is worth, with intervals over whole questions.

An AUROC over folds compares only answers of one fold, because each fold has a reward of its own. Knows arrays.

Dimension letters: N rows, B bootstrap draws.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from karat.records import Estimate
from karat.resampling import cluster_weights, percentile_interval, ratio_bootstrap
from karat.seeding import numpy_generator
from karat.stats import mean_estimate, paired_difference

N_DRAWS = 1000
CHUNK = 50
"""Draws whose row weights are held at once: 20 MB of 44,000 tokens."""
Figures = dict[str, dict[str, Any]]
"""By name of a system, or of a difference `a − b`: value, low, high, n."""


def grouped_auroc(scores: np.ndarray, outcomes: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(a positive row scores above a negative one of its group), ties ½, for each row of weights.

        Σ_g Σ_{i ∈ g⁺, j ∈ g⁻} w_i·w_j·[s_i > s_j, ½ for =] / Σ_g Σ_{i, j} w_i·w_j

    Args:
        scores: [N].    outcomes: bool [N].    groups: labels [N].    weights: how often each row counts, [B, N].
    Returns: [B]; NaN where no group has both outcomes.
    """
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        order = own[np.argsort(scores[own], kind="stable")]
        starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) > 0]))
        weight = weights[:, order]
        positive = np.add.reduceat(weight * outcomes[order], starts, axis=1)
        negative = np.add.reduceat(weight * ~outcomes[order], starts, axis=1)
        won += (positive * (np.cumsum(negative, axis=1) - negative / 2)).sum(1)
        pairs += positive.sum(1) * negative.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return won / pairs


def auroc_figures(
    systems: Mapping[str, np.ndarray],
    outcomes: np.ndarray,
    groups: np.ndarray,
    clusters: np.ndarray,
    differences: Sequence[tuple[str, str]],
    seed: int,
) -> Figures:
    """`grouped_auroc` of each system and of differences between two, by bootstrap over clusters, the same draws for all."""
    labels, codes = np.unique(clusters, return_inverse=True)
    even = np.ones((1, len(outcomes)))
    value = {name: float(grouped_auroc(one, outcomes, groups, even)[0]) for name, one in systems.items()}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in systems}
    for block in cluster_weights(len(labels), numpy_generator(seed, "real_data", "auroc"), N_DRAWS):
        for begin in range(0, len(block), CHUNK):
            weights = block[begin : begin + CHUNK][:, codes]
            for name, one in systems.items():
                parts[name].append(grouped_auroc(one, outcomes, groups, weights))
    draws = {name: np.concatenate(own) for name, own in parts.items()}
    for a, b in differences:
        value[f"{a} − {b}"], draws[f"{a} − {b}"] = value[a] - value[b], draws[a] - draws[b]
    return {
        name: plain(percentile_interval(value[name], draws[name], len(labels), level=0.95, what="AUROC"))
        for name in value
    }


def within_figures(
    systems: Mapping[str, np.ndarray],
    outcomes: np.ndarray,
    clusters: np.ndarray,
    differences: Sequence[tuple[str, str]],
    seed: int,
) -> Figures:
    """The same between rows of one cluster only: Σ_c pairs won / Σ_c pairs, over clusters that have both outcomes."""
    won: dict[str, np.ndarray] = {}
    pairs = np.zeros(0)
    members = members_of(clusters)
    members = [own for own in members if 0 < outcomes[own].sum() < len(own)]
    if not members:
        return {}
    for name, scores in systems.items():
        won[name], pairs = np.array([_pairs(scores[own], outcomes[own]) for own in members]).reshape(-1, 2).T
    for a, b in differences:
        won[f"{a} − {b}"] = won[a] - won[b]
    found = {}
    for name, sums in won.items():
        rng = numpy_generator(seed, "real_data", "within")
        found[name] = plain(ratio_bootstrap(sums, pairs, rng, level=0.95, n_draws=N_DRAWS, what="AUROC within"))
    return found


def members_of(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each label, in the order of the sorted labels."""
    _, codes = np.unique(labels, return_inverse=True)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def _pairs(scores: np.ndarray, outcomes: np.ndarray) -> tuple[float, float]:
    gap = scores[outcomes][:, None] - scores[~outcomes][None, :]
    return float((gap > 0).sum() + (gap == 0).sum() / 2), float(gap.size)


def picked(scores: np.ndarray, right: np.ndarray, key: np.ndarray) -> np.ndarray:
    """For each question, in sorted order, whether the answer with the highest score is right; the mean of equal ones."""
    _, codes = np.unique(key, return_inverse=True)
    best = np.full(codes.max() + 1, -np.inf)
    np.maximum.at(best, codes, scores)
    top = scores == best[codes]
    return np.bincount(codes[top], right[top]) / np.bincount(codes[top])


def majority_scores(answers: Sequence[str], key: np.ndarray) -> np.ndarray:
    """How many answers to the question are the same, [N]: the pick by it is the majority's answer."""
    counts = Counter(zip(key.tolist(), answers, strict=True))
    return np.array([float(counts[one]) for one in zip(key.tolist(), answers, strict=True)])


def pick_figures(picks: Mapping[str, np.ndarray], differences: Sequence[tuple[str, str]], seed: int) -> Figures:
    """Share of questions picked right, and paired differences, by bootstrap over questions."""
    found, questions = {}, np.arange(len(next(iter(picks.values()))))
    for name, column in picks.items():
        found[name] = plain(mean_estimate(column, questions, numpy_generator(seed, "real_data", "pick")))
    for a, b in differences:
        rng = numpy_generator(seed, "real_data", "pick")
        found[f"{a} − {b}"] = plain(paired_difference(picks[a], picks[b], questions, rng))
    return found


def plain(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON holds it, four digits behind the point."""
    numbers = {name: getattr(estimate, name) for name in ("value", "low", "high")}
    rounded = {
        name: round(number, 4) if number is not None and math.isfinite(number) else None
        for name, number in numbers.items()
    }
    return rounded | {"n": estimate.n, "method": estimate.method}
