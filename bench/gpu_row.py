"""The rows for one large GPU: reward training beside the card's matrix rate, PPO and RLOO beside TRL, in bfloat16.

    KARAT_DATA=… python -m bench.gpu_row                 # 0.5B and 1.5B parameters, on the first CUDA device
    KARAT_DATA=… python -m bench.gpu_row --quick         # toy models on the processor: does every part run?

Qwen-shaped models with random weights, written on first use (2 and 6 GB). Weights are float32 on both sides and products bfloat16
(ours by `dtype: bfloat16`, the peer's by its mixed precision). PPO: 32 prompts × 4 samples, RLOO: 16 × 8, of at most 128
tokens, the reward a model of the policy's size. The peers' environments are made on first use, with the package index's own
wheels of torch; on standard output one JSON object a row, progress on standard error. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from bench import efficiency
from bench.environments import PPO_PEER, REWARD_PEER, trl_python
from bench.inputs import hh_prompts
from bench.models import checkpoint, classifier, hh_ids
from bench.rows import equal_steps, row, take_turns
from bench.turns import WORK, start_pair

TARGETS = {"reward": 0.45, "ppo": 4.0, "rloo": 4.0}
SIZES = ("qwen-0.5b", "qwen-1.5b")
PEERS = {"ppo": ("bench.ours.ppo", "bench.peers.trl_ppo", PPO_PEER), "rloo": ("bench.ours.group", "bench.peers.trl_group", REWARD_PEER)}  # fmt: skip


def policy_row(name: str, size: str, device: str, *, quick: bool) -> dict[str, Any]:
    """One iteration of PPO or RLOO: samples a second."""
    # more of them at once, and the peer's float32 scores of a whole rollout would not fit beside its four models
    n_prompts, n_samples, longest = (4, 2, 8) if quick else (32, 4, 128) if name == "ppo" else (16, 8, 128)
    n_warm, n_iterations = (1, 2) if quick else (1, 5)
    work = {
        "method": name, "n_prompts": n_prompts, "n_samples": n_samples, "max_new_tokens": longest, "n_epochs": 1,
        "n_minibatches": 4 if name == "ppo" else 1, "reward": "model", "learning_rate": 3e-6, "kl_coef": 0.05,
        "adam_eps": 1e-8, "model": str(checkpoint(size)), "classifier": str(classifier(size)), "size": size,
        "prompts": hh_prompts(n_prompts)[1], "eos_id": hh_ids()[0], "n_iterations": n_iterations, "seed": 0,
        "threads": torch.get_num_threads(), "output": str(WORK / f"trl_{name}"), "dtype": "bfloat16",
        "peer_dtype": "bfloat16", "device": device,
    }  # fmt: skip
    ours, theirs, peer = PEERS[name]
    pair = start_pair(name, work, ours, theirs, peer_python=trl_python(peer), threads=work["threads"])
    turns = take_turns(*pair, n_warm=n_warm, n_turns=n_iterations - n_warm, label=f"{name} {size}")
    n_steps, timed = equal_steps(name, turns), turns[n_warm:]
    parts = {part: statistics.median(turn.ours["parts"][part] for turn in timed) for part in timed[0].ours["parts"]}
    return row(name, "samples/s", timed, *pair, target=TARGETS[name], threads=work["threads"]) | {
        "optimiser_steps": n_steps,
        "seconds_ours": {part: round(seconds, 3) for part, seconds in parts.items()},
    }


def rows(device: str, *, quick: bool, sizes: tuple[str, ...], works: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Each row when it is done; what cannot be measured says why instead, so that the others still are."""
    on = {"dtype": "bfloat16", "device": device}
    made = {
        "reward": partial(efficiency.reward_row, threads=torch.get_num_threads(), target=TARGETS["reward"], on=on),
        "ppo": partial(policy_row, "ppo", device=device),
        "rloo": partial(policy_row, "rloo", device=device),
    }
    about = {"device": device, "card": torch.cuda.get_device_name() if device == "cuda" else "processor"}
    for size in sizes:
        for name in works:
            try:
                found = made[name](size=size, quick=quick)
            except SystemExit as error:
                found = {"work": name, "failed": str(error)}
            yield found | about | {"size": size}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy models on the processor")
    parser.add_argument("--work", action="append", choices=sorted(TARGETS), help="only this row; repeatable")
    parser.add_argument("--size", action="append", choices=SIZES, help="only this size; repeatable")
    options = parser.parse_args()
    if not options.quick and not torch.cuda.is_available():
        raise SystemExit("bench: found no CUDA device; expected one, or --quick for a trial on the processor")
    device, sizes = ("cpu", ("qwen-toy",)) if options.quick else ("cuda", tuple(options.size or SIZES))
    failed = 0
    for found in rows(device, quick=options.quick, sizes=sizes, works=tuple(options.work or TARGETS)):
        failed += "failed" in found
        print(json.dumps(found, ensure_ascii=False), flush=True)
    if failed:
        print(f"bench: {failed} rows could not be measured", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
