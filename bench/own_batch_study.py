"""Time to score where each side also chooses its samples an iteration: the fourth design of the time-to-score study.

    python -m bench.own_batch_study [--method ppo|rloo|grpo …] [--reward length|word …] [--anew] [--quick]
    python -m bench.own_batch_study --tables

The rules are in docs/benchmarks.md, "Own batch"; own_batch.py has the choices and the arithmetic. What the peer did with 4 samples
a prompt is taken from bench/results/score_study.json; every run here is written at once to bench/results/own_batch_study.json, and
what is there is not run again, but for the races with `--anew`, where the machine has become quieter: with the same code their scores stay, their times do not. `--tables` writes what there is into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import score_study
from bench.own_batch import (
    CELLS,
    OUR_SHARE,
    PEERS_SLACK,
    OwnBatch,
    leader,
    peers_choice,
    progress,
    published,
    race_name,
    row,
    search_name,
    seconds_to,
    table,
    window_of,
)
from bench.pages import put_between
from bench.rows import machine
from bench.score_cells import Setting
from bench.turns import ROOT, Worker

RESULTS = ROOT / "bench" / "results" / "own_batch_study.json"
MARKS = ("<!-- own_batch_study: begin -->", "<!-- own_batch_study: end -->")


class Contender:
    """One side at one setting, iteration by iteration until it has a score, or may not go on."""

    def __init__(
        self, worker: Worker, mark: float, window: int, *, most_iterations: int, most_cpu: float = float("inf")
    ) -> None:
        self.worker, self.mark, self.window = worker, mark, window
        self.most_iterations, self.most_cpu = most_iterations, most_cpu
        self.turns: list[dict[str, Any]] = []

    @property
    def record(self) -> dict[str, list[float]]:
        """What of its iterations is written down."""
        return score_study.kept(self.turns)

    @property
    def going(self) -> bool:
        """Whether it may make another iteration."""
        there = seconds_to(self.record, self.mark, self.window) < float("inf")
        over = sum(self.record["cpu_seconds"]) >= self.most_cpu
        return not there and not over and len(self.turns) < self.most_iterations


def race(contenders: Mapping[str, Contender], label: str, *, close: bool = True) -> None:
    """Turn by turn, every second time in the opposite order, until none goes on; then they end, unless more is to come."""
    number = 0
    while any(one.going for one in contenders.values()):
        number += 1
        for who in reversed(contenders) if number % 2 else contenders:
            if contenders[who].going:
                contenders[who].turns.append(contenders[who].worker.turn())
        said = ", ".join(f"{who} {one.turns[-1]['score']:.2f}" for who, one in contenders.items() if one.going)
        print(f"{label} {number}: {said}", file=sys.stderr, flush=True)
    for one in contenders.values() if close else ():
        one.worker.close()


def study(
    cells: Sequence[OwnBatch] = CELLS, *, quick: bool, threads: int, path: Path | None = None
) -> list[dict[str, Any] | None]:
    """Run what is missing of these cells, run by run; their rows. `quick` makes each small and keeps it apart.

    Raises: SystemExit where a program fails, or the file has runs of another shape.
    """
    path = path or (score_study.WORK / "own_batch_quick.json" if quick else RESULTS)
    found, places = {"cells": {}} if quick else score_study.load(path), score_study.load(score_study.RESULTS)["cells"]
    rows = []
    for cell in cells:
        one = smallest(cell) if quick else cell
        rows.append(run_cell(one, found, places[cell.published.name], path, threads))
    return rows


def smallest(cell: OwnBatch) -> OwnBatch:
    """The same cell as small as it can be: does it run?"""
    small = {"samples": (4, 8), "rates": (1e-3,), "steps": (4,), "n_iterations": 1}
    return replace(cell, **small, further_seeds=(), n_finalists=1, seeds=(0,))


def run_cell(
    cell: OwnBatch, found: dict[str, Any], place: Mapping[str, Any], path: Path, threads: int
) -> dict[str, Any] | None:
    """Both searches, then the races; the cell's row."""
    own = found["cells"].setdefault(cell.name, {"shape": cell.shape, "runs": {}})
    if own["shape"] != cell.shape:
        raise SystemExit(f"found runs of the shape {own['shape']}; expected {cell.shape}; move them out of {path}")
    runs, seed = own["runs"], cell.published.search_seed
    goal = published(cell, place, seed)
    limits = {"ours": OUR_SHARE * goal.cpu_seconds, "theirs": PEERS_SLACK * goal.cpu_seconds}

    def run(side: str, setting: Setting, seed: int) -> None:
        if (name := search_name(side, setting, seed)) not in runs:
            runs[name] = search_run(cell, side, setting, seed, goal.mark, limits[side], threads)
            score_study.write(found, path)

    for setting in cell.settings:
        run("ours", setting, cell.first_seed)
    while (first := leader(cell, runs, goal.mark)) and first[1] is not None:
        run("ours", *first)
    for setting in cell.settings:
        if "n_samples" in setting:
            run("theirs", setting, seed)
    assert first is not None
    chosen = {"ours": first[0], "published": goal.setting}
    if (other := peers_choice(cell, runs, place)) is not None:
        chosen["chosen"] = other
    for number in cell.seeds:
        if (name := race_name(number)) not in runs:
            runs[name] = race_run(cell, chosen, number, place, threads)
            score_study.write(found, path)
    own["row"] = row(cell, runs, place)
    score_study.write(found, path)
    return own["row"]


