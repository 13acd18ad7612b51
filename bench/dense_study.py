"""A policy paid for its steps, or by outcomes alone? Sandbox runs whose raters had the same time (docs/process.md).

    python bench/dense_study.py [--quick] [--seeds 3] [--first-seed 0] [--minutes 600] [--out bench/results/dense_study.json]
    python bench/dense_study.py --tables        # writes what is in the results into docs/process.md, and stops

A seed is `karat demo`'s sandbox with fewer votes, in the worlds of `WORLDS`, up to its reward model, twice: with
comparisons for all of the raters' time, and for half of it, the rest spent on marks of sentences (a comparison takes
60 s, a marked sentence 10 s, both assumed; SENTENCES of them a response). PPO then starts from a copy, at two strengths
of its KL penalty, and is paid

    outcomes   by the reward of all comparisons
    fewer      by the reward of half of them: what the other half is worth
    mean       by that and the mean mark of its sentences (`dense: {weights: {step: 1}}`)
    every      by that and log P(not wrong) of each sentence, at its end (`step_pay: every`)

Gold is the run's own evaluation, read at equal KL as methods_study.py has it. Every finished seed is kept in the file; the
same command goes on where it stopped.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.by_seed import by_seed, interval, seed_options
from bench.methods_study import METHODS, QUICK, gain_at
from bench.pages import put_between
from bench.process_tables import figure, short, table
from bench.rows import machine
from bench.turns import WORK

from karat.config import apply_overrides, build, load_yaml
from karat.pipeline.configured import DEMO, FAULTS
from karat.pipeline.runs import run_once
from karat.pipeline.settings import RunConfig
from karat.progress import LineDisplay

RESULTS = Path(__file__).parent / "results" / "dense_study.json"
PAGE = Path(__file__).parent.parent / "docs" / "process.md"
MARKS = ("<!-- dense_study: begin -->", "<!-- dense_study: end -->")
N_SEEDS = 3
N_COMPARISONS = 2000
"""What all of the time buys."""
COMPARISON_S, STEP_S, SENTENCES = 60.0, 10.0, 2.5
N_MARKED = int(N_COMPARISONS / 2 * COMPARISON_S / (STEP_S * SENTENCES))
"""Responses that half of the time marks."""
KLS = (0.25, 0.5, 1.0)
KL_COEFS = ("1.0", "0.4")
N_ITERATIONS = 40
PAID: Mapping[str, tuple[bool, Sequence[str]]] = {
    # name → whether its base has marks, and how it is paid
    "outcomes": (False, ()),
    "fewer": (True, ()),
    "mean": (True, ("dense.weights={step: 1.0}",)),
    "every": (True, ("dense.weights={step: 1.0}", "dense.step_pay=every")),
}


@dataclass(frozen=True)
class DenseWorld:
    """Who judges."""

    name: str
    """How the tables call it."""
    why: str
    """What it stands for, and what is expected there."""
    overrides: Sequence[str]
    """Of the demo's configuration."""


WORLDS = (
    DenseWorld(
        "the demo's people",
        "they check facts of some topics now and then, in votes and in marks alike: marks should win by saying where an error is",
        (),
    ),
    DenseWorld(
        "careful people",
        "they check every fact: a comparison says much already",
        tuple(
            f"sandbox.raters.{key}={value}"
            for key, value in {
                "attention": 1.0,
                "hidden_fact_frac": 0.0,
                "length_liking": 0.0,
                "confidence_liking": 0.0,
                "agreement_liking": 0.0,
                "flattery_liking": 0.0,
                "evasion_liking": 0.0,
                "group_divergence": 0.0,
                "side_bias_sd": 0.0,
                "lapse": 0.0,
            }.items()
        ),
    ),
    DenseWorld(
        "nobody checks facts",
        "what they mark as wrong is what needs no check, false claims are never marked: chosen to defeat marks",
        FAULTS["unchecked-facts"],
    ),
)


def base_run(world: DenseWorld, seed: int, place: Path, *, marks: bool, quick: bool) -> tuple[Path, list[str]]:
    """A run up to its reward model, from the supervised policy that all worlds of a seed share; its overrides too."""
    n = 1 if not quick else 10
    shared = [*(QUICK if quick else ()), "allow_ungated_reward=true", "name=base"]
    start = place.parent / f"sft-{seed}"
    if not (start / "models" / "sft").is_dir():
        shutil.rmtree(start, ignore_errors=True)
        run_once(settings_of(shared), seed=seed, directory=start, progress=LineDisplay(sys.stderr), until="sft")
    collect = [f"collect.n_tasks={N_COMPARISONS // (2 if marks else 1) // n}"]
    marked = [f"collect.n_step_marks={N_MARKED // n}"] if marks else []
    own = [*shared, *world.overrides, *collect, *marked]
    base = copied(start, place / ("base-marks" if marks else "base"))
    run_once(
        settings_of(own + weighed(marks)), seed=seed, directory=base, progress=LineDisplay(sys.stderr), until="reward"
    )
    return base, own


def copied(run: Path, to: Path) -> Path:
    """A run to go on from."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("*.lock", "report.html", "summary.json")))


def weighed(marks: bool) -> list[str]:
    """Heads are fitted where something weighs them."""
    return ["dense.weights={step: 1.0}"] if marks else []


def settings_of(overrides: Sequence[str]) -> RunConfig:
    """The demo's configuration with overrides."""
    return build(RunConfig, apply_overrides(load_yaml(DEMO), list(overrides)))


