"""The figures of docs/people-models.md: kinds of people, personal rewards, competence, and a million votes.

    KARAT_DATA=… python bench/people_study.py --out bench/results/people_study.json [--quick] [--only NAME …]
    python bench/people_study.py --out bench/results/people_study.json --tables     # of competence, into the page; no more

Every part is seeded; a second run writes the same figures but for the seconds. Intervals are over seeds (Student t)
unless said otherwise.
"""

import argparse
import gzip
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as distributions

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.competence_bound import SIDE_BIAS_SD, known_scores_competence
from bench.pages import put_between
from bench.worlds.people import COMPETENCE, GROUPS, PERSONAL, CompetenceWorld, TasteWorld

from karat.feedback.quality.answer_table import AnswerTable, answer_table
from karat.feedback.quality.consensus import dawid_skene, majority, one_coin
from karat.feedback.quality.joint_posterior import Priors
from karat.feedback.quality.ordinal import Comparisons, level_probs
from karat.feedback.quality.reliability import fit_reliability, rescaled
from karat.reward.linear_votes import LinearVotes, edges, fit_linear
from karat.reward.mixtures import choose_kinds, fit_mixture
from karat.reward.personal import PersonReward, choose_questions, new_person, updated
from karat.reward.served import worst_decile
from karat.reward.user_em import choose_rank, fit_users
from karat.reward.users import UserModel, posterior_of

PAGE = Path(__file__).parent.parent / "docs" / "people-models.md"
MARKS = ("<!-- people_study, competence: begin -->", "<!-- people_study, competence: end -->")
TIE = 0.4
N_TEST, N_POOL = 300, 1000
ARGUMENT_SPREAD = 0.449
"""Spread of competence that `fit_priors` finds in the argument votes (bench/results/quality_study.json)."""
LEVELS = {"b": 0, "tie": 1, "a": 2}
Row = dict[str, float]


