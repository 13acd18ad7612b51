"""Own batch, the fourth design of the time-to-score study: its cells, choices and arithmetic; its rules are in docs/benchmarks.md.

A run is {seed, settings: {side: setting}, side: {scores, seconds, cpu_seconds}, …}, one number an iteration, of one side,
or in a race {seed, ours: {…}, published: {…}, chosen: {…}}. Knows nothing about processes or files.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.score_cells import SIDES, TARGETS, Cell, Setting, run_name, setting_name
from bench.score_figures import iterations_to, smoothed

PLAIN = 4
"""Samples a prompt in the published cells."""
PEERS_SLACK, OUR_SHARE = 1.25, 0.5
"""How long a run may take in the search, in the processor seconds of the peer's published setting."""
CONTENDERS = ("ours", "published", "chosen")
"""Who takes turns in a race: ours, the peer at its published setting, and at the best of the others where one had the score."""
Runs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class OwnBatch:
    """A method on a reward, where each side chooses its samples a prompt too."""

    method: str
    reward: str
    samples: tuple[int, ...] = (PLAIN, 16)
    """Samples a prompt tried."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    steps: tuple[int, ...] = (1, 4)
    n_iterations: int = 20
    """Of ours, at most."""
    first_seed: int = 200
    """Of our search, for all settings."""
    further_seeds: tuple[int, ...] = (201, 202, 203, 204)
    """Of our search, for the finalists."""
    n_finalists: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the races, which count."""
    responses: int | None = None
    """Responses whose mean is a score; None = as `window_of` says."""

    @property
    def name(self) -> str:
        """Of the cell in the results."""
        return f"{self.method}, {self.reward}"

    @property
    def published(self) -> Cell:
        """The cell whose runs of the peer are taken over."""
        return Cell(self.method, self.reward, whole_search=True, times_longer=2)

    @property
    def settings(self) -> list[Setting]:
        """Every setting tried, for both sides the same."""
        return [
            {"learning_rate": rate, "n_minibatches": n} | ({} if k == PLAIN else {"n_samples": k})
            for k in self.samples
            for rate in self.rates
            for n in self.steps
        ]

    @property
    def shape(self) -> dict[str, Any]:
        """What all runs of the cell have in common, as it is kept beside them."""
        own = {"samples": list(self.samples), "our_iterations": self.n_iterations, "n_finalists": self.n_finalists}
        return self.published.shape | own | {"our_search_seeds": [self.first_seed, *self.further_seeds]}


CELLS = tuple(OwnBatch(*pair) for pair in (("rloo", "length"), ("grpo", "length"), ("rloo", "word"), ("ppo", "length")))
"""In the order in which they are run: those that the other designs missed."""


@dataclass(frozen=True)
class Published:
    """The peer's published runs on one seed: at which setting, the score they end at, and how long they took to it."""

    setting: Setting
    mark: float
    scores: Sequence[float]
    cpu_seconds: float


def published(cell: OwnBatch, place: Mapping[str, Any], seed: int) -> Published:
    """The peer's run at its published setting.

    Args: place: of the published cell in the results.
    """
    setting, base = place["best"]["theirs"], cell.published
    run = next(
        run["theirs"]
        for run in place["runs"].values()
        if run["seed"] == seed and "theirs" in run and run["settings"]["theirs"] == setting
    )
    mark = smoothed(run["scores"], base.window)[-1]
    return Published(setting, mark, run["scores"], seconds_to(run, mark, base.window, "cpu_seconds"))


def window_of(cell: OwnBatch, side: str, setting: Setting) -> int:
    """Iterations whose mean is a score: of either side the last with so many responses, or three, and one of the peer's where that has more samples than three plain ones."""
    if cell.responses is not None:
        return math.ceil(cell.responses / (cell.published.n_prompts * setting.get("n_samples", PLAIN)))
    return 1 if side == "theirs" and setting.get("n_samples", PLAIN) > PLAIN else cell.published.window


