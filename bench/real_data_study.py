"""Three sets of real feedback: does karat's reward tell right from wrong where length and n-grams do not?

    KARAT_DATA=… python bench/real_data_study.py [--quick] [--parts spans solutions numbers truth …]
    python bench/real_data_study.py --tables        # writes what is in the results into docs/real-data.md, and stops

Frozen features are computed once and kept in bench/work/real_data; a fold that is there is not run again unless the code
that made it has changed. Settings are chosen inside the training folds only: the reward's prior precision by marginal
likelihood, the n-grams' regularisation on an inner fold. `--quick` runs a corner of each part, into bench/work.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench.real import beside, report, sums, systems
from bench.real.data import (
    SYSTEMS,
    Answers,
    MarkedAnswers,
    final_answer,
    folds_of,
    inner_split,
    marked_answers,
    solutions,
    truths,
)
from bench.real.features import fits, open_encoder, text_features, token_states, write_arrays
from bench.real.measures import Figures, auroc_figures, majority_scores, pick_figures, picked, within_figures
from bench.real.spans import Tokens, nearby_grams, position_head, span_head, tokens_of
from bench.rows import machine
from bench.turns import ROOT, WORK

from karat.arithmetic import equations_in
from karat.progress import Progress, open_progress
from karat.reward.trunk import EncoderTrunk

RESULTS = ROOT / "bench" / "results" / "real_data_study.json"
SEED = 0
N_FOLDS = {"spans": 5, "solutions": 5, "numbers": 5, "truth": 3, "truth-trained": 3}
"""Of questions; three where an encoder is trained in each."""
ALL_FOLDS = range(N_FOLDS["truth-trained"])
QUICK_LIMIT = {"spans": 40, "solutions": 40, "numbers": 40, "truth": 120, "truth-trained": 120}
SOURCES = ("data", "features", "systems", "spans", "beside", "agreement", "sums")
PLAIN = ("arithmetic", "ngrams", "plain_features", "plain_numbers")
"""Modules of karat that plain features come from."""


@dataclass(frozen=True, eq=False)
class Study:
    """Where a run reads and keeps, and how it shows its progress."""

    data: Path
    """KARAT_DATA."""
    work: Path
    """Features and finished folds."""
    quick: bool
    """A corner of each part."""
    progress: Progress
    """The display."""
    folds: Sequence[int]
    """Folds in which an encoder may be trained; those that are not there are left out of the figures."""

    def limit(self, part: str) -> int | None:
        """Rows to read of a part's file; None = all."""
        return QUICK_LIMIT[part] if self.quick else None

    def n_folds(self, part: str) -> int:
        """Folds of a part."""
        return 2 if self.quick else N_FOLDS[part]


Scores = dict[str, np.ndarray]
"""System → scores of all rows; those of the test fold are kept."""
Fit = Callable[[np.ndarray, int], Scores]
"""(training rows, fold) → scores."""


