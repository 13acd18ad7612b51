"""Tabular worlds in which gold is known exactly: the figures that a watcher sees along a policy's way, and gold.

A world is a seed: prompts with a finite set of responses, a gold reward with a part that the reward model cannot
express, raters who may like length, a number of votes, an ensemble of Bradley–Terry models fitted to bootstraps of
them, and a policy that moves along π ∝ π_ref·exp(η·proxy). What a world gave is kept in bench/work, under the hash of
this file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

ROOT = Path(__file__).parent.parent
WORK = ROOT / "bench" / "work" / "watcher_study"
N_PROMPTS, N_RESPONSES, N_FEATURES, N_HEADS, N_SAMPLES, N_LOOKS = 24, 400, 6, 5, 4, 40
ETA_MAX, KEPT_FRAC = 5.0, 0.85
RIDGE = 1.0
LENGTH, LENGTH_SD, LENGTH_TOLERATED = 30.0, 6.0, 0.5
PANEL_VOTES, MANY_VOTES = (96, 384), 1536


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
        votes = _panel_votes(eta * proxy, panels, np.random.default_rng([seed, 8, number]), PANEL_VOTES)
        votes |= _panel_votes(eta * proxy, panels, np.random.default_rng([seed, 9, number]), (MANY_VOTES,))
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


def _panel_votes(
    logits: np.ndarray, panels: Mapping[str, np.ndarray], rng: np.random.Generator, sizes: tuple[int, ...]
) -> dict[str, float]:
    """Share of the votes of each panel for responses of the policy ∝ exp(logits) against those of the reference."""
    most = max(sizes)
    prompts = rng.integers(0, N_PROMPTS, most)
    ours = (logits[prompts] + rng.gumbel(size=(most, N_RESPONSES))).argmax(1)
    theirs = rng.integers(0, N_RESPONSES, most)
    luck = rng.random(most)
    found: dict[str, float] = {}
    for name, utility in panels.items():
        won = luck < expit(utility[prompts, ours] - utility[prompts, theirs])
        found |= {f"panel/{name}_{n}": float(won[:n].mean()) for n in sizes}
    return found | {f"panel/votes_{n}": float(n) for n in sizes}


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
