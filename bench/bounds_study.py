"""Do ensembles and lower bounds protect best-of-n? Worlds of bench/worlds/bounds.py, random-feature models.

    python bench/bounds_study.py [--quick] [--seeds 10] [--first-seed 0] [--minutes 60] [--out bench/results/bounds_study.json]
    python bench/bounds_study.py --tables        # writes what is in the results into docs/uncertainty.md, and stops

A model is 256 random rectified features, its own ones, under a linear head fitted to the votes with the prior precision
of the highest evidence. The single model sees every vote; each of the five members of the ensemble has its own features
and its own bootstrap of the votes. `posterior bound` is the lower bound of a single model's Bayesian last layer. `heads` are
20 on the single model's features, as `reward.heads` has them on one trunk: each with its own bootstrap and, as the members have
not, its own random prior function, φ·θ₀ with θ₀ from the prior, beside which it is fitted. Gold is that of the candidate that
each score chooses among the first n, mean over 40 prompts.

Every finished seed is kept in the file; the same command goes on where it stopped.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.by_seed import by_seed, interval, seed_options
from bench.pages import put_between
from bench.rows import machine
from bench.worlds.bounds import WORLDS, Bounds, BoundsWorld, draw_bounds, draw_candidates, gold

from karat.belief import Belief, lower_bound, mean_minus_sd, mean_score, worst_member
from karat.reward.last_layer import LastLayer, Observations, fit_last_layer, ordinal_derivatives
from karat.seeding import numpy_generator

N_MEMBERS, N_HEADS, N_HIDDEN, N_DRAWS = 5, 20, 256, 64
N_PROMPTS = 40
SIZES = (1, 16, 256, 4096, 16384)
N_SEEDS = 10
CLAIMED = 1.5
"""Times the single model's gold at the largest n, that a way of scoring should reach where data are finite."""
RESULTS = Path(__file__).parent / "results" / "bounds_study.json"
PAGE = Path(__file__).parent.parent / "docs" / "uncertainty.md"
MARKS = ("<!-- bounds_study: begin -->", "<!-- bounds_study: end -->")


class Model:
    """Random features and a posterior over the head."""

    def __init__(self, world: BoundsWorld, rng: np.random.Generator) -> None:
        d = world.n_features
        self.weight = rng.standard_normal((d, N_HIDDEN)) / np.sqrt(d)
        self.bias = rng.standard_normal(N_HIDDEN) * 0.5

    def features(self, x: np.ndarray) -> np.ndarray:
        """φ(x)."""
        return np.maximum(x @ self.weight + self.bias, 0)

    def head(self, drawn: Bounds, rows: np.ndarray, prior: np.ndarray | None = None, **options: float) -> LastLayer:
        """Fitted to these votes, beside a prior function φ·prior where there is one."""
        a, b = self.features(drawn.a[rows]), self.features(drawn.b[rows])
        level, n = drawn.vote[rows], len(rows)
        offset = np.zeros(n) if prior is None else (a - b) @ prior

        def derivatives(eta: np.ndarray, some: np.ndarray):
            return ordinal_derivatives(eta, level[some], np.zeros(len(some)), np.zeros(1))

        answers = Observations(np.arange(n), np.arange(n) + n, np.ones(n), offset, derivatives)
        return fit_last_layer(np.concatenate([a, b]), [answers], tolerance=1e-3, **options)


def fitted(world: BoundsWorld, drawn: Bounds, rows: np.ndarray, rng: np.random.Generator) -> tuple[Model, LastLayer]:
    """A model with features of its own, and its head fitted to these votes."""
    model = Model(world, rng)
    return model, model.head(drawn, rows)


def heads_of(model: Model, known: LastLayer, drawn: Bounds, rng: np.random.Generator) -> np.ndarray:
    """Weights of heads on one model's features: a random prior function each, and what its bootstrap adds to it, [N_HEADS, d]."""
    n, found = len(drawn.vote), []
    for _ in range(N_HEADS):
        prior = rng.standard_normal(N_HIDDEN) / np.sqrt(known.prior_precision)
        own = model.head(drawn, rng.choice(n, n), prior, prior_precision=known.prior_precision)
        found.append(prior + own.mean)
    return np.stack(found)


def belief_of(draws: np.ndarray) -> Belief:
    """Joint draws [S, B] of one prompt's candidates, measured from their mean."""
    wide = torch.from_numpy(draws)
    return Belief(wide[..., None], wide.mean(1)[:, None, None], torch.zeros(draws.shape[1], dtype=torch.long))


