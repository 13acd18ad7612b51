"""Raking: margins met, known formulas, empty categories named, and a win rate that moves as it must."""

import json

import numpy as np
import pytest

from karat.errors import ConvergenceError, InputError
from karat.feedback.quality.population import checked_target, rake, weighted_win_rate
from karat.stats import mean_estimate

TARGET = {"gender": {"woman": 0.5, "man": 0.5}, "age": {"young": 0.3, "middle": 0.4, "old": 0.3}}


def raters(seed, n=400):
    rng = np.random.default_rng(seed)
    return {
        "gender": rng.choice(["woman", "man"], n, p=[0.3, 0.7]).tolist(),
        "age": rng.choice(["young", "middle", "old"], n, p=[0.6, 0.3, 0.1]).tolist(),
    }


def test_the_margins_are_those_of_the_target():
    people = raters(1)
    found = rake(people, json.loads(json.dumps(TARGET)), trim=50)
    for field, goal in TARGET.items():
        for category, share in goal.items():
            mine = np.array(people[field]) == category
            assert found.weights[mine].sum() / found.weights.sum() == pytest.approx(share, abs=1e-5)
    assert found.weights.mean() == pytest.approx(1)
    for line in found.balance:
        assert line.after == pytest.approx(line.target, abs=1e-5)
        assert line.asmd_after < 1e-3 < line.asmd_before
    old = next(line for line in found.balance if line.category == "old")
    share = np.mean([one == "old" for one in people["age"]])
    assert old.asmd_before == pytest.approx(abs(share - 0.3) / (0.3 * 0.7) ** 0.5)


def test_a_target_that_nobody_fits_weighs_nobody_and_names_all_of_it():
    people = {"age": [None] * 20}
    found = rake(people, {"age": {"90+": 1.0}}, allow_empty=True)
    np.testing.assert_array_equal(found.weights, np.ones(20))
    assert found.empty == (("age", "90+"),)


def test_one_field_is_post_stratification():
    people = {"gender": ["woman"] * 20 + ["man"] * 80}
    found = rake(people, {"gender": {"woman": 1, "man": 1}})
    np.testing.assert_allclose(found.weights, [2.5] * 20 + [0.625] * 80)
    assert found.design_effect == pytest.approx(0.2 * 2.5**2 + 0.8 * 0.625**2)
    assert found.effective_n == pytest.approx(100 / found.design_effect)
    assert found.max_weight == pytest.approx(2.5)


def test_weights_solve_the_raking_equations():
    """log w is a sum of one number a category: what makes raking the distribution nearest to the raters' own."""
    people = raters(2)
    w = rake(people, TARGET, trim=50).weights
    one = {key: np.log(w[[pair == key for pair in zip(people["gender"], people["age"], strict=True)]][0])
           for key in set(zip(people["gender"], people["age"], strict=True))}  # fmt: skip
    for age in ("middle", "old"):
        gap = one["woman", age] - one["woman", "young"], one["man", age] - one["man", "young"]
        assert gap[0] == pytest.approx(gap[1], abs=1e-4)


def test_weights_are_trimmed_and_the_margins_then_say_so():
    people = {"gender": ["woman"] * 2 + ["man"] * 98}
    found = rake(people, {"gender": {"woman": 0.5, "man": 0.5}}, trim=5)
    assert found.max_weight == pytest.approx(5)
    assert found.n_trimmed == 2
    woman = found.balance[0]
    assert (woman.before, round(woman.after, 6)) == (0.02, 0.1)
    assert woman.asmd_after > 0.10


def test_who_did_not_say_keeps_her_weight_in_that_field():
    people = {"gender": ["woman"] * 20 + ["man"] * 60 + [None] * 20}
    found = rake(people, {"gender": {"woman": 0.5, "man": 0.5}})
    np.testing.assert_allclose(found.weights, [2.0] * 20 + [2 / 3] * 60 + [1.0] * 20)
    assert found.n_unsaid == {"gender": 20}


def test_empty_categories_are_named():
    people = raters(3)
    target = {**TARGET, "age": {"young": 0.27, "middle": 0.36, "old": 0.27, "very old": 0.1}}
    with pytest.raises(InputError, match="no rater for age = very old"):
        rake(people, target)
    found = rake(people, target, allow_empty=True, trim=50)
    assert found.empty == (("age", "very old"),)
    assert [line.after for line in found.balance if line.category == "very old"] == [0.0]
    assert found.weights[[one == "old" for one in people["age"]]].sum() / 400 == pytest.approx(0.3, abs=1e-5)


