"""Questions chosen with a reward model: its belief about every pair of responses, and what choosing is expected to gain.

Knows scorers, prompts and responses; the choice itself is in `feedback.acquisition`, the uniform draw in `feedback.tasks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from karat.belief import difference
from karat.errors import ConfigError, InputError
from karat.feedback.acquisition import (
    Choice,
    PairBelief,
    bits_of_more_random,
    choose_batch,
    pairs_from_draws,
)
from karat.feedback.simulated_kinds import SECONDS_PER_WRITTEN, n_written
from karat.feedback.strategies import STRATEGIES
from karat.feedback.tasks import random_pairs
from karat.pipeline.collect_settings import CollectSettings
from karat.records import WORD_KINDS, Estimate, Finding, Judgement, Prompt, Response, Task
from karat.reward.score import Scorer
from karat.stats import not_estimable

SECONDS_PER_WORD, SECONDS_BESIDES = 0.25, 2.0
"""Reading at 240 words a minute and a decision: what a question costs before anybody's time has been measured."""
FEW_DRAWS = 32
"""Joint draws below which a belief may know fewer directions than it is asked about: heads are 5 by default, a last layer has 128."""
FEWEST_TIMED, MOST_TIMES = 20, 10.0
"""Timed answers from which seconds are measured, and times the assumed ones at which one of them is cut: a pause is no work."""


@dataclass(frozen=True)
class Chosen:
    """A batch of comparisons and what it is expected to say."""

    tasks: tuple[Task, ...]
    """The random arm and the chosen arm, each task with its strategy and propensity."""
    gain: Estimate
    """Bits a question of the chosen arm is expected to give beyond one of the random arm, difference of means."""
    n_random: int
    """Questions of the random arm."""
    caution: str = ""
    """Why the belief is not one to choose by, in words; "" = nothing is known against it."""


@dataclass(frozen=True)
class Pace:
    """How long people take for a comparison, against what its words lead to expect."""

    factor: float = 1.0
    """Measured over assumed seconds; 1 where too few answers are timed."""
    n: int = 0
    """Answers it was measured on."""


def pace_of(
    judgements: Sequence[Judgement],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    kind: str = "comparison",
) -> Pace:
    """Σ active seconds / Σ assumed seconds over people's answers, each cut at MOST_TIMES of what is assumed for it.

    Args:
        judgements: of any kind and origin; simulated ones and those without a time say nothing.    kind: which count.
    """
    assumed, taken = [], []
    for one in judgements:
        if one.kind == kind and one.origin == "person" and one.active_s:
            read = [responses[response] for response in one.response_ids]
            expected = assumed_seconds(prompts[one.prompt_id], *read)
            if kind in WORD_KINDS:
                expected += SECONDS_PER_WRITTEN * n_written(kind, one.value, read[0].text if read else "")
            assumed.append(expected)
            taken.append(min(one.active_s, MOST_TIMES * expected))
    return Pace(sum(taken) / sum(assumed), len(taken)) if len(taken) >= FEWEST_TIMED else Pace()


