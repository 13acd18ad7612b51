"""What goes into safetensors files: the tensors of a model, wherever it works, and in the header who made them.

Knows the file format and modules; knows nothing about language.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from karat.errors import CheckpointError

HEADER_ALIGNMENT = 64  # bytes, as torch aligns its own memory


def add_header_metadata(file: Path, metadata: Mapping[str, str]) -> None:
    """Add text entries to the header of a safetensors file; its tensors stay as they are, to the byte.

    Source: the format is 8 bytes of little-endian header length, the JSON header, then the data
        (huggingface/safetensors README, "Format").
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        with file.open("rb") as source, partial.open("wb") as target:
            (n_header,) = struct.unpack("<Q", source.read(8))
            header = json.loads(source.read(n_header))
            header["__metadata__"] = dict(sorted((header.get("__metadata__", {}) | dict(metadata)).items()))
            text = json.dumps(header, separators=(",", ":")).encode()
            # Where the data begins must not depend on how long the run's name is: kernels round differently on memory that
            # is aligned differently, and loaded weights are views of the file.
            text += b" " * (-(8 + len(text)) % HEADER_ALIGNMENT)
            target.write(struct.pack("<Q", len(text)) + text)
            shutil.copyfileobj(source, target, 1 << 24)
            target.flush()
            os.fsync(target.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, Tensor | np.ndarray], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; equal tensors and text entries give equal bytes.

    The library alone writes text entries in an order drawn anew each time, so that the same work done twice would differ.
    """
    there = {name: torch.tensor(one) if isinstance(one, np.ndarray) else one for name, one in tensors.items()}
    save_file({name: one.detach().contiguous().cpu() for name, one in there.items()}, file)
    add_header_metadata(file, metadata)


def read_header_metadata(file: Path) -> dict[str, str]:
    """The text entries in the header of a safetensors file. Raises: CheckpointError where it is damaged."""
    with _read(file), safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def tensor_names(file: Path) -> list[str]:
    """The names of the tensors of a safetensors file. Raises: CheckpointError where it is damaged."""
    with _read(file), safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises: CheckpointError where it is damaged."""
    with _read(file):
        return load_file(file)


@contextmanager
def _read(file: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:  # no ValueError and no OSError, which would be caught as such
        said = " ".join(str(error).split())
        raise CheckpointError(f"{file}: truncated or unreadable safetensors ({said})") from error


def state_on_processor(model: nn.Module, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor] | None:
    """What is to be saved of a model that works elsewhere, each wanted tensor once; None = the model is here."""
    there = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if wanted(name)}
    if all(tensor.device.type == "cpu" for tensor in there.values()):
        return None
    here = {id(tensor): tensor.detach().cpu() for tensor in there.values()}
    return {name: here[id(tensor)] for name, tensor in there.items()}
