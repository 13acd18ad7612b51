"""How far one temperature serves everybody: calibration by group of raters and by kind of feedback, on held-out judgements.

Knows scorers, statements and who is of which group; fits nothing that is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from karat.records import Annotator, Estimate, Finding, Prompt, Response, Vote
from karat.reward.calibration import MIN_SLICE, SliceCalibration, slice_calibration
from karat.reward.data import feedback_data, vote_data
from karat.reward.held_out import GatedScorer
from karat.reward.prediction import kind_calibration
from karat.reward.score import scorer_of
from karat.reward.train import RewardFit
from karat.statements import Statement

Slices = dict[str, dict[str, SliceCalibration]]
"""`group` or `kind` → its name → figures."""
UNDECLARED = "not declared"
"""Raters who gave no group."""
METHOD = "temperature relative to the model's; profile likelihood, 95 %, judgements taken as independent"


def calibration_slices(
    scorer: GatedScorer,
    fit: RewardFit,
    votes: Sequence[Vote],
    said: Sequence[Statement],
    texts: tuple[Mapping[str, Prompt], Mapping[str, Response]],
    annotators: Mapping[str, Annotator],
    *,
    ordinal: bool = False,
) -> Slices:
    """Calibration of held-out judgements by declared group of their raters and by kind.

    Args:
        scorer: all models as one, for votes.    fit: the first model, whose thresholds other kinds are read with.
        votes: held-out votes of the scale that `scorer.vote_model` knows.    said: everything that was held out.
        ordinal: how ratings are read.
    Returns: groups only where raters declared more than one; {} where nothing was held out.
    """
    slices: Slices = {}
    known = [vote for vote in votes if vote.n_levels == scorer.vote_model.n_levels]
    if known:
        data = vote_data(known, *texts)
        logits = scorer.logits(data.prompts, data.texts)
        groups = [annotators[vote.annotator].group or UNDECLARED for vote in known]
        if len(set(groups)) > 1:
            slices["group"] = slice_calibration(logits, data.columns, scorer.vote_model, groups)
        slices["kind"] = slice_calibration(logits, data.columns, scorer.vote_model, [main_scale(known)] * len(known))
    main, read = fit.model.objectives[0], {vote.judgement_id for vote in known}
    others = [one for one in said if one.objective == main and one.judgement_id not in read]
    if fit.params is not None and others:
        other = feedback_data(others, *texts, objectives=fit.model.objectives, ordinal=ordinal)
        raw = scorer_of(fit).every(other.prompts, other.texts) * float(fit.model.temperature)  # of the first objective
        if fit.zero is not None:
            raw = raw - fit.zero[:, None]
        found = kind_calibration(
            raw, other.batch, fit.params, fit.vote_model.priors, temperature=float(fit.model.temperature)
        )
        slices["kind"] = slices.get("kind", {}) | found
    return slices


def main_scale(votes: Sequence[Vote]) -> str:
    """The name of the votes' scale among kinds: `comparison/3`."""
    return f"{votes[0].kind}/{votes[0].n_levels}"


def slice_rows(slices: Slices) -> dict[str, dict[str, dict[str, Any]]]:
    """The same as plain values, for manifests."""
    return {by: {name: dataclasses.asdict(one) for name, one in own.items()} for by, own in slices.items()}


def slice_findings(slices: Slices) -> list[Finding]:
    """A finding for each slice, for the report; a warning where its own temperature would predict it better."""
    findings = []
    for by, own in slices.items():
        for name, one in own.items():
            better = one.nll_corrected is not None and one.nll_corrected < one.nll
            off = better and one.low is not None and one.high is not None and not one.low <= 1 <= one.high
            if one.temperature is None:
                why = f"{one.n} held-out judgements; a temperature of their own takes {MIN_SLICE}"
                estimate = Estimate(None, None, None, one.n, why)
            else:
                estimate = Estimate(one.temperature, one.low, one.high, one.n, METHOD)
            detail = f"−log P {one.nll:.3f} nats a judgement"
            if one.nll_corrected is not None:
                detail += f", {one.nll_corrected:.3f} at a temperature of its own (crossed over halves)"
            # `comparison/3` of the kinds is a scale
            said = name.replace("/", " with ") + " levels" * ("/" in name) if by == "kind" else repr(name)
            question = (
                f"Are probabilities right for the {by} {said}? Above 1 they are too sure, below 1 not sure enough."
            )
            findings.append(
                Finding(f"reward.calibration.{by}.{name}", question, "warn" if off else "info", estimate, detail)
            )
    return findings
