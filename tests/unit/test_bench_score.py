"""The time-to-score study in small: its arithmetic by hand, what it chooses, that it goes on, and what the docs say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bench import score_study as study
from bench.score_cells import CELLS, LETTERS, SIDES, Cell, run_name, smallest
from bench.score_figures import best, finals, iterations_to, page, progress, row, smoothed, table

CELL = Cell("rloo", "length", n_iterations=4, n_search=3, window=2, rates=(0.1, 0.2, 0.3), steps=(1, 4), n_prompts=16)


def made(settings, seed, ours, theirs, seconds=(1.0, 10.0)) -> dict:
    """A run with these scores, an iteration always as long."""
    sides = {
        side: {"scores": scores, "seconds": [s] * len(scores), "cpu_seconds": [s**0.5] * len(scores)}
        for side, scores, s in zip(SIDES, (ours, theirs), seconds, strict=True)
    }
    peaks = {"ours": 100 + seed, "theirs": 300 - seed}
    return {
        "seed": seed,
        "settings": dict(settings),
        **sides,
        "versions": {},
        "peak_mib": peaks,
        "machine": {},
        "threads": 1,
    }


def searched(cell: Cell, merits: dict) -> dict:
    """The runs of a search after whose first update the scores of both sides are a setting's merit."""
    runs = {}
    for setting in cell.settings:
        pair = dict.fromkeys(SIDES, setting)
        merit = merits[setting["learning_rate"], setting["n_minibatches"]]
        runs[run_name(pair, cell.search_seed)] = made(pair, cell.search_seed, [99.0, merit, merit], [0.0, merit, merit])
    return runs


MERITS = {(0.1, 1): 3, (0.1, 4): 1, (0.2, 1): 1, (0.2, 4): 2, (0.3, 1): 8, (0.3, 4): 7}


@pytest.mark.parametrize(
    ("target", "window", "expected"), [(2, 1, 2), (2, 2, 3), (3, 1, 3), (3, 2, None), (0, 2, 2), (2.5, 2, 3)]
)
def test_a_score_is_reached_where_its_mean_first_is(target, window, expected) -> None:
    scores = [0.0, 2.0, 3.0, 2.0]
    assert iterations_to(scores, target, window) == expected
    by_hand = [sum(scores[i : i + window]) / window for i in range(len(scores) - window + 1)]
    assert smoothed(scores, window) == pytest.approx(by_hand)


def test_the_two_best_rates_meet_each_at_its_better_setting() -> None:
    runs = searched(CELL, MERITS)
    expected = [{"learning_rate": 0.1, "n_minibatches": 1}, {"learning_rate": 0.3, "n_minibatches": 1}]
    assert finals(CELL, runs) == [dict.fromkeys(SIDES, setting) for setting in expected]
    assert best(CELL, runs) is None
    runs.popitem()
    assert finals(CELL, runs) is None
    assert progress(CELL, runs) == "search: 5 of 6 settings"


def finished(*, reached: bool = True, learnt: bool = True, seeds: int = 3) -> dict:
    """A cell in which each side is best at another rate, ours at 0.3, TRL at 0.1."""
    runs = searched(CELL, MERITS)
    low, high = finals(CELL, runs)
    runs[run_name(low, 0)] = made(low, 0, [0, 1, 1, 1], [0, 1, 3, 5] if learnt else [5, 3, 1, 0])
    runs[run_name(high, 0)] = made(
        high, 0, [0, 6, 6, 6] if reached else [0, 2, 2, 2], [0, 0, 0, 0] if learnt else [-1] * 4
    )
    chosen = {"ours": high["ours"], "theirs": low["theirs"]}
    for seed in range(1, seeds):
        runs[run_name(chosen, seed)] = made(chosen, seed, [0, 0, 6, 6], [0, 2, 4, 4], (2.0, 10.0))
    return runs


def test_a_row_by_hand() -> None:
    found = row(CELL, finished())
    # seed 0: TRL ends at (3 + 5)/2 = 4, reached at its 4th iteration; ours has (6 + 6)/2 at its 3rd, 3 at its 2nd
    # the others: 4 at the 4th; ours (0 + 6)/2 = 3 at the 3rd, 6 at the 4th
    assert found["seconds"] == {"ours": [3.0, 8.0, 8.0], "theirs": [40.0, 40.0, 40.0]}
    assert found["samples"] == {"ours": [192, 256, 256], "theirs": [256, 256, 256]}
    assert found["ratios"] == pytest.approx([40 / 3, 5, 5])
    assert found["ratios_cpu"] == pytest.approx([4 * 10**0.5 / 3, 5**0.5, 5**0.5])
    assert (found["ratio"], found["ratio_samples"]) == (5, 1)
    assert (found["met"], found["complete"], found["peer_learnt"]) == (True, True, True)
    assert found["fewer_samples_on_every_seed"] is False
    assert (found["ours"], found["theirs"]) == (8, 40)
    assert (found["peak_mib_ours"], found["peak_mib_theirs"]) == (102, 300)
    assert found["settings"]["ours"]["learning_rate"] == 0.3
    assert found["settings"]["theirs"]["learning_rate"] == 0.1
    assert found["spread"]["ratio"] == {"min": 5, "max": pytest.approx(40 / 3)}


