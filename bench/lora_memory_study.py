"""How much memory PPO with adapters takes beside fine-tuning with the same adapters, batch and lengths.

    python -m bench.lora_memory_study [--quick] [--repeats 3] [--minutes 600] [--out bench/results/lora_memory_study.json]
    python -m bench.lora_memory_study --tables

Each side is a process of its own on the "medium" model with LoRA on every linear layer, and makes the same number of
optimiser steps on 64 sequences each, a prompt and 48 tokens:

    sft            fine-tuning
    ppo            64 responses an iteration drawn, scored and learnt; the critic is a head on the policy, the reference the
                   policy with its adapters off, the reward model adapters and a head on the same frozen weights
    ppo-critic     the same with a critic that has adapters of its own, on the same weights again
    ppo-foreign    as `ppo`, but the reward model is a whole model of its own, as one from elsewhere is

Memory is the highest resident size less that after the imports, so that weights, moments, cache and activations all
count. The highest of each phase is read by resetting the system's mark (/proc/self/clear_refs) where the phase begins.
Both ways of glibc to hold memory are measured: "kept" as it comes, where large blocks that were freed stay with the process and
are cut up for the next ones, and "returned" under MALLOC_MMAP_THRESHOLD_=1000000, where every block of a megabyte goes back
when it is freed, so that the resident size is what is in use.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from bench.by_seed import by_seed
from bench.inputs import hh_prompts
from bench.models import PLAIN_HEAD, SEED, checkpoint
from bench.pages import put_between
from bench.rows import machine
from bench.turns import QUIET, ROOT, memory_mib

from karat.belief import ScoreScale
from karat.lm.adapters import add_lora, trunk_beside
from karat.lm.chat import prompt_tokens
from karat.lm.load import LoadedLM, load_lm
from karat.policy import ppo, rollout
from karat.policy.ppo import train_ppo
from karat.policy.settings import PPOConfig, RolloutSettings, UpdateSettings, ValueSettings
from karat.records import ScoreFn
from karat.reward.calibration import VoteModel
from karat.reward.model import RewardModel
from karat.reward.raters import RaterPriors
from karat.reward.score import Scorer, score_fn
from karat.reward.trunk import DecoderTrunk
from karat.sft.train import SFTConfig, train_on_pairs

SIDES = ("sft", "ppo", "ppo-critic", "ppo-foreign")
RESULTS = ROOT / "bench" / "results" / "lora_memory_study.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MARKS = ("<!-- lora-memory -->", "<!-- /lora-memory -->")
RANK, ALPHA = 16, 32.0
N_PROMPTS, N_NEW = 64, 48
N_MINIBATCHES, N_EPOCHS, N_ITERATIONS = 1, 1, 2
TOKEN_BUDGET = 4096
N_REPEATS = 3
TARGET = 1.5


@dataclass(frozen=True)
class Allocator:
    """How freed memory is held."""

    name: str
    """What the tables call it."""
    environment: Mapping[str, str]
    """What sets it."""


ALLOCATORS = (Allocator("returned", {"MALLOC_MMAP_THRESHOLD_": "1000000"}), Allocator("kept", {}))


class Marks:
    """The highest resident size of each phase, MiB."""

    def __init__(self) -> None:
        self.start = memory_mib("VmRSS")
        self.phases: dict[str, float] = {}

    def phase(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the highest size while it runs kept under that name."""

        @wraps(work)
        def watched(*args: Any, **options: Any) -> Any:
            self.note("between")
            try:
                return work(*args, **options)
            finally:
                self.note(name)

        return watched

    def note(self, name: str) -> None:
        """The highest size since the last call belongs to this phase."""
        self.phases[name] = max(self.phases.get(name, 0.0), memory_mib("VmHWM") - self.start)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the mark falls back to the present size


def adapted(seed: int) -> LoadedLM:
    """The medium model with new adapters on frozen weights."""
    lm = load_lm(checkpoint("medium"))
    return replace(lm, model=add_lora(lm.model, RANK, ALPHA, seed=seed))


