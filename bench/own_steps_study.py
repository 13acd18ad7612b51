"""Time to score with a search that counts falls: the sixth design of the time-to-score study, RLOO on `length` and `word`.

    python -m bench.own_steps_study --search [--reward length|word …] [--minutes 7]
    python -m bench.own_steps_study --races [--reward length|word …] [--seed 6 7 8]
    python -m bench.own_steps_study --tables

Earlier designs chose our setting on few seeds, and it fell on others. Written down before the first run of the search:

- **Before it**, forty-three runs of ours on seeds 400 to 403 (docs/LOG.md) said what to put into the list: with several steps a pass, ratios
  of single tokens instead of whole responses (`level: token`, `normalise: length`), and lengths of steps. They choose nothing.
- **The list** (`LISTS`) is what a user of karat may set: learning rate, optimiser steps a pass, samples a prompt, ratios of
  responses or of tokens, a limit on steps, the clip of gradients, and the iterations over which the rate falls to 0 (20 or 10). Products
  in bfloat16, as both sides may have them. Prompts, longest response, KL coefficient and Adam's ε are those of all designs.
- **A run** is one of ours, until its score (the mean of three iterations, 96 samples at least) has the higher of two marks, has taken CAP
  processor seconds, or has made its iterations. The marks lie at the middle and the top of TRL's six published final scores: 6.5 and 8.4
  for `length`, 9.9 and 10 for `word`.
- **Its cost** is the mean over both marks of the processor seconds to it, CAP where it has not been reached: falls count, and so does a
  score that comes late. A setting costs the mean over its seeds.
- **Halving**: every setting on seeds 304 to 306; of `length` the best four also on 307 to 309; the cheapest over all seeds is ours. Runs that can
  no longer change the choice are left out. Runs go seed by seed, so that a busy machine disturbs all settings alike. (Written down before,
  and dropped for want of time before any run on those seeds: a fourth seed, 310, a stage of the best two on 311 to 315, and all of the
  second stage of `word`.)
- **A first list was stopped** after 21 runs on seeds 300 and 301 of `length` (kept in the results as "stopped"): its CAP of 12 seconds cut off
  nearly all of them, and twelve of its seventeen settings made several steps a pass, which had no more than 6.8 by then, where one step on 128
  samples had 7.5 to 8.6. So CAP is 24, settings are nine a reward, most with one step, with 12 samples and rates of 1.5e-3 and 2e-3 added.
- **What counts**: seeds 6, 7 and 8, which nothing saw. TRL's published setting makes its ten iterations and its final score is the mark; TRL's
  soonest other setting known (own options) runs beside it, and the sooner of the two is TRL's time. Ours makes 20 iterations at most. The
  target is met by the median of the three ratios of wall-clock time, where ours reaches the mark on all three.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import score_study
from bench.own_batch import full_name, listed, race_name, row, seconds_to, window_of
from bench.own_options import NO_CLIP, OwnOptions
from bench.own_options_study import fresh_race, table
from bench.pages import put_between
from bench.rows import machine
from bench.score_cells import Setting
from bench.turns import ROOT

MARKS = {"length": (6.5, 8.4), "word": (9.9, 10.0)}
CAP = 24.0
"""Processor seconds of a run of the search: about half of what TRL takes to its final score."""
SURVIVORS = 4
"""Settings that go on to a second stage."""
TOKENS: Setting = {"level": "token", "normalise": "length"}  # type: ignore[dict-item]


def setting(rate: float, steps: int, samples: int, **more: Any) -> Setting:
    """One entry of the list."""
    return {"learning_rate": rate, "n_minibatches": steps, "n_samples": samples, "dtype": "bfloat16", **more}


LISTS: dict[str, tuple[Setting, ...]] = {
    "length": (
        setting(3e-3, 1, 16),
        setting(3e-3, 1, 16, n_iterations=10),
        setting(3e-3, 1, 16, **TOKENS),
        setting(2e-3, 1, 16),
        setting(2e-3, 1, 16, max_grad_norm=NO_CLIP),
        setting(1.5e-3, 1, 16),
        setting(2e-3, 1, 12),
        setting(2e-3, 1, 8),
        setting(2e-3, 4, 8, **TOKENS, max_step_kl=0.1),
    ),
    "word": (
        setting(3e-3, 1, 8, max_grad_norm=NO_CLIP),
        setting(3e-3, 1, 8, max_grad_norm=NO_CLIP, max_step_kl=1.0),
        setting(2e-3, 1, 8, max_grad_norm=NO_CLIP),
        setting(3e-3, 1, 8, **TOKENS),
        setting(3e-3, 1, 8, **TOKENS, max_step_kl=1.0),
        setting(2e-3, 1, 8, **TOKENS),
        setting(2e-3, 1, 16, **TOKENS),
        setting(1e-3, 4, 8, **TOKENS),
        setting(2e-3, 4, 8, **TOKENS, max_step_kl=0.1),
    ),
}
PEERS: dict[str, dict[str, Setting]] = {
    "length": {
        "published": {"learning_rate": 1e-3, "n_minibatches": 4},
        "chosen": {"learning_rate": 1e-3, "n_minibatches": 4, "peer_dtype": "bfloat16"},  # type: ignore[dict-item]
    },
    "word": {
        "published": {"learning_rate": 3e-3, "n_minibatches": 1},
        "chosen": {"learning_rate": 3e-3, "n_minibatches": 1, "n_samples": 16},
    },
}
"""TRL's published setting, and the soonest other one that its searches found (own options)."""
Runs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Design:
    """What is searched and raced, and where it is written down."""

    lists: Mapping[str, tuple[Setting, ...]]
    """Settings of ours by reward."""
    stages: Mapping[str, tuple[tuple[int, ...], ...]]
    """Search seeds by reward, stage by stage."""
    seeds: tuple[int, ...]
    """Of the races, which count."""
    results: Path
    place: tuple[str, str]
    """Between which lines of the page its tables stand."""
    responses: int | None = None
    """Of `OwnBatch`."""

    @property
    def rewards(self) -> tuple[str, ...]:
        """Those searched, in order."""
        return tuple(self.lists)

    def cell_of(self, reward: str, one: Setting) -> OwnOptions:
        """The races of a reward at our setting."""
        n = int(one.get("n_iterations", 20))
        options = {"chosen": tuple(one.items()), "n_iterations": n, "responses": self.responses}
        return OwnOptions("rloo", reward, seeds=self.seeds, fresh=True, **options)

    def window(self, reward: str, one: Setting) -> int:
        """Iterations of ours whose mean is a score."""
        return window_of(self.cell_of(reward, one), "ours", one)


