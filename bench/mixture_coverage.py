"""Do 90 % intervals from a mixture of kinds cover what a population of different tastes truly wants, in linear worlds?

    python bench/mixture_coverage.py [--quick] [--seeds 40] [--first-seed 0] [--only mixture] [--believed] [--out bench/results/mixture_coverage_24.json]
    python bench/mixture_coverage.py --table bench/results/mixture_coverage_*.json

Worlds are in bench/worlds/mixed_tastes.py. Each is fitted as `reward.posterior: laplace` fits it: by turns with raters of one
taste, and with raters who differ drawn along. A pair's interval is mean ± 1.645 sd of the one and the 5 % and 95 % quantiles of the
draws of the other; 200 pairs of new responses a seed. Pairs of one seed share a posterior, so intervals are over seeds.

Beside coverage stands what says more with few seeds: the root mean square of z, of weights m ± S against the planted w,

    z² = (m − w)ᵀS⁻¹(m − w)/d        along w (the size) and across it (the shape) apart

which is 1 where posteriors are as wide as their errors, whatever the pairs. `--believed` draws sizes and spreads of the world from what the sampler
believes (`believed_world`): a right sampler covers .90 there, and where it does, another figure in a world held fixed is one of beliefs.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.by_seed import by_seed
from bench.pages import put_between
from bench.worlds.mixed_tastes import WORLDS, TasteWorld, believed_world, drawn_world

from karat.reward.last_layer import LastLayer
from karat.reward.latents import prior_params
from karat.reward.layer_turns import fit_by_turns
from karat.reward.raters import RaterPriors
from karat.reward.sampled_layer import sample_population
from karat.stats import proportion

LEVEL, Z, N_PAIRS = 0.9, 1.6449, 200
PAGE = Path(__file__).resolve().parent.parent / "docs" / "uncertainty.md"
MARKS = ("<!-- mixture_coverage: begin -->", "<!-- mixture_coverage: end -->")
PRIORS = RaterPriors()


def squares(posterior: LastLayer, truth: np.ndarray) -> dict[str, list[float]]:
    """z² of all weights, of what lies along the truth and of what lies across it, [1] each."""
    error, covariance = posterior.mean - truth, posterior.covariance
    across = np.linalg.svd(truth[:, None])[0]  # the first column lies along the truth
    found = {}
    for name, basis in (("z2", across), ("z2_size", across[:, :1]), ("z2_shape", across[:, 1:])):
        part = basis.T @ error
        found[name] = [float(part @ np.linalg.solve(basis.T @ covariance @ basis, part)) / len(part)]
    return found


def covered(spec: TasteWorld, seed: int, *, believed: bool = False) -> dict[str, dict[str, list[float]]]:
    """By posterior: 1 where the interval of a pair holds the target; the slope of its mean on the truth, its width, z², R̂, seconds."""
    features, batch, mean = believed_world(spec, seed) if believed else drawn_world(spec, seed)
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
            **squares(one if name == "one taste" else sampled.posterior, mean),
        }  # fmt: skip
    return found


def root_mean(square: np.ndarray) -> list[float]:
    """√ of the mean over seeds, and of the ends of its 95 % interval (normal, squares as they are)."""
    middle, half = float(square.mean()), 1.96 * float(square.std(ddof=min(1, len(square) - 1))) / len(square) ** 0.5
    return [round(max(value, 0.0) ** 0.5, 3) for value in (middle, middle - half, middle + half)]


def summary(runs: Sequence[dict[str, dict]]) -> dict[str, dict]:
    """What the table says of a world, from figures by seed."""
    rows = {}
    for name in (name for name in runs[0] if name != "seed"):
        inside = np.repeat(
            np.tile([1.0, 0.0], len(runs)),
            np.concatenate([[n, N_PAIRS - n] for n in (r[name]["n_covered"] for r in runs)]),
        )
        estimate = proportion(inside, np.repeat([run["seed"] for run in runs], N_PAIRS), np.random.default_rng(0))
        ends = (estimate.value, estimate.low or 0, estimate.high or 0)
        rows[name] = {"covered": [round(x, 3) for x in ends], "n_pairs": len(inside), "n_seeds": len(runs)}
        for figure in ("slope", "width", "rhat", "taste_sd", "cpu_s"):
            rows[name][figure] = round(float(np.mean([run[name][figure] for run in runs])), 3)
        for figure in ("z2", "z2_size", "z2_shape"):
            rows[name]["rms_" + figure.replace("2", "", 1)] = root_mean(np.array([run[name][figure] for run in runs]))
        rows[name]["rhat_most"] = round(max(run[name]["rhat"] for run in runs), 3)
    return rows


def _between(ends: Sequence[float]) -> str:
    """A figure with its interval."""
    middle, low, high = (f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.2f}" for value in ends)
    return f"{middle} [{low}, {high}]"


def table(files: Sequence[Path]) -> str:
    """A row for each world of each file, and what all of a world's seeds cover together."""
    lines = ["| world | seeds | one taste | drawn along | slopes of the two means | mean widths, logits | rms of z: all, size, shape | R̂ of the worst seed |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for name in (spec.name for spec in WORLDS):
        pairs, inside = 0, 0.0
        for result in (result for result in results if name in result["worlds"]):
            world = result["worlds"][name]
            own = world.get("summary", world)  # the first two files hold no figures by seed
            one, drawn = own["one taste"], own["drawn along"]
            seeds = list(map(int, world["rows"])) if "rows" in world else result["seeds"]
            z = (
                ", ".join(f"{drawn['rms_z' + part][0]:.2f}" for part in ("", "_size", "_shape"))
                if "rms_z" in drawn
                else ""
            )
            lines.append(
                f"| {name} | {min(seeds)} to {max(seeds)} | {_between(one['covered'])} | {_between(drawn['covered'])} | "
                f"{one['slope']:.2f}, {drawn['slope']:.2f} | {one['width']:.1f}, {drawn['width']:.1f} | {z} | {drawn['rhat_most']:.2f} |"
            )
            pairs, inside = pairs + drawn["n_pairs"], inside + drawn["n_pairs"] * drawn["covered"][0]
        if pairs:
            lines.append(
                f"| {name} | all {pairs // N_PAIRS} |  | **{_between([inside / pairs] * 3).split()[0]}** |  |  |  |  |"
            )
    return "\n".join(lines)


def figures(spec: TasteWorld, seed: int, *, believed: bool) -> dict:
    """The figures of one seed, as they are written down."""
    found: dict = {"seed": seed}
    for name, own in covered(spec, seed, believed=believed).items():
        found[name] = {"n_covered": int(sum(own.pop("covered")))} | {k: round(v[0], 4) for k, v in own.items()}
    return found


def main() -> None:
    """Run the study and write it down; seeds that the file holds already are not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed: does it run?")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=0, help="settings were tried on seeds from 1000 on")
    parser.add_argument("--only", default=",".join(one.name for one in WORLDS), help="worlds, with commas between")
    parser.add_argument("--believed", action="store_true", help="draw the worlds' sizes and spreads from the beliefs")
    parser.add_argument("--minutes", type=float, default=600, help="start no further seed after these")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument(
        "--table", type=Path, nargs="+", default=None, help="only write these results into docs/uncertainty.md"
    )
    options = parser.parse_args()
    if options.table:
        put_between(PAGE, MARKS, table(options.table))
        return
    seeds = range(options.first_seed, options.first_seed + (1 if options.quick else options.seeds))
    about = {"level": LEVEL, "believed": options.believed}
    known = options.out is not None and options.out.exists()
    if known and json.loads(options.out.read_text(encoding="utf-8"))["believed"] != options.believed:
        parser.error(f"{options.out}: found worlds of the other design; expected the same --believed, or another file")
    chosen = [spec for spec in WORLDS if spec.name in options.only.split(",")]
    found = by_seed(
        chosen, seeds, partial(figures, believed=options.believed), lambda _, runs: summary(runs), about=about,
        out=options.out, minutes=options.minutes,
    )  # fmt: skip
    print(json.dumps({spec.name: found["worlds"][spec.name]["summary"] for spec in chosen}, indent=1))


if __name__ == "__main__":
    main()
