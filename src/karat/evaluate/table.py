"""Policies side by side: every figure with an interval over prompts.

Pure. A policy is compared with the baseline on the same prompts, so that what differs between prompts cancels.
Dimension letters: P prompts, N samples per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from karat.errors import InputError
from karat.overopt import best_of_n_weights
from karat.records import Estimate
from karat.resampling import cluster_bootstrap
from karat.reward.distance import epic_distance
from karat.sampled_ties import best_of_n_kl_sampled
from karat.stats import mean_estimate, wilson

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PolicySamples:
    """What one policy wrote for the evaluation prompts, measured."""

    name: str
    """sft, best_of_16, ppo …"""
    texts: tuple[tuple[str, ...], ...]
    """[P][N] responses."""
    proxy: Array
    """[P, N] learned score, in the optimiser's units."""
    gold: Array | None
    """[P, N] gold reward, where the world knows it."""
    length: Array
    """[P, N] response tokens."""
    kl: Array | None
    """[P, N] log π − log π_ref of each whole response, nats; None = as `kl_prompts` has it."""
    kl_prompts: Array | None = None
    """[P] KL on each prompt, nats per sequence, of policies that have no density of their own (best-of-n)."""
    weights: Array | None = None
    """[P, N] how much each sample counts within its prompt (best-of-n as a reweighting); None = equally."""

    def __post_init__(self) -> None:
        shape = self.proxy.shape
        others = [self.gold, self.length, self.kl, self.weights]
        if len(shape) != 2 or any(array is not None and array.shape != shape for array in others):
            raise InputError(f"PolicySamples {self.name}: arrays differ in shape; expected [P, N] = {shape} for all")

    def prompt_means(self, values: Array) -> Array:
        """[P] mean over the samples of each prompt, weighted."""
        return values.mean(1) if self.weights is None else (values * self.weights).sum(1) / self.weights.sum(1)


def best_of(samples: PolicySamples, n: int) -> PolicySamples:
    """The best-of-n policy on top of measured samples: each counts with the probability that the proxy picks it."""
    weights = best_of_n_weights(samples.proxy, n)  # refuses more than there are
    return PolicySamples(
        name=f"best_of_{n}",
        texts=samples.texts,
        proxy=samples.proxy,
        gold=samples.gold,
        length=samples.length,
        kl=None,
        kl_prompts=best_of_kl(samples.proxy, n),
        weights=weights,
    )


def best_of_kl(scores: Array, n: int) -> Array:
    """[P] KL of best-of-n on each prompt by order statistics on its [P, N] samples' scores, nats per sequence."""
    return np.array([best_of_n_kl_sampled(row, n) for row in scores])


def policy_figures(samples: PolicySamples, baseline: PolicySamples) -> dict[str, Estimate]:
    """gold, proxy, kl, length, distinct and win_rate of a policy, each with a 95 % interval over prompts.

    win_rate: how often a response beats the baseline's for the same prompt (ties count ½), judged by gold where it
    is known, else by the proxy; which of the two, the method says.
    """
    figures = {"proxy": _over_prompts(samples.prompt_means(samples.proxy), "optimiser's units")}
    if samples.gold is not None:
        figures["gold"] = _over_prompts(samples.prompt_means(samples.gold), "gold reward")
    else:
        figures["gold"] = not_known("no gold reward is known for these prompts")
    figures["length"] = _over_prompts(samples.prompt_means(samples.length), "response tokens")
    if samples.kl is not None:
        figures["kl"] = _over_prompts(samples.prompt_means(samples.kl), "nats per sequence, Monte Carlo of log π/π_ref")
    else:
        per_prompt = np.zeros(len(samples.proxy)) if samples.kl_prompts is None else samples.kl_prompts
        what = f"nats per sequence, order statistics on {samples.proxy.shape[1]} samples, ties merged"
        figures["kl"] = _over_prompts(per_prompt, what)
    distinct = _distinct(samples)
    figures["distinct"] = (
        share_over_prompts(distinct, "probability that two samples of a prompt differ")
        if len(distinct)
        else not_known("one sample a prompt: whether two differ cannot be told")
    )
    figures["win_rate"] = win_rate(samples, baseline)
    return figures


