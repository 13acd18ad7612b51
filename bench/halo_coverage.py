"""Do 90 % intervals of what two objectives say together hold it, where a rater's answers about both err alike?

    python bench/halo_coverage.py [--quick] [--seeds 40] [--first-seed 0] [--only tastes] [--out bench/results/halo_coverage.json]
    python bench/halo_coverage.py --table bench/results/halo_coverage.json

Worlds are in bench/worlds/halo.py. Each objective has a last layer as `reward.posterior: laplace` fits it, with raters who differ drawn along where they do;
*apart* are its draws as they come, *joint* what `karat.reward.halo` makes of them. An interval is the 5 % and 95 % quantile of the draws of the sum
or difference of both objectives over 200 pairs of new responses a seed. Pairs of a seed share a posterior, so intervals are over seeds; beside
them stands the root mean square of z of sum and difference of the weights, 1 where posteriors are as wide as their errors.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.by_seed import by_seed
from bench.pages import put_between
from bench.worlds.halo import WORLDS, HaloWorld, drawn_world

from karat.reward.halo import joint_layers
from karat.reward.latents import prior_params
from karat.reward.objective_layer import fit_objective, spoken_about
from karat.reward.raters import RaterPriors
from karat.reward.settings import LaplaceConfig, RewardConfig
from karat.stats import proportion

LEVEL, N_PAIRS, N_DRAWS = 0.9, 200, 600
PAGE = Path(__file__).resolve().parent.parent / "docs" / "uncertainty.md"
MARKS = ("<!-- halo_coverage: begin -->", "<!-- halo_coverage: end -->")
SIGNS = {"sum": 1.0, "difference": -1.0}


def covered(spec: HaloWorld, seed: int) -> dict[str, float]:
    """Of the pairs' sums and differences, apart and joint: how many intervals hold the target, z², width; the correlation found; seconds."""
    features, batch, weights = drawn_world(spec, seed)
    config = RewardConfig(laplace=LaplaceConfig(tastes=spec.taste_sd > 0, n_draws=N_DRAWS))
    began, params = time.process_time(), prior_params(batch.channels, spec.n_raters, RaterPriors())
    said = [spoken_about(batch, o, str(o), features, ()) for o in range(2)]
    apart = [
        fit_objective(
            one, params, np.zeros(spec.n_features), n_people=spec.n_raters, config=config,
            rng=np.random.default_rng([seed, o]),
        )
        for o, one in enumerate(said)
    ]  # fmt: skip
    joint, halos = joint_layers(apart, said, config.raters)
    delta = np.random.default_rng([seed, 1]).standard_normal((N_PAIRS, spec.n_features)) * 2**0.5
    found = {"found": halos[0].correlation, "taken": halos[0].shrunk, "cpu_s": time.process_time() - began}
    # draws of a chain have an order, and two chains share none
    order = np.random.default_rng([seed, 2]).permutation(N_DRAWS)
    for kind, layers in (("apart", apart), ("joint", joint)):
        one, other = layers[0].draws, layers[1].draws[order] if kind == "apart" else layers[1].draws
        for name, sign in SIGNS.items():
            drawn, truth = one + sign * other, weights[0] + sign * weights[1]
            low, high = np.quantile(delta @ drawn.T, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
            error = drawn.mean(0) - truth
            found |= {
                f"{kind} {name} n": float(((low <= delta @ truth) & (delta @ truth <= high)).sum()),
                f"{kind} {name} z2": float(error @ np.linalg.solve(np.cov(drawn.T), error)) / len(error),
                f"{kind} {name} width": float((high - low).mean()),
            }
    return found


def figures(spec: HaloWorld, seed: int) -> dict[str, float]:
    """The figures of one seed, as they are written down."""
    return {"seed": seed} | {name: round(value, 4) for name, value in covered(spec, seed).items()}


def summary(runs: Sequence[dict[str, float]]) -> dict[str, object]:
    """What the table says of a world, from figures by seed."""
    row: dict[str, object] = {
        name: round(float(np.mean([run[name] for run in runs])), 3) for name in ("found", "taken", "cpu_s")
    }
    row["n_seeds"] = len(runs)
    for kind in ("apart", "joint"):
        for name in SIGNS:
            each = [int(run[f"{kind} {name} n"]) for run in runs]
            inside = np.concatenate([np.arange(N_PAIRS) < n for n in each]).astype(float)
            estimate = proportion(inside, np.repeat([run["seed"] for run in runs], N_PAIRS), np.random.default_rng(0))
            ends = (estimate.value, estimate.low or 0, estimate.high or 0)
            row[f"{kind} {name}"] = {
                "covered": [round(x, 3) for x in ends],
                "rms_z": round(float(np.mean([run[f"{kind} {name} z2"] for run in runs])) ** 0.5, 3),
                "width": round(float(np.mean([run[f"{kind} {name} width"] for run in runs])), 3),
            }
    return row


def table(worlds: dict[str, dict]) -> str:
    """A row for each world and for sum and difference."""
    lines = ["| world | seeds | planted in noise, in tastes | found | of both | apart: covered, rms of z, width | joint: covered, rms of z, width |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for spec in (spec for spec in WORLDS if spec.name in worlds):
        row = worlds[spec.name]["summary"]
        for name in SIGNS:
            cells = []
            for kind in ("apart", "joint"):
                own = row[f"{kind} {name}"]
                middle, low, high = (f"{value:.2f}".removeprefix("0") for value in own["covered"])
                cells.append(f"{middle} [{low}, {high}], {own['rms_z']:.2f}, {own['width']:.2f}")
            lines.append(
                f"| {spec.name} | {row['n_seeds']} | {spec.halo:.1f}, {spec.spilt:.1f} | {row['found']:.2f} | {name} | {cells[0]} | {cells[1]} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the study and write it down; seeds that the file holds already are not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed: does it run?")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(one.name for one in WORLDS), help="worlds, with commas between")
    parser.add_argument("--minutes", type=float, default=600, help="start no further seed after these")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--table", type=Path, default=None, help="only write these results into docs/uncertainty.md")
    options = parser.parse_args()
    if options.table:
        put_between(PAGE, MARKS, table(json.loads(options.table.read_text(encoding="utf-8"))["worlds"]))
        return
    seeds = range(options.first_seed, options.first_seed + (1 if options.quick else options.seeds))
    chosen = [spec for spec in WORLDS if spec.name in options.only.split(",")]
    found = by_seed(
        chosen, seeds, figures, lambda _, runs: summary(runs), about={"level": LEVEL}, out=options.out,
        minutes=options.minutes,
    )  # fmt: skip
    print(json.dumps({spec.name: found["worlds"][spec.name]["summary"] for spec in chosen}, indent=1))


if __name__ == "__main__":
    main()
