"""Time to score where each side also chooses its precision and clipping, ours a limit on steps: the fifth design of the time-to-score study.

    python -m bench.own_options_study [--reward length|word …] [--fresh]
    python -m bench.own_options_study --tables

The rules are in docs/benchmarks.md, "Own options"; own_options.py has the choices, own_batch.py the arithmetic. Every run is written at
once to bench/results/own_options_study.json, and what is there is not run again. `--tables` writes what there is into the page.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import score_study
from bench.own_batch import (
    PEERS_SLACK,
    full_name,
    listed,
    published,
    race_name,
    row,
    search_name,
    seconds_to,
    window_of,
)
from bench.own_batch_study import RESULTS as EARLIER
from bench.own_batch_study import Contender, _where, race, race_run, search_run, started
from bench.own_options import CELLS, OwnOptions, about_search, of_beside, peers_choice, peers_settings
from bench.pages import put_between
from bench.score_cells import SIDES, Setting
from bench.score_figures import smoothed
from bench.turns import ROOT

RESULTS = ROOT / "bench" / "results" / "own_options_study.json"
OURS = ("ours", "beside")
"""Which contenders of a race are our program."""
MARKS = ("<!-- own_options_study: begin -->", "<!-- own_options_study: end -->")


def study(cells: Sequence[OwnOptions] = CELLS, *, threads: int, path: Path = RESULTS) -> list[dict[str, Any] | None]:
    """Run what is missing of these cells, run by run; their rows.

    Raises: SystemExit where a program fails, or the file has runs of another shape.
    """
    found, places = score_study.load(path), score_study.load(score_study.RESULTS)["cells"]
    earlier = score_study.load(EARLIER)["cells"]
    return [
        run_cell(cell, found, places[cell.published.name], earlier[cell.earlier]["runs"], path, threads)
        for cell in cells
    ]


def run_cell(
    cell: OwnOptions,
    found: dict[str, Any],
    place: Mapping[str, Any],
    earlier: Mapping[str, Any],
    path: Path,
    threads: int,
) -> dict[str, Any] | None:
    """The peer's search, then the races; the cell's row."""
    own = found["cells"].setdefault(cell.name, {"shape": cell.shape, "runs": {}})
    if own["shape"] != cell.shape:
        raise SystemExit(f"found runs of the shape {own['shape']}; expected {cell.shape}; move them out of {path}")
    # fresh seeds are raced at what was chosen for the others
    runs, sought = own["runs"], found["cells"].setdefault(cell.earlier, {"shape": cell.shape, "runs": {}})["runs"]
    seed = cell.published.search_seed
    goal = published(cell, place, seed)
    for setting in peers_settings(place):
        if (name := search_name("theirs", setting, seed)) not in sought:
            most_cpu = PEERS_SLACK * goal.cpu_seconds
            sought[name] = search_run(cell, "theirs", setting, seed, goal.mark, most_cpu, threads)
            score_study.write(found, path)
    chosen = {"ours": dict(cell.chosen), "published": goal.setting}
    if cell.beside:
        chosen["beside"] = dict(cell.beside)
    if (other := peers_choice(cell, sought, earlier, place)) is not None:
        chosen["chosen"] = other
    for number in cell.seeds:
        if (name := race_name(number)) not in runs:
            runs[name] = (
                fresh_race(cell, chosen, number, threads)
                if cell.fresh
                else race_run(cell, chosen, number, place, threads)
            )
            note_rows(cell, found, place, earlier)
            score_study.write(found, path)
    note_rows(cell, found, place, earlier)
    score_study.write(found, path)
    return own["row"]


def note_rows(cell: OwnOptions, found: Mapping[str, Any], place: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Write a cell's rows beside its runs, over the races that are done."""
    own, sought = found["cells"][cell.name], found["cells"][cell.earlier]["runs"]
    if (one := row(cell, own["runs"], place)) is not None:
        own["row"] = one | {"search": about_search(cell, sought, earlier, place)}
        if cell.beside:
            own["row beside"] = row(cell, of_beside(own["runs"]), place)


