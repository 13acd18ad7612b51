"""Every method on the same votes: gold at equal KL to the supervised policy (docs/optimisers.md).

    python bench/methods_study.py [--seeds 0 1] [--methods ppo dpo …] [--out bench/results/methods_study.json] [--quick]
    python bench/methods_study.py --tables        # writes what is in the results into docs/optimisers.md, and stops

A seed is one run of the sandbox as `karat demo` configures it, up to its reward model. Every method then starts from a
copy of that run: the same policy, votes, reward and, online, as many iterations, samples and optimiser steps; only its
section differs, at two or three strengths of its KL penalty. Gold and KL are the run's own evaluation, on prompts that no
method saw. Between strengths gold is read off a line in √KL that starts at the supervised policy (Gao et al. 2023,
arXiv:2210.10760, measure distance so); beyond a method's largest KL nothing is said. What the result file holds is not
run again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.pages import put_between
from bench.rows import machine
from bench.turns import ROOT, WORK

from karat.config import apply_overrides, build, load_yaml
from karat.pipeline.configured import DEMO
from karat.pipeline.runs import run_once
from karat.pipeline.settings import RunConfig
from karat.progress import LineDisplay
from karat.stats import mean_estimate

KLS = (0.25, 0.5, 1.0, 1.5)
ITERATIONS = ("n_iterations=60", "evaluate_every=30", "rollout.n_prompts=32", "rollout.n_samples=4")
STEPS = ("update.n_minibatches=4", "update.learning_rate=2e-4", "update.token_budget=8192")
ONLINE = (*ITERATIONS, *STEPS, "update.n_epochs=2")
OFFLINE = ("epochs=3", "learning_rate=2e-4", "batch_size=32", "evaluate_every=500")
METHODS: Mapping[str, tuple[str, Sequence[str], Sequence[str]]] = {
    # method → its section, what it has in common with its kind, its strengths
    "ppo": ("ppo", (*ONLINE, "reward.missing_eos_penalty=2.0"), ("reward.kl_coef=0.4", "reward.kl_coef=0.2")),
    "rloo": ("group", ONLINE, ("reward.kl_coef=0.4", "reward.kl_coef=0.2")),
    "grpo": ("group", ONLINE, ("reward.kl_coef=0.4", "reward.kl_coef=0.2")),
    "reinforce_pp": ("group", ONLINE, ("reward.kl_coef=0.4", "reward.kl_coef=0.2")),
    "online_dpo": ("online_dpo", ONLINE, ("reward.kl_coef=0.4", "reward.kl_coef=0.2")),
    "expert_iteration": ("expert", (*STEPS, "rollout.n_prompts=64"), ("n_iterations=5", "n_iterations=15")),
    "dpo": ("direct", OFFLINE, ("beta=0.4", "beta=0.1")),
    "ipo": ("direct", OFFLINE, ("beta=0.4", "beta=0.1")),
    "kto": ("direct", OFFLINE, ("beta=0.4", "beta=0.1")),
}
QUICK = (
    "sandbox.n_base_texts=400", "sandbox.n_demonstrations=200", "collect.n_prompts=200", "collect.n_tasks=400",
    "reward.n_epochs=1", "allow_ungated_reward=true", "evaluate.n_prompts=24",
)  # fmt: skip
Row = dict[str, Any]
RESULTS = ROOT / "bench" / "results" / "methods_study.json"
PAGE = ROOT / "docs" / "optimisers.md"
MARKS = ("<!-- methods_study: begin -->", "<!-- methods_study: end -->")


def run_base(seed: int, directory: Path, overrides: Sequence[str]) -> Path:
    """The run up to its reward model."""
    base = directory / f"seed-{seed}" / "base"
    config = build(RunConfig, apply_overrides(load_yaml(DEMO), [*overrides, "name=base"]))
    run_once(config, seed=seed, directory=base, progress=LineDisplay(sys.stderr), until="reward")
    return base


def run_method(method: str, strength: str, seed: int, base: Path, overrides: Sequence[str], *, quick: bool) -> Row:
    """One method at one strength from a copy of the base run: its evaluation beside those of the run's own baselines."""
    section, common, _ = METHODS[method]
    own = [f"{section}.{each}" for each in (*common, strength)]
    if quick:
        own += [f"{section}.epochs=0.2"] if section == "direct" else [f"{section}.n_iterations=2"]
    target = base.parent / f"{method}-{strength.rpartition('=')[2]}"
    if not target.exists():
        shutil.copytree(base, target, ignore=shutil.ignore_patterns("*.lock", "report.html", "summary.json"))
    settings = apply_overrides(load_yaml(DEMO), [*overrides, f"algorithm={method}", *own, "name=base"])
    summary = run_once(build(RunConfig, settings), seed=seed, directory=target, progress=LineDisplay(sys.stderr))
    policies = summary["policies"]
    shutil.rmtree(target)
    figures = {name: _figures(policies[name]) for name in policies if name in ("sft", method) or "best_of" in name}
    stage = summary["stages"].get(method) or summary["stages"].get("ppo") or {}
    return {"seed": seed, "method": method, "strength": strength, "policies": figures, "seconds": stage.get("seconds")}


