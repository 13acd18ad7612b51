"""Do ensembles and lower bounds protect best-of-n? Worlds of bench/worlds/bounds.py, random-feature models.

    python bench/bounds_study.py [--quick] [--seeds 10] [--first-seed 0] [--out bench/results/bounds_study.json]

A model is 256 random rectified features, its own ones, under a linear head fitted to the votes with the prior precision
of the highest evidence. The single model sees every vote; each of the five members of the ensemble has its own features
and its own bootstrap of the votes. `posterior bound` is the lower bound of a single model's Bayesian last layer. Gold is
that of the candidate that each score chooses among the first n, mean over 40 prompts.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.worlds.bounds import WORLDS, draw_bounds, gold

from karat.belief import Belief, lower_bound, mean_minus_sd, mean_score, worst_member
from karat.reward.last_layer import LastLayer, Observations, fit_last_layer, ordinal_derivatives
from karat.seeding import numpy_generator
from karat.stats import cluster_bootstrap, mean_estimate

N_MEMBERS, N_HIDDEN, N_DRAWS = 5, 256, 64
N_PROMPTS = 40
SIZES = (1, 16, 256, 4096, 16384)


class Model:
    """Random features and a posterior over the head."""

    def __init__(self, world, drawn, rows: np.ndarray, rng: np.random.Generator) -> None:
        d = world.n_features
        self.weight = rng.standard_normal((d, N_HIDDEN)) / np.sqrt(d)
        self.bias = rng.standard_normal(N_HIDDEN) * 0.5
        a, b = self.features(drawn.a[rows]), self.features(drawn.b[rows])
        level, n = drawn.vote[rows], len(rows)

        def derivatives(eta: np.ndarray, some: np.ndarray):
            return ordinal_derivatives(eta, level[some], np.zeros(len(some)), np.zeros(1))

        answers = Observations(np.arange(n), np.arange(n) + n, np.ones(n), np.zeros(n), derivatives)
        self.head: LastLayer = fit_last_layer(np.concatenate([a, b]), [answers], tolerance=1e-3)

    def features(self, x: np.ndarray) -> np.ndarray:
        """φ(x)."""
        return np.maximum(x @ self.weight + self.bias, 0)


def belief_of(draws: np.ndarray) -> Belief:
    """Joint draws [S, B] of one prompt's candidates, measured from their mean."""
    wide = torch.from_numpy(draws)
    return Belief(wide[..., None], wide.mean(1)[:, None, None], torch.zeros(draws.shape[1], dtype=torch.long))


def chosen_gold(world, seed: int) -> dict[str, list[float]]:
    """Gold of what each way of scoring chooses, by n."""
    drawn = draw_bounds(world, numpy_generator(seed, "bounds", world.name, "world"))
    rng = numpy_generator(seed, "bounds", world.name, "models")
    everything = np.arange(world.n_pairs)
    singles = [Model(world, drawn, everything, rng) for _ in range(N_MEMBERS)]
    members = [Model(world, drawn, rng.choice(world.n_pairs, world.n_pairs), rng) for _ in range(N_MEMBERS)]
    posterior = singles[0].head.draws(N_DRAWS, rng)
    found: dict[str, np.ndarray] = {}
    for prompt in range(N_PROMPTS):
        candidates = numpy_generator(seed, "bounds", world.name, "prompt", prompt).standard_normal(
            (SIZES[-1], world.n_features)
        )
        worth = gold(world, drawn, candidates)
        own = np.stack([model.features(candidates) @ model.head.mean for model in singles])
        ensemble = belief_of(np.stack([model.features(candidates) @ model.head.mean for model in members]))
        bayes = belief_of((singles[0].features(candidates) @ posterior.T).T)
        scores = {
            **{f"single {i}": row for i, row in enumerate(own)},
            "mean of 5": mean_score(ensemble).numpy(),
            "worst of 5": worst_member(ensemble).numpy(),
            "mean − sd": mean_minus_sd(ensemble).numpy(),
            "lower bound": lower_bound(ensemble).numpy(),
            "posterior bound": lower_bound(bayes).numpy(),
            "oracle": worth,
        }
        for name, score in scores.items():
            row = np.array([worth[int(np.argmax(score[:n]))] for n in SIZES])
            found[name] = found.get(name, 0) + row / N_PROMPTS
    single = np.mean([found.pop(f"single {i}") for i in range(N_MEMBERS)], axis=0)
    return {"single": single.tolist(), **{name: row.tolist() for name, row in found.items()}}


def summary(runs: list[dict[str, list[float]]], seed: int) -> dict:
    """Mean gold by n, and the ratio to the single model's at the largest n."""
    rows = {}
    for name in runs[0]:
        table = np.array([run[name] for run in runs])
        single = np.array([run["single"] for run in runs])
        last = mean_estimate(table[:, -1])

        def ratio(rows_: np.ndarray, table=table, single=single) -> float:
            return float(table[rows_, -1].mean() / single[rows_, -1].mean())

        times = cluster_bootstrap(ratio, np.arange(len(runs)), numpy_generator(seed, "ratio"), 2000)
        rows[name] = {
            "gold": {str(n): round(float(x), 3) for n, x in zip(SIZES, table.mean(0), strict=True)},
            "gold_at_largest": [round(x, 3) for x in (last.value, last.low, last.high)],
            "times_single": [round(x, 3) for x in (times.value, times.low, times.high)],
        }
    return rows


def main() -> None:
    """Run the study and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds: does it run?")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="settings were tried on seeds from 1000 on")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    n_seeds = 2 if options.quick else options.seeds
    seeds = list(range(options.first_seed, options.first_seed + n_seeds))
    began = time.process_time()
    worlds = {}
    for world in WORLDS:
        runs = [chosen_gold(world, seed) for seed in seeds]
        worlds[world.name] = {"why": world.why, "scores": summary(runs, 0)}
        print(world.name, {k: v["gold_at_largest"] for k, v in worlds[world.name]["scores"].items()}, file=sys.stderr)
    result = {"seeds": [seeds[0], seeds[-1]], "n_prompts": N_PROMPTS, "worlds": worlds,
              "cpu_s": round(time.process_time() - began, 1)}  # fmt: skip
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
