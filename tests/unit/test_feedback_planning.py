"""Planning: variances recovered, plans that keep their word when carried out, learning curves, what to ask again."""

import numpy as np
import pytest

from karat.errors import InputError
from karat.feedback.quality.learning_curve import fit_learning_curve
from karat.feedback.quality.planning import (
    ask_again,
    held_out_needed,
    plan_votes,
    spread_of_agreement,
    vote_spread,
    votes_for_half_width,
)


def draw_votes(rng, n_items, overlap, *, n_raters=60, concentration=2.0, leaning=0.0):
    """Outcomes 0/1: items differ (Beta), raters lean."""
    p = rng.beta(0.6 * concentration, 0.4 * concentration, n_items)
    lean = rng.normal(0, leaning, n_raters)
    item = np.repeat(np.arange(n_items), overlap)
    rater = np.concatenate([rng.choice(n_raters, overlap, replace=False) for _ in range(n_items)])
    return (rng.random(len(item)) < np.clip(p[item] + lean[rater], 0, 1)).astype(float), item, rater


def test_variances_are_recovered():
    rng = np.random.default_rng(1)
    spread = vote_spread(*draw_votes(rng, 6000, 3))
    between = 0.6 * 0.4 / 3  # Beta(1.2, 0.8)
    assert abs(spread.between - between) < 0.005
    assert abs(spread.within - (0.24 - between)) < 0.005
    assert spread.raters < 0.001
    leaning = vote_spread(*draw_votes(rng, 6000, 3, concentration=100.0, leaning=0.1))
    assert abs(leaning.raters - 0.01) < 0.004
    assert (spread.n_items, spread.n_votes) == (6000, 18000)


def test_balanced_variances_are_the_textbooks():
    y = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=float)
    spread = vote_spread(y.ravel(), np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4))
    within = y.var(axis=1, ddof=1).mean()
    assert spread.within == pytest.approx(within)
    assert spread.between == pytest.approx(max(0, y.mean(axis=1).var(ddof=1) - within / 3))


def test_a_pilots_agreement_splits_the_variance():
    spread = spread_of_agreement(0.5, 0.7)
    assert (spread.within, spread.between) == (pytest.approx(0.15), pytest.approx(0.1))
    assert spread_of_agreement(0.5, 0.5).between == 0
    with pytest.raises(InputError, match=r"agreement of at least 0\.500"):
        spread_of_agreement(0.5, 0.4)


@pytest.mark.parametrize("overlap", [1, 3])
def test_a_plan_keeps_its_word(overlap):
    """As many items as the plan asks for give an interval of the wanted half-width: the rate's sd over worlds is h / z."""
    rng = np.random.default_rng(2)
    spread = vote_spread(*draw_votes(rng, 4000, 3))
    n = int(np.ceil(votes_for_half_width(spread, 0.05, overlap=overlap)))
    rates = [draw_votes(rng, n, overlap)[0].mean() for _ in range(200)]
    assert abs(np.std(rates) * 1.96 / 0.05 - 1) < 0.2


def test_plans_have_costs_with_intervals():
    rng = np.random.default_rng(3)
    y, item, rater = draw_votes(rng, 300, 3)
    seconds = rng.gamma(4, 10, len(y))
    seconds[:5] = np.nan
    plans = plan_votes(y, item, rater, 0.02, rng, seconds=seconds, pay_per_hour=12.0)
    assert [one.overlap for one in plans] == [1, 2, 3, 5]
    for one in plans:
        assert one.votes.value == one.items.value * one.overlap
        assert one.hours.value == pytest.approx(one.votes.value * np.nanmean(seconds) / 3600)
        assert one.cost.value == pytest.approx(12 * one.hours.value)
        for figure in (one.items, one.votes, one.hours, one.cost):
            assert figure.low < figure.value < figure.high
    votes = [one.votes.value for one in plans]
    assert votes == sorted(votes)
    items = [one.items.value for one in plans]
    assert items == sorted(items, reverse=True)
    free = votes_for_half_width(vote_spread(y, item, rater), 0.02, overlap=1)
    assert plans[0].items.value >= np.ceil(free)


