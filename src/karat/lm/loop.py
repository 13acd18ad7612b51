"""The one training loop: accumulation, clipping, checkpoints, exact resume, progress and metric files.

A recipe hands over its state (modules, optimisers, schedules, controllers) and a function that does step i. The
function takes its random numbers from (seed, i) alone, so a run is described by its weights, its optimiser
moments, its controllers and i. Knows nothing about what is being trained.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from karat.damaged import whole_lines_of
from karat.errors import ConfigError, InvariantError
from karat.lm import parallel
from karat.lm.checkpoints import resume, save_checkpoint, whole_moments
from karat.lm.freed_memory import freed_memory_kept
from karat.lm.row_gradients import gradients_by_rows
from karat.lm.sharding import Shards, clip_gradients, sharded, whole


class Stateful(Protocol):
    """A controller whose plain-JSON state belongs to the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        ...


class Reporter(Protocol):
    """Receives metrics and progress; see `JsonlReporter` and the command line's progress bar."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one finished step."""
        ...


@dataclass
class TrainState:
    """All that a checkpoint must hold for the next step to be the same to the bit."""

    modules: dict[str, nn.Module]
    """Trained modules by name; only parameters that require gradients and all buffers are saved."""
    optimisers: dict[str, torch.optim.Optimizer]
    """Optimisers by name."""
    controllers: dict[str, Stateful] = field(default_factory=dict)
    """KL controllers, running moments, early stopping: whatever carries state from step to step."""
    step: int = 0
    """Number of finished steps."""
    n_skipped: int = 0
    """Optimiser steps skipped because a gradient was not finite."""
    n_stepped: int = 0
    """Optimiser steps that were made."""
    shards: Shards | None = None
    """What is trained, in shards, while the loop runs; None = every process has all of it."""


@dataclass(frozen=True)
class LoopConfig:
    """How long, and how often to write things down."""

    n_steps: int
    """Steps in all, counting those done before a resume."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 = none."""
    log_every: int = 1
    """Steps between metric lines."""

    def __post_init__(self) -> None:
        if self.n_steps < 0 or self.checkpoint_every < 0 or self.log_every < 1:
            raise ConfigError(
                f"loop: found n_steps={self.n_steps}, checkpoint_every={self.checkpoint_every}, "
                f"log_every={self.log_every}; expected ≥ 0, ≥ 0 and ≥ 1"
            )


def run_loop(
    state: TrainState,
    step: Callable[[int], Mapping[str, float]],
    config: LoopConfig,
    *,
    directory: Path | None = None,
    fingerprint: str = "",
    identity: Mapping[str, Any] | None = None,
    reporters: Sequence[Reporter] = (),
    should_stop: Callable[[int, Mapping[str, float]], str | None] | None = None,
) -> str | None:
    """Run steps state.step … n_steps − 1, resuming from the newest checkpoint in `directory` if there is one.

    Args:
        step: does step i and returns its metrics; draws only from generators seeded by (seed, i).
        directory: where checkpoints live; None = no checkpoints and no resume.
        fingerprint: identifies configuration and inputs; a checkpoint with another one is refused.
        identity: the plain values behind the fingerprint, so that a refusal can name what differs; None = not kept.
        should_stop: called after each step; a reason (text) ends the loop early.
    Returns: the reason for stopping early, or None.
    Raises: LedgerError for a checkpoint of another configuration; InvariantError where most optimiser steps were skipped
        or what was trained is not finite.
    """
    kept = None if directory is None else _Kept(directory, fingerprint, identity)
    holes = None
    with contextlib.ExitStack() as around:
        state.shards = around.enter_context(sharded(state.modules, state.optimisers))
        if state.shards is None:  # which give memory back instead
            holes = around.enter_context(freed_memory_kept())

        def one(index: int) -> Mapping[str, float]:
            metrics = step(index)
            if holes is not None:
                holes.step_ended()
            return metrics

        stopped = _steps(state, one, config, kept=kept, reporters=reporters, should_stop=should_stop)
    state.shards = None
    if state.n_skipped > state.n_stepped:  # however few they were: what is saved now has hardly learnt anything
        n_asked = state.n_skipped + state.n_stepped
        found = f"{state.n_skipped} of {n_asked}" if state.n_stepped else f"all {n_asked}"
        raise InvariantError(
            f"{found} optimiser steps had gradients that were not finite; expected most to be made. Lower the learning "
            "rate, or look at the rewards and texts that were trained on"
        )
    check_weights(state)
    return stopped


def check_weights(state: TrainState) -> None:
    """Raise InvariantError where what was trained is not finite: the last step's gradients were, and what it made is not."""
    for name, module in state.modules.items():
        for key, weight in module.named_parameters():
            if weight.requires_grad and not bool(torch.isfinite(weight.detach()).all()):
                raise InvariantError(
                    f"{name}: {key} is not finite after training; expected finite weights. Lower the learning rate"
                )


