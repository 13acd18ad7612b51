"""Over-optimisation: the laws of proxy and gold, best-of-n without sampling error, diversity, and when to stop.

d is the square root of the KL divergence (in nats) of the policy from its reference, as in Gao, Schulman & Hilton
2022. Rewards are measured from the reference policy: R(d = 0) = 0, so callers subtract its mean first.

Knows arrays of KL, rewards and texts. Knows nothing about policies, models or how the figures were measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy import stats as distributions

from karat.errors import InputError
from karat.records import Estimate

BLEU_ORDER = 4
"""Longest n-gram of BLEU (Papineni et al. 2002)."""


@dataclass(frozen=True)
class GaoFit:
    """A fitted law of over-optimisation."""

    law: Literal["best_of_n", "rl"]
    """best_of_n: R = d·(α − β·d).    rl: R = d·(α − β·log d)."""
    alpha: float
    """α, in reward units per √nat."""
    beta: float
    """β, in reward units per nat (best_of_n) or per √nat (rl); > 0 means that gold turns over."""
    r_squared: float
    """1 − Σ residual² / Σ (R − R̄)²."""
    peak_d: Estimate
    """Where the fitted gold reward is highest, in √KL; None where no peak lies inside what was measured."""

    def predict(self, d: ArrayLike) -> NDArray[np.float64]:
        """Fitted reward at √KL = d; 0 at d = 0."""
        return _gao_design(self.law, np.asarray(d, dtype=float)) @ np.array([self.alpha, self.beta])


@dataclass(frozen=True)
class StopDecision:
    """What a stopping rule says, and why."""

    stop: bool
    """True = the rule asks to stop."""
    rule: str
    """Its name."""
    reason: str
    """The figures it compared, in one line."""


def fit_gao(kl: ArrayLike, reward: ArrayLike, *, law: Literal["best_of_n", "rl"], level: float = 0.95) -> GaoFit:
    """Fit a law of over-optimisation by ordinary least squares, without an intercept.

        best_of_n: R = d(α − βd), peak d* = α/2β        rl: R = d(α − β log d), peak d* = e^{α/β − 1}        d = √KL

    Args:
        kl: nats ≥ 0, one for each point of the curve.    reward: gold (or proxy) less that of the reference policy.
    Returns: the peak with Fieller's interval for the ratio α/β, whose ends may be None: unbounded where β cannot be
        told from 0. Peak None where β ≤ 0 or the peak lies beyond the largest d.
    Raises: InputError for fewer than 3 points or fewer than 2 different d > 0.
    Source: Gao, Schulman & Hilton 2022, arXiv:2210.10760; Fieller 1954, JRSS B 16, pp. 175–185.
    Differs: points of one training run are serially dependent, which this interval does not know.
    """
    d, r = np.sqrt(_points("fit_gao", kl)), _points("fit_gao", reward)
    if d.shape != r.shape or d.size < 3 or len(np.unique(d[d > 0])) < 2:
        raise InputError(
            f"fit_gao: found {d.size} KL and {r.size} rewards; expected ≥ 3 points with 2 different KL > 0"
        )
    design = _gao_design(law, d)
    (alpha, beta), *_ = np.linalg.lstsq(design, r, rcond=None)
    residual = r - design @ np.array([alpha, beta])
    total = float(((r - r.mean()) ** 2).sum())
    r_squared = 1 - float(residual @ residual) / total if total > 0 else math.nan
    covariance = float(residual @ residual) / (d.size - 2) * np.linalg.inv(design.T @ design)
    peak = _peak(law, float(alpha), float(beta), covariance, d, level)
    return GaoFit(law, float(alpha), float(beta), r_squared, peak)


def best_of_n_kl_bound(n: ArrayLike) -> NDArray[np.float64]:
    """log n − (n − 1)/n: an upper bound on KL(best-of-n ‖ base) in nats, exact for scores without ties.

    Source: Beirami et al. 2024, arXiv:2401.01879 (bound, not identity); the formula is Stiennon et al. 2020 app. G.3.
    """
    n = np.asarray(n, dtype=float)
    if (n < 1).any():
        raise InputError(f"best_of_n_kl_bound: found n = {n.min():g}; expected n ≥ 1")
    return np.asarray(np.log(n) - (n - 1) / n)


def best_of_n_kl(scores: ArrayLike, n: int, *, probs: ArrayLike | None = None) -> float:
    """KL(best-of-n ‖ base) in nats, exact for a finite distribution, ties included.

        q(l) = F(l)ⁿ − F(l−)ⁿ over the levels l of the score        KL = Σ_l q(l)·log(q(l)/p(l))

    Within a level the winner is any of the tied draws, so best-of-n keeps the base's proportions there and adds no KL.

    Args:
        scores: of each possible response, or of each of N samples.    probs: base probabilities; None = 1/N each.
    Source: the order statistics of Beirami et al. 2024, arXiv:2401.01879, with ties merged.
    """
    s = _points("best_of_n_kl", scores)
    p = np.full(s.size, 1 / s.size) if probs is None else _points("best_of_n_kl", probs)
    if p.shape != s.shape or (p < 0).any() or abs(p.sum() - 1) > 1e-6 or n < 1:
        raise InputError(
            f"best_of_n_kl: found {p.size} probabilities with sum {p.sum():g}, n = {n}; expected sum 1, n ≥ 1"
        )
    _, level = np.unique(s[p > 0], return_inverse=True)
    mass = np.bincount(level, weights=p[p > 0])
    mass = mass / mass.sum()
    upper = np.minimum(mass.cumsum(), 1.0)
    with np.errstate(divide="ignore"):  # the lowest level has F(l−) = 0: its log 0 = −inf is meant
        log_q = n * np.log(upper) + np.log(-np.expm1(n * np.log1p(-np.minimum(mass / upper, 1.0))))
    return max(0.0, float((np.exp(log_q) * (log_q - np.log(mass))).sum()))


def best_of_n_weights(scores: ArrayLike, n: int) -> NDArray[np.float64]:
    """Probability that each of N samples is the best of n drawn without replacement.

        w₍ᵢ₎ = C(i − 1, n − 1)/C(N, n) for the i-th smallest score;   samples that tie share their weight equally

    Args:
        scores: [..., N] by which the best is chosen.
    Returns: [..., N], each row sums to 1: best-of-n as a reweighting of the samples.
    Raises: InputError for n outside 1 … N.
    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I.
    """
    s = np.asarray(scores, dtype=float)
    n_samples = s.shape[-1] if s.ndim else 0
    if not 1 <= n <= n_samples:
        raise InputError(f"best of n: found n = {n}, scores {s.shape}; expected 1 ≤ n ≤ N")
    i = np.arange(1, n_samples + 1)
    with np.errstate(divide="ignore"):
        log_weight = np.where(i >= n, _log_choose(i - 1, n - 1) - _log_choose(n_samples, n), -np.inf)
    weights = np.exp(log_weight)
    flat = s.reshape(-1, n_samples)
    result = np.empty_like(flat)
    for row, score in enumerate(flat):
        _, level = np.unique(score, return_inverse=True)
        shared = np.bincount(np.sort(level), weights=weights) / np.bincount(level)
        result[row] = shared[level]
    return result.reshape(s.shape)


def expected_best_of_n(scores: ArrayLike, n: int, *, values: ArrayLike | None = None) -> NDArray[np.float64]:
    """Unbiased estimate of the expected value of the best of n, from N ≥ n samples: the mean over all C(N, n) subsets.

    Args:
        scores: [..., N] by which the best is chosen.    values: [..., N] what is averaged (gold); None = the scores.
    Returns: [...] one estimate for each leading index.
    Raises: InputError for n outside 1 … N or values of another shape.
    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I (unbiased estimator of best-of-n).
    """
    s = np.asarray(scores, dtype=float)
    v = s if values is None else np.asarray(values, dtype=float)
    if s.shape != v.shape:
        raise InputError(f"expected_best_of_n: found scores {s.shape}, values {v.shape}; expected the same shape")
    return (best_of_n_weights(s, n) * v).sum(-1)


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams of words divided by all n-grams of all texts together; None where there is none.

    Source: Li et al. 2016, arXiv:1510.03055 (distinct-1, distinct-2).
    """
    grams = [gram for text in texts for gram in _ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else None


def distinct_frac(texts: Sequence[str]) -> float | None:
    """Fraction of pairs of texts that differ at all; None below two texts."""
    n_pairs = len(texts) * (len(texts) - 1) // 2
    if n_pairs == 0:
        return None
    return 1 - sum(count * (count - 1) // 2 for count in Counter(texts).values()) / n_pairs


def self_bleu_diversity(texts: Sequence[str]) -> float | None:
    """1 − self-BLEU: each text scored by BLEU-4 against all others, averaged; 0 = all alike. None below two texts.

        BLEU = BP · exp( mean over n = 1 … 4 of log((matches_n + [n>1]) / (ngrams_n + [n>1])) )

    Source: Zhu et al. 2018, arXiv:1802.01886 (Texygen); Papineni et al. 2002; smoothing of Lin & Och 2004, COLING.
    Differs: words are split at white space; add-one smoothing above unigrams, because responses are short.
    """
    if len(texts) < 2:
        return None
    words = [text.split() for text in texts]
    return 1 - float(np.mean([_bleu(words[i], words[:i] + words[i + 1 :]) for i in range(len(words))]))


def text_entropy(texts: Sequence[str]) -> float | None:
    """Plug-in entropy in nats of the distribution of whole texts; at most log n, biased downwards. None for no text."""
    if not texts:
        return None
    p = np.array(list(Counter(texts).values())) / len(texts)
    return float(-(p * np.log(p)).sum())


def kl_budget_rule(kl: float, *, budget: float) -> StopDecision:
    """Stop when the measured KL exceeds its budget, both in nats per response."""
    return StopDecision(kl > budget, "kl_budget", f"KL {kl:.4g} nats, budget {budget:.4g}")


def disagreement_rule(policy_sds: ArrayLike, validation_sds: ArrayLike, *, quantile: float = 0.95) -> StopDecision:
    """Stop when the ensemble's mean disagreement on the policy's responses exceeds a quantile of that on validation.

    Args:
        policy_sds: sd over members of each policy response's difference to reference.    validation_sds: the same on
            validation responses.
    """
    mean, threshold = (
        float(_points("disagreement_rule", policy_sds).mean()),
        _points("disagreement_rule", validation_sds),
    )
    limit = float(np.quantile(threshold, quantile))
    return StopDecision(
        mean > limit, "disagreement", f"mean sd {mean:.4g}, validation {quantile:g}-quantile {limit:.4g}"
    )


def slope_rule(proxy: ArrayLike, gold: ArrayLike, *, n_last: int = 3) -> StopDecision:
    """Stop when gold no longer rises with the proxy: least-squares slope of gold on proxy ≤ 0 over the last evaluations.

    Does not ask to stop before there are n_last evaluations, or when the proxy did not move.
    """
    x, y = _points("slope_rule", proxy)[-n_last:], _points("slope_rule", gold)[-n_last:]
    if x.shape != y.shape or n_last < 2:
        raise InputError(
            f"slope_rule: found {x.size} proxy and {y.size} gold, n_last {n_last}; expected as many, n_last ≥ 2"
        )
    if x.size < n_last or np.ptp(x) == 0:
        return StopDecision(False, "slope", f"{x.size} of {n_last} evaluations, or the proxy stands still")
    slope = float(((x - x.mean()) @ y) / ((x - x.mean()) @ (x - x.mean())))
    return StopDecision(slope <= 0, "slope", f"gold on proxy has slope {slope:.4g} over the last {n_last} evaluations")


def length_rule(lengths: ArrayLike, reference_lengths: ArrayLike, *, limit_sd: float = 2.0) -> StopDecision:
    """Stop when the mean length has drifted by more than limit_sd standard deviations of the reference's lengths."""
    now, then = _points("length_rule", lengths), _points("length_rule", reference_lengths)
    sd = float(then.std(ddof=1)) if then.size > 1 else 0.0
    shift = float(now.mean() - then.mean())
    drift = shift / sd if sd > 0 else math.copysign(math.inf, shift) if shift else 0.0
    return StopDecision(abs(drift) > limit_sd, "length", f"length drifted by {drift:+.3g} sd, limit {limit_sd:g}")


def floor_rule(name: str, now: float, start: float, *, floor: float) -> StopDecision:
    """Stop when a figure has fallen below a share of what it was at the start: entropy or diversity collapsed.

    Args:
        name: of the rule.    now, start: the figure, ≥ 0.    floor: the share, (0, 1).
    """
    return StopDecision(now < floor * start, name, f"{now:.4g}, at the start {start:.4g}, floor {floor:g} of it")


def fall_rule(shares: ArrayLike, n_votes: ArrayLike, *, looks: int, z: float) -> StopDecision:
    """Stop when votes on what the policy writes say that it was better before, by more than chance.

        m_t = mean share of the last `looks` looks        stop when max_s m_s − m_t > z·√(p̄(1 − p̄)·(1/n_s + 1/n_t))

    Args:
        shares: at each look, votes for the policy against its reference, ties as halves, in [0, 1].
        n_votes: votes at each look, ≥ 1.    looks: averaged, ≥ 1; nothing is said before so many.    z: > 0.
    Returns: the decision; n_s and n_t are the votes behind both means, p̄ the mean of both.
    Differs: from one two-sample test in that the highest mean is picked out of many and shares looks with the last one;
        the first makes alarms likelier, the second rarer. docs/watcher.md measures what remains.
    """
    x, n = _points("fall_rule", shares), _points("fall_rule", n_votes)
    if x.shape != n.shape or looks < 1 or (n < 1).any():
        raise InputError(f"fall_rule: found {x.size} shares, {n.size} counts, looks {looks}; expected as many, all ≥ 1")
    if x.size < looks:
        return StopDecision(False, "panel", f"{x.size} of {looks} looks")
    means, counts = (np.lib.stride_tricks.sliding_window_view(one, looks) for one in (x, n))
    means, counts = means.mean(-1), counts.sum(-1)
    top = int(means.argmax())
    p = (means[top] + means[-1]) / 2
    limit = z * math.sqrt(p * (1 - p) * (1 / counts[top] + 1 / counts[-1]))
    fallen = float(means[top] - means[-1])
    said = f"{means[-1]:.3g} of the votes over the last {looks} looks, {means[top]:.3g} before; fell {fallen:.3g}, limit {limit:.3g}"
    return StopDecision(fallen > limit, "panel", said)


def peak_rule(
    kl: ArrayLike, reward: ArrayLike, *, n_least: int = 6, level: float = 0.95
) -> tuple[StopDecision, Estimate]:
    """Stop when the fitted law of over-optimisation says, with its interval, that the peak has been passed.

        fit R(d) = d(α − β log d) to all looks so far        stop when β > 0 and the upper end of d* < d now

    Args:
        kl: nats at each look, in order; those below 0 (an estimate of a small KL) count as 0.
        reward: the watched figure at each look; its value at the first one is subtracted.
        n_least: looks before anything is fitted.    level: of the interval.
    Returns: the decision, and the peak √KL with Fieller's interval (None where it is not estimable, with the reason).
    Source: the law is Gao, Schulman & Hilton 2022, arXiv:2210.10760; fitting it along one run is ours.
    Differs: looks of one run depend on one another, so the interval is too narrow; docs/watcher.md measures by how much
        that matters.
    """
    nats, r = np.maximum(_points("peak_rule", kl), 0.0), _points("peak_rule", reward)
    if nats.size < n_least or len(np.unique(nats[nats > 0])) < 3:
        nothing = Estimate(None, None, None, int(nats.size), f"not estimable: fewer than {n_least} looks")
        return StopDecision(False, "peak", nothing.method), nothing
    peak = fit_gao(nats, r - r[0], law="rl", level=level).peak_d
    now = math.sqrt(float(nats[-1]))
    if peak.value is None or peak.high is None:
        return StopDecision(False, "peak", peak.method), peak
    said = f"peak √KL {peak.value:.3g} ({peak.low:.3g} … {peak.high:.3g}), now {now:.3g}"
    return StopDecision(peak.high < now, "peak", said), peak


def _gao_design(law: str, d: NDArray[np.float64]) -> NDArray[np.float64]:
    if law == "best_of_n":
        return np.stack([d, -(d**2)], axis=-1)
    if law == "rl":
        return np.stack([d, -special.xlogy(d, d)], axis=-1)
    raise InputError(f"law: found {law!r}; expected best_of_n or rl")


def _peak(law: str, alpha: float, beta: float, cov: NDArray, d: NDArray, level: float) -> Estimate:
    n = int(d.size)
    if beta <= 0:
        return Estimate(None, None, None, n, f"not estimable: β = {beta:.4g} ≤ 0, the fitted curve does not turn over")
    position = _peak_at(law, alpha / beta)
    if not 0 < position <= d.max():
        return Estimate(
            None, None, None, n,
            f"not estimable: the fitted peak √KL = {position:.4g} lies outside what was measured, 0 … {d.max():.4g}",
        )  # fmt: skip
    t = float(distributions.t.ppf(0.5 + level / 2, n - 2))
    # Fieller: all ρ with (α − ρβ)² ≤ t²·Var(α − ρβ), a quadratic in ρ that is bounded when β differs from 0
    a = beta**2 - t**2 * cov[1, 1]
    b = -2 * (alpha * beta - t**2 * cov[0, 1])
    c = alpha**2 - t**2 * cov[0, 0]
    if a <= 0:
        return Estimate(position, None, None, n, f"peak √KL; no interval: β cannot be told from 0 at {100 * level:g} %")
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    low, high = (_peak_at(law, float((-b + sign * root) / (2 * a))) for sign in (-1, 1))
    return Estimate(
        position, max(0.0, low), high, n, f"peak √KL of the least-squares fit, Fieller interval, {100 * level:g} %"
    )


def _peak_at(law: str, ratio: float) -> float:
    return ratio / 2 if law == "best_of_n" else math.exp(min(ratio - 1, 700.0))


def _log_choose(n: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    n, k = np.asarray(n, dtype=float), np.asarray(k, dtype=float)
    return np.asarray(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(np.maximum(n - k, 0) + 1))


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _bleu(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    if not candidate:
        return float(any(not reference for reference in references))  # the empty answer repeats only another one
    log_precision = 0.0
    for n in range(1, BLEU_ORDER + 1):
        counts = Counter(_ngrams(candidate, n))
        most = Counter()
        for reference in references:
            most |= Counter(_ngrams(reference, n))
        matches, smooth = sum((counts & most).values()), int(n > 1)
        if matches + smooth == 0:
            return 0.0
        log_precision += math.log((matches + smooth) / (sum(counts.values()) + smooth)) / BLEU_ORDER
    nearest = min((abs(len(reference) - len(candidate)), len(reference)) for reference in references)[1]
    brevity = 0.0 if len(candidate) >= nearest else 1 - nearest / len(candidate)
    return math.exp(brevity + log_precision)


def _points(caller: str, values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise InputError(
            f"{caller}: found values of shape {x.shape}, or some not finite; expected a row of finite numbers"
        )
    return x
