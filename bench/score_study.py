"""Time to score: how long, and how many samples, until karat is as good as the peer's training ends up.

    python -m bench.score_study [--method ppo|rloo|grpo …] [--reward letters|length|word|no_repetition …] [--design first|whole|equal] [--quick]
    python -m bench.score_study --tables

PPO beside TRL 1.9.2, RLOO and GRPO beside TRL 1.16.0, on rewards that are functions of the text (text_rewards.py), so
that no reward model's time is part of it. A cell is a method on a reward. In each, both sides first try the same
settings, learning rate × optimiser steps, on a seed of their own, with the same prompts, samples, epochs and KL
coefficient; each side then runs three seeds at its own best. In the first design a setting is searched for a few
iterations and the finalists meet on the first seed; in the second (whole_search) every setting runs in full, and ours makes
twice the peer's iterations; in the third (equal) ours searches on three seeds, which takes the peer's time for one
(score_cells.py has the numbers, score_figures.py the arithmetic). own_batch_study.py is the fourth design. Before the first turn both sides score the same responses, and nothing runs where they differ. Every run
is written at once to bench/results/score_study.json, and what is there is not run again; `--tables` writes what there is
into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.environments import PPO_PEER, REWARD_PEER, trl_python
from bench.pages import put_between
from bench.rows import machine
from bench.score_cells import CELLS, METHODS, SIDES, Cell, Setting, own_name, run_name, smallest
from bench.score_figures import best, finals, page, progress, row
from bench.text_rewards import REWARDS
from bench.turns import ROOT, Worker

WORK = ROOT / "bench" / "work"
RESULTS = ROOT / "bench" / "results" / "score_study.json"
DOCS = ROOT / "docs" / "benchmarks.md"
MARKS = ("<!-- score_study: begin -->", "<!-- score_study: end -->")
PROBES = (
    "",
    "you",
    "You you, YOU: you you!",
    "We see the bees. You're here and it's yours, is it not? you_see\n\nHuman: no",
    "  blanks   around, and a very long answer that says one thing after the other without ever saying anything twice ",
)
"""Responses that both sides score before the first turn."""
LARGEST_GAP = 1e-5
"""Between the two sides' scores of a response: TRL keeps them in float32."""


def score_row(*, quick: bool, threads: int) -> dict[str, Any]:
    """Run what is missing of every cell; their rows. `quick` runs each as small as it can be and keeps them apart."""
    return {"work": "time-to-score", "cells": study(CELLS, quick=quick, threads=threads)}


def study(cells: Sequence[Cell], *, quick: bool, threads: int, path: Path | None = None) -> list[dict[str, Any]]:
    """The rows of these cells. A cell whose programs fail does not keep the others from running.

    Raises: SystemExit at the end where one failed.
    """
    path = path or (WORK / "score_study_quick.json" if quick else RESULTS)
    found = {"cells": {}} if quick else load(path)
    rows, failed = [], []
    for cell in cells:
        try:
            rows.append(run_cell(smallest(cell) if quick else cell, found, path, threads))
        except SystemExit as error:
            failed.append(f"{cell.name}: {error}")
            print(f"bench: {failed[-1]}", file=sys.stderr)
    if failed:
        raise SystemExit(f"bench: {len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}")
    return rows


