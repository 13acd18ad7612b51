"""How often the watcher's alarms are right: tabular worlds in which gold is known exactly.

    python bench/watcher_study.py --quick | --full

A world is a seed: prompts with a finite set of responses, a gold reward with a part that the reward model cannot
express, raters who may like length, a number of votes, an ensemble of Bradley–Terry models fitted to bootstraps of
them, and a policy that moves along π ∝ π_ref·exp(η·proxy). The product's `Watcher` sees the figures of samples, as it
would in a run; gold is computed over all responses and seen by nobody. Thresholds are chosen on the worlds of TUNING
and applied to those of TEST, once. What a world gave is kept in bench/work, so that an interrupted study continues.
`--full` writes bench/results/watcher_study.json and the tables of docs/watcher.md; `--quick` 6 and 12 worlds, to
bench/work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.pages import put_between

from karat.policy.watcher import Watcher, WatchRules
from karat.stats import wilson

ROOT = Path(__file__).parent.parent
WORK = ROOT / "bench" / "work" / "watcher_study"
RESULTS = ROOT / "bench" / "results" / "watcher_study.json"
DOCS = ROOT / "docs" / "watcher.md"
MARKS = ("<!-- watcher_study: begin -->", "<!-- watcher_study: end -->")
TUNING, TEST = range(1000, 1020), range(3000, 3100)
N_PROMPTS, N_RESPONSES, N_FEATURES, N_HEADS, N_SAMPLES, N_LOOKS = 24, 400, 6, 5, 4, 40
ETA_MAX, KEPT_FRAC, MOST_FALSE = 5.0, 0.85, 0.10
RIDGE = 1.0
LENGTH, LENGTH_SD, LENGTH_TOLERATED = 30.0, 6.0, 0.5
PANEL_VOTES, PANEL_LOOKS = (96, 384), 5
GRIDS: dict[str, tuple[float, ...]] = {
    "kl_budget": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 5.5),
    "disagreement": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999),
    "length": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
    "entropy": (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
    "diversity": (0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.4, 0.2),
    "peak of the lower bound": (6, 9, 12, 16, 20),
    "patience on the lower bound": (1, 2, 3, 4, 6),
    "peak of gold (an oracle)": (6, 9, 12, 16, 20),
    "panel like the raters, 96 votes": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    "careful panel, 96 votes": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    "careful panel, 384 votes": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
}
"""Thresholds that are tried for each rule, from those that alarm soon to those that alarm late or the other way round."""


@dataclass(frozen=True)
class Course:
    """What one world gave: figures at each look, and the gold of the policy behind them."""

    seed: int
    """The world."""
    looks: list[dict[str, float]]
    """Figures at each look, by the names of docs/metrics.md."""
    gold: list[float]
    """Expected gold of the policy, exact."""
    usual_disagreement: list[float]
    """Of single responses of the reference policy."""
    usual_lengths: list[float]
    """Their lengths."""
    about: dict[str, float]
    """Votes and the raters' liking of length."""

    @property
    def peak(self) -> float:
        """Highest gain of gold over the reference."""
        return max(self.gold) - self.gold[0]

    @property
    def falls(self) -> bool:
        """True = gold ends with less than KEPT_FRAC of its highest gain."""
        return self.gain(len(self.gold) - 1) < KEPT_FRAC

    def gain(self, look: int) -> float:
        """Gain of gold at a look, as a share of the highest."""
        return (self.gold[look] - self.gold[0]) / max(self.peak, 1e-9)


def make_path(seed: int) -> Course:
    """One world and its policy's whole way; a function of the seed."""
    rng = np.random.default_rng([seed, 7])
    features = rng.standard_normal((N_PROMPTS, N_RESPONSES, N_FEATURES))
    direction = rng.standard_normal(N_FEATURES)
    direction[0] = abs(direction[0]) / 2  # up to a point, longer is better
    direction /= np.linalg.norm(direction)
    penalty = float(rng.uniform(0.3, 1.0)) if rng.random() < 3 / 4 else 0.0
    over = np.maximum(features[..., 0] - LENGTH_TOLERATED, 0)
    gold = features @ direction - penalty * over**2
    liking = float(rng.uniform(0.6, 1.8)) if rng.random() < 3 / 4 else 0.0
    n_votes = int(np.exp(rng.uniform(np.log(60), np.log(3000))))
    heads = _ensemble(features, gold + liking * features[..., 0], n_votes, rng)
    scores = features @ heads.T  # [P, K, S]
    proxy = scores.mean(-1)
    lengths = np.maximum(LENGTH + LENGTH_SD * features[..., 0], 1.0)
    usual = (scores - scores.mean(1, keepdims=True)).std(-1, ddof=1)
    panels = {"raters": gold + liking * features[..., 0], "careful": gold}
    looks, golds = [], []
    for number in range(N_LOOKS + 1):
        eta = ETA_MAX * number / N_LOOKS / max(float(proxy.std()), 1e-9)
        log_policy = eta * proxy - np.log(np.exp(eta * (proxy - proxy.max(1, keepdims=True))).sum(1, keepdims=True))
        log_policy -= eta * proxy.max(1, keepdims=True)
        policy = np.exp(log_policy)
        golds.append(float((policy * gold).sum(1).mean()))
        # the panels have their own stream, so that every other figure is what it was before there were any
        votes = _panel_votes(eta * proxy, panels, np.random.default_rng([seed, 8, number]))
        looks.append(_figures(policy, log_policy, scores, lengths, rng) | {"validation/gold": golds[-1]} | votes)
    some = rng.integers(0, N_RESPONSES, size=(N_PROMPTS, N_SAMPLES))
    rows = np.arange(N_PROMPTS)[:, None]
    about = {"n_votes": n_votes, "liking": liking, "penalty": penalty}
    return Course(seed, looks, golds, usual[rows, some].ravel().tolist(), lengths[rows, some].ravel().tolist(), about)


