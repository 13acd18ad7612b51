"""Own batch, the fourth design of the time-to-score study, in small: who chooses what, whose time counts, what is reused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from bench import own_batch_study as study
from bench import score_study
from bench.own_batch import (
    CELLS,
    OwnBatch,
    finalists,
    full_name,
    leader,
    peers_choice,
    published,
    race_name,
    row,
    search_name,
    table,
    window_of,
)
from bench.score_cells import SIDES, run_name

CELL = OwnBatch("rloo", "length", rates=(0.1, 0.2), steps=(1,), further_seeds=(201,), n_finalists=2)
SLOW, FAST = ({"learning_rate": rate, "n_minibatches": 1} for rate in (0.1, 0.2))
SLOW_16, FAST_16 = (setting | {"n_samples": 16} for setting in (SLOW, FAST))


def side(scores, seconds: float) -> dict:
    """A side whose iterations all take as long; processor seconds are half."""
    return {"scores": scores, "seconds": [seconds] * len(scores), "cpu_seconds": [seconds / 2] * len(scores)}


def place() -> dict:
    """The published cell: the peer's best is SLOW, which ends at (4 + 5 + 6) / 3 = 5 on every seed, after 50 processor seconds."""
    low, high = (dict.fromkeys(SIDES, setting) for setting in (SLOW, FAST))
    ends = [0.0] * 7 + [4.0, 5.0, 6.0]
    runs = {
        run_name(low, 100): {"seed": 100, "settings": low, "theirs": side(ends, 10.0)},
        run_name(high, 100): {"seed": 100, "settings": high, "theirs": side([0.0] * 10, 10.0)},
        # ours was at another setting there, which does not matter
        **{f"{seed}": {"seed": seed, "settings": {"ours": FAST, "theirs": SLOW}, "theirs": side(ends, 10.0)} for seed in range(3)},
    }  # fmt: skip
    return {"runs": runs, "best": {"ours": FAST, "theirs": SLOW}}


def alone(who: str, setting, seed: int, scores, seconds: float) -> dict:
    """A run of the search, under its name."""
    return {search_name(who, setting, seed): {"seed": seed, "settings": {who: setting}, who: side(scores, seconds)}}


def race(seed: int, ours, chosen=None) -> dict:
    """A race in which the peer's published setting has 5 after 100 s."""
    settings = {"ours": FAST_16, "published": SLOW}
    more = {}
    if chosen:
        settings["chosen"], more["chosen"] = SLOW_16, side(chosen, 30.0)
    found = {"seed": seed, "settings": settings, "mark": 5.0, "ours": side(ours, 2.0), "same_scores": True}
    return {race_name(seed): found | {"published": side([0.0] * 7 + [4.0, 5.0, 6.0], 10.0)} | more}


def test_the_settings_are_the_same_for_both_sides_and_say_their_samples() -> None:
    assert [full_name(setting) for setting in CELL.settings] == [
        f"lr {rate}, 1 steps, {n} samples" for n in (4, 16) for rate in (0.1, 0.2)
    ]
    assert {len(cell.settings) for cell in CELLS} == {12}
    assert {len(study.smallest(cell).settings) for cell in CELLS} == {2}
    assert not {cell.first_seed for cell in CELLS} | set(CELLS[0].further_seeds) <= {0, 1, 2, 100, 101, 102}


def test_the_score_to_reach_and_its_time_are_those_of_the_published_run() -> None:
    goal = published(CELL, place(), 1)
    assert (goal.setting, goal.mark, goal.cpu_seconds) == (SLOW, 5.0, 50.0)


def test_a_large_batch_of_the_peers_has_a_score_after_one_iteration_and_ours_after_three() -> None:
    assert [window_of(CELL, who, s) for who in SIDES for s in (SLOW, SLOW_16)] == [3, 3, 3, 1]


def test_the_peers_other_setting_is_the_soonest_beside_the_published_one() -> None:
    assert peers_choice(CELL, {}, place()) is None
    late = alone(
        "theirs", SLOW_16, 100, [0, 4, 4, 5], 30.0
    )  # 60 processor seconds, more than the published setting's 50
    assert peers_choice(CELL, late, place()) == SLOW_16
    soon = late | alone("theirs", FAST_16, 100, [0, 4, 5], 30.0)  # one iteration is enough
    assert peers_choice(CELL, soon, place()) == FAST_16
    assert peers_choice(CELL, alone("theirs", FAST_16, 100, [0, 4, 4], 9.0), place()) is None


