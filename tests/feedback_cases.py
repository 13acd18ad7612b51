"""A small store with texts, raters and tasks, for the tests of the feedback room."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from karat.feedback.store import Store, open_store
from karat.feedback.tasks import answer, random_pairs
from karat.records import Annotator, Judgement, Response, Task, user_prompt


def small_store(path: Path, *, n_prompts: int = 4, n_tasks: int = 10, overlap: int = 2, n_raters: int = 5) -> Store:
    """A store with 4 responses to each prompt and random tasks, not yet answered."""
    store = open_store(path)
    prompts = [user_prompt(f"question {i}", topic=f"topic {i % 2}") for i in range(n_prompts)]
    responses = [Response(prompt.id, "word " * (k + 1) + f"end {k}", "made", k) for prompt in prompts for k in range(4)]
    store.add_prompts(prompts)
    store.add_responses(responses)
    store.add_annotators([Annotator(f"r{i}") for i in range(n_raters)])
    by_prompt: dict[str, list[str]] = {}
    for response in responses:
        by_prompt.setdefault(response.prompt_id, []).append(response.id)
    store.add_tasks(random_pairs(by_prompt, n_tasks, np.random.default_rng(0), overlap=overlap))
    return store


def vote(task: Task, annotator: str, *, level: int = 2, key: str | None = None, **rest) -> Judgement:
    """A vote on a three-level scale, b shown first."""
    rest = {"created_at": "2026-01-01T00:00:00Z", "shown_order": (1, 0), **rest}
    submission = f"{annotator}/{task.id}" if key is None else key
    return answer(task, {"level": level, "n_levels": 3}, annotator=annotator, submission=submission, **rest)