def without_races(found: dict[str, Any], cells: Sequence[OwnBatch]) -> dict[str, Any]:
    """The same results without what the races of these cells said."""
    for cell in cells:
        if (one := found["cells"].get(cell.name)) is not None:
            one.pop("row", None)
            one["runs"] = {name: run for name, run in one["runs"].items() if name != race_name(run["seed"])}
    return found


def started(cell: OwnBatch, side: str, setting: Setting, seed: int, threads: int) -> tuple[Worker, int]:
    """One side's program, ready, and how many iterations it makes at most."""
    most = cell.n_iterations if side == "ours" else min(cell.n_iterations, cell.published.n_iterations)
    common = {"seed": seed, "threads": threads}
    (worker,) = score_study.start_workers(cell.published, {side: setting}, {side: most}, common)
    worker.wait_ready()
    return worker, most


def search_run(
    cell: OwnBatch, side: str, setting: Setting, seed: int, mark: float, most_cpu: float, threads: int
) -> dict[str, Any]:
    """One side at one setting, until it has the mark or may not go on."""
    worker, most = started(cell, side, setting, seed, threads)
    one = Contender(worker, mark, window_of(cell, side, setting), most_iterations=most, most_cpu=most_cpu)
    race({side: one}, f"{cell.name}, {search_name(side, setting, seed)}")
    about = {"versions": {side: worker.versions}, "peak_mib": {side: round(worker.peak_mib)}}
    return {"seed": seed, "settings": {side: dict(setting)}, side: one.record, **about, **_where(threads)}


def race_run(
    cell: OwnBatch, chosen: Mapping[str, Setting], seed: int, place: Mapping[str, Any], threads: int
) -> dict[str, Any]:
    """Ours and the peer's one or two, in turns, to the peer's published score.

    Raises: SystemExit where two of them score a response differently.
    """
    goal, contenders = published(cell, place, seed), {}
    for who, setting in chosen.items():
        side = "ours" if who == "ours" else "theirs"
        worker, most = started(cell, side, setting, seed, threads)
        cpu = PEERS_SLACK * goal.cpu_seconds if who == "chosen" else float("inf")
        window = window_of(cell, side, setting)
        contenders[who] = Contender(worker, goal.mark, window, most_iterations=most, most_cpu=cpu)
    workers = {who: one.worker for who, one in contenders.items()}
    gap = score_study.score_gap(workers["ours"].probe_scores, workers["published"].probe_scores)
    race(contenders, f"{cell.name}, seed {seed}")
    again = contenders["published"].record["scores"]
    return {
        "seed": seed,
        "settings": {who: dict(setting) for who, setting in chosen.items()},
        "mark": goal.mark,
        **{who: one.record for who, one in contenders.items()},
        "same_scores": again == list(goal.scores[: len(again)]),
        "largest_score_gap": gap,
        "versions": {who: worker.versions for who, worker in workers.items()},
        "peak_mib": {who: round(worker.peak_mib) for who, worker in workers.items()},
        **_where(threads),
    }


def _where(threads: int) -> dict[str, Any]:
    return {"machine": machine(), "threads": threads}


def page(cells: Sequence[OwnBatch], found: Mapping[str, Any], places: Mapping[str, Any]) -> str:
    """The table, and on what the runs in it were made."""
    runs = [run for cell in cells for run in found.get(cell.name, {}).get("runs", {}).values()]
    text = table(cells, found, places)
    if not runs:
        return text
    loads = [run["machine"]["load"] for run in runs]
    where = ", ".join(sorted({run["machine"]["processor"] for run in runs}))
    threads = ", ".join(map(str, sorted({run["threads"] for run in runs})))
    return (
        f"{text}\n\n{len(runs)} runs; threads a side: {threads}; {where}; other programs beside them: load {min(loads):g} to "
        f"{max(loads):g}. –: not reached."
    )


def main() -> None:
    """Run the cells asked for and print a row for each, or write what there is into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=sorted({cell.method for cell in CELLS}))
    parser.add_argument("--reward", nargs="+", choices=sorted({cell.reward for cell in CELLS}))
    parser.add_argument("--anew", action="store_true", help="run the races again, for their times")
    parser.add_argument("--quick", action="store_true", help="each cell as small as it can be: does it run?")
    parser.add_argument("--tables", action="store_true", help="write what was run so far into the page, and stop")
    options = parser.parse_args()
    if options.tables:
        found, places = score_study.load(RESULTS)["cells"], score_study.load(score_study.RESULTS)["cells"]
        for cell in CELLS:
            runs = found.get(cell.name, {}).get("runs", {})
            print(f"{cell.name}: {progress(cell, runs, places[cell.published.name])}")
        put_between(score_study.DOCS, MARKS, page(CELLS, found, places))
        return
    cells = [c for c in CELLS if c.method in (options.method or c.method) and c.reward in (options.reward or c.reward)]
    if options.anew:
        score_study.write(without_races(score_study.load(RESULTS), cells), RESULTS)
    for one in study(cells, quick=options.quick, threads=int(os.environ.get("KARAT_BENCH_THREADS", "2"))):
        print(json.dumps(one, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
