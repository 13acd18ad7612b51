"""The laws recover planted coefficients, best-of-n equals enumeration, diversity equals counting, rules stop in time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from karat import overopt
from karat.errors import InputError
from reference import overopt_loops


@pytest.mark.parametrize(("law", "alpha", "beta"), [("best_of_n", 2.0, 0.4), ("rl", 2.0, 1.1)])
def test_noiseless_laws_are_recovered_with_their_peak(law, alpha, beta):
    d = np.linspace(0, 4, 20)
    reward = d * (alpha - beta * (d if law == "best_of_n" else np.log(np.maximum(d, 1e-300))))
    fit = overopt.fit_gao(d**2, reward, law=law)
    peak = alpha / (2 * beta) if law == "best_of_n" else math.exp(alpha / beta - 1)
    assert (fit.alpha, fit.beta, fit.r_squared) == pytest.approx((alpha, beta, 1.0), abs=1e-9)
    assert (fit.peak_d.value, fit.peak_d.low, fit.peak_d.high) == pytest.approx((peak, peak, peak), abs=1e-4)
    grid = np.linspace(0.01, 4, 4000)
    assert grid[fit.predict(grid).argmax()] == pytest.approx(peak, abs=1e-3)
    assert fit.predict([0.0]) == 0


def test_the_interval_of_the_peak_covers_as_often_as_it_says():
    d, hits = np.linspace(0.2, 4, 15), 0
    for world in range(300):
        noise = 0.2 * np.random.default_rng(world).normal(size=d.size)
        peak = overopt.fit_gao(d**2, d * (2 - 0.4 * d) + noise, law="best_of_n").peak_d
        hits += peak.low <= 2.5 <= peak.high
    assert 0.91 < hits / 300 < 0.99  # sd of a coverage of 0.95 over 300 worlds: 0.0126


def test_no_peak_is_none_with_the_reason():
    d = np.linspace(0.2, 3, 12)
    rising = overopt.fit_gao(d**2, d * (1 + 0.2 * d), law="best_of_n").peak_d
    assert (rising.value, rising.low) == (None, None)
    assert "does not turn over" in rising.method
    outside = overopt.fit_gao(d**2, d * (2 - 0.1 * d), law="best_of_n").peak_d
    assert outside.value is None
    assert "peak √KL = 10 lies outside what was measured" in outside.method
    noise = 5 * np.random.default_rng(1).normal(size=d.size)
    vague = overopt.fit_gao(d**2, d * (2 - 0.5 * d) + noise, law="best_of_n")
    assert vague.beta > 0
    assert (vague.peak_d.low, vague.peak_d.high) == (None, None)


PROBS, SCORES = [0.1, 0.25, 0.3, 0.05, 0.3], [2.0, 1.0, 1.0, 3.0, 0.5]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_kl_equals_enumeration_with_ties(n):
    best = overopt_loops.best_of_n_distribution(PROBS, SCORES, n)
    found = overopt.best_of_n_kl(SCORES, n, probs=PROBS)
    assert found == pytest.approx(overopt_loops.kl(best, PROBS), abs=1e-12)
    assert found <= overopt.best_of_n_kl_bound(n) + 1e-15


def test_best_of_n_kl_approaches_its_bound_without_ties_and_is_zero_when_all_tie():
    assert overopt.best_of_n_kl(np.arange(20_000.0), 16) == pytest.approx(overopt.best_of_n_kl_bound(16), abs=1e-4)
    assert overopt.best_of_n_kl([1.0, 1.0, 1.0], 16) == 0
    assert overopt.best_of_n_kl([1.0, 2.0], 10_000) == pytest.approx(math.log(2), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_expected_best_equals_the_mean_over_all_subsets(n):
    g = np.random.default_rng(0)
    scores = np.round(g.normal(size=(2, 7)), 0)  # rounded: ties
    gold = g.normal(size=(2, 7))
    found = overopt.expected_best_of_n(scores, n, values=gold)
    expected = [overopt_loops.best_of_subsets(s.tolist(), v.tolist(), n) for s, v in zip(scores, gold, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert overopt.expected_best_of_n(scores[0], 7) == pytest.approx(scores[0].max())


def test_expected_best_is_unbiased_and_exact_for_large_samples():
    g = np.random.default_rng(1)
    found = np.mean([float(overopt.expected_best_of_n(g.uniform(size=12), 4)) for _ in range(1500)])
    assert abs(found - 4 / 5) < 4 * 0.1 / math.sqrt(1500)  # sd of one estimate is below 0.1
    ranks = (np.arange(5000) + 0.5) / 5000
    assert float(overopt.expected_best_of_n(ranks, 512)) == pytest.approx(512 / 513, abs=1e-3)


def test_the_inverted_u_of_a_shared_length_hack_is_found():
    g = np.random.default_rng(2)
    quality, length = g.normal(size=4000), g.standard_t(3, size=4000)
    proxy, gold = quality + length, quality - 0.15 * length**2 * (length > 0)
    ns = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
    curve = np.array([float(overopt.expected_best_of_n(proxy, n, values=gold)) for n in ns])
    fit = overopt.fit_gao(overopt.best_of_n_kl_bound(ns), curve - curve[0], law="best_of_n")
    assert fit.beta > 0
    assert curve.argmax() not in (0, len(ns) - 1)


TEXTS = ["the cat sat on the mat", "the cat sat on a mat", "a dog barked", "the cat sat on the mat", "yes"]


def test_diversity_equals_counting():
    assert overopt.distinct_n(["a b a", "a b"], 1) == 2 / 5
    assert overopt.distinct_n(["a b a", "a b"], 2) == 2 / 3
    assert overopt.distinct_frac(TEXTS) == 1 - 1 / 10
    assert overopt.self_bleu_diversity(TEXTS) == pytest.approx(1 - overopt_loops.self_bleu(TEXTS), abs=1e-12)
    assert overopt.text_entropy(TEXTS) == pytest.approx(-(3 * 0.2 * math.log(0.2) + 0.4 * math.log(0.4)))


def test_diversity_at_its_ends_and_under_reordering():
    assert overopt.self_bleu_diversity(["a b c d e"] * 4) == pytest.approx(0, abs=1e-12)
    assert overopt.self_bleu_diversity(["a b c", "d e f"]) == 1
    assert overopt.self_bleu_diversity(["", ""]) == 0
    assert overopt.self_bleu_diversity(TEXTS[::-1]) == pytest.approx(overopt.self_bleu_diversity(TEXTS), abs=1e-12)
    assert overopt.text_entropy(["a"] * 3) == 0
    nothing = (overopt.distinct_n([""], 1), overopt.distinct_frac(["a"]), overopt.self_bleu_diversity(["a"]))
    assert nothing == (None, None, None)
    assert overopt.text_entropy([]) is None


def test_a_fall_of_votes_is_judged_by_the_votes_behind_both_means():
    rng = np.random.default_rng(0)
    for _ in range(40):
        n, looks, z = int(rng.integers(3, 12)), int(rng.integers(1, 4)), float(rng.uniform(0.5, 3))
        votes = rng.integers(5, 60, n).astype(float)
        shares = rng.binomial(votes.astype(int), np.linspace(0.8, 0.4, n)) / votes
        means = [(sum(shares[i : i + looks]) / looks, sum(votes[i : i + looks])) for i in range(n - looks + 1)]
        top, top_votes = max(means, key=lambda entry: entry[0])
        last, last_votes = means[-1]
        p = (top + last) / 2
        slow = top - last > z * math.sqrt(p * (1 - p) * (1 / top_votes + 1 / last_votes))
        assert overopt.fall_rule(shares, votes, looks=looks, z=z).stop == slow
    assert not overopt.fall_rule([0.9, 0.1], [100, 100], looks=3, z=1).stop
    assert not overopt.fall_rule([0.9], [100], looks=1, z=1).stop
    with pytest.raises(InputError, match="fall_rule: found 2 shares, 1 counts"):
        overopt.fall_rule([0.9, 0.1], [100], looks=1, z=1)


def test_rules_stop_when_they_should_and_say_why():
    assert overopt.kl_budget_rule(5.1, budget=5.0).stop
    assert not overopt.kl_budget_rule(5.0, budget=5.0).stop
    validation = np.linspace(0, 1, 101)
    assert overopt.disagreement_rule([0.96, 0.96], validation).stop
    calm = overopt.disagreement_rule([0.9, 0.99], validation)
    assert not calm.stop
    assert calm.reason == "mean sd 0.945, validation 0.95-quantile 0.95"
    assert not overopt.slope_rule([1, 2, 3], [1.0, 1.5, 1.6]).stop
    assert overopt.slope_rule([1, 2, 3, 4, 5], [1.0, 1.5, 1.6, 1.6, 1.2]).stop
    assert not overopt.slope_rule([1, 2], [2, 1]).stop
    assert not overopt.slope_rule([2, 2, 2], [3, 2, 1]).stop
    assert overopt.length_rule([30, 31], [10, 12, 14]).stop
    assert not overopt.length_rule([15, 15], [10, 12, 14]).stop
    assert overopt.length_rule([13], [12, 12]).stop
    assert not overopt.length_rule([12], [12, 12]).stop


def test_bad_input_is_one_clear_line():
    with pytest.raises(InputError, match="found 2 KL and 2 rewards"):
        overopt.fit_gao([0, 1], [0, 1], law="rl")
    with pytest.raises(InputError, match="law: found 'rlhf'"):
        overopt.fit_gao([0, 1, 2], [0, 1, 2], law="rlhf")
    with pytest.raises(InputError, match="found n = 8"):
        overopt.expected_best_of_n([1.0, 2.0], 8)
    with pytest.raises(InputError, match=r"with sum 0\.5"):
        overopt.best_of_n_kl([1.0, 2.0], 2, probs=[0.25, 0.25])
    with pytest.raises(InputError, match="expected n ≥ 1"):
        overopt.best_of_n_kl_bound(0)
