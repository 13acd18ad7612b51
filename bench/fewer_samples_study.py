"""In how many samples does karat's PPO have the score that TRL's PPO ends with on `length`?

    OMP_NUM_THREADS=1 KARAT_BENCH_THREADS=1 python -m bench.fewer_samples_study
    python -m bench.fewer_samples_study --tables

The time-to-score study asks how long; here only samples count, and settings are chosen for them. On `word` and
`no_repetition` that study's settings are good enough; `length` is run anew. Written down before the first run:

- The score to reach is TRL's final one of its published runs (whole search, the best of six settings): the mean of its last 96 of 320
  samples, seed by seed. Our score is the mean of the last 96 samples, too, and ours draws at most 320.
- Settings: learning rate (1e-3, 3e-3) × optimiser steps a pass (1, 4) × samples a prompt (2, 4) × epochs (4, 8).
- Search: every setting on seed 300, to TRL's score on its search seed. The five best (reached before not reached, then by
  samples, then by the last score) also on seeds 301, 302 and 303; the one that gets there on most of the four, then
  in the fewest samples (320 where not), then with the highest last scores, is chosen.
- What counts: seeds 0, 1 and 2, which no search saw.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

if __package__ in (None, ""):  # started as a file
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import score_study
from bench.own_batch import PLAIN, OwnBatch, full_name, listed, published
from bench.own_batch_study import Contender, race
from bench.pages import put_between
from bench.rows import machine
from bench.score_cells import Setting
from bench.score_figures import iterations_to, smoothed
from bench.turns import ROOT

RESULTS = ROOT / "bench" / "results" / "fewer_samples_study.json"
MARKS = ("<!-- fewer_samples_study: begin -->", "<!-- fewer_samples_study: end -->")
MOST, WINDOW = 320, 96
"""Samples: all that the peer draws, and those whose mean is a score."""
FIRST, FURTHER, SEEDS, N_FINALISTS = 300, (301, 302, 303), (0, 1, 2), 5
CELL = OwnBatch("ppo", "length")
SETTINGS: tuple[Setting, ...] = tuple(
    {"learning_rate": rate, "n_minibatches": steps, "n_samples": samples, "n_epochs": epochs}
    for rate, steps, samples, epochs in product((1e-3, 3e-3), (1, 4), (2, 4), (4, 8))
)
Runs = Mapping[str, Mapping[str, Any]]


def name_of(setting: Setting, seed: int) -> str:
    """Of a run."""
    return f"seed {seed}: {full_name(setting)}, {setting['n_epochs']} epochs"


def drawn(setting: Setting) -> int:
    """Samples of an iteration."""
    return int(CELL.published.n_prompts * setting.get("n_samples", PLAIN))


def samples_to(scores: Sequence[float], setting: Setting, mark: float) -> int | None:
    """Samples until the mean score of the last 96 is at least the mark; None where it never is."""
    n = iterations_to(scores, mark, WINDOW // drawn(setting))
    return None if n is None else n * drawn(setting)


def order(scores: Sequence[Sequence[float]], setting: Setting, mark: float) -> tuple[int, int, float]:
    """What a setting is sorted by, the least first: runs without the mark, samples, the last scores.

    Args: scores: of its runs.
    """
    found = [samples_to(one, setting, mark) for one in scores]
    last = statistics.fmean(smoothed(one, WINDOW // drawn(setting))[-1] for one in scores)
    return found.count(None), sum(MOST if n is None else n for n in found), -last


def finalists(runs: Runs, mark: float) -> list[Setting] | None:
    """The best settings on the first seed; None while not all have run."""
    if any(name_of(setting, FIRST) not in runs for setting in SETTINGS):
        return None
    return sorted(SETTINGS, key=lambda s: order([runs[name_of(s, FIRST)]["scores"]], s, mark))[:N_FINALISTS]


def choice(runs: Runs, mark: float) -> Setting | None:
    """The best of the finalists over all search seeds; None while the search is not done."""
    best = finalists(runs, mark)
    if best is None or any(name_of(setting, seed) not in runs for setting in best for seed in FURTHER):
        return None
    return min(best, key=lambda s: order([runs[name_of(s, seed)]["scores"] for seed in (FIRST, *FURTHER)], s, mark))


def missing(runs: Runs, mark: float) -> tuple[Setting, int] | None:
    """The next run; None where all are done."""
    wanted = [(setting, FIRST) for setting in SETTINGS]
    wanted += [(setting, seed) for setting in finalists(runs, mark) or [] for seed in FURTHER]
    if (chosen := choice(runs, mark)) is not None:
        wanted += [(chosen, seed) for seed in SEEDS]
    return next((one for one in wanted if name_of(*one) not in runs), None)


def run(setting: Setting, seed: int, mark: float, threads: int) -> dict[str, Any]:
    """Our PPO alone, until it has the mark or has drawn 320 samples, over which the learning rate falls to 0."""
    n, common = MOST // drawn(setting), {"seed": seed, "threads": threads}
    (worker,) = score_study.start_workers(CELL.published, {"ours": setting}, {"ours": n}, common)
    worker.wait_ready()
    one = Contender(worker, mark, WINDOW // drawn(setting), most_iterations=n)
    race({"ours": one}, name_of(setting, seed))
    return {"scores": one.record["scores"], "mark": mark, "setting": dict(setting), "machine": machine()}


def study(threads: int) -> dict[str, Any]:
    """Make the runs that are missing, each written at once; all that there is."""
    place = score_study.load(score_study.RESULTS)["cells"][CELL.published.name]
    marks = {seed: published(CELL, place, seed).mark for seed in SEEDS}
    goal = published(CELL, place, CELL.published.search_seed).mark
    found = score_study.load(RESULTS) if RESULTS.exists() else {"runs": {}}
    while (one := missing(found["runs"], goal)) is not None:
        setting, seed = one
        found["runs"][name_of(setting, seed)] = run(setting, seed, marks.get(seed, goal), threads)
        score_study.write(found, RESULTS)
    return found | {"goal": goal}


def figures(runs: Runs, goal: float) -> dict[str, Any]:
    """What came out: the chosen setting and its samples, seed by seed, beside TRL's 320."""
    chosen = choice(runs, goal)
    assert chosen is not None
    races = [runs[name_of(chosen, seed)] for seed in SEEDS]
    first = [samples_to(runs[name_of(s, FIRST)]["scores"], s, goal) for s in SETTINGS]
    return {
        "chosen": f"{full_name(chosen)}, {chosen['n_epochs']} epochs",
        "marks": [one["mark"] for one in races],
        "samples": [samples_to(one["scores"], chosen, one["mark"]) for one in races],
        "last": [smoothed(one["scores"], WINDOW // drawn(chosen))[-1] for one in races],
        "search": {
            "reached": sum(n is not None for n in first),
            "tried": len(first),
            "chosen": [samples_to(runs[name_of(chosen, seed)]["scores"], chosen, goal) for seed in (FIRST, *FURTHER)],
        },
        "processors": sorted({one["machine"]["processor"] for one in runs.values()}),
    }


def rows_before(rewards: Sequence[str]) -> list[str]:
    """Lines of the rewards whose runs stand in the time-to-score study."""
    cells = score_study.load(score_study.RESULTS)["cells"]
    lines = []
    for reward in rewards:
        one = cells[f"ppo, {reward} (whole search)"]["row"]
        lines.append(
            f"| {reward} | {listed(one['final_scores']['theirs'], '.1f')} | {listed(one['samples']['ours'], 'd')} | {listed(one['samples']['theirs'], 'd')}; {MOST} | "
            "that of the time-to-score study |"
        )
    return lines


def table(found: Mapping[str, Any]) -> str:
    """All three rewards, as Markdown."""
    one = figures(found["runs"], found["goal"])
    head = (
        "| reward | TRL's final score, seeds 0, 1, 2 | our samples to it | TRL's: to first have it; in all | our setting |\n"
        "|---|---|---|---|---|\n"
    )
    length = (
        f"| length | {listed(one['marks'], '.1f')} | {listed(one['samples'], 'd')} | {MOST}, {MOST}, {MOST}; {MOST} | "
        f"{one['chosen']}; in the search {listed(one['search']['chosen'], 'd')} |"
    )
    return (
        head
        + "\n".join([length, *rows_before(["word", "no_repetition"])])
        + f"\n\n`length`: {len(found['runs'])} runs of ours; "
        f"{one['search']['reached']} of {one['search']['tried']} settings had the score on the first search seed; {', '.join(one['processors'])}."
    )


def main() -> None:
    """Run what is missing, or write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="write what was run into the page, and stop")
    options = parser.parse_args()
    if options.tables:
        place = score_study.load(score_study.RESULTS)["cells"][CELL.published.name]
        goal = published(CELL, place, CELL.published.search_seed).mark
        put_between(score_study.DOCS, MARKS, table(score_study.load(RESULTS) | {"goal": goal}))
        return
    found = study(threads=int(os.environ.get("KARAT_BENCH_THREADS", "1")))
    print(figures(found["runs"], found["goal"]))


if __name__ == "__main__":
    main()
