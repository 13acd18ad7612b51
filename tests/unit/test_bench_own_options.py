"""Own options, the fifth design of the time-to-score study, in small: what the peer tries, whose time counts on fresh seeds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bench import own_options_study as study
from bench import score_study
from bench.own_batch import full_name, row, search_name
from bench.own_options import CELLS, NO_CLIP, OwnOptions, of_beside, ours, peers_choice, peers_search, peers_settings
from bench.score_cells import SIDES, run_name

LOW = {"learning_rate": 3e-4, "n_minibatches": 1}
CELL = OwnOptions("rloo", "length", chosen=ours(3e-3, n_samples=8, dtype="bfloat16"), beside=ours(3e-3), seeds=(3,), fresh=True)  # fmt: skip
BEST = {"learning_rate": 1e-3, "n_minibatches": 4}


def side(scores, seconds: float) -> dict:
    return {"scores": scores, "seconds": [seconds] * len(scores), "cpu_seconds": [seconds / 2] * len(scores)}


def place() -> dict:
    """The published cell: the peer's best has 5 on seed 100 after ten iterations and 50 processor seconds, the others never."""
    runs = {}
    for setting in CELL.published.settings:
        both = dict.fromkeys(SIDES, setting)
        scores = [0.0] * 7 + [4.0, 5.0, 6.0] if setting == BEST else [0.0] * 10
        runs[run_name(both, 100)] = {"seed": 100, "settings": both, "theirs": side(scores, 10.0)}
    return {"runs": runs, "best": {"ours": LOW, "theirs": BEST}}


def alone(setting, scores, seconds: float) -> dict:
    return {search_name("theirs", setting, 100): {"seed": 100, "settings": {"theirs": setting}, "theirs": side(scores, seconds)}}  # fmt: skip


def test_the_peer_tries_our_options_at_its_own_rate_and_steps() -> None:
    assert [full_name(setting) for setting in peers_settings(place())] == [
        "lr 0.001, 4 steps, 8 samples",
        "lr 0.001, 4 steps, 4 samples, no clip",
        "lr 0.001, 4 steps, 8 samples, no clip",
        "lr 0.001, 4 steps, 4 samples, bfloat16",
    ]
    assert {cell.reward for cell in CELLS} == {"length", "word"}
    assert {seed for cell in CELLS if cell.fresh for seed in cell.seeds}.isdisjoint({0, 1, 2})


def test_the_peers_other_setting_is_the_soonest_of_all_designs() -> None:
    large = BEST | {"n_samples": 16}
    earlier = alone(large, [0, 5], 40.0)  # 40 processor seconds; one large iteration is a score
    assert len(peers_search(CELL, {}, {}, place())) == 5
    assert peers_choice(CELL, {}, {}, place()) is None
    assert peers_choice(CELL, {}, earlier, place()) == large
    unclipped = BEST | {"max_grad_norm": NO_CLIP}
    assert peers_choice(CELL, alone(unclipped, [5, 5, 5], 10.0), earlier, place()) == unclipped


def test_on_fresh_seeds_the_peers_own_end_is_the_mark(monkeypatch, tmp_path) -> None:
    made = []

    class Side:
        def __init__(self, scores) -> None:
            self.scores, self.versions, self.peak_mib, self.probe_scores = iter(scores), {}, 1.0, [1.0]

        def turn(self) -> dict:
            return {"score": next(self.scores), "seconds": 1.0, "cpu_seconds": 1.0}

        def close(self) -> None:
            made.append("closed")

    def started(_, who, setting, seed, threads):  # noqa: ARG001
        made.append((who, full_name(setting), seed))
        if who == "theirs":
            return Side([0.0] * 7 + [4.0, 5.0, 6.0] if setting == BEST else [0.0, *[9.0] * 9]), 10
        return Side([0.0] * 2 + [9.0] * 18 if "dtype" in setting else [0.0] * 20), 20

    def load(asked):
        if asked == score_study.RESULTS:
            return {"cells": {CELL.published.name: place()}}
        if asked == study.EARLIER:
            return {"cells": {CELL.earlier: {"runs": alone(BEST | {"n_samples": 16}, [0, 5], 40.0)}}}
        return json.loads(asked.read_text()) if asked.exists() else {"cells": {}}

    for module in (study, __import__("bench.own_batch_study", fromlist=["x"])):
        monkeypatch.setattr(module, "started", started)
    monkeypatch.setattr(study.score_study, "load", load)
    (found,) = study.study([CELL], threads=1, path=tmp_path / "found.json")
    # ours has 5 after the fifth iteration; the peer, whose end is 5, after the tenth, its new setting with 8 samples after the second
    assert (found["marks"], found["seconds"]) == ([5.0], {"ours": [4.0], "theirs": [2.0]})
    assert found["sooner"] == ["chosen"]
    assert found["ratios"] == [0.5]
    assert json.loads((tmp_path / "found.json").read_text())["cells"][CELL.name]["row beside"]["ratios"] == [None]
    assert len([one for one in made if one[0] == "theirs" and one[2] == 100]) == 4
    text = study.page([CELL], json.loads((tmp_path / "found.json").read_text())["cells"])
    assert "| rloo, length, 3 (fresh) | 0.5 (0.5; 0.5) | 4, **missed** |" in text
    assert study.study([CELL], threads=1, path=tmp_path / "found.json") == [found]
    with pytest.raises(SystemExit, match="found runs of the shape"):
        study.study([replace(CELL, n_iterations=9)], threads=1, path=tmp_path / "found.json")


def test_the_page_says_what_the_results_say() -> None:
    found, places = (score_study.load(path)["cells"] for path in (study.RESULTS, score_study.RESULTS))
    for cell in CELLS:
        one = found.get(cell.name, {})
        for which, runs in (("row", one.get("runs", {})), ("row beside", of_beside(one.get("runs", {})))):
            if which in one:
                expected = json.loads(json.dumps(row(cell, runs, places[cell.published.name])))
                assert {**one[which], "search": None} == {**expected, "search": None}
        assert all(run["same_scores"] for run in one.get("runs", {}).values() if "same_scores" in run)
    start, end = study.MARKS
    written = score_study.DOCS.read_text(encoding="utf-8")
    assert written.split(start)[1].split(end)[0].strip() == study.page(CELLS, found).strip()
