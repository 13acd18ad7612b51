"""In how many samples does karat's PPO have TRL's final score on `length`? The second design, on seeds that nothing saw.

    OMP_NUM_THREADS=1 KARAT_BENCH_THREADS=1 python -m bench.fewer_samples_second --search [--minutes 7]
    OMP_NUM_THREADS=1 KARAT_BENCH_THREADS=1 python -m bench.fewer_samples_second --races [--minutes 7]
    python -m bench.fewer_samples_second --tables

The first design (fewer_samples_study.py) had the score on two of three seeds. Written down before the first run of this one:

- **Before it**, runs of ours on seeds 500 to 503, and the first design's setting on seed 1, said why (docs/LOG.md) and what to put into the list;
  they choose nothing.
- **The list**: the first design's choice (16 samples an iteration, 8 epochs of 4 steps, rate 1e-3), and the same with a limit on each step; with a critic
  of its own whose values are not clipped; with that at half the rate; with that and λ = .9. Prompts, longest response, KL coefficient, Adam's ε and
  the fall of the rate to 0 over 320 samples are those of the first design. Precision is float32.
- **A score** is the mean of the last 96 samples, as there. A run of ours ends at the mark or after 320 samples.
- **Search**: the mark is TRL's final score on its search seed (7.0). Every setting on seeds 310, 311 and 312; the best is ours. Better is: fewer runs
  without the mark, then fewer samples (320 where not reached), then higher last scores. (Written down before, and dropped for want of time when
  two of the three seeds had run, before any run on them: seeds 313, 314 and 315 for the best two.)
- **What counts**: seeds 9, 10 and 11, which no run of either side saw. TRL's published setting makes its ten iterations of 32 samples, and the mean of
  its last 96 is the mark. Held means: on each of the three seeds ours has the mark in fewer samples than TRL's own run first has it.
- **Beside it**, and not counted: the same setting on seeds 0, 1 and 2 to the scores that TRL's published runs end with. The first design was looked
  at there, so they are no longer fresh.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

if __package__ in (None, ""):  # started as a file
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import score_study
from bench.fewer_samples_study import CELL, MOST, WINDOW, drawn, order, run, samples_to
from bench.own_batch import full_name, listed, published
from bench.own_batch_study import Contender, race
from bench.pages import put_between
from bench.rows import machine
from bench.score_cells import Setting
from bench.score_figures import smoothed
from bench.turns import ROOT

RESULTS = ROOT / "bench" / "results" / "fewer_samples_second.json"
MARKS = ("<!-- fewer_samples_second: begin -->", "<!-- fewer_samples_second: end -->")
FIRST: Setting = {"learning_rate": 1e-3, "n_minibatches": 4, "n_samples": 2, "n_epochs": 8}
"""What the first design chose."""
OWN_CRITIC: Setting = FIRST | {"critic": "separate", "value_clip": None}  # type: ignore[dict-item, operator]
LIST: tuple[Setting, ...] = (
    FIRST,
    {**FIRST, "max_step_kl": 0.02},
    OWN_CRITIC,
    {**OWN_CRITIC, "learning_rate": 5e-4},
    {**OWN_CRITIC, "gae_lambda": 0.9},
)
SEARCH = (310, 311, 312)
SEEDS, AGAIN = (9, 10, 11), (0, 1, 2)
Runs = Mapping[str, Mapping[str, Any]]


def in_words(setting: Setting) -> str:
    """A setting as the page says it.

    >>> in_words({**OWN_CRITIC, "gae_lambda": 0.9})
    'lr 0.001, 4 steps, 2 samples, 8 epochs, a critic of its own, values not clipped, λ .9'
    """
    words = [full_name(setting), f"{setting['n_epochs']} epochs"]
    words += ["a critic of its own"] if setting.get("critic") == "separate" else []
    words += ["values not clipped"] if "value_clip" in setting and setting["value_clip"] is None else []
    words += [f"λ {setting['gae_lambda']:g}".replace("0.", ".")] if "gae_lambda" in setting else []
    return ", ".join(words)


def name_of(setting: Setting, seed: int) -> str:
    """Of a run of the search."""
    return f"seed {seed}: {in_words(setting)}"


def merit(runs: Runs, setting: Setting, seeds: Sequence[int], mark: float) -> tuple[int, int, float]:
    """What a setting is sorted by over these seeds, all of which have run; the least first."""
    return order([runs[name_of(setting, seed)]["scores"] for seed in seeds], setting, mark)


def missing(runs: Runs) -> list[tuple[Setting, int]]:
    """Runs of the search still to make, seed by seed."""
    return [(one, seed) for seed in SEARCH for one in LIST if name_of(one, seed) not in runs]


def choice(runs: Runs, mark: float) -> Setting | None:
    """Ours; None while the search is not done."""
    return None if missing(runs) else min(LIST, key=lambda one: merit(runs, one, SEARCH, mark))


def search(found: dict[str, Any], mark: float, threads: int, end: float) -> None:
    """Make the runs that are missing, each written at once; begin none after `end`."""
    runs = found["search"]
    while (left := missing(runs)) and time.monotonic() < end:
        setting, seed = left[0]
        runs[name_of(setting, seed)] = run(setting, seed, mark, threads)
        score_study.write(found, RESULTS)
        print(f"{name_of(setting, seed)}: done, {len(left) - 1} left", file=sys.stderr, flush=True)


def races(found: dict[str, Any], place: Mapping[str, Any], threads: int, end: float) -> None:
    """Race where that was not done, the seeds that count first; begin none after `end`.

    Raises: SystemExit where the search is not done, or a program fails.
    """
    goal = published(CELL, place, CELL.published.search_seed)
    if (ours := choice(found["search"], goal.mark)) is None:
        raise SystemExit("bench: found the search unfinished; run --search first")
    for seed in (*SEEDS, *AGAIN):
        if str(seed) in found["races"] or time.monotonic() >= end:
            continue
        if seed in SEEDS:
            found["races"][str(seed)] = fresh_race(ours, goal.setting, seed, threads)
        else:
            before = published(CELL, place, seed)
            made = run(ours, seed, before.mark, threads)
            found["races"][str(seed)] = made | {"theirs": list(before.scores)}
        score_study.write(found, RESULTS)


def fresh_race(ours: Setting, theirs: Setting, seed: int, threads: int) -> dict[str, Any]:
    """TRL's ten iterations, then ours to the score that they end with.

    Raises: SystemExit where the two sides score a response differently, or a program fails.
    """
    counts = {"ours": MOST // drawn(ours), "theirs": CELL.published.n_iterations}
    pair = {"ours": ours, "theirs": theirs}
    workers = score_study.start_workers(CELL.published, pair, counts, {"seed": seed, "threads": threads})
    for worker in workers:
        worker.wait_ready()
    gap = score_study.score_gap(*(worker.probe_scores for worker in workers))
    window = CELL.published.window
    peer = Contender(workers[1], float("inf"), window, most_iterations=counts["theirs"])
    race({"theirs": peer}, f"seed {seed}")
    mark = smoothed(peer.record["scores"], window)[-1]
    mine = Contender(workers[0], mark, WINDOW // drawn(ours), most_iterations=counts["ours"])
    race({"ours": mine}, f"seed {seed}, mark {mark:.2f}")
    return {
        "scores": mine.record["scores"],
        "theirs": peer.record["scores"],
        "mark": mark,
        "setting": dict(ours),
        "largest_score_gap": gap,
        "versions": {"ours": workers[0].versions, "theirs": workers[1].versions},
        "machine": machine(),
    }


def peers_samples(scores: Sequence[float], mark: float) -> int:
    """Samples until TRL's own run first has the score that it ends with."""
    found = samples_to(scores, {}, mark)
    assert found is not None
    return found


