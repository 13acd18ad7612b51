"""The study of ensembles and bounds in small: what is strange in its fourth world, and what its table says."""

import numpy as np
from bench import bounds_study as study
from bench.worlds.bounds import WORLDS, draw_bounds, draw_candidates, gold

WORLD = {world.name: world for world in WORLDS}["strange texts"]


def test_strange_candidates_are_among_those_to_choose_from_and_not_among_those_voted_on():
    rng = np.random.default_rng(0)
    drawn = draw_bounds(WORLD, rng)
    candidates = draw_candidates(WORLD, 20_000, rng)
    size = np.abs(candidates[:, -WORLD.n_strange :]).max(1)
    strange = size > 6 * WORLD.usual_scale
    n, expected = 20_000, WORLD.strange_frac
    assert abs(strange.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
    assert np.abs(np.concatenate([drawn.a, drawn.b])[:, -WORLD.n_strange :]).max() < 6 * WORLD.usual_scale
    worth = gold(WORLD, drawn, candidates)
    lost = WORLD.strange_cost * WORLD.n_strange * WORLD.strange_scale**2
    gap = worth[~strange].mean() - worth[strange].mean()
    assert abs(gap - lost) < 4 * np.sqrt((1 + 2 * lost**2 / WORLD.n_strange) / strange.sum()) + 0.01


def test_worlds_without_strangeness_are_as_they_were():
    world = WORLDS[0]
    drawn = draw_bounds(world, np.random.default_rng(3))
    candidates = draw_candidates(world, 5, np.random.default_rng(4))
    np.testing.assert_array_equal(candidates, np.random.default_rng(4).standard_normal((5, world.n_features)))
    np.testing.assert_allclose(gold(world, drawn, candidates), candidates @ drawn.quality)


def test_the_table_says_by_how_much_a_score_is_above_one_and_a_half_times_the_single_model():
    runs = [
        {"single": [0.0, 1.0, 2.0, 2.0, 2.0 + k], "lower bound": [0.0, 1.0, 2.0, 3.0, 4.0 + k], "oracle": [1.0] * 5}
        for k in (0.0, 1.0)
    ]
    found = study.summary(WORLD, runs)
    own = found["scores"]["lower bound"]
    assert own["gold_at_largest"][0] == 4.5
    assert own["minus_single"][0] == 2.0
    assert own["minus_claim"][0] == 0.75  # mean of 4 − 3 and 5 − 4.5
    table = study.tables({"machine": {"processor": "P"}, "worlds": {WORLD.name: {"summary": found}}})
    [row] = [line for line in table.splitlines() if "lower bound" in line]
    assert row.split(" | ")[2:5] == ["2.00", study.shown(own["gold_at_largest"]), study.shown(own["minus_single"], "+")]