def run_cell(cell: Cell, found: dict[str, Any], path: Path, threads: int) -> dict[str, Any]:
    """Run what is missing of a cell, run by run; its row.

    Raises: SystemExit where the file has runs of another shape, or a program fails.
    """
    place = found["cells"].setdefault(cell.name, {"shape": cell.shape, "runs": {}})
    if place["shape"] != cell.shape:
        raise SystemExit(f"found runs of the shape {place['shape']}; expected {cell.shape}; move them out of {path}")
    runs = place["runs"]
    if cell.more_search_seeds:  # the search that both sides share has been made
        shared = found["cells"].get(replace(cell, more_search_seeds=()).name, {"runs": {}})["runs"]
        runs |= {name: run for name, run in shared.items() if run["seed"] == cell.search_seed and name not in runs}

    def run(settings: Mapping[str, Setting], seed: int, n_iterations: int) -> None:
        name = run_name(settings, seed) if len(settings) > 1 else own_name(settings["ours"], seed)
        if name not in runs:
            runs[name] = one_run(cell, settings, seed, n_iterations, threads)
            write(found, path)

    if len(cell.settings) > 1:
        for setting in cell.settings:
            n_search = cell.n_iterations if cell.whole_search else cell.n_search
            run(dict.fromkeys(SIDES, setting), cell.search_seed, n_search)
            for seed in cell.more_search_seeds:
                run({"ours": setting}, seed, cell.n_iterations)
    for pair in finals(cell, runs) or []:
        run(pair, cell.seeds[0], cell.n_iterations)
    place["best"] = chosen = best(cell, runs)
    for seed in cell.seeds if cell.whole_search else cell.seeds[1:]:
        run(chosen, seed, cell.n_iterations)
    place["row"] = row(cell, runs)
    write(found, path)
    return place["row"]


def one_run(cell: Cell, settings: Mapping[str, Setting], seed: int, n_iterations: int, threads: int) -> dict[str, Any]:
    """Both sides at these settings, turn by turn.

    Raises: SystemExit where a program fails or the two sides score a response differently.
    """
    sides = [side for side in SIDES if side in settings]
    counts = {side: cell.n_iterations_of(side, n_iterations) for side in sides}
    workers = dict(zip(sides, start_workers(cell, settings, counts, {"seed": seed, "threads": threads}), strict=True))
    for worker in workers.values():
        worker.wait_ready()
    gap = score_gap(*(worker.probe_scores for worker in workers.values())) if len(sides) > 1 else None
    turns = turns_of(workers, counts=counts, label=f"{cell.name}, seed {seed}")
    return {
        "seed": seed,
        "settings": dict(settings),
        **{side: kept(turns[side]) for side in sides},
        "largest_score_gap": gap,
        "versions": {side: worker.versions for side, worker in workers.items()},
        "peak_mib": {side: round(worker.peak_mib) for side, worker in workers.items()},
        "machine": machine(),
        "threads": threads,
    }


