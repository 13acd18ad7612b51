"""Simulated raters: they lease tasks and submit judgements as people do, through a store or a server's client.

What they perceive (utilities) and how they answer (the likelihood of `choice`) is handed over. Which rater answers
which task, and every number drawn for one answer, follow from the seed, the task and the rater: a run that was
killed and repeated ends with the same votes as one that was not. Knows no world, no gold reward and no tables.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from karat.answers import missing
from karat.errors import ConfigError
from karat.feedback.tasks import answer
from karat.records import Annotator, Judgement, Prompt, Response, Task, Utilities

CHUNK = 256
"""Tasks leased and answered in one transaction: what a kill can leave open is at most this many leases."""

SECONDS_PER_WORD = 0.25
"""About 240 words a minute, the speed of silent reading (Brysbaert 2019, doi:10.1016/j.jml.2019.104047)."""

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""Simulated raters live in a year of their own, so that two runs write the same times."""
YEAR_S = 31_536_000
"""Seconds of that year."""


class Traits(Protocol):
    """How one simulated rater answers, in the terms of the likelihood."""

    @property
    def competence(self) -> float:
        """a_w: the gain on the difference of utilities."""
        ...

    @property
    def side_bias(self) -> float:
        """b_w: the pull towards the response shown first, in logits."""
        ...

    @property
    def lapse(self) -> float:
        """ε_w: the probability of answering uniformly at random, [0, 1]."""
        ...


@dataclass(frozen=True)
class RaterTraits:
    """Plain traits."""

    competence: float = 1.0
    """a_w: the gain on the difference of utilities."""
    side_bias: float = 0.0
    """b_w: the pull towards the response shown first, in logits."""
    lapse: float = 0.0
    """ε_w: the probability of answering uniformly at random, [0, 1]."""


class Desk(Protocol):
    """Where simulated raters find tasks and leave judgements: a `Store`, or a `client.AdminClient` of a server."""

    def add_annotators(self, annotators: Iterable[Annotator]) -> int:
        """Make raters known. Returns: how many were new."""
        ...

    def tasks(self, *, batch: str | None = None) -> list[Task]:
        """Tasks in the order in which they were queued."""
        ...

    def assignments(self, *, batch: str | None = None) -> dict[tuple[str, str], str]:
        """State of every (task id, rater id) pair."""
        ...

    def prompts(self) -> dict[str, Prompt]:
        """Every prompt by its id."""
        ...

    def responses(self) -> dict[str, Response]:
        """Every response by its id."""
        ...

    def lease_many(self, pairs: Sequence[tuple[str, str]], now: float, lease_s: float = 600.0) -> Sequence[object]:
        """Leases on (task id, rater id) pairs, None where there is none to be had."""
        ...

    def submit_many(self, judgements: Sequence[Judgement], *, now: float = 0.0) -> Sequence[object]:
        """Store judgements: all of them or none."""
        ...


LevelProbs = Callable[[np.ndarray, np.ndarray, Sequence[Traits], np.ndarray], np.ndarray]
"""level_probs(delta [C], side [C], traits of each comparison, cutpoints [K − 1]) → probabilities [C, K]."""


def collect_simulated(
    store: Desk,
    annotators: Sequence[Annotator],
    utilities: Utilities,
    traits: Mapping[str, Traits] | Callable[[Annotator], Traits],
    *,
    cutpoints: Sequence[float],
    seed: int,
    batch: str | None = None,
    overlap: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    until: int | None = None,
    level_probs: LevelProbs | None = None,
    over_time: bool = False,
) -> int:
    """Let simulated raters answer the open comparisons of a store, or of the store behind a server.

    Args:
        store: the store itself, or `AdminClient(url, token)`: the votes are the same to the bit.
        annotators: who answers; each task gets `overlap` different ones, drawn by (seed, task).
        utilities: what a rater perceives, utilities(annotator, prompt, texts, rng) → one logit a text.
        traits: by Annotator.id, or a function of the annotator.
        cutpoints: c_1 … c_{K−1}, ascending; K = number of levels.
        batch: only tasks of this batch.    overlap: answers that the simulated raters give to each task; None = all that
            it wants. The rest is left to others.
        progress: called with (answers so far, answers planned).
        until: stop when this many of the planned answers are in the store; None = all of them.
        level_probs: the likelihood; None = `choice.comparison_probs`.
        over_time: True = utilities also gets time=, when the answer is given, from 0 to 1 over the year of the raters.
    Returns: how many of the planned answers are in the store.
    Raises: ConfigError where a task needs more raters than there are, or the cutpoints do not ascend.
    """
    cuts = np.asarray(cutpoints, dtype=np.float64)
    if cuts.ndim != 1 or cuts.size < 1 or np.any(np.diff(cuts) < 0):
        raise ConfigError(f"cutpoints: found {list(cutpoints)}; expected K − 1 ascending numbers")
    n_planned, todo = open_work(store, annotators, ("comparison",), seed=seed, batch=batch, overlap=overlap)
    limit = n_planned if until is None else min(until, n_planned)
    n_done = n_planned - len(todo)
    perceived = utilities if over_time else _timeless(utilities)
    rater = _Rater(store, perceived, traits, cuts, seed, level_probs or _choice_probs)
    while todo and n_done < limit:
        some, todo = todo[: min(CHUNK, limit - n_done)], todo[min(CHUNK, limit - n_done) :]
        n_done += carry_out(store, some, rater.judge)
        if progress is not None:
            progress(n_done, limit)
    return n_done


