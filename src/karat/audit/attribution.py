"""Which words made the score: integrated gradients along the embedding path, complete within one per cent or an error.

Knows a differentiable function of embeddings; knows nothing about models, prompts or words.

Dimension letters: P points on a path, L tokens, d embedding size, M texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from karat.errors import ConvergenceError, InputError
from karat.records import Estimate, Finding
from karat.stats import mean_estimate, spearman, wilson

COMPLETENESS = 0.01
"""Largest gap between the attributions' sum and the difference of the scores, as a share of the difference."""
LEAST_GAP = 1e-3
"""Logits: where the scores hardly differ a share of the difference would ask for more than rounding allows."""
N_POINTS = 8
MOST_POINTS = 4096
TOP_BOUND = 0.95
RANDOM_BOUND = 0.5
"""Attributions of a model with shuffled weights may agree with the model's own less than half as well as a copy would."""

ScoreAt = Callable[[Float[Tensor, "P L d"]], Float[Tensor, " P"]]


@dataclass(frozen=True, eq=False)
class Attribution:
    """How the difference between two scores is shared out over the tokens."""

    tokens: Float[Tensor, " L"]
    """Share of each token, logits; their sum is the difference within the tolerance."""
    score: float
    """Score of the text."""
    reference: float
    """Score of the reference."""
    gap: float
    """Sum of the shares less the difference of the scores."""
    n_points: int
    """Gradients that it took."""


def integrated_gradients(
    score_at: ScoreAt,
    end: Float[Tensor, "L d"],
    start: Float[Tensor, "L d"],
    *,
    tolerance: float = COMPLETENESS,
    most_points: int = MOST_POINTS,
) -> Attribution:
    """Share out score(end) − score(start) over the tokens.

        a_l = (e_l − s_l)·∫₀¹ ∇_l score(s + α·(e − s)) dα

    The integral is adaptive: on every part [α, β] of the path the shares must sum to score(β) − score(α); a part where
    they do not is halved, and each part is integrated with 8 Gauss–Legendre points.

    Args:
        score_at: scores of embedded texts, differentiable.    end, start: the text and its reference.
        tolerance: of the sum, as a share of the difference (at least a thousandth of a logit).
        most_points: gradients allowed.
    Raises: ConvergenceError when they do not suffice; InputError for shapes that differ.
    Source: Sundararajan, Taly & Yan 2017, arXiv:1703.01365, eq. 1; completeness is proposition 1.
    """
    if end.shape != start.shape or end.ndim != 2:
        raise InputError(
            f"integrated_gradients: found {tuple(end.shape)} and {tuple(start.shape)}; expected [L, d] twice"
        )
    delta = (end - start).detach()
    nodes, weights = (torch.from_numpy(x).to(end) for x in np.polynomial.legendre.leggauss(N_POINTS))
    first, last = _values(score_at, start, delta, [0.0, 1.0])
    allowed = max(tolerance * abs(last - first), LEAST_GAP)
    parts = [(0.0, 1.0, first, last)]
    shares, gap, n_points = torch.zeros(len(end), dtype=torch.float64), 0.0, 0
    while parts:
        low, high, at_low, at_high = parts.pop()
        n_points += N_POINTS
        if n_points > most_points:
            raise ConvergenceError(
                f"integrated gradients: {most_points} gradients leave a gap above {tolerance:.0%} of the difference "
                f"{last - first:.3g}; allow more, or choose a reference nearer to the text"
            )
        half = (high - low) / 2
        gradients = _gradients(score_at, start, delta, low + half * (nodes + 1))
        own = half * (weights[:, None] * (gradients * delta).sum(2)).sum(0).cpu().double()
        own_gap = float(own.sum()) - (at_high - at_low)
        if abs(own_gap) <= allowed * (high - low):
            shares += own
            gap += own_gap
            continue
        middle = (low + high) / 2
        (at_middle,) = _values(score_at, start, delta, [middle])
        parts += [(middle, high, at_middle, at_high), (low, middle, at_low, at_middle)]
    return Attribution(shares, last, first, gap, n_points)


def completeness_finding(attributions: Sequence[Attribution]) -> Finding:
    """That every text's shares sum to its score difference: the largest gap, as a share of the difference."""
    shares = [abs(a.gap) / max(abs(a.score - a.reference), LEAST_GAP / COMPLETENESS) for a in attributions]
    worst = max(shares)
    within = wilson(float(sum(share <= COMPLETENESS for share in shares)), len(shares))
    return Finding(
        "inside.completeness", "Do the words' shares sum to the score?", "pass" if worst <= COMPLETENESS else "fail", within,
        detail=f"largest gap {worst:.2%} of the difference to the reference, over {len(shares)} texts; "
        f"{sum(a.n_points for a in attributions) / len(shares):.0f} gradients a text",
        threshold=f"every gap ≤ {COMPLETENESS:.0%} of the difference, or ≤ {LEAST_GAP:g} logits",
    )  # fmt: skip


def top_word_finding(shares: Sequence[Sequence[float]], planted: Sequence[int]) -> Finding:
    """How often a planted word has the largest share of all words of its text.

    Args:
        shares: of the words of each text.    planted: position of the planted word in each.
    """
    hits = sum(int(np.argmax(row)) == place for row, place in zip(shares, planted, strict=True))
    rate = wilson(float(hits), len(planted))
    return Finding(
        "inside.planted_word", "Is a planted word found first?",
        "pass" if rate.value is not None and rate.value >= TOP_BOUND else "fail", rate,
        detail=f"first in {hits} of {len(planted)} texts", threshold=f"first in at least {TOP_BOUND:.0%} of the texts",
    )  # fmt: skip


def randomisation_finding(own: Sequence[Sequence[float]], shuffled: Sequence[Sequence[float]]) -> Finding:
    """Whether the attributions depend on what was learned: rank agreement with those of shuffled weights.

    Args:
        own, shuffled: word shares of the same texts by the model, and by the same model with its weights shuffled.
    Source: Adebayo et al. 2018, arXiv:1810.03292 (model parameter randomisation).
    """
    agreements = []
    for a, b in zip(own, shuffled, strict=True):
        value = spearman(np.abs(a), np.abs(b)).value if len(a) > 2 else None
        if value is not None:
            agreements.append(value)
    question = "Do the attributions depend on what was learned?"
    if not agreements:
        return Finding("inside.randomisation", question, "not measured", detail="no text has three words")
    mean: Estimate = mean_estimate(agreements)
    highest = mean.value if mean.high is None else mean.high
    return Finding(
        "inside.randomisation", question, "pass" if highest is not None and highest < RANDOM_BOUND else "warn", mean,
        detail=f"mean Spearman correlation of the words' |shares| with those of shuffled weights, {len(agreements)} texts",
        threshold=f"upper end < {RANDOM_BOUND:g}",
    )  # fmt: skip


def _values(score_at: ScoreAt, start: Tensor, delta: Tensor, places: Sequence[float]) -> list[float]:
    alphas = torch.tensor(places, dtype=start.dtype, device=start.device)
    with torch.no_grad():
        return score_at(start + alphas[:, None, None] * delta).tolist()


def _gradients(score_at: ScoreAt, start: Tensor, delta: Tensor, alphas: Tensor) -> Tensor:
    points = (start + alphas[:, None, None] * delta).detach().requires_grad_()
    with torch.enable_grad():
        (gradients,) = torch.autograd.grad(score_at(points).sum(), points)
    return gradients