def one_seed(world: DenseWorld, seed: int, *, quick: bool = False) -> dict[str, Any]:
    """[KL, gain in gold over the supervised policy] at each strength, by how the policy was paid."""
    place = WORK / "dense" / f"{world.name.replace(' ', '-')}-{seed}".replace("'", "")
    shutil.rmtree(place, ignore_errors=True)
    section, common, _ = METHODS["ppo"]
    found: dict[str, Any] = {}
    for marks in (False, True):
        base, own = base_run(world, seed, place, marks=marks, quick=quick)
        for name in (name for name, (with_marks, _) in PAID.items() if with_marks == marks):
            found[name] = []
            for coef in KL_COEFS:
                n_iterations = 2 if quick else N_ITERATIONS
                ppo = [*common, f"n_iterations={n_iterations}", f"reward.kl_coef={coef}"]
                config = settings_of([*own, *(f"{section}.{each}" for each in ppo), *PAID[name][1]])
                target = copied(base, place / f"{name}-{coef}")
                policies = run_once(config, seed=seed, directory=target, progress=LineDisplay(sys.stderr))["policies"]
                gain = policies["ppo"]["gold"]["value"] - policies["sft"]["gold"]["value"]
                found[name].append([policies["ppo"]["kl"]["value"], gain])
                shutil.rmtree(target)
    shutil.rmtree(place)
    return found


def summary(world: DenseWorld, rows: Sequence[dict[str, Any]]) -> dict:
    """Gain at each KL, and its difference from that of outcomes, paired by seed, with 95 % t intervals over seeds."""
    systems: dict[str, Any] = {}
    for name in PAID:
        own: dict[str, Any] = {"points": [row[name] for row in rows]}
        for kl in KLS:
            at = [(gained(row[name], kl), gained(row["outcomes"], kl)) for row in rows]
            own[f"gain at {kl:g}"] = estimated([gain for gain, _ in at if gain is not None])
            own[f"− outcomes at {kl:g}"] = estimated([g - o for g, o in at if g is not None and o is not None])
        systems[name] = own
    return {"why": world.why, "seeds": len(rows), "paid": systems}


def gained(points: Sequence[Sequence[float]], kl: float) -> float | None:
    """Gain at that KL; None beyond the policy's own."""
    return gain_at([(own, gain) for own, gain in points], kl)


def estimated(values: Sequence[float]) -> list[float | None]:
    """Mean and interval, and how many seeds reach so far."""
    if not values:
        return [None, None, None, 0]
    return [*interval(np.array(values)), len(values)]


def tables(found: Mapping[str, Any]) -> str:
    """Gain in gold at equal KL."""
    worlds = {name: one["summary"] for name, one in found["worlds"].items()}
    rows = []
    for name, one in worlds.items():
        for paid, own in one["paid"].items():
            cells = [shown(own[f"gain at {kl:g}"]) for kl in KLS]
            middle = "" if paid == "outcomes" else shown(own["− outcomes at 0.5"], sign=True)
            rows.append([name, paid, *cells, middle])
    head = ["raters", "paid by", *(f"gain at {kl:g} nats" for kl in KLS), "− outcomes at 0.5"]
    n = min(one["seeds"] for one in worlds.values())
    about = (
        f"{n} seeds a world; gain in gold over the supervised policy, mean and 95 % t interval over the seeds that reach the KL "
        f"(fewer in brackets); {found['machine']['processor']}, 1 thread."
    )
    return "\n".join([about, "", *table(head, rows)])


def shown(one: Sequence[Any], *, sign: bool = False) -> str:
    """`.812 [.803, .821]`, and how many seeds where there are fewer than asked; – where none reaches so far."""
    value, low, _, n = one
    if value is None:
        return "–"
    told = short(value, sign=sign) if low is None else figure(one[:3], sign=sign)
    return told + (f" ({n})" if n < N_SEEDS else "")


def study(seeds: Sequence[int], out: Path | None, minutes: float, *, quick: bool = False) -> dict:
    """All worlds and seeds that are not there yet, until the time is over; then the summaries of what there is."""
    about = {"n_comparisons": N_COMPARISONS, "n_marked": N_MARKED, "machine": machine()}

    def figures(world: DenseWorld, seed: int) -> dict[str, Any]:
        return one_seed(world, seed, quick=quick)

    return by_seed(WORLDS, seeds, figures, summary, about=about, out=out, minutes=minutes)


def dense_row(*, quick: bool) -> dict:
    """The study as a row of `python -m bench --long`."""
    found = study([0], None, 60, quick=True) if quick else study(range(N_SEEDS), RESULTS, 600)
    return {"work": "dense", "complete": found["complete"]} | {k: v["summary"] for k, v in found["worlds"].items()}


def main() -> None:
    """Run the study and write it down."""
    options = seed_options(
        __doc__, n_seeds=N_SEEDS, quick="one seed, tiny runs: does it run?", first="the seeds after it follow"
    )
    if options.tables:
        return put_between(PAGE, MARKS, tables(json.loads(RESULTS.read_text(encoding="utf-8"))))
    seeds = [0] if options.quick else range(options.first_seed, options.first_seed + options.seeds)
    found = study(seeds, options.out, options.minutes, quick=options.quick)
    print(json.dumps({name: one["summary"] for name, one in found["worlds"].items()}, indent=1, ensure_ascii=False))
    return None


if __name__ == "__main__":
    main()