DESIGN = Design(
    LISTS,
    {"length": ((304, 305, 306), (307, 308, 309)), "word": ((304, 305, 306),)},
    (6, 7, 8),
    ROOT / "bench" / "results" / "own_steps_study.json",
    ("<!-- own_steps_study: begin -->", "<!-- own_steps_study: end -->"),
)


def name_of(one: Setting, seed: int) -> str:
    """Of a run of the search."""
    return f"seed {seed}: {full_name(one)}"


def run_cost(run: Mapping[str, Any], reward: str, window: int) -> float:
    """Mean over the marks of the processor seconds to each, CAP where it was not reached in so many."""
    return statistics.fmean(min(seconds_to(run, mark, window), CAP) for mark in MARKS[reward])


def costs(design: Design, runs: Runs, one: Setting, seeds: Sequence[int], reward: str) -> list[float]:
    """Of a setting on those of these seeds on which it has run."""
    window = design.window(reward, one)
    return [run_cost(runs[name], reward, window) for seed in seeds if (name := name_of(one, seed)) in runs]


def wanted(design: Design, runs: Runs, reward: str) -> tuple[list[tuple[Setting, int]], list[Setting]]:
    """The runs still to make in the stage that is under way, seed by seed, and the settings in it, best first where it is done."""
    entered, seeds, stages = list(design.lists[reward]), (), design.stages[reward]
    for stage, more in enumerate(stages):
        seeds = (*seeds, *more)
        if stage == len(stages) - 1:
            entered = in_question(design, runs, entered, seeds, reward)
        missing = [(one, seed) for seed in more for one in entered if name_of(one, seed) not in runs]
        if missing:
            return missing, entered
        entered.sort(key=lambda one: statistics.fmean(costs(design, runs, one, seeds, reward)))
        entered = entered[:SURVIVORS]
    return [], entered


