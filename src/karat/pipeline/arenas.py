"""Blind comparisons by people as a station: what a store's arenas say of a run's policies, kept beside its evaluation.

People vote when the run has long ended, so this station is asked again whenever a report is written; without new votes it
is kept as it is. Its outputs are a snapshot of the votes and the figures made from them. Knows arenas, manifests and
stores; knows nothing about models.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from karat.errors import InputError
from karat.feedback.snapshot import current_judgements, read_snapshot, work_records, write_snapshot
from karat.feedback.store import open_store
from karat.feedback.work.arena import Arena, arena, arena_figures, arenas
from karat.identity import content_id
from karat.ledger.artifacts import ArtifactRef, write_json
from karat.ledger.lineage import ASKED
from karat.ledger.manifest import Manifest, lock_run, read_manifests
from karat.lm import parallel
from karat.pipeline.arena_rows import STAGE
from karat.pipeline.recorded import run_settings
from karat.pipeline.reporting import optimised, write_report
from karat.pipeline.stages import Output, Run, StageResult, Workplace, jsonable
from karat.progress import Progress
from karat.seeding import numpy_generator

OWN = "karat.db"
"""The store in a run's directory."""


@dataclass(frozen=True)
class Voted:
    """An arena with votes, about policies of a run."""

    stage: str
    """Its stage: `arena-` and the name, for another store than the run's own with the store's."""
    address: str
    """Its store."""
    arena: Arena
    """How it was set up."""
    votes: frozenset[str]
    """Judgement.id of those that count."""
    policies: Mapping[str, str]
    """By the arena's name for a policy the evaluation's (`sft`, `ppo`), for those of the run."""
    models: tuple[ArtifactRef, ...]
    """Their models, as the run's evaluation read them."""


def report_run(directory: Path, *, stores: Sequence[str] = (), progress: Progress) -> dict[str, Any]:
    """Take in what people said of the run's policies, then write report, card and summary again.

    Args:
        stores: addresses of further stores with arenas about this run's policies.
    Returns: the summary with the run's directory.
    Raises: LedgerError when the directory holds no run; InputError where a further store has no such votes.
    """
    directory = directory.resolve()
    manifests = read_manifests(directory)
    found = voted_arenas(directory, manifests, stores)
    if not found:
        return write_report(directory)
    seed = run_settings(directory)["seed"]
    with lock_run(directory):
        take_arenas(Run(directory, seed, progress), found)
        return write_report(directory)


def take_run_arenas(run: Run) -> list[Manifest]:
    """`take_arenas` of the arenas in the run's own store, for a river that has just been run."""
    return take_arenas(run, parallel.from_main(lambda: voted_arenas(run.directory, read_manifests(run.directory))))


def take_arenas(run: Run, found: Sequence[Voted]) -> list[Manifest]:
    """A stage for each arena: a snapshot of its votes, and the win rate that they give."""
    made = []
    for one in found:
        pairs = content_id("arena", [one.arena.policies, one.arena.written_by, one.arena.checkpoints])
        votes = content_id("votes", sorted(one.votes))
        config = {"arena": one.arena.name, "votes": votes, "pairs": pairs, "policies": one.policies}
        work = partial(_measure, one, run.seed)
        made.append(run.stage(one.stage, inputs=one.models, config=config, work=work))
    return made


def voted_arenas(directory: Path, manifests: Sequence[Manifest], stores: Sequence[str] = ()) -> list[Voted]:
    """The arenas with votes: all of the run's own store, and those of further stores that name a model of the run.

    Raises: InputError where a further store has none.
    """
    known = evaluated(manifests)
    own = directory / OWN
    found = _of_store(str(own), known, directory, strict=False) if own.is_file() else []
    for address in stores:
        there = _of_store(address, known, directory, strict=True)
        if not there:
            raise InputError(
                f"{_label(address)}: found no votes on a model of {directory.name}; expected an arena of `karat serve --arena` or "
                "`karat collect --against` with one of its checkpoints, as they are now"
            )
        found += there
    if twice := [stage for stage, n in Counter(one.stage for one in found).items() if n > 1]:
        raise InputError(
            f"{twice[0]}: found two stores of one name; expected a name for each, to tell their votes apart"
        )
    return found