def test_a_weighted_win_rate_speaks_for_the_target():
    rng = np.random.default_rng(4)
    people = raters(4, n=300)
    likes = np.where(np.array(people["age"]) == "old", 0.9, 0.5)
    who = rng.choice(300, 6000, p=rng.dirichlet(np.ones(300)))
    votes = (rng.random(6000) < likes[who]).astype(float)
    found = weighted_win_rate(votes, who, people, TARGET, rng, n_draws=200)
    truth = 0.3 * 0.9 + 0.7 * 0.5
    assert found.weighted.low < truth < found.weighted.high
    assert found.unweighted.high < truth
    assert found.difference.low > 0
    assert found.weighted.high - found.weighted.low > found.unweighted.high - found.unweighted.low
    assert found.weighted.n == len(set(who.tolist()))
    means = [votes[who == one].mean() for one in sorted(set(who.tolist()))]
    assert found.unweighted.value == pytest.approx(np.mean(means))


def test_the_interval_covers():
    inside = 0
    for seed in range(16):
        rng = np.random.default_rng(100 + seed)
        people = raters(seed, n=150)
        likes = np.where(np.array(people["age"]) == "old", 0.8, 0.4) + np.where(
            np.array(people["gender"]) == "man", 0.1, 0
        )
        who = rng.integers(0, 150, 1500)
        found = weighted_win_rate(rng.random(1500) < likes[who], who, people, TARGET, rng, n_draws=80)
        inside += found.weighted.low < 0.3 * 0.8 + 0.7 * 0.4 + 0.05 < found.weighted.high
    assert inside >= 12  # binomial(16, .93) is below 12 in 1 of 300 cases; some draws have few old raters


def test_few_raters_are_left_out_in_turn():
    votes = np.array([1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0], dtype=float)
    who, people = np.arange(12) // 2, {"gender": ["man", "woman"] * 3}
    found = weighted_win_rate(votes, who, people, {"gender": {"man": 0.5, "woman": 0.5}}, np.random.default_rng(0))
    means = votes.reshape(6, 2).mean(1)
    plain = mean_estimate(means)
    assert (found.unweighted.low, found.unweighted.high) == (
        pytest.approx(plain.low, abs=1e-9), pytest.approx(plain.high, abs=1e-9)
    )  # fmt: skip
    assert "jackknife over 6 clusters" in found.weighted.method
    alone = weighted_win_rate(
        votes,
        who,
        {"gender": ["man"] + ["woman"] * 5},
        {"gender": {"man": 0.5, "woman": 0.5}},
        np.random.default_rng(0),
    )
    assert alone.weighted.low is None
    assert "undefined without 1 of 6" in alone.weighted.method


def test_what_cannot_be_weighted_is_said():
    people = raters(5)
    with pytest.raises(InputError, match="no field 'income'"):
        rake(people, {"income": {"low": 1}})
    with pytest.raises(InputError, match="gender = 'man', which the target lacks"):
        rake(people, {"gender": {"woman": 1}})
    with pytest.raises(InputError, match="expected a largest weight above 1"):
        rake(people, TARGET, trim=1)
    for wrong in (
        {},
        {"age": {}},
        {"age": {"old": -1}},
        {"age": {"old": "1"}},
        {"age": [1]},
        {"age": {"old": float("nan")}},
        {"age": {"old": 0.6, "young": 0.7}},
    ):
        with pytest.raises(InputError, match="target population"):
            checked_target(wrong)
    with pytest.raises(InputError, match="one entry a rater"):
        rake({"gender": ["man"], "age": []}, TARGET)
    crossed = {"gender": ["woman"] * 5 + ["man"] * 5, "age": ["old"] * 5 + ["young"] * 5}
    with pytest.raises(ConvergenceError, match="no weights have these margins"):
        rake(crossed, {"gender": {"woman": 0.9, "man": 0.1}, "age": {"old": 0.1, "young": 0.9}}, trim=1e6, max_iter=50)
    with pytest.raises(InputError, match=r"outcomes from 0\.0 to 2\.0"):
        weighted_win_rate([0, 2], [0, 1], people, TARGET, np.random.default_rng(0))
    with pytest.raises(InputError, match="indices below 400"):
        weighted_win_rate([0, 1], [0, 400], people, TARGET, np.random.default_rng(0))