def seconds_to(side: Mapping[str, Any], mark: float, window: int, which: str = "cpu_seconds") -> float:
    """Seconds of a run until its score is at least the mark; infinite where it never is."""
    n = iterations_to(side["scores"], mark, window)
    return math.inf if n is None else sum(side[which][:n])


def search_name(side: str, setting: Setting, seed: int) -> str:
    """Of a run of one side in the search.

    >>> search_name("ours", {"learning_rate": 1e-3, "n_minibatches": 4, "n_samples": 16}, 200)
    'seed 200: ours, lr 0.001, 4 steps, 16 samples'
    """
    return f"seed {seed}: {side}, {full_name(setting)}"


def full_name(setting: Setting) -> str:
    """Learning rate, optimiser steps, samples a prompt, and what else is not as published, in words.

    >>> full_name({"learning_rate": 3e-3, "n_minibatches": 1, "dtype": "bfloat16", "max_step_kl": 0.3})
    'lr 0.003, 1 steps, 4 samples, bfloat16, steps of 0.3 nats'
    """
    words = [setting_name(setting), f"{setting.get('n_samples', PLAIN)} samples"]
    words += [str(setting[key]) for key in ("dtype", "peer_dtype") if key in setting]
    words += ["no clip"] if "max_grad_norm" in setting else []
    words += [f"steps of {setting['max_step_kl']:g} nats"] if "max_step_kl" in setting else []
    words += [f"ratios of {setting['level']}s"] if "level" in setting else []
    words += [f"over {setting['n_iterations']} iterations"] if "n_iterations" in setting else []
    return ", ".join(words)


def peers_search(cell: OwnBatch, runs: Runs, place: Mapping[str, Any]) -> list[tuple[Setting, Mapping[str, Any]]]:
    """The peer's runs by which it chooses, reused ones first; without those that were not made yet."""
    seed, found = cell.published.search_seed, []
    for setting in cell.settings:
        if "n_samples" in setting:
            run = runs.get(search_name("theirs", setting, seed))
        else:
            run = place["runs"][run_name(dict.fromkeys(SIDES, setting), seed)]
        if run is not None:
            found.append((setting, run["theirs"]))
    return found


def peers_choice(cell: OwnBatch, runs: Runs, place: Mapping[str, Any]) -> Setting | None:
    """Beside its published setting, the one with which the peer has that one's final score in the fewest processor seconds.

    None where no other setting has it in time.
    """
    goal = published(cell, place, cell.published.search_seed)
    times = [
        (seconds_to(run, goal.mark, window_of(cell, "theirs", setting)), setting)
        for setting, run in peers_search(cell, runs, place)
        if setting != goal.setting
    ]
    time, setting = min(times, key=lambda pair: pair[0])
    return None if math.isinf(time) else setting


def finalists(cell: OwnBatch, runs: Runs, mark: float) -> list[Setting] | None:
    """Our best settings on the first seed, best first; None while not all have run."""
    names = {search_name("ours", setting, cell.first_seed): setting for setting in cell.settings}
    if any(name not in runs for name in names):
        return None
    window = cell.published.window

    def order(name: str) -> tuple[float, float]:
        run = runs[name]["ours"]
        return seconds_to(run, mark, window), -(smoothed(run["scores"], window) or [-math.inf])[-1]

    return [names[name] for name in sorted(names, key=order)[: cell.n_finalists]]


