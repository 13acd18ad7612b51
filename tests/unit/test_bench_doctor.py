"""The study of what doctor announces: its ratios and its table, from planted figures."""

from __future__ import annotations

from bench.doctor_study import Case, ratios, section_of, table

MIB = 1 << 20


def test_each_station_is_held_against_the_line_that_speaks_of_it() -> None:
    case = Case("one", algorithm="rloo")
    said = {"sft": 100 * MIB, "reward": 90 * MIB, "group": 300 * MIB, "decode_cache": MIB}
    found = ratios(case, said, {"sft": 100.0, "collect": 50.0, "reward": 100.0, "rloo": 200.0})
    assert section_of(case) == "group"
    assert found["rloo"] == {"announced": 300, "measured": 200, "ratio": 1.5}
    assert found["reward"]["ratio"] == 0.9


def test_the_table_counts_the_stations_that_are_near_enough() -> None:
    one = {"announced": 1000, "measured": 1000, "ratio": 1.0}
    far = {"announced": 1500, "measured": 1000, "ratio": 1.5}
    worlds = {"a": {"summary": {"algorithm": "ppo", "stations": {"sft": one, "reward": one, "ppo": far}}}}
    lines = table(worlds).splitlines()
    assert lines[2] == "| a | 1,000, 1,000, 1.00 | 1,000, 1,000, 1.00 | 1,500, 1,000, 1.50 |"
    assert lines[-1] == "3 stations: ratio 1.00 to 1.50, 2 of them within 0.9 to 1.3."
