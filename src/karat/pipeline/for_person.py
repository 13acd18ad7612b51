"""Scores for one person: each response by her own reward, and the order of a prompt's responses, inside the population's limits.

Knows files of responses and what `personalise` kept of a person; how limits and tastes are weighed is in
`karat.reward.personal`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from karat.belief import to_reference
from karat.destinations import check_file_place
from karat.errors import InputError
from karat.records import Prompt
from karat.reward.objectives import ObjectivesConfig
from karat.reward.people import PeopleModel, features_of, in_chunks, load_people
from karat.reward.person_file import load_person
from karat.reward.personal import MISSPELT, Limits, broken_principles, person_scores, ranked, ruling
from karat.reward.score import Scorer, load_scorer
from karat.rowfiles import Row, prompt_in, read_rows, write_rows


@dataclass(frozen=True)
class ScoredFor:
    """What came of scoring for one person."""

    n_responses: int
    """Rows written."""
    n_outside: int
    """Responses that the population's limits do not allow."""
    n_prompts: int
    """Different prompts."""
    n_without_winner: int
    """Prompts of which no response is allowed, so that none wins."""


def score_for_person(
    reward: Path, person: Path, responses: Path, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> ScoredFor:
    """Score and rerank the responses of a file for one person, inside the population's limits.

    Args:
        responses: JSON lines with `prompt` and `response`, and `labels` (names of principles that experts found broken).
        out: the same rows with `score` (the reward model's), `person_score` and `person_sd` (hers, relative to the
            training responses), `allowed`, `why_not`, `person_rank` among the prompt's responses (1 = best) and `wins`:
            at most one a prompt, and none where no response is allowed.
    Raises: InputError, naming the row, for a label that is nearly a principle, or a field that is nearly `labels`.
    """
    check_file_place(out)
    scorer, model = load_scorer(reward), load_people(reward)
    saved = load_person(person, model, reward)
    rows = read_rows(responses)
    prompts = [prompt_in(row) for row in rows]
    texts = [row.need("response", str) for row in rows]
    broken = [_labels(row, model.limits) for row in rows]
    psi, objectives = _scored(scorer, model, prompts, texts, progress)
    features = psi - model.features.centre
    mean, spread = person_scores(model.users, saved.person, features)
    verdict = ruling(model.limits, objectives, broken)
    by_prompt: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt.id, []).append(i)
    place = np.zeros(len(rows), dtype=int)
    for members in by_prompt.values():
        own = ruling(model.limits, {k: v[members] for k, v in objectives.items()}, [broken[i] for i in members])
        for number, position in enumerate(ranked(mean[members], own), start=1):
            place[members[position]] = number
    n_rows = write_rows(
        out,
        (
            {
                **row.values, "score": float(psi[i, 0]), "person_score": float(mean[i]), "person_sd": float(spread[i]),
                "allowed": bool(verdict.allowed[i]), "why_not": verdict.reasons[i], "person_rank": int(place[i]),
                "wins": bool(verdict.allowed[i] and place[i] == 1), "n_votes": saved.person.n_votes,
            }
            for i, row in enumerate(rows)
        ),
    )  # fmt: skip
    n_lost = sum(not verdict.allowed[members].any() for members in by_prompt.values())
    return ScoredFor(n_rows, int((~verdict.allowed).sum()), len(by_prompt), n_lost)


def _scored(
    scorer: Scorer,
    model: PeopleModel,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """ψ of each text, and the scores of every objective relative to the reference."""
    each = replace(scorer, objectives=ObjectivesConfig())  # floors are on the objectives themselves, not on their mix
    psi, relative, names = [], [], ()
    n_done = 0
    for some_prompts, some in in_chunks(prompts, texts):
        psi.append(features_of(scorer, model.features, some_prompts, some))
        belief = each(some_prompts, some)
        relative.append(to_reference(belief).mean(0))
        names = belief.objectives
        n_done += len(some)
        if progress is not None:
            progress(n_done, len(texts))
    columns = torch.cat(relative).double().numpy()
    return np.concatenate(psi), {name: columns[:, o] for o, name in enumerate(names)}


def _labels(row: Row, limits: Limits) -> tuple[str, ...]:
    if limits.principles and "labels" not in row.values:
        plain = {name.casefold(): name for name in row.values}
        if near := difflib.get_close_matches("labels", plain, n=1, cutoff=MISSPELT):
            raise InputError(
                f"{row.at}: found the field {plain[near[0]]!r}; did you mean 'labels'? A misspelt field would let the response win"
            )
    labels = row.get("labels", list, [])
    if not all(isinstance(one, str) for one in labels):
        raise InputError(f"{row.at}: found labels {labels!r}; expected a list of names")
    with row.named():
        broken_principles(limits, labels)
    return tuple(labels)
