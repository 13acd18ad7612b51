"""Random questions: uniform, without repetition, with their propensity."""

from collections import Counter

import numpy as np
import pytest

from feedback_cases import vote
from karat.errors import InputError
from karat.feedback.tasks import random_pairs


def test_all_pairs_once_when_all_are_asked_for():
    tasks = random_pairs({"p": ["x", "y", "z"], "q": ["u", "v", "u"]}, 4, np.random.default_rng(0), overlap=3)
    assert {frozenset(task.response_ids) for task in tasks} == {
        frozenset(pair) for pair in (("x", "y"), ("x", "z"), ("y", "z"), ("u", "v"))
    }
    assert {(task.strategy, task.propensity, task.overlap) for task in tasks} == {("random", 1.0, 3)}


def test_every_pair_is_as_likely_and_sides_are_a_coin():
    drawn = Counter()
    for seed in range(600):
        tasks = random_pairs({"p": ["x", "y", "z"], "q": ["u", "v"]}, 2, np.random.default_rng(seed))
        assert all(task.propensity == 0.5 for task in tasks)
        drawn.update(task.response_ids for task in tasks)
    assert len(drawn) == 8
    # 600 draws at probability 1/4: standard deviation 10.6
    assert all(abs(count - 150) < 45 for count in drawn.values())


def test_too_few_pairs_is_an_error():
    with pytest.raises(InputError, match="found 1 pairs of different responses for 2 tasks"):
        random_pairs({"p": ["x", "y"]}, 2, np.random.default_rng(0))


def test_an_answer_repeats_the_question():
    (task,) = random_pairs({"p": ["x", "y"]}, 1, np.random.default_rng(0), guideline="v2")
    judgement = vote(task, "r0", active_s=3.0)
    assert (judgement.task_id, judgement.prompt_id, judgement.response_ids) == (task.id, "p", task.response_ids)
    assert (judgement.guideline, judgement.strategy, judgement.active_s) == ("v2", "random", 3.0)