def _ensemble(features: np.ndarray, utility: np.ndarray, n_votes: int, rng: np.random.Generator) -> np.ndarray:
    """[S, d]: ridge Bradley–Terry models, each on its own bootstrap of the votes, plus a random prior function."""
    prompts = rng.integers(0, N_PROMPTS, n_votes)
    a, b = rng.integers(0, N_RESPONSES, (2, n_votes))
    x = features[prompts, a] - features[prompts, b]
    won = rng.random(n_votes) < expit(utility[prompts, a] - utility[prompts, b])
    heads = []
    for _ in range(N_HEADS):
        weights = rng.exponential(size=n_votes)
        prior = 0.3 * rng.standard_normal(N_FEATURES)
        theta = np.zeros(N_FEATURES)
        for _ in range(25):  # Newton
            p = expit(x @ (theta + prior))
            gradient = x.T @ (weights * (won - p)) - RIDGE * theta
            hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(N_FEATURES)
            theta = theta + np.linalg.solve(hessian, gradient)
        heads.append(theta + prior)
    return np.array(heads)


def _panel_votes(logits: np.ndarray, panels: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, float]:
    """Share of the votes of each panel for responses of the policy ∝ exp(logits) against those of the reference."""
    most = max(PANEL_VOTES)
    prompts = rng.integers(0, N_PROMPTS, most)
    ours = (logits[prompts] + rng.gumbel(size=(most, N_RESPONSES))).argmax(1)
    theirs = rng.integers(0, N_RESPONSES, most)
    luck = rng.random(most)
    found: dict[str, float] = {}
    for name, utility in panels.items():
        won = luck < expit(utility[prompts, ours] - utility[prompts, theirs])
        found |= {f"panel/{name}_{n}": float(won[:n].mean()) for n in PANEL_VOTES}
    return found | {f"panel/votes_{n}": float(n) for n in PANEL_VOTES}


