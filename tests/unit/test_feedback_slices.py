"""Slices: an attacker who solves for what was suppressed, by linear algebra and by linear programming, finds nothing."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg, optimize

from karat.errors import InputError
from karat.feedback.quality.slices import protected_slices


def system(raters, slices):
    """Joint cells that occur, and the rows of the slices over them: what the attacker is given."""
    fields = sorted({field for one in slices for field in one.table})
    key = [tuple(str(rater[field]) if rater[field] is not None else "not said" for field in fields) for rater in raters]
    joint = sorted(set(key))
    rows = np.array(
        [
            [all(cell[fields.index(f)] == c for f, c in zip(one.table, one.categories, strict=True)) for cell in joint]
            for one in slices
        ],
        dtype=float,
    ).reshape(len(slices), len(joint))
    truth = np.array([key.count(cell) for cell in joint], dtype=float)
    return rows, truth


def attack(raters, slices, k=10):
    """Raise AssertionError where a suppressed number follows from those that are shown."""
    rows, truth = system(raters, slices)
    shown = np.array([one.shown for one in slices])
    assert [one.n for one in slices if one.shown] == (rows[shown] @ truth).tolist()
    assert all(one.n >= k for one in slices if one.shown)
    secret = rows[~shown & (rows @ truth > 0)]
    if not shown.any() or not len(secret):
        return 0
    free = linalg.null_space(rows[shown])
    assert (np.abs(secret @ free).max(axis=1) > 1e-6).all(), "solved by linear algebra"
    for cell in secret:  # what counts can be, numbers of people being 0 or more
        ends = [
            sign * optimize.linprog(sign * cell, A_eq=rows[shown], b_eq=rows[shown] @ truth, bounds=(0, None)).fun
            for sign in (1, -1)
        ]
        assert ends[1] - ends[0] > 1, f"pinned to {ends} by linear programming"
    return len(secret)


def people(seed, n=300):
    rng = np.random.default_rng(seed)
    country = rng.choice(["Chile", "Egypt", "France", "Ghana", "Qatar"], n, p=[0.3, 0.3, 0.05, 0.3, 0.05])
    region = {"Chile": "South", "Egypt": "Arab", "France": "Europe", "Ghana": "South", "Qatar": "Arab"}
    gender = rng.choice(["woman", "man", None], n, p=[0.5, 0.47, 0.03])
    age = rng.choice(["young", "middle", "old"], n, p=[0.6, 0.33, 0.07])
    return [
        {"country": str(c), "region": region[str(c)], "gender": None if g is None else str(g), "age": str(a)}
        for c, g, a in zip(country, gender, age, strict=True)
    ]


TABLES = [
    [("gender",)],
    [("gender",), ("age",), ("gender", "age")],
    [("country",), ("region",)],
    [("country", "gender"), ("region", "gender"), ("age",)],
    [("gender", "age"), ("gender", "region"), ("age", "region")],
    [("country", "gender", "age"), ("region", "age")],
]


@pytest.mark.parametrize("tables", TABLES)
def test_nothing_suppressed_can_be_computed(tables):
    n_secret = 0
    for seed in range(4):
        raters = people(seed, n=120 + 60 * seed)
        n_secret += attack(raters, protected_slices(raters, tables))
    assert n_secret > 0 or tables == [("gender",)]


def test_never_exactly_one_cell_of_a_row_is_suppressed():
    raters = [{"g": "a"}] * 40 + [{"g": "b"}] * 20 + [{"g": "c"}] * 3
    found = {one.categories: one.n for one in protected_slices(raters, [("g",)])}
    assert found == {(): 63, ("a",): 40, ("b",): None, ("c",): None}
    two = [{"g": "a"}] * 40 + [{"g": "b"}] * 3
    assert {one.categories: one.n for one in protected_slices(two, [("g",)])} == {(): 43, ("a",): None, ("b",): None}


def test_the_suppressed_together_are_at_least_k():
    raters = [{"g": "a"}] * 40 + [{"g": "b"}] * 20 + [{"g": "c"}] * 3 + [{"g": "d"}] * 2
    found = {one.categories: one.n for one in protected_slices(raters, [("g",)])}
    assert found == {(): 65, ("a",): 40, ("b",): None, ("c",): None, ("d",): None}


def test_a_slice_inside_another_table_gives_nobody_away():
    """All of the region but 4 live in one country: to show both numbers is to show the 4."""
    raters = (
        [{"region": "N", "country": "x"}] * 46
        + [{"region": "N", "country": "y"}] * 4
        + [{"region": "S", "country": "z"}] * 30
    )
    found = {one.categories: one.n for one in protected_slices(raters, [("region",), ("country",)])}
    assert found[("N",)] == 50
    assert found[("x",)] is None
    assert found[("y",)] is None
    assert attack(raters, protected_slices(raters, [("region",), ("country",)])) > 0


def test_large_slices_are_all_shown_with_their_members():
    raters = [{"g": "a"}] * 12 + [{"g": None}] * 15
    found = protected_slices(raters, [("g",), ("g",), ()])
    assert [(one.table, one.categories, one.n) for one in found] == [
        ((), (), 27), (("g",), ("a",), 12), (("g",), ("not said",), 15)
    ]  # fmt: skip
    assert found[1].members == tuple(range(12))
    hidden = protected_slices([{"g": "a"}] * 9, [("g",)])
    assert [(one.n, one.members) for one in hidden] == [(None, ()), (None, ())]
    assert [one.n for one in protected_slices([], [])] == [None]


def test_too_much_is_refused():
    raters = [{"a": str(i), "b": str(i)} for i in range(80)]
    with pytest.raises(InputError, match="cross fewer fields"):
        protected_slices(raters, [("a", "b")])
    with pytest.raises(InputError, match="has the field 'c'"):
        protected_slices(raters, [("c",)])
    with pytest.raises(InputError, match="found k = 1"):
        protected_slices(raters, [("a",)], k=1)


@pytest.mark.data
@pytest.mark.skipif("KARAT_DATA" not in os.environ, reason="needs the real raters in $KARAT_DATA")
def test_real_raters_of_21_countries():
    path = Path(os.environ["KARAT_DATA"]) / "d3code_raters" / "raters.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    raters = [{field: row[field] or None for field in ("Gender", "Region", "Country")} for row in rows]
    found = protected_slices(raters, [("Gender",), ("Region",), ("Country",), ("Region", "Gender")])
    rows, truth = system(raters, found)
    shown = np.array([one.shown for one in found])
    free = linalg.null_space(rows[shown])
    secret = rows[~shown & (rows @ truth > 0)]
    assert (np.abs(secret @ free).max(axis=1) > 1e-6).all()
    assert shown.sum() > 40
    assert 0 < (~shown).sum() < 25
