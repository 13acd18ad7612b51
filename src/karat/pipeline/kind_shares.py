"""How raters' time is parted between comparisons, ratings and labels: by what each is expected to say for a second.

Noise of ratings and labels, width of ties and seconds come from the answers that lie in the store, so that they are known better with
every batch. Knows scorers and judgements; the formulas are in `feedback.allocation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from karat.belief import difference
from karat.errors import InputError
from karat.feedback.allocation import KindRate, allocation, kind_rates, label_link, rating_noise, tie_width
from karat.feedback.simulated_kinds import SECONDS_PER_WRITTEN
from karat.pipeline.choosing import assumed_seconds, pace_of
from karat.records import Estimate, Judgement, Prompt, Response
from karat.reward.score import Scorer

KINDS_PARTED = ("comparison", "rating", "label")
MOST_PAIRS = 512
"""Pairs whose differences stand for all that could be asked."""


@dataclass(frozen=True)
class KindShares:
    """What each kind gets of the time, and why."""

    shares: dict[str, float]
    """Kind → share of the seconds, summing to 1."""
    rates: tuple[KindRate, ...]
    """What each says for a second, best first; a kind that nothing is known of is missing."""
    rating_sd: Estimate
    """Noise of a rating in logits."""
    label_scale: Estimate
    """Scale of a label's noise, 1/gain, in logits."""
    tie_width: Estimate
    """Half-width of ties in logits."""
    seconds: dict[str, float]
    """Kind → seconds of one answer."""


def kind_shares(
    scorer: Scorer,
    judgements: Sequence[Judgement],
    stored: tuple[Mapping[str, Prompt], Mapping[str, Response]],
    prompts: Mapping[str, Prompt],
    responses: Sequence[Response],
    rng: np.random.Generator,
    *,
    kinds: tuple[str, ...] = KINDS_PARTED,
) -> KindShares:
    """Shares of the time by information about a difference of scores: nearly all to the best kind, 5 % to each other.

    Args:
        judgements, stored: what was answered so far, with the store's prompts and responses by id.
        prompts, responses: what could be asked about now.    kinds: among which the time is parted.
    Raises: InputError where no prompt has two different responses.
    """
    known = [one for one in judgements if one.kind in kinds and "missing" not in one.value]
    scores = _scores(scorer, known, stored)
    rated = [one for one in known if one.kind == "rating" and "score" in one.value]
    sd = rating_noise(
        np.array([(one.value["score"] - one.value["low"]) / (one.value["high"] - one.value["low"]) for one in rated]),
        np.array([scores[one.response_ids[0]] for one in rated]),
        np.array([one.annotator for one in rated]),
    )
    labelled = [one for one in known if one.kind == "label" and one.value.get("good") is not None]
    scale, threshold = label_link(
        np.array([bool(one.value["good"]) for one in labelled], dtype=np.float64),
        np.array([scores[one.response_ids[0]] for one in labelled]),
        np.array([one.annotator for one in labelled]),
    )
    # an even scale offers no tie, so it says nothing of how wide ties are
    compared = [one for one in known if one.kind == "comparison" and one.value["n_levels"] % 2]
    width = tie_width(
        np.array([scores[one.response_ids[0]] - scores[one.response_ids[1]] for one in compared]),
        np.array([2 * one.value["level"] == one.value["n_levels"] - 1 for one in compared], dtype=bool),
    )
    delta, open_scores = _open_differences(scorer, prompts, responses, rng)
    seconds = {kind: pace_of(judgements, *stored, kind=kind).factor * mean_seconds(kind, prompts, responses)
               for kind in kinds}  # fmt: skip
    # without levels of their own known for prompts, only differences of ratings count: the careful of the two formulas
    rates = kind_rates(
        delta, open_scores, seconds, tie_width=width.value or 0.0, rating_sd=sd.value, label_threshold=threshold,
        label_gain=1 / (scale.value or 1.0),
    )  # fmt: skip
    return KindShares(allocation(rates, kinds), tuple(rates), sd, scale, width, seconds)


def _scores(
    scorer: Scorer, judgements: Sequence[Judgement], stored: tuple[Mapping[str, Prompt], Mapping[str, Response]]
) -> dict[str, float]:
    prompts, responses = stored
    own = [responses[one] for one in dict.fromkeys(name for each in judgements for name in each.response_ids)]
    if not own:
        return {}
    mean = scorer([prompts[one.prompt_id] for one in own], [one.text for one in own]).draws[..., 0].mean(0)
    return {one.id: float(score) for one, score in zip(own, mean, strict=True)}


def _open_differences(
    scorer: Scorer, prompts: Mapping[str, Prompt], responses: Sequence[Response], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the differences of pairs that could be asked, and the scores of their responses."""
    by_prompt: dict[str, dict[str, Response]] = {}
    for one in responses:
        by_prompt.setdefault(one.prompt_id, {})[one.id] = one
    pairs = [rng.permutation(list(own))[:2].tolist() for own in by_prompt.values() if len(own) > 1]
    if not pairs:
        raise InputError("collect: found no two different responses to a prompt; sample more responses")
    pairs = [pairs[i] for i in rng.permutation(len(pairs))[:MOST_PAIRS]]
    by_id = {one.id: one for one in responses}
    flat = [by_id[name] for pair in pairs for name in pair]
    belief = scorer([prompts[one.prompt_id] for one in flat], [one.text for one in flat])
    first = torch.arange(0, len(flat), 2)
    delta = difference(belief, first, first + 1).double().cpu().numpy()
    mean = belief.draws[..., 0].mean(0).double().cpu().numpy()
    return delta, mean


N_READ = {"comparison": 2, "demonstration": 0}
"""Responses that a question shows, where it is not one; rankings and best-of-k show all of a prompt's."""
WRITTEN_FRAC = {"demonstration": 1.0, "correction": 1 / 3, "critique": 1 / 3}
"""Words to be written, as a share of those of a response: a correction rewrites one sentence of about three."""


def mean_seconds(kind: str, prompts: Mapping[str, Prompt], responses: Sequence[Response]) -> float:
    """Assumed seconds of one answer, reading and writing, averaged over responses."""
    different = {one.id: one for one in responses}.values()
    n_read = N_READ.get(kind, 1)
    if kind in ("ranking", "best_of"):
        n_read = round(len(different) / max(1, len({one.prompt_id for one in different})))
    read = np.mean([assumed_seconds(prompts[one.prompt_id], *[one] * n_read) for one in different])
    n_words = np.mean([len(one.text.split()) for one in different])
    return float(read + SECONDS_PER_WRITTEN * WRITTEN_FRAC.get(kind, 0.0) * n_words)
