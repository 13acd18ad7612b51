"""Which questions to ask, and an answer in the form of the question. Pure; knows neither stores nor raters' minds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from karat.errors import InputError
from karat.records import Judgement, Kind, Origin, Task

MOST_LEVELS = 101
"""Of a comparison that comes in: as many as a slider from 0 to 100 has; each is a cut point to fit."""


def checked_levels(n_levels: int) -> int:
    """The levels of a comparison that comes in. Raises: InputError above MOST_LEVELS; what a store has is read."""
    if n_levels > MOST_LEVELS:
        raise InputError(
            f"found n_levels = {n_levels}; expected 2 to {MOST_LEVELS}: give two scores as ratings instead"
        )
    return n_levels


def random_pairs(
    responses_by_prompt: Mapping[str, Sequence[str]],
    n_tasks: int,
    rng: np.random.Generator,
    *,
    overlap: int = 1,
    guideline: str = "v1",
    batch: str = "main",
) -> list[Task]:
    """Comparisons drawn uniformly, without replacement, from all pairs of responses to the same prompt.

        propensity of each pair = n_tasks / n_pairs

    Args:
        responses_by_prompt: Response.ids under their Prompt.id; a repeated id counts once.
        n_tasks: how many pairs to draw.    overlap: how many raters are to answer each, ≥ 1.
    Returns: tasks of strategy "random"; which response is a and which b is a fair coin.
    Raises: InputError where there are fewer pairs than tasks.
    """
    pairs: list[tuple[str, str, str]] = []
    for prompt_id in sorted(responses_by_prompt):
        ids = list(dict.fromkeys(responses_by_prompt[prompt_id]))
        pairs += [(prompt_id, ids[i], ids[j]) for i in range(len(ids)) for j in range(i + 1, len(ids))]
    if not 0 < n_tasks <= len(pairs):
        raise InputError(
            f"random_pairs: found {len(pairs)} pairs of different responses for {n_tasks} tasks; "
            "sample more responses or ask for fewer tasks"
        )
    drawn = rng.choice(len(pairs), size=n_tasks, replace=False)
    swapped = rng.random(n_tasks) < 0.5
    tasks = []
    for index, swap in zip(drawn, swapped, strict=True):
        prompt_id, first, second = pairs[index]
        tasks.append(
            Task(
                prompt_id=prompt_id,
                response_ids=(second, first) if swap else (first, second),
                overlap=overlap,
                strategy="random",
                propensity=n_tasks / len(pairs),
                guideline=guideline,
                batch=batch,
            )
        )
    return tasks


def random_tasks(
    responses_by_prompt: Mapping[str, Sequence[str]],
    kind: Kind,
    n_tasks: int,
    rng: np.random.Generator,
    *,
    n_responses: int | None = None,
    overlap: int = 1,
    guideline: str = "v1",
    batch: str = "main",
) -> list[Task]:
    """Tasks of any kind, drawn uniformly, without replacement, from all that the responses allow.

    comparison: pairs of one prompt's responses; ranking, best_of: one set of a prompt's responses a prompt;
    demonstration: the prompt alone; every other kind: one response.

    Args:
        responses_by_prompt: Response.ids under their Prompt.id; a repeated id counts once.
        n_tasks: how many to draw; fewer are drawn where there are fewer.
        n_responses: ranking, best_of: responses of a set, ≥ 2; None = all of the prompt's.
        overlap: how many raters are to answer each, ≥ 1.
    Returns: tasks of strategy "random" with their propensity; the identity order is itself drawn.
    Raises: InputError where nothing can be asked.
    """
    if kind == "comparison":
        sets = [len(set(ids)) for ids in responses_by_prompt.values()]
        n_pairs = sum(n * (n - 1) // 2 for n in sets)
        return random_pairs(
            responses_by_prompt, min(n_tasks, n_pairs), rng, overlap=overlap, guideline=guideline, batch=batch
        )
    targets: list[tuple[str, tuple[str, ...]]] = []
    for prompt_id in sorted(responses_by_prompt):
        ids = list(dict.fromkeys(responses_by_prompt[prompt_id]))
        if kind == "demonstration":
            targets.append((prompt_id, ()))
        elif kind in ("ranking", "best_of"):
            n = len(ids) if n_responses is None else n_responses
            if min(n, len(ids)) >= 2:
                targets.append((prompt_id, tuple(ids[i] for i in rng.permutation(len(ids))[:n])))
        else:
            targets += [(prompt_id, (one,)) for one in ids]
    if not targets or n_tasks < 1:
        raise InputError(f"random_tasks: found nothing to ask as {kind} for {n_tasks} tasks; add responses or tasks")
    n_drawn = min(n_tasks, len(targets))
    return [
        Task(
            prompt_id=targets[index][0],
            response_ids=targets[index][1],
            kind=kind,
            overlap=overlap,
            strategy="random",
            propensity=n_drawn / len(targets),
            guideline=guideline,
            batch=batch,
        )
        for index in rng.choice(len(targets), size=n_drawn, replace=False)
    ]


def plan_overlap(
    tasks: Sequence[Task], strata: Mapping[str, str], overlap: Mapping[str, int], *, stop_after: int = 0
) -> list[Task]:
    """Tasks with the number of answers that their stratum wants.

        overlap = max(own, of the stratum)        stop_after = own, or the plan's where a task has none

    An early stop that would need the whole overlap is none. Tasks for experts or for one rater stay as they are.

    Args:
        strata: stratum of each task, by Task.id (a topic, a difficulty); a task left out is of stratum "".
        overlap: answers wanted by stratum, ≥ 1; "*" = every other stratum. One that is not named wants what it did.
        stop_after: equal answers that suffice (`Task.stop_after`), where that is fewer than the overlap; 0 = never.
    Returns: the same questions in their order; identities do not change, because overlap is no part of them.
    """
    planned = []
    for task in tasks:
        if task.audience != "annotator" or task.reserved_for is not None:
            planned.append(task)
            continue
        wanted = max(task.overlap, overlap.get(strata.get(task.id, ""), overlap.get("*", 1)))
        stop = task.stop_after or stop_after
        planned.append(dataclasses.replace(task, overlap=wanted, stop_after=stop if stop < wanted else 0))
    return planned


def answer(
    task: Task,
    value: Mapping[str, Any],
    *,
    annotator: str,
    shown_order: tuple[int, ...],
    created_at: str,
    submission: str,
    origin: Origin = "person",
    **rest: Any,
) -> Judgement:
    """A judgement that answers this task: what was asked is copied from it.

    Args:
        rest: the remaining fields of Judgement (active_s, idle_s, reason, supersedes).
    """
    return Judgement(
        task_id=task.id,
        kind=task.kind,
        prompt_id=task.prompt_id,
        response_ids=task.response_ids,
        value=dict(value),
        annotator=annotator,
        shown_order=shown_order,
        guideline=task.guideline,
        created_at=created_at,
        propensity=task.propensity,
        strategy=task.strategy,
        origin=origin,
        submission=submission,
        **rest,
    )
