"""Marks of steps or marks of outcomes, for the same time? Chains of bench/worlds/process.py, karat's own heads.

    python bench/process_study.py [--quick] [--seeds 40] [--first-seed 0] [--minutes 20]
        [--out bench/results/process_study.json]
    python bench/process_study.py --tables        # writes what is in the results into docs/process.md, and stops

A mark of a step takes 10 s; a judgement of an outcome takes as long as RATIO of them, a comparison of two outcomes twice
that. Both figures are assumed, so the study also says what other ratios give. For the same time:

    labels        one outcome a chain; `reward.last_layer`, labels
    comparisons   two chains of a question; the right one wins, where both are alike the time is lost; the same layer
    steps         marks from the first step to the one called wrong; `reward.dense.fit_marks`
    both          half of the time on labels, half on steps; the sum of both log-odds

A label's or comparison's reward reads the sum of the tokens of all steps and the last token: what a linear head on a
trunk that pools can see. The reward of steps scores a chain by P(every step right), as Lightman et al. 2023
(arXiv:2305.20050) do, chosen before the study was run; beside it stand its worst step and its mean mark, which is what
`DenseReward.rewards` pays to a policy. Truth is that no step is wrong. Held out are other questions.

Every finished seed is kept in the file; the same command goes on where it stopped.
"""

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.by_seed import by_seed, interval, seed_options
from bench.rows import machine
from bench.worlds.process import WORLDS, Chains, ProcessWorld, draw_chains, draw_directions, outcome_marks, step_marks

from karat.choice import RaterParams, VoteBatch
from karat.ratings import ordinal_logprobs
from karat.reward.dense import STEP, MarkedTokens, TokenHeads, fit_marks
from karat.reward.last_layer import Observations, comparison_observations, fit_last_layer, ordinal_derivatives
from karat.seeding import numpy_generator

RESULTS = Path(__file__).parent / "results" / "process_study.json"
PAGE = Path(__file__).parent.parent / "docs" / "process.md"
STEP_SECONDS = 10.0
RATIO, RATIOS = 3.0, (1.0, 2.0, 3.0, 6.0)
"""Time of one outcome judgement, in marks of steps."""
TIME, TIMES = 9000.0, (2250.0, 9000.0, 36000.0)
"""Annotation seconds."""
PICKS = (1, 2, 4, 8, 16, 32)
N_TEST, N_PER_QUESTION, N_SEEDS = 300, 4, 40
THRESHOLD_SCALE = 10.0
"""The constant feature behind a label's threshold: large, so that the prior on the weights leaves the threshold free."""
Weights = tuple[np.ndarray, float]
"""Of `pooled`, and the threshold."""
Scores = tuple[np.ndarray, np.ndarray]
"""Of every chain, and of every step of it."""
Found = dict[str, dict[str, float]]
"""System → figure → value."""


def pooled(chains: Chains) -> np.ndarray:
    """What a reward of whole chains reads: the sum of the tokens of all steps, scaled to noise of variance 1, and the last."""
    steps = chains.tokens[:, :-1]
    return np.concatenate([steps.sum(1) / np.sqrt(steps.shape[1]), chains.tokens[:, -1]], axis=1)


def fit_labels(chains: Chains, said: np.ndarray) -> Weights:
    """The last layer of labels: P(right) = σ(w·φ + θ)."""
    n, zeros = len(said), np.zeros(len(said))
    level, cut = said.astype(int), np.zeros(1)
    features = np.concatenate([pooled(chains), np.full((n, 1), THRESHOLD_SCALE)], axis=1)
    answers = Observations(
        a=np.arange(n),
        b=np.full(n, -1),
        slope=np.ones(n),
        offset=zeros,
        derivatives=lambda eta, rows: ordinal_derivatives(eta, level[rows], zeros[rows], cut),
    )
    w = fit_last_layer(features, [answers]).mean
    return w[:-1], THRESHOLD_SCALE * float(w[-1])


def fit_comparisons(chains: Chains, said: np.ndarray) -> Weights:
    """The last layer of comparisons between neighbours, chains 0 and 1, 2 and 3, …; those that are alike say nothing."""
    a = np.arange(0, len(said) - 1, 2)
    a = a[said[a] != said[a + 1]]
    none = torch.zeros(len(a))
    votes = VoteBatch(
        torch.from_numpy(a), torch.from_numpy(a + 1), torch.from_numpy(said[a].astype(int)), none, none.long(), 2
    )
    rater = RaterParams(torch.ones(1), torch.zeros(1), torch.zeros(1), torch.zeros(1))
    return fit_last_layer(pooled(chains), [comparison_observations(votes, rater)]).mean, 0.0


