"""The study of process against outcome in small: what is planted, its arithmetic by hand, and who wins where."""

import numpy as np
import pytest
from bench.worlds.process import WORLDS, draw_chains, draw_directions, outcome_marks, step_marks

from karat.stats import wilson


def drawn(world, n_questions=4000, n_chains=2, seed=0):
    rng = np.random.default_rng(seed)
    directions = draw_directions(world, rng)
    return directions, draw_chains(world, directions, n_questions, n_chains, rng), rng


def within(k, n, expected):
    found = wilson(int(k), int(n), level=0.999)
    return found.low <= expected <= found.high


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_error_is_where_it_was_planted_and_nowhere_else(world):
    directions, chains, _ = drawn(world)
    along = (chains.tokens @ directions.error)[:, :-1].reshape(-1, world.n_steps, world.n_tokens).mean(2)
    for k in range(world.n_steps):
        planted = chains.first_error == k
        # four standard errors of a mean of normals
        tolerance = 4 / np.sqrt(planted.sum() * world.n_tokens)
        assert abs(along[planted, k].mean() - world.step_signal) < tolerance
        assert abs(along[~planted, k].mean()) < tolerance
        assert within(planted.sum(), (~chains.right).sum(), 1 / world.n_steps)
    at_end = chains.tokens[:, -1] @ directions.end
    gap = at_end[~chains.right].mean() - at_end[chains.right].mean()
    assert abs(gap - world.end_signal) < 4 * np.sqrt(1 / chains.right.sum() + 1 / (~chains.right).sum())


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_raters_err_as_often_as_the_world_says(world):
    _, chains, rng = drawn(world, seed=1)
    said = outcome_marks(world, chains, rng)
    assert within((said != chains.result).sum(), len(said), world.outcome_noise)
    assert chains.result[chains.right].all()
    assert within(chains.result[~chains.right].sum(), (~chains.right).sum(), world.lucky_frac)
    marks = step_marks(world, chains, rng)
    seen = marks != 0
    wrong = np.arange(world.n_steps) == chains.first_error[:, None]
    assert within((marks[seen & wrong] == 1).sum(), (seen & wrong).sum(), world.step_miss)
    assert within((marks[seen & ~wrong] == -1).sum(), (seen & ~wrong).sum(), world.step_alarm)


def test_marks_end_at_the_first_step_that_is_called_wrong():
    _, chains, rng = drawn(WORLDS[0], 200)
    for row in step_marks(WORLDS[0], chains, rng):
        n_seen = int((row != 0).sum())
        assert (row[n_seen:] == 0).all()
        assert (row[: n_seen - 1] == 1).all()
        assert n_seen == len(row) or row[n_seen - 1] == -1