def code_hash() -> str:
    """Of what makes scores: folds of another code are run again."""
    digest = hashlib.sha256()
    places = [ROOT / "bench" / "real" / f"{name}.py" for name in SOURCES]
    for path in [*places, *(ROOT / "src" / "karat" / f"{name}.py" for name in PLAIN)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def folded(study: Study, part: str, fold: np.ndarray, fit: Fit) -> tuple[Scores, float]:
    """Scores of every row by what was fitted to the other folds, and the seconds that all folds took."""
    joined: Scores = {}
    seconds = 0.0
    with study.progress.stage(part, study.n_folds(part), "folds") as bar:
        for number in range(study.n_folds(part)):
            path = study.work / f"{part}.{number}.{code_hash()}.npz"
            test = fold == number
            if not path.exists() and part == "truth-trained" and number not in study.folds:
                continue
            if not path.exists():
                began = time.process_time()
                found = {name: scores[test] for name, scores in fit(~test, number).items()}
                write_arrays(path, found | {"seconds": np.array(time.process_time() - began)})
            with np.load(path) as kept:
                for name in kept.files:
                    if name != "seconds":
                        shape = (len(fold), *kept[name].shape[1:])
                        joined.setdefault(name, np.full(shape, np.nan))[test] = kept[name]
                seconds += float(kept["seconds"])
            bar.advance()
    return joined, seconds


def answer_systems(study: Study, part: str, answers: Answers) -> tuple[Fit, int]:
    """Fits of everything that scores whole answers on frozen features, and how many answers the encoder had to cut."""
    trunk = EncoderTrunk(open_encoder(), with_prompt=True)
    features, n_cut = text_features(trunk, answers.questions, answers.texts, study.work, part, study.progress)
    phi = systems.with_length(features, answers.texts)
    lengths = systems.length_features(answers.questions, answers.texts)
    grams = [systems.grams_of(answers.texts), systems.grams_of(answers.questions)]

    def fit(train: np.ndarray, number: int) -> Scores:
        ones = np.ones(len(train))
        inner = inner_split(answers.key, train)
        ngrams, l2 = systems.ngram_scores(grams, answers.right[:, None], ones, *inner)
        study.progress.note(f"{part} fold {number}: the inner fold chose l2 = {l2:g} for the n-grams")
        found = {
            "length": systems.label_reward(systems.standardised(lengths, train), answers.right, train),
            "n-grams": ngrams[:, 0],
            "reward": systems.label_reward(phi, answers.right, train),
        }
        blocks = beside.answer_blocks(phi, answers.questions, answers.texts, train)
        found["reward beside"] = beside.label_scores(blocks, answers.right, train)
        if len(SYSTEMS) == len(set(answers.system)):
            args = (answers.right, answers.key, train)
            found["reward of comparisons"] = systems.comparison_reward(phi, *args)
            found["comparisons beside"] = beside.comparison_scores(blocks[:-1], *args)
        return found

    return fit, n_cut


AGAINST = [(one, other) for one in ("reward", "reward beside") for other in ("length", "n-grams")]


def run_solutions(study: Study) -> dict[str, Any]:
    """Right against wrong within each system, and the pick among the four solutions of a sum."""
    answers = solutions(study.data, study.limit("solutions"))
    fold = folds_of(answers.key, study.n_folds("solutions"))
    fit, n_cut = answer_systems(study, "solutions", answers)
    scores, seconds = folded(study, "solutions", fold, fit)
    labelled = {name: scores[name] for name in ("length", "n-grams", "reward", "reward beside")}
    within: dict[str, Figures] = {}
    for system in SYSTEMS:
        own = answers.system == system
        part = {name: column[own] for name, column in labelled.items()}
        within[system] = auroc_figures(part, answers.right[own], fold[own], answers.key[own], AGAINST, SEED)
    groups = np.char.add(np.char.add(answers.system, "/"), fold.astype(str))
    within["all four"] = auroc_figures(labelled, answers.right, groups, answers.key, AGAINST, SEED)
    picks = {name: picked(column, answers.right, answers.key) for name, column in scores.items()}
    majority = majority_scores([final_answer(text) for text in answers.texts], answers.key)
    picks["majority"] = picked(majority, answers.right, answers.key)
    picks["always 175b_verification"] = picked(
        (answers.system == "175b_verification").astype(float), answers.right, answers.key
    )
    picks["at random"] = picked(np.zeros(len(fold)), answers.right, answers.key)
    picks["any of the four is right"] = picked(answers.right.astype(float), answers.right, answers.key)
    rewards = ("reward", "reward of comparisons", "reward beside", "comparisons beside")
    others = ("always 175b_verification", "majority", "n-grams", "length", "at random")
    differences = [(reward, other) for reward in rewards for other in others]
    pairs = within_figures(scores, answers.right, answers.key, [(one, "n-grams") for one in rewards], SEED)
    return {
        "n_answers": len(fold), "n_questions": len(set(answers.key)), "n_right": int(answers.right.sum()),
        "right_by_system": {system: int(answers.right[answers.system == system].sum()) for system in SYSTEMS},
        "n_cut": n_cut, "seconds": round(seconds), "within_system": within, "within_question": pairs,
        "pick": pick_figures(picks, differences, SEED),
    }  # fmt: skip


def run_numbers(study: Study) -> dict[str, Any]:
    """The same sums and folds with the block `numbers`, with the four answers in view, and with the names of who wrote them."""
    answers = solutions(study.data, study.limit("numbers"))
    fold = folds_of(answers.key, study.n_folds("numbers"))
    trunk = EncoderTrunk(open_encoder(), with_prompt=True)
    features, _ = text_features(trunk, answers.questions, answers.texts, study.work, "solutions", study.progress)
    fit = sums.sum_systems(systems.with_length(features, answers.texts), answers, study.progress.note)
    scores, seconds = folded(study, "numbers", fold, fit)
    return {
        "n_answers": len(fold), "n_questions": len(set(answers.key)), "n_right": int(answers.right.sum()),
        "right_by_system": {system: int(answers.right[answers.system == system].sum()) for system in SYSTEMS},
        "seconds": round(seconds), "equations": equation_counts(answers), **sums.sum_figures(scores, answers, fold, SEED),
    }  # fmt: skip


def equation_counts(answers: Answers) -> dict[str, int]:
    """Equations that can be read in the solutions, and how many hold."""
    found = [one for text in answers.texts for one in equations_in(text)]
    return {"n": len(found), "n_holding": sum(one.holds for one in found)}


def run_truth(study: Study) -> dict[str, Any]:
    """True against not true, on questions never trained on."""
    answers = truths(study.data, study.limit("truth"))
    fold = folds_of(answers.key, study.n_folds("truth"))
    fit, n_cut = answer_systems(study, "truth", answers)
    scores, seconds = folded(study, "truth", fold, fit)
    return {
        "n_answers": len(fold), "n_questions": len(set(answers.key)), "n_right": int(answers.right.sum()),
        "n_cut": n_cut, "seconds": round(seconds),
        "auroc": auroc_figures(scores, answers.right, fold, answers.key, AGAINST, SEED),
        "within_question": within_figures(scores, answers.right, answers.key, AGAINST, SEED),
    }  # fmt: skip


def run_trained(study: Study) -> dict[str, Any]:
    """The same with an encoder whose weights are trained on the labels, beside the frozen systems on the same folds."""
    answers = truths(study.data, study.limit("truth-trained"))
    fold = folds_of(answers.key, study.n_folds("truth-trained"))
    frozen, _ = folded(study, "truth", fold, answer_systems(study, "truth", answers)[0])

    def fit(train: np.ndarray, number: int) -> Scores:
        stage = (study.progress, f"training of fold {number}")
        args = (answers.questions, answers.texts, answers.right, train, SEED, stage)
        return {"trained reward": systems.trained_reward(*args)}

    scores, seconds = folded(study, "truth-trained", fold, fit)
    if not scores:
        sys.exit("real_data_study: found no fold with a trained encoder; name some with --folds")
    done = np.isfinite(scores["trained reward"])
    together = {name: column[done] for name, column in (frozen | scores).items()}
    right, key = answers.right[done], answers.key[done]
    against = [("trained reward", other) for other in ("length", "n-grams", "reward")]
    return {
        "n_answers": int(done.sum()), "n_questions": len(set(key)), "seconds": round(seconds),
        "folds": sorted({int(number) for number in fold[done]}), "n_folds": study.n_folds("truth-trained"),
        "auroc": auroc_figures(together, right, fold[done], key, against, SEED),
        "within_question": within_figures(together, right, key, against, SEED),
    }  # fmt: skip


CONTEXTS = ("alone", "behind the question", "behind question and passages")
MIDDLE = 3
"""Of six layers, the one whose states are tried beside the last one's."""


def run_spans(study: Study) -> dict[str, Any]:
    """Tokens of marked spans against all others, by class, on questions never trained on."""
    encoder = open_encoder()
    every = marked_answers(study.data, study.limit("spans"))
    kept = [i for i, text in enumerate(every.texts) if fits(encoder, text)]
    texts = [every.texts[i] for i in kept]
    key = every.key[kept]
    states = {
        name: token_states(encoder, contexts_of(every, kept, name), texts, study.work, f"spans {name}", study.progress)
        for name in CONTEXTS
    }
    tokens = tokens_of(states["alone"].spans, [every.marks[i] for i in kept])
    features = {f"reward, {name}": np.concatenate(own.states) for name, own in states.items()}
    before = contexts_of(every, kept, CONTEXTS[-1])
    middle = token_states(encoder, before, texts, study.work, f"spans layer {MIDDLE}", study.progress, layer=MIDDLE)
    last = features[f"reward, {CONTEXTS[-1]}"]
    variants = {
        "last layer": last, f"layer {MIDDLE}": np.concatenate(middle.states),
        "last layer and its mean over the sentence": beside.with_sentence_means(last, texts, tokens),
    }  # fmt: skip
    rows = list(zip([str(one) for one in before], texts, states["alone"].spans, strict=True))
    grams = nearby_grams(texts, tokens)
    by_token = key[tokens.answer]
    fold = folds_of(key, study.n_folds("spans"))[tokens.answer]

    def fit(train: np.ndarray, number: int) -> Scores:
        ngrams, l2 = systems.ngram_scores(grams, tokens.inside, tokens.weight, *inner_split(by_token, train))
        study.progress.note(f"spans fold {number}: the inner fold chose l2 = {l2:g} for the n-grams")
        found = {"position and length": position_head(texts, tokens, train), "n-grams": ngrams}
        found |= {name: span_head(own, tokens, train) for name, own in features.items()}
        found["reward, chosen"], chosen = beside.span_chosen(variants, tokens, key, train)
        study.progress.note(f"spans fold {number}: the inner fold chose the {chosen}")
        return found | {"reward beside": beside.span_beside(rows, last, tokens, key, train)}

    scores, seconds = folded(study, "spans", fold, fit)
    return {
        "n_answers": len(kept), "n_left_out": len(every.texts) - len(kept), "n_questions": len(set(key)),
        "n_tokens": len(fold), "n_unusable_spans": every.n_unusable, "seconds": round(seconds),
        "classes": {name: class_figures(scores, tokens, k, fold, by_token) for k, name in enumerate(tokens.names)},
        "spans": {name: sum(part.name == name for i in kept for part in every.marks[i].parts) for name in tokens.names},
    }  # fmt: skip


def contexts_of(every: MarkedAnswers, kept: list[int], name: str) -> list[str | None]:
    """What stands before each answer."""
    if name == "alone":
        return [None] * len(kept)
    if name == "behind the question":
        return [every.questions[i] for i in kept]
    return [f"{every.questions[i]}\n{every.passages[i]}" for i in kept]


def class_figures(scores: Scores, tokens: Tokens, k: int, fold: np.ndarray, key: np.ndarray) -> dict[str, Any]:
    """AUROC of the tokens of one class, over all answers of a fold and within answers."""
    own = {name: column[:, k] for name, column in scores.items()}
    inside = tokens.inside[:, k]
    against = [(name, other) for name in own if "reward" in name for other in ("position and length", "n-grams")]
    return {
        "n_tokens": int(inside.sum()), "n_answers": len(set(tokens.answer[inside])),
        "auroc": auroc_figures(own, inside, fold, key, against, SEED),
        "within_answer": within_figures(own, inside, tokens.answer, against, SEED),
    }  # fmt: skip


PARTS = {
    "spans": run_spans,
    "solutions": run_solutions,
    "numbers": run_numbers,
    "truth": run_truth,
    "truth-trained": run_trained,
}


def run(parts: list[str], data: Path, *, quick: bool, folds: Sequence[int]) -> dict[str, Any]:
    """Run the parts asked for, keep each when it is done."""
    path = WORK / "real_data_study.quick.json" if quick else RESULTS
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}
    with open_progress(interval_s=15) as progress:
        study = Study(data, WORK / ("real_data.quick" if quick else "real_data"), quick, progress, folds)
        for part in parts:
            found["parts"][part] = PARTS[part](study) | {
                "code": code_hash(),
                "machine": machine(),
                "seconds_of": "processor",
            }
            found |= {"seed": SEED, "folds": N_FOLDS, "threads": torch.get_num_threads(), "versions": versions()}
            write_json(path, found)
    return found


