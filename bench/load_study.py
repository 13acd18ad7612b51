"""The row "load": many raters at once on karat, Potato and Label Studio, one after the other in one run.

    python bench/load_study.py [--raters 200] [--seconds 60] [--systems ours potato label_studio ours_postgres]

Each system has the same queue of comparisons, the same accounts and the same crowd: as many raters, who think as long.
What the figures mean is in docs/benchmarks.md. Every run is also written to bench/work/load/runs.jsonl.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from bench.environments import CROWD, python_with
from bench.load import figures
from bench.load.plan import Plan
from bench.rows import machine
from bench.turns import ROOT

WORK = ROOT / "bench" / "work" / "load"
# what can be run: the module that knows the server, and what that is told
RUNS = {
    "ours": ("ours", "page sqlite"),
    "ours_api": ("ours", "api sqlite"),
    "potato": ("potato", ""),
    "label_studio": ("label_studio", "gunicorn"),
    "label_studio_start": ("label_studio", "start"),
    "ours_postgres": ("ours", "page postgresql"),
}
ROW = ("ours", "potato", "label_studio", "ours_api", "ours_postgres")
PEERS = ("potato", "label_studio")
# on PostgreSQL ten times as many, who take as long as people do; both crowds then ask for much the same
MANY, MANY_THINK_SECONDS = 2000, 30.0
TARGET = 1.0  # ahead: every p95 of ours below both peers'


def load_row(*, quick: bool) -> dict[str, Any]:
    """The row as `make bench` prints it; `quick` answers only whether it runs."""
    raters, seconds = (20, 10.0) if quick else (200, 60.0)
    return study(plans(ROW, raters=raters, many=40 if quick else MANY, seconds=seconds))


def plans(names: Sequence[str], *, raters: int, many: int, seconds: float, think: float = 10.0) -> dict[str, Plan]:
    """A plan for each system; they differ in nothing but the system, except that PostgreSQL has its own crowd."""
    chosen = {}
    for name in names:
        system, options = RUNS[name]
        plan = Plan(system, raters, seconds, think_seconds=think, options=options)
        if name == "ours_postgres":
            plan = replace(plan, raters=many, think_seconds=MANY_THINK_SECONDS, warm_seconds=MANY_THINK_SECONDS)
        chosen[name] = plan
    return chosen


def study(chosen: Mapping[str, Plan]) -> dict[str, Any]:
    """Run every plan, one after the other, and put the row together."""
    # a connection a rater on both sides; the processes started here inherit it
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    runs = {name: run_one(name, plan) for name, plan in chosen.items()}
    return row(runs, chosen)


def run_one(name: str, plan: Plan) -> dict[str, Any]:
    """Prepare a system, start it, send the crowd, stop it, count what is there; the figures."""
    crowd_python = python_with("load-crowd", CROWD)
    directory = WORK / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    _say(name, f"{plan.n_items} items for {plan.raters} raters")
    system = importlib.import_module(f"bench.load.{plan.system}").System(plan, directory)
    try:
        started = time.monotonic()
        system.prepare()
        server, url = system.start()
        _say(name, f"answers after {time.monotonic() - started:.0f} s")
        try:
            outcome, cpu = _crowd(name, crowd_python, replace(plan, url=url, files=str(directory)), server)
        finally:
            server.stop()
        stored = system.stored()
    finally:
        system.close()
    found = figures.summary(outcome, warm=plan.warm_seconds, seconds=plan.seconds, rng=np.random.default_rng(plan.seed))
    found |= figures.kept(outcome["acknowledged"], stored)
    found["server"] = figures.costs(server.peak_mib, cpu, found["acknowledged"])
    found |= {"raters": plan.raters, "seconds": plan.seconds, "think_seconds": plan.think_seconds}
    found |= {"versions": system.versions(), "started_as": _shown(server.command), "load": machine()["load"]}
    with (WORK / "runs.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps({"system": name, **found}, ensure_ascii=False) + "\n")
    p95 = {kind: found[kind]["p95_ms"] for kind in figures.KINDS}
    _say(
        name, f"p95 {p95} ms, {found['answers_per_second']} answers/s, {found['lost']} of {found['acknowledged']} lost"
    )
    return found


def row(runs: Mapping[str, Mapping[str, Any]], chosen: Mapping[str, Plan]) -> dict[str, Any]:
    """The JSON object of the row: p95 in milliseconds, ours beside the peers', and the smallest of the four ratios."""
    ours = runs.get("ours")
    peers = [name for name in PEERS if name in runs]
    by_peer = {name: figures.ratios(ours, runs[name]) for name in peers} if ours else {}
    known = [ratio for found in by_peer.values() for ratio in found.values()]
    ratio = min(known) if known and None not in known else None
    whole = ours is not None and len(peers) == len(PEERS)
    return {
        "work": "load",
        "unit": "ms, p95 of next item and of submit",
        "ours": _p95(ours) if ours else None,
        "theirs": {name: _p95(runs[name]) for name in peers},
        "ratio": ratio,
        "ratios": by_peer,
        "target": TARGET,
        "met": None if not whole or ratio is None else ratio > TARGET and not ours["lost"] and not ours["errors"],
        "peak_mib_ours": ours["server"]["peak_mib"] if ours else None,
        "peak_mib_theirs": {name: runs[name]["server"]["peak_mib"] for name in peers},
        "ratios_memory": {name: figures.over(ours, runs[name], "peak_mib") for name in peers if ours},
        "ratios_cpu": {name: figures.over(ours, runs[name], "cpu_ms_an_answer") for name in peers if ours},
        "versions": {name: run["versions"] for name, run in runs.items()},
        "raters": {name: plan.raters for name, plan in chosen.items()},
        "machine": machine(),
        "runs": dict(runs),
    }


