"""Where models work: on the processor, or on the accelerator that torch reports. One device a process, chosen once.

A command or a run chooses it for a block (`on_device`); whatever loads a model within the block without naming a device
loads it there. It is a property of the process, like its number of threads, and no setting of a stage: a checkpoint
begun on one device goes on on another, equal to rounding. Knows torch's devices; knows nothing about models.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from karat.damaged import damage_named
from karat.errors import ConfigError
from karat.process_settings import AUTO, named
from karat.ranks import launched, launched_local_rank, launched_rank

INTEL = "GenuineIntel"
"""What Intel's processors name as their maker."""
CPU = torch.device("cpu")
_current = CPU


def current() -> torch.device:
    """Where models are loaded that are not told otherwise; the processor outside of any `on_device`."""
    return _current


def accelerator() -> torch.device | None:
    """The kind of accelerator that this machine has and this build of torch can use; None = there is none."""
    return torch.accelerator.current_accelerator(check_available=True)


@contextmanager
def on_device(asked: str) -> Iterator[torch.device]:
    """Load models on a device for the block, in every thread of this process.

    Args: asked: auto = the accelerator if there is one, else the processor; or a device's name: cpu, cuda, cuda:1, mps.
    Raises: ConfigError for a name that is none and for a device that is not there.
    """
    global _current
    before, _current = _current, chosen(asked)
    try:
        if _current.type != "cpu":
            torch.accelerator.set_device_index(_current.index)  # where what names no card goes, NCCL's messages too
        yield _current
    finally:
        _current = before


def chosen(asked: str) -> torch.device:
    """The device that a name means here; of several processes on one machine each gets the card of its local rank.

    Raises: ConfigError for a name that is none and for a device that is not there.
    """
    kind, index = named(asked)
    found = accelerator()
    if kind == "cpu" or (kind == AUTO and found is None):
        return CPU
    if found is None or kind not in (AUTO, found.type):
        there = f"only {found.type}" if found is not None else "none that this build of torch can use"
        raise ConfigError(
            f"device: found {asked}, and of accelerators there is {there} (torch {torch.__version__}); expected auto, cpu"
            + ("" if found is None else f" or {found.type}")
        )
    n = torch.accelerator.device_count()
    if launched() > 1:
        return torch.device(found.type, _own_card(found.type, index, n))
    index = torch.accelerator.current_device_index() if index is None else index
    if index >= n:
        cards = "0" if n == 1 else f"0 … {n - 1}"
        raise ConfigError(f"device: found {asked}, and this machine has {n} of them; expected a number of {cards}")
    return torch.device(found.type, index)


def described(device: torch.device) -> str:
    """The device and its memory in words: `cuda:0 (name of the card), 12.0 of 16.0 GiB free`."""
    if device.type == "cpu":
        n = torch.get_num_threads()
        return f"cpu, {n} thread{'s' if n != 1 else ''}"
    name = card(device)
    shown = str(device) if name == device.type else f"{device} ({name})"
    memory = memory_bytes(device)
    if memory is None:
        return f"{shown}, memory not known"
    free, whole = (n / (1 << 30) for n in memory)
    return f"{shown}, {free:.1f} of {whole:.1f} GiB free"


def card(device: torch.device) -> str:
    """What an accelerator calls itself, as its maker named it; its kind where it has no name: `cpu`."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if name is None or device.type == "cpu" else str(name(device))


def memory_bytes(device: torch.device) -> tuple[int, int] | None:
    """(free, in all) of an accelerator's own memory; None = torch cannot say."""
    look = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if look is None else look(device)


def available_bytes() -> int | None:
    """Memory of this machine that programs can still have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: Apple's do not."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def backends() -> str:
    """What processes send their messages with, as `init_process_group` takes it: gloo, and beside it the accelerator's."""
    found = accelerator()
    own = None if found is None else torch.distributed.Backend.default_device_backend_map.get(found.type)
    return "gloo" if found is None or own in (None, "gloo") else f"cpu:gloo,{found.type}:{own}"


def marked(file: Path, kind: str) -> tuple[str, ...]:
    """The kinds of device that a piece of work has been done on so far, `kind` last; kept in a file beside its checkpoints."""
    anew = f"it as karat wrote it: restore it, or remove {file.parent} to begin this stage anew"
    with damage_named(file, "the devices of a stage", expected=anew):
        seen = file.read_text(encoding="utf-8").split() if file.exists() else []
    if not seen or seen[-1] != kind:
        seen.append(kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(seen), encoding="utf-8")
    return tuple(seen)


def notes(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Where a piece of work was done, for its manifest; nothing where all of it was done on the processor."""
    return () if set(kinds) <= {"cpu"} else (f"worked out on {', then on '.join(kinds)}",)


def _own_card(kind: str, index: int | None, n: int) -> int:
    """The card of one of several processes."""
    local, here = launched_local_rank(), launched_rank()
    local = (here or 0) if local is None else local
    if index is not None:
        raise ConfigError(
            f"device: found {kind}:{index} for {launched()} processes, each of which needs a card; expected {kind}"
        )
    if local >= n:
        raise ConfigError(
            f"device: found {n} {kind} devices for {local + 1} or more processes on this machine; expected one for each: "
            "fewer --processes, or device: cpu"
        )
    return local


def processor_listing(listing: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The lines by which Linux describes its processors; [] on another system."""
    try:
        return listing.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


@functools.cache
def processor_maker(listing: Path = Path("/proc/cpuinfo")) -> str:
    """The maker that the processor names: GenuineIntel, AuthenticAMD, …; "" where this system does not tell.

    Args: listing: as `processor_listing` takes it.
    """
    if not listing.exists():  # Windows puts the maker behind the model
        return platform.processor().rpartition(" ")[2]
    found = (line.partition(":")[2] for line in processor_listing(listing) if line.startswith("vendor_id"))
    return next(found, "").strip()
