"""The sampled last layer: the sampler on known densities, gradients, the link of wavering raters, planted populations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from bench.mixture_coverage import covered
from bench.worlds.mixed_tastes import WORLDS, TasteWorld, drawn_world
from scipy.integrate import quad

from karat.choice import VoteBatch
from karat.errors import ConvergenceError, InputError
from karat.feedback_columns import FeedbackBatch, FeedbackParams, LabelParams, comparisons_alone
from karat.feedback_likelihood import channel_loglik, sample_channel
from karat.hamiltonian import sample_chains, split_rhat
from karat.ratings import RatingParams
from karat.reward import sampled_layer
from karat.reward.channel_answers import by_autograd
from karat.reward.drawn_answers import ChoiceRows
from karat.reward.drawn_raters import LabelBlock, ScaleBlock
from karat.reward.hierarchy import Directions, HierarchyDensity, HierarchyPriors
from karat.reward.last_layer import comparison_observations, fit_last_layer
from karat.reward.latents import prior_params
from karat.reward.layer_turns import fit_by_turns
from karat.reward.population_layer import population_of
from karat.reward.raters import RaterPriors, prior_raters
from karat.reward.sampled_layer import _directions, sample_population
from karat.reward.settings import LaplaceConfig, RewardConfig
from kind_worlds import asked, known_raters, planted


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


def test_every_draw_of_every_chain_is_counted_and_counting_changes_none():
    told = []

    def drawn(**options):
        rng = np.random.default_rng(0)
        how = {"n_chains": 2, "n_warm": 20, "n_draws": 4}
        return sample_chains(lambda x: (-float(x @ x) / 2, -x), np.zeros(2), rng, **how, **options).draws

    counted = drawn(counted=lambda done, of: told.append((done, of)))
    assert told == [(n, 48) for n in range(1, 49)]
    assert np.array_equal(counted, drawn())


def test_chains_that_disagree_and_densities_without_a_value_are_named():
    apart = np.random.default_rng(1).standard_normal((2, 100, 2)) + np.array([[[0.0, 0.0]], [[0.0, 3.0]]])
    rhat = split_rhat(apart)
    assert rhat[0] < 1.1 < 1.5 < rhat[1]
    assert split_rhat(np.ones((2, 10, 1))).tolist() == [1.0]
    with pytest.raises(ConvergenceError, match="not finite"):
        sample_chains(lambda x: (np.nan, x), np.zeros(1), np.random.default_rng(0), n_chains=1, n_warm=20, n_draws=4)
    with pytest.raises(InputError, match="found 0 chains"):
        sample_chains(lambda x: (0.0, -x), np.zeros(1), np.random.default_rng(0), n_chains=0, n_warm=20, n_draws=4)


def test_a_chain_that_comes_where_the_density_is_stiff_does_not_stay_for_good():
    """Normal, but that three coordinates are seven times as narrow where the fourth is below −1.5, as weights are beside a noise near 0."""

    def density(x):
        low = (1 - np.tanh(1.5 * (x[0] + 1.5))) / 2
        log_sd, slope, square = -2 * low, 6 * low * (1 - low), x[1:] @ x[1:]
        precision = np.exp(-2 * log_sd)
        gradient = np.concatenate([[slope * (precision * square - 3) - x[0]], -precision * x[1:]])
        return -(x[0] ** 2) / 2 - 3 * log_sd - precision * square / 2, gradient

    longest = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        drawn = sample_chains(density, np.zeros(4), rng, n_chains=1, n_warm=200, n_draws=800).draws[0, :, 0]
        moved = np.flatnonzero(np.diff(drawn, prepend=np.inf, append=np.inf))
        longest.append(np.diff(moved).max())
    assert max(longest) < 40  # 85 with steps of one length


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


def nobody_known(n):
    """Raters at their priors, who have nothing but competence, side bias and lapses."""
    return FeedbackParams(torch.ones(n), torch.zeros(n), torch.full((n,), 0.05))


def sampled_votes(features, votes, first, rng, **options):
    n = int(votes.annotator.max()) + 1
    return sample_population(features, comparisons_alone(votes), nobody_known(n), first, rng, **options)


def density_of(delta, votes, *, known, centre, priors, effect_size=0.0):
    """Of comparisons whose first texts have these differences of features, and whose second ones have none."""
    at = Directions(np.concatenate([delta, 0 * delta]), np.concatenate([known, 0 * known]), centre, effect_size)
    params = nobody_known(int(votes.annotator.max()) + 1)
    return HierarchyDensity(comparisons_alone(votes), at, params, priors=priors, raters=RaterPriors())


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
    density = density_of(
        rng.standard_normal((n, d)), votes, known=0.3 * rng.standard_normal(n), centre=np.array([1.0, -0.5]),
        priors=HierarchyPriors(), effect_size=0.8 * with_effects,
    )  # fmt: skip
    gradient_is_that_of(density, rng)


def gradient_is_that_of(density, rng):
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
        found = []
        for level in (1, 0):  # the other way round: 1 − P
            density = density_of(
                np.ones((1, 1)), votes_of(np.array([level]), np.ones(1), np.array([0]), 2), known=np.zeros(1),
                centre=np.array([eta]), priors=HierarchyPriors(lapse=(1.0, 1e9)),
            )  # fmt: skip
            x, priors = density.start(), density.priors
            spreads = density.place["spreads"]
            x[spreads.start + 2] = -30.0  # no tastes
            x[spreads.start + 4] = np.log(abs(eta / density.weights(x)[0])) / density.sized.step
            unit = np.exp(-np.log(density.spreads(x)["precision"]) / 2)
            x[spreads.start + 3] = np.cbrt(spread / (unit * priors.wavering))
            assert density.spreads(x)["waver_sd"] == pytest.approx(spread)
            assert density.weights(x) == pytest.approx([eta])
            found.append(density(x)[0])
        # MacKay's approximation is off by less than .02 in a probability
        assert abs(1 / (1 + np.exp(found[1] - found[0])) - exact) < 0.02


def covered_and_length(draws, mean, seed):
    test = np.random.default_rng(seed).standard_normal((60, len(mean)))
    low, high = np.quantile(test @ draws.T, [0.05, 0.95], axis=1)
    return np.mean((low <= test @ mean) & (test @ mean <= high)), draws.mean(0) @ mean / (mean @ mean)


@pytest.fixture
def short_chains(monkeypatch):
    for name, value in (("N_CHAINS", 1), ("N_WARM", 80), ("N_DRAWS", 120), ("ENOUGH", 10.0)):
        monkeypatch.setattr(sampled_layer, name, value)


@pytest.mark.usefixtures("short_chains")
def test_raters_who_differ_and_waver_are_covered_where_one_taste_is_sure_of_too_little():
    found = {"one taste": [], "population": []}
    for seed in range(3):
        delta, votes, mean = crowd(10 * seed + 3, waver_sd=1.0)
        features, first = first_fit(delta, votes, 20)
        rng = np.random.default_rng(seed)
        sampled = sampled_votes(features, votes, first, rng, raters=RaterPriors())
        found["one taste"].append(covered_and_length(first.draws(600, rng), mean, seed))
        found["population"].append(covered_and_length(sampled.draws, mean, seed))
    one, population = (np.mean(found[name], 0) for name in ("one taste", "population"))
    # three fits of three weights: a standard error of about .1 of a coverage of .9
    assert population[0] > 0.7
    assert one[0] < 0.4
    assert 0.65 < population[1] < 1.2
    assert population[1] > one[1] + 0.1


@pytest.mark.usefixtures("short_chains")
def test_wavering_is_found_where_it_is_and_not_where_it_is_not():
    """What one rater weighs otherwise from answer to answer: none at all, and 1.4 weights, in units of weights (together they have no size)."""
    found = {}
    for waver in (0.0, 4.0):
        delta, votes, mean = crowd(3, n_raters=15, n_each=60, waver_sd=waver)
        features, first = first_fit(delta, votes, 15)
        sampled = sampled_votes(features, votes, first, np.random.default_rng(0), raters=RaterPriors())
        found[waver] = sampled.spreads["waver_sd"] / np.linalg.norm(sampled.posterior.mean)
    assert found[0.0] < 0.02
    assert 0.6 < found[4.0] / (4.0 / np.linalg.norm(mean)) < 1.7


@pytest.mark.usefixtures("short_chains")
def test_directions_that_are_not_sampled_keep_their_first_fit():
    rng = np.random.default_rng(5)
    d, n = 40, 150
    weights = np.concatenate([np.ones(3), np.zeros(d - 3)])
    delta = rng.standard_normal((n, d)) * np.where(np.arange(d) < 6, 1.0, 0.05)
    level = (delta @ weights + rng.logistic(size=n) > 0).astype(int)
    votes = votes_of(level, np.ones(n), np.arange(n) % 5, 2)
    features, first = first_fit(delta, votes, 5)
    sampled = sampled_votes(features, votes, first, rng, raters=RaterPriors(modelled=False), prior_precision=1.0)
    assert sampled.draws.shape == (120, d)
    np.linalg.cholesky(sampled.posterior.covariance)
    basis = _directions(first)
    assert basis.shape == (d, 32)
    assert basis.T @ basis == pytest.approx(np.eye(32), abs=1e-9)
    assert basis @ (basis.T @ first.mean) == pytest.approx(first.mean)  # the size of all of it is sampled
    wide = np.linalg.eigh(first.covariance)[1][:, -1]
    wide = wide - basis @ (basis.T @ wide)
    wide /= np.linalg.norm(wide)
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
        size: sampled_votes(features, votes, first, np.random.default_rng(0), raters=RaterPriors(), prior_precision=1.0,
                                effect_size=size)
        for size in (0.0, 1.5)
    }  # fmt: skip
    sd = {size: float(one.draws.std()) for size, one in found.items()}
    # sixteen texts say little of the feature once each may be liked for itself, however many vote on them
    assert sd[1.5] > 1.5 * sd[0.0]
    assert abs(float(found[1.5].draws.mean()) - 1.0) < 2 * sd[1.5]
    assert found[1.5].spreads["taste_sd"] > 0.1
    assert found[1.5].draws.shape[1] == 1


FEW = {
    "labels": {"label": 20},
    "two scales": {"comparison/3": 10, "comparison/5": 10},
    "mixture": {"comparison/3": 6, "rating": 8, "label": 6},
}


@pytest.mark.parametrize(
    ("asked_of", "n_features"), [("labels", 4), ("labels", 48), ("two scales", 48), ("mixture", 4)]
)
def test_chains_agree_where_twenty_answers_say_little_of_weights_and_nothing_of_their_size(asked_of, n_features):
    """R̂ was 1.53, 1.60, 1.36 and 1.99 where λ was drawn beside weights in a unit of their own."""
    spec = TasteWorld(asked_of, FEW[asked_of], n_raters=8, n_texts=20, n_features=n_features)
    features, batch, _ = drawn_world(spec, 1000)
    params = prior_params(batch.channels, spec.n_raters, RaterPriors())
    turned = fit_by_turns(
        features, batch, params, RaterPriors(), n_people=spec.n_raters, start=np.zeros(n_features), averaged=True
    )  # fmt: skip
    rng = np.random.default_rng(1000)
    found = sample_population(features, batch, turned.params, turned.posterior, rng, raters=RaterPriors())
    assert found.rhat < 1.1
    # twenty answers do not say that scores are some hundred logits apart, nor that they are all the same
    assert 0.2 < (features @ found.draws.T).std(0).mean() < 20


def test_chains_agree_at_once_where_twenty_ratings_in_many_features_can_be_met_with_hardly_any_noise(monkeypatch):
    """R̂ of the first chains was 1.19, that of the noise 1.85: it wandered from .03 to 1.1 of the scale."""
    monkeypatch.setattr(sampled_layer, "ENOUGH", 10.0)
    spec = TasteWorld("ratings", {"rating": 20}, n_raters=8, n_texts=20, n_features=48)
    features, batch, _ = drawn_world(spec, 1001)
    params = prior_params(batch.channels, spec.n_raters, RaterPriors())
    turned = fit_by_turns(
        features, batch, params, RaterPriors(), n_people=spec.n_raters, start=np.zeros(48), averaged=True
    )  # fmt: skip
    rng = np.random.default_rng(1001)
    assert sample_population(features, batch, turned.params, turned.posterior, rng, raters=RaterPriors()).rhat < 1.1


def test_chains_that_do_not_agree_are_drawn_once_more_and_the_better_ones_kept(monkeypatch):
    delta, votes, _ = crowd(0, n_raters=4, n_each=10)
    features, first = first_fit(delta, votes, 4)
    asked_for, drawn = [], []

    def drawing(density, start, rng, **how):
        asked_for.append((how["n_warm"], how["n_draws"]))
        drawn.append(sample_chains(density, start, rng, **how))
        return drawn[-1]

    for name, value in (("N_WARM", 20), ("N_DRAWS", 10), ("sample_chains", drawing)):
        monkeypatch.setattr(sampled_layer, name, value)
    for enough, wanted in ((100.0, [(20, 10)]), (0.0, [(20, 10), (40, 20)])):
        asked_for.clear()
        monkeypatch.setattr(sampled_layer, "ENOUGH", enough)
        found = sampled_votes(features, votes, first, np.random.default_rng(0), raters=RaterPriors())
        assert asked_for == wanted
    again = sampled_votes(features, votes, first, np.random.default_rng(0), raters=RaterPriors())
    assert (again.draws == found.draws).all()  # twice, the same draws
    assert len(found.draws) in [chains.draws.shape[0] * chains.draws.shape[1] for chains in drawn]


MIXTURE = (
    "comparison",
    "strength",
    "correction",
    "demonstration",
    "tied ranking",
    "best_of",
    "rating",
    "steps",
    "label",
)


def mixed_batch(n=12, seed=0, *, taken=MIXTURE):
    features, truth = planted(seed)
    params = known_raters(seed)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.from_numpy(features @ truth)
    channels = [sample_channel(scores, asked(kind, n, i), params, generator=generator) for i, kind in enumerate(taken)]
    rated = [dataclasses.replace(one.columns, step=1 / 6) for one in channels if one.name == "rating"]
    channels = [dataclasses.replace(one, columns=rated[0]) if one.name == "rating" else one for one in channels]
    return features, FeedbackBatch(tuple(channels)), params


def mixed_density(seed=0, *, n=12, effect_size=0.0, modelled=True, taken=MIXTURE):
    features, batch, params = mixed_batch(n, seed, taken=taken)
    rng = np.random.default_rng(seed)
    d = features.shape[1]
    at = Directions(features, 0.2 * rng.standard_normal(len(features)), rng.standard_normal(d), effect_size)
    priors = dataclasses.replace(RaterPriors(), modelled=modelled)
    return HierarchyDensity(batch, at, params, priors=HierarchyPriors(), raters=priors), batch, params, features


@pytest.mark.parametrize(
    ("effect_size", "modelled", "taken"),
    [(0.0, True, MIXTURE), (0.7, True, MIXTURE), (0.0, False, MIXTURE), (0.0, True, ("rating", "steps", "label"))],
)
def test_the_gradient_of_a_mixture_is_that_of_its_density(effect_size, modelled, taken):
    density, *_ = mixed_density(3, effect_size=effect_size, modelled=modelled, taken=taken)
    gradient_is_that_of(density, np.random.default_rng(0))


def test_the_density_of_a_mixture_is_the_likelihood_that_trains_and_simulates():
    """Raters moved somewhere, next to nobody wavering: differences of the density beside those of `channel_loglik` and of the priors."""
    density, batch, params, features = mixed_density(1, n=40)
    rng, values, oracles = np.random.default_rng(1), [], []
    for _ in range(3):
        x = density.start() + 0.4 * rng.standard_normal(density.n_dims)
        x[density.place["spreads"]][3] = rng.uniform(0.02, 0.05)  # hardly any wavering
        values.append(density(x)[0])
        oracles.append(
            likelihood_at(density, x, batch, params, features) + prior_at(density, x) + log_volume_at(density, x)
        )
    assert np.diff(values) == pytest.approx(np.diff(oracles), abs=1e-6)


@pytest.mark.parametrize("kind", ["ranking", "best_of"])
def test_slopes_of_choices_in_closed_form_are_those_of_their_likelihood(kind):
    """Some rankings are of three candidates, the fourth masked."""
    features, truth = planted(2)
    params = dataclasses.replace(known_raters(2), log_tie=None)
    generator = torch.Generator().manual_seed(0)
    channel = sample_channel(torch.from_numpy(features @ truth), asked(kind, 9), params, generator=generator)
    rows = ChoiceRows(channel, features, np.zeros(len(features)), params)
    scores = np.random.default_rng(0).standard_normal(channel.texts.shape)
    value, first = rows._plain(scores)
    by_graph, slopes, _ = by_autograd(torch.from_numpy(scores), rows.channel, rows.plain, curved=False)
    assert rows.order is not None
    assert value == pytest.approx(by_graph, abs=1e-9)
    assert first == pytest.approx(slopes, abs=1e-9)


def raters_at(density, x, params):
    """The parameters that coordinates stand for, as `FeedbackParams` of the population's own scale."""
    part, scale = {name: x[where] for name, where in density.place.items()}, density.spreads(x)
    given = dict(
        zip(
            [c for c in MIXTURE if c not in ("tied ranking", "best_of")],
            density._given(part["blocks"], shift_at(density, x)),
            strict=True,
        )
    )
    column = torch.from_numpy  # everybody rates and labels, so that a block's raters are all of them
    cuts = {name: column(given[name].cuts[1:-1]) for name in ("comparison", "strength", "correction", "demonstration")}
    rated, steps, label = given["rating"], given["steps"], given["label"]
    return dataclasses.replace(
        params, competence=column(1 + float(scale["competence_sd"]) * part["competence"]),
        side_bias=column(float(scale["side_sd"]) * part["side"]), lapse=column(1 / (1 + np.exp(-part["lapse"]))), cutpoints=cuts,
        ratings={"rating": RatingParams(column(rated.offset), column(rated.slope), column(rated.noise)),
                 "steps": RatingParams(column(steps.offset), column(steps.slope), torch.ones(5), column(steps.cuts[1:-1]))},
        labels={"label": LabelParams(-column(label.offset), column(label.slope)[0])},
    )  # fmt: skip


