"""The latest row of every kind on every processor, as tables in docs/benchmarks.md.

    python -m bench.row_tables

Reads bench/results/bench.jsonl, in which rows stand in the order in which they were measured.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bench.pages import put_between
from bench.rows import TARGETS

HERE = Path(__file__).resolve().parent
MARKS = ("<!-- rows: begin -->", "<!-- rows: end -->")
HEAD = (
    "| row | ours | theirs | ratio (median; quartiles) | target | turns | peak MiB, ours and theirs | memory |\n"
    "|---|---|---|---|---|---|---|---|"
)


def latest(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The last row of each kind with two threads, by processor, the one measured last first; kinds in the order of the targets."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["work"] in TARGETS and row["threads"] == 2:
            processor = row["machine"]["processor"]
            found = {processor: found.get(processor, {}) | {row["work"]: row}} | {
                name: by for name, by in found.items() if name != processor
            }
    return {name: {work: by[work] for work in TARGETS if work in by} for name, by in found.items()}


def line(row: dict[str, Any]) -> str:
    """One row of a table; met or missed by today's target, whatever it was when the row was measured."""
    target, spread = TARGETS[row["work"]], row["spread"]["ratio"]
    of_memory = row["work"].startswith("memory-")
    unit = "samples/s" if of_memory else row["unit"].replace("operations/s", "GFLOP/s")
    # of a row of memory the turns' spread is that of its speed
    about = f"speed {short(row['speed_ratio'])}" if of_memory else f"{short(spread['q25'])} to {short(spread['q75'])}"
    ratio = f"{short(row['ratio'])} ({about})"
    if row["ratio"] < target:
        ratio = f"**{ratio}, missed**"
    rates = (f"{rate(row['ours'])} {unit}", rate(row["theirs"]))
    peaks = " and ".join(f"{row[side]:,}" for side in ("peak_mib_ours", "peak_mib_theirs") if side in row)
    memory = short(row["ratio_memory_of_work"]) if "ratio_memory_of_work" in row else ""
    cells = (f"`{row['work']}`", *rates, ratio, f"{target:g}", str(row["n_repeats"]), peaks, memory)
    return f"| {' | '.join(cells)} |"


def rate(value: float) -> str:
    """Three figures, with commas; operations in units of 10⁹."""
    value = value / 1e9 if value > 1e8 else value
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def short(value: float) -> str:
    """Two or three figures, as many as a ratio of speeds bears."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def title(processor: str) -> str:
    """The processor without its trade marks."""
    return re.sub(r"\((R|TM)\)|Processor", "", processor).replace("  ", " ").replace(" ,", ",").strip()


def tables(rows: list[dict[str, Any]]) -> str:
    """A table for every processor."""
    parts = []
    for processor, by_work in latest(rows).items():
        days = sorted({row["measured"] for row in by_work.values() if "measured" in row})
        when = f" ({days[0]} to {days[-1]})" if len(days) > 1 else f" ({days[0]})" if days else ""
        parts.append("\n".join([f"**{title(processor)}**, 2 cores{when}", "", HEAD, *map(line, by_work.values())]))
    return "\n\n".join(parts)


def main() -> None:
    """Write the tables into the page."""
    text = (HERE / "results" / "bench.jsonl").read_text(encoding="utf-8")
    put_between(HERE.parent / "docs" / "benchmarks.md", MARKS, tables([json.loads(one) for one in text.splitlines()]))


if __name__ == "__main__":
    main()
