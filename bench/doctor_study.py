"""How far the memory that `karat doctor CONFIG` announces is from what the run takes.

    python -m bench.doctor_study [--quick] [--cases ppo dpo-bf16 …] [--minutes 600] [--out bench/results/doctor_study.json]
    python -m bench.doctor_study --tables

Each case is a configuration of `preferences` (HH comparisons, a bench model) that doctor looks over, and a process of its own that
runs it up to the optimiser's station: supervised fine-tuning, reward model, and the method, a few steps each. Memory is
the highest resident size while a station runs, less that after the imports. The system's mark (/proc/self/clear_refs) falls back
to the present size where a station begins; what an earlier station left behind counts in the later ones, as it does for a user.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.by_seed import by_seed
from bench.lora_memory_study import Marks
from bench.models import checkpoint, data_directory
from bench.pages import put_between
from bench.rows import machine
from bench.turns import QUIET, ROOT

RESULTS = ROOT / "bench" / "results" / "doctor_study.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MARKS = ("<!-- doctor-memory -->", "<!-- /doctor-memory -->")
WANTED = (0.9, 1.3)
"""Estimate over peak."""
MIB = 1 << 20
N_ROWS = 240
"""Comparisons of the file that are used."""


@dataclass(frozen=True)
class Case:
    """One configuration."""

    name: str
    """What the table calls it."""
    algorithm: str = "ppo"
    """Of the optimiser's station."""
    model: str = "small"
    """Of bench.models."""
    dtype: str = "float32"
    """Of the products."""
    rank: int = 0
    """Of adapters; 0 = all weights are trained."""
    critic: str = "shared"
    """Of PPO."""
    prompt_tokens: int = 96
    """Longer prompts are left out."""
    response_tokens: int = 48
    """The same of responses; also what the policy may write."""
    token_budget: int = 4096
    """Of every station."""
    n_samples: int = 4
    """Responses of a prompt."""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as a file would hold it."""
        rollout = {"n_prompts": 32, "n_samples": self.n_samples, "max_new_tokens": self.response_tokens}
        steps = {"n_epochs": 1, "n_minibatches": 2, "token_budget": self.token_budget}
        online = {"n_iterations": 2, "evaluate_every": 2, "checkpoint_every": 2, "rollout": rollout, "update": steps}
        limits = {"max_prompt_tokens": self.prompt_tokens, "max_response_tokens": self.response_tokens}
        file = data_directory() / "hh_harmless" / "comparisons.jsonl.gz"
        return {
            "name": "study",
            "preferences": {"path": str(file), "model": str(checkpoint(self.model)), "limit": N_ROWS, **limits},
            "sft": {"epochs": 0.7, "token_budget": self.token_budget},
            "lora": {"rank": self.rank, "alpha": 2.0 * self.rank} if self.rank else None,
            "dtype": self.dtype,
            "collect": {"n_prompts": 48, "n_samples": 4, "max_new_tokens": self.response_tokens},
            "reward": {"token_budget": self.token_budget, "batch_responses": 64},
            "algorithm": self.algorithm,
            "ppo": online | {"value": {"critic": self.critic}},
            "group": online,
            "online_dpo": online,
            "direct": {"token_budget": self.token_budget, "batch_size": 64, "epochs": 0.5, "evaluate_every": 100},
            "watch": {"n_prompts": 8, "on_alarm": "stop", "kl_budget": None, "disagreement_quantile": None},
            "allow_ungated_reward": True,
            "allow_one_rater": True,
        }


CASES = (
    Case("ppo"),
    Case("ppo, medium, bfloat16", model="medium", dtype="bfloat16"),
    Case("ppo, medium, LoRA", model="medium", rank=16),
    Case("dpo, medium", algorithm="dpo", model="medium"),
    Case("ppo, critic apart", critic="separate"),
    Case("rloo, LoRA, bfloat16", algorithm="rloo", rank=16, dtype="bfloat16"),
    Case("grpo, medium", algorithm="grpo", model="medium"),
    Case("kto, LoRA", algorithm="kto", rank=16),
    Case("online dpo, bfloat16", algorithm="online_dpo", dtype="bfloat16"),
    Case("ppo, long texts", prompt_tokens=384, response_tokens=128),
    Case("dpo, medium, small budget", algorithm="dpo", model="medium", token_budget=1024),
    Case("kto, medium, bfloat16", algorithm="kto", model="medium", dtype="bfloat16"),
    Case("ppo, LoRA, critic apart", rank=16, critic="separate"),
    Case("rloo, vocabulary 152k", algorithm="rloo", model="wide"),
    Case("dpo, LoRA, bfloat16", algorithm="dpo", rank=16, dtype="bfloat16"),
    Case("grpo, long texts, bfloat16", algorithm="grpo", prompt_tokens=384, response_tokens=128, dtype="bfloat16"),
)


def announced(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """What doctor says of each station's memory, bytes."""
    from karat.pipeline.checkup import check_config
    from karat.progress import open_progress

    path = directory / "config.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    with open_progress() as progress:
        found = check_config(path, [], directory=directory, progress=progress)
    return {one.name.removeprefix("memory."): one.value for one in found.derived if one.name.startswith("memory.")}


