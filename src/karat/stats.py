"""Numbers with their uncertainty: every figure is an Estimate of value, interval, n and method.

Where rows share a prompt, a topic or a rater, whole clusters are resampled and n counts clusters. What cannot be
estimated is None with the reason, never 0. Every function that draws takes the generator as an argument. The bootstrap
itself is in `karat.resampling`; figures on probabilities and ranks are in `karat.forecasts`; both are re-exported.

Knows arrays. Knows nothing about votes, models or texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from karat.errors import InputError
from karat.forecasts import auroc, brier, calibration_slope, ece, nll, spearman
from karat.records import Estimate
from karat.resampling import (
    FEW_CLUSTERS,
    N_DRAWS,
    Draws,
    checked_level,
    cluster_bootstrap,
    cluster_sums,
    draw_chunks,
    finite_row,
    needed_rng,
    not_estimable,
    paired_rows,
    percent,
    ratio_bootstrap,
    ratio_variance,
)

__all__ = [
    "TestResult",
    "auroc",
    "brier",
    "calibration_slope",
    "cluster_bootstrap",
    "ece",
    "mean_estimate",
    "nll",
    "not_estimable",
    "paired_difference",
    "permutation_test",
    "proportion",
    "quantile_estimate",
    "spearman",
    "two_way_proportion",
    "wilson",
    "win_rate",
]


@dataclass(frozen=True)
class TestResult:
    """A hypothesis test."""

    __test__ = False  # the name begins like a test class of pytest

    statistic: float
    """The statistic on the data."""
    p_value: float
    """Two-sided: probability, under the null hypothesis, of a statistic at least as far from 0."""
    n: int
    """On how many independent units."""
    method: str
    """Which test, and with how many draws."""


def wilson(successes: float | int, n: int, *, level: float = 0.95) -> Estimate:
    """A proportion with the Wilson score interval.

        (2np + z² ± z·√(z² + 4np(1 − p))) / (2(n + z²))

    Args:
        successes: 0 … n; halves (ties) are allowed.    n: independent trials.    level: of the interval, (0, 1).
    Returns: value None for n = 0; the interval exists from n = 1 on, because it does not estimate a variance.
    Raises: InputError unless 0 ≤ successes ≤ n.
    Source: Wilson 1927, JASA 22, pp. 209–212; Newcombe 1998, Statistics in Medicine 17, pp. 857–872, method 3.
    """
    if not 0 <= successes <= n:
        raise InputError(f"wilson: found {successes} successes of {n}; expected 0 ≤ successes ≤ n")
    if n == 0:
        return not_estimable("no trials", 0)
    z = float(distributions.norm.ppf(0.5 + checked_level(level) / 2))
    p = successes / n
    half = z * math.sqrt(z * z + 4 * n * p * (1 - p))
    low, high = ((2 * n * p + z * z + sign * half) / (2 * (n + z * z)) for sign in (-1, 1))
    # at the ends the interval closes exactly; the subtraction would leave 1e-17
    low, high = (0.0 if successes == 0 else low), (1.0 if successes == n else high)
    return Estimate(p, low, high, n, f"proportion, Wilson score interval, {percent(level)}")


def lies_above(estimate: Estimate, bound: float | None) -> bool:
    """Whether the whole interval lies above a bound; False where there is no interval, or no bound."""
    return bound is not None and estimate.low is not None and estimate.low > bound


def mean_estimate(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    *,
    level: float = 0.95,
    n_draws: int = N_DRAWS,
) -> Estimate:
    """A mean with its interval: Student's t without clusters or with few, the clustered percentile bootstrap with ten or more.

    Args:
        values: one number a row, finite.    clusters: one label a row; rows of a cluster are resampled together.
        rng: needed with clusters.    level: of the interval.    n_draws: bootstrap draws.
    Returns: n is the number of rows, or of clusters; the interval is None below two of them.
    """
    x = finite_row("mean_estimate", values)
    if x.size == 0:
        return not_estimable("no values", 0)
    if clusters is not None:
        sums, counts = cluster_sums("mean_estimate", x, clusters)
        return ratio_bootstrap(sums, counts, rng, level=level, n_draws=n_draws, what="mean")
    mean = float(x.mean())
    if x.size < 2:
        return Estimate(mean, None, None, 1, "mean; no interval: found 1 value, an interval needs 2")
    half = float(distributions.t.ppf(0.5 + checked_level(level) / 2, x.size - 1)) * float(x.std(ddof=1)) / x.size**0.5
    return Estimate(mean, mean - half, mean + half, int(x.size), f"mean, Student t interval, {percent(level)}")


def proportion(
    outcomes: ArrayLike,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    *,
    level: float = 0.95,
    n_draws: int = N_DRAWS,
) -> Estimate:
    """The mean of outcomes in [0, 1] (ties ½): Wilson without clusters, the clustered bootstrap with ten or more of them.

    With fewer Wilson's with their variance and Student's t, as `two_way_proportion` has it. Where every cluster has the
    same outcome a bootstrap has width 0, which is no interval: then Wilson on the number of clusters is used instead,
    and the method says so.
    """
    x = finite_row("proportion", outcomes)
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"proportion: found outcomes from {x.min()} to {x.max()}; expected 0 … 1")
    if clusters is None or x.size == 0:
        return wilson(float(x.sum()), int(x.size), level=level)
    sums, counts = cluster_sums("proportion", x, clusters)
    if len(counts) >= 2 and np.ptp(sums / counts) < 1e-12:
        p = float(sums[0] / counts[0])
        same = wilson(p * len(counts), len(counts), level=level)
        return Estimate(p, same.low, same.high, same.n, same.method + " on clusters (all have one outcome)")
    if 2 <= len(counts) < FEW_CLUSTERS:
        p, n = float(x.mean()), len(counts)
        low, high = _clustered_wilson(p, ratio_variance(sums, counts, p), n, level)
        method = f"proportion, Wilson score interval over {n} clusters, t with {n - 1} degrees, {percent(level)}"
        return Estimate(p, low, high, n, method)
    return ratio_bootstrap(sums, counts, rng, level=level, n_draws=n_draws, what="proportion")


def two_way_proportion(
    outcomes: ArrayLike,
    rows: ArrayLike,
    columns: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    names: tuple[str, str] = ("rows", "columns"),
    level: float = 0.95,
) -> Estimate:
    """The mean of outcomes in [0, 1] that share both a row (a prompt) and a column (a rater), for others of both.

        p = mean over strata s of x̄ₛ        eᵢ = (xᵢ − x̄ₛ₍ᵢ₎) / (S·nₛ)        V(g) = G/(G−1)·Σ_g (Σ_{i∈g} eᵢ)²
        V = max(V(row) + V(column) − V(row, column), V(row), V(column))
        interval: Wilson's, with n = p(1 − p)/V, and Student's t of min(G) − 1 degrees for z

    Args:
        rows, columns: one label an outcome.    strata: one label an outcome; each counts alike, however many outcomes it
        has (an answer's place on the screen); None = one.    names: what rows and columns are, for the method.
    Returns: n is the smaller number of clusters. With one row or one column alone the interval is for the other, and
        says so; where all outcomes are equal it is Wilson's on n.
    Source: Cameron, Gelbach & Miller 2011, JBES 29, pp. 238–249, eq. 2.7–2.8; Wilson 1927.
    Differs: never narrower than either one-way variance; the difference can come out below it, even negative.
    """
    x = finite_row("two_way_proportion", outcomes)
    if x.size == 0:
        return not_estimable("no votes yet", 0)
    if not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"two_way_proportion: found outcomes from {x.min()} to {x.max()}; expected 0 … 1")
    stratum = np.zeros(x.size, dtype=int) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    sums, counts = cluster_sums("two_way_proportion", x, stratum)
    means = sums / counts
    p = float(means.mean())
    rest = (x - means[stratum]) / (len(means) * counts[stratum])
    codes = [np.unique(np.asarray(labels), return_inverse=True)[1] for labels in (rows, columns)]
    sizes = [int(code.max()) + 1 for code in codes]
    votes, *over = (
        f"{n} {name.removesuffix('s') if n == 1 else name}"
        for n, name in ((x.size, "votes"), (sizes[1], names[1]), (sizes[0], names[0]))
    )
    said = f"proportion of {votes} of {over[0]} on {over[1]}"
    several = [i for i in (0, 1) if sizes[i] > 1]
    if not several:
        return Estimate(p, None, None, 1, f"{said}; no interval: an interval needs 2 of either")
    both = codes[0] * sizes[1] + codes[1]
    one_way = [_cluster_variance(rest, codes[i]) for i in several]
    variance = max(*one_way, sum(one_way) - _cluster_variance(rest, both)) if len(several) == 2 else one_way[0]
    n = min(sizes[i] for i in several)
    over = " and ".join(names[i] for i in several) + (" alone" if len(several) == 1 else "")
    if variance <= 1e-15:
        same = wilson(p * n, n, level=level)
        return Estimate(p, same.low, same.high, n, f"{said}; Wilson score interval on {n} {over}, all alike")
    low, high = _clustered_wilson(p, variance, n, level)
    how = f"Wilson score interval clustered by {over}, t with {n - 1} degrees, {percent(level)}"
    return Estimate(p, low, high, n, f"{said}; {how}")


def _clustered_wilson(p: float, variance: float, n: int, level: float) -> tuple[float, float]:
    """Ends of Wilson's interval of a proportion whose variance is that of n clusters, with Student's t for z."""
    t = float(distributions.t.ppf(0.5 + checked_level(level) / 2, n - 1))
    n_effective = p * (1 - p) / variance
    centre, half = p + t * t / (2 * n_effective), t * math.sqrt(variance + t * t / (4 * n_effective**2))
    low, high = ((centre + sign * half) / (1 + t * t / n_effective) for sign in (-1, 1))
    return low, high


def _cluster_variance(rest: Draws, codes: np.ndarray) -> float:
    """Variance of Σ rest where the clusters are the independent units, with the factor G/(G − 1)."""
    sums = np.bincount(np.unique(codes, return_inverse=True)[1], weights=rest)
    return float((sums**2).sum() * len(sums) / max(len(sums) - 1, 1))


def win_rate(
    scores: ArrayLike,
    baseline: ArrayLike,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    *,
    level: float = 0.95,
    n_draws: int = N_DRAWS,
) -> Estimate:
    """How often a row's score beats its baseline, a tie counting ½, with an interval over clusters (prompts)."""
    a, b = paired_rows("win_rate", scores, baseline)
    return proportion((a > b) + 0.5 * (a == b), clusters, rng, level=level, n_draws=n_draws)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    *,
    level: float = 0.95,
    n_draws: int = N_DRAWS,
) -> Estimate:
    """Mean of a − b over rows that belong together, with the interval of `mean_estimate`."""
    x, y = paired_rows("paired_difference", a, b)
    estimate = mean_estimate(x - y, clusters, rng, level=level, n_draws=n_draws)
    return Estimate(estimate.value, estimate.low, estimate.high, estimate.n, f"paired difference: {estimate.method}")


