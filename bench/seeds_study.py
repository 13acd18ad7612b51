"""Our side of the time-to-score study alone, over settings and seeds: how much of a final score is chance?

    python -m bench.seeds_study [--method rloo] [--reward length] [--rates 1e-3] [--steps 1] [--adam-eps 1e-8] [--seeds 0 1 2]
    python -m bench.seeds_study --tables

Work, model, prompts and settings are those of a cell of score_cells.py; nothing is timed, so it may run beside anything.
Runs are kept in bench/results/seeds_study.json and not made again; `--tables` prints them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.score_cells import PEERS_ADAM_EPS, Cell
from bench.score_figures import smoothed
from bench.text_rewards import REWARDS
from bench.turns import ROOT

RESULTS = ROOT / "bench" / "results" / "seeds_study.json"
KEY = ("method", "reward", "learning_rate", "n_minibatches", "adam_eps", "n_iterations")
WINDOW = Cell("rloo", "length").window


class Kept:
    """A reporter that keeps the score and the length of every iteration."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.lengths: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002 - the protocol of reporters
        """Called by the training loop."""
        self.scores.append(round(metrics["score/mean"], 2))
        self.lengths.append(round(metrics["response/length_mean"], 1))


def run(key: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One training; mean score and mean tokens of every iteration."""
    from bench.inputs import hh_prompts
    from bench.models import trained_checkpoint
    from bench.ours.group import group_config
    from bench.ours.scores import score_of

    from karat.lm.load import load_lm
    from karat.policy.group import train_group

    cell, kept = Cell(key["method"], key["reward"]), Kept()
    lm = load_lm(trained_checkpoint(), for_training=True)
    prompts, _ = hh_prompts(cell.n_prompts)
    config = group_config(cell.shape | dict(key))
    train_group(lm, prompts, score_of(key["reward"]), config, seed=seed, reporters=[kept])
    return {**key, "seed": seed, "scores": kept.scores, "lengths": kept.lengths}


def load() -> list[dict[str, Any]]:
    """What was run; empty where there is no file."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Final scores (means of the last three iterations) by setting, as Markdown."""
    lines = [
        "| method, reward | iterations | setting | ε | seeds | final score of each | mean ± sd | tokens at the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, group in itertools.groupby(sorted(found, key=_order), key=_order):
        runs = list(group)
        method, reward, rate, steps, eps, n_iterations = key
        ends = [smoothed(one["scores"], WINDOW)[-1] for one in runs]
        spread = f" ± {statistics.stdev(ends):.1f}" if len(ends) > 1 else ""
        lines.append(
            f"| {method}, {reward} | {n_iterations} | lr {rate:g}, {steps} steps | {eps:g} | {_listed(one['seed'] for one in runs)} "
            f"| {_listed(f'{end:.1f}' for end in ends)} | {statistics.fmean(ends):.1f}{spread} "
            f"| {_listed(round(one['lengths'][-1]) for one in runs)} |"
        )
    return "\n".join(lines)


def _order(one: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(one[name] for name in KEY)


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))


def main() -> None:
    """Run what is missing, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("rloo", "grpo"), default="rloo")
    parser.add_argument("--reward", choices=REWARDS, default="length")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--steps", nargs="+", type=int, default=[1])
    parser.add_argument("--adam-eps", nargs="+", type=float, default=[PEERS_ADAM_EPS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=Cell("rloo", "length").n_iterations)
    parser.add_argument("--tables", action="store_true", help="print what was run, and stop")
    options = parser.parse_args()
    if options.tables:
        print(table(load()))
        return
    import torch

    torch.set_num_threads(int(os.environ.get("KARAT_BENCH_THREADS", "2")))
    for seed, rate, steps, eps in itertools.product(options.seeds, options.rates, options.steps, options.adam_eps):
        setting = (options.method, options.reward, rate, steps, eps, options.iterations)
        key = dict(zip(KEY, setting, strict=True))
        if not any(_order(one) == setting and one["seed"] == seed for one in load()):
            one = run(key, seed)
            print(json.dumps(one), flush=True)
            found = sorted([*load(), one], key=lambda other: (*_order(other), other["seed"]))
            RESULTS.write_text("[\n" + ",\n".join(json.dumps(each) for each in found) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
