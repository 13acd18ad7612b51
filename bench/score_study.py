"""Time to score: how long until our PPO is as good as the peer's ends up, on one learnable reward.

The reward counts a letter (letters.py), so that no reward model's time is part of it. Both sides first try eight
settings, learning rate × optimiser steps an epoch (six at first; the best lay at their edge), with the same prompts, samples, epochs and KL coefficient; the
best of few iterations may collapse later, so the finalists run in full on the first seed, and each side then runs three
seeds at its own best. A score is the mean of the last few iterations. The peer's time ends when that
first reaches its own final value, ours when it first reaches the same value. Everything found is written at once to
bench/results/score_study.json, and what is there is not run again.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.environments import PPO_PEER, trl_python
from bench.rows import machine, take_turns
from bench.turns import ROOT, Worker

SETTINGS = [
    {"learning_rate": rate, "n_minibatches": n_minibatches}
    for rate in (1e-4, 3e-4, 1e-3, 3e-3)
    for n_minibatches in (1, 4)
]
FINALISTS = [{"learning_rate": 1e-3, "n_minibatches": 4}, {"learning_rate": 3e-3, "n_minibatches": 4}]
"""The best settings of either side in the search, of each learning rate one."""
SEARCH_SEED, SEEDS = 100, (0, 1, 2)
N_ITERATIONS, N_SEARCH, WINDOW = 20, 5, 4
TARGET = 6.0
SIDES = ("ours", "theirs")
RECORDED = ("versions", "peak_mib", "machine")
WORK = ROOT / "bench" / "work"
RESULTS = ROOT / "bench" / "results" / "score_study.json"
SHAPE = {"n_prompts": 16, "n_samples": 4, "max_new_tokens": 48, "n_epochs": 4, "kl_coef": 0.05, "reward": "letters"}


def score_row(*, quick: bool, threads: int) -> dict[str, Any]:
    """Run what is missing and put the row together; `quick` runs three iterations and keeps them apart."""
    path = WORK / "score_study_quick.json" if quick else RESULTS
    n_iterations, n_search, window = (3, 3, 1) if quick else (N_ITERATIONS, N_SEARCH, WINDOW)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}}
    found["shape"] = SHAPE | {
        "n_iterations": n_iterations,
        "n_search": n_search,
        "window": window,
        "prompts": "HH, at most 96 tokens",
    }
    for setting in SETTINGS[:2] if quick else SETTINGS:
        _run(found, path, dict.fromkeys(SIDES, setting), SEARCH_SEED, n_search, threads)
    for setting in SETTINGS[:2] if quick else FINALISTS:
        _run(found, path, dict.fromkeys(SIDES, setting), SEEDS[0], n_iterations, threads)
    found["best"] = {side: _best(found["runs"], side, window) for side in SIDES}
    for seed in () if quick else SEEDS[1:]:
        _run(found, path, found["best"], seed, n_iterations, threads)
    found["row"] = _row(found, SEEDS[:1] if quick else SEEDS, window, threads)
    _write(found, path)
    return found["row"]


def smoothed(scores: Sequence[float], window: int) -> list[float]:
    """Means of the last `window` scores, from the first full window on."""
    return [statistics.fmean(scores[i - window : i]) for i in range(window, len(scores) + 1)]


def seconds_to(run: Mapping[str, Sequence[float]], target: float, window: int) -> float | None:
    """Seconds until the smoothed score is at least `target`; None where it never is."""
    for number, value in enumerate(smoothed(run["scores"], window), start=window):
        if value >= target:
            return sum(run["seconds"][:number])
    return None


def _run(
    found: dict[str, Any], path: Path, settings: Mapping[str, Any], seed: int, n_iterations: int, threads: int
) -> None:
    """Both sides at these settings, turn by turn, unless it was done before."""
    key = _key(settings, seed)
    if key in found["runs"]:
        return
    common = SHAPE | {"n_iterations": n_iterations, "seed": seed, "threads": threads}
    workers = _workers(common, settings)
    turns = take_turns(*workers, n_warm=0, n_turns=n_iterations, label=key)
    found["runs"][key] = {
        "seed": seed,
        "settings": dict(settings),
        **{
            side: {
                "scores": [round(getattr(turn, side)["score"], 5) for turn in turns],
                "seconds": [round(getattr(turn, side)["seconds"], 3) for turn in turns],
                "cpu_seconds": [round(getattr(turn, side)["cpu_seconds"], 3) for turn in turns],
            }
            for side in SIDES
        },
        "versions": {side: worker.versions for side, worker in zip(SIDES, workers, strict=True)},
        "peak_mib": {side: round(worker.peak_mib) for side, worker in zip(SIDES, workers, strict=True)},
        "machine": machine(),
        "threads": threads,
    }
    _write(found, path)


def _workers(common: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Worker, Worker]:
    from bench.inputs import hh_prompts
    from bench.models import trained_checkpoint

    model = str(trained_checkpoint())
    inputs = {
        "model": model,
        "classifier": model,  # the peer's value model: the policy's trunk with a new head
        "prompts": hh_prompts(common["n_prompts"])[1],
        "output": str(WORK / "trl_ppo"),
    }
    programs = {
        "ours": (sys.executable, "bench.ours.ppo"),
        "theirs": (trl_python(PPO_PEER), "bench.peers.trl_ppo"),
    }
    workers = []
    for side, (python, module) in programs.items():
        place = WORK / f"score_{side}.json"
        place.write_text(json.dumps({**common, **settings[side], **inputs}), encoding="utf-8")
        log = WORK / "logs" / f"score-{side}.txt"
        workers.append(Worker(python, module, place, threads=common["threads"], log=log))
    return workers[0], workers[1]


def _key(settings: Mapping[str, Any], seed: int) -> str:
    texts = {side: f"lr {s['learning_rate']:g}, {s['n_minibatches']} steps" for side, s in settings.items()}
    named = texts["ours"] if texts["ours"] == texts["theirs"] else f"ours {texts['ours']}; theirs {texts['theirs']}"
    return f"seed {seed}: {named}"


def _best(runs: Mapping[str, Any], side: str, window: int) -> dict[str, float]:
    """The setting with the highest final score in the full runs of the first seed."""
    finals = [run for run in runs.values() if run["seed"] == SEEDS[0]]
    return max(finals, key=lambda run: smoothed(run[side]["scores"], window)[-1])["settings"][side]


def _found(runs: Mapping[str, Any], side: str, setting: Mapping[str, float], seed: int) -> Mapping[str, Any]:
    """The run of one side at its setting; on the first seed the other side may have run at another one beside it."""
    return next(run for run in runs.values() if run["seed"] == seed and run["settings"][side] == setting)


def _row(found: Mapping[str, Any], seeds: Sequence[int], window: int, threads: int) -> dict[str, Any]:
    runs = [
        {side: _found(found["runs"], side, found["best"][side], seed)[side] for side in SIDES}
        | {name: _found(found["runs"], "ours", found["best"]["ours"], seed)[name] for name in RECORDED}
        for seed in seeds
    ]
    finals = [smoothed(run["theirs"]["scores"], window)[-1] for run in runs]
    times = {
        side: [seconds_to(run[side], final, window) for run, final in zip(runs, finals, strict=True)] for side in SIDES
    }
    ratios = [
        theirs / ours if ours and theirs else None for ours, theirs in zip(times["ours"], times["theirs"], strict=True)
    ]
    reached = [ratio for ratio in ratios if ratio is not None]
    peaks = {side: max(run["peak_mib"][side] for run in runs) for side in SIDES}
    complete = len(reached) == len(ratios)
    ratio = statistics.median(reached) if complete else None
    # a peer that did not get better sets no mark to reach
    learnt = all(final > smoothed(run["theirs"]["scores"], window)[0] for run, final in zip(runs, finals, strict=True))
    return {
        "work": "time-to-score",
        "unit": "s to the peer's final score",
        **{side: statistics.median(times[side]) if complete else None for side in SIDES},
        "ratio": ratio,
        "target": TARGET,
        "met": ratio is not None and ratio >= TARGET and learnt,
        "peer_learnt": learnt,
        "ratios": ratios,
        "peak_mib_ours": peaks["ours"],
        "peak_mib_theirs": peaks["theirs"],
        "ratio_memory": peaks["theirs"] / peaks["ours"],
        "seconds": times,
        "final_scores": {side: [smoothed(run[side]["scores"], window)[-1] for run in runs] for side in SIDES},
        "first_scores": {side: [smoothed(run[side]["scores"], window)[0] for run in runs] for side in SIDES},
        "settings": found["best"],
        "versions": runs[0]["versions"],
        "threads": threads,
        "machine": [run["machine"] for run in runs],
        "n_repeats": len(runs),
        "spread": {"ratio": {"min": min(reached), "max": max(reached)} if reached else None},
        "note": "" if complete else f"the peer's final score was not reached in {len(ratios) - len(reached)} runs",
    }


def _write(found: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