def parse_budget(text: str) -> tuple[int | None, float | None]:
    """Questions, or seconds, in `200`, `3600s`, `90m`, `2h`.

    >>> parse_budget("200"), parse_budget("2h")
    ((200, None), (None, 7200.0))

    Raises: ConfigError for anything else.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1:]) if text[-1:] in units else (text, "")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0) or (not unit and value != int(value)):
        raise ConfigError(f"--budget {text}: expected a number of questions (200) or a time (3600s, 90m, 2h)")
    return (None, value * units[unit]) if unit else (int(value), None)


def comparisons(
    settings: CollectSettings,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    rng: np.random.Generator,
    *,
    scorer: Scorer | None,
    n_tasks: int | None = None,
) -> tuple[list[Task], list[Finding]]:
    """The comparisons of a round of a run: `n_tasks` pairs of a prompt's responses, or all where there are fewer.

    Args:
        scorer: what questions are chosen with; None = all are drawn at random.    n_tasks: None = `settings.n_tasks`.
    Returns: tasks with their strategy and propensity, and what choosing is expected to gain.
    """
    by_prompt: dict[str, list[Response]] = {}
    n_tasks = settings.n_tasks if n_tasks is None else n_tasks
    for response in responses:
        by_prompt.setdefault(response.prompt_id, []).append(response)
    if scorer is None:
        ids = {prompt_id: [one.id for one in own] for prompt_id, own in by_prompt.items()}
        n_pairs = sum(len(set(own)) * (len(set(own)) - 1) // 2 for own in ids.values())
        return random_pairs(ids, min(n_tasks, n_pairs), rng), []
    known = {prompt.id: prompt for prompt in prompts}
    chosen = choose_comparisons(
        scorer, known, by_prompt, rng, strategy=settings.acquisition, n_tasks=n_tasks,
        random_frac=settings.random_frac,
    )  # fmt: skip
    detail = f"{settings.acquisition}: {chosen.n_random} of {len(chosen.tasks)} questions are the random arm"
    detail += f"; {chosen.caution}" if chosen.caution else ""
    question = "How many bits is a chosen question expected to tell beyond a random one?"
    return list(chosen.tasks), [Finding("collect.gain", question, "info", chosen.gain, detail=detail)]


def check_strategy(strategy: str) -> None:
    """Raises: ConfigError for a name that is no strategy."""
    if strategy not in STRATEGIES:
        raise ConfigError(f"--strategy {strategy}: expected one of {', '.join(STRATEGIES)}")


def choose_comparisons(
    scorer: Scorer,
    prompts: Mapping[str, Prompt],
    responses_by_prompt: Mapping[str, Sequence[Response]],
    rng: np.random.Generator,
    *,
    strategy: str,
    n_tasks: int | None = None,
    seconds: float | None = None,
    seconds_factor: float = 1.0,
    random_frac: float = 0.2,
) -> Chosen:
    """Comparisons of a prompt's responses, by what their answers are expected to say.

    Args:
        prompts: by Prompt.id.    responses_by_prompt: what can be compared, under Prompt.id.
        strategy: random, bald or variance.    n_tasks: how many.    seconds: or how much of raters' time, by the words
            to be read; the dearest question counts for what it is.
        random_frac: share of the random arm, [0.1, 1]; held-out figures come from it alone.
    Raises: ConfigError for an unknown strategy; InputError where no two responses differ.
    """
    check_strategy(strategy)
    pool = _pool(responses_by_prompt)
    if not pool:
        raise InputError("collect: found no two different responses to a prompt; sample more responses")
    flat = list({one.id: one for pair in pool for one in pair}.values())
    place = {one.id: i for i, one in enumerate(flat)}
    belief = scorer([prompts[one.prompt_id] for one in flat], [one.text for one in flat])
    first, second = (torch.tensor([place[pair[side].id] for pair in pool]) for side in (0, 1))
    pairs = pairs_from_draws(difference(belief, first, second).double().cpu().numpy())
    cost = seconds_factor * np.array([assumed_seconds(prompts[a.prompt_id], a, b) for a, b in pool])
    wanted = min(len(pool), n_tasks if n_tasks is not None else max(1, int((seconds or 0) / float(cost.mean()))))
    clusters = [prompts[a.prompt_id].topic or a.prompt_id for a, _ in pool]
    (counterfactual,) = rng.spawn(1)  # leaves the draws of the batch as they are
    choices = choose_batch(pairs, wanted, rng, strategy=strategy, clusters=clusters, random_frac=random_frac)  # type: ignore[arg-type]
    if seconds is not None:
        choices = _within(choices, cost, seconds)
    swaps = rng.random(len(choices)) < 0.5
    tasks = tuple(_task(pool[c.pair], c, bool(swap)) for c, swap in zip(choices, swaps, strict=True))
    n_random = sum(c.strategy == "random" for c in choices)
    caution = few_draws(len(belief.draws), len(choices) - n_random)
    return Chosen(tasks, _gain(pairs, choices, counterfactual), n_random, caution)


def few_draws(n_draws: int, n_chosen: int) -> str:
    """What is to be said where a belief of so few draws chooses so many questions; "" = nothing.

    S draws span S − 1 directions: after as many different questions the belief has nothing left to ask.

    >>> few_draws(5, 4), few_draws(128, 200)
    ('', '')
    """
    if n_draws >= FEW_DRAWS or n_chosen < n_draws:
        return ""
    return (
        f"too few draws to choose by: {n_draws} span {n_draws - 1} directions and {n_chosen} questions were chosen; "
        "`reward.posterior: laplace` has 128 (docs/asking.md)"
    )


def _pool(responses_by_prompt: Mapping[str, Sequence[Response]]) -> list[tuple[Response, Response]]:
    pool = []
    for prompt_id in sorted(responses_by_prompt):
        own = list({one.id: one for one in responses_by_prompt[prompt_id]}.values())
        pool += [(own[i], own[j]) for i in range(len(own)) for j in range(i + 1, len(own))]
    return pool


def assumed_seconds(prompt: Prompt, *responses: Response) -> float:
    """What a question about these responses costs by the words to be read, before anybody's time is known."""
    words = sum(len(text.split()) for text in (prompt.text, *(one.text for one in responses)))
    return SECONDS_BESIDES + SECONDS_PER_WORD * words


def _within(choices: list[Choice], cost: np.ndarray, seconds: float) -> list[Choice]:
    """The questions that fit the time; those of the chosen arm that do not are left out, never those of the random arm."""
    spent = sum(float(cost[choice.pair]) for choice in choices if choice.strategy == "random")
    kept = []
    for choice in choices:
        dear = float(cost[choice.pair])
        if choice.strategy == "random" or spent + dear <= seconds:
            kept.append(choice)
            spent += dear if choice.strategy != "random" else 0.0
    return kept or choices[:1]


def _task(pair: tuple[Response, Response], choice: Choice, swap: bool) -> Task:
    ids = (pair[1].id, pair[0].id) if swap else (pair[0].id, pair[1].id)
    return Task(pair[0].prompt_id, ids, strategy=choice.strategy, propensity=choice.propensity)


def _gain(belief: PairBelief, choices: Sequence[Choice], rng: np.random.Generator) -> Estimate:
    """Mean bits of the chosen arm less those of as many more random questions behind the same random arm."""
    asked = [c.pair for c in choices if c.strategy == "random"]
    chosen = [c.bits for c in choices if c.strategy != "random"]
    if not chosen:
        return not_estimable("no chosen arm: every question is random", 0)
    if len(choices) == len(belief.mean):
        return not_estimable("every pair is asked about, chosen or not", len(choices))
    gains = np.mean(chosen) - bits_of_more_random(belief, asked, len(chosen), rng)
    low, high = np.quantile(gains, (0.025, 0.975))
    method = f"expected bits a question, chosen less as many more random ones, {len(gains)} draws of these, 95 %"
    return Estimate(float(gains.mean()), float(low), float(high), len(choices), method + "; before any answer")
