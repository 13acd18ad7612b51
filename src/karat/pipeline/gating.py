"""A reward before its gate: the prompts kept back for it, what is suspected in the votes, and every check.

A run and `karat reward --store` come through here alike. Knows votes, a fitted reward and its checks; knows nothing about
stages.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from karat.errors import InputError
from karat.prompts.splits import split
from karat.records import Finding, Prompt, Response, Vote
from karat.reward.attack import suspected_words
from karat.reward.baselines import LengthBaseline, length_baseline
from karat.reward.calibration import decided_probs, predicted_probs
from karat.reward.data import VoteData, vote_data
from karat.reward.gate import GateProbes, not_measured, run_gate
from karat.reward.held_out import GatedScorer
from karat.reward.raters import RaterPriors
from karat.reward.thresholds import GateSettings
from karat.statements import Statement
from karat.stats import wilson

GATE_FRAC = 0.15
"""Share of the judged prompts whose votes no gradient and no early stopping ever sees; they set one temperature, crossed."""
N_BINS = 8

Texts = tuple[Mapping[str, Prompt], Mapping[str, Response]]
"""Prompts and responses by id."""


class _OnPrompt(Protocol):
    @property
    def prompt_id(self) -> str:
        """Prompt.id of what was said."""
        ...


S = TypeVar("S", bound=_OnPrompt)


def gate_split(items: Sequence[S], *, frac: float = GATE_FRAC) -> tuple[list[S], list[S]]:
    """(what may be trained on, what the gate keeps): whole prompts by hash, the same ones for everything said of them."""
    if frac == 0:
        return list(items), []
    parts = split(items, {"fit": 1 - frac, "gate": frac}, key=lambda one: one.prompt_id, salt="gate")
    return parts["fit"], parts["gate"]


def main_votes(statements: Sequence[Statement]) -> list[Vote]:
    """The comparisons of the scale that has most of them: what baselines and the gate are held against."""
    votes = [one for one in statements if isinstance(one, Vote)]
    counts = Counter(vote.n_levels for vote in votes)
    return [vote for vote in votes if vote.n_levels == counts.most_common(1)[0][0]]


def suspects(data: VoteData, baseline: LengthBaseline) -> list[str]:
    """Words that win more often in the training votes than length explains; the gate looks what the reward makes of them."""
    probs = predicted_probs(baseline.scores(data.texts), data.columns, baseline.vote_model)
    p, outcome, decided = decided_probs(probs, data.columns)
    texts_a, texts_b = ([data.texts[i] for i in side[decided].tolist()] for side in (data.columns.a, data.columns.b))
    return suspected_words(texts_a, texts_b, p, outcome)


def through_gate(
    scorer: GatedScorer,
    train: Sequence[Vote],
    gate: Sequence[Vote],
    texts: Texts,
    *,
    priors: RaterPriors,
    settings: GateSettings,
    seed: int,
    probes: GateProbes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Finding], list[str]]:
    """Hold a reward against length, its calibration and everything that ought not to move it.

    Args:
        scorer: crossed, where the gate's votes have set its temperature (`cooling.CrossedScorer`).
        train: comparisons that it was fitted to.    gate: comparisons on prompts that it never saw.
        priors: of the length baseline's vote model.    probes: None = those for English text.
    Returns: the gate's findings, and the words that were under suspicion.
    """
    n_levels = scorer.vote_model.n_levels
    train, gate = ([vote for vote in votes if vote.n_levels == n_levels] for votes in (train, gate))
    if not train:
        return not_measured("no comparison was trained on, so that length alone predicts nothing"), []
    data = vote_data(train, *texts)
    try:
        baseline = length_baseline(data, priors)
    except InputError as error:
        return not_measured(str(error)), []
    words = suspects(data, baseline)
    tried = dataclasses.replace(probes or GateProbes(), suspects=words)
    found = run_gate(scorer, baseline, gate, *texts, seed=seed, settings=settings, probes=tried, progress=progress)
    return found, words


def calibration_bins(scorer: GatedScorer, votes: Sequence[Vote], texts: Texts) -> list[dict[str, Any]]:
    """Predicted and observed share of "a preferred" in bins of equal size, with Wilson intervals."""
    if not votes:
        return []
    data = vote_data(votes, *texts)
    probs = predicted_probs(scorer.logits(data.prompts, data.texts), data.columns, scorer.vote_model)
    p, outcome, _ = decided_probs(probs, data.columns)
    bins = []
    for members in np.array_split(np.argsort(p, kind="stable"), N_BINS):
        if len(members):
            share = wilson(float(outcome[members].sum()), len(members))
            bins.append({"predicted": float(p[members].mean()), "observed": share.value, "low": share.low,
                         "high": share.high, "n": len(members)})  # fmt: skip
    return bins