def shift_at(density, x):
    """By how much the logarithms of gains lie lower because scores are larger than those of the first fit."""
    sized, scale, features = density.sized, density.spreads(x), density.at.features
    unit = np.sqrt(float(scale["precision"]) / sized.first)  # weights and tastes as they would be at the first λ
    own = x[density.place["apart"]]
    tau = unit * float(scale["taste_sd"]) * np.exp(0.7 * (own - own.mean()))
    square = (
        np.mean((features @ (density.weights(x) * unit)) ** 2) + np.mean((features * tau) ** 2, 0).sum() + sized.doubt
    )
    return np.log(unit) - 0.5 * np.log(square / sized.begin)


def likelihood_at(density, x, batch, params, features):
    """Each person's own scores of all texts, and what everybody said of them."""
    own, total = raters_at(density, x, params), 0.0
    theta = density.weights(x) + density.tastes(x)
    for channel in batch.channels:
        for person in range(density.n_people):
            said = channel.select(channel.rater == person)
            scores = torch.from_numpy(features @ theta[person] + density.at.known)
            total += float((channel_loglik(scores, said, own) * said.weight).sum()) if len(said) else 0.0
    return total


def meant_by(density, x):
    """What the coordinates of weights, tastes and their spreads stand for: w, u, what ν share, and logarithms of what τ share and λ."""
    scale = density.spreads(x)
    share = np.log(float(scale["taste_sd"])) - 0.7 * x[density.place["apart"]].mean()
    waver = float(scale["waver_sd"]) * np.sign(x[density.place["spreads"]][3])
    logs = [share, np.log(float(scale["precision"]))]
    return np.concatenate([density.weights(x), density.tastes(x).ravel(), [waver, *logs]])


