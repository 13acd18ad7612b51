"""Does gold's top move out with more votes, and with a lower bound? Best-of-n where votes are few and some texts are strange.

    python -m bench.far_top_study [--quick] [--seeds 10] [--first-seed 0] [--minutes 60] [--out bench/results/far_top_study.json]
    python -m bench.far_top_study --tables        # writes what is in the results into docs/watcher.md, and stops

The question of `bench.gao_top_study` in the world of bench/worlds/bounds.py whose raters err as nothing but noise ("strange
texts": one candidate in twenty is of a kind that nobody voted on, and bad). The sandbox's reward errs where its raters do,
which more votes do not mend; here what it does not know is all that is wrong with it. Models are those of
`bench.bounds_study`; a top is where gold's best of n is highest, of n = 1, 2, 4 … 8,192, by all subsets of 16,384 candidates,
mean over 40 prompts.

Written down before the seeds that count (0 to 9; 1000 was tried, with 150, 600 and 4,800 votes): the ensemble's mean, 38,400
votes less 600; the ensemble's lower bound less its mean, at each number of votes; paired by seed, by the 95 % t interval.
The single model and the bound of its last layer are reported beside it.

Source: Gao, Schulman & Hilton 2022, arXiv:2210.10760, figures 1a and 3 (data of the reward model).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.bounds_study import N_DRAWS, N_MEMBERS, N_PROMPTS, belief_of, fitted
from bench.by_seed import by_seed, interval, seed_options
from bench.gao_study import shown
from bench.pages import put_between
from bench.rows import machine
from bench.turns import ROOT
from bench.worlds.bounds import WORLDS, BoundsWorld, draw_bounds, draw_candidates, gold

from karat.belief import lower_bound, mean_score
from karat.overopt import best_of_n_kl, best_of_n_weights
from karat.seeding import numpy_generator

STRANGE = next(world for world in WORLDS if world.name == "strange texts")
VOTES = (600, 4800, 38400)
N_CANDIDATES = 16384
SIZES = tuple(2**k for k in range(14))
N_SEEDS = 10
READINGS = ("single", "ensemble mean", "ensemble lower bound", "posterior lower bound")
RESULTS = ROOT / "bench" / "results" / "far_top_study.json"
PAGE = ROOT / "docs" / "watcher.md"
MARKS = ("<!-- far_top_study: begin -->", "<!-- far_top_study: end -->")


def with_votes(n: int) -> BoundsWorld:
    """The world, with so many votes."""
    return dataclasses.replace(STRANGE, name=f"{n:,} votes", n_pairs=n)


def curves(world: BoundsWorld, seed: int) -> dict[str, Any]:
    """Gold's gain by best of n, for each way of scoring; the same d for all."""
    drawn = draw_bounds(world, numpy_generator(seed, "far-top", world.name, "world"))
    rng = numpy_generator(seed, "far-top", world.name, "models")
    single, head = fitted(world, drawn, np.arange(world.n_pairs), rng)
    members = [fitted(world, drawn, rng.choice(world.n_pairs, world.n_pairs), rng) for _ in range(N_MEMBERS)]
    posterior = head.draws(N_DRAWS, rng)
    gained = dict.fromkeys(READINGS, 0.0)
    for prompt in range(N_PROMPTS):
        texts = draw_candidates(world, N_CANDIDATES, numpy_generator(seed, "far-top", "prompt", prompt))
        worth = gold(world, drawn, texts)
        ensemble = belief_of(np.stack([model.features(texts) @ own.mean for model, own in members]))
        own = single.features(texts)
        scores = {
            "single": own @ head.mean,
            "ensemble mean": mean_score(ensemble).numpy(),
            "ensemble lower bound": lower_bound(ensemble).numpy(),
            "posterior lower bound": lower_bound(belief_of((own @ posterior.T).T)).numpy(),
        }
        for name, score in scores.items():
            best = np.array([(best_of_n_weights(score, n) * worth).sum() for n in SIZES])
            gained[name] = gained[name] + (best - worth.mean()) / N_PROMPTS
    untied = np.arange(N_CANDIDATES)
    return {"kl": [best_of_n_kl(untied, n) for n in SIZES], **{name: row.tolist() for name, row in gained.items()}}


