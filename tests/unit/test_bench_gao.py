"""The study of Gao's curves: its points, its fits and what it says of them."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from bench.gao_study import best_of_n_curve, fitted, moves, picture, ppo_curve, running_mean, summary, tables


def test_best_of_n_is_that_of_all_subsets() -> None:
    scores = np.array([[0.3, 1.0, -2.0, 0.7], [5.0, 1.0, 2.0, 4.0]])
    gold = np.array([[1.0, -1.0, 0.5, 2.0], [0.0, 1.0, 0.2, -3.0]])
    (kl_1, *at_1), (kl_2, proxy, worth) = best_of_n_curve(scores, gold, [1, 2])
    assert (kl_1, at_1) == (pytest.approx(0.0), pytest.approx([0.0, 0.0]))
    won = [[max(pair, key=lambda i, row=row: row[i]) for pair in itertools.combinations(range(4), 2)] for row in scores]
    for found, values in ((proxy, scores), (worth, gold)):
        slow = np.mean([[row[i] for i in best] for row, best in zip(values, won, strict=True)])
        assert found == pytest.approx(slow - values.mean())
    p = np.array([(k**2 - (k - 1) ** 2) / 16 for k in (1, 2, 3, 4)])  # with replacement, of four equal draws
    assert kl_2 == pytest.approx(float((p * np.log(4 * p)).sum()))


def test_a_look_has_the_kl_of_the_rollout_that_its_policy_draws() -> None:
    rows = [
        {"kl/exact_per_sequence": 0.0, "validation/proxy": 1.0, "validation/gold": 2.0},
        {"kl/exact_per_sequence": 0.5},
        {"kl/exact_per_sequence": 0.9, "validation/proxy": 3.0, "validation/gold": 1.5},
        {"kl/exact_per_sequence": 1.4, "validation/proxy": 4.0, "validation/gold": 1.0},
    ]
    assert ppo_curve(rows, proxy=0.5, gold=1.0) == [[0.0, 0.0, 0.0], [0.5, 0.5, 1.0], [1.4, 2.5, 0.5]]


def test_a_running_mean_has_fewer_neighbours_at_the_ends() -> None:
    values = np.array([1.0, 2.0, 6.0, 3.0])
    assert running_mean(values, 3) == pytest.approx([1.5, 3.0, 11 / 3, 4.5])
    assert running_mean(values, 1) == pytest.approx(values)


def one_row(seed: int, votes: int, reading: str, beta: float) -> dict:
    """A reward whose gold follows the law exactly: d(1 − β·log d) and d(1 − β·d/4)."""
    d = np.linspace(0.1, 6, 30)
    curves = {
        "rl": [[x * x, x, x * (1 - beta * math.log(x))] for x in d],
        "best_of_n": [[x * x, x, x * (1 - beta * x / 4)] for x in d],
    }
    fits = {law: fitted(points, law) for law, points in curves.items()}
    return {"seed": seed, "votes": votes, "reading": reading, "curves": curves, "fits": fits}


def planted() -> list[dict]:
    """Two seeds; more votes and the lower bound make the law turn later."""
    betas = {(500, "mean_score"): 0.8, (500, "lower_bound"): 0.7, (8000, "mean_score"): 0.6, (8000, "lower_bound"): 0.5}
    return [one_row(seed, *key, beta) for seed in (0, 1) for key, beta in betas.items()]


def test_planted_laws_are_found_again() -> None:
    for row in planted():
        gold = row["fits"]["rl"]["gold"]
        assert gold["r_squared"] == pytest.approx(1.0)
        peak = math.exp(1 / gold["beta"] - 1)
        assert gold["peak_d"][0] == pytest.approx(peak)
        step = 5.9 / 29  # of the grid
        assert abs(row["fits"]["rl"]["top_d"] - peak) <= step / 2
        one = row["fits"]["best_of_n"]["gold"]
        assert one["peak_d"][0] == pytest.approx(1 / (2 * one["beta"]))


def test_the_tables_say_whether_the_top_moves_out() -> None:
    rows = planted()
    found = {(line["what"], line["figure"]): line["difference"][0] for line in moves(rows)}
    assert found["8,000 votes less 500, mean", "top_d"] > 0.4
    assert found["lower bound less mean, 500 votes", "top_d"] > 0.1
    assert found["lower bound less mean, 2,000 votes", "top_d"] is None  # was not run
    assert len(summary(rows)) == 8
    text = tables(rows)
    assert "R² of gold is at least 0.95 in 16 of 16 fits" in text
    assert "seeds 0, 1" in text


def test_the_picture_is_xml_with_gold_and_proxy_of_every_reward() -> None:
    rows = planted()
    paths = ET.fromstring(picture(rows)).findall("{http://www.w3.org/2000/svg}path")
    assert sum(path.get("stroke-width") is not None for path in paths) == 2 * 2 * len(rows)