def log_volume_at(density, x):
    """log |∂ what is meant/∂ coordinates|, by differences."""
    spreads = density.place["spreads"].start
    moved = [*range(*density.place["w"].indices(density.n_dims)), *range(*density.place["taste"].indices(density.n_dims)),
             spreads + 2, spreads + 3, spreads + 4]  # fmt: skip
    steps = 1e-5 * np.eye(density.n_dims)[moved]
    return np.linalg.slogdet([(meant_by(density, x + e) - meant_by(density, x - e)) / 2e-5 for e in steps])[1]


def prior_at(density, x):
    """Independent of the density's own bookkeeping: the prior of everything by name."""
    part, p, meant = {name: x[where] for name, where in density.place.items()}, density.priors, meant_by(density, x)
    lam, w, d = np.exp(meant[-1]), density.weights(x), len(part["w"])
    total = d / 2 * np.log(lam) - lam * w @ w / 2 - ((meant[-1] - p.precision[0]) / p.precision[1]) ** 2 / 2
    total -= ((meant[-2] + meant[-1] / 2 - p.taste[0]) / p.taste[1]) ** 2 / 2
    waver = abs(meant[-3]) * np.exp(meant[-1] / 2)  # its density is that of its cube root, and of a weight's unit
    total -= (waver / p.wavering) ** (2 / 3) / 2 + 2 / 3 * np.log(waver / p.wavering) - meant[-1] / 2
    tau, u = np.exp(meant[-2] + 0.7 * part["apart"]), density.tastes(x)
    total -= float(((u / tau) ** 2).sum()) / 2 + len(u) * float(np.log(tau).sum())
    total -= sum(float(part[name] @ part[name]) / 2 for name in ("competence", "side", "apart", "waver"))
    total -= float(part["spreads"][:2] @ part["spreads"][:2]) / 2
    lapse = 1 / (1 + np.exp(-part["lapse"]))
    total += float((p.lapse[0] * np.log(lapse) + p.lapse[1] * np.log1p(-lapse)).sum())  # a Beta, by the logit
    ends = np.cumsum([0, *(block.n_dims for block in density.blocks)])
    for block, a, b in zip(density.blocks, ends, ends[1:], strict=False):
        total += prior_of_block(block, part["blocks"][a:b], shift_at(density, x))
    return total