def over_seeds(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Mean over seeds with a 95 % t interval, by figure."""
    found: dict[str, list[float | None]] = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        half = None
        if len(values) > 1:
            half = float(distributions.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
        mean = float(values.mean())
        ends = [None, None] if half is None else [round(mean - half, 4), round(mean + half, 4)]
        found[name] = [round(mean, 4), *ends]
    return found


def votes_of(world: TasteWorld, theta: np.ndarray, rng: np.random.Generator, n_votes: int) -> LinearVotes:
    """n_votes of each person on pairs of the world."""
    user = np.repeat(np.arange(len(theta)), n_votes)
    x = rng.normal(size=(len(user), world.n_features)) * world.pair_scale
    return LinearVotes(x, said(rng, (x * theta[user]).sum(1)), 3, user, len(theta))


def said(rng: np.random.Generator, eta: np.ndarray) -> np.ndarray:
    """Levels drawn by the ordinal link."""
    return ((rng.logistic(size=len(eta)) + eta)[:, None] > edges(np.array([TIE]), 3)[1:-1]).sum(1)


def accuracies(theta: np.ndarray, own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[U, N_TEST] whether the sign of each person's fresh pairs is right."""
    x = rng.normal(size=(len(theta), N_TEST, theta.shape[1]))
    true, found = (np.einsum("uti,ui->ut", x, one) for one in (theta, np.broadcast_to(own, theta.shape)))
    return ((true > 0) == (found > 0)).astype(float)


def kinds_of_people(world: TasteWorld, seed: int) -> Row:
    """One seed: one reward, a mixture and everybody's own, by overall and worst-decile accuracy."""
    rng = np.random.default_rng(seed)
    theta = world.draw(rng, world.n_people)
    votes = votes_of(world, theta, rng, world.n_votes)
    start = time.process_time()
    rank = choose_rank(votes, [0, 1, 2, 3], rng).rank
    model = fit_users(votes, rank)
    own = model.shared + posterior_of(model, votes).mean @ model.basis
    seconds = time.process_time() - start
    kinds = choose_kinds(votes, [1, 2, 3], rng, n_starts=3).n_kinds
    mixture = fit_mixture(votes, kinds, rng, n_starts=3)
    systems = {
        "one reward": fit_linear(votes).theta,
        "mixture": mixture.membership @ mixture.theta,
        "own reward": own,
    }
    row: Row = {"rank": float(rank), "kinds": float(kinds), "cpu seconds of own rewards": seconds}
    person = np.repeat(np.arange(len(theta)), N_TEST)
    test = np.random.default_rng((seed, 1))
    for name, weights in systems.items():
        right = accuracies(theta, weights, np.random.default_rng((seed, 2)))
        row[f"{name}: overall"] = float(right.mean())
        row[f"{name}: worst decile"] = float(worst_decile(right.ravel(), person, test, n_draws=2)[0].value)  # type: ignore[arg-type]
    row["own − one: overall"] = row["own reward: overall"] - row["one reward: overall"]
    return row


def personal(world: TasteWorld, seed: int) -> Row:
    """One seed: new people answer chosen or random questions; accuracy of the reward that results."""
    rng, n_new = np.random.default_rng(seed), 30
    theta = world.draw(rng, world.n_people + n_new)
    votes = votes_of(world, theta[: world.n_people], rng, world.n_votes)
    model = fit_users(votes, choose_rank(votes, [0, 1, 2, 3], rng).rank)
    twins = np.where(rng.random(N_POOL) < world.twin_frac, 0.1, 1.0)
    pool = rng.normal(size=(N_POOL, world.n_features)) * (world.pair_scale * twins)[:, None]
    found: dict[str, list[np.ndarray]] = {}
    for taste in theta[world.n_people :]:
        level = said(rng, pool @ taste)
        random = rng.permutation(len(pool))
        people = {f"{n} random": told(model, pool[random[:n]], level[random[:n]]) for n in (0, 10, 20, 40)}
        person = new_person(model)
        open_rows = np.arange(len(pool))
        for n in range(1, 11):
            place = open_rows[choose_questions(model, person, pool[open_rows], 1)]
            person = updated(model, person, pool[place], level[place])
            open_rows = np.setdiff1d(open_rows, place)
            if n in (5, 10):
                people[f"{n} chosen"] = person
        for name, one in people.items():
            found.setdefault(name, []).append(model.shared + one.mean @ model.basis)
    new = theta[world.n_people :]
    row = {
        name: float(accuracies(new, np.stack(own), np.random.default_rng((seed, 2))).mean()) for name, own in found.items()
    }  # fmt: skip
    row["10 chosen − 40 random"] = row["10 chosen"] - row["40 random"]
    row["10 chosen − 10 random"] = row["10 chosen"] - row["10 random"]
    row["rank"] = float(model.rank)
    return row


def told(model: UserModel, x: np.ndarray, level: np.ndarray) -> PersonReward:
    """A new person after some answers."""
    return updated(model, new_person(model), x, level) if len(x) else new_person(model)


def planted_competence(world: CompetenceWorld, seed: int) -> Row:
    """One seed: Spearman correlation of fitted and planted competence, and beside it the most that votes let anybody know.

    The bound knows what was planted but for the raters: scores, cutpoints, lapses and both spreads. It is the mean of each
    rater's own posterior under the likelihood that drew her votes: no estimator has a smaller expected squared error.
    """
    rng = np.random.default_rng(seed)
    n, k = world.n_raters * world.n_votes, world.n_scores
    scores, competence = rng.normal(0, world.score_sd, k), rng.normal(1, world.competence_sd, world.n_raters)
    group = world.per_prompt or k
    base = rng.integers(0, k // group, n) * group
    i = rng.integers(0, group, n)
    a, b = base + i, base + (i + rng.integers(1, group, n)) % group
    w, side = np.arange(n) % world.n_raters, rng.choice([-1, 1], n)
    cuts = np.array([-1.5, -0.5, 0.5, 1.5]) if world.n_levels == 5 else np.array([-0.5, 0.5])
    delta = scores[a] - scores[b]
    eta = competence[w] * delta + rng.normal(0, SIDE_BIAS_SD, world.n_raters)[w] * side
    level = (level_probs(eta, cuts, 0.05).cumsum(1) < rng.random((n, 1))).sum(1)
    votes = Comparisons(a, b, level, world.n_levels, side, w, k, world.n_raters)
    fit = fit_reliability(votes, Priors(competence_sd=world.competence_sd, side_bias_sd=0.3))
    own = rescaled(fit)
    at_mode, z = ((one.competence - competence) / one.competence_sd for one in (fit, own))
    bound = known_scores_competence(votes, delta, cuts, world.competence_sd)
    return {
        "Spearman": float(distributions.spearmanr(fit.competence, competence).statistic),
        "rms of z": float(np.sqrt((z**2).mean())),
        "rms of z, at the mode": float(np.sqrt((at_mode**2).mean())),
        "error": float(np.sqrt(((own.competence - competence) ** 2).mean())),
        "error, at the mode": float(np.sqrt(((fit.competence - competence) ** 2).mean())),
        "Spearman, scores known": float(distributions.spearmanr(bound, competence).statistic),
        "error, scores known": float(np.sqrt(((bound - competence) ** 2).mean())),
    }


def real_competence(quick: bool) -> dict:
    """On the argument votes: half of a rater's votes predict her accuracy on the other half, by six predictors.

    Accuracy is agreement with the published consensus where that is no tie. Raters with 30 votes or more; each rater's
    votes are halved at random, all models see only the first halves (and all votes of raters with fewer than 30).
    """
    folder = Path(os.environ["KARAT_DATA"]) / "ukp_arguments"
    votes = [v for v in lines(folder / "votes.jsonl.gz") if v["a"] != v["b"]]
    gold = {row["pair"]: row["gold"] for row in lines(folder / "gold.jsonl.gz")}
    rows = [halves(votes, gold, seed) for seed in range(2 if quick else 5)]
    names = list(rows[0]["predictors"])
    found: dict = {"raters": rows[0]["n"], "random halvings": len(rows)}
    rng = np.random.default_rng(0)
    for name in names:
        found[name] = correlation([(row["predictors"][name], row["accuracy"]) for row in rows], rng)
    found["competence − majority"] = difference(rows, "competence of the ordinal model", "leave-one-out majority", rng)
    return found


def halves(votes: list[dict], gold: dict, seed: int) -> dict:
    """One halving: each predictor from the first half, accuracy on the second, for raters with 30 votes or more."""
    rng = np.random.default_rng(seed)
    texts: dict[str, int] = {}
    raters: dict[str, int] = {}
    a = np.array([texts.setdefault(v["a"], len(texts)) for v in votes])
    b = np.array([texts.setdefault(v["b"], len(texts)) for v in votes])
    w = np.array([raters.setdefault(v["annotator"], len(raters)) for v in votes])
    level = np.array([LEVELS[v["choice"]] for v in votes])
    counts = np.bincount(w)
    many = counts >= 30
    order = rng.permutation(len(votes))
    order = order[np.argsort(w[order], kind="stable")]
    place = np.empty(len(votes), dtype=int)
    place[order] = np.arange(len(votes)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = ~many[w] | (place < counts[w] // 2)
    truth = np.array([LEVELS.get(gold.get(v["pair"]) or "", -1) for v in votes])
    decided = (truth == 0) | (truth == 2)

    def rate(rows: np.ndarray, hit: np.ndarray) -> np.ndarray:
        n = np.bincount(w[rows], minlength=len(counts))
        return np.bincount(w[rows], hit[rows], len(counts)) / np.maximum(n, 1)

    right = (level == truth).astype(float)
    train = Comparisons(a[first], b[first], level[first], 3, np.zeros(first.sum()), w[first], len(texts), len(raters))
    fit = fit_reliability(train, Priors(competence_sd=ARGUMENT_SPREAD))
    table = answer_table(
        ((votes[i]["pair"], votes[i]["annotator"], int(level[i])) for i in np.flatnonzero(first)), domain=(0, 1, 2)
    )  # fmt: skip
    coin = one_coin(table)
    of_table = {name: i for i, name in enumerate(table.annotators)}
    coin_accuracy = np.array([coin.accuracy[of_table[name]] if name in of_table else np.nan for name in raters])
    n_right = np.bincount(w[first & decided], right[first & decided], len(counts))
    n_said = np.bincount(w[first & decided], minlength=len(counts))
    predictors = {
        "leave-one-out majority": agreement_with_others(table, raters),
        "competence of the ordinal model": fit.competence,
        "one coin": coin_accuracy,
        "her own accuracy": n_right / np.maximum(n_said, 1),
    }
    found = {name: one[many].tolist() for name, one in predictors.items()}
    accuracy = rate(~first & decided, right)[many].tolist()
    return {"n": int(many.sum()), "predictors": found, "accuracy": accuracy}


def agreement_with_others(table: AnswerTable, raters: dict[str, int]) -> np.ndarray:
    """How often each rater's answer is the most frequent one of the others on the item; ties of the others count ½."""
    k = len(table.domain)
    counts = np.bincount(table.item * k + table.code, minlength=len(table.items) * k).reshape(-1, k).astype(float)
    others = counts[table.item] - np.eye(k)[table.code]
    top = others.max(1)
    leads = others == top[:, None]
    hit = leads[np.arange(len(table)), table.code] / leads.sum(1)
    kept = top > 0
    n = np.bincount(table.annotator[kept], minlength=len(table.annotators))
    share = np.bincount(table.annotator[kept], hit[kept], len(table.annotators)) / np.maximum(n, 1)
    found = np.full(len(raters), share.mean())
    for i, name in enumerate(table.annotators):
        found[raters[name]] = share[i]
    return found


def correlation(pairs: Sequence[tuple[list[float], list[float]]], rng: np.random.Generator) -> list[float]:
    """Pearson correlation averaged over halvings, with a percentile interval over raters drawn with replacement."""
    columns = np.array(pairs)  # [halvings, 2, raters]
    value = float(np.mean([np.corrcoef(one)[0, 1] for one in columns]))
    draws = []
    for _ in range(1000):
        chosen = rng.integers(0, columns.shape[2], columns.shape[2])
        draws.append(np.mean([np.corrcoef(one[:, chosen])[0, 1] for one in columns]))
    return [round(one, 3) for one in (value, *np.quantile(draws, [0.025, 0.975]).tolist())]


def difference(rows: Sequence[dict], one: str, other: str, rng: np.random.Generator) -> list[float]:
    """Difference of two correlations with an interval over the same draws of raters."""
    target = np.array([row["accuracy"] for row in rows])
    both = [np.array([row["predictors"][name] for row in rows]) for name in (one, other)]

    def gap(chosen: np.ndarray) -> float:
        return float(
            np.mean([
                np.corrcoef(x[chosen], t[chosen])[0, 1] - np.corrcoef(y[chosen], t[chosen])[0, 1]
                for x, y, t in zip(*both, target, strict=True)
            ])
        )  # fmt: skip

    n = target.shape[1]
    draws = [gap(rng.integers(0, n, n)) for _ in range(1000)]
    return [round(v, 3) for v in (gap(np.arange(n)), *np.quantile(draws, [0.025, 0.975]).tolist())]


def million(quick: bool) -> dict:
    """Processor seconds and peak memory: Dawid–Skene and the ordinal model on a million votes (a tenth with --quick)."""
    size = 10 if quick else 1
    rng = np.random.default_rng(5)
    n_items, n_raters = 200_000 // size, 20_000 // size
    truth, item = rng.integers(0, 5, n_items), np.repeat(np.arange(n_items), 5)
    rater, accuracy = rng.integers(0, n_raters, len(item)), rng.beta(7, 3, n_raters)
    code = np.where(rng.random(len(item)) < accuracy[rater], truth[item], rng.integers(0, 5, len(item)))
    table = AnswerTable(item, rater, code, tuple(range(n_items)), tuple(map(str, range(n_raters))), tuple(range(5)))
    found: dict = {"votes": len(item)}
    start = time.process_time()
    posterior = dawid_skene(table).posterior
    found["Dawid–Skene: cpu seconds"] = round(time.process_time() - start, 1)
    found["Dawid–Skene: right"] = round(float((posterior.argmax(1) == truth).mean()), 3)
    found["Dawid–Skene: majority right"] = round(float((majority(table).winner == truth).mean()), 3)
    found["Dawid–Skene: peak GB of the process so far"] = peak_gb()
    scores, n = rng.normal(0, 1.5, n_items), 1_000_000 // size
    prompt, i = rng.integers(0, n_items // 4, n), rng.integers(0, 4, n)
    a, b = prompt * 4 + i, prompt * 4 + (i + rng.integers(1, 4, n)) % 4
    w, side = rng.integers(0, n_raters, n), rng.choice([-1, 1], n)
    competence, bias = rng.normal(1, 0.5, n_raters), rng.normal(0, 0.3, n_raters)
    eta = competence[w] * (scores[a] - scores[b]) + bias[w] * side
    level = (level_probs(eta, np.array([-0.5, 0.5]), 0.05).cumsum(1) < rng.random((n, 1))).sum(1)
    votes = Comparisons(a, b, level, 3, side, w, n_items, n_raters)
    start = time.process_time()
    fit = fit_reliability(votes)
    found["ordinal model: cpu seconds"] = round(time.process_time() - start, 1)
    spearman = distributions.spearmanr(fit.competence, competence).statistic
    found["ordinal model: Spearman of competence"] = round(float(spearman), 3)
    found["ordinal model: peak GB of the process so far"] = peak_gb()
    return found


def peak_gb() -> float:
    """Peak resident memory of this process in GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def lines(path: Path) -> list[dict]:
    """The rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def competence_table(found: dict) -> str:
    """Of the planted worlds: correlations with what was planted, and errors beside what they claim to be."""
    names = ("Spearman", "Spearman, scores known", "rms of z", "rms of z, at the mode", "error", "error, at the mode")
    rows = ["| world | seeds | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for world, one in found.items():
        figures = (one["summary"][name] for name in names)
        cells = " | ".join(f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in figures).replace("0.", ".")
        rows.append(f"| {world} | {len(one['rows'])} | {cells} |")
    return "\n".join(rows)


def main() -> None:
    """Compute the figures that are asked for and write them beside those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer seeds, smaller sizes: to see whether it runs")
    parser.add_argument("--only", nargs="*", default=None, help="names of the figures to compute; all if left out")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of the planted worlds; those in the file are kept")
    parser.add_argument("--worlds", nargs="*", default=None, help="names of the worlds; all if left out")
    parser.add_argument("--tables", action="store_true", help="write the table of competence into the page, and stop")
    parser.add_argument("--anew", action="store_true", help="planted worlds: do the seeds again that are in the file")
    options = parser.parse_args()
    if options.tables:
        found = json.loads(options.out.read_text(encoding="utf-8"))
        put_between(PAGE, MARKS, competence_table(found["competence"]))
        return
    quick = options.quick
    numbers = range(2) if quick else [int(one) for one in options.seeds.split(",")]

    def of(worlds: Sequence[Any], study: Callable[[Any, int], Row], name: str) -> dict:
        found = figures.get(name, {})
        for world in worlds:
            if options.worlds is None or world.name in options.worlds:
                rows = found.get(world.name, {}).get("rows", {})
                rows |= {str(seed): study(world, seed) for seed in numbers if options.anew or str(seed) not in rows}
                found[world.name] = {"summary": over_seeds(list(rows.values())), "rows": rows}
        return found

    out = options.out
    figures = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    every = {
        "million": lambda: million(quick),
        "kinds": lambda: of(GROUPS, kinds_of_people, "kinds"),
        "personal": lambda: of(PERSONAL, personal, "personal"),
        "competence": lambda: of(COMPETENCE, planted_competence, "competence"),
        "real competence": lambda: real_competence(quick),
    }
    for name in options.only or every:
        figures[name] = every[name]()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
