"""Intervals against published values, coverage on simulated data, figures against counting, and honest Nones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as distributions

from karat import stats
from karat.errors import InputError
from karat.resampling import cluster_sums, cluster_weights, jackknife_interval, percentile_interval
from reference import stats_loops


def rng(seed=0):
    return np.random.default_rng(seed)


# Newcombe 1998, Statistics in Medicine 17, pp. 857–872, table I, method 3, as printed to four decimals
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_limits(successes, n, low, high):
    found = stats.wilson(successes, n)
    assert (round(found.low, 4), round(found.high, 4), found.n) == (low, high, n)
    assert found.value == successes / n


def test_wilson_solves_the_score_equation_and_mirrors():
    found, mirrored = stats.wilson(7, 31, level=0.9), stats.wilson(24, 31, level=0.9)
    z = distributions.norm.ppf(0.95)
    for limit in (found.low, found.high):
        assert abs(7 / 31 - limit) == pytest.approx(z * np.sqrt(limit * (1 - limit) / 31), abs=1e-12)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-14)
    assert stats.wilson(5, 5).high == 1.0


def test_mean_estimate_is_students_t():
    x = rng().normal(size=17)
    found = stats.mean_estimate(x)
    expected = distributions.ttest_1samp(x, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.method == "mean, Student t interval, 95 %"


def test_the_vectorised_bootstrap_draws_what_index_resampling_would():
    values, clusters = rng().normal(size=60), np.arange(60) // 4
    weights = np.concatenate(cluster_weights(15, rng(1), 2000))
    assert (weights.sum(1) == 15).all()
    found = stats.mean_estimate(values, clusters, rng(1))
    sums = np.bincount(clusters, weights=values)
    assert found.low == pytest.approx(np.quantile(weights @ sums / (4 * 15), 0.025), abs=1e-12)
    by_rows = stats.cluster_bootstrap(lambda rows: float(values[rows].mean()), clusters, rng(2), 4000, what="mean")
    assert by_rows.value == pytest.approx(found.value, abs=1e-14)
    sd = np.std(sums / 4, ddof=0) / np.sqrt(15)
    assert abs(by_rows.low - found.low) < 0.15 * sd  # Monte-Carlo error of two percentile ends, 3 sd
    assert abs(by_rows.high - found.high) < 0.15 * sd


def test_unequal_clusters_are_weighted_by_their_rows():
    values, clusters = np.array([1.0, 1, 1, 1, 0, 0]), ["p", "p", "p", "p", "q", "r"]
    found = stats.mean_estimate(values, clusters, rng())
    assert (found.value, found.n) == (pytest.approx(4 / 6), 3)
    # three clusters are few: residuals (4 − 4·⅔, −⅔, −⅔)/6, G/(G − 1) = 3/2, t of two degrees
    sd = np.sqrt(1.5 * ((4 / 3) ** 2 + 2 * (2 / 3) ** 2)) / 6
    half = distributions.t.ppf(0.975, 2) * sd
    assert (found.low, found.high) == pytest.approx((4 / 6 - half, 4 / 6 + half), abs=1e-12)
    assert found.method == "mean, Student t interval over 3 clusters, 95 %"
    # equal clusters: the t interval of their means
    equal = stats.mean_estimate([1.0, 3, 2, 2, 5, 7], list("aabbcc"), rng())
    plain = stats.mean_estimate([2.0, 2.0, 6.0])
    assert (equal.low, equal.high) == pytest.approx((plain.low, plain.high), abs=1e-12)


def coverage(interval, truth, n_worlds=400):
    hits = 0
    for world in range(n_worlds):
        estimate = interval(rng(1000 + world))
        hits += estimate.low <= truth <= estimate.high
    return hits / n_worlds


def test_wilson_covers_as_often_as_it_says_on_average_over_proportions():
    n, proportions = 40, np.linspace(0.005, 0.995, 199)
    intervals = [stats.wilson(k, n) for k in range(n + 1)]
    low, high = (np.array([getattr(i, end) for i in intervals])[:, None] for end in ("low", "high"))
    probs = distributions.binom.pmf(np.arange(n + 1)[:, None], n, proportions)
    exact = (probs * ((low <= proportions) & (proportions <= high))).sum(0)
    assert 0.947 < exact.mean() < 0.957
    assert exact.min() > 0.83


def test_the_t_interval_covers_as_often_as_it_says():
    # 400 worlds: the sd of a coverage of 0.95 is 0.011
    assert 0.915 < coverage(lambda g: stats.mean_estimate(g.normal(size=12)), 0.0) < 0.985


def test_clustered_intervals_cover_where_intervals_over_rows_do_not():
    clusters = np.repeat(np.arange(40), 5)

    def world(g):
        return np.repeat(g.normal(size=40), 5) + 0.5 * g.normal(size=200)

    assert 0.9 < coverage(lambda g: stats.mean_estimate(world(g), clusters, g, n_draws=400), 0.0, 300) < 0.985
    assert coverage(lambda g: stats.mean_estimate(world(g)), 0.0, 300) < 0.75


@pytest.mark.parametrize("n", [3, 8])
def test_of_few_clusters_a_bootstrap_covers_too_little_and_the_interval_does_not(n):
    def world(g):
        sizes = g.integers(5, 40, n)
        return np.repeat(g.normal(size=n), sizes) + 1.5 * g.normal(size=sizes.sum()), np.repeat(np.arange(n), sizes)

    def bootstrap(g):
        sums, counts = cluster_sums("", *world(g))
        weights = np.concatenate(cluster_weights(n, g, 200))
        return percentile_interval(0.0, weights @ sums / (weights @ counts), n, level=0.95, what="mean")

    # 2,000 worlds: the sd of a coverage of 0.95 is 0.005; unequal sizes cost some
    assert 0.92 < coverage(lambda g: stats.mean_estimate(*world(g), g), 0.0, 2000) < 0.96
    assert coverage(bootstrap, 0.0, 200) < (0.82 if n == 3 else 0.92)


def test_a_share_of_few_clusters_has_wilsons_interval_with_their_variance():
    outcomes, clusters = np.array([1.0] * 9 + [0] + [1] * 8 + [0] * 2 + [1] * 4 + [0] * 6), np.arange(30) // 10
    found = stats.proportion(outcomes, clusters, rng())
    both = stats.two_way_proportion(outcomes, clusters, np.zeros(30))
    assert (found.low, found.high) == pytest.approx((both.low, both.high), abs=1e-12)
    assert found.method == "proportion, Wilson score interval over 3 clusters, t with 2 degrees, 95 %"
    assert 0 < found.low < 0.7 < found.high < 1


@pytest.mark.parametrize("n", [3, 8])
def test_a_statistic_of_few_clusters_has_the_jackknifes_interval_which_covers(n):
    """AUROC where clusters differ in how high they score: .5 on average over clusters that score alike."""

    def world(g):
        c = np.repeat(np.arange(n), g.integers(5, 40, n))
        y = (g.random(len(c)) < 1 / (1 + np.exp(-0.7 * g.normal(size=n)[c]))).astype(float)
        return 0.7 * g.normal(size=n)[c] + g.normal(size=len(c)), y, c

    def few(g):
        scores, y, c = world(g)
        return stats.auroc(scores, y, clusters=c, rng=g)

    def bootstrap(g):
        scores, y, c = world(g)
        rows = [np.flatnonzero(c == k) for k in range(n)]
        drawn = (np.concatenate([rows[k] for k in g.integers(0, n, n)]) for _ in range(100))
        values = [stats.auroc(scores[one], y[one]).value for one in drawn]
        return percentile_interval(0.5, np.array(values, dtype=float), n, level=0.95, what="AUROC")

    # truth ½: scores say nothing of the outcome; 300 worlds: the sd of a coverage of 0.95 is 0.013
    assert 0.915 < coverage(few, 0.5, 300) < 0.99
    assert coverage(bootstrap, 0.5, 60) < 0.9


def test_the_jackknife_of_a_mean_of_equal_clusters_is_students_t():
    values, clusters = rng().normal(size=20), np.arange(20) // 4
    found = stats.cluster_bootstrap(lambda rows: float(values[rows].mean()), clusters, rng(1), what="mean")
    plain = stats.mean_estimate(values, clusters, rng(1))
    assert (found.low, found.high, found.n) == (
        pytest.approx(plain.low, abs=1e-12),
        pytest.approx(plain.high, abs=1e-12),
        5,
    )
    assert found.method == "mean, jackknife over 5 clusters, t interval, 95 %"


def test_the_jackknife_takes_the_spread_around_the_statistic_and_ends_where_it_ends():
    without = np.array([0.8, 0.9, 0.95])
    found = jackknife_interval(0.9, without, level=0.9, what="AUROC", within=(0.0, 1.0))
    half = distributions.t.ppf(0.95, 2) * np.sqrt(2 / 3 * (0.1**2 + 0.05**2))
    assert (found.low, found.high) == (pytest.approx(0.9 - half, abs=1e-12), 1.0)
    alike = jackknife_interval(1.0, np.ones(4), level=0.95, what="AUROC")
    assert (alike.value, alike.low, alike.method) == (
        1.0, None, "AUROC; no interval: the same without any one of 4 clusters"
    )  # fmt: skip


def test_a_quantile_of_few_clusters_has_no_interval():
    found = stats.quantile_estimate(np.arange(90.0), 0.9, np.arange(90) // 10, rng())
    assert (found.value, found.low, found.n) == (pytest.approx(80.1), None, 9)
    assert "found 9 clusters, a quantile's needs 10" in found.method


def test_a_calibration_error_of_few_clusters_leaves_one_out_in_turn():
    p, y = forecasts(60)
    clusters = np.arange(60) // 10
    found = stats.ece(p, y, clusters=clusters, rng=rng())
    without = [stats.ece(p[clusters != k], y[clusters != k]).value for k in range(6)]
    wanted = jackknife_interval(found.value, np.array(without), level=0.95, what="", within=(0.0, 1.0))
    assert (found.low, found.high) == (pytest.approx(wanted.low, abs=1e-12), pytest.approx(wanted.high, abs=1e-12))


def test_paired_difference_is_narrower_than_its_parts_and_exact_for_a_constant_shift():
    x = 10 * rng().normal(size=50)
    found = stats.paired_difference(x + 0.3, x)
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3), abs=1e-9)
    clustered = stats.paired_difference(x + 0.3, x, np.arange(50) // 5, rng())
    assert clustered.n == 10
    assert clustered.method.startswith("paired difference: mean, percentile bootstrap over 10 clusters")


def test_win_rate_counts_a_tie_half_and_does_not_depend_on_the_order_of_rows():
    scores, baseline, prompts = [1, 2, 3, 3, 0, 5], [0, 2, 4, 1, 0, 1], list("aabbcc")
    found = stats.win_rate(scores, baseline, prompts, rng())
    assert found.value == pytest.approx((1 + 0.5 + 0 + 1 + 0.5 + 1) / 6)
    order = [3, 2, 5, 4, 1, 0]
    again = stats.win_rate(*([x[i] for i in order] for x in (scores, baseline, prompts)), rng())
    assert (again.low, again.high) == (found.low, found.high)
    mirrored = stats.win_rate(baseline, scores, prompts, rng())
    assert (mirrored.value, mirrored.low) == pytest.approx((1 - found.value, 1 - found.high), abs=1e-12)


def test_a_win_rate_of_one_is_not_certain():
    found = stats.win_rate([1.0] * 12, [0.0] * 12, np.arange(12) // 2, rng())
    assert (found.value, found.high, found.n) == (1.0, 1.0, 6)
    assert found.low == stats.wilson(6, 6).low
    assert "all have one outcome" in found.method


def test_the_sign_flip_test_equals_full_enumeration():
    a, b = np.array([1.2, 0.4, 2.2, -0.3, 0.9, 0.1, 1.4]), np.zeros(7)
    observed = a.sum()
    exact = np.mean([abs(np.dot(s, a)) >= observed - 1e-12 for s in itertools.product([-1, 1], repeat=7)])
    found = stats.permutation_test(a, b, rng(), n_draws=20_000)
    assert found.statistic == pytest.approx(a.mean())
    assert abs(found.p_value - exact) < 4 * np.sqrt(exact * (1 - exact) / 20_000)


def test_the_permutation_test_holds_its_level_and_flips_whole_clusters():
    g = rng(3)
    p_values = []
    for _ in range(200):
        rows = np.repeat(g.normal(size=12), 5)
        p_values.append(stats.permutation_test(rows, 0 * rows, g, clusters=np.arange(60) // 5, n_draws=200).p_value)
    assert distributions.binomtest(int(np.sum(np.array(p_values) <= 0.1)), 200, 0.1).pvalue > 0.001
    unpaired = stats.permutation_test(g.normal(size=30), g.normal(size=25) + 2, g, paired=False, n_draws=999)
    assert unpaired.p_value == 1 / 1000


def forecasts(n=600, seed=5):
    g = rng(seed)
    p = g.uniform(0.02, 0.98, n)
    return p, (g.uniform(size=n) < p).astype(float)


def test_calibration_figures_equal_counting():
    p, y = forecasts()
    p[0], y[0] = 0.999999, 1
    assert stats.ece(p, y, 10).value == pytest.approx(stats_loops.ece(p.tolist(), y.tolist(), 10), abs=1e-12)
    assert stats.ece([1.0, 0.0], [1, 0], 10).value == 0
    assert stats.nll(p, y).value == pytest.approx(stats_loops.log_loss(p.tolist(), y.tolist()), abs=1e-12)
    assert stats.brier(p, y).value == pytest.approx(np.mean((p - y) ** 2), abs=1e-14)
    scores = np.round(p, 1)
    assert stats.auroc(scores, y).value == pytest.approx(stats_loops.auroc(scores.tolist(), y.tolist()), abs=1e-12)
    assert stats.spearman(scores, y).value == pytest.approx(distributions.spearmanr(scores, y).statistic, abs=1e-12)


def test_calibration_slope_is_the_maximum_of_the_likelihood_and_knows_overconfidence():
    p, y = forecasts()
    logits = np.log(p / (1 - p))

    def loss(beta):
        eta = beta[0] + beta[1] * logits
        return float(np.sum(np.logaddexp(0, eta) - y * eta))

    best = optimize.minimize(loss, [0.3, 0.8], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert stats.calibration_slope(p, y).value == pytest.approx(best.x[1], abs=1e-5)
    sharp = 1 / (1 + np.exp(-2 * logits))
    assert stats.calibration_slope(sharp, y).value == pytest.approx(best.x[1] / 2, abs=1e-5)


def test_figures_carry_intervals_over_clusters_and_repeat_to_the_bit():
    p, y = forecasts()
    clusters = np.arange(600) // 6
    for figure in (stats.ece, stats.brier, stats.nll, stats.auroc, stats.spearman, stats.calibration_slope):
        found = figure(p, y, clusters=clusters, rng=rng(1), n_draws=150)
        assert found.low < found.high
        assert found.n == 100
        assert "percentile bootstrap over 100 clusters, 150 draws, 95 %" in found.method
        assert found == figure(p, y, clusters=clusters, rng=rng(1), n_draws=150)
        without = figure(p, y)
        assert (without.value, without.low) == (pytest.approx(found.value, abs=1e-12), None)
        assert "no generator was given" in without.method


def test_a_quantile_has_an_interval():
    x = np.arange(101.0)
    found = stats.quantile_estimate(x, 0.5, rng=rng(), n_draws=300)
    assert found.value == 50
    assert found.low < 50 < found.high


def test_what_cannot_be_estimated_is_none_with_the_reason():
    assert stats.wilson(0, 0) == stats.not_estimable("no trials", 0)
    assert stats.mean_estimate([]).method == "not estimable: no values"
    one = stats.mean_estimate([3.0])
    assert (one.value, one.low, one.high, one.n) == (3.0, None, None, 1)
    assert "an interval needs 2" in one.method
    cluster = stats.mean_estimate([1.0, 2.0, 3.0], ["p"] * 3, rng())
    assert (cluster.value, cluster.low, cluster.n) == (2.0, None, 1)
    assert stats.auroc([1, 2], [1, 1]).value is None
    assert stats.spearman([1, 1, 1], [1, 2, 3], rng=rng()).value is None
    separated = stats.calibration_slope([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], rng=rng())
    assert separated.value is None
    assert "not defined on these 4 rows" in separated.method
    for figure in (stats.ece, stats.brier, stats.nll, stats.auroc, stats.spearman, stats.calibration_slope):
        assert figure([], []).value is None
    rare = stats.auroc([1.0, 2.0, 3.0, 4.0], [0, 0, 0, 1], rng=rng(), n_draws=200)
    assert (rare.value, rare.low) == (1.0, None)
    assert "undefined without 1 of 4 clusters" in rare.method
    rare = stats.auroc(np.arange(12.0), [0] * 11 + [1], rng=rng(), n_draws=200)
    assert (rare.value, rare.low) == (1.0, None)
    assert "undefined on" in rare.method


def test_bad_input_is_one_clear_line():
    with pytest.raises(InputError, match="found 5 successes of 3"):
        stats.wilson(5, 3)
    with pytest.raises(InputError, match=r"found \(2,\) clusters for \(3,\) values"):
        stats.mean_estimate([1.0, 2.0, 3.0], ["p", "q"], rng())
    with pytest.raises(InputError, match="an interval over clusters draws"):
        stats.mean_estimate([1.0, 2.0], ["p", "q"])
    with pytest.raises(InputError, match="1 values that are not finite"):
        stats.mean_estimate([1.0, float("nan")])
    with pytest.raises(InputError, match="found 2 and 3 values"):
        stats.paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="forecast with probability 0"):
        stats.nll([0.0], [1])
    with pytest.raises(InputError, match="found probabilities from"):
        stats.brier([1.5], [1])
    with pytest.raises(InputError, match="found 1 units"):
        stats.permutation_test([1.0], [0.0], rng())
    with pytest.raises(InputError, match=r"level: found 95\.0"):
        stats.mean_estimate([1.0, 2.0], level=95.0)


def test_two_way_proportion_is_the_sum_over_votes_that_share_a_prompt_or_a_rater():
    draw = rng(3)
    x, rows, columns = draw.choice([0, 0.5, 1], 40), draw.integers(0, 9, 40), draw.integers(0, 5, 40)
    strata = draw.integers(0, 2, 40)
    found = stats.two_way_proportion(x, rows, columns, strata=strata)
    means = [x[strata == side].mean() for side in (0, 1)]
    rest = [(x[i] - means[strata[i]]) / (2 * (strata == strata[i]).sum()) for i in range(40)]

    def variance(alike) -> float:
        total = sum(rest[i] * rest[j] for i in range(40) for j in range(40) if alike(i, j))
        n = len({next(k for k in range(40) if alike(i, k)) for i in range(40)})
        return total * n / (n - 1)

    by = [
        variance(lambda i, j: rows[i] == rows[j]),
        variance(lambda i, j: columns[i] == columns[j]),
        variance(lambda i, j: rows[i] == rows[j] and columns[i] == columns[j]),
    ]
    wanted, p = max(by[0] + by[1] - by[2], by[0], by[1]), (means[0] + means[1]) / 2
    assert (found.value, found.n) == (pytest.approx(p, abs=1e-12), 5)
    t = distributions.t.ppf(0.975, 4)
    for limit in (found.low, found.high):  # Wilson's equation: |p − limit| = t·√(V·limit(1 − limit)/p(1 − p))
        assert abs(p - limit) == pytest.approx(t * np.sqrt(wanted * limit * (1 - limit) / (p * (1 - p))), abs=1e-12)
    assert "40 votes of 5 columns on 8 rows" in found.method


def test_one_vote_of_one_rater_is_named_so():
    said = stats.two_way_proportion([1.0], [0], [0]).method
    assert said.startswith("proportion of 1 vote of 1 ")
    assert "1 columns" not in said


def test_two_way_proportion_covers_what_other_prompts_and_other_raters_would_say():
    draw, n_prompts, n_raters, hits, narrow = rng(0), 60, 12, 0, 0
    p = 0.6
    for _ in range(400):
        prompts = np.tile(np.arange(n_prompts), 3)
        raters = draw.integers(0, n_raters, len(prompts))
        lean = draw.normal(0, 0.5, n_prompts)[prompts] + draw.normal(0, 0.5, n_raters)[raters]
        # a probit with normal effects: the mean over all prompts and raters is p exactly
        outcomes = lean + draw.normal(size=len(prompts)) + np.sqrt(1.5) * distributions.norm.ppf(p) > 0
        found = stats.two_way_proportion(outcomes.astype(float), prompts, raters)
        hits += found.low <= p <= found.high
        plain = stats.wilson(int(outcomes.sum()), len(outcomes))
        narrow += plain.low <= p <= plain.high
    assert 0.93 <= hits / 400 <= 0.98
    assert narrow / 400 < 0.85  # as if votes were independent


def test_two_way_proportion_says_what_its_interval_is_for():
    one_rater = stats.two_way_proportion([1, 0, 1, 1], [0, 1, 2, 3], ["a"] * 4, names=("prompts", "raters"))
    assert (one_rater.n, "clustered by prompts alone" in one_rater.method) == (4, True)
    alike = stats.two_way_proportion([1.0] * 6, [0, 0, 1, 1, 2, 2], list("abcdab"), names=("prompts", "raters"))
    assert (alike.value, alike.low, alike.n) == (1.0, stats.wilson(3, 3).low, 3)
    assert stats.two_way_proportion([], [], []).value is None
    single = stats.two_way_proportion([1.0], ["p"], ["r"])
    assert (single.value, single.low, single.high) == (1.0, None, None)
    with pytest.raises(InputError, match=r"expected 0 … 1"):
        stats.two_way_proportion([2.0], ["p"], ["r"])