def evaluated(manifests: Sequence[Manifest]) -> dict[str, ArtifactRef]:
    """The policies that the run's evaluation read, by their names in it, the fine-tuned one first."""
    by_stage = {manifest.stage: manifest for manifest in manifests}
    if "evaluate" not in by_stage:
        return {}
    *policies, _, _ = by_stage["evaluate"].inputs
    name = optimised(by_stage)
    rounds = [f"{name}_round_{number}" for number in range(1, len(policies) - 1)]
    return dict(zip(["sft", *rounds, name], policies, strict=True))


def _of_store(address: str, known: Mapping[str, ArtifactRef], directory: Path, *, strict: bool) -> list[Voted]:
    """strict: True = only arenas whose weights are recorded and are the run's."""
    found = []
    with open_store(address) as store:
        for name in arenas(store):
            set_up = arena(store, name)
            meant = {policy: _meant(set_up, policy, known, directory, strict) for policy in set_up.policies}
            policies = {policy: ours for policy, ours in meant.items() if ours}
            records, _ = current_judgements(work_records(store, batch=set_up.batch))
            votes = [one for one in records if one.judgement.task_id in set_up.written_by]
            if (strict and not policies) or all("missing" in one.judgement.value for one in votes):
                continue
            stage = STAGE + (f"{_label(address)}-" if strict else "") + name
            ids = frozenset(one.id for one in votes)
            models = tuple(known[ours] for ours in policies.values())
            found.append(Voted(stage, address, set_up, ids, policies, models))
    return found


def _meant(set_up: Arena, policy: str, known: Mapping[str, ArtifactRef], directory: Path, strict: bool) -> str | None:
    """The evaluation's name of an arena's policy: by its weights; by its path or name where those are not recorded."""
    if set_up.checkpoints:
        return next((name for name, one in known.items() if one.hash == set_up.checkpoints.get(policy)), None)
    if strict:
        return None
    for name, one in known.items():
        path = directory / one.path
        if policy in (name, path.name) or Path(policy).resolve() == path.resolve():
            return name
    return None


def _measure(one: Voted, seed: int, place: Workplace) -> StageResult:
    with open_store(one.address) as store:
        snapshot = place.beside(place.directory / "snapshots" / one.stage)
        # votes of before are in the store too; here a copy of them would only escape the next erasure
        if snapshot.exists():
            shutil.rmtree(snapshot)
        write_snapshot(store, snapshot, only=one.votes)
        figures = arena_figures(store, one.arena.name, numpy_generator(seed, "arena", one.stage), only=one.votes)
    root = read_snapshot(snapshot).root
    about = {"store": _label(one.address), "root": root, "is": dict(one.policies)}
    content = {**about, **figures, "written_by": one.arena.written_by, "checkpoints": one.arena.checkpoints}
    target = place.beside(place.directory / "arenas" / f"{one.stage.removeprefix(STAGE)}.json")
    write_json(target, jsonable(content))
    metrics = {**about, **{name: value for name, value in figures.items() if name != "slices"}}
    outputs = [Output("votes", snapshot, ASKED), Output("arena", target)]
    unknown = [policy for policy in one.arena.policies if policy in one.policies and not one.arena.checkpoints]
    notes = [f"{policy}: taken for the run's by its name; which weights wrote is not recorded" for policy in unknown]
    return StageResult(outputs, metrics, notes=notes)


def _label(address: str) -> str:
    """What a store is called in a stage's name: its file's or database's name, without password or place."""
    name = address.partition("?")[0].rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name.removesuffix(".db")) or "store"