def in_question(
    design: Design, runs: Runs, entered: Sequence[Setting], seeds: Sequence[int], reward: str
) -> list[Setting]:
    """Without the settings whose runs so far have cost more than all runs of another: none of theirs can make them ours."""
    spent = {name_of(one, 0): costs(design, runs, one, seeds, reward) for one in entered}
    least = min((sum(found) for found in spent.values() if len(found) == len(seeds)), default=float("inf"))
    return [one for one in entered if sum(spent[name_of(one, 0)]) <= least]


def choice(design: Design, runs: Runs, reward: str) -> Setting | None:
    """Ours; None while the search is not done."""
    missing, entered = wanted(design, runs, reward)
    return None if missing else entered[0]


KEPT = {
    "scores": "score/mean",
    "lengths": "response/length_mean",
    "kl": "kl/k1_per_token",
    "grad_norms": "update/grad_norm",
    "clipped": "policy/clip_frac",
    "step_kl": "policy/step_kl",
    "step_kl_asked": "policy/step_kl_asked",
}
"""What of an iteration is written down, and the metric that says it."""


class Watched:
    """A reporter that keeps what an iteration was and ends the run at the higher mark or at CAP."""

    class Done(BaseException):
        """Nothing more is wanted of the run."""

    def __init__(self, mark: float, window: int) -> None:
        self.mark, self.window, self.run, self.started = mark, window, {"cpu_seconds": []}, time.process_time()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002 - the protocol of reporters
        """Called by the training loop after each iteration."""
        self.run["cpu_seconds"].append(round(time.process_time() - self.started, 3))
        for name, metric in KEPT.items():
            if metric in metrics:
                self.run.setdefault(name, []).append(round(metrics[metric], 5))
        if seconds_to(self.run, self.mark, self.window) < float("inf") or sum(self.run["cpu_seconds"]) >= CAP:
            raise self.Done
        self.started = time.process_time()


def search_run(design: Design, reward: str, one: Setting, seed: int, threads: int) -> dict[str, Any]:
    """Ours alone at one setting."""
    import torch
    from bench.inputs import hh_prompts
    from bench.models import trained_checkpoint
    from bench.ours.group import group_config
    from bench.ours.scores import products_of, text_score

    from karat.lm.load import load_lm
    from karat.policy.group import train_group

    torch.set_num_threads(threads)
    work = {**design.cell_of(reward, one).published.shape, "n_iterations": 20, **one}
    lm = load_lm(str(trained_checkpoint()), for_training=True, products=products_of(work))
    watched = Watched(max(MARKS[reward]), design.window(reward, one))
    prompts, score, config = hh_prompts(work["n_prompts"])[0], text_score(reward), group_config(work)
    watched.started = time.process_time()
    with contextlib.suppress(Watched.Done):
        train_group(lm, prompts, score, config, seed=seed, reporters=[watched])
    return watched.run | {"setting": dict(one), "seed": seed, "machine": machine()}


def search(design: Design, rewards: Sequence[str], found: dict[str, Any], threads: int, minutes: float) -> None:
    """Make the runs that are missing, each written at once, for so many minutes."""
    end = time.monotonic() + 60 * minutes
    for reward in rewards:
        runs = found["search"].setdefault(reward, {})
        while (missing := wanted(design, runs, reward)[0]) and time.monotonic() < end:
            one, seed = missing[0]
            runs[name_of(one, seed)] = made = search_run(design, reward, one, seed, threads)
            score_study.write(found, design.results)
            spent = run_cost(made, reward, design.window(reward, one))
            said = f"{spent:.1f} of {sum(made['cpu_seconds']):.1f} s: {listed(made['scores'], '.1f')}"
            print(f"{reward}, {name_of(one, seed)}: {said}; {len(missing) - 1} left", file=sys.stderr, flush=True)


