"""Gao's curves in the sandbox: proxy and gold over the distance moved, by best-of-n and by PPO without a KL penalty.

    python bench/gao_study.py [--seeds 0 1 2] [--votes 500 8000] [--out bench/results/gao_study.json] [--plot docs/images/gao.svg] [--quick]

A seed is a sandbox as `karat demo` configures it. Its supervised policy is judged on 500, 2,000 and 8,000 comparisons; each
set of votes makes a reward, read by its mean and by the ensemble's lower bound; each of these six rewards is followed
by best-of-n of up to 256 of 512 samples a prompt and by PPO with β = 0 for 40 iterations, looked at after every one. Gold
is the sandbox's, on 192 prompts that were not trained on. d is the root of the KL divergence in nats: of best-of-n by order statistics
(ties included), of PPO the mean, over the 128 responses that the looked-at policy draws next, of the divergences of
its steps over the whole vocabulary. R = d(α − β·d) and R = d(α − β·log d) are fitted by `karat.overopt.fit_gao`. What the
result file holds is not run again.

Source: Gao, Schulman & Hilton 2022, arXiv:2210.10760.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.gao_picture import picture
from bench.pages import put_between
from bench.rows import machine
from bench.turns import ROOT, WORK

from karat.belief import AGGREGATORS, apply_scale
from karat.config import apply_overrides, build, load_yaml
from karat.evaluate.measure import draw, texts_of
from karat.lm.load import load_lm
from karat.overopt import best_of_n_kl, expected_best_of_n, fit_gao
from karat.pipeline.configured import DEMO, FAULTS
from karat.pipeline.data import read_prompts, read_rows
from karat.pipeline.runs import run_once, source_of
from karat.pipeline.settings import RunConfig
from karat.progress import LineDisplay
from karat.reward.score import load_scorer
from karat.seeding import child_seed
from karat.stats import mean_estimate

SEEDS = (0, 1, 2)
VOTES = (500, 2000, 8000)
READINGS = ("mean_score", "lower_bound")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
N_DRAWN, MAX_TOKENS, CHUNK = 512, 48, 4096
COMMON = (
    *FAULTS["no-kl"], "watch.n_prompts=192", "ppo.n_iterations=40", "ppo.evaluate_every=1", "ppo.rollout.exact_kl=true",
)  # fmt: skip
LOOKS = 5
"""Looks of PPO whose mean says where gold was highest: single ones are too noisy to be compared."""
QUICK = (
    "sandbox.n_base_texts=400", "sandbox.n_demonstrations=200", "collect.n_prompts=200", "reward.n_epochs=1",
    "watch.n_prompts=16", "ppo.n_iterations=6",
)  # fmt: skip
LEAST_R_SQUARED = 0.95
RESULTS = ROOT / "bench" / "results" / "gao_study.json"
PLOT = ROOT / "docs" / "images" / "gao.svg"
DOCS = ROOT / "docs" / "watcher.md"
MARKS = ("<!-- gao_study: begin -->", "<!-- gao_study: end -->")
Row = dict[str, Any]
Drawn = dict[str, Any]


def configured(n_votes: int, reading: str, *, quick: bool) -> RunConfig:
    """The run of one reward."""
    own = [f"collect.n_tasks={n_votes}", f"aggregator={reading}", "name=base"]
    return build(RunConfig, apply_overrides(load_yaml(DEMO), [*COMMON, *(QUICK if quick else ()), *own]))


def continued(before: Path, target: Path, config: RunConfig, seed: int, until: str) -> Path:
    """A copy of a run, gone on with to a later station under another configuration."""
    if not target.exists():
        shutil.copytree(before, target, ignore=shutil.ignore_patterns("*.lock", "report.html", "summary.json"))
    run_once(config, seed=seed, directory=target, progress=LineDisplay(sys.stderr), until=until)
    return target


def drawn_from_sft(base: Path, config: RunConfig, seed: int, n_drawn: int) -> Drawn:
    """Samples of the supervised policy on the validation prompts, with their gold [P, N]."""
    lm = load_lm(base / "models" / "sft")
    prompts = read_prompts(base / "data" / "prompts.jsonl")["validation"]
    samples = draw(lm, prompts, n_samples=n_drawn, max_new_tokens=MAX_TOKENS, seed=child_seed(seed, "gao"))
    texts = texts_of(lm, samples)
    gold = source_of(config, seed).gold
    assert gold is not None
    worth = [[gold(prompt, text) for text in group] for prompt, group in zip(prompts, texts, strict=True)]
    return {"prompts": prompts, "texts": texts, "gold": np.array(worth)}


def scores_of(run: Path, reading: str, drawn: Drawn) -> np.ndarray:
    """What the optimiser would be paid for each sample, [P, N]."""
    scorer = load_scorer(run / "models" / "reward")
    asked = [p for p, group in zip(drawn["prompts"], drawn["texts"], strict=True) for _ in group]
    flat = [text for group in drawn["texts"] for text in group]
    parts = []
    for start in range(0, len(flat), CHUNK):
        belief = scorer(asked[start : start + CHUNK], flat[start : start + CHUNK])
        parts.append(apply_scale(AGGREGATORS[reading](belief), scorer.scale).double().numpy())
    return np.concatenate(parts).reshape(drawn["gold"].shape)


def best_of_n_curve(scores: np.ndarray, gold: np.ndarray, sizes: Sequence[int]) -> list[list[float]]:
    """[KL, proxy, gold] of best-of-n for each n, less those of the policy itself; [P, N] samples."""
    points = []
    for n in sizes:
        kl = float(np.mean([best_of_n_kl(row, n) for row in scores]))
        proxy, worth = expected_best_of_n(scores, n).mean(), expected_best_of_n(scores, n, values=gold).mean()
        points.append([kl, float(proxy - scores.mean()), float(worth - gold.mean())])
    return points


def ppo_curve(rows: Sequence[Mapping[str, float]], proxy: float, gold: float) -> list[list[float]]:
    """[KL, proxy, gold] of the policy after each iteration, less those of the supervised policy; it begins at 0.

    The KL is that of the next rollout, the first that this policy draws; the last policy draws none and is left out.
    """
    points = [[0.0, 0.0, 0.0]]
    for row, following in itertools.pairwise(rows):
        if "validation/gold" in row:
            kl = float(following["kl/exact_per_sequence"])
            points.append([kl, row["validation/proxy"] - proxy, row["validation/gold"] - gold])
    return points


def fitted(points: Sequence[Sequence[float]], law: str) -> Row:
    """Gao's law for proxy and gold, and where the measured gold was highest (of PPO: its running mean, and that of d)."""
    table = np.array(points)
    found: Row = {}
    for name, column in (("proxy", 1), ("gold", 2)):
        fit = fit_gao(table[:, 0], table[:, column], law=law)  # type: ignore[arg-type]
        peak = [fit.peak_d.value, fit.peak_d.low, fit.peak_d.high]
        found[name] = {"alpha": fit.alpha, "beta": fit.beta, "r_squared": fit.r_squared, "peak_d": peak}
    n_looks = LOOKS if law == "rl" else 1
    d, gold = running_mean(np.sqrt(table[:, 0]), n_looks), running_mean(table[:, 2], n_looks)
    top = int(gold.argmax())
    return found | {"top_d": float(d[top]), "top_gold": float(gold[top]), "inside": top < len(table) - 1}


