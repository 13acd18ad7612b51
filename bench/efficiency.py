"""The efficiency rows: operations a second of reward training and of PPO's update beside the machine's matrix rate.

Both take turns in one run, so that a busy machine slows both. `ours` and `theirs` are operations a second (arithmetic.py
says which are counted), so `ratio` is the share of the matrix rate that the whole step reaches, data handling, norms,
softmax, clipping and optimiser included. Memory of the peer says nothing here.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from bench.arithmetic import TRAINING, TreeSize, head_flops, trunk_flops
from bench.inputs import hh_pairs, hh_prompts
from bench.models import SHAPES, VOCABULARY, checkpoint, classifier
from bench.rows import Turn, row, take_turns
from bench.turns import Worker, start_pair


def matrices(size: str) -> dict[str, int]:
    """The product whose rate is the machine's: a batch of 4,096 tokens through the widest layer."""
    return {"n_rows": 4096, "n_in": SHAPES[size].hidden, "n_out": SHAPES[size].mlp}


def reward_row(
    *, quick: bool, threads: int, size: str = "medium", target: float | None = None, on: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Reward training of the row `reward`, medium.

    Args: on: `dtype` and `device` of a WORK.json; None = float32 on the processor.
    """
    n_warm, n_steps, pairs_per_step = (1, 4, 16) if quick else (2, 14, 16)
    pairs = hh_pairs(n_steps * pairs_per_step)
    work = {
        "n_steps": n_steps, "pairs_per_step": pairs_per_step, "rankings_per_step": 0, "learning_rate": 1e-5,
        "max_grad_norm": 1.0,
        "token_budget": 4096, "threads": threads, "size": size, **matrices(size), **(on or {}),
    }  # fmt: skip
    turns, ours, theirs = _turns("efficiency-reward", "bench.ours.reward", work, n_warm, n_steps, threads)
    sizes = [TreeSize(len(prompt), (len(a), len(b))) for prompt, a, b in pairs.triples]
    steps = [sizes[i * pairs_per_step : (i + 1) * pairs_per_step] for i in range(n_steps)]
    counted = [
        Turn(turn.ours | {"units": TRAINING * trunk_flops(step, SHAPES[size])}, turn.theirs)
        for turn, step in zip(turns, steps, strict=True)
    ]
    return _row("efficiency-reward", counted[n_warm:], ours, theirs, threads, target=target)


def ppo_row(*, quick: bool, threads: int) -> dict[str, Any]:
    """The update of a PPO iteration: 64 prompts, 48 response tokens, 4 epochs of 4 steps, medium."""
    n_warm, n_iterations, n_epochs = (1, 2, 4) if quick else (1, 5, 4)
    work = {
        "model": str(checkpoint("medium")), "classifier": str(classifier("small")), "n_prompts": 64, "n_samples": 1,
        "max_new_tokens": 48, "n_epochs": n_epochs, "n_minibatches": 4, "learning_rate": 3e-6, "kl_coef": 0.05, "adam_eps": 1e-8,
        "n_iterations": n_iterations, "reward": "letters", "seed": 0, "threads": threads,
        **matrices("medium"),
    }  # fmt: skip
    turns, ours, theirs = _turns("efficiency-ppo", "bench.ours.ppo", work, n_warm, n_iterations, threads)
    prompts = hh_prompts(work["n_prompts"])[1]
    counted = []
    for turn in turns:
        length = round(turn.ours["length_mean"])  # with random weights hardly any response ends before the limit
        sizes = [TreeSize(len(prompt), (length,)) for prompt in prompts]
        forward = trunk_flops(sizes, SHAPES["medium"]) + head_flops(length * len(sizes), SHAPES["medium"], VOCABULARY)
        report = turn.ours | {"units": n_epochs * TRAINING * forward, "seconds": turn.ours["parts"]["update"]}
        counted.append(Turn(report, turn.theirs))
    return _row("efficiency-ppo", counted[n_warm:], ours, theirs, threads)


def _turns(
    name: str, module: str, work: dict[str, Any], n_warm: int, n_turns: int, threads: int
) -> tuple[list[Turn], Worker, Worker]:
    ours, theirs = start_pair(name, work, module, "bench.peers.matrix", peer_python=sys.executable, threads=threads)
    turns = take_turns(ours, theirs, n_warm=n_warm, n_turns=n_turns - n_warm, label=name)
    own = [dataclasses.replace(t, theirs=t.theirs | {"seconds": t.theirs["own_seconds"]}) for t in turns]
    return own, ours, theirs


def _row(
    name: str, turns: list[Turn], ours: Worker, theirs: Worker, threads: int, *, target: float | None = None
) -> dict[str, Any]:
    found = row(name, "operations/s", turns, ours, theirs, target=target, threads=threads)
    libraries = sorted({turn.theirs["library"] for turn in turns})
    meaningless = ("ratio_cpu", "peak_mib_theirs", "ratio_memory", "ratio_memory_of_work")
    return {key: value for key, value in found.items() if key not in meaningless} | {"matrix_library": libraries}