def fit_steps(world: ProcessWorld, chains: Chains, marks: np.ndarray) -> TokenHeads:
    """The step head of `karat reward` on the steps that were looked at."""
    n_tokens = chains.tokens.shape[1]
    member = torch.from_numpy(np.arange(n_tokens) // world.n_tokens == np.arange(world.n_steps)[:, None])
    read = []
    for tokens, own in zip(chains.tokens, marks, strict=True):
        seen = np.flatnonzero(own)
        read.append(
            MarkedTokens(torch.from_numpy(tokens), member[seen], torch.from_numpy(own[seen].astype(int)) + 1, {})
        )
    return fit_marks(read, [STEP])


def affordable(marks: np.ndarray, seconds: float) -> int:
    """How many chains can be marked from the first on, the last one whole."""
    spent = np.cumsum((marks != 0).sum(1)) * STEP_SECONDS
    return max(2, int(np.searchsorted(spent, seconds, side="right")))


def step_scores(world: ProcessWorld, heads: TokenHeads, chains: Chains) -> tuple[np.ndarray, np.ndarray]:
    """Score of every token [chains, tokens], and of every step [chains, steps]."""
    column = chains.tokens @ heads.weight[0].double().numpy()
    return column, column[:, :-1].reshape(len(column), world.n_steps, world.n_tokens).mean(2)


def chain_scores(heads: TokenHeads, column: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
    """Three ways to make one score of many: log-odds that every step is right, the worst step, the mean mark."""
    cut = heads.cutpoints.double()

    def logprobs(scores: np.ndarray) -> np.ndarray:
        return ordinal_logprobs(torch.from_numpy(scores.ravel()), cut).numpy().reshape(*scores.shape, 3)

    every = logprobs(steps)[..., 2].sum(1)
    probs = np.exp(logprobs(column))
    return {
        "steps": every - np.log(-np.expm1(np.minimum(every, -1e-12))),
        "steps, worst": steps.min(1),
        "steps, mean mark": (probs[..., 2] - probs[..., 0]).mean(1),
    }


def scored(test: Chains, scores: np.ndarray, steps: np.ndarray | None) -> dict[str, float]:
    """AUROC over all chains and within questions, best of n, and how often the lowest step of a wrong chain is its first wrong one."""
    n_chains = int((test.question == 0).sum())
    right, own = test.right.reshape(-1, n_chains), scores.reshape(-1, n_chains)
    figures = {"auroc": auroc(scores[None], test.right[None]), "auroc within": auroc(own, right)}
    for n in PICKS:
        if n <= n_chains:
            best = own[:, : n_chains // n * n].reshape(-1, n).argmax(1)
            figures[f"best of {n}"] = float(
                right[:, : n_chains // n * n].reshape(-1, n)[np.arange(len(best)), best].mean()
            )
    if steps is not None:
        wrong = ~test.right
        figures["localised"] = float((steps[wrong].argmin(1) == test.first_error[wrong]).mean())
    return {name: round(value, 5) for name, value in figures.items()}


def auroc(scores: np.ndarray, right: np.ndarray) -> float:
    """P(a right chain scores above a wrong one of its row), ties ½: Σ_rows won / Σ_rows pairs (Mann–Whitney)."""
    rank = stats.rankdata(scores, axis=1)
    n_right = right.sum(1)
    won = (rank * right).sum(1) - n_right * (n_right + 1) / 2
    return float(won.sum() / (n_right * (right.shape[1] - n_right)).sum())


def one_seed(world: ProcessWorld, seed: int, *, n_test: int = N_TEST, scale: float = 1.0) -> dict[str, Found]:
    """Figures of all systems for every amount of time and, at the middle one, every ratio; `scale` is of all times."""
    rng = numpy_generator(seed, "process", world.name)
    directions = draw_directions(world, rng)
    longest = scale * max(max(TIMES) / RATIO, TIME / min(RATIOS)) / STEP_SECONDS
    most = int(max(longest, scale * max(TIMES) / STEP_SECONDS / 1.5)) + 2 * N_PER_QUESTION
    train = draw_chains(world, directions, -(-most // N_PER_QUESTION), N_PER_QUESTION, rng)
    said, marks = outcome_marks(world, train, rng), step_marks(world, train, rng)
    test = draw_chains(world, directions, n_test, max(PICKS), rng)
    wide, width = pooled(test), test.tokens.shape[2]
    by_step = test.tokens[:, :-1].reshape(len(wide), world.n_steps, world.n_tokens, width).mean(2)

    def of_outcomes(fit: Callable[[Chains, np.ndarray], Weights], seconds: float, ratio: float) -> Scores:
        n = max(8, int(scale * seconds / (ratio * STEP_SECONDS)))
        w, threshold = fit(train.first(n), said[:n])
        return wide @ w + threshold, by_step @ w[:width]

    def of_steps(seconds: float) -> dict[str, Scores]:
        n = affordable(marks, scale * seconds)
        heads = fit_steps(world, train.first(n), marks[:n])
        column, steps = step_scores(world, heads, test)
        return {name: (one, steps) for name, one in chain_scores(heads, column, steps).items()}

    @functools.cache  # the main ratio is among all ratios
    def outcomes(seconds: float, ratio: float) -> Found:
        fits = {"labels": fit_labels, "comparisons": fit_comparisons}
        return {name: scored(test, *of_outcomes(fit, seconds, ratio)) for name, fit in fits.items()}

    found: dict[str, Found] = {}
    for seconds in TIMES:
        half = of_outcomes(fit_labels, seconds / 2, RATIO)[0] + of_steps(seconds / 2)["steps"][0]
        steps = {name: scored(test, *one) for name, one in of_steps(seconds).items()}
        found[f"{seconds:g} s"] = outcomes(seconds, RATIO) | steps | {"both": scored(test, half, None)}
    steps_at = found[f"{TIME:g} s"]["steps"]
    return found | {f"ratio {ratio:g}": outcomes(TIME, ratio) | {"steps": steps_at} for ratio in RATIOS}


def summary(world: ProcessWorld, rows: Sequence[dict[str, Found]]) -> dict:
    """Means over seeds and paired differences from labels, with 95 % t intervals: [value, low, high]."""
    found: dict = {"why": world.why, "seeds": len(rows)}
    for condition in rows[0]:
        systems = rows[0][condition]
        own: dict = {name: {} for name in systems}
        for name, figures in systems.items():
            for figure in figures:
                column = np.array([row[condition][name][figure] for row in rows])
                own[name][figure] = interval(column)
                if name != "labels" and figure in systems["labels"]:
                    base = np.array([row[condition]["labels"][figure] for row in rows])
                    own[name][f"{figure} − labels"] = interval(column - base)
        found[condition] = own
    return found


def study(seeds: Sequence[int], out: Path | None, minutes: float, *, n_test: int = N_TEST, scale: float = 1.0) -> dict:
    """All worlds and seeds that are not there yet, until the time is over; then the summaries of what there is."""
    about = {"step_seconds": STEP_SECONDS, "ratio": RATIO, "machine": machine()}
    figures = functools.partial(one_seed, n_test=n_test, scale=scale)
    return by_seed(WORLDS, seeds, figures, summary, about=about, out=out, minutes=minutes)


def process_row(*, quick: bool) -> dict:
    """The study as a row of `python -m bench --long`: the summaries of all worlds."""
    found = quick_study() if quick else study(range(N_SEEDS), RESULTS, 600)
    return {"work": "process", "complete": found["complete"]} | {k: v["summary"] for k, v in found["worlds"].items()}


def quick_study() -> dict:
    """Two seeds of a tenth of the time: does it run?"""
    return study([0, 1], None, 60, n_test=30, scale=0.1)


def main() -> None:
    """Run the study and write it down."""
    options = seed_options(
        __doc__,
        n_seeds=N_SEEDS,
        quick="two seeds of a tenth of the time: does it run?",
        first="it was tried on seeds from 1000 on",
    )
    if options.tables:
        from bench.process_tables import write_tables

        return write_tables(json.loads(RESULTS.read_text(encoding="utf-8")), PAGE)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    found = quick_study() if options.quick else study(seeds, options.out, options.minutes)
    print(json.dumps({name: one["summary"] for name, one in found["worlds"].items()}, indent=1, ensure_ascii=False))
    return None


if __name__ == "__main__":
    main()
