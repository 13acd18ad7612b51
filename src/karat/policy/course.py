"""The course of a run: what every method of this room does around its one step.

Prompts dealt out, checkpoints and their fingerprint, validation, the watcher, and the figures that a run ends with.
Knows nothing about how a step is done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from karat.identity import content_id
from karat.lm import parallel
from karat.lm.adapters import merged
from karat.lm.load import LoadedLM, save_lm
from karat.lm.loop import LoopConfig, Reporter, TrainState, run_loop
from karat.lm.sharding import whole
from karat.policy.epochs import POLICY, StepCounts
from karat.policy.watcher import Watcher, WatchRules
from karat.records import Prompt
from karat.seeding import torch_generator

Evaluate = Callable[[LoadedLM, int], Mapping[str, float]]
"""evaluate(policy, finished steps) → figures to log and to watch, e.g. {"validation/lower_bound": 0.3}."""


@dataclass(frozen=True)
class Around:
    """Who is told, who watches, and where checkpoints lie."""

    directory: Path | None = None
    """Checkpoints; an interrupted run called again with equal arguments continues. None = none."""
    reporters: Sequence[Reporter] = ()
    """Get the metrics of each step."""
    watcher: Watcher | None = None
    """Keeps the best policy and stops by its rules; None = watches without rules."""
    evaluate: Evaluate | None = None
    """Called before the first step, after every `evaluate_every`-th and after the last."""


@dataclass(frozen=True)
class Rhythm:
    """How long a run is and how often it is looked at."""

    n_steps: int
    """Steps in all: iterations of the online methods, optimiser steps of the offline ones."""
    checkpoint_every: int
    """Steps between checkpoints; 0 = none."""
    evaluate_every: int
    """Steps between calls of the validation callback."""


@dataclass(frozen=True)
class PolicyResult:
    """What a run ended with; the policy itself was trained in place."""

    n_steps: int
    """Finished steps: iterations of the online methods, optimiser steps of the offline ones."""
    stop_reason: str | None
    """Which rule ended the run early; None = it ran to the end."""
    best_step: int | None
    """Step whose policy was best by the watcher; None = nothing was compared."""
    best_path: Path | None
    """Where that policy was saved, if it was."""
    n_skipped: int
    """Optimiser steps skipped because a gradient was not finite."""
    last_metrics: Mapping[str, float]
    """Metrics of the last step run here; empty when there was nothing left to run."""


def run_course(
    name: str,
    lm: LoadedLM,
    state: TrainState,
    step: Callable[[int], dict[str, float]],
    rhythm: Rhythm,
    *,
    around: Around,
    identity: Mapping[str, Any],
    kept: Callable[[LoadedLM], LoadedLM] = merged,
) -> PolicyResult:
    """Run step 0 … n_steps − 1 of a method, or what is left of them.

    Args:
        name: of the method, for the fingerprint and the saved policy.
        state: "watcher" among its controllers is set here.
        step: does step i and returns its metrics; draws only from generators seeded by (seed, i).
        identity: everything that decides the result (`identity_of`).
        kept: from the model in training to the policy that is saved as the best; by default its adapters are merged.
    Raises: LedgerError for a checkpoint that was written under another identity, naming what differs.
    """
    watcher = around.watcher or Watcher(WatchRules())
    state.controllers["watcher"] = watcher
    watcher.kl = state.controllers.get("kl")  # an alarm may raise its β, where the method has one
    identity = {**identity, "watch": _stated(watcher.rules)}
    fingerprint = content_id(name, identity)
    last: dict[str, float] = {}

    def save(path: Path) -> None:
        about = {"recipe": name, "fingerprint": fingerprint}
        with whole():
            parallel.from_main(lambda: str(save_lm(kept(lm), path, metadata=about)))

    def keep_only(directory: Path, names: Sequence[str]) -> None:
        parallel.from_main(lambda: _remove_others(directory, names))

    def whole_step(index: int) -> Mapping[str, float]:
        if index == 0 and around.evaluate is not None:
            with whole():
                start = around.evaluate(lm, 0)
            start = parallel.agreed(start)
            watcher.observe(0, start, save, keep_only)  # the untrained policy is the first candidate for the best one
            for reporter in around.reporters if parallel.is_main() else ():
                reporter.log(0, start)
        metrics = step(index)
        if around.evaluate is not None and ((index + 1) % rhythm.evaluate_every == 0 or index + 1 == rhythm.n_steps):
            started = time.perf_counter()
            with whole():
                metrics |= around.evaluate(lm, index + 1)
            metrics["seconds/evaluate"] = time.perf_counter() - started
        last.clear()
        last.update(metrics)
        return metrics

    reason = run_loop(
        state,
        whole_step,
        LoopConfig(rhythm.n_steps, checkpoint_every=rhythm.checkpoint_every),
        directory=around.directory,
        fingerprint=fingerprint,
        identity=identity,
        reporters=around.reporters,
        should_stop=lambda done, metrics: watcher.observe(done, metrics, save, keep_only),
    )
    return PolicyResult(state.step, reason, watcher.best_step, watcher.best_path, state.n_skipped, last)


def _stated(rules: WatchRules) -> dict[str, Any]:
    """The watcher's rules as plain values, long ones by their hash: half a run under others would be no run of these."""
    return {
        name: content_id(name, list(value)) if isinstance(value, tuple) else value
        for name, value in asdict(rules).items()
    }


def policy_state(lm: LoadedLM, *, learning_rate: float, adam_eps: float, controllers: dict[str, Any]) -> TrainState:
    """Policy and its one optimiser; the learning rate is set at every step."""
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, eps=adam_eps, fused=True)
    return TrainState({"policy": lm.model}, {POLICY: optimiser}, {"steps": StepCounts(), **controllers})


def prompt_ids(prompts: Sequence[Prompt]) -> list[str]:
    """The prompts by their content hashes."""
    return [prompt.id for prompt in prompts]


def prompt_batch(n_prompts: int, batch: int, iteration: int, seed: int) -> list[int]:
    """Indices of the prompts of one iteration: consecutive pieces of endless reshuffled passes over all prompts.

    >>> sorted(prompt_batch(6, 3, 0, 0) + prompt_batch(6, 3, 1, 0))
    [0, 1, 2, 3, 4, 5]
    """
    picked: list[int] = []
    place = iteration * batch
    while len(picked) < batch:
        turn, offset = divmod(place + len(picked), n_prompts)
        order = torch.randperm(n_prompts, generator=torch_generator(seed, "ppo", "prompts", turn)).tolist()
        picked.extend(order[offset : offset + batch - len(picked)])
    return picked


def _remove_others(directory: Path, names: Sequence[str]) -> None:
    for other in directory.iterdir() if directory.is_dir() else ():
        if other.name not in names:
            shutil.rmtree(other, ignore_errors=True)
