"""The least time on ratings that do not pay: likelihoods by the whole covariance, the exact case, and rules held against the bound."""

import numpy as np
import pytest
from bench import hybrid_bound as bound
from bench.worlds.hybrid import WORLDS
from scipy.special import logsumexp
from scipy.stats import chi2, multivariate_normal

WORLD = WORLDS[1]


@pytest.mark.parametrize("told", ["unit", "comparisons"])
def test_likelihoods_are_those_of_the_whole_covariance(told):
    rng = np.random.default_rng(0)
    rows, y, mean, root = (rng.standard_normal(shape) for shape in ((7, 3), 7, 3, (3, 3)))
    nodes, weights = bound.units(told)
    sds = np.array([1.4, 0.6])
    found = bound.log_marginals(
        bound.Ratings(7, float(y @ y), rows.T @ y, rows.T @ rows), mean, root, sds, nodes, weights
    )
    for sd, one in zip(sds, found, strict=True):
        covariance = sd**2 * np.eye(7) + rows @ root @ root.T @ rows.T
        each = [multivariate_normal.logpdf(y, np.exp(g) * rows @ mean, np.exp(2 * g) * covariance) for g in nodes]
        assert one == pytest.approx(logsumexp(np.array(each) + weights), abs=1e-6)


def test_what_is_told_of_everything_leaves_residuals_of_one_of_two_sizes():
    low, high = bound.rated_sd(WORLD, 0.1), bound.rated_sd(WORLD, -0.1)
    below, above = (bound.log_ratios(WORLD, 0.1, "all", above=state, n_drawn=200) for state in (False, True))
    j = bound.AT.index(11)
    size = float((below[:, j] >= np.quantile(above[:, j], 0.3)).mean())
    by_hand = chi2.cdf(low**2 * chi2.ppf(0.7, 11) / high**2, 11)
    assert abs(size - by_hand) < 0.06  # four standard errors of 200 data sets, at a size of .04
    assert np.tanh(np.abs(np.concatenate([below, above])[:, -1]) / 2).min() > 0.99


def test_comparisons_tell_of_the_weights_and_not_of_ratings():
    drawn = bound.Drawn(WORLD, 2.0, "comparisons", bound.UNIT, np.random.default_rng(3))
    mean, root = drawn.belief(400)
    d = WORLD.n_features
    z = np.linalg.solve(root[:d, :d], drawn.w - mean[:d])
    assert 8 < z @ z < 47  # χ² of 24 degrees of freedom: .001 beyond either
    assert np.array_equal(root[d:, d:], WORLD.offset_sd * np.eye(WORLD.n_raters))
    assert not mean[d:].any()


def test_without_news_the_shares_are_the_same_and_with_certainty_one_rating_is_lost():
    nothing = np.zeros((50, len(bound.AT)))
    assert bound.bound(nothing, nothing, 0.7) > 0.7  # ties at the threshold all count as asked
    sure = np.where(np.array(bound.AT) > 0, 50.0, 0.0) * np.ones((50, 1))
    assert bound.bound(-sure, sure, 0.7) == pytest.approx(0.7 / bound.TIME)
    assert bound.SPANS.sum() == bound.TIME


@pytest.mark.parametrize(("information", "thresholds"), [(0.01, (-0.6, -0.3)), (0.1, (-2.0, -1.0, -0.3))])
def test_no_stopping_rule_has_less_than_the_bound(information, thresholds):
    rng = np.random.default_rng(1)
    steps = np.diff(bound.AT, prepend=0)
    noise = [(rng.standard_normal((4000, len(steps))) * np.sqrt(information * steps)).cumsum(1) for _ in range(2)]
    drift = information * np.array(bound.AT) / 2
    below, above = noise[0] - drift, noise[1] + drift
    for threshold in thresholds:
        low, high = bound.stopping(below, above, threshold)
        assert bound.constant_is_best(above, high)
        assert 0 < bound.bound(below, above, high) < low < high
    assert not bound.constant_is_best(above, 0.99)  # nearly sure from the start is dear: then it would be no bound


def test_a_share_saves_what_it_was_chosen_for():
    for world in WORLDS[:3]:
        below, above = bound.rate_ratio(world, -0.1), bound.rate_ratio(world, 0.1)
        assert below < 1 < above
        assert bound.saved(bound.share_for(0.3, above), above) == pytest.approx(0.3)
        assert bound.saved(0.2, below) < 0
    assert bound.rate_ratio(WORLDS[3], 0.0) == 1.0


def test_rules_are_mixed_to_the_share_that_is_wanted():
    pairs = np.array([[0.1, 0.6], [0.2, 0.8]])
    assert bound.least_below(pairs, 0.6) == pytest.approx(0.1)
    assert bound.least_below(pairs, 0.7) == pytest.approx(0.15)
    assert bound.least_below(pairs, 0.3) == pytest.approx(0.05)  # half the time the rule that never rates
    assert bound.least_below(pairs, 0.9) == pytest.approx(0.6)  # or always
