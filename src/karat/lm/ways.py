"""How this process decodes and attends where there is a choice: chosen once for a block, as its device is.

Like the device it is no setting of a stage: the numbers are the same to rounding whichever way is taken. Knows devices
and what this machine can compile; knows nothing about models.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import torch

from karat import devices
from karat.errors import ConfigError
from karat.process_settings import Attending, Decode

LOG = logging.getLogger("karat.ways")
GRAPHED = "cuda"
"""The kind of device whose work can be recorded and replayed."""


@dataclass(frozen=True)
class Ways:
    """What was asked for."""

    decode: Decode = "auto"
    """How responses are drawn."""
    attention: Attending = "auto"
    """How trees are attended."""


_current = Ways()


def current() -> Ways:
    """What was asked for in this process; auto outside of any `in_ways`."""
    return _current


@contextmanager
def in_ways(decode: Decode = "auto", attention: Attending = "auto") -> Iterator[None]:
    """Decode and attend so for the block, in every thread of this process.

    Raises: ConfigError where that cannot work on the device that this process works on.
    """
    global _current
    if problem := decode_problem(decode, devices.current()):
        raise ConfigError(problem)
    before, _current = _current, Ways(decode, attention)
    try:
        yield
    finally:
        _current = before


def decode_on(device: torch.device) -> Decode:
    """The way of decoding on a device: what was asked for; of auto, graph on CUDA and plain elsewhere."""
    if _current.decode != "auto":
        return _current.decode
    return "graph" if device.type == GRAPHED else "plain"


def decode_problem(decode: str, device: torch.device) -> str | None:
    """Why a way of decoding cannot work on a device, in one line; None = it can."""
    if decode not in get_args(Decode):
        return f"decode: found {decode!r}; expected one of {', '.join(get_args(Decode))}"
    if decode == "graph" and device.type != GRAPHED:
        return f"decode: found graph on {device.type}; expected a CUDA device, whose graphs it records: plain, or auto"
    if decode in ("auto", "plain"):
        return None
    if not devices.has_float64(device):
        return f"decode: found {decode} on {device.type}, which has no float64 to draw with; expected plain, or auto"
    if decode != "compiled":
        return None
    if device.type == "cpu":
        return None if _has_cpp_compiler() else (
            "decode: found compiled without a C++ compiler on this machine; expected one (g++ or clang++, or CXX), or plain"
        )  # fmt: skip
    if not _has_triton():
        return f"decode: found compiled on {device.type} without Triton; expected it installed, or plain"
    return None


def _has_cpp_compiler() -> bool:
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler  # what torch.compile itself will ask; an internal one

        return shutil.which(get_cpp_compiler()) is not None
    except Exception:  # its own error where it finds none, and whatever another release raises instead
        return False


def _has_triton() -> bool:
    try:
        from torch.utils._triton import has_triton
    except ImportError:
        return False
    return has_triton()