def top(run: Mapping[str, Sequence[float]], reading: str) -> tuple[float, float, float]:
    """(d where gold's gain is highest, that gain, gain at the largest n)."""
    gained = np.asarray(run[reading])
    at = int(gained.argmax())
    return float(np.sqrt(run["kl"][at])), float(gained[at]), float(gained[-1])


def summary(world: BoundsWorld, runs: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Tops, gains there and gains at the end by way of scoring; mean and 95 % t interval over seeds."""
    found: dict[str, Any] = {"votes": world.n_pairs, "seeds": len(runs)}
    for reading in READINGS:
        columns = zip(*(top(run, reading) for run in runs), strict=True)
        found[reading] = dict(zip(("top_d", "gain", "end"), map(interval, columns), strict=True))
    return found


def moves(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Differences of tops and of gains there, paired by seed."""
    by_votes = {n: found["worlds"][with_votes(n).name]["rows"] for n in VOTES}
    few, many = VOTES[0], VOTES[-1]
    mean, bound = READINGS[1], READINGS[2]
    pairs = {
        **{f"{reading}: {many:,} votes less {few:,}": ((few, reading), (many, reading)) for reading in READINGS},
        **{f"ensemble, {n:,} votes: lower bound less mean": ((n, mean), (n, bound)) for n in VOTES},
    }
    lines = []
    for what, ((n, a), (m, b)) in pairs.items():
        both = [(top(by_votes[n][s], a), top(by_votes[m][s], b)) for s in by_votes[n] if s in by_votes[m]]
        lines.append({
            "what": what,
            "n_seeds": len(both),
            "farther": sum(other[0] > one[0] for one, other in both),
            "top_d": interval([other[0] - one[0] for one, other in both]),
            "gain": interval([other[1] - one[1] for one, other in both]),
        })  # fmt: skip
    return lines


def tables(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    seeds = min(one["summary"]["seeds"] for one in found["worlds"].values())
    lines = [
        f"{seeds} seeds, {N_PROMPTS} prompts, n up to {SIZES[-1]:,} (d = {farthest(found):.2f}); mean and 95 % t interval over seeds; "
        f"{found['machine']['processor']}, 1 thread.", "",
        "| votes | scored by | gold's top at d | gold gained there | gained at the end |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for one in found["worlds"].values():
        own = one["summary"]
        lines += [
            f"| {own['votes']:,} | {reading} | {' | '.join(shown(own[reading][figure]) for figure in ('top_d', 'gain', 'end'))} |"
            for reading in READINGS
        ]
    lines += ["", "| paired by seed | top farther out by | on seeds | more gold there by |", "|---|---|---|---|"]
    lines += [
        f"| {line['what']} | {shown(line['top_d'])} | {line['farther']} of {line['n_seeds']} | {shown(line['gain'])} |"
        for line in moves(found)
    ]
    return "\n".join(lines)


def farthest(found: Mapping[str, Any]) -> float:
    """The largest d, the same for all."""
    rows = next(iter(found["worlds"].values()))["rows"]
    return float(np.sqrt(next(iter(rows.values()))["kl"][-1]))


def study(seeds: Sequence[int], out: Path | None, minutes: float) -> dict[str, Any]:
    """All numbers of votes and seeds that are not there yet, until the time is over."""
    about = {"n_prompts": N_PROMPTS, "sizes": SIZES, "machine": machine()}
    return by_seed([with_votes(n) for n in VOTES], seeds, curves, summary, about=about, out=out, minutes=minutes)


def main() -> None:
    """The study from the command line."""
    options = seed_options(__doc__, n_seeds=N_SEEDS, quick="two seeds: does it run?", first="1000 was tried")
    if options.tables:
        return put_between(PAGE, MARKS, tables(json.loads(RESULTS.read_text(encoding="utf-8"))))
    n_seeds = 2 if options.quick else options.seeds
    found = study(range(options.first_seed, options.first_seed + n_seeds), options.out, options.minutes)
    print(json.dumps(moves(found) if found["complete"] else {"complete": False}, indent=1))
    return None


if __name__ == "__main__":
    main()
