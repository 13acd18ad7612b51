"""Watches a run by rules stated beforehand: keeps the best policy, and says when to stop and why.

Reads the metrics of an iteration by name and judges them by the rules of `overopt`. Knows nothing about how metrics are
computed or how a policy is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karat.errors import ConfigError
from karat.overopt import disagreement_rule, kl_budget_rule


@dataclass(frozen=True)
class WatchRules:
    """When a policy is better, and when the run must stop. A rule whose threshold is None is off."""

    best_metric: str = "validation/lower_bound"
    """The policy with the highest value of this metric is kept; iterations without it are not compared."""
    kl_metric: str = "kl/k1_per_sequence"
    """The KL held against the budget, nats per sequence."""
    kl_budget: float | None = None
    """Stop when the KL exceeds this many nats per sequence."""
    disagreement_metric: str = "validation/disagreement"
    """The reward ensemble's disagreement on the policy's responses."""
    validation_disagreement: tuple[float, ...] = ()
    """The same figure for each validation response, from before the run; () = the rule is off."""
    disagreement_quantile: float = 0.95
    """Stop when the policy's mean disagreement exceeds this quantile of theirs."""
    novelty_metric: str = "validation/novel_frac"
    """The share of the policy's responses that are unlike those judged."""
    max_novel_frac: float | None = None
    """Stop when that share exceeds this."""
    patience: int | None = None
    """Stop after so many comparisons in a row without a new best."""

    def __post_init__(self) -> None:
        for name in ("kl_budget", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"WatchRules.{name}: found {value}; expected > 0 or None")
        if not 0 < self.disagreement_quantile < 1:
            raise ConfigError(f"WatchRules.disagreement_quantile: found {self.disagreement_quantile}; expected (0, 1)")
        if self.max_novel_frac is not None and not 0 <= self.max_novel_frac <= 1:
            raise ConfigError(f"WatchRules.max_novel_frac: found {self.max_novel_frac}; expected [0, 1] or None")


class Watcher:
    """The state of watching one run: a controller of the training loop, so it survives a kill.

    A policy that breaks a rule is never kept as the best.
    """

    def __init__(self, rules: WatchRules, directory: Path | None = None) -> None:
        """directory: where the best policy is kept, as `best`; None = its iteration is recorded, nothing is saved."""
        self.rules = rules
        self.directory = directory
        self.best_step: int | None = None
        self.best_value: float | None = None
        self.n_since_best = 0
        self.stop_reason: str | None = None
        self.history: list[dict[str, float]] = []

    @property
    def best_path(self) -> Path | None:
        """Where the best policy lies, if one was saved."""
        return None if self.directory is None or self.best_step is None else self.directory / "best"

    def observe(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], object]) -> str | None:
        """Take note of one iteration.

        Args:
            step: finished iterations.    metrics: of that iteration; missing ones are not judged.
            save: writes the policy as it is now into a directory (atomically).
        Returns: the reason to stop, or None.
        """
        rules = self.rules
        watched = {
            name: float(metrics[name])
            for name in (rules.best_metric, rules.kl_metric, rules.disagreement_metric, rules.novelty_metric)
            if name in metrics
        }
        self.history.append({"step": float(step), **watched})
        self.stop_reason = _broken_rule(rules, watched)
        if self.stop_reason is None and rules.best_metric in watched:
            self._compare(step, watched[rules.best_metric], save)
        return self.stop_reason

    def _compare(self, step: int, value: float, save: Callable[[Path], object]) -> None:
        if math.isfinite(value) and (self.best_value is None or value > self.best_value):
            self.best_step, self.best_value, self.n_since_best = step, value, 0
            if self.directory is not None:
                save(self.directory / "best")
            return
        self.n_since_best += 1
        if self.rules.patience is not None and self.n_since_best >= self.rules.patience:
            best = "none yet" if self.best_value is None else f"{self.best_value:.4g} at iteration {self.best_step}"
            self.stop_reason = (
                f"{self.rules.best_metric} has not improved in {self.n_since_best} comparisons (best: {best})"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite travel as text."""
        return {
            "best_step": self.best_step,
            "best_value": self.best_value,
            "n_since_best": self.n_since_best,
            "stop_reason": self.stop_reason,
            "history": [{k: v if math.isfinite(v) else str(v) for k, v in row.items()} for row in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        self.best_step, self.best_value = state["best_step"], state["best_value"]
        self.n_since_best, self.stop_reason = state["n_since_best"], state["stop_reason"]
        self.history = [{k: float(v) for k, v in row.items()} for row in state["history"]]


def _broken_rule(rules: WatchRules, watched: Mapping[str, float]) -> str | None:
    decisions = []
    if rules.kl_budget is not None and rules.kl_metric in watched:
        decisions.append(kl_budget_rule(watched[rules.kl_metric], budget=rules.kl_budget))
    if rules.validation_disagreement and rules.disagreement_metric in watched:
        decisions.append(
            disagreement_rule(
                [watched[rules.disagreement_metric]],
                rules.validation_disagreement,
                quantile=rules.disagreement_quantile,
            )
        )
    novel = watched.get(rules.novelty_metric)
    if rules.max_novel_frac is not None and novel is not None and novel > rules.max_novel_frac:
        return f"novelty: {novel:.3g} of the responses are unlike those judged; the limit is {rules.max_novel_frac:g}"
    return next((f"{decision.rule}: {decision.reason}" for decision in decisions if decision.stop), None)
