"""Equations in running text: what is read, what it comes to, and texts made to be slow or to break."""

from __future__ import annotations

import math
import random

import pytest

from karat.arithmetic import MOST_EQUATIONS, equations_in, numbers_in
from reference.slow_sums import value_of


def read(text: str) -> list[tuple[list[float], str, float, bool]]:
    return [([n.value for n in one.operands], one.operators, one.result, one.holds) for one in equations_in(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200 GB / 2 GB/minute = 100 minutes", [([200, 2], "/", 100, True)]),
        ("He spends 600*.5=$300.0 more", [([600, 0.5], "*", 300, True)]),
        ("12 total bowls - 6 adult bowls = 7 bowls", [([12, 6], "-", 7, False)]),
        ("$12 x 7 days/week = $84/week", [([12, 7], "*", 84, True)]),
        ("1,000 + 2,500 = 3,500", [([1000, 2500], "+", 3500, True)]),
        ("$350 000 × 5/100 = $17 500.", [([350000, 5, 100], "*/", 17500, True)]),
        ("40% of 200 = 80, so 5 - 3", [([40, 200], "*", 80, True)]),
        ("10% + 20% = 30%", [([10, 20], "+", 30, True)]),
        ("60 / 200 = 30%", [([60, 200], "/", 30, True)]),
        ("10/3 = 3.33", [([10, 3], "/", 3.33, True)]),
        ("10/3 = 3.32", [([10, 3], "/", 3.32, False)]),
        ("5 ÷ 0 = 0", [([5, 0], "/", 0, False)]),
        ("3 + 4 = 9 - 2 = 7", [([3, 4], "+", 7, True), ([9, 2], "-", 7, True)]),
        ("-3 + 5 = 2", [([-3, 5], "+", 2, True)]),
        ("5 - 8 = -3", [([5, 8], "-", -3, True)]),
        ("9(2 + 1) = 27", [([9, 2, 1], "*+", 27, True)]),
        ("½ * 40 = 20", [([1, 2, 40], "/*", 20, True)]),
        ("٣ + ٤ = ٧", [([3, 4], "+", 7, True)]),
        ("6 cm² + 3 cm² = 9 cm²", [([6, 3], "+", 9, True)]),
        ("3 plus 4 times 2 = 11", [([3, 4, 2], "+*", 11, True)]),
        ("The total is = 3 * 5", []),
        ("The 7-day week = 7 days", []),
        ("x + 7 = 12, 3*x = 43, 9x + 30 = 50", []),
        ("10² + 5 = 105 and 2^3 + 1 = 9 and √16 + 1 = 5", []),
        ("2*(3+4 = 14, 1+2) = 3", []),
        ("5 cards and then a lot of words + 3 = 8", []),
        ("5 + 3\n= 8", []),
        ("4 / ½ = 8 and 2 * 1½ = 3", [([4, 1, 2], "//", 8, True), ([2, 1, 1, 2], "*+/", 3, True)]),
        ("60 / 200 = 70%", [([60, 200], "/", 70, False)]),
        ("1/3 = 33%", [([1, 3], "/", 33, True)]),
        ("<<200*40*.01=80>>80", [([200, 40, 0.01], "**", 80, True)]),
        ("(5) = 5, 3 (4) = 12, 70 (70%) - 60 (60%) = 10", []),
        ("5 * 7 = 35 (5 * 7)", [([5, 7], "*", 35, True)]),
        ("2 + 2 <= 5, 2 + 2 >= 3, 2 + 2 != 5", []),
        ("2 * 1 1/2 = 3 and 1 000 + 2 = 1 002", []),
        ("1,2 + 3 = 4,2 at 12:30 + 1 = 13", []),
        ("x2 + 3 = 8 and 1e5 + 1 = 100001 and 5 + 5 = 1e1", []),
        ("6 m2 + 4 = 10", []),
        ("2 * 3 = 6 m2", [([2, 3], "*", 6, True)]),
        ("9" * 31 + " + 1 = 5", []),
        ("== = =", []),
        ("", []),
    ],
)
def test_equations_are_read_as_people_write_them(text, expected):
    assert read(text) == expected


