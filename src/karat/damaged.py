"""What karat wrote and somebody damaged, said in one line whatever it is that does not fit.

Knows exceptions and lines of JSON; knows no format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from karat.errors import KaratError, LedgerError

MISFITS = (
    ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
    FileNotFoundError, IsADirectoryError, NotADirectoryError,
)  # fmt: skip
"""What reading raises where a part is missing, or of another kind or shape."""
OURS = "it as karat wrote it: restore it, or make it anew"


@contextmanager
def damage_named(
    place: Path | str, what: str, kind: type[KaratError] = LedgerError, *, expected: str = OURS
) -> Iterator[None]:
    """Within: whatever does not fit while something is read becomes one error of this kind that names the place."""
    try:
        yield
    except MISFITS as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's is a RuntimeError, and no damage
            raise
        said = " ".join(str(error).split())[:160]
        raise kind(f"{place}: not readable as {what} ({type(error).__name__}: {said}); expected {expected}") from error


def object_in(path: Path, what: str, *, expected: str = OURS, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """The JSON object in a file that karat wrote.

    Args:
        kinds: of fields that have to be there, by their names.
    Raises: LedgerError naming the file, where it is missing, too.
    """
    with damage_named(path, what, expected=expected):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"found {str(found)[:40]}")
        for name, kind in kinds.items():
            if not isinstance(found[name], kind):
                raise TypeError(f"found {str(found[name])[:40]!r} as {name!r}")
    return found


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines that karat wrote, whatever line breaks their texts hold.

    Raises: LedgerError naming file and line; FileNotFoundError.
    """
    # Unicode has more line ends than JSON lines do, and texts may hold them as they are
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            with damage_named(f"{path}:{number}", "a row"):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError(f"found {line[:40].decode()}")
            yield row


def whole_lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`file:line` and object of each line of a file that grows a line at a time; none where there is no file.

    A line that a kill has cut short is passed over, wherever it stands: nobody was told that it was written.

    Raises: LedgerError naming file and line.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else (), start=1):
        if line.strip():
            with damage_named(f"{path}:{number}", "a row"):
                try:
                    row = json.loads(line)
                except ValueError:
                    if line.rstrip().endswith(b"}"):
                        raise
                    continue
                if not isinstance(row, dict):
                    raise TypeError(f"found {line[:40].decode()}")
            yield f"{path}:{number}", row
