"""Calibration and discrimination by counting, written from their definitions."""

from __future__ import annotations

import math


def ece(probabilities: list[float], outcomes: list[float], n_bins: int) -> float:
    total = 0.0
    for b in range(n_bins):
        rows = [
            i for i, p in enumerate(probabilities)
            if b / n_bins <= p < (b + 1) / n_bins or (b == n_bins - 1 and p == 1.0)
        ]  # fmt: skip
        if rows:
            gap = sum(probabilities[i] for i in rows) / len(rows) - sum(outcomes[i] for i in rows) / len(rows)
            total += len(rows) / len(probabilities) * abs(gap)
    return total


def auroc(scores: list[float], outcomes: list[int]) -> float:
    wins, pairs = 0.0, 0
    for x, positive in zip(scores, outcomes, strict=True):
        for y, other in zip(scores, outcomes, strict=True):
            if positive == 1 and other == 0:
                wins += 1.0 if x > y else 0.5 if x == y else 0.0
                pairs += 1
    return wins / pairs


def log_loss(probabilities: list[float], outcomes: list[float]) -> float:
    losses = [-math.log(p if y == 1 else 1 - p) for p, y in zip(probabilities, outcomes, strict=True)]
    return sum(losses) / len(losses)