def _figures(policy: Mapping[str, Any]) -> Row:
    wanted = {key: policy.get(key, {}) for key in ("gold", "kl", "proxy", "length", "distinct", "win_rate")}
    return {key: [found.get("value"), found.get("low"), found.get("high")] for key, found in wanted.items()}


def gain_at(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Gold above the supervised policy's at that KL: a line in √KL through (0, 0) and the points; None beyond them.

    Args:
        points: (KL, gain) of each strength.
    """
    known = sorted([(0.0, 0.0), *points])
    if kl > known[-1][0]:
        return None
    roots = [math.sqrt(max(x, 0.0)) for x, _ in known]
    return float(np.interp(math.sqrt(kl), roots, [y for _, y in known]))


def table(rows: Sequence[Row]) -> list[Row]:
    """One row a method: gain in gold at each KL, mean over the seeds that reach it with a 95 % t interval."""
    by_method: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        sft = row["policies"]["sft"]["gold"][0]
        for name, figures in row["policies"].items():
            if name == "sft" or figures["kl"][0] is None:
                continue
            method = "best_of_n" if name.startswith("best_of") else name
            point = (figures["kl"][0], figures["gold"][0] - sft)
            points = by_method.setdefault(method, {}).setdefault(row["seed"], [])
            if point not in points:  # each run of a seed evaluates the same best of n
                points.append(point)
    found = []
    for method, seeds in by_method.items():
        line: Row = {"method": method, "seeds": len(seeds), "points": {s: sorted(p) for s, p in seeds.items()}}
        for kl in KLS:
            gains = [gain for points in seeds.values() if (gain := gain_at(points, kl)) is not None]
            at = mean_estimate(np.array(gains)) if gains else None
            line[f"gain at {kl} nats"] = None if at is None else [at.value, at.low, at.high, len(gains)]
        found.append(line)
    return found


def tables(found: Mapping[str, Any]) -> str:
    """Gains at equal KL, the best first at half a nat, and where each strength came to rest."""
    seeds = sorted({row["seed"] for row in found["rows"]})
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; gain in gold over the supervised policy, mean over the seeds that reach the KL and, where "
        f"there are two or more, its 95 % t interval; {found['machine']['processor']}, 1 thread, shared.",
        "",
        f"| method | {' | '.join(f'at {kl} nats' for kl in KLS)} | KL and gain at each strength, by seed |",
        f"|---|{'---|' * len(KLS)}---|",
    ]

    def at_half(line: Row) -> float:
        gain = line["gain at 0.5 nats"]
        return -math.inf if gain is None else gain[0]

    for line in sorted(found["table"], key=at_half, reverse=True):
        rests = "; ".join(", ".join(f"{kl:.2f}: {number(gain)}" for kl, gain in own) for own in line["points"].values())
        cells = " | ".join(gain_cell(line[f"gain at {kl} nats"], len(seeds)) for kl in KLS)
        lines.append(f"| {line['method'].replace('_', ' ')} | {cells} | {rests} |")
    return "\n".join(lines)


def gain_cell(gain: Sequence[Any] | None, n_seeds: int) -> str:
    """`.48 [.31, .65]`; how many seeds where not all reach so far; – where none does."""
    if gain is None:
        return "–"
    value, low, high, n = gain
    interval = "" if low is None else f" [{number(low)}, {number(high)}]"
    return f"{number(value)}{interval}" + (f" ({n} of {n_seeds})" if n < n_seeds else "")


def number(value: float) -> str:
    """Two digits behind the point, with a true minus."""
    return f"{value:.2f}".replace("-", "−")


def methods_row(*, quick: bool) -> Row:
    """The study as a row of the long benches."""
    return {"work": "methods"} | study([0, 1], list(METHODS), out=RESULTS, quick=quick)


def study(seeds: Sequence[int], methods: Sequence[str], *, out: Path, quick: bool) -> Row:
    """Run what is missing, seed by seed; the table of what there is."""
    out = out.with_suffix(".quick.json") if quick else out
    kept: list[Row] = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    overrides = QUICK if quick else ()
    for seed in seeds:
        base: Path | None = None
        for place in range(2):  # the first strength of every method before the second of any
            for method in methods:
                strength = METHODS[method][2][place]
                if any((r["seed"], r["method"], r["strength"]) == (seed, method, strength) for r in kept):
                    continue
                base = base or run_base(seed, WORK / ("methods-quick" if quick else "methods"), overrides)
                kept.append(run_method(method, strength, seed, base, overrides, quick=quick))
                done = {"rows": kept, "table": table(kept), "machine": machine()}
                out.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return {"table": table(kept), "machine": machine(), "n_runs": len(kept)}


def main() -> None:
    """The study from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="tiny runs: does it work?")
    parser.add_argument("--tables", action="store_true", help="write what was found into the page, and stop")
    options = parser.parse_args()
    if options.tables:
        return put_between(PAGE, MARKS, tables(json.loads(RESULTS.read_text(encoding="utf-8"))))
    print(json.dumps(study(options.seeds, options.methods, out=options.out, quick=options.quick), indent=1))
    return None


if __name__ == "__main__":
    main()
