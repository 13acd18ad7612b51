"""Which questions to ask, and an answer in the form of the question. Pure; knows neither stores nor raters' minds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from karat.errors import InputError
from karat.records import Judgement, Origin, Task


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
