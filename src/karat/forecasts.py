"""How good probabilities and rankings are: calibration, proper scores, discrimination, rank correlation.

Knows probabilities, outcomes and cluster labels. Knows nothing about the model that forecast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions

from karat.errors import ConvergenceError, InputError
from karat.records import Estimate
from karat.resampling import (
    FEW_CLUSTERS,
    N_DRAWS,
    Draws,
    Ends,
    cluster_bootstrap,
    cluster_sums,
    cluster_weights,
    jackknife_interval,
    needed_rng,
    not_estimable,
    paired_rows,
    percentile_interval,
    ratio_bootstrap,
)

NEWTON_STEPS = 50
"""A logistic regression of two parameters that has not converged by then is separated."""
LARGEST_SLOPE = 1e3
"""A slope above it means that a threshold separates the outcomes: the likelihood has no maximum."""


def ece(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    n_bins: int = 10,
    *,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
    n_draws: int = N_DRAWS,
) -> Estimate:
    """Expected calibration error: Σ_bins (n_b / n) · |mean probability − mean outcome|, its interval as `cluster_bootstrap` has it.

    Args:
        probabilities: of outcome 1.    outcomes: in [0, 1].    n_bins: of equal width over [0, 1].
        clusters: labels of rows resampled together; None = each row alone.    rng: None = no interval.
    Returns: biased upwards in value and, more so, in its bootstrap interval, because noise in a bin counts as error
        whatever its sign; compare only figures of like n.
    Source: Naeini, Cooper & Hauskrecht 2015, AAAI 29(1), pp. 2901–2907.
    """
    p, y = _forecast("ece", probabilities, outcomes)
    if p.size == 0:
        return not_estimable("no forecasts", 0)
    bins = np.minimum((p * n_bins).astype(int), n_bins - 1)
    labels = _labels(p.size, clusters)
    _, codes = np.unique(labels, return_inverse=True)
    n_clusters = int(codes.max()) + 1
    gaps = np.zeros((n_clusters, n_bins))
    np.add.at(gaps, (codes, bins), p - y)
    counts = np.bincount(codes).astype(float)
    value = float(np.abs(gaps.sum(0)).sum() / p.size)
    what = f"ECE in {n_bins} bins of equal width"
    if rng is None or n_clusters < 2:
        return _without_interval(value, n_clusters, what, rng)
    if n_clusters < FEW_CLUSTERS:
        without = np.abs(gaps.sum(0) - gaps).sum(1) / (counts.sum() - counts)
        return jackknife_interval(value, without, level=level, what=what, within=(0.0, 1.0))
    draws = np.concatenate([np.abs(w @ gaps).sum(1) / (w @ counts) for w in cluster_weights(n_clusters, rng, n_draws)])
    return percentile_interval(value, draws, n_clusters, level=level, what=what)


def brier(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
    n_draws: int = N_DRAWS,
) -> Estimate:
    """Brier score: the mean of (probability − outcome)², 0 best.

    Source: Brier 1950, Monthly Weather Review 78, pp. 1–3.
    Differs: one probability of a binary outcome, so half of his sum over both classes.
    """
    p, y = _forecast("brier", probabilities, outcomes)
    return _mean_score((p - y) ** 2, clusters, rng, what="Brier score", level=level, n_draws=n_draws)


def nll(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
    n_draws: int = N_DRAWS,
) -> Estimate:
    """Log loss in nats: the mean of −y·log p − (1 − y)·log(1 − p).

    Raises: InputError where something that happened was called impossible: the loss is infinite, not large.
    """
    p, y = _forecast("nll", probabilities, outcomes)
    impossible = ((p == 0) & (y > 0)) | ((p == 1) & (y < 1))
    if impossible.any():
        raise InputError(
            f"nll: found {int(impossible.sum())} outcomes forecast with probability 0; expected p in (0, 1)"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = -np.where(y > 0, y * np.log(p), 0.0) - np.where(y < 1, (1 - y) * np.log1p(-p), 0.0)
    return _mean_score(losses, clusters, rng, what="log loss in nats", level=level, n_draws=n_draws)


def calibration_slope(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
    n_draws: int = 500,
) -> Estimate:
    """Slope of a logistic regression of the outcome on logit p: 1 = calibrated, < 1 = overconfident.

    Returns: value None where the regression has no finite maximum (separated, or logits that do not vary).
    Source: Cox 1958, Biometrika 45, pp. 562–565.
    """
    p, y = _forecast("calibration_slope", probabilities, outcomes)
    if ((p <= 0) | (p >= 1)).any():
        raise InputError("calibration_slope: found a probability of 0 or 1, whose logit is infinite; expected (0, 1)")
    logits = np.log(p) - np.log1p(-p)
    return _bootstrap(
        lambda rows: _logistic_slope(logits[rows], y[rows]), p.size, clusters, rng, "calibration slope", level, n_draws
    )


def auroc(
    scores: ArrayLike,
    outcomes: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
    n_draws: int = 1000,
) -> Estimate:
    """Area under the ROC curve: probability that a positive row scores above a negative one, ties counting ½.

    Args:
        outcomes: bool, or 0 and 1.
    Source: Hanley & McNeil 1982, Radiology 143, pp. 29–36 (equality with the Wilcoxon statistic).
    """
    x, y = paired_rows("auroc", scores, outcomes)
    if not np.isin(y, (0, 1)).all():
        raise InputError("auroc: found outcomes besides 0 and 1; expected two classes")
    return _bootstrap(
        lambda rows: _auroc(x[rows], y[rows] == 1), x.size, clusters, rng, "AUROC", level, n_draws, within=(0.0, 1.0)
    )


def spearman(
    x: ArrayLike,
    y: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
    n_draws: int = 1000,
) -> Estimate:
    """Spearman's rank correlation, ties at their mean rank; value None where one side does not vary."""
    a, b = paired_rows("spearman", x, y)
    return _bootstrap(
        lambda rows: _correlation(distributions.rankdata(a[rows]), distributions.rankdata(b[rows])),
        a.size, clusters, rng, "Spearman correlation", level, n_draws, within=(-1.0, 1.0),
    )  # fmt: skip