def taken(case: Case, directory: Path) -> dict[str, float]:
    """This process runs the configuration: the highest size of each station, MiB."""
    from karat.config import build
    from karat.pipeline import runs
    from karat.pipeline.settings import RunConfig
    from karat.pipeline.stages import Run
    from karat.progress import open_progress

    config = build(RunConfig, case.config)
    marks, plain = Marks(), Run.stage

    def stage(self: Run, name: str, **options: Any) -> Any:
        return marks.phase(name, plain)(self, name, **options)

    Run.stage = stage  # type: ignore[method-assign]
    with open_progress() as progress:
        runs.run_once(config, seed=0, directory=directory / "run", progress=progress, until=case.algorithm)
    return {name: round(value, 1) for name, value in marks.phases.items() if name != "between"}


def one_case(case: Case, seed: int, *, threads: int) -> dict[str, Any]:
    """A configuration run in a process of its own."""
    del seed
    environment = os.environ | QUIET | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-m", "bench.doctor_study", "--run", case.name]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"doctor_study: {case.name} ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def ratios(case: Case, said_of: Mapping[str, int], row: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """For fine-tuning, reward model and method: announced and measured, MiB, and the ratio."""
    keys = {"sft": "sft", "reward": "reward", case.algorithm: section_of(case)}
    found = {}
    for stage, key in keys.items():
        said, peak = said_of[key] / MIB, row[stage]
        found[stage] = {"announced": round(said), "measured": round(peak), "ratio": round(said / peak, 2)}
    return found


def section_of(case: Case) -> str:
    """The section of the method's settings, which doctor's lines are named by."""
    return {"rloo": "group", "grpo": "group", "dpo": "direct", "kto": "direct"}.get(case.algorithm, case.algorithm)


def summary(case: Case, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a case; memory hardly differs between runs, so that one is enough."""
    with tempfile.TemporaryDirectory() as place:
        return {
            "algorithm": case.algorithm,
            "stations": ratios(case, announced(case.config, Path(place)), rows[0]),
        }


def table(worlds: Mapping[str, Any]) -> str:
    """What was found, as a table of the page."""
    lines = [
        "| configuration | fine-tuning: said, taken, ratio | reward model | the method |",
        "|---|---|---|---|",
    ]
    every = []
    for name, world in worlds.items():
        stations = world["summary"]["stations"]
        cells = []
        for stage in ("sft", "reward", world["summary"]["algorithm"]):
            one = stations[stage]
            every.append(one["ratio"])
            cells.append(f"{one['announced']:,}, {one['measured']:,}, {one['ratio']:.2f}")
        lines.append(f"| {' | '.join([name, *cells])} |")
    inside = sum(WANTED[0] <= ratio <= WANTED[1] for ratio in every)
    lines.append(
        f"\n{len(every)} stations: ratio {min(every):.2f} to {max(every):.2f}, {inside} of them within "
        f"{WANTED[0]} to {WANTED[1]}."
    )
    return "\n".join(lines)


def study(cases: Sequence[Case], *, threads: int, out: Path | None, minutes: float = 600) -> dict[str, Any]:
    """All cases that are not there yet, until the time is over."""

    def done(case: Case, seed: int) -> dict[str, Any]:
        return one_case(case, seed, threads=threads)

    about = {"threads": threads, "machine": machine()}
    return by_seed(cases, [0], done, summary, about=about, out=out, minutes=minutes)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first case alone: does it run?")
    parser.add_argument("--cases", nargs="+", default=None, help="names; all of them if none is given")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("KARAT_BENCH_THREADS", "1")))
    parser.add_argument("--minutes", type=float, default=600, help="start no further case after these")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--tables", action="store_true", help="write what was found into the page, and stop")
    parser.add_argument("--run", default=None, help="be the process that runs this case")
    options = parser.parse_args()
    if options.tables:
        return put_between(PAGE, MARKS, table(json.loads(RESULTS.read_text(encoding="utf-8"))["worlds"]))
    if options.run:
        case = next(case for case in CASES if case.name == options.run)
        with tempfile.TemporaryDirectory() as place:
            return print(json.dumps(taken(case, Path(place))))
    cases = [case for case in CASES if options.cases is None or case.name in options.cases]
    found = study(
        cases[:1] if options.quick else cases, threads=options.threads, out=options.out, minutes=options.minutes
    )
    return print(json.dumps({name: one["summary"] for name, one in found["worlds"].items()}, ensure_ascii=False))


if __name__ == "__main__":
    main()
