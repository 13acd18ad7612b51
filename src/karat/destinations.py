"""Where results shall go, looked at before the work that makes them: hours must not end in "cannot be written".

And directories that take their place whole, or not at all. Knows paths; nothing about what is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from karat.errors import InputError


def check_file_place(path: Path) -> None:
    """Raise InputError where no file can appear at a path, and what stands there is not a file that may be replaced."""
    check_plain(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written (no directory {path.parent}); make it, or give another path")
    _try_out(path.parent, path)


def check_plain(path: Path) -> None:
    """Raise InputError where something that is no file stands at a path: it would be replaced by one."""
    if path.name in ("", ".."):
        raise InputError(f"{path}: found no name of a file; expected one, as in answers.jsonl")
    if path.is_dir():
        raise InputError(f"{path}: found a directory; expected the path of a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: found a device or pipe; expected the path of a file")


def check_directory_place(path: Path, *signs: str) -> None:
    """Raise InputError where no directory can appear at a path; an earlier result there is replaced, nothing else is.

    Args:
        signs: names of files by any of which an earlier result is known; a directory that holds other things is kept.
    """
    if path.name in ("", ".."):
        raise InputError(f"{path}: found no name of a directory; expected one, as in models/reward")
    if path.is_symlink():
        raise InputError(f"{path}: found a link; expected the directory itself, or a path that is free")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: found a file; expected a path that is free, or what the same command wrote")
    held = sorted(one.name for one in path.iterdir()) if path.is_dir() else []
    if held and not any(sign in held for sign in signs):
        raise InputError(
            f"{path}: found a directory with {held[0]!r} in it, which would be lost; expected a path that is free, or "
            f"what the same command wrote ({signs[0]})"
        )
    above = next(one for one in path.absolute().parents if one.exists())
    if not above.is_dir():
        raise InputError(f"{path}: cannot be written ({above} is a file); give another path")
    _try_out(above, path)


@contextmanager
def filled_directory(path: Path) -> Iterator[Path]:
    """Within: the path of a directory to make and fill, which takes its place on leaving.

    Where that fails, as on a full disk, it is removed, and what stood at the place stays.
    """
    # One fixed name: what a killed process left behind is removed by its successor.
    partial = path.with_name(f".partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _try_out(directory: Path, path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give a place that can be written") from None
