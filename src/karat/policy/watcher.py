"""Watches a run by rules stated beforehand: keeps the best policy, and says when to stop and why.

Reads the metrics of an iteration by name and judges them by the rules of `overopt`, votes by `vote_curve`. Knows nothing
about how metrics are computed or how a policy is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scipy.special import expit

from karat.config import in_range
from karat.errors import ConfigError
from karat.overopt import (
    StopDecision,
    disagreement_rule,
    fall_rule,
    floor_rule,
    kl_budget_rule,
    length_rule,
    peak_rule,
)
from karat.policy.controllers import KLController
from karat.policy.settings import check_limits
from karat.policy.vote_curve import VoteCurve, covering, fallen_rule, likeliest, vote_curve
from karat.records import Estimate
from karat.seeding import numpy_generator

LOOKS = "looks"
"""Directory of the policies that may yet turn out to be the best, beside `best`."""


@dataclass(frozen=True)
class WatchRules:
    """When a policy is better, and when the run must stop. A rule whose threshold is None is off."""

    best_metric: str = "validation/lower_bound"
    """The policy with the highest value of this metric is kept; iterations without it are not compared."""
    best_looks: int = 1
    """What is compared is the mean of so many last values of it: one look at few votes is mostly luck."""
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
    length_metric: str = "validation/length"
    """Mean response length, tokens."""
    reference_lengths: tuple[float, ...] = ()
    """Lengths of the reference policy's responses, from before the run."""
    length_limit_sd: float | None = None
    """Alarm when the mean length has drifted by more standard deviations of theirs; None = off."""
    entropy_metric: str = "validation/entropy"
    """Mean entropy, nats a token."""
    entropy_floor: float | None = None
    """Alarm when it is below this share of its first value; None = off."""
    diversity_metric: str = "validation/diversity"
    """Probability that two samples for one prompt differ."""
    diversity_floor: float | None = None
    """Alarm when it is below this share of its first value; None = off."""
    peak_metric: str | None = None
    """The figure whose peak is fitted along the run by Gao's law; None = off."""
    peak_looks: int = 6
    """Looks before the law is fitted."""
    panel_metric: str = "validation/panel"
    """Share of fresh votes for the policy against its reference."""
    panel_count: str = "validation/panel_votes"
    """How many votes that share is of."""
    panel_fall: float | None = None
    """Alarm when the mean share of the last `best_looks` looks is so many standard errors below its highest; None = off."""
    of_top: float | None = None
    """Keep the policy that is likeliest to have this part of the highest gain over the reference, by the curve of all votes
    (`vote_curve`), instead of that with the highest `best_metric`; None = off."""
    fallen_sure: float | None = None
    """`of_top` only. Alarm when the policy has less with a probability above this; None = off."""
    run_steps: int | None = None
    """`of_top` only. Steps of the whole run, as planned: how smooth the curve is."""
    candidates: int | None = 4
    """`of_top` only. Policies that stay on disk, because later votes may say that one of them is the best; None = all."""
    on_alarm: Literal["stop", "raise_kl", "ask"] = "stop"
    """What an alarm does: end the run; raise β; or end it and ask for fresh labels of what the policy writes now."""
    kl_factor: float = 2.0
    """raise_kl only: β is multiplied by this."""
    rest_looks: int = 2
    """raise_kl only: looks after a raise before an alarm counts again."""
    most_raises: int = 3
    """raise_kl only: the next alarm after so many raises ends the run."""

    def __post_init__(self) -> None:
        check_limits("WatchRules", self, never="None")
        in_range(
            "WatchRules", self, 0, math.inf, "patience", "peak_looks", "best_looks", "panel_fall", "candidates",
            "run_steps", open_ends=True,
        )  # fmt: skip
        in_range("WatchRules", self, 0, 1, "of_top", "fallen_sure", open_ends=True, hint=" or None")
        if self.of_top is not None and self.run_steps is None:
            raise ConfigError("WatchRules.of_top: found no run_steps; expected the steps of the whole run beside it")
        if self.length_limit_sd is not None and len(self.reference_lengths) < 2:
            raise ConfigError("WatchRules.length_limit_sd: found no reference_lengths; expected at least two")

    @property
    def watched(self) -> tuple[str, ...]:
        """The metrics that are read, each once."""
        names = (
            self.best_metric, self.kl_metric, self.disagreement_metric, self.length_metric, self.entropy_metric,
            self.diversity_metric, self.novelty_metric, self.panel_metric, self.panel_count,
            *([self.peak_metric] if self.peak_metric else []),
        )  # fmt: skip
        return tuple(dict.fromkeys(names))


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
        self.looks: list[int] = []
        """`of_top`: steps whose policies lie on disk, the best among them."""
        self.stop_reason: str | None = None
        self.history: list[dict[str, float]] = []
        self.alarms: list[dict[str, Any]] = []
        self.kl: KLController | None = None
        """Whose β an alarm raises; the recipe sets it."""
        self._written: list[list[int]] = []
        """`looks` of the last two checkpoints: a run that goes on from one of them needs those policies."""

    @property
    def best_path(self) -> Path | None:
        """Where the best policy lies, if one was saved."""
        if self.directory is None or self.best_step is None:
            return None
        return self.directory / "best" if self.rules.of_top is None else self._place(self.directory, self.best_step)

    def observe(
        self,
        step: int,
        metrics: Mapping[str, float],
        save: Callable[[Path], object],
        keep_only: Callable[[Path, Sequence[str]], object] | None = None,
    ) -> str | None:
        """Take note of one iteration.

        Args:
            step: finished iterations; at 0 nothing is done about an alarm.
            metrics: of that iteration; missing ones are not judged.
            save: writes the policy as it is now into a directory (atomically).
            keep_only: removes all of a directory but what has these names; None = nothing is removed.
        Returns: the reason to stop, or None.
        """
        rules = self.rules
        watched = {name: float(metrics[name]) for name in rules.watched if name in metrics}
        self.history.append({"step": float(step), **watched})
        voted = self._curve() if rules.of_top is not None and watched.get(rules.panel_count, 0) >= 1 else None
        broken = next((decision for decision in self._decisions(watched, voted) if decision.stop), None)
        # before the first step nothing has been optimised that could be stopped or held back
        self.stop_reason = self._act(step, broken) if broken is not None and step else None
        if voted is not None:
            self._look_back(step, voted, save, sound=broken is None)
            if self.directory is not None and keep_only is not None:
                needed = {place for steps in (self.looks, *self._written) for place in steps}
                keep_only(self.directory / LOOKS, [str(place) for place in sorted(needed)])
        elif rules.of_top is None and broken is None and rules.best_metric in watched:
            self._compare(step, self._recent(rules.best_metric), save)
        return self.stop_reason

    def _decisions(self, watched: Mapping[str, float], voted: tuple[VoteCurve, list[int]] | None) -> list[StopDecision]:
        """What each rule that is on says of this iteration; the KL budget comes first."""
        rules, found = self.rules, []
        if rules.kl_budget is not None and rules.kl_metric in watched:
            found.append(kl_budget_rule(watched[rules.kl_metric], budget=rules.kl_budget))
        if rules.validation_disagreement and rules.disagreement_metric in watched:
            sds, usual = [watched[rules.disagreement_metric]], rules.validation_disagreement
            found.append(disagreement_rule(sds, usual, quantile=rules.disagreement_quantile))
        if rules.max_novel_frac is not None and rules.novelty_metric in watched:
            found.append(_novelty(watched[rules.novelty_metric], rules.max_novel_frac))
        if rules.length_limit_sd is not None and rules.length_metric in watched:
            lengths = [watched[rules.length_metric]]
            found.append(length_rule(lengths, rules.reference_lengths, limit_sd=rules.length_limit_sd))
        for name, metric, floor in (
            ("entropy", rules.entropy_metric, rules.entropy_floor),
            ("diversity", rules.diversity_metric, rules.diversity_floor),
        ):
            first = next((row[metric] for row in self.history if metric in row), None)
            if floor is not None and metric in watched and first is not None:
                found.append(floor_rule(name, watched[metric], first, floor=floor))
        if rules.panel_fall is not None and rules.panel_metric in watched:
            asked = [row for row in self.history if row.get(rules.panel_count, 0) >= 1]
            shares, counts = ([row[name] for row in asked] for name in (rules.panel_metric, rules.panel_count))
            found += [fall_rule(shares, counts, looks=rules.best_looks, z=rules.panel_fall)] if asked else []
        if voted is not None and rules.of_top is not None and rules.fallen_sure is not None:
            found.append(fallen_rule(voted[0].near_top(rules.of_top), of_top=rules.of_top, sure=rules.fallen_sure))
        if rules.peak_metric is not None and rules.peak_metric in watched:
            found += [fitted[0]] if (fitted := self._fitted()) is not None else []
        return found

    @property
    def peak(self) -> Estimate | None:
        """The peak √KL of Gao's law fitted to all looks; None where that rule is off or nothing was looked at."""
        fitted = self._fitted()
        return None if fitted is None else fitted[1]

    def _fitted(self) -> tuple[StopDecision, Estimate] | None:
        """What Gao's law, fitted to all looks, says; the untrained policy counts as KL 0."""
        metric = self.rules.peak_metric
        rows = [row for row in self.history if metric in row and math.isfinite(row[metric])]
        kl = [row.get(self.rules.kl_metric, 0.0) for row in rows]
        if metric is None or not rows or not all(map(math.isfinite, kl)):
            return None
        return peak_rule(kl, [row[metric] for row in rows], n_least=self.rules.peak_looks)

    def _act(self, step: int, broken: StopDecision) -> str | None:
        """What an alarm does; returns the reason to stop, or None where β was raised instead."""
        rules, said = self.rules, f"{broken.rule}: {broken.reason}"
        raises = [alarm for alarm in self.alarms if alarm["action"] == "raise_kl"]
        if rules.on_alarm == "raise_kl" and self.kl is not None and broken.rule != "kl_budget":
            last = max((alarm["step"] for alarm in raises), default=None)
            looks = sum(rules.best_metric in row and row["step"] > (last or 0) for row in self.history)
            if last is not None and looks <= rules.rest_looks:
                return None
            if len(raises) < rules.most_raises and self.kl.coef > 0:
                self.kl.coef *= rules.kl_factor
                self.alarms.append({"step": step, "action": "raise_kl", "reason": said, "kl_coef": self.kl.coef})
                return None
        action = "ask" if rules.on_alarm == "ask" else "stop"
        self.alarms.append({"step": step, "action": action, "reason": said})
        return f"fresh labels wanted: {said}" if action == "ask" else said

    def _recent(self, metric: str) -> float:
        """Mean of the last `best_looks` values of a figure."""
        values = [row[metric] for row in self.history if metric in row][-self.rules.best_looks :]
        return sum(values) / len(values)

    def _curve(self) -> tuple[VoteCurve, list[int]]:
        """The curve of all votes so far, with the steps of its rows; writes down what it says of this look."""
        rules = self.rules
        asked = [row for row in self.history if row["step"] > 0 and row.get(rules.panel_count, 0) >= 1]
        steps, shares, counts = (
            [row[name] for row in asked] for name in ("step", rules.panel_metric, rules.panel_count)
        )
        # the same draws at every look, so that a curve that votes do not move is the same curve
        curve = vote_curve(
            steps, shares, counts, run_steps=rules.run_steps or 1, rng=numpy_generator(0, "watcher", "curve")
        )
        near = curve.near_top(rules.of_top or 1.0)[-1]
        self.history[-1] |= {"curve/share": float(expit(curve.mean[-1])), "curve/near_top": float(near.mean())}
        return curve, [0, *map(int, steps)]

    def _look_back(
        self, step: int, voted: tuple[VoteCurve, list[int]], save: Callable[[Path], object], *, sound: bool
    ) -> None:
        """Choose anew among the policies on disk and, where it broke no rule, this one; later votes judge earlier looks too."""
        there = [*self.looks, step] if sound else self.looks
        if not there:
            return
        curve, steps = voted
        # compared with one another: a look that nobody can go back to is no reason against those that are left
        near = curve.near_top(self.rules.of_top or 1.0, [steps.index(one) for one in there])
        stay = covering(near, self.rules.candidates or len(there))
        self.looks = [there[row] for row in stay]
        if step in self.looks and self.directory is not None:
            save(self._place(self.directory, step))
        best = likeliest(near, stay)
        self.n_since_best = 0 if there[best] == step else self.n_since_best + 1
        self.best_step, self.best_value = there[best], float(near[best].mean())
        self._impatient()

    @staticmethod
    def _place(directory: Path, step: int) -> Path:
        return directory / LOOKS / str(step)

    def _compare(self, step: int, value: float, save: Callable[[Path], object]) -> None:
        if math.isfinite(value) and (self.best_value is None or value > self.best_value):
            self.best_step, self.best_value, self.n_since_best = step, value, 0
            if self.directory is not None:
                save(self.directory / "best")
            return
        self.n_since_best += 1
        self._impatient()

    def _impatient(self) -> None:
        if self.rules.patience is not None and self.n_since_best >= self.rules.patience:
            best = "none yet" if self.best_value is None else f"{self.best_value:.4g} at iteration {self.best_step}"
            self.stop_reason = (
                f"{self.rules.best_metric} has not improved in {self.n_since_best} comparisons (best: {best})"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite travel as text."""
        self._written = [*self._written, list(self.looks)][-2:]
        return {
            "best_step": self.best_step,
            "best_value": self.best_value,
            "n_since_best": self.n_since_best,
            "looks": self.looks,
            "stop_reason": self.stop_reason,
            "alarms": self.alarms,
            "history": [{k: v if math.isfinite(v) else str(v) for k, v in row.items()} for row in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        self.best_step, self.best_value = state["best_step"], state["best_value"]
        self.n_since_best, self.stop_reason = state["n_since_best"], state["stop_reason"]
        self.looks = list(state.get("looks", ()))
        self._written = [list(self.looks)]
        self.alarms = [dict(alarm) for alarm in state.get("alarms", ())]
        self.history = [{k: float(v) for k, v in row.items()} for row in state["history"]]


def _novelty(share: float, most: float) -> StopDecision:
    said = f"{share:.3g} of the responses are unlike those judged; the limit is {most:g}"
    return StopDecision(share > most, "novelty", said)
