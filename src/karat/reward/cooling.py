"""How sure a reward may be of prompts it never saw: one more temperature, and a scorer by which to measure it.

The temperature of training comes from raters who were held out, on prompts that were not; new prompts are where a
policy is optimised, and scores vary too much there. The gate's votes are on such prompts. They are few, so each half of
their prompts gives the temperature by which the other half is judged, and all of them the one that is kept. Knows fitted
rewards and votes; knows nothing about where votes come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from karat.records import Estimate, Finding, Prompt, Response, Vote
from karat.reward.calibration import (
    VoteModel,
    at_end_of_search,
    end_of_search,
    halved_temperature,
    predicted_probs,
    vote_nll,
)
from karat.reward.data import vote_data
from karat.reward.fit import FittedReward, cooled
from karat.reward.held_out import GatedScorer
from karat.statements import PREFERENCE

FEWEST_VOTES = 200
"""Votes on new prompts from which a temperature is fitted: its standard error is then about a quarter of it."""
NAME, QUESTION = "reward.temperature_prompts", "How much too sure is it of prompts that it never saw?"


@dataclass(frozen=True, eq=False)
class CrossedScorer:
    """A scorer that answers for each prompt at the temperature that other prompts' votes gave: to measure, not to use."""

    scorer: GatedScorer
    """At the temperature of all votes."""
    factors: Mapping[str, float]
    """Prompt.id → what its logits are multiplied with; 1 for other prompts."""
    asked: dict[tuple[str, ...], Float[Tensor, "S N"]] = field(default_factory=dict)
    """What was asked for before: the gate, bins and slices of calibration read the same held-out texts."""

    @property
    def vote_model(self) -> VoteModel:
        """That of the scorer."""
        return self.scorer.vote_model

    def logits(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[Tensor, "S N"]:
        """Logits of each head, one prompt and one text a column."""
        key = (*(prompt.id for prompt in prompts), *texts)
        if key not in self.asked:
            found = self.scorer.logits(prompts, texts)
            factors = torch.tensor([self.factors.get(prompt.id, 1.0) for prompt in prompts], dtype=found.dtype)
            self.asked[key] = found * factors
        return self.asked[key]


def cooled_on_new_prompts(
    fitted: FittedReward, votes: Sequence[Vote], prompts: Mapping[str, Prompt], responses: Mapping[str, Response]
) -> tuple[FittedReward, dict[str, float], Finding]:
    """The reward at the temperature of votes on prompts that it never saw, and what to measure it with there.

        logits ← logits/T,    T = argmin Σ_c −log P(vote c | Δ/T)    over all of these votes
        factor of a prompt in one half = T/T′,    T′ = the same over the other half's votes

    Args:
        votes: on questions drawn at random, on prompts never trained on; those of another scale than the vote model's
            say nothing here.
    Returns: the reward (unchanged where too few votes are there, or it scores no preference), the factors of
        `CrossedScorer`, and the finding.
    Source: Guo et al. 2017, arXiv:1706.04599 §4.2, for the ordinal link; crossing over halves as in `slice_calibration`.
    """
    model = fitted.members[0].model
    if not model.scores_preference:  # a reward from elsewhere, all of whose objectives have names of their own
        stays = f"the temperature of {model.objectives[0]} stays"
        detail = f"comparisons speak of {PREFERENCE}, which this reward does not score; {stays}"
        return fitted, {}, Finding(NAME, QUESTION, "not measured", detail=detail)
    votes = [vote for vote in votes if vote.n_levels == fitted.vote_model.n_levels]
    side = {vote.prompt_id: _half(vote.prompt_id) for vote in votes}
    n_other = sum(side[vote.prompt_id] for vote in votes)
    if len(votes) < FEWEST_VOTES or n_other in (0, len(votes)):
        detail = f"{len(votes)} votes on such prompts; needs {FEWEST_VOTES}"
        return fitted, {}, Finding(NAME, QUESTION, "not measured", detail=detail)
    data = vote_data(votes, prompts, responses)
    logits = fitted.scorer.logits(data.prompts, data.texts)
    halves = torch.tensor([side[vote.prompt_id] for vote in votes])

    def sums_at(temperature: float) -> Float[Tensor, " 2"]:
        each = vote_nll(predicted_probs(logits, data.columns, fitted.vote_model, temperature=temperature), data.columns)
        return each.new_zeros(2).index_add(0, halves, each)

    found = halved_temperature(sums_at, len(votes))
    factors = {prompt_id: found.best / found.of_half[1 - half] for prompt_id, half in side.items()}
    method = "temperature relative to the training's; profile likelihood, 95 %, votes taken as independent"
    estimate = Estimate(found.best, found.low, found.high, len(votes), method)
    first, second = found.of_half
    detail = f"logits are divided by it; by halves of the prompts {first:.2f} and {second:.2f}"
    detail += f"; {words}" if (words := end_of_search(estimate)) else ""
    status = "warn" if at_end_of_search(found.best) else "info"
    return cooled(fitted, found.best), factors, Finding(NAME, QUESTION, status, estimate, detail=detail)


def _half(prompt_id: str) -> int:
    """0 or 1 by the prompt's hash alone: more votes move no prompt to the other half."""
    return hashlib.sha256(f"temperature {prompt_id}".encode()).digest()[0] % 2
