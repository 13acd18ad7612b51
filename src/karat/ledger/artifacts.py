"""Bytes on disk: written whole or not at all, and known by their content.

A file is written beside its place, flushed to the disk and then renamed into it, so that an interruption, a crash
or a full disk leaves the old content or the new, never half of either. Knows nothing about what the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from karat.destinations import check_plain
from karat.errors import LedgerError
from karat.identity import canonical_json, file_hash
from karat.ledger.lineage import ArtifactRef, tree_hash

__all__ = [
    "ArtifactRef",
    "copy_in",
    "directory_files",
    "directory_hash",
    "disk_error",
    "ref_of",
    "staged_directory",
    "take_place",
    "write_bytes",
    "write_json",
    "write_text",
]


MOST_AT_ONCE = 1 << 26
"""Bytes copied in one call."""
FULL = (errno.ENOSPC, errno.EDQUOT)
ABOUT = ("manifests", "erased.jsonl", ".lock")
"""What a directory with manifests of its own says about itself: no part of it where it is an artefact as a whole."""


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Put `data` at `path` atomically; missing folders are made.

    Args:
        private: True = readable for its owner only: people's words are in it.
    Raises: InputError where a directory or device stands there; LedgerError when the disk is full or the place cannot be
        written; what was there before is untouched.
    """
    check_plain(path)
    # One fixed name: what a killed process left behind is overwritten by its successor, never collected.
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            if private:
                os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        _discard(temporary)
        raise disk_error(path, error) from None
    except BaseException:
        _discard(temporary)
        raise


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Put text at `path` atomically, as UTF-8; `private` as `write_bytes` has it."""
    write_bytes(path, text.encode(), private=private)


def write_json(path: Path, value: Any) -> None:
    """Put a value at `path` atomically as JSON that people can read: sorted keys, two spaces, final newline.

    Raises: InputError for NaN and infinities; LedgerError when it cannot be written.
    """
    plain = json.loads(canonical_json(value))
    write_text(path, json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that takes its place at `path` only when the block ends without an error.

    Raises: LedgerError when the disk is full or the place cannot be written; what was there before is untouched.
    """
    staging = path.with_name(f".{path.name}.part")
    filled = False
    try:
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True)
        except OSError as error:
            raise disk_error(path, error) from None
        yield staging
        filled = True
        for file in sorted(staging.rglob("*")):
            if file.is_file():
                _sync_file(file)
        take_place(staging, path)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if not filled and error.errno not in FULL:
            raise  # the block's own affair, not the disk's
        raise disk_error(path, error) from None
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def copy_in(source: Path, path: Path) -> None:
    """Put a copy of a file or directory at `path`, whole or not at all.

    Never a second name of the same bytes: whoever writes to one of them must not change the other. File systems that can
    (Btrfs, XFS) share the blocks all the same, until one of them is written to.

    Raises: LedgerError when nothing is at `source`, the disk is full or the place cannot be written; what was there before
        is untouched.
    """
    if not source.exists():
        raise LedgerError(f"{source}: nothing is there; expected a file or directory to copy")
    if not source.is_dir():
        temporary = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(source, temporary)
            take_place(temporary, path)
        except OSError as error:
            _discard(temporary)
            raise disk_error(path, error) from None
        return
    try:
        with staged_directory(path) as staging:
            for file in sorted(source.rglob("*")):
                if file.is_file():
                    target = staging / file.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _copy_file(file, target)
    except OSError as error:
        raise disk_error(path, error) from None


def _copy_file(source: Path, path: Path) -> None:
    """The bytes and permissions of a file, on the disk when this returns."""
    with source.open("rb") as old, path.open("wb") as new:
        done = False
        try:
            while os.copy_file_range(old.fileno(), new.fileno(), MOST_AT_ONCE):
                pass
            done = os.fstat(old.fileno()).st_size == os.fstat(new.fileno()).st_size
        except (AttributeError, OSError) as error:  # not on this system, or not from there to here
            if isinstance(error, OSError) and error.errno in FULL:
                raise
        if not done:
            old.seek(0)
            new.seek(0)
            new.truncate()
            shutil.copyfileobj(old, new, MOST_AT_ONCE)
        new.flush()
        os.fsync(new.fileno())
    shutil.copymode(source, path)


def take_place(new: Path, path: Path) -> None:
    """Put a file or directory at `path` of the same disk, in the place of what stands there.

    A directory cannot replace a full one in one step: the old one steps aside first, and comes back if the second
    rename fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    retired = path.with_name(f".{path.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if path.is_dir():
        os.replace(path, retired)
    try:
        os.replace(new, path)
    except OSError:
        if retired.exists():
            os.replace(retired, path)
        raise
    _sync_directory(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


def directory_files(path: Path) -> tuple[tuple[str, str], ...]:
    """(relative name with `/`, hash) of every file below a directory, sorted by name."""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return tuple((name, file_hash(path / name)) for name in names)


def directory_hash(path: Path) -> str:
    """`tree:` and the hash over the sorted names and hashes of a directory's files; empty folders do not count.

    Raises: LedgerError where there is no directory.
    """
    if not path.is_dir():
        raise LedgerError(f"{path}: found no directory; expected one to hash")
    return tree_hash(directory_files(path))


def ref_of(run_dir: Path, path: Path, kind: str = "file", name: str = "") -> ArtifactRef:
    """The reference of a file or directory as it is now.

    Args:
        path: absolute, or relative to `run_dir`; of a directory with
            manifests of its own all but ABOUT.    kind: `file`, `directory` or a narrower word.
        name: what it is to the stage; empty = the path's last part without its ending.
    Raises: LedgerError where nothing is there.
    """
    place = path if path.is_absolute() else run_dir / path
    shown = _shown(run_dir, place)
    try:
        if place.is_dir():
            files = directory_files(place)
            if (place / ABOUT[0]).is_dir():
                files = tuple(one for one in files if one[0].partition("/")[0] not in ABOUT)
            return ArtifactRef(name or place.stem, shown, tree_hash(files), kind, files)
        return ArtifactRef(name or place.stem, shown, file_hash(place), kind)
    except FileNotFoundError:
        raise LedgerError(f"{place}: nothing is there; expected a file or directory to record") from None
    except OSError as error:
        raise LedgerError(f"{place}: cannot be read ({error.strerror})") from None


def content_hash(path: str | Path) -> str:
    """The hash of a file or directory as it is now, as manifests record it. Raises: LedgerError where nothing is there."""
    return ref_of(Path.cwd(), Path(path).resolve()).hash


def disk_error(path: Path, error: OSError) -> LedgerError:
    """The one-line error for a write that failed."""
    if error.errno in FULL:
        return LedgerError(
            f"{path}: the disk is full; nothing was half-written. Free some space and run the same command again"
        )
    return LedgerError(f"{path}: cannot be written ({error.strerror or error}); expected a writable place")


def _shown(run_dir: Path, place: Path) -> str:
    resolved, root = place.resolve(), run_dir.resolve()
    if resolved.is_relative_to(root):
        return resolved.relative_to(root).as_posix()
    beside = root.parent
    if beside != beside.parent and resolved.is_relative_to(beside):  # moved together, it is found again
        return f"../{resolved.relative_to(beside).as_posix()}"
    return resolved.as_posix()


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    # Some file systems cannot flush a directory; the rename is atomic there all the same.
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
