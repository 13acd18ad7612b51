"""The benches: karat beside its peers, the same weights, inputs, threads and optimiser steps on both sides.

    python bench/run.py [--work reward|ppo|ppo-k4|sample|all] [--quick]

Standard output has one JSON object a row; progress goes to standard error. docs/benchmarks.md says what each figure
means.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file, not as `python -m bench`
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.environments import PPO_PEER, REWARD_PEER, trl_python
from bench.rows import row, take_turns
from bench.turns import ROOT, Worker

THREADS = 2
WORK = ROOT / "bench" / "work"
TARGETS = {"reward": 5.0, "ppo": 2.5, "ppo-k4": 4.5, "sample": 3.5}


def reward_row(*, quick: bool) -> dict[str, Any]:
    """Reward training on HH pairs: pairs a second, and the largest difference between the losses of a step."""
    from bench.inputs import hh_pairs
    from bench.models import classifier

    n_warm, n_steps, pairs_per_step = (1, 5, 16) if quick else (2, 26, 16)
    pairs = hh_pairs(n_steps * pairs_per_step)
    work = {
        "classifier": str(classifier("medium")),
        "pairs": pairs.token_ids,
        "n_steps": n_steps,
        "pairs_per_step": pairs_per_step,
        "learning_rate": 1e-5,
        "max_grad_norm": 1.0,
        "token_budget": 4096,
        "threads": THREADS,
        "output": str(WORK / "trl_reward"),
    }
    ours, theirs = _pair("reward", work, "bench.ours.reward", "bench.peers.trl_reward", trl_python(REWARD_PEER))
    turns = take_turns(ours, theirs, n_warm=n_warm, n_turns=n_steps - n_warm, label="reward")
    result = row("reward", "pairs/s", turns[n_warm:], ours, theirs, target=TARGETS["reward"], threads=THREADS)
    gaps = [abs(turn.ours["loss"] - turn.theirs["loss"]) for turn in turns]
    n_tokens = sum(len(a) + len(b) for a, b in pairs.token_ids)
    return result | {
        "max_loss_gap": max(gaps),
        "losses_equal": max(gaps) <= 1e-4,
        "n_losses": len(gaps),
        "tokens_a_pair": {
            "as_rows": round(n_tokens / len(pairs.token_ids)),
            "as_trees": round((n_tokens - pairs.shared_tokens) / len(pairs.token_ids)),
        },
    }


def _pair(name: str, work: dict[str, Any], ours: str, theirs: str, peer_python: Path) -> tuple[Worker, Worker]:
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{name}.json"
    path.write_text(json.dumps(work), encoding="utf-8")
    logs = WORK / "logs"
    return (
        Worker(sys.executable, ours, path, threads=THREADS, log=logs / f"{name}-ours.txt"),
        Worker(peer_python, theirs, path, threads=THREADS, log=logs / f"{name}-theirs.txt"),
    )


ROWS: dict[str, Callable[..., dict[str, Any]]] = {"reward": reward_row}


def main() -> None:
    """Run the rows asked for, print each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=[*ROWS, "all"], help="the same as --work")
    parser.add_argument("--work", choices=[*ROWS, "all"], default="all", help="which row; default all")
    parser.add_argument("--quick", action="store_true", help="few repeats: does it run?")
    options = parser.parse_args()
    chosen = options.name or options.work
    for name in ROWS if chosen == "all" else [chosen]:
        print(json.dumps(ROWS[name](quick=options.quick), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
