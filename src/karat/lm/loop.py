"""The one training loop: accumulation, clipping, checkpoints, exact resume, progress and metric files.

A recipe hands over its state (modules, optimisers, schedules, controllers) and a function that does step i. The
function takes its random numbers from (seed, i) alone, so a run is described by its weights, its optimiser
moments, its controllers and i. Knows nothing about what is being trained.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from karat.errors import ConfigError, InvariantError, LedgerError
from karat.lm import parallel

CHECKPOINT_FORMAT = 1
MOST_NAMED = 5  # differing keys in one message


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
    Raises: LedgerError for a checkpoint of another configuration; InvariantError where every optimiser step was skipped.
    """
    stopped = None
    if directory is not None:
        stopped = resume(state, directory, fingerprint, identity=identity)
        parallel.wait()  # until everybody has read what the first process will replace
    while state.step < config.n_steps and stopped is None:
        metrics = parallel.agreed(step(state.step))  # so that all of us stop where one does
        state.step += 1
        if state.step % config.log_every == 0 or state.step == config.n_steps:
            for reporter in reporters if parallel.is_main() else ():
                reporter.log(state.step, metrics)
        stopped = should_stop(state.step, metrics) if should_stop else None
        due = config.checkpoint_every and state.step % config.checkpoint_every == 0
        if directory is not None and (due or stopped or (config.checkpoint_every and state.step == config.n_steps)):
            parallel.from_main(
                partial(save_checkpoint, state, directory, fingerprint, stopped=stopped, identity=identity)
            )
    if state.n_skipped and not state.n_stepped:  # however few they were: what is saved now has learnt nothing
        raise InvariantError(
            f"all {state.n_skipped} optimiser steps had gradients that were not finite; expected some to be made. Lower the "
            "learning rate, or look at the rewards and texts that were trained on"
        )
    return stopped


def optimiser_step(
    state: TrainState,
    name: str,
    losses: Iterable[Tensor],
    *,
    max_grad_norm: float,
    learning_rate: float | None = None,
    shared: bool = False,
) -> float:
    """One optimiser step over the sum of micro-batch losses, clipped; skipped and counted if not finite.

    Each loss must already be divided by the denominator of the *whole* minibatch (global token or vote count), so
    that the step does not depend on how the minibatch was cut up.

    Args:
        losses: of the micro-batches; a generator keeps one graph alive at a time.
        shared: True = these are this process's micro-batches only (`parallel.share`): gradients are summed over all.
    Returns: the gradient norm before clipping (nan or inf where the step was skipped).
    Source: mean of micro means is the fault fixed in OpenRLHF c5bebd14; that gradient clipping must really be
        applied is row 22 of the PPO details.
    """
    optimiser = state.optimisers[name]
    optimiser.zero_grad(set_to_none=True)
    finite = True
    for loss in losses:
        finite = finite and bool(torch.isfinite(loss.detach()))
        if loss.requires_grad:
            loss.backward()
    if shared:
        finite = parallel.everywhere(finite)
        parallel.sum_gradients(p for group in optimiser.param_groups for p in group["params"])
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm)) if parameters else 0.0
    if not finite or not math.isfinite(norm):
        state.n_skipped += 1
        optimiser.zero_grad(set_to_none=True)
        return math.nan
    if learning_rate is not None:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    optimiser.step()
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


