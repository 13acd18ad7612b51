"""What the files of a directory of karat's were when they were written: a CRC-32 of each, in a file beside them.

A weight with a flipped bit is a number like any other, and a text without its tokenizer's settings is a text: nothing in such
a model says that it is damaged. The list has the form that other programs check, too (SFV: name, space, eight hex digits).
It finds faults, not forgery, which manifests find (`karat verify` of the run). Knows files; knows nothing about what is in them.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from karat.damaged import MISFITS, damage_named
from karat.errors import CheckpointError

SUMS = "checksums.sfv"
"""The list; a directory without it is somebody else's, or of an older karat, and is not checked, unless its weights are `LISTED`."""
LISTED = {"checksums": SUMS}
"""In the header of weights that have a list beside them. There, because other programs do not carry headers over when they save
what they made of a model, as they do with entries of `config.json`: what they wrote has no list to miss."""
NOTE = ";"
"""Begins a line of a list that vouches for nothing, in every program that reads such lists."""
CHUNK_BYTES = 1 << 18


def note_files(directory: Path, kind: str = "*") -> None:
    """Write the checksums of the files of a directory, but of none in folders below it, in place of an earlier list.

    Args: kind: a pattern of their names; others may be changed by whoever likes.
    """
    _write(directory, {}, kind)


def note_further(directory: Path, *changed: str) -> None:
    """Bring the list of a directory, where it has one, up to date: what was added since, and what is named, which was changed.

    Of everything else the lines stand, so that weights are not read again.
    """
    noted = _noted(directory) if (directory / SUMS).exists() else {}
    _write(directory, {name: found for name, found in noted.items() if name not in changed}, "*")


def _write(directory: Path, known: Mapping[str, str], kind: str) -> None:
    files = sorted(one for one in directory.glob(kind) if one.is_file() and one.name != SUMS)
    lines = [f"{one.name} {known.get(one.name) or _checksum(one)}\n" for one in files]
    (directory / SUMS).write_text("".join(lines), encoding="utf-8")


def _noted(directory: Path) -> dict[str, str]:
    """The list of a directory. Raises: CheckpointError where it cannot be read, or is empty."""
    path = directory / SUMS
    with damage_named(path, "checksums", CheckpointError):
        lines = path.read_text(encoding="utf-8").splitlines()
        if not lines:
            raise ValueError("found no line")
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith(NOTE))


def is_listed(directory: Path) -> bool:
    """Whether a directory has a list, or weights that say so in their header."""
    return (directory / SUMS).exists() or _listed_weights(directory) is not None


def _listed_weights(directory: Path) -> Path | None:
    for file in sorted(directory.glob("*.safetensors")):
        with suppress(struct.error, *MISFITS, OSError):  # whoever loads it says what is wrong with it
            if _header(file)["__metadata__"]["checksums"] == SUMS:
                return file
    return None


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file, read without torch: the length in 8 bytes, then JSON (huggingface/safetensors README)."""
    with file.open("rb") as opened:
        (n_header,) = struct.unpack("<Q", opened.read(8))
        if n_header > file.stat().st_size:
            raise ValueError("found a header longer than the file")
        return json.loads(opened.read(n_header))


def altered_files(directory: Path) -> Iterator[str]:
    """What differs from the list of a directory, a file at a time, as `name: what was found and expected`.

    Without a list nothing does, but for the list itself where weights say that there is one.

    Raises: CheckpointError for a list that cannot be read, or is empty.
    """
    if not (directory / SUMS).exists():
        if (weights := _listed_weights(directory)) is not None:
            yield f"{SUMS}: found no such file; expected the one that {weights.name} names in its header"
        return
    for name, expected in _noted(directory).items():
        if not (directory / name).is_file():
            yield f"{name}: found no such file; expected it as karat wrote it"
        elif (found := _checksum(directory / name)) != expected:
            yield f"{name}: found other bytes (CRC-32 {found}); expected those that karat wrote ({expected})"


def check_files(directory: Path) -> None:
    """Raise CheckpointError naming the first file of a model that is not as it was written."""
    for said in altered_files(directory):
        raise CheckpointError(
            f"{directory / said}: restore it, or make the model anew; where the change was meant, write {SUMS} beside it "
            f"with one line, `{NOTE}`, which vouches for nothing"
        )


def _checksum(file: Path) -> str:
    found, chunk = 0, memoryview(bytearray(CHUNK_BYTES))  # used again, so that the memory need not be found anew
    with file.open("rb", buffering=0) as opened:
        while n := opened.readinto(chunk):
            found = zlib.crc32(chunk[:n], found)
    return f"{found:08x}"
