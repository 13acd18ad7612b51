"""The choice model on trial, from a store: what its votes say against the model that every reward here is learnt with.

Knows the store; the figures are `karat.feedback.quality.on_trial`'s and `scale_trial`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from karat.feedback.detect.evidence import vote_record
from karat.feedback.quality.on_trial import Check, Drift, LinkTrial, drift, predictive_checks, rival_links
from karat.feedback.quality.ordinal import Comparisons
from karat.feedback.quality.rater_health import comparisons_of
from karat.feedback.quality.reliability import fit_priors
from karat.feedback.quality.scale_trial import mean_against_median, sign_flips
from karat.feedback.snapshot import current_judgements, of_work
from karat.feedback.store import Store
from karat.records import Estimate, Judgement


@dataclass(frozen=True)
class Trial:
    """What was found."""

    n_votes: int
    """Comparisons that count."""
    n_raters: int
    """Raters who gave them."""
    checks: tuple[Check, ...]
    """Figures of the votes beside the model's."""
    links: tuple[LinkTrial, ...]
    """Rival links on held-out votes."""
    drifts: tuple[Drift, ...]
    """Traits whose weight may move with time; () = times are not known."""
    mean_not_median: Estimate
    """Pairs of which mean and median strength say the opposite."""
    sign_flips: tuple[tuple[str, Estimate], ...]
    """By attribute of ratings, pairs whose order of means another reading of the scale turns round."""


def trial(store: Store, rng: np.random.Generator) -> Trial:
    """Put the choice model on trial with the votes of a store, silent checks and quarantined raters left out.

    Raises: InputError for too few comparisons.
    """
    records, _ = current_judgements(of_work(store, store.records()))
    current = [record.judgement for record in records if "missing" not in record.judgement.value]
    responses = store.responses()
    named = [one for one in current if one.kind == "comparison"]
    record = vote_record(named, responses)
    votes = comparisons_of(record).one_way()  # two raters agree, and a pair has a median, in one direction only
    prompt = {each.text: each.prompt_id for each in responses.values()}
    _, group = np.unique([prompt[text] for text in record.texts], return_inverse=True)
    links = rival_links(votes, rng)  # says it first where votes are too few
    _, fit = fit_priors(votes)
    time = record.submitted_at if len(record.submitted_at) else np.full(len(votes), np.nan)
    return Trial(
        n_votes=len(votes),
        n_raters=len(np.unique(record.annotator)),
        checks=tuple(predictive_checks(votes, fit, record.item, group, rng)),
        links=tuple(links),
        drifts=tuple(drift(votes, fit, _traits(votes, record.texts), time, rng)),
        mean_not_median=mean_against_median(votes.level, votes.n_levels, record.item),
        sign_flips=tuple(_flips(current, rng)),
    )


def _traits(votes: Comparisons, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Differences a − b of what can be read off a text or a page."""
    length = np.log([max(1, len(text.split())) for text in texts])
    traits = {"log-length": length[votes.a] - length[votes.b], "shown first": votes.side.astype(float)}
    return {name: each for name, each in traits.items() if each.any()}


def _flips(current: Sequence[Judgement], rng: np.random.Generator) -> list[tuple[str, Estimate]]:
    """By attribute; one scale at a time, because readings of two scales have nothing in common."""
    columns: dict[tuple[str, float, float], list[tuple[float, str, str]]] = {}
    for one in current:
        if one.kind != "rating" or len(one.response_ids) != 1:
            continue
        scores = one.value.get("scores") or {"rating": one.value.get("score")}
        for name, score in scores.items():
            if score is not None:
                key = (name, one.value["low"], one.value["high"])
                columns.setdefault(key, []).append((float(score), one.response_ids[0], one.prompt_id))
    found = []
    for (name, low, high), rows in sorted(columns.items()):
        score, response, prompt = zip(*rows, strict=True)
        names, index = np.unique(response, return_inverse=True)
        of = dict(zip(response, prompt, strict=True))
        _, group = np.unique([of[each] for each in names.tolist()], return_inverse=True)
        found.append((f"{name}, {low:g}–{high:g}", sign_flips(np.array(score), index, group, rng)))
    return found