def running_mean(values: np.ndarray, n: int) -> np.ndarray:
    """Means of n neighbours, of fewer at the ends; n is odd."""
    weights = np.convolve(np.ones(len(values)), np.ones(n), "same")
    return np.convolve(values, np.ones(n), "same") / weights


def cell(base: Path, drawn: Drawn, seed: int, n_votes: int, reading: str, *, quick: bool) -> Row:
    """Both curves of one reward."""
    config = configured(n_votes, reading, quick=quick)
    place = base.parent / f"{n_votes}-{reading}"
    continued(base, place, config, seed, "ppo")
    scores = scores_of(place, reading, drawn)
    curves = {
        "best_of_n": best_of_n_curve(scores, drawn["gold"], [n for n in SIZES if n <= scores.shape[1] // 2]),
        "rl": ppo_curve(list(read_rows(place / "metrics" / "ppo.jsonl")), scores.mean(), drawn["gold"].mean()),
    }
    shutil.rmtree(place)
    fits = {law: fitted(points, law) for law, points in curves.items()}
    return {"seed": seed, "votes": n_votes, "reading": reading, "curves": curves, "fits": fits, "machine": machine()}


def study(seeds: Sequence[int], *, votes: Sequence[int] = VOTES, out: Path, plot: Path | None, quick: bool) -> Row:
    """Run what is missing, seed by seed; the table of what there is."""
    out = WORK / "gao_study_quick.json" if quick else out
    kept: list[Row] = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    known = {(row["seed"], row["votes"], row["reading"]) for row in kept}
    votes = VOTES[:1] if quick else votes
    for seed in seeds[:1] if quick else seeds:
        missing = [(seed, n, reading) for n in votes for reading in READINGS if (seed, n, reading) not in known]
        if not missing:
            continue
        base = WORK / ("gao-quick" if quick else "gao") / f"seed-{seed}" / "base"
        config = configured(votes[0], READINGS[0], quick=quick)
        run_once(config, seed=seed, directory=base, progress=LineDisplay(sys.stderr), until="sft")
        drawn = drawn_from_sft(base, config, seed, 32 if quick else N_DRAWN)
        for _, n_votes, reading in missing:
            kept.append(cell(base, drawn, seed, n_votes, reading, quick=quick))
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"rows": kept, "summary": summary(kept)}, indent=1) + "\n", encoding="utf-8")
            print(f"gao: {len(kept)} rewards done, {n_votes} votes, {reading}", file=sys.stderr, flush=True)
        shutil.rmtree(base.parent)
    if plot is not None and not quick:
        plot.write_text(picture(kept), encoding="utf-8")
    return {"summary": summary(kept), "n_rewards": len(kept)}