def chosen_gold(world: BoundsWorld, seed: int) -> dict[str, list[float]]:
    """Gold of what each way of scoring chooses, by n."""
    drawn = draw_bounds(world, numpy_generator(seed, "bounds", world.name, "world"))
    rng = numpy_generator(seed, "bounds", world.name, "models")
    n = world.n_pairs
    singles = [fitted(world, drawn, np.arange(n), rng) for _ in range(N_MEMBERS)]
    members = [fitted(world, drawn, rng.choice(n, n), rng) for _ in range(N_MEMBERS)]
    first, known = singles[0]
    posterior, heads = known.draws(N_DRAWS, rng), heads_of(first, known, drawn, rng)
    found: dict[str, np.ndarray] = {}
    for prompt in range(N_PROMPTS):
        candidates = draw_candidates(world, SIZES[-1], numpy_generator(seed, "bounds", world.name, "prompt", prompt))
        worth = gold(world, drawn, candidates)
        own = np.stack([model.features(candidates) @ head.mean for model, head in singles])
        ensemble = belief_of(np.stack([model.features(candidates) @ head.mean for model, head in members]))
        bayes, of_heads = (belief_of((first.features(candidates) @ weights.T).T) for weights in (posterior, heads))
        scores = {
            **{f"single {i}": row for i, row in enumerate(own)},
            "mean of 5": mean_score(ensemble).numpy(),
            "worst of 5": worst_member(ensemble).numpy(),
            "mean − sd": mean_minus_sd(ensemble).numpy(),
            "lower bound": lower_bound(ensemble).numpy(),
            "posterior bound": lower_bound(bayes).numpy(),
            f"mean of {N_HEADS} heads": mean_score(of_heads).numpy(),
            f"worst of {N_HEADS} heads": worst_member(of_heads).numpy(),
            "heads' lower bound": lower_bound(of_heads).numpy(),
            "oracle": worth,
        }
        for name, score in scores.items():
            row = np.array([worth[int(np.argmax(score[:n]))] for n in SIZES])
            found[name] = found.get(name, 0) + row / N_PROMPTS
    single = np.mean([found.pop(f"single {i}") for i in range(N_MEMBERS)], axis=0)
    return {"single": single.tolist(), **{name: row.tolist() for name, row in found.items()}}


def summary(world: BoundsWorld, runs: Sequence[dict[str, list[float]]]) -> dict:
    """Mean gold by n; at the largest n, the differences from the single model's and from CLAIMED times that, paired by seed."""
    rows: dict = {"why": world.why, "seeds": len(runs), "scores": {}}
    single = np.array([run["single"] for run in runs])[:, -1]
    for name in runs[0]:
        table = np.array([run[name] for run in runs])
        last = table[:, -1]
        rows["scores"][name] = {
            "gold": {str(n): round(float(x), 3) for n, x in zip(SIZES, table.mean(0), strict=True)},
            "gold_at_largest": interval(last),
            "minus_single": interval(last - single),
            "minus_claim": interval(last - CLAIMED * single),
        }
    return rows


def study(seeds: Sequence[int], out: Path | None, minutes: float) -> dict:
    """All worlds and seeds that are not there yet, until the time is over; then the summaries of what there is."""
    about = {"n_prompts": N_PROMPTS, "sizes": SIZES, "machine": machine()}
    return by_seed(WORLDS, seeds, chosen_gold, summary, about=about, out=out, minutes=minutes)


def tables(found: dict) -> str:
    """Gold of the best of the largest n, by world and score, beside the single model's."""
    lines = [
        f"Gold of the best of {SIZES[-1]:,}; {min(one['summary']['seeds'] for one in found['worlds'].values())} seeds a world, mean and "
        f"95 % t interval over seeds, differences paired by seed; {N_PROMPTS} prompts; {found['machine']['processor']}, 1 thread.",
        "",
        f"| world | score | best of 256 | best of {SIZES[-1]:,} | − single | − {CLAIMED:g} × single |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found["worlds"].items():
        for score, own in one["summary"]["scores"].items():
            reference = score == "single"
            lines.append(
                f"| {name} | {'gold itself' if score == 'oracle' else score} | {number(own['gold']['256'])} | "
                f"{shown(own['gold_at_largest'])} | {'' if reference else shown(own['minus_single'], sign='+')} | "
                f"{'' if reference else shown(own['minus_claim'], sign='+')} |"
            )
    return "\n".join(lines)


def shown(one: Sequence[float | None], sign: str = "") -> str:
    """`3.40 [3.18, 3.63]`."""
    value, low, high = (number(x, sign) for x in one)
    return f"{value} [{low}, {high}]"


def number(one: float | None, sign: str = "") -> str:
    """Two digits behind the point, with a true minus."""
    return "–" if one is None else f"{one:{sign}.2f}".replace("-", "−")


def main() -> None:
    """Run the study and write it down."""
    options = seed_options(
        __doc__, n_seeds=N_SEEDS, quick="two seeds: does it run?", first="settings were tried on seeds from 1000 on"
    )
    if options.tables:
        return put_between(PAGE, MARKS, tables(json.loads(RESULTS.read_text(encoding="utf-8"))))
    n_seeds = 2 if options.quick else options.seeds
    found = study(range(options.first_seed, options.first_seed + n_seeds), options.out, options.minutes)
    print(json.dumps({name: one["summary"] for name, one in found["worlds"].items()}, indent=1, ensure_ascii=False))
    return None


if __name__ == "__main__":
    main()
