"""Choosing questions: downdates against a refit, propensities that sum and are met, unbiased means, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from karat.errors import InputError, InvariantError
from karat.feedback.acquisition import (
    PairBelief,
    answered,
    choose_batch,
    expected_curvature,
    information,
    mixture,
    pairs_from_draws,
    pool_weights,
)


def some_belief(n_pairs=30, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return PairBelief(rng.standard_normal(n_pairs), rng.standard_normal((d, n_pairs)))


def test_draws_give_their_mean_and_covariance():
    delta = np.random.default_rng(0).standard_normal((7, 5))
    belief = pairs_from_draws(delta)
    assert belief.mean == pytest.approx(delta.mean(0))
    assert belief.factor.T @ belief.factor == pytest.approx(np.cov(delta.T), abs=1e-12)
    assert belief.variance == pytest.approx(delta.var(0, ddof=1))
    with pytest.raises(InputError, match="at least 2 draws"):
        pairs_from_draws(delta[:1])


def test_a_downdate_equals_a_posterior_fitted_again_with_the_answer():
    rng = np.random.default_rng(1)
    features, precision = rng.standard_normal((12, 4)), np.diag([1.0, 2.0, 3.0, 4.0])
    factor = np.linalg.cholesky(np.linalg.inv(precision)).T @ features.T
    belief = PairBelief(features @ rng.standard_normal(4), factor)
    curvature = expected_curvature(belief.mean[[3]], belief.variance[[3]])[0]
    again = precision + curvature * np.outer(features[3], features[3])
    after = answered(belief, 3)
    assert after.factor.T @ after.factor == pytest.approx(features @ np.linalg.inv(again) @ features.T, abs=1e-12)
    assert after.mean is belief.mean


def test_expected_curvature_is_the_mean_of_p_times_one_minus_p():
    draws = 0.7 + 1.3 * np.random.default_rng(0).standard_normal(400_000)
    p = 1 / (1 + np.exp(-draws))
    margin = 4 * float((p * (1 - p)).std()) / math.sqrt(400_000)
    assert abs(expected_curvature(np.array([0.7]), np.array([1.69]))[0] - (p * (1 - p)).mean()) < margin
    assert expected_curvature(np.zeros(1), np.zeros(1))[0] == pytest.approx(0.25)


def test_information_is_zero_where_nothing_is_unknown_and_names_its_strategies():
    assert information(np.array([0.0, 2.0]), np.zeros(2), "bald") == pytest.approx(0, abs=1e-9)
    assert information(np.zeros(2), np.array([1.0, 3.0]), "variance").tolist() == [1.0, 3.0]
    with pytest.raises(InputError, match="found strategy 'random'"):
        information(np.zeros(1), np.ones(1), "random")


def test_the_mixture_sums_to_one_and_gives_every_free_pair_a_chance():
    free = np.array([True, False, True, True])
    q = mixture(np.array([0.1, 9.0, 0.5, 0.2]), free, 0.3)
    assert q == pytest.approx([0.1, 0.0, 0.1 + 0.7, 0.1])
    with pytest.raises(InvariantError, match="expected 1"):
        mixture(np.ones(4), free, -0.5)


def test_a_batch_holds_a_uniform_random_arm_and_chosen_pairs_that_say_more():
    belief = some_belief(200)
    batch = choose_batch(belief, 40, np.random.default_rng(0), random_frac=0.25)
    assert len({choice.pair for choice in batch}) == 40
    arms = {how: [c for c in batch if c.strategy == how] for how in ("random", "bald")}
    assert (len(arms["random"]), len(arms["bald"])) == (10, 30)
    assert {c.propensity for c in arms["random"]} == {10 / 200}
    assert all(0 < c.propensity <= 1 for c in batch)
    first = [float(information(belief.mean[[c.pair]], belief.variance[[c.pair]], "bald")[0]) for c in arms["bald"][:5]]
    everything = information(belief.mean, belief.variance, "bald")
    assert min(first) > np.median(everything)
    assert all(c.strategy == "random" for c in choose_batch(belief, 9, np.random.default_rng(0), strategy="random"))
    again = choose_batch(belief, 40, np.random.default_rng(0), random_frac=0.25)
    assert again == batch


@pytest.mark.parametrize("strategy", ["bald", "variance"])
def test_computing_only_the_best_again_chooses_what_computing_all_would(strategy, monkeypatch):
    belief = some_belief(150)
    found = choose_batch(belief, 30, np.random.default_rng(0), strategy=strategy, clusters=list("abc") * 50)
    monkeypatch.setattr("karat.feedback.acquisition.LAZY", 3)
    assert choose_batch(belief, 30, np.random.default_rng(0), strategy=strategy, clusters=list("abc") * 50) == found
    monkeypatch.setattr(
        "karat.feedback.acquisition._refreshed",
        lambda _worth, _weights, _free, belief, how: information(belief.mean, belief.variance, how),
    )
    assert choose_batch(belief, 30, np.random.default_rng(0), strategy=strategy, clusters=list("abc") * 50) == found


def test_the_random_arm_is_a_uniform_sample_whatever_else_is_chosen():
    belief, counts = some_belief(12), np.zeros(12)
    rng = np.random.default_rng(0)
    for _ in range(250):
        for choice in choose_batch(belief, 4, rng, random_frac=0.5):
            counts[choice.pair] += choice.strategy == "random"
    # each pair is in the random arm with probability 2/12; 4.5 standard errors over 250 batches
    assert np.abs(counts / 250 - 1 / 6).max() < 4.5 * math.sqrt(1 / 6 * 5 / 6 / 250)


def test_logged_propensities_are_the_frequencies_of_the_draws():
    belief, counts = some_belief(6), np.zeros(6)
    rng = np.random.default_rng(2)
    expected: dict[int, float] = {}
    n = 400
    for _ in range(n):
        choice = choose_batch(belief, 2, rng, random_frac=0.1, explore=0.5)
        if choice[0].pair == 0:  # given the random arm took pair 0
            counts[choice[1].pair] += 1
            expected[choice[1].pair] = choice[1].propensity
    total = counts.sum()
    assert counts[0] == 0
    assert sum(expected.values()) == pytest.approx(1)
    for pair, q in expected.items():
        assert abs(counts[pair] / total - q) < 4.5 * math.sqrt(q * (1 - q) / total)


def test_weighted_means_are_unbiased_for_the_pool_and_plain_ones_are_not():
    belief = some_belief(10)
    value = information(belief.mean, belief.variance, "bald")  # what is chosen for is what is measured: the worst case
    rng, weighted, plain = np.random.default_rng(3), [], []
    for _ in range(250):
        free, estimate, chosen, n_random = np.ones(10, bool), 0.0, [], 1
        batch = choose_batch(belief, 5, rng, random_frac=0.1, explore=0.4)
        random_arm = [c for c in batch if c.strategy == "random"]
        chosen = [c for c in batch if c.strategy != "random"]
        n_random = len(random_arm)
        free[[c.pair for c in random_arm]] = False
        weights = pool_weights([c.propensity for c in chosen], int(free.sum()))
        rest = float(np.mean(weights * value[[c.pair for c in chosen]]))
        estimate = (value[~free].sum() + (10 - n_random) * rest) / 10
        weighted.append(estimate)
        plain.append(value[[c.pair for c in batch]].mean())
    error = np.std(weighted, ddof=1) / math.sqrt(len(weighted))
    assert abs(np.mean(weighted) - value.mean()) < 4 * error
    assert np.mean(plain) - value.mean() > 4 * error
    assert pool_weights([0.5, 1.0], 2).tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match="3 propensities for a pool of 2"):
        pool_weights([0.1, 0.1, 0.1], 2)


def test_coverage_weights_spread_the_chosen_arm_over_clusters():
    rng = np.random.default_rng(0)
    mean, clusters = np.zeros(60), ["big"] * 30 + ["small"] * 30
    scale = np.where(np.arange(60) < 30, 1.4, 1.0)
    belief = PairBelief(mean, rng.standard_normal((40, 60)) / math.sqrt(40) * scale)
    n_small = {}
    for name, given in (("without", None), ("with", clusters)):
        batch = choose_batch(belief, 20, np.random.default_rng(1), clusters=given, random_frac=0.1, explore=1e-6)
        n_small[name] = sum(c.pair >= 30 for c in batch if c.strategy == "bald")
    assert n_small["without"] <= 3
    assert n_small["with"] >= 6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": 0}, "30 pairs for 0 questions"),
        ({"n": 31}, "30 pairs for 31 questions"),
        ({"random_frac": 0.05}, r"random_frac=0\.05"),
        ({"explore": 0.0}, r"explore=0\.0"),
        ({"clusters": ["a"]}, "1 clusters for 30 pairs"),
    ],
)
def test_what_cannot_be_chosen_is_one_clear_line(changes, says):
    settings = {"n": 5} | changes
    n = settings.pop("n")
    with pytest.raises(InputError, match=says):
        choose_batch(some_belief(), n, np.random.default_rng(0), **settings)
    with pytest.raises(InputError, match=r"expected \[C\] and \[R, C\]"):
        PairBelief(np.zeros(3), np.zeros((2, 4)))