def test_a_target_is_met_by_all_seeds_and_beside_a_peer_that_learnt() -> None:
    assert row(CELL, searched(CELL, MERITS)) is None
    some = row(CELL, finished(seeds=2))
    assert (some["met"], some["complete"], some["seeds"], some["ratio"]) == (
        False,
        False,
        [0, 1],
        pytest.approx(55 / 6),
    )
    never = row(CELL, finished(reached=False))
    assert (never["met"], never["ratio"], never["ours"], never["ratios"][0]) == (False, None, None, None)
    assert never["note"] == "the peer's final score was not reached in 1 runs"
    worse = row(CELL, finished(learnt=False))
    assert (worse["met"], worse["peer_learnt"]) == (False, False)


def test_the_table_says_what_was_not_run() -> None:
    other = Cell("grpo", "word")
    lines = table([CELL, other], {CELL.name: {"runs": finished(reached=False, seeds=2)}}).splitlines()
    assert (
        "| 2 of 3 seeds | not reached (–, 5.0; –, 2.2) | 4 | –, 8; 40, 40 | –, 256; 256, 256 | 0.5 → 4.0, 1.0 → 4.0 |"
        in lines[2]
    )
    assert "| not run | | 4 | | | | |" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch) -> None:
    done, path = [], tmp_path / "found.json"

    def one_run(cell, settings, seed, n_iterations, threads):  # noqa: ARG001
        if len(done) in stops:
            stops.remove(len(done))
            raise SystemExit("a program ended")
        done.append(run_name(settings, seed))
        merit = MERITS.get((settings["ours"]["learning_rate"], settings["ours"]["n_minibatches"]), 1)
        return made(settings, seed, [0] + [merit] * (n_iterations - 1), [0] + [merit / 2] * (n_iterations - 1))

    monkeypatch.setattr(study, "one_run", one_run)
    stops = {2, 9}
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"1 of 1 cells failed: rloo, length: a program ended"):
            study.study([CELL], quick=False, threads=1, path=path)
    rows = study.study([CELL], quick=False, threads=1, path=path)
    assert len(done) == len(set(done)) == 6 + 2 + 2
    assert json.loads(path.read_text())["cells"][CELL.name]["row"] == rows[0]
    assert study.study([CELL], quick=False, threads=1, path=path) == rows
    assert len(done) == 10
    other = Cell("rloo", "length", n_iterations=5, window=2)
    with pytest.raises(SystemExit, match="found runs of the shape"):
        study.study([other], quick=False, threads=1, path=path)
    assert len(smallest(CELL).settings) == 1
    assert study.study([CELL], quick=True, threads=1, path=tmp_path / "quick.json")[0]["seeds"] == [0]
    assert len(done) == 11


WHOLE = Cell(
    "rloo", "length", n_iterations=4, window=2, rates=(0.1, 0.2), steps=(1,), n_prompts=16, whole_search=True, times_longer=2
)  # fmt: skip


def whole(*, seeds: int) -> dict:
    """A whole search in which ours is better at 0.2 while the peer's iterations last and worse later; TRL at 0.1."""
    low, high = (dict.fromkeys(SIDES, setting) for setting in WHOLE.settings)
    runs = {
        run_name(low, 100): made(low, 100, [9, 9, 1, 2, 9, 9, 9, 9], [0, 0, 4, 4]),
        run_name(high, 100): made(high, 100, [0, 0, 2, 2, 0, 0, 0, 0], [9, 9, 3, 3]),
    }
    chosen = {"ours": high["ours"], "theirs": low["theirs"]}
    for seed in range(seeds):
        runs[run_name(chosen, seed)] = made(chosen, seed, [0, 1, 1, 1, 4, 4, 5, 5], [0, 2, 4, 4], (1.0, 10.0))
    return runs


def test_a_whole_search_tells_by_the_second_half_of_the_peers_iterations() -> None:
    runs = whole(seeds=3)
    chosen = best(WHOLE, runs)
    assert (chosen["ours"]["learning_rate"], chosen["theirs"]["learning_rate"]) == (0.2, 0.1)
    assert finals(WHOLE, runs) is None
    found = row(WHOLE, runs)
    # TRL ends at 4 at its 4th iteration; ours reaches (4 + 4)/2 at its 6th, which the peer's four would not have held
    assert (found["samples"]["ours"], found["samples"]["theirs"]) == ([384] * 3, [256] * 3)
    assert found["ratios"] == pytest.approx([40 / 6] * 3)
    assert (found["met"], found["fewer_samples_on_every_seed"]) == (True, False)
    assert table([WHOLE], {WHOLE.name: {"runs": runs}}).splitlines()[2].startswith(
        "| rloo, length (whole search) | 8 and 4 × 64, 2 | done | 6.7 "
    )  # fmt: skip
    runs = whole(seeds=0)
    assert (row(WHOLE, runs), progress(WHOLE, runs)) == (None, "search done, seeds not")
    runs.popitem()
    assert (best(WHOLE, runs), progress(WHOLE, runs)) == (None, "search: 1 of 2 settings")