@dataclass(frozen=True)
class _Kept:
    """Where checkpoints lie, and of which run they are."""

    directory: Path
    fingerprint: str
    identity: Mapping[str, Any] | None

    def save(self, state: TrainState, stopped: str | None) -> None:
        """A checkpoint by the first process; where the state is in shards, all processes give theirs."""
        with whole():
            moments = None if state.shards is None else whole_moments(state)
            parallel.from_main(
                lambda: str(save_checkpoint(
                    state, self.directory, self.fingerprint, stopped=stopped, identity=self.identity, moments=moments,
                ))
            )  # fmt: skip


def _steps(
    state: TrainState,
    step: Callable[[int], Mapping[str, float]],
    config: LoopConfig,
    *,
    kept: _Kept | None,
    reporters: Sequence[Reporter],
    should_stop: Callable[[int, Mapping[str, float]], str | None] | None,
) -> str | None:
    stopped = None
    if kept is not None:
        stopped = resume(state, kept.directory, kept.fingerprint, identity=kept.identity)
        parallel.wait()  # until everybody has read what the first process will replace
    while state.step < config.n_steps and stopped is None:
        metrics = parallel.agreed(step(state.step))  # so that all of us stop where one does
        state.step += 1
        if state.step % config.log_every == 0 or state.step == config.n_steps:
            for reporter in reporters if parallel.is_main() else ():
                reporter.log(state.step, metrics)
        stopped = should_stop(state.step, metrics) if should_stop else None
        due = config.checkpoint_every and state.step % config.checkpoint_every == 0
        if kept is not None and (due or stopped or (config.checkpoint_every and state.step == config.n_steps)):
            kept.save(state, stopped)
    return stopped


def optimiser_step(
    state: TrainState,
    name: str,
    losses: Iterable[Tensor],
    *,
    max_grad_norm: float,
    learning_rate: float | None = None,
    shared: bool = False,
    before_step: Callable[[], object] | None = None,
) -> float:
    """One optimiser step over the sum of micro-batch losses, clipped; skipped and counted if not finite.

    Each loss must already be divided by the denominator of the *whole* minibatch (global token or vote count), so
    that the step does not depend on how the minibatch was cut up.

    Args:
        losses: of the micro-batches; a generator keeps one graph alive at a time.
        shared: True = these are this process's micro-batches only (`parallel.share`): gradients are summed over all.
        before_step: called when all passes are over and the weights are about to change; not where the step is skipped.
    Returns: the gradient norm before clipping (nan or inf where the step was skipped).
    Source: mean of micro means is the fault fixed in OpenRLHF c5bebd14; that gradient clipping must really be
        applied is row 22 of the PPO details.
    """
    optimiser = state.optimisers[name]
    optimiser.zero_grad(set_to_none=True)
    flags: list[Tensor] = []  # looked at when all passes are under way: to look is to wait for the device
    with parallel.backend(), gradients_by_rows(active=state.shards is None) as add_rows:
        for loss in losses if state.shards is None else state.shards.passes(losses, shared=shared):
            flags.append(torch.isfinite(loss.detach()))
            if loss.requires_grad:
                loss.backward()
                add_rows()
    finite = all(map(bool, flags))
    if shared:
        finite = parallel.everywhere(finite)
        if state.shards is None:  # which have added up theirs
            parallel.sum_gradients(p for group in optimiser.param_groups for p in group["params"])
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norm = clip_gradients(parameters, max_grad_norm)
    if not finite or not math.isfinite(norm):
        state.n_skipped += 1
        optimiser.zero_grad(set_to_none=True)
        return math.nan
    if learning_rate is not None:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    if before_step is not None:
        before_step()
    optimiser.step()
    # as large as the weights, and of no use while samples are drawn or files written
    optimiser.zero_grad(set_to_none=True)
    state.n_stepped += 1
    return norm


def check_skipped(state: TrainState, n_attempted: int, *, max_frac: float = 0.1) -> None:
    """Raise InvariantError when more than a stated share of optimiser steps had gradients that were not finite."""
    if n_attempted >= 10 and state.n_skipped > max_frac * n_attempted:
        raise InvariantError(
            f"{state.n_skipped} of {n_attempted} optimiser steps had gradients that were not finite; expected at most "
            f"{max_frac:.0%}. Lower the learning rate or look at the rewards of the last rollout"
        )


def linear_warmup_decay(step: int, *, n_steps: int, peak: float, n_warmup: int = 0, final_frac: float = 0.0) -> float:
    """Learning rate of step i: linear to `peak` over the warm-up, then linear to `final_frac`·peak at the end."""
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    remaining = max(n_steps - n_warmup, 1)
    progress = min((step - n_warmup) / remaining, 1.0)
    return peak * (1 - (1 - final_frac) * progress)


class JsonlReporter:
    """Appends one JSON object a step to a file; lines beyond the resumed step are dropped first."""

    def __init__(self, path: Path, *, resumed_step: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever begins anew says everything anew, what was measured before the first step included.
        rows = [row for _, row in whole_lines_of(path)] if resumed_step else []
        kept = [row for row in rows if isinstance(row.get("step"), int) and row["step"] <= resumed_step]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append {step, time, metrics}; numbers that are not finite are written as text ("nan"), never as null."""
        row = {"step": step, "time": round(time.time(), 3)} | {
            key: value if math.isfinite(value) else str(value) for key, value in metrics.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