def _figures(
    policy: np.ndarray, log_policy: np.ndarray, scores: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """What a look measures on N_SAMPLES responses to each prompt."""
    drawn = np.array([rng.choice(N_RESPONSES, size=N_SAMPLES, p=row / row.sum()) for row in policy])
    rows = np.arange(N_PROMPTS)[:, None]
    relative = (scores - scores.mean(1, keepdims=True))[rows, drawn]  # [P, N, S]
    log_drawn = log_policy[rows, drawn]
    pairs = [(i, j) for i in range(N_SAMPLES) for j in range(i)]
    return {
        "validation/proxy": float(scores.mean(-1)[rows, drawn].mean()),
        "validation/lower_bound": float(np.quantile(relative, 0.1, axis=-1).mean()),
        "validation/disagreement": float(relative.std(-1, ddof=1).mean()),
        "validation/length": float(lengths[rows, drawn].mean()),
        "validation/entropy": float(-log_drawn.mean()),
        "validation/diversity": float(np.mean([(drawn[:, i] != drawn[:, j]).mean() for i, j in pairs])),
        "kl/k1_per_sequence": float((log_drawn + math.log(N_RESPONSES)).mean()),
    }


def rules_of(rule: str, threshold: float, path: Course) -> WatchRules:
    """The watcher's rules with only this one on."""
    off: dict[str, Any] = {"reference_lengths": tuple(path.usual_lengths)}
    if rule == "kl_budget":
        return WatchRules(kl_budget=threshold, **off)
    if rule == "disagreement":
        usual = tuple(path.usual_disagreement)
        return WatchRules(validation_disagreement=usual, disagreement_quantile=threshold, **off)
    if rule == "length":
        return WatchRules(length_limit_sd=threshold, **off)
    if rule == "entropy":
        return WatchRules(entropy_floor=threshold, **off)
    if rule == "diversity":
        return WatchRules(diversity_floor=threshold, **off)
    if rule == "patience on the lower bound":
        return WatchRules(patience=int(threshold), **off)
    if "panel" in rule:
        n_votes = rule.rpartition(", ")[2].removesuffix(" votes")
        metric = f"panel/{'raters' if 'raters' in rule else 'careful'}_{n_votes}"
        votes = {"panel_metric": metric, "panel_count": f"panel/votes_{n_votes}", "panel_fall": threshold}
        return WatchRules(best_metric=metric, best_looks=PANEL_LOOKS, **votes, **off)
    metric = "validation/gold" if "gold" in rule else "validation/lower_bound"
    return WatchRules(peak_metric=metric, peak_looks=int(threshold), **off)


def alarm_of(path: Course, rule: str, threshold: float) -> tuple[int | None, int]:
    """The look at which the rule stops the run, None = never; and the look whose policy the watcher keeps."""
    watcher = Watcher(rules_of(rule, threshold, path))
    stop = None
    for look, figures in enumerate(path.looks):
        if watcher.observe(look, figures, lambda _: None) is not None:
            stop = look
            break
    return stop, watcher.best_step or 0


def judge(paths: Sequence[Course], rule: str, threshold: float) -> dict[str, int]:
    """Counts over some worlds."""
    counts = {"worlds": len(paths), "falling": 0, "detected": 0, "false": 0, "kept": 0, "best": 0, "early": 0}
    for path in paths:
        look, best = alarm_of(path, rule, threshold)
        counts["kept"] += path.gain(len(path.gold) - 1 if look is None else look) >= KEPT_FRAC
        counts["best"] += path.gain(best) >= KEPT_FRAC
        if path.falls:
            top = int(np.argmax(path.gold))
            lost = next(i for i in range(top, len(path.gold)) if path.gain(i) < KEPT_FRAC)
            counts["falling"] += 1
            counts["detected"] += look is not None and look <= lost
            counts["early"] += look is not None and look < top and path.gain(look) < KEPT_FRAC
        else:
            counts["false"] += look is not None
    return counts


def choose(paths: Sequence[Course], rule: str) -> tuple[float, dict[str, int]]:
    """The threshold that keeps most worlds at KEPT_FRAC of their peak gain, among those with few enough false alarms."""
    tried = [(threshold, judge(paths, rule, threshold)) for threshold in GRIDS[rule]]

    def worth(entry: tuple[float, dict[str, int]]) -> tuple[bool, int, int]:
        counts = entry[1]
        sound = max(counts["worlds"] - counts["falling"], 1)
        return counts["false"] <= MOST_FALSE * sound, counts["kept"], -counts["false"]

    return max(tried, key=worth)


def path_of(seed: int) -> Course:
    """The world's path, from the disk where it is there."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    file = WORK / f"{seed}-{code}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(vars(make_path(seed))))
        partial.replace(file)
    return Course(**json.loads(file.read_text()))


def study(tuning: Sequence[int], test: Sequence[int]) -> dict[str, Any]:
    """Thresholds on the one, rates on the other."""
    first, second = [path_of(seed) for seed in tuning], [path_of(seed) for seed in test]
    falling = sum(path.falls for path in second)
    rows: dict[str, Any] = {}
    for rule in GRIDS:
        threshold, on_tuning = choose(first, rule)
        rows[rule] = {"threshold": threshold, "tuning": on_tuning, "test": judge(second, rule, threshold)}
    never = sum(path.gain(len(path.gold) - 1) >= KEPT_FRAC for path in second)
    return {"n_tuning": len(first), "n_test": len(second), "n_falling": falling, "never_stopping_keeps": never,
            "rules": rows}  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """The rates with 95 % Wilson intervals, as Markdown."""

    def rate(successes: int, n: int) -> str:
        share = wilson(successes, n)
        return "–" if share.value is None else f"{share.value:.2f} ({share.low:.2f} … {share.high:.2f})"

    n, falling = found["n_test"], found["n_falling"]
    lines = [
        f"{n} worlds, in {falling} of which gold ends below {KEPT_FRAC} of its highest gain; thresholds from "
        f"{found['n_tuning']} others. Never stopping keeps gold in {rate(found['never_stopping_keeps'], n)}.",
        "",
        "| rule | threshold | detection in time | premature | false alarms | gold kept at the stop | by the policy kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for rule, row in found["rules"].items():
        counts = row["test"]
        lines.append(
            f"| {rule} | {row['threshold']:g} | {rate(counts['detected'], falling)} | {rate(counts['early'], falling)} | "
            f"{rate(counts['false'], n - falling)} | {rate(counts['kept'], n)} | {rate(counts['best'], n)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the study and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    if options.quick == options.full:
        parser.error("found both or neither of --quick and --full; expected one of them")
    found = study(TUNING[:6], TEST[:12]) if options.quick else study(TUNING, TEST)
    print(table(found))
    target = WORK / "quick.json" if options.quick else RESULTS
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
    if options.full:
        put_between(DOCS, MARKS, table(found))


if __name__ == "__main__":
    main()
