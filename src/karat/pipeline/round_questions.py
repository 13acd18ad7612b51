"""The questions of a round of a run: comparisons, and whatever else `collect.kinds` gives a share of raters' time.

Knows samples, settings and the store; knows nothing about who answers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from karat.feedback.store import Store
from karat.feedback.tasks import random_tasks
from karat.pipeline.choosing import comparisons, pace_of
from karat.pipeline.collect_settings import AUTO, CollectSettings
from karat.pipeline.data import Texts
from karat.pipeline.kind_shares import KINDS_PARTED, KindShares, kind_shares, mean_seconds
from karat.pipeline.people import add_for_later, as_a_page_asks
from karat.pipeline.settings import RunConfig
from karat.ranking import MOST_TIED_CANDIDATES
from karat.records import Finding, Judgement, Prompt, Response, Task
from karat.reward.score import Scorer
from karat.seeding import numpy_generator

KINDS_FINDING = "collect.kinds"


@dataclass(frozen=True)
class Advice:
    """What the rounds before know of a round's questions."""

    scorer: Scorer | None = None
    """The reward model of the round before, or a given one; None = there is none."""
    answered: Collection[str] = ()
    """Judgement.id of everything that earlier rounds were told: a round that is begun again plans by the same."""


def ask_round(
    store: Store, samples: Texts, config: RunConfig, *, seed: int, batch: str, writer: str, advice: Advice
) -> tuple[list[Finding], dict[str, Any]]:
    """Put a round's questions about samples into the store.

    Args:
        writer: Response.source of the samples.
    Returns: what choosing and parting is expected to gain, and by kind its share, seconds and questions ({} = comparisons
        alone).
    """
    collect, prompts = config.collect, {prompt.id: prompt for prompt in samples.prompts}
    responses = [
        Response(prompt.id, text, writer, number)
        for prompt, texts in zip(samples.prompts, samples.texts, strict=True)
        for number, text in enumerate(texts)
    ]
    # simulated raters answer first; the people's part is opened when theirs is in, so that neither takes the other's
    overlap = collect.overlap - config.n_people or collect.overlap
    plan, about = _plan(store, collect, prompts, responses, numpy_generator(seed, "kinds", batch), advice)
    chooser = advice.scorer if collect.acquisition != "random" else None
    tasks, findings = comparisons(
        collect, samples.prompts, responses, numpy_generator(seed, "tasks"), scorer=chooser,
        n_tasks=plan["comparison"]["n_tasks"] if plan else collect.n_tasks,
    )  # fmt: skip
    tasks = [replace(task, overlap=overlap, batch=batch) for task in tasks]
    others = {kind: row["n_tasks"] for kind, row in plan.items() if kind != "comparison"}
    tasks += _at_random(others, _by_prompt(responses, MOST_TIED_CANDIDATES), seed=seed, batch=batch)
    marks = {"step_marks": collect.n_step_marks, "span_marks": collect.n_span_marks}
    tasks += _at_random(marks, _by_prompt(responses), seed=seed, batch=batch)
    for kind, row in plan.items():  # what there was to ask may be less than what was planned
        row["n_tasks"] = sum(task.kind == kind for task in tasks)
    if config.n_people:
        tasks = as_a_page_asks(store, tasks, collect.principle)
        tasks = [replace(task, stop_after=collect.stop_after) if task.overlap > 1 else task for task in tasks]
    store.add_prompts(samples.prompts)
    store.add_responses(responses)
    if 0 < config.n_people < collect.overlap:
        add_for_later(store, tasks)
    else:
        store.add_tasks(tasks)
    return findings + about, plan


def _plan(
    store: Store, collect: CollectSettings, prompts: Mapping[str, Prompt], responses: Sequence[Response],
    rng: np.random.Generator, advice: Advice,
) -> tuple[dict[str, dict[str, Any]], list[Finding]]:  # fmt: skip
    """Kind → share of the time, seconds of an answer, and how many questions that is; comparisons first."""
    shares = collect.time_shares
    if not shares:
        return {}, []
    known = [one for one in store.judgements() if one.id in advice.answered]
    stored = store.prompts(), store.responses()
    parted: KindShares | None = None
    if (auto := shares.pop(AUTO, 0.0)) > 0:
        even = dict.fromkeys(KINDS_PARTED, 1 / len(KINDS_PARTED))  # nothing is known of anybody yet
        if advice.scorer is not None and known:
            parted = kind_shares(advice.scorer, known, stored, prompts, responses, rng)
        for kind, share in with_comparisons(even if parted is None else parted.shares, collect.random_frac).items():
            shares[kind] = shares.get(kind, 0.0) + auto * share
    shares = {"comparison": shares.pop("comparison"), **shares}
    seconds = {kind: _seconds(kind, known, stored, prompts, responses) for kind in shares}
    budget = collect.n_tasks * collect.overlap * seconds["comparison"]
    plan: dict[str, dict[str, Any]] = {}
    for kind, share in shares.items():
        n_raters = collect.overlap if kind == "comparison" else 1
        plan[kind] = {
            "share": share,
            "seconds": seconds[kind],
            "n_tasks": round(share * budget / (n_raters * seconds[kind])),
        }
    plan["comparison"]["n_tasks"] = max(1, plan["comparison"]["n_tasks"])
    said = ", ".join(f"{row['share']:.0%} for {_questions(kind, row['n_tasks'])}" for kind, row in plan.items())
    return plan, [Finding(KINDS_FINDING, "What was raters' time spent on?", "info", detail=said + _why(parted))]


def _questions(kind: str, n: int) -> str:
    named = kind.replace("_", " ")
    return f"{named} ({n} question{'' if n == 1 else 's'})"


def with_comparisons(shares: dict[str, float], least: float) -> dict[str, float]:
    """The shares with at least so much for comparisons: gate, temperature and agreement are measured on nothing else.

    >>> with_comparisons({"comparison": 0.05, "rating": 0.95}, 0.2)
    {'comparison': 0.2, 'rating': 0.8}
    """
    own, rest = shares["comparison"], 1 - shares["comparison"]
    if own >= least or rest <= 0:
        return shares
    return {kind: least if kind == "comparison" else share * (1 - least) / rest for kind, share in shares.items()}


def _seconds(
    kind: str,
    known: Sequence[Judgement],
    stored: tuple[Mapping[str, Prompt], Mapping[str, Response]],
    prompts: Mapping[str, Prompt],
    responses: Sequence[Response],
) -> float:
    return pace_of(known, *stored, kind=kind).factor * mean_seconds(kind, prompts, responses)


def _why(parted: KindShares | None) -> str:
    """What each kind was found to say for a second, where that decided."""
    if parted is None:
        return ""
    return "; for a minute: " + ", ".join(f"{one.kind} {60 * one.rate:.3f}/logit²" for one in parted.rates)


def _at_random(wanted: Mapping[str, int], texts: Mapping[str, list[str]], *, seed: int, batch: str) -> list[Task]:
    """So many questions of each kind, drawn at random, one rater each."""
    return [
        task
        for kind, n_tasks in wanted.items()
        if n_tasks > 0
        for task in random_tasks(texts, kind, n_tasks, numpy_generator(seed, "tasks", kind), batch=batch)  # type: ignore[arg-type]
    ]


def _by_prompt(responses: Sequence[Response], most: int | None = None) -> dict[str, list[str]]:
    """Response.ids under their Prompt.id, at most so many different ones each."""
    found: dict[str, dict[str, None]] = {}
    for response in responses:
        found.setdefault(response.prompt_id, {})[response.id] = None
    return {prompt_id: list(own)[:most] for prompt_id, own in found.items()}
