"""The study of hybrid feedback in small: its arithmetic by hand, its theory, and that it goes on where it stopped."""

import json

import numpy as np
import pytest
from bench import hybrid_study as study
from bench.worlds.hybrid import WORLDS, compared, draw_pool, rated

from karat.stats import wilson


@pytest.mark.parametrize(("world", "agreement"), [(WORLDS[0], 0.64), (WORLDS[1], 0.71), (WORLDS[2], 0.76)])
def test_two_raters_agree_as_the_worlds_say(world, agreement):
    rng = np.random.default_rng(0)
    pool = draw_pool(world, rng)
    a, b = rng.integers(0, 2000, 20_000), rng.integers(2000, 4000, 20_000)
    same = int((compared(pool, a, b, rng) == compared(pool, a, b, rng)).sum())
    found = wilson(same, 20_000, level=0.999)
    assert found.low - 0.005 < agreement < found.high + 0.005  # the worlds' names are rounded


def test_ratings_of_one_response_correlate_as_the_icc_says():
    world, rng = WORLDS[3], np.random.default_rng(1)
    pool = draw_pool(world, rng)
    one, other = (rated(pool, np.arange(4000), np.zeros(4000, int), world.rating_sd(0.4), rng) for _ in range(2))
    gain2 = pool.gain[0] ** 2  # rater 0's own gain scales what is shared, not the noise
    shared, noise = gain2 * world.true_sd**2, world.rating_sd(0.4) ** 2
    # the correlation of 4,000 pairs has a standard error below 0.016, the texts' own variance one of 0.01
    assert abs(np.corrcoef(one, other)[0, 1] - shared / (shared + noise)) < 0.06


def test_accuracy_is_the_share_of_right_signs():
    rng = np.random.default_rng(2)
    pool = draw_pool(WORLDS[1], rng)
    w = pool.weights + 0.3 * rng.standard_normal(len(pool.weights))
    delta = rng.standard_normal((40_000, len(w)))
    right = np.mean(np.sign(delta @ w) == np.sign(delta @ pool.weights))
    assert abs(pool.accuracy(w) - right) < 0.006  # four standard errors of 40,000 signs


def test_break_even_is_where_a_rating_says_as_much_as_half_a_comparison():
    for world in WORLDS:
        icc, sd = study.break_even(world)
        delta = np.sqrt(2) * world.reward_sd * np.random.default_rng(0).standard_normal(400_000)
        p = 1 / (1 + np.exp(-delta))
        # four standard errors of 400,000 draws
        assert abs(1 / (sd**2 + world.level_sd**2) - (p * (1 - p)).mean()) < 4 * (p * (1 - p)).std() / 400_000**0.5
        assert world.rating_sd(icc) == pytest.approx(sd)


def test_a_saving_is_the_time_that_comparisons_alone_would_take():
    curve = np.linspace(0.80, 0.89, len(study.TIMES))  # at 800, the third of ten, 0.82
    at_1600 = study.TIMES.index(1600)
    found = study.saving(curve, np.array([0.82, curve[at_1600], curve[0], 0.95]))
    assert found == pytest.approx([0.0, 0.5, -1.0, 1 - 800 / 6400], abs=1e-6)
    assert study.crossing(np.array([-0.4, -0.1, 0.3]), np.array([0.1, 0.2, 0.3])) == pytest.approx(0.225)
    assert study.crossing(np.array([-0.4, -0.1]), np.array([0.1, 0.2])) == 0.2
    assert study.crossing(np.array([0.1, 0.2]), np.array([0.1, 0.2])) == 0.1


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    done = []

    def one_seed(world, seed):
        done.append((world.name, seed))
        row = {way: {"accuracy": [0.85 + 0.001 * seed] * len(study.BEYOND)} for way in study.WAYS}
        return row | {"comparisons": np.linspace(0.8, 0.9, len(study.TIMES)).tolist()}

    monkeypatch.setattr(study, "one_seed", one_seed)
    out = tmp_path / "found.json"
    assert study.study([0, 1], out, 0.0)["complete"] is False  # no time: nothing is begun
    assert not done
    study.study([0], out, 1.0)
    found = study.study([0, 1], out, 1.0)
    assert found["complete"] is True
    assert sorted(done) == sorted((world.name, seed) for world in WORLDS for seed in (0, 1))
    assert json.loads(out.read_text()) == found
    summary = found["worlds"][WORLDS[0].name]["summary"]
    assert summary["seeds"] == 2
    value, low, high = summary["hybrid"]["saving"][0]
    assert low <= value <= high
