"""The study of where best-of-n is highest: its tops and what it compares."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bench.gao_top_study import DOCS, MARKS, RESULTS, moves, tables, top_of


def points(alpha: float, beta: float) -> list[list[float]]:
    d = np.linspace(0, 1.5, 8)
    return [[float(x * x), 0.0, float(x * (alpha - beta * x))] for x in d]


@pytest.mark.parametrize(
    ("alpha", "beta", "top"),
    [(1.0, 0.5, 1.0), (1.0, 0.1, 1.5), (-0.2, 0.5, 0.0), (1.0, -0.3, 1.5), (-1.0, -0.3, 0.0)],
)
def test_the_top_is_that_of_the_law_within_what_was_measured(alpha, beta, top):
    found = top_of(points(alpha, beta))
    assert found["top_d"] == pytest.approx(top, abs=1e-6)
    assert found["r_squared"] == pytest.approx(1.0)
    assert found["gain"] == pytest.approx(max(row[2] for row in points(alpha, beta)))


def test_differences_are_paired_by_seed_and_only_where_both_are_there():
    rows = [
        {"seed": seed, "votes": n, "reading": "mean_score", "top_d": seed + n / 10_000, "gain": -n, "r_squared": 0.9}
        for seed, n in [(0, 500), (0, 8000), (1, 500), (1, 8000), (2, 8000)]
    ]
    first = moves(rows)[0]
    assert (first["what"], first["n_seeds"], first["top_d_more"], first["gain_more"]) == (
        "8,000 votes less 500",
        2,
        2,
        0,
    )
    assert first["top_d"] == pytest.approx([0.75, 0.75, 0.75])
    assert "| 8,000 votes less 500 | 0.75 [0.75, 0.75] | 2 of 2 | -7500.00 [-7500.00, -7500.00] | 0 of 2 |" in tables(
        rows
    )


def test_the_page_says_what_the_results_say():
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    # another processor's sums differ in the last bits
    assert [top_of(row["points"])["top_d"] for row in rows] == pytest.approx([row["top_d"] for row in rows], rel=1e-9)
    start, end = MARKS
    assert DOCS.read_text(encoding="utf-8").split(start)[1].split(end)[0].strip() == tables(rows)
