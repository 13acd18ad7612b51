"""The tables of bench rows: which row stands there, and whether the page says what was measured."""

import json
from pathlib import Path

from bench.row_tables import HERE, MARKS, latest, line, tables


def made(work: str = "ppo", ratio: float = 4.0, *, processor: str = "Some(R) Processor, family 1", **about) -> dict:
    side = {"ours": 10.0, "theirs": 2.5, "unit": "samples/s", "peak_mib_ours": 1000, "peak_mib_theirs": 2000}
    spread = {"ratio": {"q25": ratio - 0.5, "q75": ratio + 0.5}}
    machine = {"processor": processor}
    return (
        side
        | {"work": work, "ratio": ratio, "spread": spread, "threads": 2, "machine": machine, "n_repeats": 8}
        | about
    )


def test_the_last_row_of_a_kind_counts_and_one_thread_does_not():
    rows = [made(ratio=3.0), made(ratio=4.0), made(ratio=9.0, threads=1), made("rloo"), made("load")]
    (found,) = latest(rows).values()
    assert list(found) == ["ppo", "rloo"]
    assert found["ppo"]["ratio"] == 4.0


def test_the_processor_measured_last_comes_first():
    rows = [made(processor="a"), made(processor="b"), made("rloo", processor="a")]
    assert list(latest(rows)) == ["a", "b"]


def test_a_row_says_whether_it_misses_today_s_target():
    assert "| 4.00 (3.50 to 4.50) | 3 |" in line(made(ratio=4.0))
    assert "| **2.00 (1.50 to 2.50), missed** | 3 |" in line(made(ratio=2.0, target=1.0, met=True))


def test_a_row_of_memory_has_its_speed_in_brackets():
    row = made("memory-ppo", 2.3, unit="peak bytes", speed_ratio=5.4, ratio_memory_of_work=2.3)
    assert "| 10 samples/s | 2.5 | 2.30 (speed 5.40) | 2 |" in line(row)


def test_operations_are_billions_and_have_no_peak_of_a_peer():
    row = made("efficiency-ppo", 0.75, unit="operations/s", ours=1.5e11, theirs=2e11)
    del row["peak_mib_theirs"]
    assert "| 150 GFLOP/s | 200 | 0.75 (0.25 to 1.25) | 0.6 | 8 | 1,000 |" in line(row)


def test_the_page_has_the_rows_that_were_measured():
    text = (HERE / "results" / "bench.jsonl").read_text(encoding="utf-8")
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    between = page.partition(MARKS[0])[2].partition(MARKS[1])[0]
    assert between.strip() == tables([json.loads(one) for one in text.splitlines()])