def _timeless(utilities: Utilities) -> Utilities:
    def at_any_time(
        annotator: Annotator, prompt: Prompt, texts: Sequence[str], rng: np.random.Generator, *, time: float
    ):
        del time
        return utilities(annotator, prompt, texts, rng)

    return at_any_time


Marks = Callable[[Annotator, Prompt, str, np.random.Generator], list[tuple[int, int, int]]]
"""marks(annotator, prompt, text, rng) → (start, end, −1, 0 or 1) of every step of a response, in order, code points."""
SPAN_CLASSES = {-1: "wrong", 1: "good"}
"""Classes of the plain question about spans, by the mark that a simulated rater gives a sentence."""


def collect_simulated_marks(
    store: Desk, annotators: Sequence[Annotator], marks: Marks, *, seed: int, batch: str | None = None
) -> int:
    """Let simulated raters mark spans and steps wherever open tasks ask for that.

    A step task gets every sentence with its mark; a span task the wrong and the good sentences, as spans of these classes.

    Args:
        marks: what a rater marks.    batch: only tasks of this batch.
    Returns: how many of the planned answers are in the store; a repeated call adds none.
    Raises: ConfigError where a task needs more raters than there are.
    """
    n_planned, todo = open_work(store, annotators, ("span_marks", "step_marks"), seed=seed, batch=batch)
    prompts, responses = store.prompts(), store.responses()

    def judge(pairs: Sequence[Work]) -> list[Judgement]:
        return [_marked(task, who, prompts, responses, marks, seed) for _, task, who in pairs]

    chunks = (todo[begin : begin + CHUNK] for begin in range(0, len(todo), CHUNK))
    return n_planned - len(todo) + sum(carry_out(store, some, judge) for some in chunks)


def _marked(
    task: Task,
    who: Annotator,
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    marks: Marks,
    seed: int,
) -> Judgement:
    rng = task_generator(seed, "marks", task.id, who.id)
    haste, moment = float(np.exp(0.35 * rng.standard_normal())), int(rng.integers(YEAR_S))
    prompt, text = prompts[task.prompt_id], responses[task.response_ids[0]].text
    steps = marks(who, prompt, text, rng)
    if task.kind == "span_marks":
        value: dict = {"spans": [
            {"response": 0, "start": start, "end": end, "class": SPAN_CLASSES[mark]} for start, end, mark in steps if mark
        ]}  # fmt: skip
    elif steps:
        value = {"steps": [{"start": start, "end": end, "mark": mark} for start, end, mark in steps]}
    else:
        value = missing("nothing to mark")
    return answer(
        task, value, annotator=who.id, shown_order=(0,), origin="simulated",
        created_at=moment_of(moment), submission=f"simulated:{seed}:{task.id}:{who.id}",
        active_s=_active_s(haste, prompt, [text]),
    )  # fmt: skip


Work = tuple[str, Task, Annotator]
"""Task.id, which is a hash and worked out once, its task, and who answers."""


def open_work(
    store: Desk, annotators: Sequence[Annotator], kinds: Sequence[str], *, seed: int, batch: str | None,
    overlap: int | None = None,
) -> tuple[int, list[Work]]:  # fmt: skip
    """How many answers to tasks of these kinds are planned in all, and those that nobody has given yet."""
    store.add_annotators(annotators)
    tasks = [task for task in store.tasks(batch=batch) if task.kind in kinds]
    plan = assignment_plan(tasks, annotators, seed=seed, overlap=overlap)
    closed = {pair for pair, state in store.assignments(batch=batch).items() if state != "leased"}
    task_ids = {task: task.id for task in tasks}
    return len(plan), [(task_ids[task], task, who) for task, who in plan if (task_ids[task], who.id) not in closed]


def carry_out(store: Desk, pairs: Sequence[Work], judge: Callable[[Sequence[Work]], Sequence[Judgement]]) -> int:
    """Lease, answer and submit; returns how many answers were stored."""
    leases = store.lease_many([(task_id, who.id) for task_id, _, who in pairs], now=0.0)
    held = [pair for pair, lease in zip(pairs, leases, strict=True) if lease is not None]
    if held:
        store.submit_many(judge(held), now=0.0)
    return len(held)


def moment_of(moment: int) -> str:
    """A second of the raters' year, as judgements have it."""
    return (EPOCH + datetime.timedelta(seconds=moment)).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_read(prompt: Prompt, texts: Sequence[str]) -> float:
    """What reading a question and deciding takes a rater without haste."""
    n_words = len(prompt.text.split()) + sum(len(text.split()) for text in texts)
    return 2.0 + SECONDS_PER_WORD * n_words


