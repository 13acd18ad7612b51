"""Comparisons and ratings in one last layer, against the likelihood of `ratings`, ridge regression, and planted raters."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from karat.choice import RaterParams, VoteBatch
from karat.errors import InputError
from karat.feedback_columns import RatingBatch
from karat.ratings import RatingParams, rating_loglik
from karat.reward.last_layer import comparison_observations, fit_last_layer
from karat.reward.rated_layer import _settled, fit_rated_layer, rating_observations
from karat.reward.raters import RaterPriors

N_RATERS, D = 6, 8


def planted(n_votes, n_ratings, *, sd=1.2, seed=0, offsets=True):
    """Texts with a planted linear reward of sd 1.5, votes on pairs, and ratings by raters of their own offset and gain."""
    rng = np.random.default_rng(seed)
    features, truth = rng.standard_normal((300, D)), rng.standard_normal(D)
    truth *= 1.5 / np.linalg.norm(truth)
    a, b = rng.integers(0, 150, n_votes), rng.integers(150, 300, n_votes)
    level = (rng.random(n_votes) < 1 / (1 + np.exp(-(features[a] - features[b]) @ truth))).astype(int)
    zeros = torch.zeros(n_votes, dtype=torch.long)
    votes = VoteBatch(*map(torch.from_numpy, (a, b, level)), zeros.double(), zeros, 2)
    rated, who = rng.integers(0, 300, n_ratings), rng.integers(0, N_RATERS, n_ratings)
    offset = 0.5 + 0.15 * offsets * rng.standard_normal(N_RATERS)
    gain = 0.15 * (1 + 0.2 * offsets * rng.standard_normal(N_RATERS))
    value = offset[who] + gain[who] * (features[rated] @ truth) + 0.15 * sd * rng.standard_normal(n_ratings)
    return features, votes, RatingBatch(*map(torch.from_numpy, (rated, value, who))), truth, (offset, gain)


def compared(votes):
    one = torch.ones(1, dtype=torch.float64)
    return [comparison_observations(votes, RaterParams(one, 0 * one, 0 * one, torch.zeros(1)))]


def test_a_rating_is_as_likely_as_its_likelihood_says_and_its_derivatives_are_those_of_it():
    features, _, ratings, truth, (offset, gain) = planted(1, 40)
    sd = np.linspace(0.1, 0.3, N_RATERS)
    params = RatingParams(*map(torch.from_numpy, (offset, gain, sd)))
    seen = rating_observations(ratings, params)
    scores = torch.from_numpy(features @ truth)[ratings.response].requires_grad_()
    expected = rating_loglik(scores, ratings.value, ratings.annotator, params)
    (slope,) = torch.autograd.grad(expected.sum(), scores)
    rows = np.arange(40)
    value, first, exact, working = seen.derivatives(seen.slope * scores.detach().numpy() + seen.offset, rows)
    assert value == pytest.approx(expected.detach().numpy(), abs=1e-12)
    assert first * seen.slope == pytest.approx(slope.numpy(), abs=1e-9)
    assert (exact * seen.slope**2).tolist() == pytest.approx(((gain / sd) ** 2)[ratings.annotator.numpy()].tolist())
    assert (working == exact).all()


def test_ratings_alone_are_ridge_regression():
    features, _, ratings, _, _ = planted(1, 50)
    params = RatingParams(torch.full((N_RATERS,), 0.5), torch.full((N_RATERS,), 0.15), torch.full((N_RATERS,), 0.2))
    found = fit_last_layer(features, [rating_observations(ratings, params)], prior_precision=2.0)
    x, weight = features[ratings.response.numpy()], (0.15 / 0.2) ** 2
    precision = weight * x.T @ x + 2.0 * np.eye(D)
    mean = np.linalg.solve(precision, weight * x.T @ ((ratings.value.numpy() - 0.5) / 0.15))
    assert found.mean == pytest.approx(mean, abs=1e-6)
    assert found.covariance == pytest.approx(np.linalg.inv(precision), abs=1e-6)


def test_offsets_gains_and_noise_are_recovered_and_the_reward_is_better_for_the_ratings():
    features, votes, ratings, truth, (offset, gain) = planted(200, 600)
    found = fit_rated_layer(features, compared(votes), ratings, N_RATERS, RaterPriors())
    # standard errors: noise 4 %, an offset 0.018; the scale is known as well as 200 comparisons tell, some 12 %
    ratio = found.posterior.mean @ truth / (truth @ truth)
    assert abs(found.noise / ratio / 1.2 - 1) < 0.12
    assert abs(ratio - 1) < 0.36
    assert np.abs(found.params.offset.numpy() - offset).max() < 0.06  # three standard errors
    assert np.corrcoef(found.params.gain.numpy(), gain)[0, 1] > 0.7
    alone = fit_rated_layer(features, compared(votes), _first(ratings, 0), N_RATERS, RaterPriors())

    def angle(w):
        return np.arccos(w @ truth / np.linalg.norm(w) / np.linalg.norm(truth))

    assert angle(found.posterior.mean) < 0.6 * angle(alone.posterior.mean)
    unmodelled = fit_rated_layer(features, compared(votes), ratings, N_RATERS, RaterPriors(modelled=False))
    assert unmodelled.params.offset.unique().numel() == 1
    # what raters differ in is noise where they are not modelled, measured in sds of the scores
    noises = [one.noise / np.linalg.norm(one.posterior.mean) for one in (found, unmodelled)]
    assert noises[1] > 1.25 * noises[0]


def test_few_ratings_are_not_taken_for_precise_ones():
    """A score that 40 ratings of 8 features fitted leaves residuals that are too small; EM adds what is not known."""
    noises = []
    for seed in range(8):
        features, votes, ratings, truth, _ = planted(150, 40, seed=seed, offsets=False)
        found = fit_rated_layer(features, compared(votes), ratings, N_RATERS, RaterPriors(offset_sd=0.01, gain_sd=0.01))
        noises.append(found.noise * np.linalg.norm(truth) / np.linalg.norm(found.posterior.mean))
    # a mean of 8 with standard error 0.11 · 1.2/√8 = 0.05; residuals alone give about √(1 − 8/40) of it
    assert abs(np.mean(noises) - 1.2) < 0.12


def test_the_order_of_the_ratings_and_an_earlier_fit_change_nothing_but_the_way_there():
    features, votes, ratings, _, _ = planted(150, 200)
    found = fit_rated_layer(features, compared(votes), ratings, N_RATERS, RaterPriors())
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    mixed = RatingBatch(ratings.response[order], ratings.value[order], ratings.annotator[order])
    again = fit_rated_layer(features, compared(votes), mixed, N_RATERS, RaterPriors())
    assert again.posterior.mean == pytest.approx(found.posterior.mean, abs=1e-6)
    resumed = fit_rated_layer(features, compared(votes), ratings, N_RATERS, RaterPriors(), start=found)
    assert resumed.noise == pytest.approx(found.noise, rel=1e-3)


def test_without_comparisons_the_gain_keeps_the_scale():
    features, _, ratings, _, _ = planted(1, 300)
    found = fit_rated_layer(features, [], ratings, N_RATERS, RaterPriors())
    assert found.gain == 0.15
    only = fit_rated_layer(features, compared(planted(60, 0)[1]), _first(ratings, 0), N_RATERS, RaterPriors())
    assert only.params.gain.tolist() == [0.15] * N_RATERS


def test_what_does_not_fit_is_named():
    features, votes, ratings, _, _ = planted(20, 20)
    with pytest.raises(InputError, match=r"found raters 0 … 5; expected 0 … 1"):
        fit_rated_layer(features, compared(votes), ratings, 2, RaterPriors())
    params = RatingParams(torch.zeros(N_RATERS), torch.ones(N_RATERS), torch.ones(N_RATERS))
    with pytest.raises(InputError, match="7 ordinal steps; expected Gaussian"):
        rating_observations(dataclasses.replace(ratings, n_levels=7), params)
    with pytest.raises(InputError, match="0 answers; expected finite"):
        fit_rated_layer(features, [], _first(ratings, 0), N_RATERS, RaterPriors())


def _first(ratings, n):
    return RatingBatch(ratings.response[:n], ratings.value[:n], ratings.annotator[:n])


@pytest.mark.parametrize(
    ("earlier", "before", "noise", "settled"),
    [
        (math.nan, math.nan, 2.0, False),
        (1.0, 2.0, 2.001, True),
        (2.8793, 2.8754, 2.8793, True),  # two searches that answer each other
        (2.0, 2.5, 2.0, False),
        (2.0, 2.02, 2.04, False),
    ],
)
def test_noise_is_found_when_it_stands_still_or_swings_a_little(earlier, before, noise, settled):
    assert _settled(earlier, before, noise) is settled