def quantile_estimate(
    values: ArrayLike,
    q: float,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    *,
    level: float = 0.95,
    n_draws: int = N_DRAWS,
) -> Estimate:
    """A quantile (linear interpolation between order statistics) with a bootstrap interval over ten clusters or more.

    With fewer it has none: a bootstrap of three to nine clusters holds a .9-quantile in .6 to .75 of the cases where it
    says .95, and the jackknife, which leaves one out at a time, in about .83 (`bench/few_clusters_study.py`).
    """
    x = finite_row("quantile_estimate", values)
    labels = np.arange(x.size) if clusters is None else np.asarray(clusters)
    generator = needed_rng(rng, "quantile_estimate")
    what = f"{q:g}-quantile"
    n = len(np.unique(labels))
    if 0 < n < FEW_CLUSTERS and labels.shape == x.shape:
        need = f"no interval: found {n} cluster{'s' * (n != 1)}, a quantile's needs {FEW_CLUSTERS}"
        return Estimate(float(np.quantile(x, q)), None, None, n, f"{what}; {need}")
    return cluster_bootstrap(lambda r: float(np.quantile(x[r], q)), labels, generator, n_draws, level=level, what=what)


def permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    rng: np.random.Generator,
    *,
    paired: bool = True,
    clusters: ArrayLike | None = None,
    n_draws: int = 10_000,
) -> TestResult:
    """Two-sided permutation test of a difference of means.

        p = (1 + #{draws as far from 0 as the data}) / (1 + n_draws)

    Args:
        paired: True = the signs of the pairs' differences are flipped, whole clusters at once; False = the labels of
            two independent samples are shuffled.    clusters: one label a pair; None = each pair alone.
    Raises: InputError for fewer than two units, or clusters with independent samples.
    Source: Phipson & Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9(1), for the +1.
    """
    if not paired:
        if clusters is not None:
            raise InputError("permutation_test: found clusters with paired=False; expected paired data or no clusters")
        return _shuffled_labels(finite_row("permutation_test", a), finite_row("permutation_test", b), rng, n_draws)
    x, y = paired_rows("permutation_test", a, b)
    labels = np.arange(x.size) if clusters is None else clusters
    sums, counts = cluster_sums("permutation_test", x - y, labels)
    if len(sums) < 2:
        raise InputError(f"permutation_test: found {len(sums)} units; expected at least 2")
    observed = float(sums.sum())
    extreme = 0
    for size in draw_chunks(n_draws, len(sums)):
        signs = rng.integers(0, 2, (size, len(sums))) * 2.0 - 1.0
        extreme += int((np.abs(signs @ sums) >= abs(observed) * (1 - 1e-12)).sum())
    method = f"sign-flip permutation test of the mean difference, {n_draws} draws"
    return TestResult(observed / float(counts.sum()), (1 + extreme) / (1 + n_draws), len(sums), method)


def _shuffled_labels(a: Draws, b: Draws, rng: np.random.Generator, n_draws: int) -> TestResult:
    if min(a.size, b.size) < 1 or a.size + b.size < 3:
        raise InputError(
            f"permutation_test: found samples of {a.size} and {b.size}; expected 3 or more values, none empty"
        )
    pooled = np.concatenate([a, b])
    pooled = pooled - pooled.mean()
    observed = float(a.mean() - b.mean())
    scale = 1 / a.size + 1 / b.size  # pooled mean 0: mean(a) − mean(b) = Σ_a · (1/n_a + 1/n_b)
    extreme = 0
    for size in draw_chunks(n_draws, pooled.size):
        shuffled = rng.permuted(np.broadcast_to(pooled, (size, pooled.size)), axis=1)
        extreme += int((np.abs(shuffled[:, : a.size].sum(1) * scale) >= abs(observed) * (1 - 1e-12)).sum())
    method = f"permutation test of the difference of means, {n_draws} draws"
    return TestResult(observed, (1 + extreme) / (1 + n_draws), int(pooled.size), method)