def test_ours_is_the_finalist_that_gets_there_on_most_seeds_and_not_the_soonest_on_one() -> None:
    runs = {
        **alone("ours", SLOW, 200, [0, 1, 2], 1.0),
        **alone("ours", FAST, 200, [0, 1, 1], 1.0),
        **alone("ours", SLOW_16, 200, [5, 5, 5, 5], 4.0),
    }
    assert finalists(CELL, runs, 5.0) is None
    runs |= alone("ours", FAST_16, 200, [5, 5, 5], 2.0)
    assert finalists(CELL, runs, 5.0) == [FAST_16, SLOW_16]
    assert finalists(replace(CELL, n_finalists=3), runs, 5.0)[-1] == SLOW  # the higher last score
    assert leader(CELL, runs, 5.0) == (FAST_16, 201)
    runs |= alone("ours", FAST_16, 201, [0, 0, 0], 2.0)
    assert leader(CELL, runs, 5.0) == (SLOW_16, 201)
    assert leader(CELL, runs | alone("ours", SLOW_16, 201, [5, 5, 5], 9.0), 5.0) == (SLOW_16, None)
    # as many seeds: then by time, so that the other's run is not needed where it is behind already
    assert leader(CELL, runs | alone("ours", FAST_16, 201, [5, 5, 5], 0.5), 5.0) == (FAST_16, None)


def test_on_each_seed_the_sooner_of_the_peers_two_runs_counts() -> None:
    runs = race(0, [0, 5, 5, 5], [0, 5]) | race(1, [0, 5, 5, 5], [0, 4, 4, 5]) | race(2, [5, 5, 5], [4, 4])
    found = row(CELL, runs, place())
    # seed 0: 60 s by its choice, 8 s ours; 1: the published run's 100 s before 120; 2: the choice never gets there
    assert found["seconds"] == {"ours": [8.0, 8.0, 6.0], "theirs": [60.0, 100.0, 100.0]}
    assert found["ratios"] == pytest.approx([60 / 8, 100 / 8, 100 / 6])
    assert found["ratios_cpu"] == found["ratios"]
    assert found["sooner"] == ["chosen", "published", "published"]
    assert found["samples"] == {"ours": [512, 512, 384], "theirs": [256, 320, 320]}
    assert (found["ratio"], found["met"], found["complete"]) == (12.5, True, True)
    assert "; lr 0.1, 1 steps, 16 samples (1) |" in table(
        [CELL], {CELL.name: {"runs": runs}}, {CELL.published.name: place()}
    )


def test_a_seed_that_ours_never_gets_to_is_a_miss() -> None:
    runs = {key: value for seed in range(3) for key, value in race(seed, [5, 5, 5] if seed else [0, 0, 0]).items()}
    found = row(CELL, runs, place())
    assert (found["ratio"], found["met"], found["ratios"][0]) == (None, False, None)
    lines = table([CELL], {CELL.name: {"runs": runs}}, {CELL.published.name: place()}).splitlines()
    assert "| done | not reached (–, 16.7, 16.7; –, 16.7, 16.7) | 4, **missed** | –, 6, 6; 100, 100, 100 |" in lines[2]
    assert "| lr 0.2, 1 steps, 16 samples; lr 0.1, 1 steps, 4 samples; none |" in lines[2]
    assert (
        len({line.count("|") for line in [*lines, *table([CELL], {}, {CELL.published.name: place()}).splitlines()]})
        == 1
    )


class Side:
    """A worker whose scores are known."""

    def __init__(self, scores, cpu: float = 1.0) -> None:
        self.scores, self.cpu, self.closed, self.versions, self.peak_mib = iter(scores), cpu, False, {}, 1.0
        self.probe_scores = [1.0]

    def turn(self) -> dict:
        return {"score": next(self.scores), "seconds": 1.0, "cpu_seconds": self.cpu}

    def close(self) -> None:
        self.closed = True


