"""The figures of docs/quality.md: agreement, consensus, reliability, drift, planning and slices, on real and planted raters.

    KARAT_DATA=… python bench/quality_study.py --out bench/results/quality_study.json

Everything is seeded; a second run writes the same bytes but for the seconds.
"""

import argparse
import csv
import gzip
import json
import os
import time
from pathlib import Path

import numpy as np
from scipy import stats

from karat.feedback.quality.agreement import agreement_table
from karat.feedback.quality.answer_table import AnswerTable, answer_table
from karat.feedback.quality.consensus import dawid_skene, majority, one_coin
from karat.feedback.quality.drift import bernoulli_reference, gold_chart, residual_chart, simulated_arl
from karat.feedback.quality.expectation import direction_probs, expected_agreement
from karat.feedback.quality.joint_posterior import Priors
from karat.feedback.quality.ordinal import Comparisons, level_probs
from karat.feedback.quality.planning import plan_votes, vote_spread
from karat.feedback.quality.reliability import fit_priors, fit_reliability
from karat.feedback.quality.slices import protected_slices

LEVELS = {"b": 0, "tie": 1, "a": 2}
VOTES_EACH = (3, 8, 16, 30, 100)


def lines(path: Path) -> list[dict]:
    """The rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def shown(estimate) -> list[float | None]:
    """Value and interval, rounded for the page."""
    return [None if one is None else round(one, 3) for one in (estimate.value, estimate.low, estimate.high)]


def real_agreement(votes: list[dict]) -> dict:
    """Coefficients of the argument votes, by item and by rater."""
    table = answer_table(((v["pair"], v["annotator"], LEVELS[v["choice"]]) for v in votes), domain=(0, 1, 2))
    names = ["agreement", "nominal alpha", "ordinal alpha", "Fleiss' kappa", "Gwet's AC1"]
    found = agreement_table(table, names, np.random.default_rng(0))
    return {name: {"by item": shown(item), "by rater": shown(rater)} for name, (item, rater) in found.items()}


def real_consensus(votes: list[dict], gold: dict[str, str | None]) -> dict:
    """How often each consensus of a few votes agrees with the published one of all of them (where it is no tie)."""
    rng = np.random.default_rng(1)
    found: dict[str, dict] = {}
    for overlap in (1, 3, 5):
        kept: dict[str, list[dict]] = {}
        for i in rng.permutation(len(votes)):
            kept.setdefault(votes[i]["pair"], []).append(votes[i])
        some = [v for pair in kept.values() for v in pair[:overlap]]
        table = answer_table(((v["pair"], v["annotator"], LEVELS[v["choice"]]) for v in some), domain=(0, 1, 2))
        truth = np.array([LEVELS.get(gold.get(str(item)) or "", -1) for item in table.items])
        decided = (truth == 0) | (truth == 2)
        views = {
            "majority": majority(table).winner,
            "one coin": one_coin(table).posterior.argmax(axis=1),
            "Dawid–Skene": dawid_skene(table).posterior.argmax(axis=1),
        }
        found[f"{overlap} votes"] = {name: round(float((v == truth)[decided].mean()), 3) for name, v in views.items()}
        found[f"{overlap} votes"]["pairs"] = int(decided.sum())
    return found


def comparisons_of(votes: list[dict]) -> Comparisons:
    """The argument votes as columns; which side was shown first is not known."""
    texts: dict[str, int] = {}
    raters: dict[str, int] = {}
    rows = [v for v in votes if v["a"] != v["b"]]
    a = np.array([texts.setdefault(v["a"], len(texts)) for v in rows])
    b = np.array([texts.setdefault(v["b"], len(texts)) for v in rows])
    w = np.array([raters.setdefault(v["annotator"], len(raters)) for v in rows])
    level = np.array([LEVELS[v["choice"]] for v in rows])
    return Comparisons(a, b, level, 3, np.zeros(len(rows)), w, len(texts), len(raters))


def real_reliability(votes: list[dict]) -> dict:
    """The ordinal model on the argument votes."""
    columns = comparisons_of(votes)
    start = time.process_time()
    fit_reliability(columns)
    seconds = time.process_time() - start
    priors, refit = fit_priors(columns)
    held = np.random.default_rng(2).random(len(columns)) < 0.2
    trained = fit_reliability(columns.select(~held), priors)
    test = columns.select(held)
    losses = {}
    for name, typical in (("each rater's own competence", False), ("every rater from the prior", True)):
        probs = direction_probs(trained, test, typical=typical)
        losses[name] = round(float(-np.log(probs[np.arange(len(test)), test.level]).mean()), 4)
    z = expected_agreement(refit, columns).z
    return {
        "votes": len(columns), "raters": columns.n_annotators, "responses": columns.n_scores,
        "cpu seconds": round(seconds, 1), "cutpoint": round(float(refit.cutpoints[3][1]), 3),
        "spread of competence": round(priors.competence_sd, 3),
        "log loss of a fifth held out": losses,
        "raters whose agreement is below expectation by 4 sd": int((z < -4).sum()),
        "raters with a competence below 0 by 2 sd": int((refit.competence + 2 * refit.competence_sd < 0).sum()),
    }  # fmt: skip


def planted_reliability() -> dict:
    """Spearman correlation of fitted and planted competence, by votes each: 100 raters, 40 responses, 5 levels."""
    found = {}
    for votes_each in VOTES_EACH:
        correlations = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            n, scores, competence = 100 * votes_each, rng.normal(0, 2, 40), rng.normal(1, 0.8, 100)
            a = rng.integers(0, 40, n)
            b, w = (a + rng.integers(1, 40, n)) % 40, np.arange(n) % 100
            probs = level_probs(competence[w] * (scores[a] - scores[b]), np.array([-1.5, -0.5, 0.5, 1.5]), 0.05)
            level = (probs.cumsum(1) < rng.random((n, 1))).sum(1)
            fit = fit_reliability(Comparisons(a, b, level, 5, np.zeros(n), w, 40, 100), Priors(competence_sd=0.8))
            correlations.append(stats.spearmanr(fit.competence, competence).statistic)
        found[str(votes_each)] = round(float(np.mean(correlations)), 3)
    return found


def many_answers() -> dict:
    """Processor seconds of the consensus of a million answers of 20,000 raters to 200,000 items, 5 values."""
    rng = np.random.default_rng(5)
    truth, item = rng.integers(0, 5, 200_000), np.repeat(np.arange(200_000), 5)
    rater, accuracy = rng.integers(0, 20_000, len(item)), rng.beta(7, 3, 20_000)
    code = np.where(rng.random(len(item)) < accuracy[rater], truth[item], rng.integers(0, 5, len(item)))
    names = tuple(map(str, range(20_000)))
    table = AnswerTable(item, rater, code, tuple(range(200_000)), names, tuple(range(5)))
    found = {"majority right": round(float((majority(table).winner == truth).mean()), 3)}
    for name, model in (("one coin", one_coin), ("Dawid–Skene", dawid_skene)):
        start = time.process_time()
        right = float((model(table).posterior.argmax(axis=1) == truth).mean())
        found |= {f"{name} right": round(right, 3), f"{name} cpu seconds": round(time.process_time() - start, 1)}
    return found


def lone_pairs() -> dict:
    """The ordinal model where every prompt has one pair: 20,000 pairs, 5 votes each, 500 raters, 5 levels."""
    rng = np.random.default_rng(6)
    scores, a = rng.normal(0, 1.5, 40_000), np.repeat(np.arange(20_000), 5)
    b, w, side = a + 20_000, rng.integers(0, 500, 100_000), rng.choice([-1, 1], 100_000)
    competence, bias = rng.normal(1, 0.6, 500), rng.normal(0, 0.4, 500)
    eta = competence[w] * (scores[a] - scores[b]) + bias[w] * side
    level = (level_probs(eta, np.array([-1.5, -0.5, 0.5, 1.5]), 0.05).cumsum(1) < rng.random((100_000, 1))).sum(1)
    start = time.process_time()
    fit = fit_reliability(Comparisons(a, b, level, 5, side, w, 40_000, 500))
    z = (fit.competence - competence) / fit.competence_sd
    return {
        "cpu seconds": round(time.process_time() - start, 1), "errors": fit.errors,
        "Spearman of competence": round(float(stats.spearmanr(fit.competence, competence).statistic), 3),
        "Spearman of side bias": round(float(stats.spearmanr(fit.side_bias, bias).statistic), 3),
        "z of competence, mean and sd": [round(float(z.mean()), 2), round(float(z.std()), 2)],
    }  # fmt: skip


def charts() -> dict:
    """Thresholds, false alarms and delays of the charts at ARL₀ = 500."""
    found = {}
    for p0, p1 in ((0.95, 0.75), (0.9, 0.6), (0.8, 0.5)):
        chart = gold_chart([], p0=p0, p1=p1, arl0=500)
        reference = float(bernoulli_reference(1 - p0, 1 - p1))
        runs = {
            name: simulated_arl(
                lambda rng, n, p=p, reference=reference: (rng.random(n) > p) - reference,
                chart.threshold - 1e-9,
                np.random.default_rng(3),
                n_runs=2000,
            )
            for name, p in (("without change", p0), ("after the change", p1))
        }
        found[f"gold {p0} → {p1}"] = {"threshold": round(chart.threshold, 3), "ARL₀ exact": round(chart.arl0, 1)} | {
            name: [round(one, 1) for one in (run.value, run.low, run.high)] for name, run in runs.items()
        }
    normal = residual_chart([0.0], arl0=500)
    found["residuals, normal, worsening by 1 sd"] = {"threshold": round(normal.threshold, 3)}
    return found


def plans(votes: list[dict], gold: dict[str, str | None]) -> dict:
    """What a win rate of the longer argument would cost, from 600 of the pairs."""
    lengths = {
        row["id"]: len(row["text"])
        for row in lines(Path(os.environ["KARAT_DATA"]) / "ukp_arguments" / "arguments.jsonl.gz")
    }
    pairs = sorted(gold)[:600]
    rows = [v for v in votes if v["pair"] in set(pairs)]
    win = [
        0.5 if v["choice"] == "tie" else float((v["choice"] == "a") == (lengths[v["a"]] > lengths[v["b"]]))
        for v in rows
    ]
    item, rater = [v["pair"] for v in rows], [v["annotator"] for v in rows]
    spread = vote_spread(win, item, rater)
    found = plan_votes(
        win,
        item,
        rater,
        0.02,
        np.random.default_rng(4),
        seconds=np.full(len(rows), 45.0),
        pay_per_hour=12.0,
        n_raters=3772,
    )
    return {
        "spread": {name: round(getattr(spread, name), 4) for name in ("rate", "between", "within", "raters")},
        "plans for ±0.02": {str(p.overlap): {"votes": shown(p.votes), "cost": shown(p.cost)} for p in found},
    }


def slices(folder: Path) -> dict:
    """How many slices of real raters are shown at k = 10."""
    with gzip.open(folder / "raters.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    raters = [{field: row[field] or None for field in ("Age", "Gender", "Region", "Country")} for row in rows]
    found = {}
    for tables in (
        [("Gender",), ("Age",)],
        [("Gender",), ("Region",), ("Country",)],
        [("Country", "Gender"), ("Region", "Age")],
    ):
        cells = protected_slices(raters, tables)
        small = sum(1 for one in cells if not one.shown)
        found[" and ".join(" × ".join(one) for one in tables)] = {"shown": len(cells) - small, "suppressed": small}
    return found


def main() -> None:
    """Compute the figures that are asked for and write them beside those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=None, help="names of the figures to compute anew; all if left out")
    options = parser.parse_args()
    data = Path(os.environ["KARAT_DATA"])
    votes = lines(data / "ukp_arguments" / "votes.jsonl.gz")
    gold = {row["pair"]: row["gold"] for row in lines(data / "ukp_arguments" / "gold.jsonl.gz")}
    every = {
        "agreement": lambda: real_agreement(votes),
        "consensus": lambda: real_consensus(votes, gold),
        "consensus of a million answers": many_answers,
        "reliability": lambda: real_reliability(votes),
        "reliability of lone pairs": lone_pairs,
        "planted competence, Spearman by votes each": planted_reliability,
        "charts": charts,
        "plans": lambda: plans(votes, gold),
        "slices": lambda: slices(data / "d3code_raters"),
    }
    out = options.out
    figures = json.loads(out.read_text(encoding="utf-8")) if options.only and out.exists() else {}
    for name in options.only or every:
        figures[name] = every[name]()
    figures = {name: figures[name] for name in every if name in figures}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
