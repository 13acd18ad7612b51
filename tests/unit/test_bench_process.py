"""The study of process against outcome in small: what is planted, its arithmetic by hand, and who wins where."""

import numpy as np
import pytest
import torch
from bench import process_study as study
from bench import process_tables
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


def test_an_auroc_counts_pairs_of_one_row():
    scores = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 0.0]])
    right = np.array([[False, True, False], [True, False, False]])
    # row 1: 2 beats 1, loses to 3; row 2: 5 ties with 5, beats 0: 2.5 of 4 pairs
    assert study.auroc(scores, right) == pytest.approx(0.625)


def test_marks_are_bought_until_the_time_is_spent():
    marks = np.array([[1, 1], [-1, 0], [1, 1], [1, -1]])  # 20, 10, 20 and 20 s
    assert [study.affordable(marks, seconds) for seconds in (30, 49, 50, 1000)] == [2, 2, 3, 4]


def test_a_chain_is_scored_by_the_log_odds_that_every_step_is_right():
    heads = study.TokenHeads(torch.zeros(1, 2), torch.zeros(1), torch.tensor([-1.0, 0.0]))
    steps = np.array([[0.0, 1.0]])  # P(right) = σ(s − c₂)
    p = 0.5 / (1 + np.exp(-1.0))
    found = study.chain_scores(heads, np.zeros((1, 4)), steps)
    assert found["steps"] == pytest.approx([np.log(p / (1 - p))], abs=1e-6)
    assert found["steps, worst"] == pytest.approx([0.0])
    assert found["steps, mean mark"] == pytest.approx([0.5 - 1 / (1 + np.e)], abs=1e-6)  # P(right) − P(wrong) at 0


def test_the_best_of_n_and_the_first_error_by_hand():
    world = WORLDS[0]
    tokens = np.zeros((4, world.n_steps * world.n_tokens + 1, 1))
    chains = study.Chains(tokens, np.array([-1, 2, -1, 0]), np.array([True, False, True, False]), np.zeros(4, int))
    steps = np.zeros((4, world.n_steps))
    steps[1, 2], steps[3, 4] = -1, -1  # of two wrong chains one error is found
    found = study.scored(chains, np.array([2.0, 3.0, 1.0, 0.0]), steps)
    assert found["localised"] == 0.5
    assert [found[f"best of {n}"] for n in (1, 2, 4)] == [0.5, 0.5, 0.0]
    assert found["auroc"] == pytest.approx(0.5)  # 2 and 1 beat 0 and lose to 3


def test_steps_win_where_errors_show_and_lose_where_they_do_not():
    found = [study.one_seed(world, 1000, n_test=60, scale=0.5)["9000 s"] for world in WORLDS]
    gains = [one["steps"]["auroc within"] - one["labels"]["auroc within"] for one in found]
    assert gains[0] > 0
    assert gains[1] > gains[0]
    assert gains[2] < -0.2
    assert found[0]["steps"]["localised"] > 0.6 > 0.3 > found[2]["steps"]["localised"]


def test_differences_are_paired_and_a_finished_seed_is_kept(tmp_path, monkeypatch):
    done = []

    def one_seed(world, seed, **_):
        done.append((world.name, seed))
        return {"9000 s": {"labels": {"auroc": 0.6 + 0.1 * seed}, "steps": {"auroc": 0.7 + 0.1 * seed}}}

    monkeypatch.setattr(study, "one_seed", one_seed)
    out = tmp_path / "found.json"
    assert study.study([0], out, 0.0)["complete"] is False
    study.study([0], out, 1.0)
    found = study.study([0, 1], out, 1.0)
    assert found["complete"] is True
    assert sorted(done) == sorted((world.name, seed) for world in WORLDS for seed in (0, 1))
    own = found["worlds"][WORLDS[0].name]["summary"]["9000 s"]["steps"]
    assert own["auroc − labels"] == pytest.approx([0.1, 0.1, 0.1])
    assert own["auroc"][0] == pytest.approx(0.75)
    assert own["auroc"][1] < 0.7  # two seeds say little


def test_the_tables_hold_every_world(tmp_path):
    found = study.study([1000, 1001], None, 60, n_test=20, scale=0.05)
    page = tmp_path / "process.md"
    begin, end = process_tables.MARKS
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    process_tables.write_tables(found, page)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert all(f"| {world.name} | steps |" in text for world in WORLDS)
    assert process_tables.figure([0.0312, -0.01, None], sign=True) == "+.031 [−.010, –]"
