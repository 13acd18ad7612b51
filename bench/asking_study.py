"""Does choosing the questions save labels? Pools of bench/worlds/asking.py, a Bayesian last layer, and four ways to ask.

    python bench/asking_study.py [--quick] [--seeds 20] [--first-seed 0] [--out bench/results/asking_study.json]

Each round asks 25 questions, fits the last layer to all answers so far, and chooses the next 25; the random arm is
counted among the questions. `margin` asks where the predicted probability is nearest to one half, the usual
"uncertainty sampling". Accuracy is taken at 50, 100, 150 … questions on other pairs of the pool.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.worlds.asking import WORLDS, AskingPool, answers, draw_pool

from karat.feedback.acquisition import PairBelief, choose_batch
from karat.reward.last_layer import LastLayer, Observations, fit_last_layer, ordinal_derivatives
from karat.seeding import numpy_generator
from karat.stats import mean_estimate, paired_difference

ROUND = 25
N_LABELS = 300
WAYS = ("random", "bald", "variance", "margin")
RANDOM_FRAC = 0.12
"""3 of 25: the smallest random arm above a tenth."""


def fit(pool: AskingPool, asked: list[int], answer: np.ndarray, start: np.ndarray | None) -> LastLayer:
    """The last layer fitted to the answers so far."""
    level = answer[asked]
    cutpoints, lapse = np.zeros(1), np.zeros(len(asked))

    def derivatives(eta: np.ndarray, rows: np.ndarray):
        return ordinal_derivatives(eta, level[rows], lapse[rows], cutpoints)

    n = len(asked)
    observations = Observations(np.array(asked), np.full(n, -1), np.ones(n), np.zeros(n), derivatives)
    return fit_last_layer(pool.features, [observations], start=start, tolerance=1e-4)


def next_questions(pool: AskingPool, belief: LastLayer | None, asked: list[int], way: str, rng) -> list[int]:
    """The next round's pairs."""
    free = np.setdiff1d(np.arange(len(pool.features)), asked)
    if belief is None or way == "random":
        return list(rng.choice(free, ROUND, replace=False))
    features = pool.features[free]
    if way == "margin":
        n_random = int(np.ceil(RANDOM_FRAC * ROUND))
        nearest = free[np.argsort(np.abs(features @ belief.mean))[: ROUND - n_random]]
        return [*nearest, *rng.choice(np.setdiff1d(free, nearest), n_random, replace=False)]
    factor = np.linalg.cholesky(belief.covariance).T @ features.T
    pairs = PairBelief(features @ belief.mean, factor)
    batch = choose_batch(pairs, ROUND, rng, strategy=way, random_frac=RANDOM_FRAC)
    return [int(free[choice.pair]) for choice in batch]


def curve(world, way: str, seed: int, n_labels: int) -> list[float]:
    """Accuracy after every round."""
    pool = draw_pool(world, numpy_generator(seed, "asking", world.name, "pool"))
    answer = answers(pool, numpy_generator(seed, "asking", world.name, "answers"))
    rng = numpy_generator(seed, "asking", world.name, "way", way)
    asked: list[int] = []
    belief, found = None, []
    while len(asked) < n_labels:
        asked += next_questions(pool, belief, asked, way, rng)
        belief = fit(pool, asked, answer, None if belief is None else belief.mean)
        right = np.sign(pool.test_features @ belief.mean) == np.sign(pool.test_delta)
        found.append(float(right.mean()))
    return found


def labels_for(mean_curve: np.ndarray, accuracy: float) -> float | None:
    """Questions at which a mean curve first reaches an accuracy, linear between rounds; None = never."""
    reached = np.flatnonzero(mean_curve >= accuracy)
    if not len(reached):
        return None
    at = int(reached[0])
    if at == 0:
        return float(ROUND)
    share = (accuracy - mean_curve[at - 1]) / (mean_curve[at] - mean_curve[at - 1])
    return round(ROUND * (at + float(share)), 1)


def plain(estimate) -> dict:
    """An estimate as JSON."""
    return {"value": round(estimate.value, 4), "low": round(estimate.low, 4), "high": round(estimate.high, 4),
            "n": estimate.n}  # fmt: skip


def study(seeds: list[int], n_labels: int, out: Path | None) -> dict:
    """All worlds, all ways, all seeds."""
    found: dict[str, dict] = {}
    for world in WORLDS:
        curves = {way: np.array([curve(world, way, seed, n_labels) for seed in seeds]) for way in WAYS}
        target, half = curves["random"][:, -1], n_labels // 2 // ROUND - 1
        rows = {}
        for way, mine in curves.items():
            rows[way] = {
                "accuracy": {str(ROUND * (i + 1)): plain(mean_estimate(mine[:, i])) for i in (1, 3, half, -1 % mine.shape[1])},
                "questions_for_random_300": labels_for(mine.mean(0), float(target.mean())),
                f"at_{n_labels // 2}_minus_random_at_{n_labels}": plain(paired_difference(mine[:, half], target)),
                f"at_{n_labels}_minus_random": plain(paired_difference(mine[:, -1], target)),
                f"at_{n_labels // 2}_minus_random": plain(paired_difference(mine[:, half], curves["random"][:, half])),
            }  # fmt: skip
        found[world.name] = {"why": world.why, "ways": rows}
        if out is not None:  # what is done stays, if the rest is killed
            out.write_text(json.dumps({"worlds": found, "complete": False}, indent=1), encoding="utf-8")
        print(world.name, {way: round(float(c[:, -1].mean()), 3) for way, c in curves.items()}, file=sys.stderr)
    return found


def main() -> None:
    """Run the study and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds: does it run?")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0, help="settings were tried on seeds from 1000 on")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    n_seeds = 2 if options.quick else options.seeds
    seeds = list(range(options.first_seed, options.first_seed + n_seeds))
    began = time.process_time()
    result = {"seeds": [seeds[0], seeds[-1]], "round": ROUND, "random_frac": RANDOM_FRAC,
              "worlds": study(seeds, N_LABELS, options.out)}  # fmt: skip
    result["cpu_s"] = round(time.process_time() - began, 1)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
