"""Power of the detectors: simulated attackers of seven kinds among simulated raters and among real ones.

    KARAT_DATA=… python bench/detector_study.py --quick | --full | --cells 'ukp_arguments|ring|0.05|30|201' …

A cell is a world, a kind of attacker, its share of all raters, its votes and a seed. The whole battery runs on it; named
by any detector counts as found. What a cell found is written at once, and a cell that is there is not run again unless
the code of the detectors has changed. `--full` writes bench/results/detector_study.json and the tables of
docs/detectors.md; `--quick` a few cells of each world, to bench/work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from detector_limits import LIMITED, arguments_limit, simulated_limit
from detector_worlds import KINDS, RING_SIZE, Arguments, Simulated, plant
from karat.feedback.detect import triggers
from karat.feedback.detect.detectors import ALPHA, MIN_VOTES, Prepared, battery
from karat.feedback.detect.evidence import VoteRecord
from karat.feedback.detect.habits import robust_habits
from karat.stats import wilson

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "detector_study.json"
DOCS = ROOT / "docs" / "detectors.md"
SHARES, VOTES = (0.01, 0.02, 0.05, 0.10), (3, 8, 16, 30, 100)
SEEDS = {"simulated": (101, 102, 103), "ukp_arguments": (101, 102, 103)}
"""Worlds that nobody looked at while the detectors were tuned (that was on seeds 0 to 2). The honest people of
ukp_arguments are the same for every seed; what is planted among them is new."""
WHOLE = {"simulated": SEEDS["simulated"], "ukp_arguments": SEEDS["ukp_arguments"][:1]}
"""Seeds of which every share is run; of the others only the target's, because a cell of real raters takes ten seconds."""
TARGET_RECALL, TARGET_SHARE, TARGET_VOTES = 0.9, 0.05, (16, 30, 100)
MODULES = ("evidence", "pool", "habits", "detectors", "collusion", "triggers", "traits", "marks", "outsourcing",
           "sketches", "sybils")  # fmt: skip
TARGETS = ("side-clicker", "flipper", "ring", "trigger")