def test_ours_takes_its_share_of_iterations_at_each_turn() -> None:
    order = []

    class Side:
        def __init__(self, name: str) -> None:
            self.name, self.closed = name, False

        def turn(self) -> dict:
            order.append(self.name)
            return {"score": len(order), "seconds": 1.0, "cpu_seconds": 1.0}

        def close(self) -> None:
            self.closed = True

    ours, theirs = Side("o"), Side("t")
    turns = study.turns_of({"ours": ours, "theirs": theirs}, counts={"ours": 4, "theirs": 2}, label="")
    assert "".join(order) == "oottoo"
    assert [turn["score"] for turn in turns["ours"]] == [1, 2, 5, 6]
    assert [turn["score"] for turn in turns["theirs"]] == [3, 4]
    assert ours.closed
    assert theirs.closed
    assert len(study.turns_of({"ours": Side("o")}, counts={"ours": 4}, label="")["ours"]) == 4


def test_an_equal_search_judges_ours_by_all_its_seeds_and_the_peer_by_one(tmp_path, monkeypatch) -> None:
    cell, done = replace(WHOLE, more_search_seeds=(101, 102)), []

    def one_run(cell, settings, seed, n_iterations, threads):  # noqa: ARG001
        done.append((seed, *settings))
        # on seed 100 both sides are better at 0.2, which ours collapses with on the further seeds
        rate = settings["ours"]["learning_rate"]
        ours = rate if seed == 100 else -rate
        made_ = made(
            dict.fromkeys(SIDES, settings["ours"]) | dict(settings), seed, [0.0, *[ours] * 7], [0.0, *[rate] * 3]
        )
        return {key: value for key, value in made_.items() if key not in set(SIDES) - set(settings)} | {
            "settings": dict(settings)
        }

    monkeypatch.setattr(study, "one_run", one_run)
    path = tmp_path / "found.json"
    study.study([WHOLE], quick=False, threads=1, path=path)
    done.clear()
    found = study.study([cell], quick=False, threads=1, path=path)[0]
    both = ("ours", "theirs")
    assert done == [(101, "ours"), (102, "ours")] * 2 + [(seed, *both) for seed in range(3)]
    assert [found["settings"][side]["learning_rate"] for side in SIDES] == [0.1, 0.2]
    assert progress(cell, study.load(path)["cells"][cell.name]["runs"]) == "done"
    assert study.study([cell], quick=False, threads=1, path=path) == [found]
    assert len(done) == 7


def test_a_whole_search_runs_in_full_and_every_seed_anew(tmp_path, monkeypatch) -> None:
    done = []

    def one_run(cell, settings, seed, n_iterations, threads):  # noqa: ARG001
        done.append((seed, n_iterations))
        rate = settings["ours"]["learning_rate"]
        return made(settings, seed, [0.0] + [rate] * (2 * n_iterations - 1), [0.0] + [rate] * (n_iterations - 1))

    monkeypatch.setattr(study, "one_run", one_run)
    found = study.study([WHOLE], quick=False, threads=1, path=tmp_path / "found.json")[0]
    assert done == [(100, 4), (100, 4), (0, 4), (1, 4), (2, 4)]
    assert [found["settings"][side]["learning_rate"] for side in SIDES] == [0.2, 0.2]


def test_sides_that_score_differently_do_not_run() -> None:
    assert study.score_gap([1.0, 2.0], [1.0, 2.000001]) == pytest.approx(1e-6)
    for ours, theirs in (([1.0], [1.1]), ([1.0], [float("nan")]), ([1.0, 2.0], [1.0]), ([], [])):
        with pytest.raises(SystemExit, match=r"probes|same responses"):
            study.score_gap(ours, theirs)


def test_the_page_says_what_the_results_say() -> None:
    found = study.load(study.RESULTS)["cells"]
    known = {cell.name: cell for cell in CELLS}
    for name, place in found.items():
        assert place["shape"] == known[name].shape
        assert place.get("row") in (None, json.loads(json.dumps(row(known[name], place["runs"]))))
    start, end = study.MARKS
    written = study.DOCS.read_text(encoding="utf-8")
    assert written.split(start)[1].split(end)[0].strip() == page(CELLS, found)


def test_the_runs_made_before_there_were_cells_keep_their_choice() -> None:
    runs = study.load(study.RESULTS)["cells"][LETTERS.name]["runs"]
    assert [pair["ours"]["learning_rate"] for pair in finals(LETTERS, runs)] == [1e-3, 3e-3]
    assert best(LETTERS, runs)["theirs"] == {"learning_rate": 1e-3, "n_minibatches": 4}
    assert row(LETTERS, runs)["ratios"] == pytest.approx([7.121, 12.091, 13.456], abs=1e-3)
