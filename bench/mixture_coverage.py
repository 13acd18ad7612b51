"""Do 90 % intervals from a mixture of kinds cover what a population of different tastes truly wants, in linear worlds?

    python bench/mixture_coverage.py [--quick] [--seeds 40] [--first-seed 0] [--only mixture] [--out bench/results/mixture_coverage.json]

Worlds are in bench/worlds/mixed_tastes.py. Each is fitted as `reward.posterior: laplace` fits it: by turns with raters of one
taste, and with raters who differ drawn along. A pair's interval is mean ± 1.645 sd of the one and the 5 % and 95 % quantiles of the
draws of the other; 200 pairs of new responses a seed. Pairs of one seed share a posterior, so intervals are over seeds.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.worlds.mixed_tastes import WORLDS, TasteWorld, drawn_world

from karat.reward.latents import prior_params
from karat.reward.layer_turns import fit_by_turns
from karat.reward.raters import RaterPriors
from karat.reward.sampled_layer import sample_population
from karat.stats import proportion

LEVEL, Z, N_PAIRS = 0.9, 1.6449, 200
PRIORS = RaterPriors()


def covered(spec: TasteWorld, seed: int) -> dict[str, dict[str, list[float]]]:
    """By posterior: 1 where the interval of a pair holds the target; the slope of its mean on the truth, its width, R̂, seconds."""
    features, batch, mean = drawn_world(spec, seed)
    began = time.process_time()
    turned = fit_by_turns(
        features, batch, prior_params(batch.channels, spec.n_raters, PRIORS), PRIORS, n_people=spec.n_raters,
        start=np.zeros(spec.n_features), averaged=True,
    )  # fmt: skip
    one = turned.posterior
    between = time.process_time()
    sampled = sample_population(features, batch, turned.params, one, np.random.default_rng(seed), raters=PRIORS)
    ended = time.process_time()
    delta = np.random.default_rng([seed, 1]).standard_normal((N_PAIRS, spec.n_features)) * 2**0.5
    target, sd = delta @ mean, np.sqrt(one.variance(delta))
    bounds = {
        "one taste": (delta @ one.mean - Z * sd, delta @ one.mean + Z * sd),
        "drawn along": tuple(np.quantile(delta @ sampled.draws.T, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)),
    }
    found = {}
    for name, (low, high) in bounds.items():
        middle = delta @ (one.mean if name == "one taste" else sampled.posterior.mean)
        found[name] = {
            "covered": ((low <= target) & (target <= high)).astype(float).tolist(),
            "slope": [float(middle @ target / (target @ target))], "width": [float((high - low).mean())],
            "rhat": [sampled.rhat if name == "drawn along" else 1.0], "taste_sd": [sampled.spreads["taste_sd"]],
            "cpu_s": [between - began if name == "one taste" else ended - between],
        }  # fmt: skip
    return found


def main() -> None:
    """Run the study and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed: does it run?")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=0, help="settings were tried on seeds from 1000 on")
    parser.add_argument("--only", default=",".join(one.name for one in WORLDS), help="worlds, with commas between")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    seeds = list(range(options.first_seed, options.first_seed + (1 if options.quick else options.seeds)))
    worlds: dict[str, dict] = {}
    for spec in (one for one in WORLDS if one.name in options.only.split(",")):
        runs = [covered(spec, seed) for seed in seeds]
        rows = {}
        for name in runs[0]:
            inside = np.concatenate([run[name]["covered"] for run in runs])
            estimate = proportion(inside, np.repeat(seeds, N_PAIRS), np.random.default_rng(0))
            ends = (estimate.value, estimate.low or 0, estimate.high or 0)
            rows[name] = {"covered": [round(x, 3) for x in ends], "n_pairs": len(inside), "n_seeds": len(seeds)}
            for figure in ("slope", "width", "rhat", "taste_sd", "cpu_s"):
                rows[name][figure] = round(float(np.mean([run[name][figure][0] for run in runs])), 3)
            rows[name]["rhat_most"] = round(max(run[name]["rhat"][0] for run in runs), 3)
        worlds[spec.name] = rows
        print(spec.name, json.dumps(rows), file=sys.stderr, flush=True)
        if options.out is not None:  # what is done stays, if the rest is killed
            result = {"level": LEVEL, "seeds": [seeds[0], seeds[-1]], "worlds": worlds}
            options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(worlds, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
