"""Frontiers and the table of policies, against enumeration over all draws."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import distributions

from karat.errors import InputError
from karat.evaluate.frontiers import FrontierPoint, interpolate_gold
from karat.evaluate.measure import check_drawn
from karat.evaluate.table import (
    PolicySamples,
    best_of,
    gold_difference,
    names_in_order,
    policy_figures,
    reward_distance,
    win_rate,
)  # fmt: skip
from karat.overopt import expected_best_of_n
from karat.records import Sample


def samples(name="sft", seed=0, n_prompts=6, n=5, shift=0.0, gold=True):
    rng = np.random.default_rng(seed)
    proxy = rng.normal(size=(n_prompts, n)) + shift
    return PolicySamples(
        name=name,
        texts=tuple(tuple(f"t{rng.integers(3)}" for _ in range(n)) for _ in range(n_prompts)),
        proxy=proxy,
        gold=proxy + rng.normal(size=proxy.shape) if gold else None,
        length=rng.integers(3, 9, size=proxy.shape).astype(float),
        kl=np.zeros_like(proxy),
    )


def enumerated_best_of(scores, values, n):
    """Mean of the value that a fair choice among the highest scores picks, over all n-subsets."""
    picked = []
    for subset in itertools.combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        picked.append(np.mean([values[i] for i in subset if scores[i] == top]))
    return float(np.mean(picked))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_means_equal_the_enumeration_of_all_subsets(n):
    rng = np.random.default_rng(1)
    scores, values = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    scores[0, :3] = 0.5
    expected = [enumerated_best_of(s, v, n) for s, v in zip(scores, values, strict=True)]
    assert expected_best_of_n(scores, n, values=values) == pytest.approx(expected, abs=1e-12)


def test_a_server_that_gives_the_likeliest_text_instead_of_draws_is_refused():
    def said(n_prompts: int, texts: list[int], logprob: float) -> list[list[Sample]]:
        return [[Sample((1,), (text, 2), (logprob, logprob), True, i) for i, text in enumerate(texts)]] * n_prompts

    with pytest.raises(
        InputError, match=r"endpoint u: found 4 equal responses to each of 5 prompts, .*10\^13; .*do_sample"
    ):
        check_drawn(said(5, [7, 7, 7, 7], -1.0), "u")  # 5 prompts, 3 repeats each, 2 nats: 30 nats = 13.03 tens
    check_drawn(said(5, [7, 7, 8, 7], -1.0), "u")  # one of them differs
    check_drawn(said(5, [7, 7, 7, 7], -0.4), "u")  # 12 nats: once in 10^5.2
    check_drawn(said(50, [7], -9.0), "u")  # a single response says nothing


def test_the_best_of_n_policy_is_the_same_as_a_reweighting():
    base = samples(n=6)
    for n in (1, 3, 6):
        policy = best_of(base, n)
        assert policy.prompt_means(base.gold) == pytest.approx(
            expected_best_of_n(base.proxy, n, values=base.gold), abs=1e-12
        )
        assert policy_figures(policy, base)["kl"].value == pytest.approx(math.log(n) - (n - 1) / n)  # no two tie


@pytest.mark.parametrize("n", [0, 6])
def test_best_of_more_than_there_is_is_refused(n):
    with pytest.raises(InputError, match=r"found n = \d"):
        best_of(samples(), n)


def test_a_policy_against_itself_wins_half_the_time():
    base = samples()
    estimate = win_rate(base, base)
    assert estimate.value == pytest.approx(0.5)
    assert "gold" in estimate.method


def test_the_win_rate_counts_pairs_and_half_ties():
    def fixed(name, gold):
        array = np.array(gold, dtype=float)
        return PolicySamples(name, (("a", "b"),) * 2, array, array, array, np.zeros_like(array))

    assert win_rate(fixed("x", [[1, 2], [0, 0]]), fixed("y", [[1, 0], [0, 1]])).value == pytest.approx(
        np.mean([(0.5 + 1 + 1 + 1) / 4, (0.5 + 0 + 0.5 + 0) / 4])
    )


def test_without_gold_the_proxy_judges_and_the_table_says_so():
    base = samples(gold=False)
    figures = policy_figures(samples("ppo", seed=3, shift=1.0, gold=False), base)
    assert figures["gold"].value is None
    assert "judged by proxy" in figures["win_rate"].method
    assert gold_difference(base, base).value is None


def test_a_planted_difference_is_found_with_its_interval():
    base, better = samples(n_prompts=40), samples("ppo", seed=5, n_prompts=40, shift=1.0)
    difference = gold_difference(better, base)
    assert difference.low < 1.0 < difference.high
    assert difference.low > 0
    assert difference.n == 40


def test_distinct_is_the_chance_that_two_samples_differ():
    array = np.zeros((1, 4))
    policy = PolicySamples("p", (("a", "a", "b", "c"),), array, array, array, array)
    pairs = [x != y for x, y in itertools.permutations("aabc", 2)]
    assert policy_figures(policy, policy)["distinct"].value == pytest.approx(np.mean(pairs))


def test_a_share_is_no_certainty_where_all_prompts_have_it_and_no_interval_leaves_0_to_1():
    array = np.zeros((12, 2))
    apart = PolicySamples("p", (("a", "b"),) * 12, array, array, array, array)
    distinct = policy_figures(apart, apart)["distinct"]
    assert (distinct.value, distinct.high) == (1.0, 1.0)
    assert distinct.low == pytest.approx(12 / (12 + distributions.norm.ppf(0.975) ** 2))  # Wilson, all of 12
    one = PolicySamples("p", (("a", "b"),) * 11 + (("a", "a"),), array, array, array, array)
    found = policy_figures(one, one)["distinct"]
    assert found.value == pytest.approx(11 / 12)
    assert found.high == 1.0
    assert 0 < found.low < found.value
    won = array + 1.0
    won[0] = 0.0
    better = PolicySamples("q", (("a", "b"),) * 12, won, won, array, array)
    rate = win_rate(better, apart)
    assert rate.value == pytest.approx((11 + 0.5) / 12)
    assert rate.high == 1.0


def test_gold_is_interpolated_in_the_square_root_of_kl_and_never_beyond_the_path():
    path = [FrontierPoint("0", 0.0, 0, 0.0), FrontierPoint("1", 4.0, 0, 2.0), FrontierPoint("2", 9.0, 0, None)]
    assert interpolate_gold(path, 1.0) == pytest.approx(1.0)
    assert interpolate_gold(path, 5.0) is None


def test_policies_are_listed_in_the_order_of_the_river():
    assert names_in_order(["ppo", "best_of_16", "sft", "best_of_4"]) == ["sft", "best_of_4", "best_of_16", "ppo"]


def test_arrays_of_different_shape_are_refused():
    array = np.zeros((2, 3))
    with pytest.raises(InputError, match="arrays differ in shape"):
        PolicySamples("p", (("a",),), array, array, np.zeros((2, 2)), array)


def test_the_distance_of_a_reward_from_gold_grows_with_what_it_has_of_its_own():
    near, far = (distance_of(noise) for noise in (0.2, 2.0))
    assert near.high < far.low
    assert near.n == 40
    assert distance_of(0.0).value == pytest.approx(0, abs=1e-6)
    assert reward_distance(samples("sft", seed=1, gold=False), np.random.default_rng(0)).value is None


def distance_of(noise: float):
    rng = np.random.default_rng(3)
    gold = rng.normal(size=(40, 4))
    texts = tuple(tuple("abcd") for _ in range(40))
    proxy = 2 * gold + rng.normal(size=(40, 1)) + noise * rng.normal(size=gold.shape)
    one = PolicySamples("sft", texts, proxy, gold, np.ones_like(gold), np.zeros_like(gold))
    return reward_distance(one, np.random.default_rng(0), n_draws=100)