def fresh_race(cell: OwnOptions, chosen: Mapping[str, Setting], seed: int, threads: int) -> dict[str, Any]:
    """The peer's published setting in full, ours beside it in turns; then whoever does not have its final score goes on.

    Raises: SystemExit where two of them score a response differently.
    """
    contenders = {}
    for who, setting in chosen.items():
        side = "ours" if who in OURS else "theirs"
        worker, most = started(cell, side, setting, seed, threads)
        contenders[who] = Contender(worker, float("inf"), window_of(cell, side, setting), most_iterations=most)
    workers = {who: one.worker for who, one in contenders.items()}
    gap = score_study.score_gap(workers["ours"].probe_scores, workers["published"].probe_scores)
    label, theirs = f"{cell.name}, seed {seed}", contenders["published"]
    ours = [one for who, one in contenders.items() if who in OURS]
    for one in ours:
        one.most_iterations = theirs.most_iterations
    race({who: one for who, one in contenders.items() if who != "chosen"}, label, close=False)
    mark = smoothed(theirs.record["scores"], cell.published.window)[-1]
    for one in contenders.values():
        one.mark = mark
    for one in ours:
        one.most_iterations = cell.n_iterations
    if "chosen" in contenders:
        contenders["chosen"].most_cpu = PEERS_SLACK * seconds_to(theirs.record, mark, cell.published.window)
    race(contenders, label)
    return {
        "seed": seed,
        "settings": {who: dict(setting) for who, setting in chosen.items()},
        "mark": mark,
        **{who: one.record for who, one in contenders.items()},
        "same_scores": True,  # the published run is this one
        "largest_score_gap": gap,
        "versions": {who: worker.versions for who, worker in workers.items()},
        "peak_mib": {who: round(worker.peak_mib) for who, worker in workers.items()},
        **_where(threads),
    }


def table(cells: Sequence[OwnOptions], found: Mapping[str, Any]) -> str:
    """What has been run and what has not, as Markdown."""
    lines = [
        "| method, reward, seeds | times faster: median (each seed; in processor seconds) | target | s, ours and TRL's | samples, ours and TRL's "
        "| score to reach | setting: ours; TRL's published; TRL's other (seeds on which it was sooner) |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        name = f"{cell.method}, {cell.reward}, {listed(cell.seeds, 'd')}" + (" (fresh)" if cell.fresh else "")
        for which in ("row", "row beside") if cell.beside else ("row",):
            one = found.get(cell.name, {}).get(which)
            lines.append(f"| {name} |" + (_line(one) if one else " not run | | | | | |"))
    return "\n".join(lines)


def _line(one: Mapping[str, Any]) -> str:
    """The figures of a row, from the ratio on."""
    ratio = "not reached" if one["ratio"] is None else f"{one['ratio']:.1f}"
    settings, n_chosen = one["settings"], one["sooner"].count("chosen")
    chosen = f"{full_name(settings['chosen'])} ({n_chosen})" if "chosen" in settings else "none"
    columns = [
        f"{ratio} ({listed(one['ratios'], '.1f')}; {listed(one['ratios_cpu'], '.1f')})",
        f"{one['target']:g}" + ("" if not one["complete"] else ", met" if one["met"] else ", **missed**"),
        "; ".join(listed(one["seconds"][side], ".0f") for side in SIDES),
        "; ".join(listed(one["samples"][side], "d") for side in SIDES),
        listed(one["marks"], ".2f"),
        f"{full_name(settings['ours'])}; {full_name(settings['published'])}; {chosen}",
    ]
    return " " + " | ".join(columns) + " |"


def searches(cells: Sequence[OwnOptions], found: Mapping[str, Any]) -> str:
    """What came of the options that the peer tried, as Markdown."""
    lines = ["| reward | TRL's new setting, seed 100 | processor s an iteration | scores |", "|---|---|---|---|"]
    for cell in cells:
        about = found.get(cell.name, {}).get("row", {}).get("search") if not cell.fresh else None
        for name, one in (about or {"new": {}})["new"].items():
            scores = listed(one["scores"], ".1f")
            lines.append(f"| {cell.reward} | {name} | {one['cpu_seconds_an_iteration']:.1f} | {scores} |")
    return "\n".join(lines)


def page(cells: Sequence[OwnOptions], found: Mapping[str, Any]) -> str:
    """The tables, and on what the runs in them were made."""
    runs = [run for cell in cells for run in found.get(cell.name, {}).get("runs", {}).values()]
    text = f"{table(cells, found)}\n\n{searches(cells, found)}"
    if not runs:
        return text
    loads = [run["machine"]["load"] for run in runs]
    where = ", ".join(sorted({run["machine"]["processor"] for run in runs}))
    return (
        f"{text}\n\n{len(runs)} runs; threads a side: {', '.join(map(str, sorted({run['threads'] for run in runs})))}; {where}; other "
        f"programs beside them: load {min(loads):g} to {max(loads):g}. –: not reached."
    )


def main() -> None:
    """Run the cells asked for and print a row for each, or write what there is into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", nargs="+", choices=sorted({cell.reward for cell in CELLS}))
    parser.add_argument("--fresh", action="store_true", help="the seeds that no design saw before")
    parser.add_argument("--tables", action="store_true", help="write what was run so far into the page, and stop")
    options = parser.parse_args()
    if options.tables:
        put_between(score_study.DOCS, MARKS, page(CELLS, score_study.load(RESULTS)["cells"]))
        return
    cells = [c for c in CELLS if c.reward in (options.reward or c.reward) and c.fresh == options.fresh]
    for one in study(cells, threads=int(os.environ.get("KARAT_BENCH_THREADS", "2"))):
        print(json.dumps(one, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