def code_hash() -> str:
    """Of the detectors and the worlds: cells of another code are run again."""
    digest = hashlib.sha256()
    for path in [
        *(ROOT / "src/karat/feedback/detect" / f"{name}.py" for name in MODULES),
        *(ROOT / "bench" / f"detector_{name}.py" for name in ("worlds", "limits")),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cells(*, quick: bool, with_data: bool) -> list[tuple[str, str, float, int, int]]:
    """World, kind, share, votes, seed of every cell; "none" is the honest crowd alone."""
    found = []
    for world in ("simulated", "ukp_arguments") if with_data else ("simulated",):
        for seed in SEEDS[world][: 1 if quick else None]:
            found.append((world, "none", 0.0, 0, seed))
            for kind in KINDS:
                # nobody is named below MIN_VOTES: one share is enough to see that
                found += [
                    (world, kind, share, votes, seed)
                    for share in (SHARES if seed in WHOLE[world] and not quick else (TARGET_SHARE,))
                    for votes in ((16, 30) if quick else VOTES)
                    if votes >= MIN_VOTES or share == TARGET_SHARE
                ]

    # what the target is about comes first, so that a run that is cut short has all of it
    def late(cell: tuple[str, str, float, int, int]) -> tuple[bool, bool, bool]:
        _, kind, share, votes, _ = cell
        return share not in (0.0, TARGET_SHARE), kind not in ("none", *TARGETS), votes not in (0, *TARGET_VOTES[:2])

    return sorted(found, key=late)


def planted(
    world: Simulated | Arguments, kind: str, share: float, votes: int, seed: int
) -> tuple[VoteRecord, np.ndarray, np.random.Generator]:
    """The record of a cell, the sketches of its rationales, and the random numbers that are left."""
    rng = np.random.default_rng((seed, 77, KINDS.index(kind) if kind in KINDS else 99, round(1000 * share), votes))
    return *plant(world, kind, round(world.n_raters * share / (1 - share)), votes, rng), rng


def run_cell(world: Simulated | Arguments, kind: str, share: float, votes: int, seed: int) -> dict[str, Any]:
    """Plant, run the battery, count whom it names."""
    record, sketch, rng = planted(world, kind, share, votes, seed)
    n_attackers = record.n_annotators - world.n_raters
    began = time.process_time()
    flags = battery(record, rng, prepared=Prepared(world.traits, sketch))
    cpu_s = time.process_time() - began
    named = {one for flag in flags for one in flag.annotators}
    right = {one for flag in flags if flag.detector == kind for one in flag.annotators}
    honest, attackers = record.annotators[: world.n_raters], record.annotators[world.n_raters :]
    wrong = {flag.detector: set() for flag in flags}
    for flag in flags:
        wrong[flag.detector] |= set(flag.annotators) & set(honest)
    return {
        "n_attackers": n_attackers,
        "n_found": len(named & set(attackers)),
        "n_found_by_its_detector": len(right & set(attackers)),
        "n_honest": len(honest),
        "n_honest_judged": int((record.n_votes[: world.n_raters] >= MIN_VOTES).sum()),
        "n_honest_flagged": len(named & set(honest)),
        "honest_flagged_by": dict(Counter({name: len(who) for name, who in wrong.items() if who})),
        "n_votes": len(record),
        "cpu_s": round(cpu_s, 2),
    }


def key_of(cell: tuple[str, str, float, int, int]) -> str:
    """The name of a cell in the results."""
    world, kind, share, votes, seed = cell
    return f"{world}|{kind}|{share:g}|{votes}|{seed}"


def run(path: Path, folder: Path | None, *, quick: bool) -> dict[str, Any]:
    """Run what is missing."""
    settings = {"code": code_hash(), "alpha": dict(ALPHA), "quick": quick}
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("settings") != settings:
        found = {"settings": settings, "cells": {}, "limits": {}}
    worlds: dict[tuple[str, int], Simulated | Arguments] = {}

    def world_of(name: str, seed: int) -> Simulated | Arguments:
        if (name, seed) not in worlds:
            worlds.clear()
            worlds[name, seed] = Simulated(seed) if name == "simulated" else Arguments(folder)
        return worlds[name, seed]

    todo = cells(quick=quick, with_data=folder is not None)
    for number, cell in enumerate(todo):
        if key_of(cell) in found["cells"]:
            continue
        result = run_cell(world_of(cell[0], cell[4]), *cell[1:])
        found["cells"][key_of(cell)] = result
        _write(path, found)
        print(f"{number + 1}/{len(todo)} {key_of(cell)} {result}", file=sys.stderr, flush=True)
    for world, kind, votes in sorted({(c[0], c[1], c[3]) for c in todo if c[1] in LIMITED and c[3] >= MIN_VOTES}):
        key = f"{world}|{kind}|{votes}"
        if key not in found["limits"]:
            rng = np.random.default_rng((5, LIMITED.index(kind), votes))
            limit = simulated_limit if world == "simulated" else arguments_limit
            found["limits"][key] = round(limit(world_of(world, 0), kind, votes, rng), 4)
            _write(path, found)
            print(f"limit {key} {found['limits'][key]}", file=sys.stderr, flush=True)
    found["summary"] = summary(found)
    _write(path, found)
    return found


def print_cells(names: list[str], folder: Path | None) -> None:
    """Run cells by their names in the results, whatever was run before, and print what each found."""
    kept: dict[str, Simulated | Arguments] = {}
    for name in names:
        world, kind, share, votes, seed = name.split("|")
        if world == "ukp_arguments" and folder is None:
            sys.exit("detector_study: found no KARAT_DATA; the cells of ukp_arguments need its folder")
        key = world if world == "ukp_arguments" else f"{world} {seed}"
        if key not in kept:
            kept[key] = Simulated(int(seed)) if world == "simulated" else Arguments(folder)
        print(name, run_cell(kept[key], kind, float(share), int(votes), int(seed)), flush=True)


def print_outvoted(names: list[str], folder: Path | None) -> None:
    """How many usual bars the evidence reaches for a trait whose followers may be the opinion, to a factor of two."""
    for name in names:
        world_name, kind, share, votes, seed = name.split("|")
        world = Simulated(int(seed)) if world_name == "simulated" else Arguments(folder)
        record, _, _ = planted(world, kind, float(share), int(votes), int(seed))
        scene = triggers._scene(record, *robust_habits(record), world.traits)
        active, trust = np.ones(len(scene.votes.raters), bool), np.ones(record.n_annotators)
        bar, reached = np.log(2 * len(scene.names) / 0.02), 0.0
        for times in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64):
            if triggers._outvoted(record, trust, scene, active, set(), bar=times * bar) is None:
                break
            reached = times
        print(
            f"{name}: at least {reached:g} of the usual bar, below {0.25 if not reached else 2 * reached:g}", flush=True
        )


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Recall with its interval for each world, kind, share and votes, and false flags for each world."""
    recall: dict[str, Any] = {}
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for key, cell in found["cells"].items():
        world, kind, share, votes, _ = key.split("|")
        if kind != "none":
            groups.setdefault((world, kind, share, votes), []).append(cell)
    for (world, kind, share, votes), some in groups.items():
        n = sum(cell["n_attackers"] for cell in some)
        # members of a group are found together or not at all: groups are counted for the interval, not members
        units = n / (RING_SIZE if kind in ("ring", "sybil") else 1)
        estimate = wilson(sum(cell["n_found"] for cell in some) / n * units, units)
        own = sum(cell["n_found_by_its_detector"] for cell in some) / n
        recall[f"{world}|{kind}|{share}|{votes}"] = {
            "value": estimate.value, "low": estimate.low, "high": estimate.high, "n": n, "by_its_detector": own,
        }  # fmt: skip
    false_flags: dict[str, Any] = {}
    for world in sorted({key.split("|")[0] for key in found["cells"]}):
        rates = {key: cell for key, cell in found["cells"].items() if key.startswith(f"{world}|")}
        share = [cell["n_honest_flagged"] / cell["n_honest_judged"] for cell in rates.values()]
        # the same honest people stand in every cell of a seed: they are counted once
        n = sum(cell["n_honest_judged"] for key, cell in rates.items() if "|none|" in key)
        mean = wilson(float(np.mean(share)) * n, n)
        false_flags[world] = {
            "mean": mean.value, "low": mean.low, "high": mean.high, "n_honest": n, "n_cells": len(share),
            "worst_cell": max(share), "cells_above_1_percent": int((np.array(share) > 0.01).sum()),
            "without_attackers": [cell["n_honest_flagged"] for key, cell in rates.items() if "|none|" in key],
            "by_detector": dict(sum((Counter(cell["honest_flagged_by"]) for cell in rates.values()), Counter())),
        }  # fmt: skip
    return {"recall": recall, "false_flags": false_flags}


def tables(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines: list[str] = []
    summed = found["summary"]
    titles = {"simulated": "Simulated raters", "ukp_arguments": "Real raters (UKPConvArg1)"}
    for world, rate in summed["false_flags"].items():
        lines += [
            f"### {titles[world]}", "",
            f"False flags: {rate['mean']:.2%} (95 % Wilson {rate['low']:.2%} – {rate['high']:.2%}) of {rate['n_honest']:,} "
            f"honest raters with {MIN_VOTES} votes or more, mean of {rate['n_cells']} cells; the worst cell has "
            f"{rate['worst_cell']:.2%}; cells above 1 %: {rate['cells_above_1_percent']}.",
            "", "| attacker | share | " + " | ".join(f"{n} votes" for n in VOTES) + " |", "|---|---|" + "---|" * len(VOTES),
        ]  # fmt: skip
        for kind in KINDS:
            for share in SHARES:
                row = [_entry(summed["recall"].get(f"{world}|{kind}|{share:g}|{n}"), n) for n in VOTES]
                if any(f"{world}|{kind}|{share:g}|{n}" in summed["recall"] for n in VOTES):
                    lines.append(f"| {kind} | {share:.0%} | " + " | ".join(row) + " |")
            if kind in LIMITED:
                limit = [found["limits"].get(f"{world}|{kind}|{n}") for n in VOTES]
                row = ["" if one is None else f"*{one:.2f}*" for one in limit]
                if any(row):
                    lines.append("| | *limit* | " + " | ".join(row) + " |")
        lines.append("")
    return "\n".join([*lines, *_against_target(summed)])


def _how_much(found: dict[str, Any]) -> list[str]:
    """How many of the planned cells were run, and on which seeds."""
    planned = [key_of(cell) for cell in cells(quick=False, with_data=True)]
    done = set(planned) & set(found["cells"])
    said = []
    for world, seeds in SEEDS.items():
        own = {s: [key for key in planned if key.startswith(f"{world}|") and key.endswith(f"|{s}")] for s in seeds}
        counts = [f"seed {s} {len(done & set(keys))} of {len(keys)} cells" for s, keys in own.items()]
        said.append(f"{world}: " + ", ".join(counts))
    missing = "" if len(done) == len(planned) else " What was not run is left empty; `--full` goes on where it stopped."
    return [f"{len(done)} of {len(planned)} cells were run ({'; '.join(said)}).{missing}", ""]


def _against_target(summed: dict[str, Any]) -> list[str]:
    """Which cells of the target reach it, and which do not."""
    lines = ["### Against the target", "", f"Recall of {TARGET_RECALL} or more where {TARGET_SHARE:.0%} of raters attack "
             f"with {', '.join(map(str, TARGET_VOTES))} votes each, at 1 % false flags or fewer:", ""]  # fmt: skip
    for world, rate in summed["false_flags"].items():
        for kind in TARGETS:
            names = {n: f"{world}|{kind}|{TARGET_SHARE:g}|{n}" for n in TARGET_VOTES}
            known = {n: summed["recall"][name] for n, name in names.items() if name in summed["recall"]}
            missed = [f"{n} votes ({_entry(one, n)})" for n, one in known.items() if one["value"] < TARGET_RECALL]
            verdict = "reached" if not missed else "missed at " + ", ".join(missed)
            lines.append(f"- {world}, {kind}: {verdict} ({len(known)} of {len(TARGET_VOTES)} cells).")
        lines.append(
            f"- {world}, false flags: mean {rate['mean']:.2%}, {'reached' if rate['mean'] <= 0.01 else 'missed'}."
        )
    return [*lines, ""]


def _entry(recall: dict[str, Any] | None, votes: int) -> str:
    if votes < MIN_VOTES:
        return "0 by rule"
    return "" if recall is None else f"{recall['value']:.2f} ({recall['low']:.2f}–{recall['high']:.2f})"


def write_docs(text: str) -> None:
    """Put the tables between the marks in docs/detectors.md."""
    start, end = "<!-- detector_study: begin -->", "<!-- detector_study: end -->"
    page = DOCS.read_text(encoding="utf-8")
    if start not in page or end not in page:
        sys.exit(f"detector_study: found no marks {start} … {end} in {DOCS.name}; put them where the tables belong")
    before, rest = page.split(start)
    DOCS.write_text(before + start + "\n\n" + text + "\n" + end + rest.split(end)[1], encoding="utf-8")


def main() -> None:
    """Run the cells asked for and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    size.add_argument("--tables", action="store_true", help="write what was run so far into the page, and stop")
    size.add_argument("--cells", nargs="+", metavar="WORLD|KIND|SHARE|VOTES|SEED", help="print these cells, and stop")
    size.add_argument(
        "--outvoted", nargs="+", metavar="CELL", help="print how near these come to being outvoted, and stop"
    )
    arguments = parser.parse_args()
    data = os.environ.get("KARAT_DATA")
    folder = Path(data) / "ukp_arguments" if data else None
    if folder is None:
        print("detector_study: KARAT_DATA is not set; only the simulated raters are run", file=sys.stderr)
    if arguments.cells or arguments.outvoted:
        (print_cells if arguments.cells else print_outvoted)(arguments.cells or arguments.outvoted, folder)
        return
    path = ROOT / "bench" / "work" / "detector_study_quick.json" if arguments.quick else RESULTS
    if arguments.tables:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["summary"] = summary(found)
        _write(path, found)
    else:
        found = run(path, folder, quick=arguments.quick)
    text = "\n".join([*_how_much(found), tables(found)])
    print(text)
    if not arguments.quick:
        write_docs(text)


if __name__ == "__main__":
    main()
