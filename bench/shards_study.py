"""What `--fsdp` costs and saves: fine-tuning steps of two processes on this machine, whole weights against shards.

    python bench/shards_study.py [--quick] [--case memory] [--out bench/results/shards_study.json]

`time`: steps of "medium" (models.py) on 16 sequences of 128 tokens, in one and in four micro-batches a process; the first
step of a run is not counted. `gather`: seconds to put the whole weights together, as before a rollout. `memory`: of
"50M" (growth_study.py), 4 sequences, the peak of a process while it takes its steps, less what it held before it loaded
the model. Both ways take turns, one thread a process; random tokens and weights. Intervals: 95 %, of the median over
steps, by bootstrap.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench.growth_study import MODELS
from bench.models import SHAPES, VOCABULARY
from bench.rows import machine
from bench.turns import memory_mib

from karat.cli.processes import start
from karat.lm import parallel
from karat.lm.fresh import SPECIAL, word_tokenizer, write_fresh_decoder
from karat.lm.load import load_lm
from karat.lm.memory import Work, size_of, training_bytes
from karat.lm.sharding import whole
from karat.sft import train as sft

N_PROCESSES, N_TOKENS = 2, 128
WAYS = ("whole", "shards")
CASES = {"one micro-batch": ("medium", 16, 1), "four micro-batches": ("medium", 16, 4), "memory": ("50M", 4, 1)}
"""Model, sequences a step, micro-batches a process."""


def child(place: Path, way: str, case: str, n_steps: int) -> None:
    """One process of a run: takes its steps, and leaves what it measured behind."""
    torch.set_num_threads(1)
    name, n_sequences, n_micro = CASES[case]
    rng = np.random.default_rng(0)
    rows = rng.integers(len(SPECIAL), VOCABULARY, (n_sequences, N_TOKENS)).tolist()
    pairs = [(row[: N_TOKENS // 2], row[N_TOKENS // 2 :]) for row in rows]
    budget = n_sequences * N_TOKENS // (N_PROCESSES * n_micro)
    marks: list[float] = []
    gathers: list[float] = []
    check = sft.check_skipped

    def marked(*given: Any) -> None:
        """Called after each step."""
        check(*given)
        parallel.wait()
        marks.append(time.perf_counter())
        if case != "memory":
            with whole():
                gathers.append(time.perf_counter() - marks[-1])
            marks[-1] = time.perf_counter()
        elif len(marks) == 1:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here

    sft.check_skipped = marked
    with parallel.joined(in_shards=way == "shards"):
        parallel.wait()
        before = memory_mib("VmRSS")
        lm = load_lm(place / name, for_training=True)
        config = sft.SFTConfig(epochs=n_steps, batch_size=n_sequences, token_budget=budget)
        sft.train_on_pairs(lm, pairs, config, seed=0)
        found = {
            "steps": [end - begin for begin, end in pairwise(marks)],
            "gathers": gathers[1:],
            "peak_mib": memory_mib("VmHWM") - before,
            "parameters": sum(p.numel() for p in lm.model.parameters()),
        }
        (place / f"{way}-{parallel.rank()}.json").write_text(json.dumps(found))


def run(place: Path, way: str, case: str, n_steps: int) -> list[dict[str, Any]]:
    """What the processes of one run measured."""
    given = ["--child", str(place), way, case, str(n_steps)]
    if start(given, N_PROCESSES, program=[str(Path(__file__).resolve())]):
        raise SystemExit(f"shards_study: {case} by {way} failed")
    return [json.loads((place / f"{way}-{rank}.json").read_text()) for rank in range(N_PROCESSES)]


def median(values: list[float]) -> dict[str, float]:
    """The median with its interval, and on how many."""
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": statistics.median(values), "low": float(low), "high": float(high), "n": len(values)}


def study(*, cases: list[str], n_steps: int, n_turns: int) -> dict[str, Any]:
    """All cases, the two ways by turns."""
    results: dict[str, Any] = {"machine": machine(), "processes": N_PROCESSES, "cases": {}}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        tokenizer = word_tokenizer([f"w{i}" for i in range(VOCABULARY - len(SPECIAL))])
        for name, shape in (("medium", SHAPES["medium"]), ("50M", MODELS["50M"])):
            write_fresh_decoder(place / name, tokenizer, shape, seed=0)
        for case in cases:
            name, n_sequences, n_micro = CASES[case]
            few = case == "memory"
            runs = [
                (way, run(place, way, case, 3 if few else n_steps))
                for _ in range(1 if few else n_turns)
                for way in WAYS
            ]
            found: dict[str, Any] = {"model": name, "sequences": n_sequences, "micro_batches": n_micro}
            for way in WAYS:
                own = [one for chosen, both in runs if chosen == way for one in both]
                found[way] = {"step_s": median([s for one in own[::N_PROCESSES] for s in one["steps"]])}
                if few:
                    found[way]["peak_mib"] = [round(one["peak_mib"]) for one in own]
                    size = size_of(load_lm(place / name).model.config, own[0]["parameters"])
                    found[way]["estimate_mib"] = round(
                        training_bytes(
                            size, n_trained=size.parameters, work=Work(n_sequences * N_TOKENS // N_PROCESSES),
                            n_shards=N_PROCESSES if way == "shards" else 1,
                        ) / 2**20
                    )  # fmt: skip
                elif way == "shards":
                    found["gather_s"] = median([s for one in own[::N_PROCESSES] for s in one["gathers"]])
            found["parameters"] = own[0]["parameters"]
            results["cases"][case] = found
            print(case, json.dumps(found), flush=True)
    return results


def main() -> None:
    """Read the command line, measure, write."""
    if sys.argv[1:2] == ["--child"]:
        place, way, case, n_steps = sys.argv[2:]
        child(Path(place), way, case, int(n_steps))
        os._exit(0)  # as karat's own processes do (cli.processes.leave)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two steps of one turn: whether it works")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; repeatable")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "shards_study.json")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    results = study(
        cases=chosen.case or list(CASES), n_steps=3 if chosen.quick else 7, n_turns=1 if chosen.quick else 2
    )
    chosen.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
