"""A population of tastes: the overdispersed likelihood against an integral, planted spreads, honest certainty."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from karat.errors import ConvergenceError
from karat.reward.last_layer import Observations, fit_last_layer, ordinal_derivatives
from karat.reward.tastes import competences, fit_population, overdispersed, taste_variance


def answers_of(level):
    def derivatives(eta, rows):
        return ordinal_derivatives(eta, level[rows], np.zeros(len(rows)), np.zeros(1))

    n = len(level)
    return Observations(np.arange(n), np.full(n, -1), np.ones(n), np.zeros(n), derivatives)


def crowd(taste_sd, *, n_raters=40, n_each=30, d=4, seed=0):
    """Raters with weights around a planted mean."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(d)
    own = mean + taste_sd * rng.standard_normal((n_raters, d))
    who = np.repeat(np.arange(n_raters), n_each)
    delta = rng.standard_normal((n_raters * n_each, d))
    eta = (delta * own[who]).sum(1)
    level = (rng.random(len(eta)) < 1 / (1 + np.exp(-eta))).astype(int)
    return delta, answers_of(level), who, mean


def test_an_overdispersed_answer_is_the_integral_over_tastes_and_its_slopes_are_derivatives():
    level, spread, h = np.array([0, 1, 1]), np.array([0.7, 1.5, 0.0]), 1e-4
    plain = answers_of(level)
    wide = overdispersed(plain, spread)
    eta, rows = np.array([0.3, -1.0, 2.0]), np.arange(3)
    value, first, curvature, working = wide.derivatives(eta, rows)
    for i in range(3):
        sign = 2 * level[i] - 1

        def density(z, i=i, sign=sign):
            p = 1 / (1 + np.exp(-sign * (eta[i] + spread[i] * z)))
            return p * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

        assert value[i] == pytest.approx(np.log(quad(density, -10, 10)[0]), abs=1e-6)
    up, down = wide.derivatives(eta + h, rows), wide.derivatives(eta - h, rows)
    assert first == pytest.approx((up[0] - down[0]) / (2 * h), abs=1e-6)
    assert curvature == pytest.approx(-(up[1] - down[1]) / (2 * h), abs=1e-6)
    assert (working >= curvature - 1e-12).all()
    assert overdispersed(plain, np.zeros(3)) is plain


def test_the_spread_of_tastes_is_recovered_and_none_is_found_where_there_is_none():
    found = {}
    for taste_sd in (0.0, 0.8):
        values = []
        for seed in range(6):
            delta, answers, who, mean = crowd(taste_sd, seed=seed)
            values.append(taste_variance(delta, answers, who, mean))
        found[taste_sd] = float(np.mean(values))
    # 6 crowds of 40 raters and 4 features: the relative standard error of a variance is about √(2/960) plus noise
    assert found[0.0] < 0.06
    assert 0.64 * 0.7 < found[0.8] < 0.64 * 1.3


def test_with_tastes_the_mean_is_less_shrunk_and_less_certain():
    length = {"one taste": [], "population": []}
    inside = {"one taste": [], "population": []}
    for seed in range(6):
        delta, answers, who, mean = crowd(1.2, seed=100 + seed)
        for name, fit in (
            ("one taste", fit_last_layer(delta, [answers], prior_precision=1.0)),
            ("population", fit_population(delta, answers, who, prior_precision=1.0, averaged=False).posterior),
        ):
            length[name].append(fit.mean @ mean / (mean @ mean))
            test = np.random.default_rng(seed).standard_normal((50, 4))
            inside[name].append((np.abs(test @ (fit.mean - mean)) <= 1.645 * np.sqrt(fit.variance(test))).mean())
    assert np.mean(length["one taste"]) < 0.85
    assert np.mean(length["population"]) > np.mean(length["one taste"]) + 0.08
    assert np.mean(inside["population"]) > np.mean(inside["one taste"]) + 0.2


def uneven(competence_sd, *, n_raters=40, n_each=30, d=4, seed=0):
    """Raters of one taste who perceive more or less of every difference."""
    rng = np.random.default_rng(seed)
    mean = 1.5 * rng.standard_normal(d)
    competence = 1 + competence_sd * rng.standard_normal(n_raters)
    who = np.repeat(np.arange(n_raters), n_each)
    delta = rng.standard_normal((n_raters * n_each, d))
    level = (rng.random(len(who)) < 1 / (1 + np.exp(-competence[who] * (delta @ mean)))).astype(int)
    return delta, answers_of(level), who, mean, competence


def test_competences_are_recovered_with_their_spread_and_their_certainty():
    spreads, errors, certain = {0.0: [], 0.4: []}, [], []
    for seed in range(8):
        for planted, found in spreads.items():
            delta, answers, who, mean, competence = uneven(planted, seed=seed, n_each=60)
            made = competences(delta, answers, who, mean)
            found.append(made.population_sd)
            if planted:
                errors.append(made.mean - competence / competence.mean())
                certain.append(made.sd)
    # 320 raters in all: the spread's standard error is .02 from the drawing of raters and less from their answers
    assert np.mean(spreads[0.0]) < 0.12
    assert 0.32 < np.mean(spreads[0.4]) < 0.48
    errors, certain = np.concatenate(errors), np.concatenate(certain)
    # binomial, n = 320: .9 ± .05
    assert 0.84 < (np.abs(errors) <= 1.645 * certain).mean() < 0.96


def test_with_competences_known_only_so_well_the_mean_is_of_the_right_size():
    length = {True: [], False: []}
    for seed in range(6):
        delta, answers, who, mean, competence = uneven(0.5, seed=50 + seed)
        mean = mean * competence.mean()  # what these raters say together
        for known, found in length.items():
            fit = fit_population(delta, answers, who, prior_precision=0.1, averaged=False, competence_known=known)
            found.append(fit.posterior.mean @ mean / (mean @ mean))
            assert (fit.competence_sd > 0.2) == (not known)
    # six fits, each with a standard error of .1
    assert np.mean(length[True]) < 0.9
    assert 0.92 < np.mean(length[False]) < 1.08


def test_raters_who_vote_against_the_scores_are_named():
    delta, answers, who, mean, _ = uneven(0.2, seed=3)
    with pytest.raises(ConvergenceError, match="mean competence is -"):
        competences(delta, answers, who, -mean)


def test_raters_agree_on_the_features_that_are_not_of_taste():
    """The taste's variance and the covariance it adds are those of the first features alone."""
    delta, answers, who, mean = crowd(0.8, seed=1, n_raters=20, n_each=20)
    beside = np.random.default_rng(0).standard_normal((len(delta), 3))
    whole, weights = np.concatenate([delta, beside], axis=1), np.concatenate([mean, np.zeros(3)])
    assert taste_variance(whole, answers, who, weights, n_taste=4) == pytest.approx(
        taste_variance(delta, answers, who, mean), abs=1e-12
    )
    assert taste_variance(whole, answers, who, weights) < taste_variance(delta, answers, who, mean)
    found = fit_population(whole, answers, who, prior_precision=1.0, averaged=False, competence_known=True, n_taste=4)
    everywhere = fit_population(whole, answers, who, prior_precision=1.0, averaged=False, competence_known=True)
    tasted, alike = (np.diag(one.posterior.covariance) for one in (found, everywhere))
    assert found.taste_sd > 0.4
    assert tasted[4:].mean() < alike[4:].mean()
