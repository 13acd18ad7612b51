"""Held-out responses with the scores that every check of the gate starts from.

Knows a scorer, votes and texts; knows no threshold and gives no verdict.

Dimension letters: S heads, N texts, C comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from karat.errors import InputError
from karat.figures import figure
from karat.records import Estimate, Prompt
from karat.reward.calibration import VoteModel
from karat.reward.data import VoteData


class GatedScorer(Protocol):
    """What the gate asks of a reward model; `reward.score.Scorer` answers it."""

    @property
    def vote_model(self) -> VoteModel:
        """What turns differences of logits into probabilities for a new rater."""
        ...

    def logits(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> torch.Tensor:
        """Logits [S, N] of each head, one prompt and one text a column."""
        ...


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The responses to prompts that no gradient saw, scored once."""

    scorer: GatedScorer
    """The reward model."""
    data: VoteData
    """Their votes, all on questions drawn at random."""
    scores: Float[Tensor, " N"]
    """Mean logit of each text."""
    spread: float
    """Pooled within-prompt standard deviation of the scores, logits: the unit of every gain."""
    seed: int
    """Of everything that a check draws."""

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[Tensor, " N"]:
        """Mean logit of other texts."""
        return self.scorer.logits(prompts, texts).mean(0)


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt."""

    prompt: Prompt
    """What they answer."""
    better: str
    """The response with the higher score."""
    worse: str
    """The other."""
    gap_sd: float
    """Difference of their scores in within-prompt sd, ≥ 0."""


def held_out_scores(scorer: GatedScorer, data: VoteData, logits: Float[Tensor, "S N"], *, seed: int) -> HeldOut:
    """Put held-out texts and their logits together.

    Raises: InputError where the responses to every prompt have the same score: nothing could be compared.
    """
    scores = logits.mean(0)
    return HeldOut(scorer, data, scores, within_prompt_sd(scores, data.groups), seed)


def voted_pairs(held: HeldOut, rng: np.random.Generator, *, margin_sd: float = 0.0) -> list[Pair]:
    """One pair a prompt, drawn at random among those that were voted on and that the scores tell apart.

    One, because the pairs of a prompt share its responses: intervals over pairs are then intervals over prompts.

    Args:
        margin_sd: smallest difference of the scores in within-prompt sd; equal scores never count.
    """
    found: dict[str, dict[tuple[int, int], None]] = {}
    columns = held.data.columns
    for a, b in zip(columns.a.tolist(), columns.b.tolist(), strict=True):
        gap = float(held.scores[a] - held.scores[b]) / held.spread
        if gap != 0 and abs(gap) >= margin_sd:
            found.setdefault(held.data.prompts[a].id, {})[(a, b) if gap > 0 else (b, a)] = None
    pairs = []
    for candidates in found.values():
        better, worse = list(candidates)[int(rng.integers(len(candidates)))]
        gap = float(held.scores[better] - held.scores[worse]) / held.spread
        texts = held.data.texts
        pairs.append(Pair(held.data.prompts[better], texts[better], texts[worse], gap))
    return pairs


def within_prompt_sd(scores: Float[Tensor, " N"], groups: Sequence[Sequence[int]]) -> float:
    """√(Σ_p Σ_{i ∈ p} (s_i − s̄_p)² / Σ_p (n_p − 1)).

    Raises: InputError when no prompt has two responses with different scores.
    """
    total, free = 0.0, 0
    for members in groups:
        own = scores[list(members)]
        total += float((own - own.mean()).square().sum())
        free += len(members) - 1
    if free == 0 or total == 0:
        raise InputError("gate: found no prompt with two responses of different scores; expected some")
    return (total / free) ** 0.5


def said(estimate: Estimate) -> str:
    """`0.123 [0.100, 0.150]`, or why there is no number."""
    return figure(estimate.value, estimate.low, estimate.high, missing=f"not estimable ({estimate.method})")