def _bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    n_rows: int,
    clusters: ArrayLike | None,
    rng: np.random.Generator | None,
    what: str,
    level: float,
    n_draws: int,
    *,
    within: Ends | None = None,
) -> Estimate:
    labels = _labels(n_rows, clusters)
    n_clusters = len(np.unique(labels))
    if rng is not None or n_rows == 0:
        generator = np.random.default_rng(0) if rng is None else rng  # with no rows nothing is drawn
        return cluster_bootstrap(statistic, labels, generator, n_draws, level=level, what=what, within=within)
    try:
        value = float(statistic(np.arange(n_rows)))
    except ConvergenceError:
        value = math.nan
    if not math.isfinite(value):
        return not_estimable(f"the {what} is not defined on these {n_rows} rows", n_clusters)
    return _without_interval(value, n_clusters, what, rng)


def _mean_score(
    values: Draws,
    clusters: ArrayLike | None,
    rng: np.random.Generator | None,
    *,
    what: str,
    level: float,
    n_draws: int,
) -> Estimate:
    if values.size == 0:
        return not_estimable("no forecasts", 0)
    sums, counts = cluster_sums(what, values, _labels(values.size, clusters))
    if rng is None:
        return _without_interval(float(values.mean()), len(counts), what, rng)
    return ratio_bootstrap(sums, counts, needed_rng(rng, what), level=level, n_draws=n_draws, what=what)


def _without_interval(value: float, n: int, what: str, rng: np.random.Generator | None) -> Estimate:
    reason = "no generator was given" if rng is None and n >= 2 else f"found {n} cluster, an interval needs 2"
    return Estimate(value, None, None, n, f"{what}; no interval: {reason}")


def _logistic_slope(logits: Draws, outcomes: Draws) -> float:
    """Newton's method on intercept and slope, damped until the likelihood rises."""
    if np.ptp(logits) == 0:
        return math.nan
    design = np.stack([np.ones_like(logits), logits], axis=1)
    beta = np.array([0.0, 1.0])
    loglik = _logistic_loglik(design @ beta, outcomes)
    for _ in range(NEWTON_STEPS):
        fitted = 0.5 * (1 + np.tanh(0.5 * (design @ beta)))
        gradient = design.T @ (outcomes - fitted)
        hessian = (design * (fitted * (1 - fitted))[:, None]).T @ design
        try:
            step = np.linalg.solve(hessian, gradient)
        except np.linalg.LinAlgError:
            break
        rate = 1.0
        while rate > 1e-6 and _logistic_loglik(design @ (beta + rate * step), outcomes) < loglik - 1e-12:
            rate /= 2
        beta = beta + rate * step
        loglik = _logistic_loglik(design @ beta, outcomes)
        if not abs(beta[1]) < LARGEST_SLOPE:
            break
        if np.abs(step).max() < 1e-9:
            return float(beta[1])
    raise ConvergenceError(
        f"calibration slope: Newton's method reached {beta[1]:.3g} on {logits.size} rows without converging; expected "
        "outcomes that no threshold separates"
    )


def _logistic_loglik(eta: Draws, outcomes: Draws) -> float:
    return float((outcomes * eta - np.logaddexp(0, eta)).sum())


def _auroc(scores: Draws, positive: np.ndarray) -> float:
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if n_positive == 0 or n_negative == 0:
        return math.nan
    ranks = distributions.rankdata(scores)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def _correlation(x: Draws, y: Draws) -> float:
    dx, dy = x - x.mean(), y - y.mean()
    norm = math.sqrt(float((dx @ dx) * (dy @ dy)))
    return float(dx @ dy) / norm if norm > 0 else math.nan


def _labels(n_rows: int, clusters: ArrayLike | None) -> np.ndarray:
    labels = np.arange(n_rows) if clusters is None else np.asarray(clusters)
    if labels.shape != (n_rows,):
        raise InputError(f"found {labels.shape} clusters for {n_rows} rows; expected one a row")
    return labels


def _forecast(caller: str, probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[Draws, Draws]:
    p, y = paired_rows(caller, probabilities, outcomes)
    for name, values in (("probabilities", p), ("outcomes", y)):
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise InputError(f"{caller}: found {name} from {values.min()} to {values.max()}; expected 0 … 1")
    return p, y