def _active_s(haste: float, prompt: Prompt, texts: Sequence[str]) -> float:
    return round(haste * seconds_read(prompt, texts), 1)


def assignment_plan(
    tasks: Sequence[Task], annotators: Sequence[Annotator], *, seed: int, overlap: int | None = None
) -> list[tuple[Task, Annotator]]:
    """Who answers what: `overlap` different raters a task, each set drawn from (seed, task id) alone.

    Args:
        overlap: None = each task's own.

    Returns: (task, rater) pairs, the first answers of all tasks before the second ones.
    Raises: ConfigError where a task needs more raters than there are.
    """
    people = sorted(annotators, key=lambda who: who.id)
    rounds: list[tuple[int, int, int]] = []
    for i, task in enumerate(tasks):
        n_raters = task.overlap if overlap is None else min(overlap, task.overlap)
        if n_raters > len(people):
            raise ConfigError(
                f"task {task.id}: needs {n_raters} different raters, found {len(people)}; "
                "lower the overlap or add raters"
            )
        chosen = task_generator(seed, "who", task.id).choice(len(people), size=n_raters, replace=False)
        rounds += [(turn, i, int(who)) for turn, who in enumerate(chosen)]
    return [(tasks[i], people[who]) for _, i, who in sorted(rounds)]


class _Rater:
    """What all simulated raters make of comparisons: look and answer."""

    def __init__(
        self,
        store: Desk,
        utilities: Utilities,
        traits: Mapping[str, Traits] | Callable[[Annotator], Traits],
        cutpoints: np.ndarray,
        seed: int,
        level_probs: LevelProbs,
    ) -> None:
        self._utilities, self._traits = utilities, traits
        self._cutpoints, self._seed, self._level_probs = cutpoints, seed, level_probs
        self._prompts: dict[str, Prompt] = store.prompts()
        self._responses: dict[str, Response] = store.responses()

    def judge(self, pairs: Sequence[Work]) -> list[Judgement]:
        """Their votes."""
        views = [self._look(*pair) for pair in pairs]
        traits = [self._traits_of(who) for _, _, who in pairs]
        delta = np.array([view.delta for view in views])
        side = np.array([1.0 if view.shown_order[0] == 0 else -1.0 for view in views])
        probs = self._level_probs(delta, side, traits, self._cutpoints)
        uniform = np.array([view.uniform for view in views])
        # the last step of the cumulative sum may end a rounding below 1
        levels = (uniform[:, None] >= np.cumsum(probs, axis=1)[:, :-1]).sum(axis=1)
        n_levels = len(self._cutpoints) + 1
        return [
            answer(
                task,
                {"level": int(level), "n_levels": n_levels},
                annotator=who.id,
                shown_order=view.shown_order,
                created_at=view.created_at,
                submission=f"simulated:{self._seed}:{task_id}:{who.id}",
                origin="simulated",
                active_s=view.active_s,
            )
            for (task_id, task, who), view, level in zip(pairs, views, levels, strict=True)
        ]

    def _look(self, task_id: str, task: Task, who: Annotator) -> _View:
        rng = task_generator(self._seed, "vote", task_id, who.id)
        first = int(rng.random() < 0.5)
        uniform, haste, moment = (
            rng.random(),
            float(np.exp(0.35 * rng.standard_normal())),
            int(rng.integers(YEAR_S)),
        )
        prompt = self._prompts[task.prompt_id]
        texts = [self._responses[one].text for one in task.response_ids]
        a, b = self._utilities(who, prompt, texts, rng, time=moment / YEAR_S)
        seconds = _active_s(haste, prompt, texts)
        return _View(float(a) - float(b), (first, 1 - first), uniform, seconds, moment_of(moment))

    def _traits_of(self, who: Annotator) -> Traits:
        return self._traits[who.id] if isinstance(self._traits, Mapping) else self._traits(who)


@dataclass(frozen=True)
class _View:
    delta: float
    shown_order: tuple[int, int]
    uniform: float
    active_s: float
    created_at: str


def task_generator(seed: int, *path: str) -> np.random.Generator:
    """Randomness of one answer, by the names on its way."""
    # seeding.numpy_generator would do, but it imports torch, which this room does not need
    digest = hashlib.sha256("\x1f".join([str(seed), "feedback.simulated", *path]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _choice_probs(delta: np.ndarray, side: np.ndarray, traits: Sequence[Traits], cutpoints: np.ndarray) -> np.ndarray:
    import torch

    from karat.choice import RaterParams, comparison_probs

    def column(values: Sequence[float] | np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float64))

    raters = RaterParams(
        competence=column([each.competence for each in traits]),
        side_bias=column([each.side_bias for each in traits]),
        lapse=column([each.lapse for each in traits]),
        cutpoints=column(cutpoints),
    )
    return comparison_probs(column(delta), column(side), torch.arange(len(traits)), raters).numpy()