def test_the_line_and_rounding_are_told():
    first, second = equations_in("Ten.\n10/3 = 3.3 each\n10/4 = 2.5")
    assert (first.line, second.line) == (1, 2)
    assert (first.holds, first.exact, second.exact) == (True, False, True)


def test_numbers_are_read_with_their_decimals_and_percent_signs():
    found = numbers_in("1,234.50 of 3 % and .5, 7,5 or 1.2.3")
    assert [one.value for one in found] == [1234.5, 3, 0.5, 7, 5, 1.2, 3]
    assert [one.n_decimals for one in found[:3]] == [2, 0, 1]
    assert [one.percent for one in found[:3]] == [False, True, False]
    assert math.isnan(numbers_in("9" * 1000)[0].value)


def test_sums_come_to_what_exact_fractions_say():
    rng = random.Random(0)

    def expression(depth: int) -> str:
        if depth == 0 or rng.random() < 0.3:
            return rng.choice(["0", "3", "12", "2.5", "100", ".04"])
        left, right = expression(depth - 1), expression(depth - 1)
        inside = f"{left} {rng.choice('+-*/')} {right}"
        return f"({inside})" if rng.random() < 0.5 else inside

    n_read = 0
    for _ in range(500):
        written = expression(4)
        expected = value_of(written)
        for given in (7.25, expected):
            found = equations_in(f"{written} = {0 if given is None else f'{float(given):.12f}'.replace('-', '- ')}")
            if len(found) == 1 and found[0].operators and (given is None or given >= 0):
                n_read += 1
                assert found[0].holds == (
                    expected is not None and given is not None and abs(expected - given) < 1e-9
                ), written
    assert n_read > 400


HOSTILE = {
    "digits": "9" * 100_000, "thousands": "1" + ",000" * 6000 + ",", "commas": "1," * 50_000, "spaces": "$1 " + "000 " * 6000,
    "plus": "1+" * 10_000 + "1 = 2", "equals": "1=" * 10_000, "brackets": "(" * 10_000 + ")" * 10_000 + " = 3",
    "nested": "1+(2" * 5000 + " = 2", "words": "5 a a a a - " * 2000 + " = 3", "minus": "-" * 20_000 + "5 = 5",
    "operators": "+-*/" * 5000, "points": "." * 20_000, "of": "5 of " * 5000 + "3 = 2", "lines": "\n" * 20_000,
    "huge": ("9" * 30 + "*") * 20 + "9 = 1", "halves": "½" * 20_000, "digits and a half": ("9" * 20_000)[:-1] + "½", "surrogate": "\ud800 1 + 1 = 2", "zero": "\0 1 + 1 = 2", "steps": "2+2=4\n" * 3000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_texts_made_to_break_it_are_read_in_few_steps(name):
    """No more equations than are looked for, no side longer than is computed, and nothing is evaluated as code."""
    found = equations_in(HOSTILE[name])
    assert len(found) <= MOST_EQUATIONS
    assert all(len(one.operands) <= 64 and len(one.operators) <= 64 for one in found)
    assert all(one.holds for one in found) == (name not in ("huge",)) or not found


def test_time_grows_with_the_length_and_not_with_its_square():
    """Tokens looked at, not seconds: a side that is too long to compute is given up once."""
    import karat.arithmetic as module

    looked = []
    whole = module._Reader.read

    def counted(self, *args):
        looked.append(1)
        return whole(self, *args)

    module._Reader.read = counted
    try:
        for text in HOSTILE.values():
            looked.clear()
            equations_in(text)
            assert len(looked) <= module.MOST_CHARS
    finally:
        module._Reader.read = whole
