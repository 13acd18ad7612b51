"""Does the top of best-of-n move out with more votes? Many seeds, best-of-n alone.

    python -m bench.gao_top_study [--seeds 0 1 …] [--out bench/results/gao_top_study.json] [--quick] [--tables]

`bench.gao_study` has three seeds and PPO besides; its tops lie farther out with more votes in the mean, by less than the
seeds' noise. Here a seed is the same sandbox and the same three sets of votes, but only best-of-n of up to 64 of 128
samples on 192 prompts, and the same rewards are read both ways. A top is that of Gao's law d(α − β·d) fitted to gold,
within [0, the farthest d measured]; the gain is gold at the measured n that is highest. What the result file holds is
not run again.

Written down before the first run: fifteen seeds (0 to 14); the question is the difference of tops between 8,000 and 500
votes, mean score, paired by seed, by its 95 % t interval. All else is reported beside it.

Source: Gao, Schulman & Hilton 2022, arXiv:2210.10760, figure 1a and eq. 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.gao_study import (
    DOCS,
    READINGS,
    VOTES,
    best_of_n_curve,
    configured,
    continued,
    drawn_from_sft,
    estimate_of,
    scores_of,
    shown,
)
from bench.pages import put_between
from bench.rows import machine
from bench.turns import ROOT, WORK

from karat.overopt import fit_gao
from karat.pipeline.runs import run_once
from karat.progress import LineDisplay

SEEDS = tuple(range(15))
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
N_DRAWN = 128
RESULTS = ROOT / "bench" / "results" / "gao_top_study.json"
MARKS = ("<!-- gao_top_study: begin -->", "<!-- gao_top_study: end -->")
Row = dict[str, Any]


def top_of(points: Sequence[Sequence[float]]) -> Row:
    """Where gold's fitted law is highest within what was measured, how well it fits, and the highest measured gain.

    Args: points: [KL, proxy, gold] for each n.
    """
    table = np.array(points)
    d = np.sqrt(table[:, 0])
    fit = fit_gao(table[:, 0], table[:, 2], law="best_of_n")
    if fit.beta > 0:
        top = float(np.clip(fit.alpha / (2 * fit.beta), 0, d.max()))
    else:  # no top inside: at one of the ends
        top = float(d.max()) if fit.alpha - fit.beta * d.max() > 0 else 0.0
    return {"top_d": top, "r_squared": fit.r_squared, "gain": float(table[:, 2].max()), "farthest_d": float(d.max())}


def cells(base: Path, drawn: dict[str, Any], seed: int, n_votes: int, *, quick: bool) -> list[Row]:
    """The curves of one reward, read both ways."""
    place = base.parent / f"{n_votes}"
    continued(base, place, configured(n_votes, READINGS[0], quick=quick), seed, "reward")
    found = []
    for reading in READINGS:
        scores = scores_of(place, reading, drawn)
        points = best_of_n_curve(scores, drawn["gold"], [n for n in SIZES if n <= scores.shape[1] // 2])
        found.append({"seed": seed, "votes": n_votes, "reading": reading, "points": points, **top_of(points)})
    shutil.rmtree(place)
    return found


def study(seeds: Sequence[int], *, out: Path, quick: bool) -> Row:
    """Run what is missing, seed by seed."""
    out = WORK / "gao_top_study_quick.json" if quick else out
    kept: list[Row] = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    for seed in seeds[:1] if quick else seeds:
        missing = [n for n in VOTES if not any((row["seed"], row["votes"]) == (seed, n) for row in kept)]
        if not missing:
            continue
        base = WORK / "gao-top" / f"seed-{seed}" / "base"
        config = configured(VOTES[0], READINGS[0], quick=quick)
        run_once(config, seed=seed, directory=base, progress=LineDisplay(sys.stderr), until="sft")
        drawn = drawn_from_sft(base, config, seed, 16 if quick else N_DRAWN)
        for n_votes in missing[:1] if quick else missing:
            kept += cells(base, drawn, seed, n_votes, quick=quick)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"rows": kept, "machine": machine()}, indent=1) + "\n", encoding="utf-8")
            print(f"gao-top: seed {seed}, {n_votes} votes done", file=sys.stderr, flush=True)
        shutil.rmtree(base.parent)
    return {"n_rewards": len(kept) // 2, "moves": moves(kept)}


def moves(rows: Sequence[Row]) -> list[Row]:
    """Differences paired by seed, with 95 % t intervals: of tops and of gains, between votes and between readings."""
    known = {(row["seed"], row["votes"], row["reading"]): row for row in rows}
    mean, bound = READINGS
    pairs = {
        "8,000 votes less 500": ((500, mean), (8000, mean)),
        "2,000 votes less 500": ((500, mean), (2000, mean)),
        "8,000 votes less 2,000": ((2000, mean), (8000, mean)),
        **{f"lower bound less mean, {n:,} votes": ((n, mean), (n, bound)) for n in VOTES},
    }
    found = []
    for name, (a, b) in pairs.items():
        both = [
            (known[s, *a], known[s, *b])
            for s in sorted({row["seed"] for row in rows})
            if {(s, *a), (s, *b)} <= set(known)
        ]
        line: Row = {"what": name, "n_seeds": len(both)}
        for figure in ("top_d", "gain"):
            line[figure] = estimate_of([other[figure] - one[figure] for one, other in both])
            line[f"{figure}_more"] = sum(other[figure] > one[figure] for one, other in both)
        found.append(line)
    return found


def tables(rows: Sequence[Row]) -> str:
    """The results as Markdown."""

    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"{len(seeds)} seeds; means with 95 % t intervals.", "",
        "| votes | reading | gold's top at d | gold gained there | R² of gold (smallest, median) |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for n_votes in VOTES:
        for reading in READINGS:
            own = [row for row in rows if (row["votes"], row["reading"]) == (n_votes, reading)]
            if own:
                fits = [row["r_squared"] for row in own]
                lines.append(
                    f"| {n_votes:,} | {reading.replace('_', ' ')} | {shown(estimate_of([row['top_d'] for row in own]))} | "
                    f"{shown(estimate_of([row['gain'] for row in own]))} | {min(fits):.3f}, {np.median(fits):.3f} |"
                )
    lines += [
        "", "| paired by seed | top farther out by | on seeds | more gold by | on seeds |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for line in moves(rows):
        n = line["n_seeds"]
        lines.append(
            f"| {line['what']} | {shown(line['top_d'])} | {line['top_d_more']} of {n} | {shown(line['gain'])} | {line['gain_more']} of {n} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The study from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one tiny reward: does it work?")
    parser.add_argument("--tables", action="store_true", help="only put what was run so far into docs/watcher.md")
    options = parser.parse_args()
    if options.tables:
        put_between(DOCS, MARKS, tables(json.loads(options.out.read_text(encoding="utf-8"))["rows"]))
        return
    print(json.dumps(study(options.seeds, out=options.out, quick=options.quick), indent=1))


if __name__ == "__main__":
    main()