def leader(cell: OwnBatch, runs: Runs, mark: float) -> tuple[Setting, int | None] | None:
    """The finalist with the fewest search seeds without the mark, then the least processor time, and the seed it lacks.

    While it lacks one, that run is the next to make; when it lacks none, no other finalist can come before it, because
    neither figure of theirs gets smaller by further runs. None while the first seed is not done.
    """
    best = finalists(cell, runs, mark)
    if best is None:
        return None
    seeds = (cell.first_seed, *cell.further_seeds)

    def order(setting: Setting) -> tuple[int, float]:
        found = [run["ours"] for seed in seeds if (run := runs.get(search_name("ours", setting, seed)))]
        times = [seconds_to(run, mark, cell.published.window) for run in found]
        spent = [min(time, sum(run["cpu_seconds"])) for time, run in zip(times, found, strict=True)]
        return sum(math.isinf(time) for time in times), sum(spent)

    first = min(best, key=order)
    return first, next((seed for seed in seeds if search_name("ours", first, seed) not in runs), None)


def race_name(seed: int) -> str:
    """Of the run that counts on a seed."""
    return f"seed {seed}: race"


def row(cell: OwnBatch, runs: Runs, place: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cell's figures over the races that are done; None before the first.

    A ratio is the peer's time, the sooner of its runs, over ours; None where ours did not get there.
    """
    races = {seed: runs[race_name(seed)] for seed in cell.seeds if race_name(seed) in runs}
    if not races:
        return None
    which = ("seconds", "cpu_seconds")
    times = {one: [_times(cell, race, one) for race in races.values()] for one in which}
    ratios = {one: [_ratio(pair) for pair in times[one]] for one in which}
    settings = next(iter(races.values()))["settings"]
    reached = [ratio for ratio in ratios["seconds"] if ratio is not None]
    whole = len(reached) == len(races)
    ratio = statistics.median(reached) if whole else None
    complete = len(races) == len(cell.seeds)
    samples = [_samples(cell, race) for race in races.values()]
    return {
        "work": "time-to-score, own batch",
        "method": cell.method,
        "reward": cell.reward,
        "ratio": ratio,
        "target": TARGETS[cell.method],
        "met": complete and ratio is not None and ratio >= TARGETS[cell.method],
        "complete": complete,
        "ratios": ratios["seconds"],
        "ratios_cpu": ratios["cpu_seconds"],
        **{one: {side: [_finite(pair[side]) for pair in times[one]] for side in SIDES} for one in which},
        "samples": {side: [found[side] for found in samples] for side in SIDES},
        "marks": [race["mark"] for race in races.values()],
        "sooner": [_sooner(cell, race, "seconds") for race in races.values()],
        "settings": settings,
        "seeds": list(races),
        "same_scores": all(race["same_scores"] for race in races.values()),
        "search": search(cell, runs, place),
    }


def search(cell: OwnBatch, runs: Runs, place: Mapping[str, Any]) -> dict[str, Any]:
    """Of both sides: settings tried, settings that had the mark on the first seed, runs, and their processor seconds."""
    mark = published(cell, place, cell.published.search_seed).mark
    theirs = peers_search(cell, runs, place)
    ours = [run for name, run in runs.items() if "ours" in run and name != race_name(run["seed"])]
    first = [run for run in ours if run["seed"] == cell.first_seed]
    window = cell.published.window
    return {
        "tried": {"ours": len(first), "theirs": len(theirs)},
        "reached": {
            "ours": sum(math.isfinite(seconds_to(run["ours"], mark, window)) for run in first),
            "theirs": sum(math.isfinite(seconds_to(run, mark, window_of(cell, "theirs", s))) for s, run in theirs),
        },
        "runs": {"ours": len(ours), "theirs": len(theirs)},
        "cpu_seconds": {
            "ours": sum(sum(run["ours"]["cpu_seconds"]) for run in ours),
            "theirs": sum(sum(run["cpu_seconds"]) for _, run in theirs),
        },
    }


def _contender_seconds(cell: OwnBatch, race: Mapping[str, Any], who: str, which: str) -> float:
    side, setting = ("ours" if who == "ours" else "theirs"), race["settings"][who]
    return seconds_to(race[who], race["mark"], window_of(cell, side, setting), which)


def _sooner(cell: OwnBatch, race: Mapping[str, Any], which: str) -> str:
    """At which of its settings the peer was there first."""
    there = [who for who in CONTENDERS[1:] if who in race]
    return min(there, key=lambda who: _contender_seconds(cell, race, who, which))


def _times(cell: OwnBatch, race: Mapping[str, Any], which: str) -> dict[str, float]:
    sides = {"ours": "ours", "theirs": _sooner(cell, race, which)}
    return {side: _contender_seconds(cell, race, who, which) for side, who in sides.items()}


def _samples(cell: OwnBatch, race: Mapping[str, Any]) -> dict[str, int | None]:
    """Samples drawn until the mark, each side's; the peer's at the setting with which it was there first."""
    found: dict[str, int | None] = {}
    for side, who in (("ours", "ours"), ("theirs", _sooner(cell, race, "seconds"))):
        setting = race["settings"][who]
        n = iterations_to(race[who]["scores"], race["mark"], window_of(cell, side, setting))
        found[side] = None if n is None else n * cell.published.n_prompts * setting.get("n_samples", PLAIN)
    return found


def _ratio(pair: Mapping[str, float]) -> float | None:
    return None if math.isinf(pair["ours"]) else pair["theirs"] / pair["ours"]


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def progress(cell: OwnBatch, runs: Runs, place: Mapping[str, Any]) -> str:
    """How much of the cell is done, in words."""
    found = row(cell, runs, place)
    if found is None:
        n = len([name for name in runs if "race" not in name])
        return f"search: {n} runs" if n else "not run"
    return "done" if found["complete"] else f"{len(found['seeds'])} of {len(cell.seeds)} seeds"


def table(cells: Sequence[OwnBatch], found: Mapping[str, Any], places: Mapping[str, Any]) -> str:
    """What has been run and what has not, as Markdown.

    Args: found, places: runs by cell, {name: {runs: …}}: of this design and of the published cells.
    """
    lines = [
        "| method, reward | done | times faster: median (each seed; in processor seconds) | target | s, ours and TRL's | samples, ours and TRL's "
        "| score to reach | setting: ours; TRL's published; TRL's other (seeds on which it was sooner) | search: settings with the score of "
        "those tried, processor s; ours, TRL's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        runs, place = found.get(cell.name, {}).get("runs", {}), places[cell.published.name]
        one = row(cell, runs, place)
        start = f"| {cell.name} | {progress(cell, runs, place)} |"
        lines.append(start + (_line(one) if one else f" | {TARGETS[cell.method]:g} | | | | | |"))
    return "\n".join(lines)


def _line(one: Mapping[str, Any]) -> str:
    """The figures of a row, from the ratio on."""
    ratio = "not reached" if one["ratio"] is None else f"{one['ratio']:.1f}"
    verdict = "" if not one["complete"] else ", met" if one["met"] else ", **missed**"
    settings, sought = one["settings"], one["search"]
    n_chosen = one["sooner"].count("chosen")
    chosen = f"{full_name(settings['chosen'])} ({n_chosen})" if "chosen" in settings else "none"
    columns = [
        f"{ratio} ({listed(one['ratios'], '.1f')}; {listed(one['ratios_cpu'], '.1f')})",
        f"{one['target']:g}{verdict}",
        "; ".join(listed(one["seconds"][side], ".0f") for side in SIDES),
        "; ".join(listed(one["samples"][side], "d") for side in SIDES),
        listed(one["marks"], ".1f"),
        f"{full_name(settings['ours'])}; {full_name(settings['published'])}; {chosen}",
        "; ".join(f"{sought['reached'][s]} of {sought['tried'][s]}, {sought['cpu_seconds'][s]:.0f} s" for s in SIDES),
    ]
    return " " + " | ".join(columns) + " |"


def listed(values: Sequence[float | None], form: str) -> str:
    """Numbers with commas between; – for None."""
    return ", ".join("–" if value is None else format(value, form) for value in values)
