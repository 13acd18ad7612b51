"""A panel of raters kept for evaluation: what they said trains nothing, sets nothing, and says how good the reward is.

Held-out raters set early stopping and temperature, held-out prompts the gate's temperature; both have had a say in the model
that they measure. The panel has had none. Knows statements and a fitted scorer; knows nothing about stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.pipeline.gating import Texts, main_votes
from karat.prompts.splits import split
from karat.reading import Said
from karat.records import Estimate, Finding, Vote
from karat.reward.calibration import decided_probs, predicted_probs, vote_nll
from karat.reward.data import vote_data
from karat.reward.held_out import GatedScorer
from karat.reward.length_use import correct
from karat.stats import mean_estimate, not_estimable, paired_difference

QUESTIONS = {
    "accuracy": "How often does the reward predict the decided votes of raters whom nothing was fitted to?",
    "accuracy_new_prompts": "How often on prompts that were kept for the gate, so that neither rater nor prompt is known?",
    "gain": "How much lower is −log P of their votes than without a reward (all responses equal), nats a vote?",
}


def without_panel(said: Said, frac: float) -> tuple[Said, list[Vote]]:
    """What may be trained and measured on, and the comparisons of the panel that were drawn at random.

    Whole raters by hash: the same ones in every round, whoever comes later. Votes that name nobody are many people's, and stay.

    Args:
        frac: share of the raters, [0, 0.5]; 0 = no panel.
    """
    if frac == 0:
        return said, []
    fractions = {"fit": 1 - frac, "panel": frac}
    parts = split(said.statements, fractions, key=lambda one: one.annotator, salt="panel")
    marks = split(said.marks, fractions, key=lambda one: one.annotator, salt="panel")
    unknown = [one for one in parts["panel"] if one.annotator == UNKNOWN_ANNOTATOR]
    nameless = [one for one in marks["panel"] if one.annotator == UNKNOWN_ANNOTATOR]
    kept = dataclasses.replace(
        said, statements=(*parts["fit"], *unknown), marks=(*marks["fit"], *nameless)
    )  # fmt: skip
    panel = [one for one in parts["panel"] if isinstance(one, Vote) and one.annotator != UNKNOWN_ANNOTATOR]
    return kept, [vote for vote in main_votes(panel) if vote.strategy == "random"]


def panel_findings(
    scorer: GatedScorer, panel: Sequence[Vote], kept_prompts: Collection[str], texts: Texts, rng: np.random.Generator
) -> list[Finding]:
    """How well the reward predicts the panel, intervals over its raters.

    Args:
        scorer: at the temperature of the gate's crossed halves, so that no vote of the panel had a part in it.
        panel: their comparisons.    kept_prompts: Prompt.id of those that the gate kept.
    """
    votes = [vote for vote in panel if vote.n_levels == scorer.vote_model.n_levels]
    figures = dict.fromkeys(QUESTIONS, not_estimable("no vote of the panel", 0))
    if votes:
        data = vote_data(votes, *texts)
        logits = scorer.logits(data.prompts, data.texts)
        probs = predicted_probs(logits, data.columns, scorer.vote_model)
        without = predicted_probs(logits.new_zeros(1, logits.shape[1]), data.columns, scorer.vote_model)
        raters = np.array([vote.annotator for vote in data.votes])
        p, outcome, rows = decided_probs(probs, data.columns)
        new = np.array([data.votes[int(row)].prompt_id in kept_prompts for row in rows], dtype=bool)
        right = np.asarray(correct(p, outcome), dtype=np.float64)
        figures = {
            "accuracy": _over_raters(right, raters[rows], rng),
            "accuracy_new_prompts": _over_raters(right[new], raters[rows][new], rng),
            "gain": paired_difference(
                vote_nll(without, data.columns).numpy(), vote_nll(probs, data.columns).numpy(), raters, rng
            ),
        }
    who = len({vote.annotator for vote in votes})
    said = f"{len(votes)} votes of {who} raters of the panel, drawn at random"
    return [
        Finding(f"panel.{name}", QUESTIONS[name], "not measured" if one.value is None else "info", one, said)
        for name, one in figures.items()
    ]


def _over_raters(right: np.ndarray, raters: np.ndarray, rng: np.random.Generator) -> Estimate:
    if not len(right):
        return not_estimable("no decided vote of the panel on such prompts", 0)
    return mean_estimate(right, raters, rng)
