"""Stages that another run has done already, taken over instead of done anew.

The runs of a sweep differ in a few keys. A run may take a stage over from another where a resume would keep it (equal
inputs, settings and seed, outputs as they were), where both runs went the same way up to it, and where it was worked out
by this very code in these very circumstances. What it gets is a copy: the other run may be changed or removed at any time.
Knows files, manifests and stores; knows nothing about what a stage does.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from karat import devices
from karat.errors import LedgerError, StoreError
from karat.feedback.record.backup import backup, rows_hash
from karat.feedback.store import open_store
from karat.identity import content_id
from karat.ledger.artifacts import ArtifactRef, copy_in
from karat.ledger.manifest import Manifest, code_hash, finished_stage, package_versions, read_manifest
from karat.lm import native, parallel, ways

STORE = "karat.db"
"""The store in a run's directory."""
WORKED_OUT = "worked_out"
"""Among a stage's figures: in what circumstances its work was done, in a run that others may take it over from."""
MARK = "circumstances"
"""Among a stage's checkpoints: the circumstances of each of its tries."""
TAKEN = "taken over from "
"""Begins the note in the manifest of a stage that another run has done."""


@dataclass(frozen=True)
class Lendable:
    """Of a stage: what it leaves is among its outputs, so that another run can take all of it over."""

    with_store: bool = False
    """True = it also writes to the run's store, and to nothing else."""
    also: Callable[[], Any] | None = None
    """Plain values that it goes by beside its inputs and settings: equal for whoever takes it over."""


@dataclass(frozen=True)
class Wanted:
    """A stage that is about to be done, or was done here."""

    stage: str
    """Its name."""
    inputs: Sequence[ArtifactRef]
    """What it reads."""
    settings: Mapping[str, Any]
    """What it is told, as its manifest has it."""
    seeds: Mapping[str, int]
    """Seeds by purpose."""
    lendable: Lendable | None
    """What of it can be taken over; None = nothing."""
    here: Mapping[str, Any]
    """`circumstances`; empty where nothing of it can be taken over."""

    @property
    def also(self) -> str | None:
        """Hash of what it goes by beside its inputs and settings; None = nothing."""
        also = None if self.lendable is None else self.lendable.also
        return None if also is None else content_id("also", also())

    @property
    def with_store(self) -> bool:
        """True = it writes to the run's store."""
        return self.lendable is not None and self.lendable.with_store

    def worked_out(self, run_dir: Path, tries: Sequence[str]) -> dict[str, Any]:
        """What the manifest says of how the work was done, once it is done.

        Args:
            tries: circumstances of every try that it took, by `marked`.
        """
        if len(tries) > 1:
            return {"in": "several circumstances"}  # is equal to nobody's
        found = {"in": dict(self.here)}
        if self.also is not None:
            found["also"] = self.also
        if self.with_store:
            found["store"] = _rows_hash(run_dir / STORE)
        return found


def circumstances() -> dict[str, Any]:
    """Everything but inputs, settings and seeds that the last bit of a result may depend on, as plain values."""
    device, asked = devices.current(), ways.current()
    return {
        "code": code_hash(),
        "versions": package_versions(),
        "device": devices.card(device),
        "processor": content_id("processor", [native.processor(), torch.backends.cpu.get_cpu_capability()]),
        "platform": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]),
        "compiled": native.library(torch.float32) is not None,
        "threads": torch.get_num_threads(),
        "processes": parallel.count(),
        "in_shards": parallel.in_shards(),
        "decode": asked.decode,
        "attention": asked.attention,
    }


def marked(checkpoints: Path, here: Mapping[str, Any], *, begun: bool) -> tuple[str, ...]:
    """The circumstances of all tries of a stage so far, this one last; kept among its checkpoints.

    Args:
        begun: True = a try has left checkpoints; without a mark nobody knows in what circumstances.
    """
    file = checkpoints / MARK
    if begun and not file.exists():
        devices.marked(file, "unknown")
    return devices.marked(file, content_id("circumstances", here))


