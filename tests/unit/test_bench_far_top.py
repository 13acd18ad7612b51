"""The study of gold's top where data are few: its tops, what it compares, and that the page says it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bench.far_top_study import (
    MARKS,
    N_SEEDS,
    PAGE,
    READINGS,
    RESULTS,
    SIZES,
    VOTES,
    curves,
    moves,
    summary,
    tables,
    top,
    with_votes,
)


def run(**gained: list[float]) -> dict[str, list[float]]:
    return {"kl": [0.0, 1.0, 4.0], **{name: gained.get(name.replace(" ", "_"), [0.0, 0.0, 1.0]) for name in READINGS}}


def test_a_top_is_the_highest_gain_and_how_far_it_lies():
    assert top(run(single=[0.0, 0.7, -1.0]), "single") == (1.0, 0.7, -1.0)
    assert top(run(), "single") == (2.0, 1.0, 1.0)


def test_differences_are_paired_by_seed():
    near, far = run(ensemble_mean=[0.0, 0.5, 0.2]), run(ensemble_mean=[0.0, 0.5, 0.8])
    worlds = {with_votes(n).name: {"rows": {"0": near, "1": near}} for n in VOTES[:-1]}
    worlds[with_votes(VOTES[-1]).name] = {"rows": {"0": far, "1": far, "2": near}}
    lines = {line["what"]: line for line in moves({"worlds": worlds})}
    more = lines["ensemble mean: 38,400 votes less 600"]
    assert (more["n_seeds"], more["farther"], more["top_d"][0]) == (2, 2, 1.0)
    assert more["gain"][0] == pytest.approx(0.3)
    assert lines["ensemble, 600 votes: lower bound less mean"]["top_d"][0] == 1.0
    assert lines["ensemble, 38,400 votes: lower bound less mean"]["farther"] == 1


def test_few_votes_find_gold_by_their_bound_and_lose_it_by_a_wild_score(monkeypatch):
    monkeypatch.setattr("bench.far_top_study.N_PROMPTS", 2)
    found = curves(with_votes(600), 1000)
    assert len(found["kl"]) == len(SIZES)
    assert all(found[name][0] == pytest.approx(0.0, abs=1e-9) for name in READINGS)
    ends = {name: found[name][-1] for name in READINGS}
    assert ends["ensemble mean"] < 0 < ends["posterior lower bound"]
    assert summary(with_votes(600), [found])["single"]["end"][0] == round(ends["single"], 4)


def test_the_page_says_what_the_results_say():
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert [len(one["rows"]) for one in found["worlds"].values()] == [N_SEEDS] * len(VOTES)
    assert np.allclose(found["worlds"][with_votes(600).name]["rows"]["0"]["kl"][0], 0)
    start, end = MARKS
    assert PAGE.read_text(encoding="utf-8").split(start)[1].split(end)[0].strip() == tables(found)
