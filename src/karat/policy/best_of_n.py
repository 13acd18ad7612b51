"""Best-of-n: sample n responses, keep the one with the highest score; and what that costs in KL.

Takes a `Sampler` and a `ScoreFn`; the laws of order statistics are in `overopt`. Knows nothing about models or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from karat.errors import InputError
from karat.overopt import best_of_n_kl_bound
from karat.policy.scores import score_responses
from karat.records import Prompt, Sampler, ScoreFn
from karat.sampled_ties import best_of_n_kl_sampled


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
    """Order-statistic estimate of the KL, mean over prompts, nats per sequence (`sampled_ties`)."""


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
    flat_texts = [text for texts in candidates for text in texts]
    flat = score_responses(score_fn, flat_prompts, flat_texts)
    rows = [tuple(flat[i : i + n_samples]) for i in range(0, len(flat), n_samples)]
    estimate = sum(best_of_n_kl_sampled(row, n) for row in rows) / len(rows)
    chosen = [max(range(n), key=row.__getitem__) for row in rows]
    return BestOfN(
        texts=tuple(texts[i] for texts, i in zip(candidates, chosen, strict=True)),
        scores=tuple(row[i] for row, i in zip(rows, chosen, strict=True)),
        candidates=tuple(candidates),
        candidate_scores=tuple(rows),
        n=n,
        kl_bound=float(best_of_n_kl_bound(n)),
        kl_estimate=estimate,
    )