def kept(turns: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """What of a side's iterations is written down."""
    digits = {"scores": ("score", 5), "seconds": ("seconds", 3), "cpu_seconds": ("cpu_seconds", 3)}
    return {name: [round(turn[key], n) for turn in turns] for name, (key, n) in digits.items()}


def turns_of(
    workers: Mapping[str, Worker], *, counts: Mapping[str, int], label: str
) -> dict[str, list[dict[str, Any]]]:
    """Every iteration of each side, in alternating order; ours makes its share of iterations at a turn of the peer's."""
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
    n_turns = min(counts.values())
    started = time.perf_counter()
    for number in range(n_turns):
        order = [side for side in workers for _ in range(counts[side] // n_turns)]
        for side in reversed(order) if number % 2 else order:
            turns[side].append(workers[side].turn())
        said = ", ".join(
            f"{side} {done[-1]['score']:.2f} in {done[-1]['seconds']:.2f} s (cpu {done[-1]['cpu_seconds']:.2f})"
            for side, done in turns.items()
        )
        gone = time.perf_counter() - started
        left = gone / (number + 1) * (n_turns - number - 1)
        print(f"{label} {number + 1}/{n_turns}: {said}, {gone:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.close()
    return turns


def score_gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest difference between the two sides' scores of the same responses.

    Raises: SystemExit where there are none, not as many, or one differs by more than LARGEST_GAP.
    """
    if not ours or len(ours) != len(theirs):
        raise SystemExit(f"bench: found {len(ours)} and {len(theirs)} scores of probes; expected as many, and some")
    gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if not gap <= LARGEST_GAP:
        raise SystemExit(f"bench: the sides score the same responses {[*ours]} and {[*theirs]}; expected the same")
    return gap


def start_workers(
    cell: Cell, settings: Mapping[str, Setting], counts: Mapping[str, int], common: Mapping[str, Any]
) -> list[Worker]:
    """The programs of these sides, which make at most so many iterations; a setting's own number of samples comes before the cell's."""
    from bench.inputs import hh_prompts
    from bench.models import hh_ids, trained_checkpoint

    model = str(trained_checkpoint())
    inputs = {
        "model": model,
        "classifier": model,  # the peer's value model: the policy's trunk with a new head
        "prompts": hh_prompts(cell.n_prompts)[1],
        "eos_id": hh_ids()[0],
        "probes": probes(model),
        "output": str(WORK / f"trl_{cell.method}"),
    }
    ppo = cell.method == "ppo"
    programs = {
        "ours": (sys.executable, "bench.ours.ppo" if ppo else "bench.ours.group"),
        "theirs": (trl_python(PPO_PEER), "bench.peers.trl_ppo") if ppo else (trl_python(REWARD_PEER), "bench.peers.trl_group"),
    }  # fmt: skip
    workers = []
    for side in counts:
        python, module = programs[side]
        name = f"score-{cell.method}-{cell.reward}-{side}"
        place = WORK / f"{name}.json"
        work = {**cell.shape, **common, **settings[side], **inputs, "n_iterations": counts[side]}
        place.write_text(json.dumps(work), encoding="utf-8")
        log = WORK / "logs" / f"{name}.txt"
        workers.append(Worker(python, module, place, threads=common["threads"], log=log))
    return workers


def probes(model: str) -> list[list[int]]:
    """PROBES as token ids: ended, cut off before their end, and with something behind the end."""
    from transformers import PreTrainedTokenizerFast

    from karat.lm.chat import response_tokens

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    ended = [response_tokens(tokenizer, text, tokenizer.eos_token_id) for text in PROBES]
    return [*ended, *(ids[:-1] for ids in ended if len(ids) > 1), ended[1] + ended[2]]


def load(path: Path) -> dict[str, Any]:
    """What is there: {cells: {name: {shape, runs, best, row}}}; no cells where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": {}}


def write(found: Mapping[str, Any], path: Path) -> None:
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def write_docs(found: Mapping[str, Any]) -> None:
    """Put the table between the marks in docs/benchmarks.md."""
    put_between(DOCS, MARKS, page(CELLS, found["cells"]))


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """Of a study in three steps: flags --search, --races and --tables."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, said in (
        ("search", "our search"),
        ("races", "the races"),
        ("tables", "write what was run into the page"),
    ):
        parser.add_argument(f"--{flag}", action="store_true", help=said)
    return parser


def main() -> None:
    """Run the cells asked for and print a row for each, or write what there is into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--reward", nargs="+", choices=REWARDS, default=tuple(REWARDS))
    parser.add_argument(
        "--design", choices=("first", "whole", "equal"), default="whole", help="see above; whole if absent"
    )
    parser.add_argument("--quick", action="store_true", help="each cell as small as it can be: does it run?")
    parser.add_argument("--tables", action="store_true", help="write what was run so far into the page, and stop")
    arguments = parser.parse_args()
    chosen = [cell for cell in CELLS if cell.method in arguments.method and cell.reward in arguments.reward]
    chosen = [cell for cell in chosen if cell.design == arguments.design]
    if arguments.tables:
        found = load(RESULTS)
        for cell in CELLS:
            print(f"{cell.name}: {progress(cell, found['cells'].get(cell.name, {}).get('runs', {}))}")
        write_docs(found)
        return
    threads = int(os.environ.get("KARAT_BENCH_THREADS", "2"))
    for one in study(chosen, quick=arguments.quick, threads=threads):
        print(json.dumps(one, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