def take_over(
    run_dir: Path,
    lenders: Sequence[Path],
    wanted: Wanted,
    before: Sequence[Manifest],
    *,
    beside: Callable[[Path], Path],
    note: Callable[[str], None],
) -> Manifest | None:
    """Copy a stage's outputs, and the store as it left it, from the first run that has done this very work.

    Args:
        lenders: directories of other runs.
        before: what this run has gone through so far; another run that went another way lends nothing from there on.
        beside: where a file or directory grows that is to stand at a place of this run.
        note: hears what was taken over from where, and why not from a run that has done the stage.
    Returns: the manifest, to be written once the outputs stand in their places; None = nobody has done this work.
    Raises: LedgerError when the disk is full.
    """
    for lender in lenders:
        try:
            found = _same_work(lender, wanted, before)
            why = None if found is None else _unlike(found, wanted)
        except LedgerError as error:
            found, why = None, str(error)
        if found is not None and why is None and wanted.with_store:
            why = _store_differs(run_dir, lender, found.metrics[WORKED_OUT]["store"])
        if why is not None:
            note(f"{wanted.stage}: not taken over from {lender.name}: {why}")
        elif found is not None:
            for one in outermost(found.outputs):
                copy_in(lender / one.path, beside(run_dir / one.path))
            note(f"{wanted.stage}: {TAKEN}{lender.name}, where this very work was done")
            return replace(found, run_id=run_dir.name, inputs=tuple(wanted.inputs), notes=_notes(found))
    return None


def outermost(outputs: Sequence[ArtifactRef]) -> list[ArtifactRef]:
    """The outputs that lie in no other one."""
    paths = {one.path for one in outputs}
    return [one for one in outputs if not any(str(parent) in paths for parent in PurePosixPath(one.path).parents)]


def _same_work(lender: Path, wanted: Wanted, before: Sequence[Manifest]) -> Manifest | None:
    """The manifest of the same work in another run that went the same way; None = it has not done that."""
    if not (lender / "manifests" / f"{wanted.stage}.json").exists():
        return None
    for ours in before:
        if not (lender / "manifests" / f"{ours.stage}.json").exists():
            return None
        theirs = read_manifest(lender, ours.stage)
        if theirs.key != ours.key or _contents(theirs) != _contents(ours):
            return None
    return finished_stage(lender, wanted.stage, wanted.inputs, wanted.settings, wanted.seeds)


def _contents(manifest: Manifest) -> set[tuple[str, str]]:
    return {(one.name, one.hash) for one in manifest.outputs}


def _unlike(found: Manifest, wanted: Wanted) -> str | None:
    """Why the same work would not give the same bits here; None = nothing speaks against it."""
    how = found.metrics.get(WORKED_OUT)
    if how is None:
        return "how it was worked out is not recorded"
    if how["in"] != dict(wanted.here):
        differing = [name for name, value in wanted.here.items() if not _agrees(how["in"], name, value)]
        return f"it was worked out in other circumstances ({', '.join(differing)})"
    if how.get("also") != wanted.also:
        return "what it went by beside its inputs is not the same"
    if wanted.with_store and "store" not in how:
        return "how it left the store is not recorded"
    return None


def _agrees(there: Any, name: str, value: Any) -> bool:
    return isinstance(there, Mapping) and there.get(name) == value


def _store_differs(run_dir: Path, lender: Path, left: str) -> str | None:
    """Have this run's store be as the other run's stage left it; returns why it cannot be, or None."""
    own, copy = run_dir / STORE, run_dir / f".taken-{STORE}"
    if own.exists():
        return None if _rows_hash(own) == left else "the store of this run holds something else"
    copy.unlink(missing_ok=True)
    try:
        with open_store(lender / STORE, create=False) as store:
            backup(store, copy, now=0.0)
    except StoreError as error:
        return str(error)
    # the copy is asked, not what it was made from: that one may change meanwhile
    if _rows_hash(copy) != left:
        copy.unlink()
        return "its store has been written to since"
    copy.replace(own)
    return None


def _rows_hash(path: Path) -> str:
    with open_store(path, create=False) as store:
        return rows_hash(store)


def _notes(found: Manifest) -> tuple[str, ...]:
    """What is said of work that another run did: which, when, and under which manifest; of the first who did it."""
    if any(one.startswith(TAKEN) for one in found.notes):
        return tuple(found.notes)
    return (*found.notes, f"{TAKEN}{found.run_id}, where it ended at {found.finished_at}: {found.id}")
