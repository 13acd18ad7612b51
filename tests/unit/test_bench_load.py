"""The arithmetic of the load bench: what a crowd does, and from what happened to figures."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from bench import load_study
from bench.load import figures
from bench.load.plan import Plan, items, rater_rng, think_time
from bench.load.systems import descendants

PLAN = Plan("ours", raters=20, seconds=30.0)


def event(rater, kind, begin, seconds, how="ok"):
    return [rater, kind, begin, seconds, how]


def test_think_times_have_the_mean_asked_for_and_few_extremes():
    rng = random.Random(0)
    times = [think_time(rng, 10.0) for _ in range(20_000)]
    # the standard error of the mean is 10·√(e^¼ − 1)/√20000 = 0.04
    assert abs(sum(times) / len(times) - 10.0) < 0.15
    assert 0.87 < sum(4.0 < t < 20.0 for t in times) / len(times) < 0.92


def test_the_same_rater_thinks_as_long_in_every_system_and_not_as_long_as_the_next():
    here, there, next_one = (rater_rng(p, n) for p, n in ((PLAN, 3), (replace(PLAN, system="potato"), 3), (PLAN, 4)))
    assert [think_time(here, 10) for _ in range(5)] == [think_time(there, 10) for _ in range(5)]
    assert think_time(rater_rng(PLAN, 3), 10) != think_time(next_one, 10)


def test_the_queue_is_long_enough_and_every_text_differs():
    queue = items(PLAN)
    # 20 raters · 40 s / 10 s = 80 answers
    assert len(queue) == 200
    assert len({text for item in queue for text in (item.prompt, *item.responses)}) == 3 * 200
    assert items(PLAN) == queue
    assert items(replace(PLAN, seed=1))[0].prompt != queue[0].prompt
    assert all(item.prompt.startswith(f"{item.id}: ") for item in queue)


def test_a_plan_survives_the_file(tmp_path):
    plan = replace(PLAN, url="http://127.0.0.1:1", options="page sqlite", files=str(tmp_path))
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan


def test_latencies_leave_out_the_warm_up_and_refusals_and_keep_who_is_still_waiting():
    events = [
        event(0, "next", 1.0, 9.0),
        event(0, "next", 10.0, 0.1),
        event(1, "next", 11.0, 60.0, "timeout"),
        event(2, "next", 12.0, 20.0, "cut"),
        event(3, "next", 13.0, 0.001, "error"),
        event(4, "next", 13.0, 0.002, "empty"),
        event(0, "submit", 14.0, 0.2),
    ]
    ms, raters = figures.latencies(events, "next", after=10.0)
    assert ms.tolist() == pytest.approx([100.0, 60_000.0, 20_000.0])
    assert raters.tolist() == [0, 1, 2]


def test_percentiles_are_those_of_the_requests_and_their_interval_that_of_the_raters():
    ms = np.arange(1.0, 101.0)
    found = figures.percentiles(ms, np.arange(100), np.random.default_rng(0))
    # by hand: the position of p95 among 1 … 100 is 0.95·99 = 94.05, so 95.05
    assert (found["p50_ms"], found["p95_ms"], found["p99_ms"]) == (50.5, 95.05, 99.01)
    low, high = found["p95_interval"]
    assert 88 < low < 95.05 < high <= 100
    same = figures.percentiles(np.tile([5.0, 7.0], 10), np.repeat(np.arange(10), 2), np.random.default_rng(0))
    assert same["p95_interval"] == [7.0, 7.0]
    alone = figures.percentiles(ms, np.zeros(100, dtype=int), np.random.default_rng(0))
    assert alone["p95_interval"] is None
    nothing = figures.percentiles(np.array([]), np.array([], dtype=int), np.random.default_rng(0))
    assert nothing["n"] == 0
    assert nothing["p95_ms"] is None


def test_a_summary_counts_how_requests_ended_and_what_was_acknowledged():
    outcome = {
        "events": [
            event(0, "submit", 5.0, 0.1),
            event(0, "submit", 12.0, 0.1),
            event(1, "submit", 13.0, 0.3),
            event(1, "submit", 14.0, 0.001, "error"),
            event(1, "next", 15.0, 3.0, "cut"),
        ],
        "acknowledged": [[0, "item1"], [0, "item2"], [1, "item3"]],
        "errors": {"submit: Refused: status 500": 1},
        "lags": [0.001] * 99 + [0.5],
        "cpu_seconds": 1.0,
        "peak_mib": 40.0,
        "signing_in_seconds": 2.0,
    }
    found = figures.summary(outcome, warm=10.0, seconds=20.0, rng=np.random.default_rng(0))
    assert found["acknowledged"] == 3
    assert found["answers_per_second"] == 0.1
    assert (found["submit"]["n"], found["submit"]["refused"], found["submit"]["p50_ms"]) == (2, 1, 200.0)
    assert (found["next"]["cut"], found["next"]["p50_ms"]) == (1, 3000.0)
    assert found["crowd"]["late_p99_ms"] == 1.0


def test_answers_that_are_not_there_are_lost_and_items_answered_twice_are_named():
    told = [(0, "item1"), (1, "item2"), (2, "item3")]
    there = [(0, "item1"), (1, "item2"), (1, "item2"), (3, "item2"), (4, "item9")]
    assert figures.kept(told, there) == {
        "stored": 5,
        "lost": 1,
        "stored_twice": 1,
        "items_answered_too_often": 1,
    }
    assert figures.kept(told, told)["lost"] == 0


def run(next_ms, submit_ms, **more):
    kinds = {"next": {"p95_ms": next_ms}, "submit": {"p95_ms": submit_ms}}
    return (
        kinds | {"lost": 0, "errors": {}, "server": {"peak_mib": 100, "cpu_ms_an_answer": 20.0}, "versions": {}} | more
    )


def test_the_ratio_is_the_smallest_of_the_four_and_larger_is_better():
    chosen = load_study.plans(["ours", "potato", "label_studio"], raters=5, many=10, seconds=1.0)
    runs = {"ours": run(10.0, 20.0), "potato": run(40.0, 30.0), "label_studio": run(900.0, 800.0)}
    found = load_study.row(runs, chosen)
    assert found["ratios"] == {"potato": {"next": 4.0, "submit": 1.5}, "label_studio": {"next": 90.0, "submit": 40.0}}
    assert found["ratio"] == 1.5
    assert found["met"] is True
    assert load_study.row(runs | {"ours": run(10.0, 31.0)}, chosen)["met"] is False
    assert load_study.row(runs | {"ours": run(10.0, 20.0, lost=1)}, chosen)["met"] is False
    assert load_study.row(runs | {"ours": run(10.0, 20.0, errors={"next: status 500": 1})}, chosen)["met"] is False


def test_a_row_without_both_peers_says_neither_met_nor_missed():
    chosen = load_study.plans(["ours", "potato"], raters=5, many=10, seconds=1.0)
    found = load_study.row({"ours": run(10.0, 20.0), "potato": run(40.0, 30.0)}, chosen)
    assert found["met"] is None
    assert found["ratio"] == 1.5
    assert load_study.row({"potato": run(40.0, 30.0)}, chosen)["ours"] is None


def test_the_crowds_differ_in_nothing_but_the_system_except_on_postgresql():
    chosen = load_study.plans(load_study.ROW, raters=200, many=2000, seconds=60.0)
    alike = {replace(chosen[name], system="", options="") for name in load_study.ROW if name != "ours_postgres"}
    assert len(alike) == 1
    assert chosen["ours_postgres"].raters == 2000


def test_costs_are_those_of_an_answer_and_their_ratios_larger_is_better():
    ours, theirs = {"server": figures.costs(100.4, 2.0, 100)}, {"server": figures.costs(250.0, 9.0, 150)}
    assert ours["server"] == {"peak_mib": 100, "cpu_seconds": 2.0, "cpu_ms_an_answer": 20.0}
    assert figures.over(ours, theirs, "cpu_ms_an_answer") == 3.0
    assert figures.over(ours, theirs, "peak_mib") == 2.5
    nobody = {"server": figures.costs(100.0, 1.0, 0)}
    assert nobody["server"]["cpu_ms_an_answer"] is None
    assert figures.over(ours, nobody, "cpu_ms_an_answer") is None


def test_descendants_are_the_whole_tree_and_nothing_beside_it():
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20, 30: 1}
    assert descendants(parents, [10, 20]) == {10, 11, 12, 20, 21}
    assert descendants(parents, [99]) == set()


def test_think_time_is_log_normal():
    rng = random.Random(1)
    logs = sorted(math.log(think_time(rng, 10.0)) for _ in range(20_001))
    # the median of ln t is ln mean − σ²/2 with σ = 0.5; its standard error 0.5·1.2533/√20001 = 0.0044
    assert abs(logs[10_000] - (math.log(10) - 0.125)) < 0.018
