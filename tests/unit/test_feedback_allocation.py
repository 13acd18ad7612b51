"""Kinds of feedback priced by information for a second: break-even as published, noise and ties recovered."""

from __future__ import annotations

import math

import numpy as np
import pytest

from karat.errors import InputError
from karat.feedback.allocation import (
    allocation,
    break_even_sd,
    comparison_fisher,
    kind_rates,
    rating_noise,
    tie_width,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("reward_sd", "icc"), [(1.0, 0.27), (1.5, 0.40), (2.0, 0.49), (3.0, 0.61)])
def test_break_even_lies_where_simulations_put_it(reward_sd, icc):
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    delta = np.repeat(math.sqrt(2) * reward_sd * nodes, np.round(weights / weights.sum() * 1e6).astype(int))
    sd = break_even_sd(delta)
    assert round(reward_sd**2 / (reward_sd**2 + sd**2), 2) == icc
    best = kind_rates(delta, np.zeros(1), {"comparison": 2.0, "rating": 1.0}, rating_sd=0.99 * sd)[0]
    assert best.kind == "rating"
    best = kind_rates(delta, np.zeros(1), {"comparison": 2.0, "rating": 1.0}, rating_sd=1.01 * sd)[0]
    assert best.kind == "comparison"


@pytest.mark.parametrize("width", [0.0, 0.3, 1.5])
def test_the_information_of_a_comparison_is_the_expected_squared_slope_of_its_likelihood(width):
    delta, h = np.linspace(-6, 6, 25), 1e-5

    def probs(d):
        a, b = sigmoid(d - width), sigmoid(-width - d)
        return np.array([a, b] if width == 0 else [a, b, 1 - a - b])

    slope = (probs(delta + h) - probs(delta - h)) / (2 * h)
    assert comparison_fisher(delta, width) == pytest.approx((slope**2 / probs(delta)).sum(0), rel=1e-4)


def test_ties_say_something_too():
    assert comparison_fisher(np.zeros(1), 0.0)[0] == pytest.approx(0.25)
    assert comparison_fisher(np.array([1.5]), 1.0)[0] > comparison_fisher(np.array([1.5]), 0.0)[0]


def test_the_noise_of_ratings_is_recovered_in_logits_whatever_the_offsets():
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(20), 30)
    scores = 1.5 * rng.standard_normal(600)
    ratings = 3 + rng.standard_normal(20)[who] + 0.7 * scores + 0.7 * 1.2 * rng.standard_normal(600)
    found = rating_noise(ratings, scores, who)
    assert found.low < 1.2 < found.high
    assert abs(found.value - 1.2) < 0.15
    assert rating_noise(rng.standard_normal(600), scores, who).value is None
    assert "at least 3 more" in rating_noise(ratings[:3], scores[:3], np.arange(3)).method


def test_the_width_of_ties_is_recovered():
    rng = np.random.default_rng(1)
    delta = 2 * rng.standard_normal(3000)
    tied = rng.random(3000) < sigmoid(0.6 - delta) - sigmoid(-0.6 - delta)
    found = tie_width(delta, tied)
    assert found.low < 0.6 < found.high
    assert found.high - found.low < 0.1
    assert tie_width(delta, np.zeros(3000, bool)).value == 0.0
    assert tie_width(delta[:1], tied[:1]).value is None


def test_time_goes_to_the_best_kind_and_a_little_to_the_others():
    rates = kind_rates(
        np.zeros(5), np.zeros(5), {"comparison": 4.0, "rating": 1.0, "label": 1.0}, rating_sd=1.0, label_threshold=0.0
    )
    by_kind = {one.kind: (one.information, one.rate) for one in rates}
    assert by_kind == {"comparison": (0.25, 0.0625), "rating": (0.5, 0.25), "label": (0.125, 0.0625)}
    assert rates[0].kind == "rating"
    shares = allocation(rates, ("comparison", "rating", "label"))
    assert shares == pytest.approx({"comparison": 0.05, "rating": 0.9, "label": 0.05})
    unknown = kind_rates(np.zeros(5), np.zeros(5), {"comparison": 4.0, "rating": 1.0})
    assert allocation(unknown, ("comparison", "rating"))["rating"] == 0.05  # asked a little, so that σ becomes known
    with pytest.raises(InputError, match="found 0 rates"):
        allocation([], ("comparison",))
    with pytest.raises(InputError, match="expected all > 0"):
        kind_rates(np.zeros(1), np.zeros(1), {"rating": 0.0})


@pytest.mark.parametrize("level_sd", [0.0, 0.5, 3.0, 1e4, None])
def test_at_break_even_both_kinds_say_as_much_whatever_prompts_share(level_sd):
    delta = 2 * np.random.default_rng(2).standard_normal(2000)
    sd = break_even_sd(delta, seconds_ratio=1.7, level_sd=level_sd)
    comparison, rating = kind_rates(
        delta, np.zeros(1), {"comparison": 1.7, "rating": 1.0}, rating_sd=sd, level_sd=level_sd
    )
    assert comparison.rate == pytest.approx(rating.rate, rel=1e-9)
    alone = break_even_sd(delta, seconds_ratio=1.7)
    factor = {0.0: math.sqrt(2), 1e4: 1.0, None: 1.0}
    assert 1 <= sd / alone <= math.sqrt(2) + 1e-9
    if level_sd in factor:
        assert sd / alone == pytest.approx(factor[level_sd], rel=1e-6)


def test_the_information_of_two_ratings_is_that_of_their_difference_and_their_sum():
    """By the inverse of the covariance of two ratings of one prompt, whose level is shared: x'C⁻¹x for x = (1, ±1)/2."""
    sd, level = 1.3, 0.8
    inverse = np.linalg.inv(sd**2 * np.eye(2) + level**2 * np.ones((2, 2)))
    of_difference, of_sum = (0.25 * np.array(x) @ inverse @ np.array(x) for x in ([1, -1], [1, 1]))
    rates = kind_rates(np.zeros(1), np.zeros(1), {"rating": 1.0}, rating_sd=sd, level_sd=level)
    assert rates[0].information == pytest.approx(of_difference + of_sum)
    assert kind_rates(np.zeros(1), np.zeros(1), {"rating": 1.0}, rating_sd=sd)[0].information == pytest.approx(
        of_difference
    )