def save_checkpoint(
    state: TrainState,
    directory: Path,
    fingerprint: str,
    *,
    stopped: str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Path:
    """Write the state as `step-<n>`, complete or not at all, and drop the older ones.

    Tensors are safetensors, the rest is JSON; nothing is pickled.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"step-{state.step:08d}"
    partial = directory / f".partial-{state.step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    plain: dict[str, Any] = {
        "format": CHECKPOINT_FORMAT,
        "fingerprint": fingerprint,
        "identity": identity,
        "step": state.step,
        "n_skipped": state.n_skipped,
        "n_stepped": state.n_stepped,
        "stopped": stopped,
        "controllers": {name: item.state_dict() for name, item in state.controllers.items()},
        "optimisers": {},
    }
    for name, module in state.modules.items():
        save_file({key: t.detach().contiguous().cpu() for key, t in _saved(module).items()}, partial / f"{name}.module")
    for name, optimiser in state.optimisers.items():
        tensors, plain["optimisers"][name] = _flatten_optimiser(optimiser)
        save_file(tensors, partial / f"{name}.optimiser")
    (partial / "state.json").write_text(json.dumps(plain), encoding="utf-8")
    _sync_directory(partial)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for old in sorted(directory.glob("step-*"))[:-1]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_step(directory: Path) -> int:
    """Finished steps of the newest checkpoint in `directory`; 0 where there is none."""
    checkpoints = sorted(directory.glob("step-*")) if directory.is_dir() else []
    return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0


def resume(
    state: TrainState, directory: Path, fingerprint: str, *, identity: Mapping[str, Any] | None = None
) -> str | None:
    """Take over the newest checkpoint in `directory`, if any; returns why that run stopped early, or None.

    Raises: LedgerError when the checkpoint belongs to another configuration or format.
    """
    checkpoints = sorted(directory.glob("step-*")) if directory.is_dir() else []
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    plain = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    if plain["format"] != CHECKPOINT_FORMAT or plain["fingerprint"] != fingerprint:
        differing = differences(plain.get("identity") or {}, identity or {})
        found = (
            "; ".join(differing[:MOST_NAMED])
            or f"found {plain['fingerprint'] or 'none'}, expected {fingerprint or 'none'}"
        )
        more = f" and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
        raise LedgerError(
            f"{newest}: written under another configuration ({found}{more}); remove the directory to start again, or "
            "restore the configuration"
        )
    for name, module in state.modules.items():
        saved = load_file(newest / f"{name}.module")
        for key, tensor in _saved(module).items():
            tensor.data.copy_(saved[key])
    for name, optimiser in state.optimisers.items():
        tensors = load_file(newest / f"{name}.optimiser")
        optimiser.load_state_dict(_unflatten_optimiser(tensors, plain["optimisers"][name]))
    for name, controller in state.controllers.items():
        controller.load_state_dict(plain["controllers"][name])
    state.step, state.n_skipped = plain["step"], plain["n_skipped"]
    state.n_stepped = plain.get("n_stepped", state.step)  # not counted by older versions
    return plain["stopped"]


def differences(there: Mapping[str, Any], here: Mapping[str, Any], *, at: str = "") -> list[str]:
    """What differs between two nested mappings of plain values, each as `key: value there, value here`.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b: 1 there, 3 here']
    """
    found = []
    for key in sorted({*there, *here}):
        one, other, name = there.get(key), here.get(key), f"{at}.{key}" if at else str(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, at=name)
        elif json.dumps(one) != json.dumps(other):  # tuples come back as lists
            found.append(f"{name}: {_shortened(one)} there, {_shortened(other)} here")
    return found


def _shortened(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _saved(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers; parameters shared under two names (tied embeddings) occur once."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return trained | dict(module.named_buffers())


def _flatten_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value.detach().contiguous().cpu().clone()
            else:
                plain.setdefault(str(index), {})[key] = value
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def _unflatten_optimiser(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in plain["state"].items()}
    for name, tensor in tensors.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = tensor.clone()  # own memory, aligned as if never saved
    groups = [dict(group) for group in plain["param_groups"]]
    for group in groups:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    return {"state": state, "param_groups": groups}


def _sync_directory(directory: Path) -> None:
    for path in [*directory.iterdir(), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class JsonlReporter:
    """Appends one JSON object a step to a file; lines beyond the resumed step are dropped first."""

    def __init__(self, path: Path, *, resumed_step: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever begins anew says everything anew, what was measured before the first step included.
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= resumed_step] if resumed_step else []
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append {step, time, metrics}; numbers that are not finite are written as text ("nan"), never as null."""
        row = {"step": step, "time": round(time.time(), 3)} | {
            key: value if math.isfinite(value) else str(value) for key, value in metrics.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                json.loads(line)
            except json.JSONDecodeError:
                continue  # a line cut short by a kill
            yield line