def reward(policy: LoadedLM, *, foreign: bool) -> ScoreFn:
    """The bench's reward model as a score function: a whole model, or adapters on the policy's frozen weights."""
    lm = load_lm(checkpoint("medium")) if foreign else replace(policy, model=trunk_beside(policy.model))
    model = RewardModel(DecoderTrunk(lm), PLAIN_HEAD, seed=SEED).requires_grad_(False).eval()
    return score_fn(Scorer(model, VoteModel(RaterPriors(), (0.0,)), ScoreScale(0.0, 1.0), torch.zeros(1, 1)))


def run_sft(marks: Marks, n: int, seed: int) -> float:
    """As many steps of fine-tuning, on responses of random tokens as long as those that an untrained policy draws."""
    lm = adapted(seed=1)
    prompts, _ = hh_prompts(N_PROMPTS)
    draw = torch.Generator().manual_seed(seed)
    pairs = [
        (prompt_tokens(lm.tokenizer, prompt.turns), torch.randint(5, 8000, (N_NEW,), generator=draw).tolist())
        for prompt in prompts
    ]
    batch = len(pairs) // N_MINIBATCHES
    config = SFTConfig(epochs=float(N_EPOCHS * n), batch_size=batch, learning_rate=1e-4, token_budget=TOKEN_BUDGET)
    marks.note("load")
    marks.phase("update", train_on_pairs)(lm, pairs, config, seed=seed)
    return float(N_NEW)


def run_ppo(marks: Marks, n: int, seed: int, side: str) -> float:
    """Iterations of PPO; the mean length of what was drawn last."""
    lm = adapted(seed=1)
    prompts, _ = hh_prompts(N_PROMPTS)
    score = reward(lm, foreign=side == "ppo-foreign")
    config = PPOConfig(
        n_iterations=n,
        checkpoint_every=0,
        rollout=RolloutSettings(N_PROMPTS, 1, N_NEW),
        update=UpdateSettings(
            n_epochs=N_EPOCHS, n_minibatches=N_MINIBATCHES, learning_rate=1e-4, token_budget=TOKEN_BUDGET
        ),
        value=ValueSettings(critic="separate" if side == "ppo-critic" else "shared"),
    )
    for name, module, part in (
        ("sample", rollout, "draw_responses"),
        ("score", rollout, "score_responses"),
        ("forward", rollout, "_forward"),
        ("update", ppo, "update_on_rollout"),
    ):
        setattr(module, part, marks.phase(name, getattr(module, part)))
    marks.note("load")
    return train_ppo(lm, prompts, score, config, seed=seed).last_metrics["response/length_mean"]


def one_side(side: str, n: int, seed: int, threads: int) -> dict[str, Any]:
    """This process as one side: its highest size in all and by phase, MiB, and its processor seconds."""
    torch.set_num_threads(threads)
    checkpoint("medium")
    marks = Marks()
    began = time.process_time()
    length = run_sft(marks, n, seed) if side == "sft" else run_ppo(marks, n, seed, side)
    marks.note("between")
    return {
        "side": side, "peak_mib": round(max(marks.phases.values()), 1),
        "phases": {name: round(value, 1) for name, value in marks.phases.items()},
        "cpu_seconds": round(time.process_time() - began, 1), "resident_mib": round(marks.start, 1),
        "length": round(length, 2),
    }  # fmt: skip


def all_sides(allocator: Allocator, seed: int, *, quick: bool, threads: int) -> dict[str, Any]:
    """Every side, in a process of its own each."""
    count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = os.environ | QUIET | count | allocator.environment
    found = {}
    for side in SIDES:
        options = ["--side", side, "--seed", str(seed), "--threads", str(threads), *(["--quick"] if quick else [])]
        command = [sys.executable, "-m", "bench.lora_memory_study", *options]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"lora_memory: side {side} ended with code {done.returncode}")
        found[side] = json.loads(done.stdout.splitlines()[-1])
        print(f"lora_memory {allocator.name} {seed}: {found[side]}", file=sys.stderr, flush=True)
    return found


