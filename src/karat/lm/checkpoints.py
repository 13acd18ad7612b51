"""Checkpoints of a training loop: all of its state in one directory, whole, whoever wrote it.

Tensors are safetensors, the rest is JSON; nothing is pickled. A checkpoint holds whole tensors, also where the processes
that wrote it had shards of them, so that any number of processes continues it. Knows the state of a loop and files;
knows nothing about steps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from karat.damaged import damage_named
from karat.destinations import filled_directory
from karat.errors import CheckpointError, LedgerError
from karat.lm import parallel
from karat.lm.checksums import altered_files, note_files
from karat.lm.headers import read_tensors
from karat.lm.sharding import part_like, whole_tensor

if TYPE_CHECKING:
    from karat.lm.loop import TrainState

CHECKPOINT_FORMAT = 1
MOST_NAMED = 5  # differing keys in one message
Moments = Mapping[str, tuple[dict[str, Tensor], dict[str, Any]]]
"""Of each optimiser its tensors by name, and the rest of its state."""


def save_checkpoint(
    state: TrainState,
    directory: Path,
    fingerprint: str,
    *,
    stopped: str | None = None,
    identity: Mapping[str, Any] | None = None,
    moments: Moments | None = None,
) -> Path:
    """Write the state as `step-<n>`, complete or not at all, and drop the older ones.

    Args:
        moments: the optimisers' states (`whole_moments`), where they are in shards; None = as the optimisers hold them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"step-{state.step:08d}"
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
    with filled_directory(target) as partial:
        partial.mkdir()
        for name, module in state.modules.items():
            whole = {key: t.detach().contiguous().cpu() for key, t in _saved(module).items()}
            save_file(whole, partial / f"{name}.module")
        for name, optimiser in state.optimisers.items():
            tensors, plain["optimisers"][name] = moments[name] if moments else _flatten_optimiser(optimiser)
            save_file(tensors, partial / f"{name}.optimiser")
        (partial / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        note_files(partial)
        _sync_directory(partial)
    _drop_all_but(target)
    return target


def _drop_all_but(newest: Path) -> None:
    """Remove older checkpoints, and what a kill left of one that was being written or dropped."""
    for other in [*newest.parent.glob("step-*"), *newest.parent.glob(".partial-*")]:
        if other != newest:
            shutil.rmtree(other, ignore_errors=True)


def newest_step(directory: Path) -> int:
    """Finished steps of the newest checkpoint in `directory`; 0 where there is none."""
    newest = _newest(directory)
    return 0 if newest is None else int(newest.name.removeprefix("step-"))


def _newest(directory: Path) -> Path | None:
    """The newest checkpoint in `directory`; None where there is none."""
    return max((one for one in directory.glob("step-*") if one.name.removeprefix("step-").isdecimal()), default=None)


def resume(
    state: TrainState, directory: Path, fingerprint: str, *, identity: Mapping[str, Any] | None = None
) -> str | None:
    """Take over the newest checkpoint in `directory`, if any; returns why that run stopped early, or None.

    Older ones, and unfinished ones, that a kill left beside it are removed.

    Raises: LedgerError when the checkpoint is damaged, or belongs to another configuration or format.
    """
    newest = _newest(directory)
    if newest is None:
        return None
    anew = f"it as karat wrote it: restore it, or remove {directory} to begin this training anew"
    with damage_named(newest, "a checkpoint", expected=anew):
        for said in altered_files(newest):
            raise ValueError(said)
        plain = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        _check_ours(newest, plain, fingerprint, identity)
        _take_over(state, newest, plain)
    if parallel.is_main():
        _drop_all_but(newest)
    return plain["stopped"]


def _check_ours(newest: Path, plain: Mapping[str, Any], fingerprint: str, identity: Mapping[str, Any] | None) -> None:
    """Raise LedgerError where a checkpoint belongs to another configuration or format, ValueError where it contradicts itself."""
    if plain["format"] == CHECKPOINT_FORMAT and plain["fingerprint"] == fingerprint:
        if newest.name != f"step-{plain['step']:08d}" or not isinstance(plain["stopped"], str | None):
            raise ValueError(f"state.json: found step {plain['step']}, stopped {plain['stopped']!r}")
        return
    differing = differences(plain.get("identity") or {}, identity or {})
    found = (
        "; ".join(differing[:MOST_NAMED]) or f"found {plain['fingerprint'] or 'none'}, expected {fingerprint or 'none'}"
    )
    more = f" and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
    raise LedgerError(
        f"{newest}: written under another configuration ({found}{more}); remove the directory to start again, or "
        "restore the configuration"
    )


def _take_over(state: TrainState, newest: Path, plain: Mapping[str, Any]) -> None:
    """Put a checkpoint's numbers into the state."""
    for name, module in state.modules.items():
        saved = _tensors(newest / f"{name}.module")
        for key, tensor in _saved(module).items():
            if saved[key].shape != tensor.shape:  # copying would repeat what is too small
                raise ValueError(f"{name}.module: {key} of shape {tuple(saved[key].shape)} for {tuple(tensor.shape)}")
            tensor.data.copy_(part_like(saved[key], tensor))
    for name, optimiser in state.optimisers.items():
        tensors = _tensors(newest / f"{name}.optimiser")
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        optimiser.load_state_dict(_unflatten_optimiser(tensors, plain["optimisers"][name], parameters))
    for name, controller in state.controllers.items():
        controller.load_state_dict(plain["controllers"][name])
    state.step, state.n_skipped = plain["step"], plain["n_skipped"] + 0
    state.n_stepped = plain.get("n_stepped", state.step) + 0  # not counted by older versions


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(file)
    except CheckpointError as error:
        raise ValueError(str(error).removeprefix(f"{file.parent}/")) from error


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


def whole_moments(state: TrainState) -> Moments:
    """The optimisers' states, put together by all processes for the one that writes them."""
    return {name: _flatten_optimiser(optimiser) for name, optimiser in state.optimisers.items()}


def _flatten_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                together = whole_tensor(value.detach())  # by all processes, and kept by the one that writes
                if parallel.is_main():
                    tensors[f"{index}/{key}"] = together.contiguous().cpu().clone()
            else:
                plain.setdefault(str(index), {})[key] = value
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def _unflatten_optimiser(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Any], parameters: Sequence[Tensor]
) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in plain["state"].items()}
    for name, tensor in tensors.items():
        index, key = name.split("/", 1)
        parameter = parameters[int(index)]
        if tensor.ndim and tensor.shape != parameter.shape:
            raise ValueError(f"optimiser: {name} of shape {tuple(tensor.shape)} for {tuple(parameter.shape)}")
        own = part_like(tensor, parameter)
        state.setdefault(int(index), {})[key] = own.clone()  # own memory, aligned as if never saved
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