def versions() -> dict[str, str]:
    """Of what computes."""
    return {name: importlib.metadata.version(name) for name in ("karat", "torch", "transformers", "numpy", "scipy")}


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Write the results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def real_data_row(*, quick: bool, threads: int) -> dict[str, Any]:
    """The whole study as a row of the bench."""
    if "KARAT_DATA" not in os.environ:
        sys.exit("real_data_study: KARAT_DATA is not set; expected the folder that holds gsm8k_solutions/ and others")
    torch.set_num_threads(threads)
    return {"work": "real-data"} | run(list(PARTS), Path(os.environ["KARAT_DATA"]), quick=quick, folds=ALL_FOLDS)


def main() -> None:
    """Run the parts asked for and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a corner of each part: does it run?")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--folds", nargs="*", type=int, default=ALL_FOLDS, help="train encoders in these only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="write what was found so far into the page, and stop")
    options = parser.parse_args()
    if options.tables:
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
    else:
        if "KARAT_DATA" not in os.environ:
            sys.exit(
                "real_data_study: KARAT_DATA is not set; expected the folder that holds gsm8k_solutions/ and others"
            )
        torch.set_num_threads(options.threads)
        found = run(options.parts, Path(os.environ["KARAT_DATA"]), quick=options.quick, folds=options.folds)
    text = report.tables(found)
    print(text)
    if not options.quick:
        report.write_page(text)


if __name__ == "__main__":
    main()