def prior_of_block(block, z, shift):
    """Of one channel's thresholds and raters, from what they are."""
    if isinstance(block, ScaleBlock):
        return -z @ z / 2
    now = block.at(z, shift)
    if isinstance(block, LabelBlock):
        mean, log_gain = block.mean + block.step * z[0], float(np.log(now.slope[0]))
        own = (-now.offset - mean) / 1.0
        return -((mean / 10) ** 2 + (log_gain / 0.7) ** 2 + own @ own) / 2
    log_gain, mean = block.log_gain + 0.7 / 4 * z[block.common] + shift, block.mean + block.step * z[0]
    offsets = (now.offset - (0.0 if block.ordinal else mean)) / (0.15 * (8 if block.ordinal else 1))
    gains = (now.slope / np.exp(log_gain) - 1) / 0.3
    noises = z[block.common + 2 + 2 * block.n :]
    total = -(((log_gain - (0.0 if block.ordinal else np.log(0.15))) / 0.7) ** 2) / 2
    total -= (offsets @ offsets + gains @ gains + noises @ noises) / 2
    if block.ordinal:
        cuts = now.cuts[1:-1]
        raw = np.concatenate([cuts[:1], np.log(np.diff(cuts))])
        return total - (raw / 10) @ (raw / 10) / 2 - z[block.common + 1] ** 2 / 2
    log_sd = float((np.log(now.noise - block.least) - 0.3 * noises)[0])
    return total - (mean - 0.5) ** 2 / 2 - ((log_sd - np.log(0.2)) / 0.5) ** 2 / 2


