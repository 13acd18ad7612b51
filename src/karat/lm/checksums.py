"""What the files of a directory of karat's were when they were written: a CRC-32 of each, in a file beside them.

A weight with a flipped bit is a number like any other, and a text without its tokenizer's settings is a text: nothing in such
a model says that it is damaged. The list has the form that other programs check, too (SFV: name, space, eight hex digits).
It finds faults, not forgery, which manifests find (`karat verify` of the run). Knows files; knows nothing about what is in them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from karat.damaged import damage_named
from karat.errors import CheckpointError

SUMS = "checksums.sfv"
"""The list; a directory without it is somebody else's, or of an older karat, and is not checked."""
CHUNK_BYTES = 1 << 18


def note_files(directory: Path, kind: str = "*") -> None:
    """Write the checksums of the files of a directory, but of none in folders below it, in place of an earlier list.

    Args: kind: a pattern of their names; others may be changed by whoever likes.
    """
    files = sorted(one for one in directory.glob(kind) if one.is_file() and one.name != SUMS)
    (directory / SUMS).write_text("".join(f"{one.name} {_checksum(one)}\n" for one in files), encoding="utf-8")


def altered_files(directory: Path) -> Iterator[str]:
    """What differs from the list of a directory, a file at a time, as `name: what was found and expected`; nothing without a list.

    Raises: CheckpointError for a list that cannot be read, or is empty.
    """
    path = directory / SUMS
    if not path.exists():
        return
    with damage_named(path, "checksums", CheckpointError):
        noted = dict(line.rsplit(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
        if not noted:
            raise ValueError("found no line")
    for name, expected in noted.items():
        if not (directory / name).is_file():
            yield f"{name}: found no such file; expected it as karat wrote it"
        elif (found := _checksum(directory / name)) != expected:
            yield f"{name}: found other bytes (CRC-32 {found}); expected those that karat wrote ({expected})"


def check_files(directory: Path) -> None:
    """Raise CheckpointError naming the first file of a model that is not as it was written; a list that is not there says nothing."""
    for said in altered_files(directory):
        raise CheckpointError(
            f"{directory / said}: restore it, or make the model anew; where the change was meant, remove {SUMS} beside it"
        )


def _checksum(file: Path) -> str:
    found, chunk = 0, memoryview(bytearray(CHUNK_BYTES))  # used again, so that the memory need not be found anew
    with file.open("rb", buffering=0) as opened:
        while n := opened.readinto(chunk):
            found = zlib.crc32(chunk[:n], found)
    return f"{found:08x}"