def win_rate(samples: PolicySamples, baseline: PolicySamples) -> Estimate:
    """P(sample beats baseline sample of the same prompt) + ½·P(tie), mean and 95 % interval over prompts."""
    if samples.proxy.shape[0] != baseline.proxy.shape[0]:
        raise InputError(
            "win_rate: the policies were measured on different numbers of prompts; expected the same prompts"
        )
    judged_by = "gold" if samples.gold is not None and baseline.gold is not None else "proxy"
    ours = samples.gold if judged_by == "gold" else samples.proxy
    theirs = baseline.gold if judged_by == "gold" else baseline.proxy
    assert ours is not None
    assert theirs is not None
    difference = ours[:, :, None] - theirs[:, None, :]
    points = (difference > 1e-9) + 0.5 * (np.abs(difference) <= 1e-9)
    weight = _weights(samples)[:, :, None] * _weights(baseline)[:, None, :]
    per_prompt = (points * weight).sum((1, 2)) / weight.sum((1, 2))
    return _within(_over_prompts(per_prompt, f"against {baseline.name}, judged by {judged_by}, ties ½"))


def gold_difference(samples: PolicySamples, baseline: PolicySamples) -> Estimate:
    """Mean gold of a policy minus that of the baseline, paired by prompt, 95 % interval."""
    if samples.gold is None or baseline.gold is None:
        return not_known("no gold reward is known for these prompts")
    return _over_prompts(samples.prompt_means(samples.gold) - baseline.prompt_means(baseline.gold), "paired by prompt")


def reward_distance(samples: PolicySamples, rng: np.random.Generator, *, n_draws: int = 400) -> Estimate:
    """How far the learnt reward is from gold on what a policy writes: `epic_distance`, 95 % interval over prompts.

    Against gold itself a reward is 0 away, one that has nothing to do with it √½, one that says the opposite 1.
    """
    n_prompts, n_samples = samples.proxy.shape
    if samples.gold is None or n_samples < 2:
        return not_known("no gold reward is known for these prompts" if samples.gold is None else "one sample a prompt")
    prompt = np.repeat(np.arange(n_prompts), n_samples)
    proxy, gold = samples.proxy.ravel(), samples.gold.ravel()
    return cluster_bootstrap(
        lambda rows: epic_distance(proxy[rows], gold[rows], prompt[rows]),
        prompt,
        rng,
        n_draws,
        what="EPIC-type distance",
        within=(0.0, 1.0),
    )


def not_known(reason: str) -> Estimate:
    """An estimate that could not be made, and why."""
    return Estimate(None, None, None, 0, reason)


def as_json(figures: dict[str, Estimate]) -> dict[str, dict[str, object]]:
    """{name: {value, low, high, n, method}}."""
    return {
        name: {"value": e.value, "low": e.low, "high": e.high, "n": e.n, "method": e.method}
        for name, e in figures.items()
    }


def _over_prompts(values: Array, what: str) -> Estimate:
    estimate = mean_estimate(values)
    return Estimate(estimate.value, estimate.low, estimate.high, estimate.n, f"{what}; {estimate.method} over prompts")


def share_over_prompts(values: Array, what: str) -> Estimate:
    """The mean of shares; where all prompts have one share, which Student's t takes for certainty, Wilson's interval."""
    if len(values) < 2 or np.ptp(values) > 1e-9:
        return _within(_over_prompts(values, what))
    same = wilson(min(float(values.sum()), len(values)), len(values))
    return Estimate(
        float(values[0]), same.low, same.high, same.n, f"{what}; {same.method} on prompts (all have one share)"
    )


def _within(share: Estimate) -> Estimate:
    """A share whose interval ends where shares do."""
    if share.low is None or share.high is None:
        return share
    return replace(share, low=max(share.low, 0.0), high=min(share.high, 1.0))


def _weights(samples: PolicySamples) -> Array:
    return np.ones_like(samples.proxy) if samples.weights is None else samples.weights


def _distinct(samples: PolicySamples) -> Array:
    """Probability for each prompt that two different samples differ: Σ_{i≠j} wᵢwⱼ·1[textᵢ ≠ textⱼ] / Σ_{i≠j} wᵢwⱼ."""
    shares = []
    for texts, weights in zip(samples.texts, _weights(samples), strict=True):
        totals: dict[str, float] = {}
        for text, weight in zip(texts, weights, strict=True):
            totals[text] = totals.get(text, 0.0) + float(weight)
        pairs = float(weights.sum() ** 2 - (weights**2).sum())
        equal = sum(total**2 for total in totals.values()) - float((weights**2).sum())
        if pairs > 1e-9 * float(weights.sum() ** 2):
            shares.append(1.0 - equal / pairs)
    return np.array(shares)


def names_in_order(tables: Sequence[str]) -> list[str]:
    """Policies in the order of the river: sft, best-of-n by n, then the rest as they came."""

    def key(name: str) -> tuple[int, int]:
        if name == "sft":
            return (0, 0)
        if name.startswith("best_of_"):
            return (1, int(name.removeprefix("best_of_")))
        return (2, 0)

    return sorted(tables, key=key)
