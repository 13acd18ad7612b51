"""Plain features of numbers: each family by hand, flow against a search of all pairs, texts without any number."""

from __future__ import annotations

import random

import numpy as np
import pytest

from karat.plain_numbers import MOST, NUMBER_COLUMNS, final_number, response_numbers, token_numbers
from reference.slow_sums import dangling, depth

PROMPT = (
    "Tom has 12 apples and twice as many pears. He gives away 25% of the pears. How many fruits are left of 3 boxes?"
)
TEXT = "Pears: 12 * 2 = 24.\nGiven: 24 * .25 = 6.\nHe keeps 24 - 6 = 19 pears.\nSo 12 + 18 = 30.\nA: 30"


def columns(prompt: str, text: str) -> dict[str, float]:
    (row,) = response_numbers([prompt], [text])
    return dict(zip(NUMBER_COLUMNS, row.tolist(), strict=True))


def test_every_family_by_hand():
    found = columns(PROMPT, TEXT)
    expected = {
        "checked: no equation": 0, "checked: share that hold": 3 / 4, "checked: any wrong": 1, "checked: any rounded": 0,
        "checked: lines with one": 4 / 5,
        "counted: log equations": np.log(5), "counted: log operators": np.log(5), "counted: log quantities": np.log(5),
        "counted: log digit quantities": np.log(4), "counted: log operators a quantity": np.log(5) - np.log(4),
        "counted: operators missing": 0, "counted: operators too many": 1, "counted: one equation at most": 0,
        "counted: most numbers in one": 2,
        "used: share used": 3 / 4, "used: unused": 1, "used: all used": 0,  # 12, twice and 25 % as .25; the 3 is not
        "used: share named": 3 / 4, "used: not named": 1,  # the 3
        "used: share of digits used": 2 / 3, "used: digits unused": 1,
        "sources: prompt": 4 / 8, "sources: earlier result": 3 / 8, "sources: constant": 0, "sources: nowhere": 1 / 8,
        "sources: constants": 0, "sources: from nowhere": 1, "sources: used again": 1 / 8,
        "flow: dangling": 1, "flow: share dangling": 1 / 3, "flow: any dangling": 1, "flow: depth": 3,
        "flow: last takes a result": 0, "flow: last takes the one before": 0, "flow: last takes the prompt's": 1 / 2,
        "flow: repeated results": 0, "flow: repeated equations": 0,
        "final: none": 0, "final: last result": 1, "final: some result": 1, "final: prompt's": 0, "final: whole": 1,
        "final: zero": 0, "final: one": 0, "final: any negative": 0, "final: log": np.log(31),
        "final: log²": np.log(31) ** 2 / 10, "final: log over largest": np.log(31 / 26), "final: below smallest": 0,
        "final: |log over largest|": np.log(31 / 26), "final: far above largest": 0, "final: of 5": 1, "final: of 10": 1,
        "final: decimals": 0, "final: share of fractions": 0, "final: any fraction": 0, "final: long decimals": 0,
        "final: two decimals": 1,
        "signs: share +": 1 / 4, "signs: log +": np.log(2), "signs: last +": 1, "signs: share -": 1 / 4, "signs: log -": np.log(2),
        "signs: last -": 0, "signs: share *": 2 / 4, "signs: log *": np.log(3), "signs: last *": 0, "signs: share /": 0,
        "signs: log /": 0, "signs: last /": 0, "signs: kinds": 3,
    }  # fmt: skip
    assert set(expected) == set(NUMBER_COLUMNS)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_constant_is_no_number_from_nowhere_and_a_percentage_may_stand_for_its_rest():
    found = columns("It costs $40, 20% off, for 3 weeks.", "40 * .8 = 32\n3 * 7 = 21 days\n21 * 99 = 2079")
    assert found["sources: constant"] == pytest.approx(1 / 6)  # 7; the .8 is the prompt's
    assert found["sources: from nowhere"] == 1  # 99
    assert columns("No number.", "60 * 24 = 1440")["sources: constants"] == 2


def test_dangling_results_and_depth_are_those_of_a_search_of_all_pairs():
    rng = random.Random(0)
    for _ in range(200):
        steps = []
        for _ in range(rng.randint(1, 6)):
            a, b = rng.randint(2, 9), rng.randint(0, 9)
            if steps and rng.random() < 0.5:
                a = rng.choice(steps)[1]
            steps.append(([a, b], a + b))
        found = columns("", "\n".join(f"{a} + {b} = {total}" for (a, b), total in steps))
        assert found["flow: dangling"] == min(4, dangling(steps))
        assert found["flow: depth"] == depth(steps)


@pytest.mark.parametrize(
    "text", ["", "\n", "no number", "9" * 1000, "1/0 = 0", "=" * 500, "1+" * 500 + "1 = 2", "\ud800", "2+2=4\n" * 500]
)
def test_odd_texts_give_finite_features_that_do_not_grow(text):
    for prompt in ("How many?", text):
        (row,) = response_numbers([prompt], [text])
        assert np.isfinite(row).all()
        assert np.abs(row).max() <= max(MOST, np.log1p(1e9) ** 2 / 10)
    assert response_numbers([], []).shape == (0, len(NUMBER_COLUMNS))


def test_the_final_number_is_the_last_one():
    assert final_number(TEXT) == 30
    assert final_number("A: $1,200.50.") == 1200.5
    assert final_number("none") is None
    assert final_number("9" * 100) is None


def test_tokens_know_the_equations_of_their_line():
    spans = np.array(
        [[TEXT.index(word), TEXT.index(word) + 1] for word in ("Pears", "Given", "He keeps", "So", "A:")] + [[0, 0]]
    )
    found = token_numbers(PROMPT, TEXT, spans)
    assert found[:, 0].tolist() == [1, 1, 1, 1, 0, 0]  # the last token has no characters and stands at the end
    assert found[:, 1].tolist() == [0, 0, 1, 0, 0, 0]
    assert found[0, 3:7].tolist() == [1, 0, 0, 1]
    assert found[1, 3:7].tolist() == [0.5, 0.5, 0, 1]
    assert found[2, 3:7].tolist() == [0, 1, 0, 0]  # 19 is taken up nowhere
    assert found[3, 3:7].tolist() == [0.5, 0, 0.5, 1]  # 18 comes from nowhere; the last equation of all
    assert token_numbers("", "", np.zeros((1, 2), dtype=int)).shape == (1, 8)