def test_a_race_ends_for_each_when_it_is_there_or_may_not_go_on() -> None:
    there = study.Contender(Side([0, 6, 6, 6]), 6, 3, most_iterations=9)
    short = study.Contender(Side([0] * 9), 6, 3, most_iterations=2)
    dear = study.Contender(Side([0] * 9, cpu=4.0), 6, 1, most_iterations=9, most_cpu=10.0)
    study.race({"ours": there, "published": short, "chosen": dear}, "")
    assert [len(one.turns) for one in (there, short, dear)] == [4, 2, 3]
    assert all(one.worker.closed for one in (there, short, dear))


def test_what_is_done_is_not_done_again_and_the_peers_small_settings_are_not_run(tmp_path, monkeypatch) -> None:
    done, stops = [], {3, 7}

    def started(cell, who, setting, seed, threads):  # noqa: ARG001
        if len(done) in stops:
            stops.remove(len(done))
            raise SystemExit("a program ended")
        done.append((who, full_name(setting), seed))
        scores = [0.0] * 7 + [4.0, 5.0, 6.0] if who == "theirs" else [0.0, *[setting["learning_rate"] * 30] * 19]
        return Side(scores), 20 if who == "ours" else 10

    monkeypatch.setattr(study, "started", started)
    monkeypatch.setattr(study.score_study, "load", loads(tmp_path / "found.json"))
    for _ in range(2):
        with pytest.raises(SystemExit, match="a program ended"):
            study.study([CELL], quick=False, threads=1, path=tmp_path / "found.json")
    (found,) = study.study([CELL], quick=False, threads=1, path=tmp_path / "found.json")
    assert found["complete"]
    assert found["same_scores"]
    assert found["search"]["tried"] == {"ours": 4, "theirs": 4}
    search = [one for one in done if one[2] >= 100]
    assert len(search) == len(set(search)) == 4 + 2 + 2
    assert [one[1] for one in search if one[0] == "theirs"] == [full_name(SLOW_16), full_name(FAST_16)]
    n = len(done)
    assert study.study([CELL], quick=False, threads=1, path=tmp_path / "found.json") == [found]
    assert len(done) == n
    with pytest.raises(SystemExit, match="found runs of the shape"):
        study.study([replace(CELL, n_iterations=9)], quick=False, threads=1, path=tmp_path / "found.json")


def test_races_can_be_run_anew_and_nothing_else() -> None:
    runs = {**race(0, [5, 5, 5]), **race(1, [5, 5, 5]), **alone("ours", SLOW, 200, [0, 1, 2], 1.0)}
    found = {"cells": {CELL.name: {"runs": runs, "row": {}}, "another": {"runs": race(0, [5, 5, 5]), "row": {}}}}
    left = study.without_races(found, [CELL, CELLS[-1]])["cells"]
    assert list(left[CELL.name]["runs"]) == [search_name("ours", SLOW, 200)]
    assert ("row" in left[CELL.name], len(left["another"]["runs"]), "row" in left["another"]) == (False, 1, True)


def loads(path):
    """`load` that knows one published cell beside the file."""

    def load(asked):
        if asked == score_study.RESULTS:
            return {"cells": {CELL.published.name: place()}}
        return json.loads(path.read_text()) if path.exists() else {"cells": {}}

    return load


def test_the_page_says_what_the_results_say() -> None:
    found, places = (score_study.load(path)["cells"] for path in (study.RESULTS, score_study.RESULTS))
    known = {cell.name: cell for cell in CELLS}
    for name, one in found.items():
        assert one["shape"] == known[name].shape
        expected = row(known[name], one["runs"], places[known[name].published.name])
        assert one.get("row") in (None, json.loads(json.dumps(expected)))
        if known[name].method != "ppo":  # TRL's PPO dealt its minibatches by a generator that nobody had seeded
            assert all(run["same_scores"] for run in one["runs"].values() if "same_scores" in run)
        assert all(math.isfinite(mark) for mark in (expected or {"marks": []})["marks"])
    start, end = study.MARKS
    written = score_study.DOCS.read_text(encoding="utf-8")
    assert written.split(start)[1].split(end)[0].strip() == study.page(CELLS, found, places)
