"""How much of the reward is length: its slope, what is left without it, and the slices where length cannot help.

Knows held-out scores and votes; knows nothing about how the model came to use length.

Dimension letters: N texts, D decided votes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from karat.probes import matched_length_mask
from karat.records import Estimate, Finding
from karat.resampling import N_DRAWS, not_estimable, ratio_bootstrap
from karat.reward.calibration import decided_probs, predicted_probs
from karat.reward.held_out import HeldOut, said
from karat.reward.model import log_lengths
from karat.reward.thresholds import GateSettings
from karat.seeding import numpy_generator
from karat.stats import mean_estimate

ACCURACY_QUESTION = "How often does it tell which response was preferred?"


def length_slope(scores: Float[Tensor, " N"], texts: Sequence[str], groups: Sequence[Sequence[int]]) -> float | None:
    """γ of the scores on log-length within prompts, logits for each factor e in length.

        γ = Σ_p Σ_{i ∈ p} (l_i − l̄_p)·(s_i − s̄_p) / Σ_p Σ_{i ∈ p} (l_i − l̄_p)²,  l = log(1 + characters)

    Returns: None where all responses to each prompt are equally long.
    """
    products, squares = _within(scores, texts, groups)
    return float(products.sum() / squares.sum()) if squares.sum() > 0 else None


def length_findings(held: HeldOut, length_p: Float[Tensor, "C K"], settings: GateSettings) -> list[Finding]:
    """The model's accuracy beside that of the length baseline, γ and what its removal leaves, and the two slices.

    Args:
        length_p: the length baseline's probability of every level for each held-out vote.
    Returns: `gate.accuracy`, `gate.length_baseline`, `gate.length_slope` (info), `gate.matched_length`,
        `gate.shorter_won` (held against their bounds).
    """
    columns, model = held.data.columns, held.scorer.vote_model
    slope = _slope_estimate(held)
    without = held.scores - (slope.value or 0.0) * log_lengths(held.data.texts)
    p, outcome, decided = decided_probs(predicted_probs(held.scores.unsqueeze(0), columns, model), columns)
    removed_p, _, _ = decided_probs(predicted_probs(without.unsqueeze(0), columns, model), columns)
    baseline_p, _, _ = decided_probs(length_p, columns)
    right, right_without, right_length = (correct(each, outcome) for each in (p, removed_p, baseline_p))
    clusters = np.array([vote.prompt_id for vote in held.data.votes])[decided]
    lengths = torch.tensor([len(text) for text in held.data.texts])
    a, b = (lengths[side].numpy()[decided] for side in (columns.a, columns.b))
    shorter = np.sign(a - b) * (2 * outcome - 1) < 0
    matched = matched_length_mask(a, b)

    def mean(values: np.ndarray, mask: np.ndarray, purpose: str) -> Estimate:
        return mean_estimate(values[mask], clusters[mask], numpy_generator(held.seed, "gate", purpose))

    everywhere = np.ones(len(decided), dtype=bool)
    return [
        Finding("gate.accuracy", ACCURACY_QUESTION, "info", mean(right, everywhere, "accuracy"), detail="votes without ties"),
        Finding(
            "gate.length_baseline",
            "How often does length alone tell which response was preferred?",
            "info",
            mean(right_length, everywhere, "length"),
            detail=f"length {right_length.mean():.3f}, reward model {right.mean():.3f} of {len(decided)} votes without ties",
        ),
        Finding(
            "gate.length_slope",
            "How many logits does a response gain by being e times as long (γ)?",
            "info",
            slope,
            detail=f"with γ·log-length taken off the score is right in {right_without.mean():.3f} of the votes without ties "
            f"instead of {right.mean():.3f}; where the shorter won in {_mean(right_without, shorter)} instead of "
            f"{_mean(right, shorter)}",
        ),
        _slice(
            "gate.matched_length", "How often is it right where two responses are about equally long?",
            mean(right, matched, "matched"), f"the quarter of {len(decided)} votes without ties whose lengths differ least",
            settings.min_matched_accuracy, strictly=True,
        ),
        _slice(
            "gate.shorter_won", "How often is it right where the shorter response was preferred?",
            mean(right, shorter, "shorter"), f"{int(shorter.sum())} of {len(decided)} votes without ties",
            settings.min_shorter_won,
        ),
    ]  # fmt: skip


ROUNDING = 1e-12
"""Distance from ½ that summation order explains."""


def correct(p: Float[np.ndarray, " D"], outcome: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    """1 where the more probable response was preferred, 0 where not, ½ where both were equally probable.

    Equal scores give ½ only up to the rounding of the sum over raters.
    """
    return np.where(np.abs(p - 0.5) < ROUNDING, 0.5, (p > 0.5) == (outcome == 1)).astype(float)


def _slice(
    name: str, question: str, estimate: Estimate, detail: str, bound: float | None, *, strictly: bool = False
) -> Finding:
    if estimate.value is None:
        return Finding(name, question, "info", detail="no such vote")
    highest = estimate.value if estimate.high is None else estimate.high
    failed = bound is not None and (highest <= bound if strictly else highest < bound)
    sign = ">" if strictly else "≥"
    threshold = "" if bound is None else f"upper end of the accuracy {sign} {bound:g}"
    status = "info" if bound is None else "fail" if failed else "pass"
    return Finding(name, question, status, estimate, f"{said(estimate)} on {detail}", threshold)


def _slope_estimate(held: HeldOut) -> Estimate:
    products, squares = _within(held.scores, held.data.texts, held.data.groups)
    kept = squares > 0
    if not kept.any():
        return not_estimable("the responses to each prompt are equally long", len(products))
    rng = numpy_generator(held.seed, "gate", "length_slope")
    return ratio_bootstrap(
        products[kept], squares[kept], rng, level=0.95, n_draws=N_DRAWS, what="slope within prompts"
    )  # fmt: skip


def _within(
    scores: Float[Tensor, " N"], texts: Sequence[str], groups: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of products and of squares of each prompt."""
    length, values = log_lengths(texts).double(), scores.double()
    rows = [list(members) for members in groups]
    centred = [(length[row] - length[row].mean(), values[row] - values[row].mean()) for row in rows]
    products = np.array([float(x @ y) for x, y in centred])
    # equal lengths leave 1e-32 instead of 0 after centring
    squares = np.array([float(x @ x) if float(x.abs().max()) > 1e-9 else 0.0 for x, _ in centred])
    return products, squares


def _mean(values: np.ndarray, mask: np.ndarray) -> str:
    return f"{values[mask].mean():.3f}" if mask.any() else "none"
