"""Do 90 % intervals cover the population's true utility? Sandbox populations of bench/worlds/coverage.py.

    python bench/coverage_study.py [--quick] [--seeds 10] [--first-seed 0] [--only laplace,sampled]
        [--out bench/results/coverage_study.json]

The features are everything that a sandbox rater can perceive in a text, one column each, so that each rater's utility
is linear in them: what is on trial is the posterior, not the trunk. A pair's interval is that of its Δ under each
posterior: mean ± 1.645 sd, and for the sampled one the 5 % and 95 % quantiles of its draws. The target is the population's mean utility of a minus that of b (`RaterPopulation.population_utility`). Gold
is counted apart. Votes and test pairs are on different prompts.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.worlds.coverage import WORLDS, CoverageWorld

from karat.choice import RaterParams, VoteBatch, sample_comparison
from karat.feedback_columns import FeedbackParams, comparisons_alone
from karat.reward.last_layer import LastLayer, centred_raters, comparison_observations, fit_last_layer
from karat.reward.model import bootstrap_weights
from karat.reward.raters import RaterPriors, fit_raters, prior_raters
from karat.reward.sampled_layer import sample_population
from karat.reward.tastes import fit_population
from karat.sandbox import RaterPopulation, World, WorldConfig
from karat.seeding import child_seed, numpy_generator, torch_generator
from karat.stats import proportion

LEVEL, Z = 0.9, 1.6449
N_HEADS, N_ROUNDS = 10, 2
PRIORS = RaterPriors()
SAMPLED = "sampled"
POSTERIORS = ("heads", "laplace", "averaged", "population", SAMPLED)
ROUNDING = 1e-9  # where two texts have the same features, interval and target are both 0


def features(world: World, prompt, text: str) -> np.ndarray:
    """What can be perceived in a text: the parts of gold, how it sounds, and what it says besides."""
    parsed, parts, question = world.parse(prompt, text), world.gold_parts(prompt, text), world.question(prompt)
    answers = parsed.agreement != 0 or any(claim.on_question for claim in parsed.claims)
    asked = question.topic != "harm"
    return np.array([
        parts["truth"] + parts["calibration"], parts["harmlessness"], parts["brevity"], parts["fluency"],
        asked * (1.0 if answers else -1.0), asked * answers * parsed.confidence, asked * parsed.agreement,
        (parsed.n_words - 12) / 6, parsed.confidence, parsed.agreement, parsed.n_flattery,
        float(parsed.n_evasions > 0), parsed.n_fillers, parsed.n_false_asides, len(parsed.signatures),
        len(parsed.claims),
    ])  # fmt: skip


def texts_of(world: World, world_spec: CoverageWorld, prompts, rng) -> list[list[str]]:
    """Different responses to each prompt."""
    return [
        list(dict.fromkeys(world.demonstration(p, rng) for _ in range(3 * world_spec.n_samples)))[
            : world_spec.n_samples
        ]
        for p in prompts
    ]


def drawn_votes(spec: CoverageWorld, seed: int):
    """World, population, features of the judged texts and the votes, as simulated raters draw them."""
    rng = numpy_generator(seed, "coverage", spec.name, "votes")
    world = World(WorldConfig(), child_seed(seed, "coverage", "world"))
    people = RaterPopulation(world, spec.population, child_seed(seed, "coverage", "raters"))
    n_test_prompts = spec.n_test // 2
    prompts = world.prompts(spec.n_prompts + n_test_prompts, rng)
    judged, unseen = prompts[: spec.n_prompts], prompts[spec.n_prompts :]
    texts = texts_of(world, spec, judged, rng)
    flat = [(p, t) for p, group in zip(judged, texts, strict=True) for t in group]
    place = {(p.id, t): i for i, (p, t) in enumerate(flat)}
    phi = np.stack([features(world, p, t) for p, t in flat])
    annotators = people.annotators()
    rows = []
    for _ in range(spec.n_votes):
        at = int(rng.integers(len(judged)))
        if len(texts[at]) < 2:
            continue
        pair = [texts[at][i] for i in rng.choice(len(texts[at]), 2, replace=False)]
        who = int(rng.integers(len(annotators)))
        u = people.utilities(annotators[who], judged[at], pair, rng)
        rows.append(
            (place[judged[at].id, pair[0]], place[judged[at].id, pair[1]], u[0] - u[1], rng.choice([-1, 1]), who)
        )
    a, b, delta, side, who = (torch.tensor(np.array(column)) for column in zip(*rows, strict=True))
    traits = [people.rater_params(one) for one in annotators]
    raters = RaterParams(
        *(torch.tensor([getattr(t, name) for t in traits], dtype=torch.float64) for name in ("competence", "side_bias", "lapse")),
        torch.tensor([-spec.tie_width, spec.tie_width], dtype=torch.float64),
    )  # fmt: skip
    generator = torch_generator(seed, "coverage", spec.name, "levels")
    level = sample_comparison(delta, side.double(), who, raters, generator=generator)
    votes = VoteBatch(a, b, level, side.double(), who, 3)
    return world, people, phi, votes, unseen, [one.id for one in annotators]


def posteriors(
    phi: np.ndarray, votes: VoteBatch, names: list[str], seed: int, only: Collection[str]
) -> dict[str, np.ndarray | LastLayer]:
    """Each way to know how sure one is; raters fitted by turns with the head, as in training."""
    size = np.sqrt(((phi[votes.a] - phi[votes.b]) ** 2).mean(0)).clip(min=1e-9)
    phi = phi / size
    raters = prior_raters(len(names), votes.n_levels, PRIORS)
    for _ in range(N_ROUNDS):
        mode = fit_last_layer(phi, [comparison_observations(votes, raters)], tolerance=1e-4)
        scores = torch.from_numpy(phi @ mode.mean)
        raters = centred_raters(fit_raters(scores, votes, raters, PRIORS, max_steps=60))
    answers = [comparison_observations(votes, raters)]
    laplace = fit_last_layer(phi, answers, start=mode.mean)
    made = {
        "heads": lambda: _heads(phi, votes, raters, names, laplace, seed),
        "laplace": lambda: laplace,
        "averaged": lambda: fit_last_layer(phi, answers, start=laplace.mean, averaged=True, tolerance=1e-6),
        "population": lambda: fit_population(phi, answers[0], votes.annotator.numpy()).posterior,
        SAMPLED: lambda: (
            sample_population(
                phi,
                comparisons_alone(votes),
                FeedbackParams(raters.competence, raters.side_bias, raters.lapse),
                laplace,
                numpy_generator(seed, "coverage", SAMPLED),
                raters=PRIORS,
            ).draws
        ),
    }
    found = {name: make() for name, make in made.items() if name in only}
    return {name: _rescaled(one, size) for name, one in found.items()}


def _heads(
    phi: np.ndarray, votes: VoteBatch, raters: RaterParams, names: list[str], laplace: LastLayer, seed: int
) -> np.ndarray:
    """The mode of each bootstrap of the raters."""
    heads = []
    for weight in bootstrap_weights(N_HEADS, names, kind="poisson", seed=seed).numpy():
        repeats = np.repeat(np.arange(len(votes)), np.round(weight[votes.annotator.numpy()]).astype(int))
        own = [comparison_observations(votes.select(torch.from_numpy(repeats)), raters)]
        heads.append(
            fit_last_layer(phi, own, prior_precision=laplace.prior_precision, start=laplace.mean, tolerance=1e-4).mean
        )
    return np.stack(heads)


def _rescaled(posterior, size: np.ndarray):
    """The posterior of the weights of features in their own units."""
    if isinstance(posterior, LastLayer):
        covariance = posterior.covariance / np.outer(size, size)
        return dataclasses.replace(posterior, mean=posterior.mean / size, covariance=covariance)
    return posterior / size


def covered(spec: CoverageWorld, seed: int, only: Collection[str] = POSTERIORS) -> dict[str, dict[str, list[float]]]:
    """By posterior: 1 where the interval holds the target, for each test pair; and how the mean's length compares."""
    world, people, phi, votes, unseen, names = drawn_votes(spec, seed)
    rng = numpy_generator(seed, "coverage", spec.name, "test")
    delta, utility, gold = [], [], []
    for prompt in unseen:
        texts = list(dict.fromkeys(world.demonstration(prompt, rng) for _ in range(8)))[:3]
        for t in texts[1:]:
            delta.append(features(world, prompt, texts[0]) - features(world, prompt, t))
            utility.append(people.population_utility(prompt, texts[0]) - people.population_utility(prompt, t))
            gold.append(world.gold_reward(prompt, texts[0]) - world.gold_reward(prompt, t))
    d, u, g = np.array(delta), np.array(utility), np.array(gold)
    g = g * spec.population.utility_scale
    found = {}
    for name, posterior in posteriors(phi, votes, names, seed, only).items():
        if isinstance(posterior, LastLayer):
            mean, sd = d @ posterior.mean, np.sqrt(posterior.variance(d))
        else:
            mean, sd = (d @ posterior.T).mean(1), (d @ posterior.T).std(1, ddof=1)
        low, high = mean - Z * sd, mean + Z * sd
        if name == SAMPLED:
            low, high = np.quantile(d @ posterior.T, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
        found[name] = {
            "utility": ((low - ROUNDING <= u) & (u <= high + ROUNDING)).astype(float).tolist(),
            "gold": ((low - ROUNDING <= g) & (g <= high + ROUNDING)).astype(float).tolist(),
            "slope": [float(mean @ u / (u @ u))],
            "correlation": [float(np.corrcoef(mean, u)[0, 1])],
            "width": [float((high - low).mean())],
        }
    return found


def main() -> None:
    """Run the study and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed: does it run?")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="settings were tried on seeds from 1000 on")
    parser.add_argument("--only", default=",".join(POSTERIORS), help="posteriors, with commas between")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    n_seeds = 1 if options.quick else options.seeds
    seeds = list(range(options.first_seed, options.first_seed + n_seeds))
    began = time.process_time()
    worlds: dict[str, dict] = {}
    for spec in WORLDS:
        runs = [covered(spec, seed, options.only.split(",")) for seed in seeds]
        rows = {}
        for name in runs[0]:
            rows[name] = {}
            for target in ("utility", "gold"):
                inside = np.concatenate([run[name][target] for run in runs])
                seed_of = np.repeat(seeds, [len(run[name][target]) for run in runs])
                estimate = proportion(inside, seed_of, numpy_generator(0, "coverage", name, target))
                rows[name][target] = {"covered": [round(x, 3) for x in (estimate.value, estimate.low or 0, estimate.high or 0)],
                                      "n_pairs": len(inside), "n_seeds": estimate.n}  # fmt: skip
            for figure in ("slope", "correlation", "width"):
                rows[name][figure] = round(float(np.mean([run[name][figure][0] for run in runs])), 3)
        worlds[spec.name] = {"why": spec.why, "posteriors": rows}
        if options.out is not None:  # what is done stays, if the rest is killed
            part = {"level": LEVEL, "seeds": [seeds[0], seeds[-1]], "complete": False, "worlds": worlds}
            options.out.write_text(json.dumps(part, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(spec.name, json.dumps(rows), file=sys.stderr, flush=True)
    result = {"level": LEVEL, "seeds": [seeds[0], seeds[-1]], "worlds": worlds,
              "cpu_s": round(time.process_time() - began, 1)}  # fmt: skip
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
