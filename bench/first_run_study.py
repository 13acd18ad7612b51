"""Does the first run of a new user pass its gate? What `karat init` writes, over seeds, and what was tried instead.

    python -m bench.first_run_study [--quick] [--seeds 10] [--first-seed 0] [--minutes 600] [--out bench/results/first_run_study.json]

Each seed is an invented world with a base model, a fine-tuned policy and votes of its own. Three ways to run it: every key at its default, which
`karat init` wrote until 2026-11-30; the demo's reward settings on the same votes; and the demo's settings throughout, which it writes now.
Each row: which checks refused the reward, and what the gate found.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.by_seed import by_seed, interval, seed_options
from bench.dense_study import copied

from karat.config import apply_overrides, build, load_yaml
from karat.ledger.manifest import read_manifest
from karat.pipeline.configured import DEMO
from karat.pipeline.runs import run_once
from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import findings_of
from karat.progress import LineDisplay
from karat.reward.gate import gate_checks, unpassed

RESULTS = Path(__file__).parent / "results" / "first_run_study.json"
N_SEEDS, N_DEMO = 10, 3
"""Seeds; of the demo's settings the first so many, which take five times as long."""
QUICK = (
    "sandbox.n_base_texts=300", "sandbox.n_demonstrations=100", "sandbox.model.hidden=32", "sandbox.model.mlp=64",
    "sandbox.model.layers=1", "sandbox.model.heads=2", "sandbox.model.kv_heads=1", "sandbox.model.head_size=16",
    "collect.n_prompts=80", "collect.n_tasks=200", "gate.min_votes=20",
)  # fmt: skip
READ = ("gate.likelihood", "gate.accuracy", "gate.length_baseline", "gate.sycophancy", "gate.calibration")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One way to run a seed up to the gate."""

    name: str
    """How the table calls it."""
    votes: tuple[str, ...] = ()
    """Sections that the demo gives, up to the votes; the others have their defaults."""
    reward: tuple[str, ...] = ()
    """The same of the reward and its gate."""


WORLDS = (
    Settings("the defaults"),
    Settings("the demo's reward on the same votes", reward=("reward", "gate")),
    Settings("the demo's settings", ("sandbox", "base", "sft", "collect"), ("reward", "gate")),
)


def settings_of(sections: Sequence[str], overrides: Sequence[str]) -> RunConfig:
    """The defaults in the sandbox, some sections as the demo has them; a refused reward is looked at, not raised."""
    demo = load_yaml(DEMO)
    given = {"sandbox": {}, "allow_ungated_reward": True} | {name: demo[name] for name in sections}
    return build(RunConfig, apply_overrides(given, list(overrides)))


def one_seed(world: Settings, seed: int, place: Path, *, quick: bool = False) -> dict[str, Any]:
    """What the gate said of the reward that these settings make of the seed's votes."""
    shared = list(QUICK) if quick else []
    start = place / f"votes-{seed}-{'-'.join(world.votes)}"
    show = LineDisplay(sys.stderr)
    if not (start / "manifests" / "collect.json").is_file():
        shutil.rmtree(start, ignore_errors=True)
        run_once(settings_of(world.votes, shared), seed=seed, directory=start, progress=show, until="collect")
    own = place / "own"
    shutil.rmtree(own, ignore_errors=True)
    copied(start, own)
    config = settings_of([*world.votes, *world.reward], shared)
    run_once(config, seed=seed, directory=own, progress=show, until="reward")
    findings = findings_of(read_manifest(own, "reward"))
    by_name = {one.name: one for one in findings}
    figures = {
        name: None if (found := by_name.get(name)) is None or found.estimate is None else
        [found.estimate.value, found.estimate.low, found.estimate.high, found.estimate.n]
        for name in READ
    }  # fmt: skip
    refused = [one.name for one in unpassed(gate_checks(findings))]
    return {"refused": refused, **figures}


def summary(_: Settings, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often the gate refused, by check, and the mean figures over seeds."""
    checks = sorted({name for row in rows for name in row["refused"]})
    found: dict[str, Any] = {"n": len(rows), "refused": sum(bool(row["refused"]) for row in rows)}
    found["by_check"] = {name: sum(name in row["refused"] for row in rows) for name in checks}
    for name in READ:
        values = [row[name][0] for row in rows if row[name] is not None and row[name][0] is not None]
        found[name] = interval(np.array(values)) if len(values) > 1 else None
    return found


def main() -> None:
    """Run what is not there yet, and print the summaries."""
    options = seed_options(__doc__, n_seeds=N_SEEDS, quick="one seed of a tiny run: does it run?", first="")
    n_seeds = 1 if options.quick else options.seeds
    seeds = range(options.first_seed, options.first_seed + n_seeds)
    out = options.out if options.quick else options.out or RESULTS
    with tempfile.TemporaryDirectory() as place:
        for worlds, own in ((WORLDS[:2], seeds), (WORLDS[2:], seeds[:N_DEMO])):
            found = by_seed(
                worlds, own, lambda world, seed: one_seed(world, seed, Path(place), quick=options.quick), summary,
                about={"study": "first_run"}, out=out, minutes=options.minutes,
            )  # fmt: skip
    for name, world in found["worlds"].items():
        print(name, world["summary"])


if __name__ == "__main__":
    main()