def plan_of_few(rng, n_items, n_raters):
    y, item, rater = draw_votes(rng, n_items, 3, n_raters=n_raters)
    seconds = rng.gamma(4, 10, n_raters)[rater]
    options = {"seconds": seconds, "pay_per_hour": 12.0, "n_raters": 10**6, "n_draws": 100}
    return plan_votes(y, item, rater, 0.1, rng, overlaps=(1,), **options)[0]


@pytest.mark.parametrize(("n_items", "n_raters"), [(20, 3), (6, 60)])
def test_intervals_over_few_raters_or_items_hold_what_they_say(n_items, n_raters):
    """Hours that the world needs, in the intervals of its pilots: of 3 raters the bootstrap held them in .68
    (`bench/few_raters_study.py`)."""
    spread = vote_spread(*draw_votes(np.random.default_rng(0), 4000, 3))
    truth = votes_for_half_width(spread, 0.1, overlap=1) * 40 / 3600
    rng = np.random.default_rng(11)
    found = [plan_of_few(rng, n_items, n_raters).hours for _ in range(100)]
    held = [one.low <= truth <= one.high for one in found if one.low is not None]
    assert len(held) > 90
    assert np.mean(held) > 0.87  # binomial(90, .95) is below that in 1 of 500 cases
    assert "left out in turn" in found[0].method


def test_a_plan_of_what_shows_no_spread_has_no_interval():
    y, item, rater = [1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1], [0, 1, 0, 1]
    options = {"pay_per_vote": 1.0, "n_raters": 10**6}
    seconds = [10.0, np.nan, 10.0, np.nan]
    plan = plan_votes(y, item, rater, 0.1, np.random.default_rng(0), seconds=seconds, **options)
    assert plan[0].items.value > 0
    assert "no interval: undefined without 2 of 2 items" in plan[0].items.method
    y, item, rater = draw_votes(np.random.default_rng(1), 30, 3)
    only = np.where(rater == rater[0], 20.0, np.nan)
    plan = plan_votes(y, item, rater, 0.1, np.random.default_rng(0), seconds=only, **options)[0]
    assert (plan.hours.low, plan.hours.high) == (None, None)
    assert "found 1 rater's seconds" in plan.hours.method
    assert plan.cost.low < plan.cost.value < plan.cost.high  # votes that are paid one by one


def test_few_raters_can_be_too_few():
    rng = np.random.default_rng(4)
    y, item, rater = draw_votes(rng, 800, 3, n_raters=8, concentration=100.0, leaning=0.15)
    found = plan_votes(y, item, rater, 0.02, rng, seconds=np.full(len(y), 30.0), pay_per_hour=0.0)[0]
    assert found.votes.value is None
    assert "8 raters are too few, ask at least" in found.votes.method
    spread = vote_spread(y, item, rater)
    fewest = int(found.votes.method.split()[-1])
    assert votes_for_half_width(spread, 0.02, overlap=1, n_raters=fewest) is not None
    assert votes_for_half_width(spread, 0.02, overlap=1, n_raters=fewest - 2) is None


def test_a_learning_curve_is_recovered_and_doubts_itself():
    rng = np.random.default_rng(5)
    n = np.array([250, 500, 1000, 2000, 4000, 8000])
    truth = 0.80 - 1.2 * n**-0.4
    exact = fit_learning_curve(n, truth, np.full(6, 0.001), rng, n_draws=5)
    assert (exact.ceiling, exact.exponent) == (pytest.approx(0.80, abs=1e-3), pytest.approx(0.4, abs=1e-3))
    assert exact.votes_for(0.77).value == pytest.approx((1.2 / 0.03) ** 2.5, rel=1e-3)
    assert exact.votes_for(0.85).value is None
    assert "the fitted ceiling is 0.800" in exact.votes_for(0.85).method
    inside = 0
    for seed in range(10):
        draw = np.random.default_rng(seed)
        curve = fit_learning_curve(n, truth + draw.normal(0, 0.006, 6), np.full(6, 0.006), draw, n_draws=40)
        far = curve.accuracy_at(32_000)
        inside += far.low < 0.80 - 1.2 * 32_000**-0.4 < far.high
    assert inside >= 7  # binomial(10, .95) is below 7 in 1 of 1,000 cases
    assert "4.0-fold extrapolation" in far.method
    unsure = fit_learning_curve(n, truth, np.full(6, 0.006), rng, n_draws=60).votes_for(0.785)
    assert unsure.low < unsure.value
    assert unsure.high is None
    assert "never reach it" in unsure.method
    with pytest.raises(InputError, match="found 2 different numbers"):
        fit_learning_curve([1, 2, 2], [0.5, 0.6, 0.6], [0.1, 0.1, 0.1], rng)