def races(design: Design, rewards: Sequence[str], seeds: Sequence[int], found: dict[str, Any], threads: int) -> None:
    """Race on these seeds where that was not done.

    Raises: SystemExit where the search is not done, or a program fails.
    """
    place = score_study.load(score_study.RESULTS)["cells"]
    for reward in rewards:
        if (ours := choice(design, found["search"].get(reward, {}), reward)) is None:
            raise SystemExit(f"bench: found the search of {reward} unfinished; run --search first")
        cell = design.cell_of(reward, ours)
        own = found["cells"].setdefault(cell.name, {"shape": cell.shape, "runs": {}})
        for seed in seeds:
            if (name := race_name(seed)) not in own["runs"]:
                own["runs"][name] = fresh_race(cell, {"ours": ours, **PEERS[reward]}, seed, threads)
            own["row"] = row(cell, own["runs"], place[cell.published.name])
            score_study.write(found, design.results)


def search_table(design: Design, runs: Runs, reward: str) -> str:
    """What the search found, cheapest first within those that came equally far, as Markdown."""
    lines = [
        f"| `{reward}`: setting, bfloat16 | seeds | cost, s | runs with {MARKS[reward][0]:g}; with {MARKS[reward][1]:g} | lowest score from the fourth iteration on: median of the runs; least |",
        "|---|---|---|---|---|",
    ]
    entries = []
    for one in design.lists[reward]:
        seeds = [seed for stage in design.stages[reward] for seed in stage if name_of(one, seed) in runs]
        if not seeds:
            continue
        made = [runs[name_of(one, seed)] for seed in seeds]
        window = design.window(reward, one)
        counts = [sum(seconds_to(run, mark, window) <= CAP for run in made) for mark in MARKS[reward]]
        lows = [min(run["scores"][3:], default=run["scores"][-1]) for run in made]
        what = f"{counts[0]}; {counts[1]} | {statistics.median(lows):.1f}; {min(lows):.1f}"
        entries.append((-len(seeds), statistics.fmean(costs(design, runs, one, seeds, reward)), one, what))
    for n, price, one, what in sorted(entries, key=lambda entry: entry[:2]):
        lines.append(f"| {full_name(one).replace(', bfloat16', '')} | {-n} | {price:.1f} | {what} |")
    return "\n".join(lines)


def page(design: Design, found: Mapping[str, Any]) -> str:
    """Races, then searches, and on what they were made."""
    cells = [
        design.cell_of(reward, ours)
        for reward in design.rewards
        if (ours := choice(design, found["search"].get(reward, {}), reward)) is not None
    ]
    made = [run for cell in cells for run in found["cells"].get(cell.name, {}).get("runs", {}).values()]
    sought = [run for runs in found["search"].values() for run in runs.values()]
    parts = [table(cells, found["cells"])] if cells else []
    parts += [search_table(design, found["search"].get(reward, {}), reward) for reward in design.rewards]
    where = ", ".join(sorted({run["machine"]["processor"] for run in (*made, *sought)}))
    said = f"{len(made)} races"
    for name, runs in (("races", made), ("search", sought)):
        loads = [run["machine"]["load"] for run in runs]
        if loads:
            seconds = (
                f", {sum(sum(run['cpu_seconds']) for run in runs):.0f} processor seconds" if runs is sought else ""
            )
            said += f"; {name}: {len(runs)} runs{seconds}, load {min(loads):g} to {max(loads):g}"
    return "\n\n".join([*parts, f"{said}; one thread a side; {where}. –: not reached."])


def main(design: Design, about: str | None) -> None:
    """Search, race, or write what there is into the page."""
    parser = score_study.study_parser(about)
    parser.add_argument("--reward", nargs="+", choices=design.rewards, default=design.rewards)
    parser.add_argument("--seed", nargs="+", type=int, choices=design.seeds, default=design.seeds)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run of the search after that")
    options = parser.parse_args()
    found = {"search": {}, **score_study.load(design.results)}
    threads = int(os.environ.get("KARAT_BENCH_THREADS", "1"))
    if options.search:
        search(design, options.reward, found, threads, options.minutes)
    if options.races:
        races(design, options.reward, options.seed, found, threads)
    if options.tables:
        put_between(score_study.DOCS, design.place, page(design, found))


if __name__ == "__main__":
    main(DESIGN, __doc__)
