"""Questions chosen with a reward model: budgets, arms, propensities, the gain."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from karat.belief import Belief
from karat.errors import ConfigError, InputError
from karat.feedback.tasks import random_pairs
from karat.pipeline.asking import Asking
from karat.pipeline.choosing import Pace, choose_comparisons, comparisons, pace_of, parse_budget
from karat.pipeline.settings import CollectSettings, RunConfig, SandboxSettings
from karat.records import Response, user_prompt

PROMPTS = {p.id: p for p in (user_prompt(f"question {i}", topic="xy"[i % 2]) for i in range(10))}
RESPONSES = {
    prompt_id: [Response(prompt_id, f"answer {n} " + "word " * n, "policy", n) for n in range(4)]
    for prompt_id in PROMPTS
}


def scorer(prompts, texts):
    """A belief that is unsure of answers 2 and 3 only."""
    g = torch.Generator().manual_seed(0)
    unsure = torch.tensor([1.0 if text.split()[1] in "23" else 0.05 for text in texts])
    draws = torch.randn(40, len(texts), 1, generator=g) * unsure[:, None]
    ids = {p.id: i for i, p in enumerate(dict.fromkeys(prompts))}
    return Belief(draws, torch.zeros(40, len(ids), 1), torch.tensor([ids[p.id] for p in prompts]))


def chosen(**changes):
    settings = {"strategy": "bald", "n_tasks": 20} | changes
    return choose_comparisons(scorer, PROMPTS, RESPONSES, np.random.default_rng(0), **settings)


@pytest.mark.parametrize("strategy", ["bald", "variance"])
def test_chosen_questions_are_about_what_is_not_known_and_the_random_arm_is_not(strategy):
    batch = chosen(strategy=strategy)
    assert len(batch.tasks) == len({task.id for task in batch.tasks}) == 20
    assert batch.n_random == 4
    arms = {how: [t for t in batch.tasks if t.strategy == how] for how in ("random", strategy)}
    assert (len(arms["random"]), len(arms[strategy])) == (4, 16)
    assert {t.propensity for t in arms["random"]} == {4 / 60}
    texts = {one.id: one.text for group in RESPONSES.values() for one in group}
    unsure = [any(texts[r].split()[1] in "23" for r in t.response_ids) for t in arms[strategy]]
    assert np.mean(unsure) > 0.9
    assert batch.gain.value > 0
    assert batch.gain.low < batch.gain.value < batch.gain.high


def test_five_heads_are_said_to_be_too_few_to_choose_by():
    def heads(n_draws):
        def few(prompts, texts):
            belief = scorer(prompts, texts)
            return Belief(belief.draws[:n_draws], belief.reference[:n_draws], belief.prompt_index)

        return few

    def caution(n_draws):
        rng = np.random.default_rng(0)
        return choose_comparisons(heads(n_draws), PROMPTS, RESPONSES, rng, strategy="bald", n_tasks=20).caution

    five = caution(5)
    assert five.startswith("too few draws to choose by: 5 span 4 directions and 16 questions were chosen")
    assert "reward.posterior: laplace" in five
    assert (caution(17), caution(40)) == ("", "")
    flat = [one for group in RESPONSES.values() for one in group]
    settings = CollectSettings(n_tasks=20, acquisition="bald")
    _, said = comparisons(settings, list(PROMPTS.values()), flat, np.random.default_rng(3), scorer=heads(5))
    assert "too few draws to choose by" in said[0].detail


def test_a_round_draws_at_random_until_there_is_a_reward_to_choose_with():
    flat = [one for group in RESPONSES.values() for one in group]
    settings = CollectSettings(n_tasks=20, acquisition="variance", random_frac=0.25)
    first, said = comparisons(settings, list(PROMPTS.values()), flat, np.random.default_rng(3), scorer=None)
    ids = {prompt_id: [one.id for one in own] for prompt_id, own in RESPONSES.items()}
    assert first == random_pairs(ids, 20, np.random.default_rng(3))
    assert said == []
    later, (gain,) = comparisons(settings, list(PROMPTS.values()), flat, np.random.default_rng(3), scorer=scorer)
    assert [task.strategy for task in later] == ["random"] * 5 + ["variance"] * 15
    assert gain.name == "collect.gain"
    assert gain.estimate.value > 0
    assert "5 of 20 questions are the random arm" in gain.detail
    # more questions than pairs are all pairs
    every, _ = comparisons(dataclasses.replace(settings, n_tasks=999), list(PROMPTS.values()), flat,
                           np.random.default_rng(3), scorer=None)  # fmt: skip
    assert len(every) == 60


def test_settings_of_choosing_that_cannot_be():
    with pytest.raises(ConfigError, match=r"random_frac=0\.05; expected one of random, bald, variance, and 0\.1 … 1"):
        CollectSettings(random_frac=0.05)
    with pytest.raises(ConfigError, match=r"collect\.acquisition: found bald in one round without a reward model"):
        RunConfig(sandbox=SandboxSettings(), collect=CollectSettings(acquisition="bald"))
    RunConfig(sandbox=SandboxSettings(), collect=CollectSettings(acquisition="bald"), rounds=2)


def test_a_random_batch_has_no_gain_to_report():
    batch = chosen(strategy="random")
    assert {task.strategy for task in batch.tasks} == {"random"}
    assert {task.propensity for task in batch.tasks} == {20 / 60}
    assert batch.gain.value is None
    assert "every question is random" in batch.gain.method


def test_a_budget_of_time_is_kept_and_the_random_arm_whole():
    all_of_it = chosen(n_tasks=60)
    batch = chosen(n_tasks=None, seconds=60.0)
    texts = {one.id: one.text for group in RESPONSES.values() for one in group}

    def seconds(task):
        words = len(PROMPTS[task.prompt_id].text.split()) + sum(len(texts[r].split()) for r in task.response_ids)
        return 2 + 0.25 * words

    assert sum(map(seconds, batch.tasks)) <= 60
    assert 5 < len(batch.tasks) < len(all_of_it.tasks)
    assert batch.n_random >= 0.1 * len(batch.tasks)


def test_more_raters_and_slower_people_leave_time_for_fewer_questions():
    def spent(batch):
        texts = {one.id: one.text for group in RESPONSES.values() for one in group}
        words = [
            len(PROMPTS[t.prompt_id].text.split()) + sum(len(texts[r].split()) for r in t.response_ids)
            for t in batch.tasks
        ]
        return sum(2 + 0.25 * n for n in words)

    once = chosen(n_tasks=None, seconds=120.0)
    thrice = chosen(n_tasks=None, seconds=120.0, seconds_factor=3.0)
    assert 3 * spent(thrice) <= 120.0
    assert 2 < len(thrice.tasks) < len(once.tasks)


def test_what_a_comparison_takes_is_measured_on_peoples_own_times():
    texts = {one.id: one for group in RESPONSES.values() for one in group}
    prompt, own = next(iter(RESPONSES.items()))
    ids = (own[0].id, own[1].id)  # 2 + 0.25 · (2 + 2 + 3) = 3.75 s
    row = {"kind": "comparison", "origin": "person", "prompt_id": prompt, "response_ids": ids}
    timed = [SimpleNamespace(**row, active_s=7.5)] * 19
    assert pace_of(timed, PROMPTS, texts) == Pace()
    away = SimpleNamespace(**row, active_s=5000.0)
    silent = [SimpleNamespace(**row | {"origin": "simulated"}, active_s=1.0), SimpleNamespace(**row, active_s=None)]
    found = pace_of([*timed, away, *silent], PROMPTS, texts)
    assert found == Pace(pytest.approx((19 * 2 + 10) / 20), 20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200", (200, None)), ("3600s", (None, 3600.0)), ("90m", (None, 5400.0)), ("1.5h", (None, 5400.0))],
)
def test_budgets_are_questions_or_time(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3", "2.5", "soon", "10d", "nan"])
def test_what_is_no_budget_is_one_clear_line(text):
    with pytest.raises(ConfigError, match="expected a number of questions"):
        parse_budget(text)


def test_what_cannot_be_chosen_is_one_clear_line():
    with pytest.raises(ConfigError, match="--strategy entropy: expected one of random, bald, variance"):
        chosen(strategy="entropy")
    with pytest.raises(InputError, match="no two different responses"):
        choose_comparisons(scorer, PROMPTS, {}, np.random.default_rng(0), strategy="bald", n_tasks=1)
    with pytest.raises(ConfigError, match="without a reward model"):
        Asking(strategy="bald")
    assert dataclasses.replace(Asking(), strategy="random").reward is None


@pytest.mark.parametrize("n_draws", [5, 40])
def test_the_gain_is_over_as_many_more_random_questions_not_over_the_first_ones(n_draws):
    """A few draws span few directions: after the random arm even the best question tells little, and so does any other."""

    def alike(prompts, texts):
        g = torch.Generator().manual_seed(1)
        ids = {p.id: i for i, p in enumerate(dict.fromkeys(prompts))}
        prompt_index = torch.tensor([ids[p.id] for p in prompts])
        return Belief(
            3 * torch.randn(n_draws, len(texts), 1, generator=g), torch.zeros(n_draws, len(ids), 1), prompt_index
        )

    batch = choose_comparisons(alike, PROMPTS, RESPONSES, np.random.default_rng(0), strategy="bald", n_tasks=20)
    assert batch.gain.value > 0
    every = choose_comparisons(alike, PROMPTS, RESPONSES, np.random.default_rng(0), strategy="bald", n_tasks=60)
    assert every.gain.value is None
    assert "every pair is asked about" in every.gain.method