def test_held_out_votes():
    assert held_out_needed(0.5, 0.05) == 385  # the textbook's 384.15
    assert held_out_needed(0.5, 0.05, design_effect=2) == 769
    with pytest.raises(InputError, match="deff ≥ 1"):
        held_out_needed(0.5, 0.05, design_effect=0.5)


def test_what_to_ask_again():
    certainty = np.array([0.99, 0.6, 0.99, 0.7, 1.0])
    touched = np.array([False, False, True, True, True])
    found = ask_again(certainty, touched, budget_votes=9, overlap=3)
    assert found.items == (3, 2, 4)
    assert found.change == pytest.approx([0.01, 0.4, 0.01 + 0.5 * 0.99, 0.3 + 0.5 * 0.7, 0.5])
    assert (found.votes, found.left_out) == (9, 0)
    assert found.expected.value == pytest.approx(0.65 + 0.505 + 0.5)
    assert found.expected.low < found.expected.value < found.expected.high
    rarely = ask_again(certainty, touched, budget_votes=6, overlap=3, changed=1, asked=98)
    assert rarely.items == (1, 3)
    assert rarely.left_out == 2
    uneven = ask_again(certainty, touched, budget_votes=7, overlap=[1, 1, 4, 2, 5])
    assert (uneven.items, uneven.votes) == ((3, 2), 6)  # the next one takes 5 of the 1 left
    assert ask_again([1.0, 1.0], [False, False], budget_votes=10).items == ()
    assert ask_again([], [], budget_votes=10).expected.value == 0


def test_expected_changes_are_what_happens():
    rng = np.random.default_rng(6)
    certainty, touched = rng.uniform(0.5, 1, 300), rng.random(300) < 0.4
    found = ask_again(certainty, touched, budget_votes=300, overlap=3, changed=15, asked=50)
    share = rng.beta(16, 36, 4000)
    chosen = np.array(found.items)
    doubt, mask = 1 - certainty[chosen], touched[chosen]
    p = doubt + mask * share[:, None] * (1 - doubt)
    happened = (rng.random(p.shape) < p).sum(axis=1)
    inside = ((happened >= found.expected.low) & (happened <= found.expected.high)).mean()
    assert 0.93 < inside < 0.97


def test_what_cannot_be_planned_is_said():
    rng = np.random.default_rng(7)
    with pytest.raises(InputError, match="no item has two votes"):
        vote_spread([1, 0], [0, 1], [0, 1])
    with pytest.raises(InputError, match="expected outcomes in 0 … 1"):
        vote_spread([2, 0], [0, 0], [0, 1])
    y, item, rater = draw_votes(rng, 20, 2)
    with pytest.raises(InputError, match="found seconds for 0 of 40 votes"):
        plan_votes(y, item, rater, 0.1, rng, seconds=np.full(40, np.nan), pay_per_hour=1)
    with pytest.raises(InputError, match="a pay of -1 an hour"):
        plan_votes(y, item, rater, 0.1, rng, seconds=np.ones(40), pay_per_hour=-1)
    with pytest.raises(InputError, match="found ±0 at overlap 1"):
        votes_for_half_width(vote_spread(y, item, rater), 0, overlap=1)
    with pytest.raises(InputError, match="in 0 … 1"):
        ask_again([1.5], [True], budget_votes=1)
    with pytest.raises(InputError, match="expected changed ≤ asked"):
        ask_again([0.5], [True], budget_votes=1, changed=2, asked=1)


def test_votes_that_are_paid_one_by_one_cost_what_they_cost_however_long_they_take():
    rng = np.random.default_rng(3)
    y, item, rater = draw_votes(rng, 300, 3)
    seconds = rng.gamma(0.5, 100, len(y))  # times that say little
    for one in plan_votes(y, item, rater, 0.02, rng, seconds=seconds, pay_per_vote=0.25):
        votes = one.votes
        assert (one.cost.value, one.cost.low, one.cost.high) == (
            0.25 * votes.value,
            0.25 * votes.low,
            0.25 * votes.high,
        )
