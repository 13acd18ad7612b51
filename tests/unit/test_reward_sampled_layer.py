"""The sampled last layer: the sampler on known densities, gradients, the link of wavering raters, planted populations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from karat.choice import VoteBatch
from karat.errors import ConvergenceError, InputError
from karat.hamiltonian import sample_chains, split_rhat
from karat.reward import sampled_layer
from karat.reward.hierarchy import HierarchyDensity, HierarchyPriors, TextEffects
from karat.reward.last_layer import comparison_observations, fit_last_layer
from karat.reward.raters import RaterPriors, prior_raters
from karat.reward.sampled_layer import _incidence, sample_population


def test_draws_have_the_mean_and_covariance_of_a_normal_density():
    rng = np.random.default_rng(0)
    covariance = np.array([[4.0, 0.9, 0.0], [0.9, 0.5, 0.0], [0.0, 0.0, 0.01]])
    mean, precision = np.array([1.0, -2.0, 0.5]), np.linalg.inv(covariance)

    def density(x):
        return -(x - mean) @ precision @ (x - mean) / 2, -precision @ (x - mean)

    chains = sample_chains(density, np.zeros(3), rng, n_chains=2, n_warm=200, n_draws=500)
    found = chains.pooled()
    sd = np.sqrt(np.diag(covariance))
    # 1,000 draws, the slowest coordinate worth some 400: a standard error of .05 of the mean and .07 of a variance
    assert (np.abs(found.mean(0) - mean) < 0.2 * sd).all()
    assert (np.abs(np.cov(found.T) / np.outer(sd, sd) - covariance / np.outer(sd, sd)) < 0.25).all()
    assert 0.6 < chains.acceptance <= 1
    assert split_rhat(chains.draws).max() < 1.05


def test_chains_that_disagree_and_densities_without_a_value_are_named():
    apart = np.random.default_rng(1).standard_normal((2, 100, 2)) + np.array([[[0.0, 0.0]], [[0.0, 3.0]]])
    rhat = split_rhat(apart)
    assert rhat[0] < 1.1 < 1.5 < rhat[1]
    assert split_rhat(np.ones((2, 10, 1))).tolist() == [1.0]
    with pytest.raises(ConvergenceError, match="not finite"):
        sample_chains(lambda x: (np.nan, x), np.zeros(1), np.random.default_rng(0), n_chains=1, n_warm=20, n_draws=4)
    with pytest.raises(InputError, match="found 0 chains"):
        sample_chains(lambda x: (0.0, -x), np.zeros(1), np.random.default_rng(0), n_chains=0, n_warm=20, n_draws=4)


def votes_of(level, side, rater, n_levels):
    n, column = len(level), torch.from_numpy
    return VoteBatch(
        torch.arange(n), torch.arange(n, 2 * n), column(level), column(side).double(), column(rater), n_levels
    )  # fmt: skip


def crowd(seed, *, n_raters=20, n_each=25, d=3, taste_sd=0.4, competence_sd=0.4, waver_sd=0.0, step=0.4):
    """Differences, votes of raters who differ (and, waver_sd, weigh anew at every answer), and the mean taste."""
    rng = np.random.default_rng(seed)
    mean = 1.5 * rng.standard_normal(d)
    rater = np.repeat(np.arange(n_raters), n_each)
    own = mean + taste_sd * rng.standard_normal((n_raters, d))
    competence = 1 + competence_sd * rng.standard_normal(n_raters)
    delta = rng.standard_normal((len(rater), d))
    at_once = own[rater] + waver_sd * rng.standard_normal((len(rater), d))
    eta = competence[rater] * (delta * at_once).sum(1) + rng.logistic(size=len(rater))
    level = (eta > -step).astype(int) + (eta > step)
    return delta, votes_of(level, rng.choice([-1.0, 1.0], len(rater)), rater, 3), mean


def first_fit(delta, votes, n_raters):
    features = np.concatenate([delta, np.zeros_like(delta)])
    raters = prior_raters(n_raters, votes.n_levels, RaterPriors())
    return features, fit_last_layer(features, [comparison_observations(votes, raters)], tolerance=1e-4)


@pytest.mark.parametrize(("n_levels", "with_effects"), [(2, False), (3, True), (5, False)])
def test_the_gradient_is_that_of_the_density(n_levels, with_effects):
    rng = np.random.default_rng(n_levels)
    n, d = 30, 2
    votes = votes_of(
        rng.integers(n_levels, size=n), rng.choice([-1.0, 1.0], n), np.arange(n) % 4, n_levels
    )  # fmt: skip
    density = HierarchyDensity(
        rng.standard_normal((n, d)), votes, known=0.3 * rng.standard_normal(n), centre=np.array([1.0, -0.5]),
        factor=np.array([[0.5, 0.0], [0.2, 0.3]]), priors=HierarchyPriors(),
        effects=TextEffects(_incidence(*rng.integers(7, size=(2, n)), 7), 0.8) if with_effects else None,
    )  # fmt: skip
    at, h = density.start() + 0.5 * rng.standard_normal(density.n_dims), 1e-5
    gradient = density(at)[1]
    for i, step in enumerate(h * np.eye(density.n_dims)):
        slope = (density(at + step)[0] - density(at - step)[0]) / (2 * h)
        assert gradient[i] == pytest.approx(slope, rel=1e-5, abs=1e-6)
    assert density(at + 100)[0] == -np.inf


def test_the_link_of_a_wavering_rater_is_nearly_the_integral_over_what_she_weighs():
    for eta, spread in ((0.5, 1.0), (2.0, 2.0), (-1.0, 0.5)):
        exact = quad(
            lambda z, eta=eta, spread=spread: np.exp(-z * z / 2) / np.sqrt(2 * np.pi) / (1 + np.exp(-eta - spread * z)),
            -9, 9,
        )[0]  # fmt: skip
        density = HierarchyDensity(
            np.ones((1, 1)), votes_of(np.array([1]), np.ones(1), np.array([0]), 2), known=np.zeros(1),
            centre=np.array([eta]), factor=np.eye(1), priors=HierarchyPriors(lapse=(1.0, 1e9)),
        )  # fmt: skip
        x = density.start()
        x[density.place["spreads"]][3] = np.log(spread / density.spreads(x)["waver_sd"]) / density.priors.wavering[1]
        with_her = density(x)[0]
        x[density.place["w"]] = -2 * eta  # the other way round: the same priors, 1 − P
        against = density(x)[0]
        # MacKay's approximation is off by less than .02 in a probability
        assert abs(1 / (1 + np.exp(against - with_her)) - exact) < 0.02


def covered_and_length(draws, mean, seed):
    test = np.random.default_rng(seed).standard_normal((60, len(mean)))
    low, high = np.quantile(test @ draws.T, [0.05, 0.95], axis=1)
    return np.mean((low <= test @ mean) & (test @ mean <= high)), draws.mean(0) @ mean / (mean @ mean)


@pytest.fixture
def short_chains(monkeypatch):
    for name, value in (("N_CHAINS", 1), ("N_WARM", 80), ("N_DRAWS", 120)):
        monkeypatch.setattr(sampled_layer, name, value)


@pytest.mark.usefixtures("short_chains")
def test_raters_who_differ_and_waver_are_covered_where_one_taste_is_sure_of_too_little():
    found = {"one taste": [], "population": []}
    for seed in range(3):
        delta, votes, mean = crowd(10 * seed + 3, waver_sd=1.0)
        features, first = first_fit(delta, votes, 20)
        rng = np.random.default_rng(seed)
        sampled = sample_population(features, votes, first, rng, raters=RaterPriors())
        found["one taste"].append(covered_and_length(first.draws(600, rng), mean, seed))
        found["population"].append(covered_and_length(sampled.draws, mean, seed))
    one, population = (np.mean(found[name], 0) for name in ("one taste", "population"))
    # three fits of three weights: a standard error of about .1 of a coverage of .9
    assert population[0] > 0.7
    assert one[0] < 0.4
    assert 0.65 < population[1] < 1.2
    assert population[1] > one[1] + 0.1


@pytest.mark.usefixtures("short_chains")
def test_directions_that_are_not_sampled_keep_their_first_fit():
    rng = np.random.default_rng(5)
    d, n = 40, 150
    weights = np.concatenate([np.ones(3), np.zeros(d - 3)])
    delta = rng.standard_normal((n, d)) * np.where(np.arange(d) < 6, 1.0, 0.05)
    level = (delta @ weights + rng.logistic(size=n) > 0).astype(int)
    votes = votes_of(level, np.ones(n), np.arange(n) % 5, 2)
    features, first = first_fit(delta, votes, 5)
    sampled = sample_population(features, votes, first, rng, raters=RaterPriors(modelled=False), prior_precision=1.0)
    assert sampled.draws.shape == (120, d)
    np.linalg.cholesky(sampled.posterior.covariance)
    wide = np.linalg.eigh(first.covariance)[1][:, -1]
    assert wide @ sampled.posterior.covariance @ wide == pytest.approx(wide @ first.covariance @ wide, rel=1e-9)
    assert np.var(sampled.draws @ wide) < 1.5 * (wide @ first.covariance @ wide)
    assert sampled.spreads["competence_sd"] < 0.01
    assert 0.99 < sampled.spreads["precision"] < 1.01


def test_effects_of_texts_are_drawn_beside_raters_who_differ():
    """Many votes on few texts, liked for what the one feature does not say, by raters who differ in what they make of it."""
    rng, n_texts, n = np.random.default_rng(2), 16, 400
    features, effect = rng.standard_normal((n_texts, 1)), 1.5 * rng.standard_normal(n_texts)
    rater = np.arange(n) % 10
    a = rng.integers(n_texts, size=n)
    b = (a + rng.integers(1, n_texts, size=n)) % n_texts
    own = 1.0 + 0.6 * rng.standard_normal(10)
    eta = own[rater] * (features[a, 0] - features[b, 0]) + effect[a] - effect[b] + rng.logistic(size=n)
    columns = [torch.from_numpy(one) for one in (a, b, (eta > 0).astype(int), np.zeros(n), rater)]
    votes = VoteBatch(*columns, 2)
    raters = prior_raters(10, 2, RaterPriors())
    whole = np.concatenate([features, 1.5 * np.eye(n_texts)], axis=1)
    wide = fit_last_layer(whole, [comparison_observations(votes, raters)], prior_precision=1.0)
    first = dataclasses.replace(wide, mean=wide.mean[:1], covariance=wide.covariance[:1, :1])
    found = {
        size: sample_population(features, votes, first, np.random.default_rng(0), raters=RaterPriors(), prior_precision=1.0,
                                effect_size=size)
        for size in (0.0, 1.5)
    }  # fmt: skip
    sd = {size: float(one.draws.std()) for size, one in found.items()}
    # sixteen texts say little of the feature once each may be liked for itself, however many vote on them
    assert sd[1.5] > 1.5 * sd[0.0]
    assert abs(float(found[1.5].draws.mean()) - 1.0) < 2 * sd[1.5]
    assert found[1.5].spreads["taste_sd"] > 0.1
    assert found[1.5].draws.shape[1] == 1
