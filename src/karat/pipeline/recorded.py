"""What a run wrote down, read again: its settings, and files that its manifests vouch for.

Knows manifests, hashes and JSON; nothing about what the files say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karat.damaged import lines_of, object_in
from karat.errors import LedgerError
from karat.identity import file_hash
from karat.ledger.manifest import Manifest

AGAIN = "it as karat wrote it: restore it, or run the same `karat run` command again, which makes it anew"


def run_settings(directory: Path) -> dict[str, Any]:
    """`title`, `unsafe`, `config` and `seed` of a run, as it was last begun.

    Raises: LedgerError naming the file, where it is missing or damaged.
    """
    path = directory / "config.json"
    about = object_in(path, "the settings of a run", expected=AGAIN, title=str, unsafe=list, config=dict, seed=int)
    if not all(isinstance(one, str) for one in about["unsafe"]):
        raise LedgerError(f"{path}: found something else than text in 'unsafe'; expected {AGAIN}")
    return about


def recorded_object(directory: Path, name: str, stage: Manifest) -> dict[str, Any]:
    """The JSON object in a file of a run that a stage wrote.

    Args: name: relative to the run.
    Raises: LedgerError where it is missing, damaged, or not as the stage's manifest says.
    """
    vouch_for(directory, name, stage)
    return object_in(directory / name, f"what {stage.stage} found", expected=AGAIN)


def recorded_rows(directory: Path, name: str, stage: Manifest) -> list[dict[str, Any]]:
    """The lines of a file of a run that a stage wrote; none where it is not there.

    Raises: LedgerError where it is damaged, or not as the stage's manifest says.
    """
    if not (directory / name).exists():
        return []
    vouch_for(directory, name, stage)
    return list(lines_of(directory / name))


def vouch_for(directory: Path, name: str, stage: Manifest) -> None:
    """Raise LedgerError where a file of a run is not what a stage's manifest recorded: a figure of it would be nobody's."""
    path = directory / name
    hashes: Mapping[str, str] = {one.path: one.hash for one in stage.outputs}
    if name in hashes and not path.is_file():
        raise LedgerError(f"{path}: found no such file, which {stage.stage} wrote; expected {AGAIN}")
    if name in hashes and file_hash(path) != hashes[name]:
        raise LedgerError(f"{path}: altered since {stage.stage} wrote it; expected {AGAIN}")