def _p95(run: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: run[kind]["p95_ms"] for kind in figures.KINDS}


def _crowd(name: str, python: Path, plan: Plan, server: Any) -> tuple[dict[str, Any], float]:
    """Let the crowd work; what it wrote, and the server's processor seconds meanwhile."""
    directory = Path(plan.files)
    plan_path, out_path = directory / "plan.json", directory / "outcome.json"
    plan.write(plan_path)
    command = [str(python), "-m", "bench.load.driver", str(plan_path), str(out_path)]
    with (directory / "crowd.log").open("w", encoding="utf-8") as log:
        crowd = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    assert crowd.stdout is not None
    try:
        crowd.stdout.readline()  # everybody has signed in
        before = server.cpu_seconds()
        _say(name, "everybody has signed in")
        code = crowd.wait()
    finally:
        if crowd.poll() is None:
            crowd.kill()
            crowd.wait()
        crowd.stdout.close()
    if code:
        last = (directory / "crowd.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise SystemExit(f"bench: the crowd of {name} ended with code {code}: {''.join(last)} (see {directory})")
    return json.loads(out_path.read_text(encoding="utf-8")), server.cpu_seconds() - before


def _shown(command: Sequence[str]) -> str:
    """A command without the places of this machine."""
    return " ".join(Path(part).name if Path(part).is_absolute() else part for part in command)


def _say(name: str, what: str) -> None:
    print(f"load: {name}: {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the systems asked for and print the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=200, help="at once; default 200")
    parser.add_argument("--many", type=int, default=MANY, help=f"raters on PostgreSQL; default {MANY}")
    parser.add_argument("--seconds", type=float, default=60.0, help="measured, after the warm-up; default 60")
    parser.add_argument("--think", type=float, default=10.0, help="mean seconds from item to answer; default 10")
    parser.add_argument(
        "--systems", nargs="+", choices=RUNS, default=list(ROW), metavar="NAME", help=f"of {list(RUNS)}"
    )
    options = parser.parse_args()
    chosen = plans(
        options.systems, raters=options.raters, many=options.many, seconds=options.seconds, think=options.think
    )
    print(json.dumps(study(chosen), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
