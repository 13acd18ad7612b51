"""The study of memory under LoRA: what its summary and its table say of planted peaks."""

from __future__ import annotations

from bench.lora_memory_study import ALLOCATORS, SIDES, summary, table


def row(sft: float, ppo: float) -> dict:
    def one(side: str, peak: float) -> dict:
        phases = (
            {"update": peak} if side == "sft" else {"sample": 100.0, "score": 90.0, "forward": 120.0, "update": peak}
        )
        return {"side": side, "peak_mib": peak, "phases": phases, "cpu_seconds": 10.0}

    return {side: one(side, sft if side == "sft" else ppo) for side in SIDES}


def test_the_ratio_is_that_of_the_same_repeat_and_the_worst_repeat_decides() -> None:
    rows = [row(1000.0, 1500.0), row(2000.0, 2000.0), row(1000.0, 1200.0)]
    first, second, *_ = summary(ALLOCATORS[0], rows)
    assert (first["side"], first["ratio"], first["ratio_range"]) == ("sft", 1.0, [1.0, 1.0])
    assert (second["side"], second["n"], second["peak_mib"]) == ("ppo", 3, 1500.0)
    assert (second["ratio"], second["ratio_range"], second["met"]) == (1.2, [1.0, 1.5], True)
    assert second["phases"]["forward"] == 120.0
    assert not summary(ALLOCATORS[0], [*rows, row(1000.0, 1501.0)])[1]["met"]


def test_the_table_has_a_line_for_each_side() -> None:
    lines = table({"returned": {"summary": summary(ALLOCATORS[0], [row(1000.0, 1500.0)])}}).splitlines()
    assert len(lines) == 2 + len(SIDES)
    assert {line.count("|") for line in lines} == {11}
    assert (
        lines[3]
        == "| returned | `ppo` | 1 | 1,500 (1,500 to 1,500) | 1.50 (1.50 to 1.50) | 100 | 90 | 120 | 1,500 | 10 |"
    )