@pytest.mark.usefixtures("short_chains")
def test_tastes_of_comparisons_on_two_scales_are_found_and_what_they_cost_in_certainty():
    spec = dataclasses.replace(WORLDS[0], asked={"comparison/3": 150, "comparison/5": 150}, taste_sd=0.9, n_raters=15)
    features, batch, mean = drawn_world(spec, 2)
    params = prior_params(batch.channels, spec.n_raters, RaterPriors())
    turned = fit_by_turns(
        features, batch, params, RaterPriors(), n_people=spec.n_raters, start=np.zeros(len(mean))
    )  # fmt: skip
    rng = np.random.default_rng(0)
    found = sample_population(features, batch, turned.params, turned.posterior, rng, raters=RaterPriors())
    # 15 raters of 4 weights: a standard error of a tenth of τ, and the prior of its logarithm is 1 wide
    assert 0.4 < found.spreads["taste_sd"] < 1.6
    sure, honest = np.trace(turned.posterior.covariance), np.trace(found.posterior.covariance)
    assert honest > 2 * sure
    error = found.posterior.mean - mean
    assert error @ np.linalg.solve(found.posterior.covariance, error) < 15  # χ² of 4: .995 is 14.9


@pytest.mark.long
@pytest.mark.parametrize("world", [0, 1])
def test_intervals_of_mixtures_cover_what_a_population_of_different_tastes_wants(world):
    """Pairs of a seed share a posterior: of a right one of four weights a seed's coverage has an sd of .126 around .9, and eight seeds'
    mean lies in .77 to .991 in 99 %. Their own sd is none to go by: it is 0 where all are covered."""
    inside = {name: [] for name in ("one taste", "drawn along")}
    for seed in range(2000, 2008):
        for name, figures in covered(WORLDS[world], seed).items():
            inside[name].append(np.mean(figures["covered"]))
    assert 0.77 < np.mean(inside["drawn along"]) < 0.991
    assert np.mean(inside["one taste"]) < np.mean(inside["drawn along"]) - 0.1