def summary(allocator: Allocator, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each side the median and range of its peak, by phase, and of the ratio to fine-tuning's in the same repeat."""
    del allocator
    lines = []
    for side in rows[0]:
        own = [row[side] for row in rows]
        peaks = [one["peak_mib"] for one in own]
        ratios = [row[side]["peak_mib"] / row["sft"]["peak_mib"] for row in rows]
        phases = {name: round(statistics.median(one["phases"][name] for one in own), 1) for name in own[0]["phases"]}
        lines.append(
            {
                "side": side, "n": len(own), "peak_mib": round(statistics.median(peaks), 1), "peak_range": [min(peaks), max(peaks)],
                "ratio": round(statistics.median(ratios), 3),
                "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "met": max(ratios) <= TARGET, "phases": phases,
                "cpu_seconds": round(statistics.median(one["cpu_seconds"] for one in own), 1),
            }
        )  # fmt: skip
    return lines


def table(worlds: Mapping[str, Any]) -> str:
    """What was found, as a table of the page."""
    lines = [
        "| freed memory | side | runs | peak, MiB (range) | ÷ fine-tuning (range) | sampling | scoring | log-probabilities | update | processor seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, world in worlds.items():
        for line in world["summary"]:
            low, high = line["peak_range"]
            ratio = (
                ""
                if line["side"] == "sft"
                else f"{line['ratio']:.2f} ({' to '.join(f'{x:.2f}' for x in line['ratio_range'])})"
            )
            phases = (line["phases"].get(phase) for phase in ("sample", "score", "forward", "update"))
            cells = [
                name, f"`{line['side']}`", str(line["n"]), f"{line['peak_mib']:,.0f} ({low:,.0f} to {high:,.0f})", ratio,
                *("" if one is None else f"{one:,.0f}" for one in phases), f"{line['cpu_seconds']:.0f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def study(*, quick: bool, repeats: int, threads: int, out: Path | None, minutes: float = 600) -> dict[str, Any]:
    """Both allocators and all repeats that are not there yet, until the time is over."""
    work = {
        "rank": RANK, "sequences_a_step": N_PROMPTS // N_MINIBATCHES, "new_tokens": N_NEW, "token_budget": TOKEN_BUDGET,
        "steps": N_EPOCHS * N_MINIBATCHES * (1 if quick else N_ITERATIONS),
    }  # fmt: skip
    about = {"work_of_a_side": work, "threads": threads, "machine": machine()}
    sides = partial(all_sides, quick=quick, threads=threads)
    return by_seed(ALLOCATORS, range(repeats), sides, summary, about=about, out=out, minutes=minutes)


def lora_memory_row(*, quick: bool) -> dict[str, Any]:
    """The study as a row of `python -m bench --long`."""
    threads = int(os.environ.get("KARAT_BENCH_THREADS", "2"))
    repeats, out = (1, None) if quick else (N_REPEATS, RESULTS)
    found = study(quick=quick, repeats=repeats, threads=threads, out=out)
    return {"work": "lora_memory", "complete": found["complete"]} | {
        k: v["summary"] for k, v in found["worlds"].items()
    }


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat, one iteration: does it run?")
    parser.add_argument("--repeats", type=int, default=N_REPEATS)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("KARAT_BENCH_THREADS", "2")))
    parser.add_argument("--minutes", type=float, default=600, help="start no further repeat after these")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--tables", action="store_true", help="write what was found into the page, and stop")
    parser.add_argument("--side", choices=SIDES, default=None, help="be one of the processes")
    parser.add_argument("--seed", type=int, default=0, help="of that process")
    options = parser.parse_args()
    if options.tables:
        return put_between(PAGE, MARKS, table(json.loads(RESULTS.read_text(encoding="utf-8"))["worlds"]))
    if options.side:
        n = 1 if options.quick else N_ITERATIONS
        return print(json.dumps(one_side(options.side, n, options.seed, options.threads)))
    repeats = 1 if options.quick else options.repeats
    found = study(
        quick=options.quick, repeats=repeats, threads=options.threads, out=options.out, minutes=options.minutes
    )
    return print(json.dumps({name: one["summary"] for name, one in found["worlds"].items()}, ensure_ascii=False))


if __name__ == "__main__":
    main()
