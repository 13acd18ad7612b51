"""Best-of-n: sample n responses, keep the one with the highest score; and what that costs in KL.

Takes a `Sampler` and a `ScoreFn`; knows nothing about models or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from karat.errors import InputError
from karat.records import Prompt, Sampler, ScoreFn


@dataclass(frozen=True)
class BestOfN:
    """What best-of-n chose for each prompt, and everything it chose from."""

    texts: tuple[str, ...]
    """The chosen response of each prompt, the first among equals."""
    scores: tuple[float, ...]
    """Its score."""
    candidates: tuple[tuple[str, ...], ...]
    """All sampled responses, n_samples a prompt."""
    candidate_scores: tuple[tuple[float, ...], ...]
    """Their scores."""
    n: int
    """How many of them compete."""
    kl_bound: float
    """log n − (n − 1)/n, nats per sequence: an upper bound, exact where scores never tie."""
    kl_estimate: float
    """Order-statistic estimate of the KL, mean over prompts, nats per sequence (`best_of_n_kl`)."""


def kl_bound(n: int) -> float:
    """KL(π_best-of-n ‖ π) ≤ log n − (n − 1)/n, with equality for a continuous score.

    Source: Stiennon et al. 2020, arXiv:2009.01325 app. G.3; that it is a bound: Beirami et al. 2024,
        arXiv:2401.01879 thm 1.

    >>> round(kl_bound(16), 3)
    1.835
    """
    if n < 1:
        raise InputError(f"kl_bound: found n={n}; expected ≥ 1")
    return math.log(n) - (n - 1) / n


def tied_kl(masses: Sequence[float], n: int) -> float:
    """Exact KL of best-of-n when responses fall into groups of equal score and ties are broken at random.

        KL = Σ_g q_g·log(q_g/p_g),    q_g = F_gⁿ − F_{g−1}ⁿ,    F_g = Σ_{h ≤ g} p_h

    Args:
        masses: probability of each group under the sampling policy, ascending in score, summing to 1.
    Returns: nats; ≤ `kl_bound(n)`, 0 where all responses tie.
    Raises: InputError for masses that are negative or do not sum to 1, or n < 1.
    Source: order statistics; Beirami et al. 2024, arXiv:2401.01879 lemma 1.
    """
    p = np.asarray(masses, dtype=np.float64)
    if n < 1 or p.size == 0 or np.any(p < 0) or abs(p.sum() - 1) > 1e-9:
        raise InputError(f"tied_kl: found n={n} and masses summing to {p.sum():g}; expected n ≥ 1 and a distribution")
    p = p[p > 0]
    below_or_in = np.minimum(np.cumsum(p), 1.0)
    below_or_in[-1] = 1.0
    q = np.diff(below_or_in**n, prepend=0.0)
    kept = q > 0  # a group far below the top is chosen with a probability that underflows: it adds 0
    return float(np.sum(q[kept] * np.log(q[kept] / p[kept])))


def best_of_n_kl(scores: Sequence[float], n: int) -> float:
    """Order-statistic estimate of best-of-n's KL for one prompt, from N ≥ n scored samples.

    The empirical groups of equal score take the place of the true ones in `tied_kl`. Without ties it is a little
    below `kl_bound(n)` and tends to it as N grows; with ties it says what the bound does not.
    """
    values = _finite(scores, n, "best_of_n_kl")
    _, counts = np.unique(values, return_counts=True)
    return tied_kl(counts / counts.sum(), n)


def expected_best(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Unbiased estimate of E[value of the best of n by score] from N ≥ n samples of one prompt.

        Σᵢ C(i − 1, n − 1)/C(N, n) · v₍ᵢ₎,    i = rank by score, ascending

    Args:
        scores: what best-of-n chooses by.    values: what is asked about (the score itself, or the gold reward).
    Returns: the mean over all subsets of n; samples of equal score share their weights.
    Raises: InputError for N < n, lengths that differ or scores that are not finite.
    Source: Nakano et al. 2021, arXiv:2112.09332 app. I.
    Differs: ties are averaged instead of left to the sorting order.
    """
    ordered = _finite(scores, n, "expected_best")
    worth = np.asarray(values, dtype=np.float64)
    if worth.shape != ordered.shape:
        raise InputError(f"expected_best: found {ordered.size} scores and {worth.size} values; expected equal numbers")
    order = np.argsort(ordered, kind="stable")
    total = math.comb(ordered.size, n)
    weights = np.array([math.comb(i, n - 1) / total for i in range(ordered.size)])
    _, group = np.unique(ordered[order], return_inverse=True)
    shared = np.bincount(group, weights) / np.bincount(group)
    return float(np.sum(shared[group] * worth[order]))


def best_of_n(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    score_fn: ScoreFn,
    *,
    n: int,
    seed: int,
    n_samples: int | None = None,
) -> BestOfN:
    """Sample, score, keep the best of the first n for every prompt.

    Args:
        sampler: writes `n_samples` texts a prompt from the seed.    score_fn: one call for everything.
        n: competitors a prompt, ≥ 1.    n_samples: drawn a prompt, ≥ n, for a better `kl_estimate`; None = n.
    Raises: InputError for n < 1, n_samples < n, no prompts, or a score that is not finite.
    """
    n_samples = n if n_samples is None else n_samples
    if n < 1 or n_samples < n or not prompts:
        raise InputError(
            f"best_of_n: found n={n}, n_samples={n_samples} and {len(prompts)} prompts; "
            "expected 1 ≤ n ≤ n_samples and at least one prompt"
        )
    candidates = [tuple(texts) for texts in sampler(prompts, n_samples=n_samples, seed=seed)]
    flat_prompts = [prompt for prompt, texts in zip(prompts, candidates, strict=True) for _ in texts]
    flat = [float(s) for s in score_fn(flat_prompts, [text for texts in candidates for text in texts])]
    rows = [tuple(flat[i : i + n_samples]) for i in range(0, len(flat), n_samples)]
    estimate = float(np.mean([best_of_n_kl(row, n) for row in rows]))
    chosen = [max(range(n), key=row.__getitem__) for row in rows]
    return BestOfN(
        texts=tuple(texts[i] for texts, i in zip(candidates, chosen, strict=True)),
        scores=tuple(row[i] for row, i in zip(rows, chosen, strict=True)),
        candidates=tuple(candidates),
        candidate_scores=tuple(rows),
        n=n,
        kl_bound=kl_bound(n),
        kl_estimate=estimate,
    )


def _finite(scores: Sequence[float], n: int, caller: str) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if n < 1 or values.ndim != 1 or values.size < n:
        raise InputError(f"{caller}: found {values.size} scores for n={n}; expected at least n ≥ 1")
    if not np.all(np.isfinite(values)):
        raise InputError(f"{caller}: found a score that is not finite; expected numbers")
    return values
