"""Unfinished tries of a stage: under other settings one steps aside, and it goes on where those settings come back.

A try is what a stage keeps among its checkpoints until it is done, and the metrics file that grows meanwhile. Nothing of
one set of settings is ever mixed with another's, and nobody has to remove anything. Knows files and plain values; knows
nothing about what a stage does.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karat.belief import AGGREGATORS
from karat.damaged import object_in
from karat.ledger.artifacts import write_json
from karat.lm.checkpoints import MOST_NAMED, differences

MARK = "try.json"
"""Among a stage's checkpoints: of which inputs and settings they are."""
LITTLE = frozenset((MARK, "devices", "seconds"))
"""What is there before any work is done: a try that has nothing else is not kept."""
ASIDE = "set-aside"
"""Folder of the run's checkpoints where tries of other settings wait, by stage and identity."""


def take_up(checkpoints: Path, identity: str, told: Mapping[str, Any], metrics: Path | None) -> str | None:
    """Have a stage's checkpoints be those of this identity, or none; returns what a reader should know, or None.

    Checkpoints without a mark, as older versions left them, are taken for those of this identity.

    Args:
        checkpoints: the stage's folder, `<run>/checkpoints/<stage>`.
        identity: content hash of what the stage reads and was told.
        told: the plain values behind it, so that what differs can be named.
        metrics: the file that grows outside of the checkpoints meanwhile; None = it is among them.
    """
    note = None
    before = _read(checkpoints / MARK)
    if before is not None and before["identity"] != identity:
        note = _put_aside(checkpoints, before, told, metrics)
    waiting = _aside(checkpoints) / _short(identity)
    if not checkpoints.exists() and waiting.exists():
        os.replace(waiting, checkpoints)
        note = f"{note}. The" if note else "the"
        note += " try that had been set aside under these settings goes on"
    if metrics is not None and (checkpoints / metrics.name).exists():
        metrics.parent.mkdir(parents=True, exist_ok=True)
        os.replace(checkpoints / metrics.name, metrics)
    write_json(checkpoints / MARK, {"identity": identity, "told": told})
    return note


def _put_aside(
    checkpoints: Path, before: Mapping[str, Any], told: Mapping[str, Any], metrics: Path | None
) -> str | None:
    """Move a try of other settings out of the way, or remove it where it had not begun; returns what to say of it."""
    if {one.name for one in checkpoints.iterdir()} <= LITTLE:
        shutil.rmtree(checkpoints)
        if metrics is not None:
            metrics.unlink(missing_ok=True)
        return None
    aside = _aside(checkpoints) / _short(before["identity"])
    if metrics is not None and metrics.exists():
        os.replace(metrics, checkpoints / metrics.name)
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoints, aside)
    return (
        f"an unfinished try under other settings ({_differing(before['told'], told)}) is set aside; it goes on when they "
        "come back, until this stage is done under any"
    )


def drop_all(checkpoints: Path) -> None:
    """Remove a stage's checkpoints, and its tries of other settings: it is done."""
    shutil.rmtree(checkpoints, ignore_errors=True)
    shutil.rmtree(_aside(checkpoints), ignore_errors=True)
    with contextlib.suppress(OSError):  # others wait there
        _aside(checkpoints).parent.rmdir()


def _aside(checkpoints: Path) -> Path:
    return checkpoints.parent / ASIDE / checkpoints.name


def _short(identity: str) -> str:
    """A content id as a folder's name."""
    return identity.rpartition(":")[2]


def _read(mark: Path) -> dict[str, Any] | None:
    if not mark.exists():
        return None
    anew = f"it as karat wrote it: restore it, or remove {mark.parent} to begin this stage anew"
    return object_in(mark, "the mark of an unfinished stage", expected=anew, identity=str, told=dict)


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs, by the keys that people write: of settings in a list their place in it is left out."""
    found = differences(_by_key(there), _by_key(here))
    named = [_keyed(one) for one in found]
    # an input is told by its hash, which says nothing to a reader
    named = [
        f"another {one[len('inputs.') :].partition(':')[0]}" if one.startswith("inputs.") else one for one in named
    ]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return "; ".join(named[:MOST_NAMED]) + more or "other inputs"


def _keyed(said: str) -> str:
    """A difference of settings by its key. A plain value of a station has none, and says by its form whose it is.

    >>> _keyed("settings.2.kl_budget: 20.0 there, 5.0 here")
    'kl_budget: 20.0 there, 5.0 here'
    >>> _keyed("settings.4: True there, False here")
    'allow_ungated_reward: True there, False here'
    """
    plain = re.match(r"settings\.(?:\d+\.)*\d+: ((.+) there, (.+) here)$", said)
    if plain is None:
        return re.sub(r"^settings\.(\d+\.)*", "", said)
    difference, there, here = plain.groups()
    value = here if there == "absent" else there
    if value.startswith("score:"):  # its hash says nothing to a reader
        return "another file of the score or cost function"
    if value in ("True", "False"):
        return f"allow_ungated_reward: {difference}"
    if value.partition(":")[0] in AGGREGATORS:
        return f"aggregator: {difference}"
    return f"score: {difference}" if ":" in value else difference


def _by_key(value: Any) -> Any:
    """Mappings all the way down to values, where lists hold mappings."""
    if isinstance(value, Mapping):
        return {str(key): _by_key(item) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        return {str(place): _by_key(item) for place, item in enumerate(value)}
    return value