def held(made: Runs, seeds: Sequence[int] = SEEDS) -> bool:
    """Whether on each of these seeds ours has the mark in fewer samples than TRL first has it."""
    for one in (made[str(seed)] for seed in seeds):
        ours = samples_to(one["scores"], one["setting"], one["mark"])
        if ours is None or ours >= peers_samples(one["theirs"], one["mark"]):
            return False
    return True


def races_table(made: Runs) -> str:
    """What counts and what stands beside it, as Markdown; seeds that were not raced are left out."""
    lines = [
        "| seeds | TRL's final score | our samples to it | TRL's to first have it | where ours ended | held |",
        "|---|---|---|---|---|---|",
    ]
    for label, wanted_seeds in (("fresh", SEEDS), ("those of the first design", AGAIN)):
        seeds = [seed for seed in wanted_seeds if str(seed) in made]
        if not seeds:
            continue
        runs = [made[str(seed)] for seed in seeds]
        ours = [samples_to(one["scores"], one["setting"], one["mark"]) for one in runs]
        ends = [smoothed(one["scores"], WINDOW // drawn(one["setting"]))[-1] for one in runs]
        theirs = [peers_samples(one["theirs"], one["mark"]) for one in runs]
        verdict = "yes" if held(made, seeds) else "**no**"
        verdict = verdict if len(seeds) == len(wanted_seeds) else f"{len(seeds)} of {len(wanted_seeds)} raced"
        lines.append(
            f"| {listed(seeds, 'd')} ({label}) | {listed([one['mark'] for one in runs], '.2f')} | {listed(ours, 'd')} | "
            f"{listed(theirs, 'd')} | {listed(ends, '.2f')} | {verdict} |"
        )
    return "\n".join(lines)


def search_table(runs: Runs, mark: float) -> str:
    """What the search found, best first within those that came equally far, as Markdown."""
    lines = ["| setting | seeds | without the mark | samples to the mark, seed by seed |", "|---|---|---|---|"]
    entries = []
    for one in LIST:
        seeds = [seed for seed in SEARCH if name_of(one, seed) in runs]
        if seeds:
            samples = [samples_to(runs[name_of(one, seed)]["scores"], one, mark) for seed in seeds]
            line = f"| {in_words(one)} | {len(seeds)} | {samples.count(None)} | {listed(samples, 'd')} |"
            entries.append(((-len(seeds), *merit(runs, one, seeds, mark)), line))
    return "\n".join([*lines, *(line for _, line in sorted(entries))])


def page(found: Mapping[str, Any], mark: float) -> str:
    """Races, search, and on what they were made."""
    made = [*found["search"].values(), *found["races"].values()]
    where = ", ".join(sorted({one["machine"]["processor"] for one in made}))
    ours = choice(found["search"], mark)
    said = f"Ours: {in_words(ours)}. " if ours else ""
    tail = f"{said}{len(found['search'])} runs of the search (mark {mark:.1f}); one thread a side; {where}. –: not reached."
    return "\n\n".join([races_table(found["races"]), search_table(found["search"], mark), tail])


def main() -> None:
    """Search, race, or write what there is into the page."""
    parser = score_study.study_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after that")
    options = parser.parse_args()
    found = {"search": {}, "races": {}} | (score_study.load(RESULTS) if RESULTS.exists() else {})
    place = score_study.load(score_study.RESULTS)["cells"][CELL.published.name]
    mark = published(CELL, place, CELL.published.search_seed).mark
    threads, end = int(os.environ.get("KARAT_BENCH_THREADS", "1")), time.monotonic() + 60 * options.minutes
    if options.search:
        search(found, mark, threads, end)
    if options.races:
        races(found, place, threads, end)
    if options.tables:
        put_between(score_study.DOCS, MARKS, page(found, mark))


if __name__ == "__main__":
    main()