def summary(rows: Sequence[Row]) -> list[Row]:
    """One line for each law, number of votes and reading: fits and peaks over the seeds."""
    lines = []
    for law in ("best_of_n", "rl"):
        for n_votes, reading in dict.fromkeys((row["votes"], row["reading"]) for row in rows):
            own = [row for row in rows if (row["votes"], row["reading"]) == (n_votes, reading)]
            fits = [row["fits"][law] for row in own]
            lines.append({
                "law": law, "votes": n_votes, "reading": reading, "seeds": [row["seed"] for row in own],
                "r_squared": {name: [fit[name]["r_squared"] for fit in fits] for name in ("proxy", "gold")},
                "fitted_peak_d": [fit["gold"]["peak_d"][0] for fit in fits],
                "top_d": estimate_of([fit["top_d"] for fit in fits]),
                "top_gold": estimate_of([fit["top_gold"] for fit in fits]),
                "last_gold": estimate_of([row["curves"][law][-1][2] for row in own]),
                "last_d": estimate_of([row["curves"][law][-1][0] ** 0.5 for row in own]),
            })  # fmt: skip
    return lines


def moves(rows: Sequence[Row]) -> list[Row]:
    """How much farther gold's highest point lies with more votes and with the lower bound, paired by seed (PPO)."""
    top = {(row["seed"], row["votes"], row["reading"]): row["fits"]["rl"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    found = []
    for name, pairs in {
        "8,000 votes less 500, mean": [((s, 500, "mean_score"), (s, 8000, "mean_score")) for s in seeds],
        "8,000 votes less 500, lower bound": [((s, 500, "lower_bound"), (s, 8000, "lower_bound")) for s in seeds],
        **{
            f"lower bound less mean, {n:,} votes": [((s, n, "mean_score"), (s, n, "lower_bound")) for s in seeds]
            for n in VOTES
        },
    }.items():
        known = [(top[a], top[b]) for a, b in pairs if a in top and b in top]
        found += [
            {"what": name, "figure": figure, "difference": estimate_of([b[figure] - a[figure] for a, b in known])}
            for figure in ("top_d", "top_gold")
        ]
    return found


def estimate_of(values: Sequence[float]) -> list[float | None]:
    """Mean and its 95 % t interval over seeds; Nones where there is nothing."""
    if not values:
        return [None, None, None]
    estimate = mean_estimate(np.array(values))
    return [estimate.value, estimate.low, estimate.high]


def shown(estimate: Sequence[float | None]) -> str:
    """The same for a table."""
    value, low, high = estimate
    if value is None:
        return ""
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def tables(rows: Sequence[Row]) -> str:
    """The results as Markdown."""

    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"{len(rows)} rewards, seeds {', '.join(map(str, seeds))}; 95 % t intervals over seeds.", "",
        "| optimised by | votes | reading | R² of proxy, of gold (smallest) | gold's top at d | gold gained there | gold at the end | at d |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    laws = {"best_of_n": "best of n", "rl": "PPO, β = 0"}
    for line in summary(rows):
        worst = ", ".join(f"{min(line['r_squared'][name]):.3f}" for name in ("proxy", "gold"))
        lines.append(
            f"| {laws[line['law']]} | {line['votes']:,} | {line['reading'].replace('_', ' ')} | {worst} | {shown(line['top_d'])} | "
            f"{shown(line['top_gold'])} | {shown(line['last_gold'])} | {shown(line['last_d'])} |"
        )
    lines += ["", "| PPO: how much farther, how much more | gold's top at d | gold gained there |", "|---|---|---|"]
    found = moves(rows)
    lines += [
        f"| {where['what']} | {shown(where['difference'])} | {shown(gain['difference'])} |"
        for where, gain in zip(found[::2], found[1::2], strict=True)
    ]
    fits = [row["fits"][law]["gold"]["r_squared"] for row in rows for law in laws]
    lines += [
        "",
        f"R² of gold is at least {LEAST_R_SQUARED} in {sum(r >= LEAST_R_SQUARED for r in fits)} of {len(fits)} fits.",
    ]
    return "\n".join(lines)


def gao_row(*, quick: bool) -> Row:
    """The study as a row of the long benches."""
    return {"work": "gao"} | study(SEEDS, out=RESULTS, plot=PLOT, quick=quick)


def main() -> None:
    """The study from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--votes", type=int, nargs="+", choices=VOTES, default=list(VOTES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--quick", action="store_true", help="tiny runs: does it work?")
    parser.add_argument("--tables", action="store_true", help="only put what was run so far into docs/watcher.md")
    options = parser.parse_args()
    if options.tables:
        rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"]
        options.plot.write_text(picture(rows), encoding="utf-8")
        put_between(DOCS, MARKS, tables(rows))
        return
    print(
        json.dumps(
            study(options.seeds, votes=options.votes, out=options.out, plot=options.plot, quick=options.quick), indent=1
        )
    )


if __name__ == "__main__":
    main()
