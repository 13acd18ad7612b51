"""Marks inside answers or comparisons of whole answers, on real ones: which teaches more for the same work?

    KARAT_DATA=… python bench/real_marks_study.py [--quick]
    python bench/real_marks_study.py --tables

Of each question in fine_grained_qa one answer was marked and four were compared, six pairs. Both kinds are given for the same
growing number of questions, and held against people on questions never trained on: comparisons of whole answers, and which
tokens of an answer are marked as wrong. The data have no seconds; a marked answer is set against one, three or six comparisons.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench.real import report
from bench.real.beside import marked
from bench.real.data import folds_of, key_of, marked_answers, rows
from bench.real.features import fits, open_encoder, token_states
from bench.real.measures import plain, within_figures
from bench.real.spans import Tokens, tokens_of
from bench.rows import machine
from bench.turns import ROOT, WORK

from karat.choice import RaterParams, VoteBatch
from karat.progress import open_progress
from karat.reward.dense import MarkedTokens, TokenHeads, fit_marks
from karat.reward.last_layer import comparison_observations, fit_last_layer
from karat.reward.mark_quality import nll
from karat.reward.raters import RaterPriors, prior_raters
from karat.seeding import numpy_generator
from karat.stats import mean_estimate, paired_difference

RESULTS = ROOT / "bench" / "results" / "real_marks_study.json"
START, END = "<!-- real_marks_study: begin -->", "<!-- real_marks_study: end -->"
SEED, N_FOLDS, N_ANSWERS = 0, 5, 4
PAIRS = tuple(itertools.combinations(range(N_ANSWERS), 2))
QUESTIONS = (40, 80, 160, 310)
"""Questions that are trained on."""
PER_QUESTION = (1, 3, 6)
"""Comparisons a question, drawn at random of its six."""
RIDGES = (1.0, 10.0, 100.0)


@dataclass(frozen=True, eq=False)
class World:
    """Four answers to each question: states of their tokens, who won, and what is marked in the first."""

    states: list[np.ndarray]
    """Of each answer, question by question, [T, d]."""
    winner: np.ndarray
    """Of each question's six pairs: 2 the first, 1 a tie, 0 the second, [Q, 6]."""
    tokens: Tokens
    """Of the first answers."""
    key: np.ndarray
    """The question, [Q]."""

    @property
    def pooled(self) -> np.ndarray:
        """Mean state of each answer, and log(1 + tokens), [4·Q, d + 1]."""
        return np.array([[*own.mean(0), np.log1p(len(own))] for own in self.states], dtype=float)


def world(data: Path, work: Path, limit: int | None) -> World:
    """Questions all of whose answers fit into the encoder."""
    encoder, every = open_encoder(), marked_answers(data, limit)
    read = rows(data / "fine_grained_qa" / "feedback.jsonl.gz", limit)
    answers = [[row[f"prediction {i + 1}"] for i in range(N_ANSWERS)] for row in read]
    kept = [i for i, own in enumerate(answers) if all(fits(encoder, text) for text in own)]
    texts = [text for i in kept for text in answers[i]]
    questions = [every.questions[i] for i in kept for _ in range(N_ANSWERS)]
    with open_progress(interval_s=15) as progress:
        found = token_states(encoder, questions, texts, work, "all four", progress)
    level = {0: 1, 1: 2, 2: 0}
    winner = np.array([[level[one] for one in read[i]["preference"]] for i in kept])
    tokens = tokens_of(found.spans[::N_ANSWERS], [every.marks[i] for i in kept])
    return World(found.states, winner, tokens, np.array([key_of(every.questions[i]) for i in kept]))