@pytest.mark.usefixtures("short_chains")
def test_raters_do_not_make_up_for_what_a_first_fit_shrank_in_directions_that_are_not_sampled():
    """What is liked lies in many directions, a little in each: with its size held, competences would be far above 1."""
    rng, d, n = np.random.default_rng(0), 120, 500
    mean = 0.35 * rng.standard_normal(d)
    delta = rng.standard_normal((n, d))
    level = (delta @ mean + rng.logistic(size=n) > 0).astype(int)
    votes = votes_of(level, np.ones(n), np.arange(n) % 25, 2)
    features, first = first_fit(delta, votes, 25)
    shrunk = dataclasses.replace(first, mean=first.mean / 5)
    found = sampled_votes(features, votes, shrunk, rng, raters=RaterPriors())
    assert found.spreads["competence_sd"] < 0.8
    assert found.posterior.mean @ mean / (mean @ mean) > 0.5


@pytest.mark.usefixtures("short_chains")
def test_how_far_apart_raters_are_is_told_and_too_many_to_draw_are_named(monkeypatch):
    spec = dataclasses.replace(WORLDS[1], asked={"comparison/3": 40, "rating": 30}, n_raters=6, n_features=2)
    features, batch, mean = drawn_world(spec, 0)
    params = prior_params(batch.channels, spec.n_raters, RaterPriors())
    turned = fit_by_turns(features, batch, params, RaterPriors(), n_people=6, start=np.zeros(len(mean)))
    config, none = RewardConfig(laplace=LaplaceConfig(n_draws=8)), np.zeros((len(features), 0))

    def made():
        rng = np.random.default_rng(0)
        return population_of(turned, batch, features, none, n_people=6, config=config, rng=rng)

    found = made()
    assert found.draws.shape == (8, 2)
    assert found.draws.mean(0) == pytest.approx(found.posterior.mean)
    (told, *_) = found.findings
    assert (told.name, told.estimate.value) == ("reward.last_layer_raters", found.figures["taste_sd"])
    assert f"R̂ {found.figures['rhat']:.2f}" in told.detail
    # gains of those who rate are for the scores as they were drawn
    assert float(found.params.ratings["rating"].gain[-1]) != float(turned.params.ratings["rating"].gain[-1])
    monkeypatch.setattr("karat.reward.population_layer.SAMPLED_UP_TO", 60)
    (named,) = made().findings
    assert (named.name, named.status) == ("reward.last_layer_tastes", "warn")
    assert "found 70 of comparison/3, rating" in named.detail
