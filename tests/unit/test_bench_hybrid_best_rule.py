"""The bound on parting time between ratings and comparisons: likelihoods by hand, total variation, and the best rule's limits."""

import numpy as np
import pytest
from bench import hybrid_best_rule as bound
from bench.worlds.hybrid import WORLDS
from scipy.stats import multivariate_normal, norm

WORLD = WORLDS[1]


def test_total_variation_of_residuals_is_that_of_their_densities():
    line = np.linspace(-40, 40, 400_001)
    apart = np.abs(norm.pdf(line, scale=3.6) - norm.pdf(line, scale=2.1)).sum() * (line[1] - line[0]) / 2
    assert bound.tv_of_noise(1, (3.6, 2.1)) == pytest.approx(apart, abs=1e-6)
    assert bound.tv_of_noise(0, (3.6, 2.1)) == 0.0
    assert bound.tv_of_noise(50, (3.6, 2.1)) > 0.99


def test_likelihoods_are_those_of_the_whole_covariance():
    sds = bound.States(WORLD, 0.1).sds
    one = bound.drawn(WORLD, 5, 8, np.random.default_rng(0), 3)
    rating = (one.design @ one.coefficients[..., None])[..., 0] + sds[0] * one.noise
    prior = np.exp(-0.5 * (bound.LOG_GAINS / bound.LOG_GAIN_SD) ** 2)
    ratios = [bound.log_likelihoods(one, rating, sd, known=False) for sd in sds]
    for i in range(3):
        by_hand = []
        for sd in sds:
            covariance = one.design[i] @ np.linalg.inv(one.precision[i]) @ one.design[i].T + sd**2 * np.eye(5)
            centre = one.design[i] @ one.mean[i]
            density = [
                multivariate_normal.pdf(rating[i], g * centre, g**2 * covariance) for g in np.exp(bound.LOG_GAINS)
            ]
            by_hand.append((density[len(density) // 2], prior @ density / prior.sum()))
        found = [ratios[1][which][i] - ratios[0][which][i] for which in range(2)]
        assert found == pytest.approx([np.log(by_hand[1][which] / by_hand[0][which]) for which in range(2)], abs=1e-6)


def test_known_weights_leave_the_noise_alone():
    one = bound.drawn(WORLD, 6, 0, np.random.default_rng(1), 2)
    rating = (one.design @ one.coefficients[..., None])[..., 0] + 2.0 * one.noise
    high, low = (bound.log_likelihoods(one, rating, sd, known=True)[0] for sd in (2.0, 3.0))
    by_hand = (norm.logpdf(2.0 * one.noise, scale=2.0) - norm.logpdf(2.0 * one.noise, scale=3.0)).sum(1)
    assert high - low == pytest.approx(by_hand, abs=1e-9)


def test_comparisons_are_believed_at_their_mode():
    rng = np.random.default_rng(2)
    delta, won = rng.standard_normal((2, 30, 4)), rng.integers(0, 2, (2, 30)).astype(float)
    mean, _ = bound.laplace(delta, won, 0.5)
    p = 1 / (1 + np.exp(-(delta @ mean[..., None])[..., 0]))
    assert (delta * (won - p)[..., None]).sum(1) == pytest.approx(0.5 * mean, abs=1e-9)
    mean, precision = bound.laplace(delta[:, :0], won[:, :0], 0.5)
    assert not mean.any()
    assert np.array_equal(precision[0], 0.5 * np.eye(4))


def test_a_share_saves_what_it_was_chosen_for():
    for world in WORLDS[:3]:
        low, high = bound.States(world, 0.1).worth
        assert low < 1 < high
        assert bound.saved(bound.share_for(0.3, high), high) == pytest.approx(0.3)
        assert bound.saved(0.2, low) < 0


@pytest.mark.parametrize("tv", [0.0, 0.5, 1.0])
def test_no_best_rule_breaks_the_bound_and_a_sure_one_reaches_it(tv, monkeypatch):
    monkeypatch.setattr(bound, "STEPS", (0, 50, 100))
    told = np.full((bound.TIME // bound.ROUND, len(bound.SHARES)), tv)
    told[0] = 0.0
    states = bound.States(WORLD, 0.1)
    found = bound.best_rule(states, told, 0.0)
    assert found["f+"] - found["f-"] <= told.max(1).mean() + 1e-6
    if tv == 0:
        assert found["f+"] == found["f-"]
    if tv == 1:  # one round blind, seven with all to the better kind
        assert found["f+"] - found["f-"] == pytest.approx(7 / 8, abs=1e-3)
    assert found["saving+"] <= bound.saved(found["f+"], states.worth[1]) + 1e-9  # swings cost, too
    assert bound.least_loss([found], 0.99) is None