def from_comparisons(one: World, train: np.ndarray, per_question: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [d + 1] of the Bayesian last layer fitted to some comparisons a question."""
    a, b, level = [], [], []
    for q in train:
        for p in rng.choice(len(PAIRS), size=per_question, replace=False):
            i, j = PAIRS[p]
            a.append(N_ANSWERS * q + i)
            b.append(N_ANSWERS * q + j)
            level.append(one.winner[q, p])
    none = torch.zeros(len(a))
    votes = VoteBatch(torch.tensor(a), torch.tensor(b), torch.tensor(level), none, none.long(), 3)
    raters = prior_raters(1, 3, RaterPriors())
    alone = RaterParams(torch.ones(1), torch.zeros(1), torch.zeros(1), raters.cutpoints)
    return fit_last_layer(one.pooled - one.pooled.mean(0), [comparison_observations(votes, alone)]).mean


def from_marks(one: World, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [K, d] and thresholds [K] of heads fitted to marks, their ridge chosen on a quarter of the answers."""
    first = np.concatenate(one.states[::N_ANSWERS])
    read = marked(first, one.tokens, train.tolist())
    n_fit = max(1, 3 * len(read) // 4)
    names, best = one.tokens.names, (np.inf, RIDGES[0])
    for ridge in RIDGES:
        heads = fit_marks(read[:n_fit], names, ridge=ridge)
        loss = sum(_loss(heads, own, names) for own in read[n_fit:])
        best = min(best, (loss, ridge))
    heads = fit_marks(read, names, ridge=best[1])
    return heads.weight.double().numpy(), heads.threshold.double().numpy()


def _loss(heads: TokenHeads, own: MarkedTokens, names: Sequence[str]) -> float:
    return nll(heads, own, names)


def scores(one: World, train: np.ndarray, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By what was given: a score of every answer, and badness of every token of the first answers."""
    first, found = np.concatenate(one.states[::N_ANSWERS]), {}
    for per in PER_QUESTION:
        w = from_comparisons(one, train, per, rng)
        found[f"{per} comparison{'s' * (per > 1)}"] = one.pooled @ w, -first @ w[:-1]
    weight, threshold = from_marks(one, train)
    p = [1 / (1 + np.exp(threshold - own @ weight.T)) for own in one.states]
    found["marks"] = -np.array([own.sum(1).mean() for own in p]), np.concatenate(p[::N_ANSWERS]).sum(1)
    return found


def run(data: Path, work: Path, *, quick: bool) -> dict[str, Any]:
    """All folds and sizes."""
    began = time.monotonic()
    one = world(data, work, 60 if quick else None)
    fold = folds_of(one.key, N_FOLDS)
    sizes = (20, 40) if quick else QUESTIONS
    found: list[dict[str, Any]] = []
    for n in sizes:
        answer: dict[str, np.ndarray] = {}
        token: dict[str, np.ndarray] = {}
        for number in range(N_FOLDS):
            rng = numpy_generator(SEED, "real_marks", n, number)
            train = rng.permutation(np.flatnonzero(fold != number))[:n]
            for name, (by_answer, by_token) in scores(one, train, rng).items():
                q, t = np.repeat(fold == number, N_ANSWERS), (fold == number)[one.tokens.answer]
                answer.setdefault(name, np.full(len(q), np.nan))[q] = by_answer[q]
                token.setdefault(name, np.full(len(t), np.nan))[t] = by_token[t]
        found.append({"questions": n, **figures(one, answer, token)})
        print(f"real_marks_study: {n} questions done", file=sys.stderr, flush=True)
    return {
        "rows": found, "n_questions": len(one.key), "n_decided": int((one.winner != 1).sum()), "seed": SEED,
        "seconds": round(time.monotonic() - began), "machine": machine(),
    }  # fmt: skip


def figures(one: World, answer: Mapping[str, np.ndarray], token: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Share of decided comparisons that a score agrees with, and AUROC of marked against other tokens of an answer."""
    right, clusters = {}, []
    for name, column in {**answer, "length": one.pooled[:, -1]}.items():
        own, clusters = [], []
        for q, p in zip(*np.nonzero(one.winner != 1), strict=True):
            i, j = PAIRS[p]
            gap = column[N_ANSWERS * q + i] - column[N_ANSWERS * q + j]
            own.append(0.5 if gap == 0 else float((gap > 0) == (one.winner[q, p] == 2)))
            clusters.append(one.key[q])
        right[name] = np.array(own)

    def draw() -> np.random.Generator:
        return numpy_generator(SEED, "real_marks", "interval")

    accuracy = {name: plain(mean_estimate(column, clusters, draw())) for name, column in right.items()}
    for name in answer:
        if name != "marks":
            accuracy[f"marks − {name}"] = plain(paired_difference(right["marks"], right[name], clusters, draw()))
    wrong = one.tokens.inside.any(1)
    against = [("marks", name) for name in token if name != "marks"]
    return {"accuracy": accuracy, "tokens": within_figures(token, wrong, one.tokens.answer, against, SEED)}


def table(found: Mapping[str, Any]) -> str:
    """Both figures, a row a number of questions."""
    names = [f"{per} comparison{'s' * (per > 1)}" for per in PER_QUESTION]
    lines = []
    for title, key in (
        ("Decided comparisons of held-out questions that the score agrees with:", "accuracy"),
        ("AUROC of marked against other tokens of one held-out answer:", "tokens"),
    ):
        head = ["questions", *(f"{name} each" for name in names), "one marked answer each",
                *(f"marks − {name}" for name in names)]  # fmt: skip
        lines += [title, "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in found["rows"]:
            own = row[key]
            cells = [report.figure(own[name]) for name in (*names, "marks")]
            cells += [report.difference(own[f"marks − {name}"]) for name in names]
            lines.append("| " + " | ".join([str(row["questions"]), *cells]) + " |")
        lines.append("")
    length = report.figure(found["rows"][-1]["accuracy"]["length"])
    return "\n".join(lines) + (
        f"\nThe longer answer won {length}. {found['n_questions']} questions, {found['n_decided']:,} decided comparisons, five folds "
        f"by question, seed {found['seed']}; {found['seconds']} s, 1 thread, {found['machine']['processor'].strip()}, shared.\n"
    )


def write_page(found: Mapping[str, Any]) -> None:
    """Put the tables between their marks in docs/real-data.md."""
    page = report.PAGE.read_text(encoding="utf-8")
    if START not in page or END not in page:
        sys.exit(
            f"real_marks_study: found no marks {START} … {END} in {report.PAGE.name}; put them where the tables belong"
        )
    before, rest = page.split(START)
    text = before + START + "\n\n" + table(found) + "\n" + END + rest.split(END)[1]
    report.PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    """Run the study, write what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few questions: does it run?")
    parser.add_argument("--tables", action="store_true", help="write the tables of what was found, and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.tables:
        write_page(json.loads(RESULTS.read_text(encoding="utf-8")))
        return
    if "KARAT_DATA" not in os.environ:
        sys.exit("real_marks_study: KARAT_DATA is not set; expected the folder that holds fine_grained_qa/")
    work = WORK / ("real_marks.quick" if options.quick else "real_marks")
    found = run(Path(os.environ["KARAT_DATA"]), work, quick=options.quick)
    if options.quick:
        print(table(found))
        return
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    write_page(found)


if __name__ == "__main__":
    main()
