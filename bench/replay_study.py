"""Replay: does TRL's trainer, given karat's responses, learn what karat learns?

    python -m bench.replay_study [--method rloo grpo] [--reward length] [--iterations 10] [--quick]
    python -m bench.replay_study --tables

Ours trains as in the time-to-score study, one optimiser step an iteration, and writes down what it drew; TRL 1.16.0
starts from the same weights with the same settings and gets those responses where it would draw its own. Rewards, KL,
advantages, loss, gradient clipping, Adam and the learning rate are then each side's own. Compared are every iteration's
mean score and mean KL a token from the start (RLOO by k1, GRPO by k3, as TRL logs them), and the weights at the end.
Results in bench/results/replay_study.json; `--tables` writes them into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.environments import REWARD_PEER, trl_python
from bench.pages import put_between
from bench.rows import machine
from bench.score_cells import Cell
from bench.text_rewards import REWARDS
from bench.turns import ROOT, Worker
from torch import Tensor

WORK = ROOT / "bench" / "work"
RESULTS = ROOT / "bench" / "results" / "replay_study.json"
DOCS = ROOT / "docs" / "benchmarks.md"
MARKS = ("<!-- replay_study: begin -->", "<!-- replay_study: end -->")
KL_LOGGED = {"rloo": "k1", "grpo": "k3"}
LEARNING_RATE, SEED = 1e-3, 2


def replay(method: str, reward: str, *, n_iterations: int, threads: int) -> dict[str, Any]:
    """One training of ours and TRL's on the same responses; how far apart they are."""
    from bench.inputs import hh_prompts
    from bench.models import hh_ids, trained_checkpoint

    cell = Cell(method, reward, n_iterations=n_iterations)
    place, model = WORK / "replay", trained_checkpoint()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    work = cell.shape | {
        "n_minibatches": 1,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
        "threads": threads,
        "model": str(model),
        "prompts": hh_prompts(cell.n_prompts)[1],
        "eos_id": hh_ids()[0],
        "responses": str(place / "responses.json"),
        "output": str(place / "trl"),
    }
    sides = {
        "ours": (sys.executable, "bench.ours.replay"),
        "theirs": (trl_python(REWARD_PEER), "bench.peers.trl_replay"),
    }
    reports, versions = {}, {}
    for side, (python, module) in sides.items():
        path = place / f"{side}.json"
        path.write_text(json.dumps(work | {"weights": str(place / side)}), encoding="utf-8")
        worker = Worker(python, module, path, threads=threads, log=WORK / "logs" / f"replay-{side}.txt")
        worker.wait_ready()
        reports[side] = [worker.turn() for _ in range(n_iterations + 1)][:-1]
        versions[side] = worker.versions
        worker.close()
        print(f"replay: {method}, {reward}: {side} done", file=sys.stderr, flush=True)
    kls = {
        "ours": [report["kl"][KL_LOGGED[method]] for report in reports["ours"]],
        "theirs": [report["kl"] for report in reports["theirs"]],
    }
    start, ours, theirs = (weights(path) for path in (model, place / "ours", place / "theirs"))
    return {
        "method": method,
        "reward": reward,
        "n_iterations": n_iterations,
        "n_sequences": cell.n_sequences,
        "learning_rate": LEARNING_RATE,
        "adam_eps": cell.adam_eps,
        "seed": SEED,
        "scores": {side: [round(report["score"], 5) for report in reports[side]] for side in sides},
        "kl_per_token": {side: [round(value, 7) for value in kls[side]] for side in sides},
        "largest_score_gap": max(abs(a["score"] - b["score"]) for a, b in zip(*reports.values(), strict=True)),
        "largest_kl_gap": max(abs(a - b) for a, b in zip(*kls.values(), strict=True)),
        "weight_gap": weight_gap(start, ours, theirs),
        "versions": versions,
        "threads": threads,
        "machine": machine(),
    }


def weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of a saved model."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def weight_gap(start: Mapping[str, Tensor], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """‖ours − theirs‖ / ‖ours − start‖ over all weights: 0 = learnt the same, about √2 = went different ways.

    Raises: SystemExit where the models have different tensors, or ours did not move.
    """
    if not set(start) == set(ours) == set(theirs):
        raise SystemExit(
            f"replay: the models have {len(start)}, {len(ours)} and {len(theirs)} tensors; expected the same"
        )
    apart, moved = (
        sum(float((ours[name].double() - other[name].double()).square().sum()) for name in start)
        for other in (theirs, start)
    )
    if not moved:
        raise SystemExit("replay: our weights did not move; expected training")
    return (apart / moved) ** 0.5


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| method, reward | iterations × samples | mean score, first and last | largest gap of a mean score | of the KL a token "
        "(last KL) | of the weights, over how far they went |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        scores, kl = one["scores"]["ours"], one["kl_per_token"]["ours"][-1]
        lines.append(
            f"| {one['method']}, {one['reward']} | {one['n_iterations']} × {one['n_sequences']} | {scores[0]:.2f} → {scores[-1]:.2f} "
            f"| {one['largest_score_gap']:.1g} | {one['largest_kl_gap']:.0e} ({kl:.2f}) | {one['weight_gap']:.0e} |"
        )
    return "\n".join(lines)


def load() -> list[dict[str, Any]]:
    """What was run; empty where there is no file."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


def write_docs(found: Sequence[Mapping[str, Any]]) -> None:
    """Put the table between the marks in docs/benchmarks.md."""
    put_between(DOCS, MARKS, page(found))


def main() -> None:
    """Replay what is asked for, or write what there is into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=KL_LOGGED, default=tuple(KL_LOGGED))
    parser.add_argument("--reward", choices=REWARDS, default="length")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two iterations, nothing written")
    parser.add_argument("--tables", action="store_true", help="write what was run into the page, and stop")
    options = parser.parse_args()
    if options.tables:
        write_docs(load())
        return
    threads = int(os.environ.get("KARAT_BENCH_THREADS", "2"))
    for method in options.method:
        n_iterations = 2 if options.quick else options.iterations
        one = replay(method, options.reward, n_iterations=n_iterations, threads=threads)
        print(json.dumps(one, ensure_ascii=False), flush=True)
        if not options.quick:
            others = [old for old in load() if (old["method"], old["reward"]) != (method, options.reward)]
            RESULTS.write_text(json.dumps([*others, one], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
