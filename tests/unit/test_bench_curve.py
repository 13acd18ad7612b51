"""The curves of the argument data by slow loops, vote shares by hand, and the tables of what was found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from bench.real import curve_report
from bench.real.curve import REFERENCES, Pairs, accuracies, area, bootstrap, matched, overall_at, points, thresholds
from bench.real.tuned import vote_shares


@dataclass
class Fit:
    """Scores of six texts."""

    residual: np.ndarray
    gamma: float


def some_pairs(n: int = 60, seed: int = 0) -> tuple[Pairs, Fit, np.ndarray]:
    rng = np.random.default_rng(seed)
    length = rng.normal(4, 1, 20)
    a, b = rng.integers(0, 20, (2, n))
    b = np.where(a == b, (b + 1) % 20, b)
    longer, shorter = np.where(length[a] > length[b], a, b), np.where(length[a] > length[b], b, a)
    topic = rng.choice(["x", "y", "z"], n).astype(object)
    own = Pairs(longer, shorter, length[longer] - length[shorter], rng.random(n) < 0.7, topic)
    return own, Fit(rng.normal(0, 1, 20), 0.8), length


def test_with_a_length_term_a_pair_goes_to_the_larger_score():
    pairs, fit, length = some_pairs()
    for s in (-0.5, 0.0, 0.8, 2.0):
        score = fit.residual + s * length
        right = (score[pairs.longer] > score[pairs.shorter]) == pairs.longer_won
        overall, short = accuracies(pairs, thresholds(pairs, fit.residual), s, np.ones(len(pairs)))
        assert overall == pytest.approx(right.mean())
        assert short == pytest.approx(right[~pairs.longer_won].mean())
    found = points([pairs], [fit])
    assert next(one for one in found if one["factor"] == 0)["overall"] == pytest.approx(
        ((fit.residual[pairs.longer] > fit.residual[pairs.shorter]) == pairs.longer_won).mean(), abs=1e-4
    )


def test_the_area_is_the_share_of_pairs_of_pairs_in_order():
    pairs, fit, _ = some_pairs(seed=1)
    t = thresholds(pairs, fit.residual)
    long, short = t[pairs.longer_won], t[~pairs.longer_won]
    slow = np.mean([[1.0 if a < b else 0.5 * (a == b) for b in short] for a in long])
    assert area(pairs, fit.residual) == pytest.approx(slow)
    assert area(pairs, 10 * fit.residual) == pytest.approx(slow)


def test_overall_accuracy_at_a_share_lies_on_the_curve():
    pairs, fit, _ = some_pairs(seed=2)
    t, weight = thresholds(pairs, fit.residual), np.ones(len(pairs))
    for s in np.linspace(-2, 2, 9):
        overall, short = accuracies(pairs, t, s, weight)
        same = [accuracies(pairs, t, one, weight) for one in np.linspace(-9, 9, 4000)]
        reached = [o for o, sh in same if abs(sh - short) < 1e-9]
        assert min(reached) - 1e-9 <= overall_at(pairs, t, weight, [short])[0] <= max(reached) + 1e-9
        assert min(reached) <= overall <= max(reached)


def test_a_pairs_share_counts_ties_half_and_does_not_depend_on_the_order_of_the_two():
    a, b, share = vote_shares([("p", "q", 2), ("q", "p", 2), ("p", "q", 1), ("r", "p", 0)], ["p", "q", "r"])
    assert a.tolist() == [0, 0]
    assert b.tolist() == [1, 2]
    assert share.tolist() == pytest.approx([0.5, 1.0])
    assert share.dtype == torch.float32


def test_tables_and_picture_hold_what_was_found():
    pairs, fit, _ = some_pairs(seed=3)
    other = Fit(fit.residual + np.random.default_rng(4).normal(0, 1, 20), 0.5)
    systems = {
        "plain": [fit],
        "karat": [other],
        "plain: own": [fit],
        "karat: own": [other],
        "karat: last layer": [other],
    }
    figures = bootstrap([pairs], systems, reference="plain", seed=0)
    assert figures["karat"]["overall"]["value"] == points([pairs], [other])[2]["overall"]
    assert figures["karat − plain"]["area"]["value"] == pytest.approx(
        area(pairs, other.residual) - area(pairs, fit.residual), abs=2e-4
    )
    row = {way: {"setting": "5e-05x2", "head": "own", "seconds": [10, 5]} for way in ("plain", "karat")}
    found = {
        "figures": figures, "points": {name: points([pairs], own) for name, own in systems.items()},
        "matched": {name: matched([pairs], own) for name, own in systems.items()},
        "folds": [{"fold": 0, **row}], "n_pairs": 60, "n_topics": 3, "seed": 0, "threads": 1,
        "machine": {"processor": "one"},
    }  # fmt: skip
    text = curve_report.table(found)
    assert all(f"where the shorter won in {str(short).removeprefix('0')}" in text for short, _ in REFERENCES)
    assert "karat: last layer" in text
    assert curve_report.picture(found).count("<circle") == 2 * 8 + len(REFERENCES)
