"""Samples to the peer's score: how they are counted, and how a setting is chosen."""

from bench.fewer_samples_study import (
    FIRST,
    FURTHER,
    SEEDS,
    SETTINGS,
    choice,
    figures,
    finalists,
    missing,
    name_of,
    samples_to,
)

TWO, FOUR = ({"learning_rate": 1e-3, "n_minibatches": 1, "n_samples": n, "n_epochs": 4} for n in (2, 4))
MARK = 5.0


def scores_that_reach(samples: int, setting) -> list[float]:
    """Scores of a run whose last 96 samples first have the mark after so many."""
    per_iteration = 8 * setting["n_samples"]
    window = 96 // per_iteration
    before = samples // per_iteration - window
    return [0.0] * before + [MARK] * window


def searched(best: int, second: int) -> dict:
    """A whole search in which one setting needs 96 samples on the first seed and more on the others, another 112 on all."""
    runs = {}
    for place, setting in enumerate(SETTINGS):
        for seed in (FIRST, *FURTHER):
            n = 320
            if place == best:
                n = 96 if seed == FIRST else 320
            if place == second:
                n = 128
            runs[name_of(setting, seed)] = {"scores": scores_that_reach(n, setting), "mark": MARK}
    return runs


def test_a_score_is_the_mean_of_96_samples_whatever_an_iteration_draws():
    assert samples_to([0, 6, 6, 6, 9], FOUR, 6.0) == 128
    assert samples_to([0, 6, 6, 6, 6, 6, 6], TWO, 6.0) == 112
    assert samples_to([5.9] * 20, TWO, 6.0) is None


def test_the_choice_needs_the_fewest_samples_over_all_search_seeds():
    runs = searched(best=3, second=5)
    best = finalists(runs, MARK)
    assert best is not None
    assert best[:2] == [SETTINGS[3], SETTINGS[5]]
    assert choice(runs, MARK) == SETTINGS[5]


def test_a_seed_without_the_mark_weighs_more_than_samples():
    runs = searched(best=3, second=5)
    runs[name_of(SETTINGS[5], FURTHER[0])] = {"scores": [0.0] * 10, "mark": MARK}
    assert choice(runs, MARK) == SETTINGS[3]


def test_runs_are_made_in_order_and_none_twice():
    runs: dict = {}
    made = []
    whole = searched(best=3, second=5)
    while (one := missing(runs, MARK)) is not None:
        name = name_of(*one)
        made.append(name)
        runs[name] = whole.get(name, {"scores": scores_that_reach(160, one[0]), "mark": MARK})
    assert made[:16] == [name_of(setting, FIRST) for setting in SETTINGS]
    assert len(made) == len(set(made)) == 16 + 5 * 3 + 3
    assert made[-3:] == [name_of(SETTINGS[5], seed) for seed in SEEDS]
    for name in made:
        runs[name] = runs[name] | {"machine": {"processor": "p"}}
    assert figures(runs, MARK)["samples"] == [160, 160, 160]
