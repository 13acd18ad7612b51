"""Commands of the record: what a run wrote, whether it is as it was written, and what fed on what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from karat.cli.options import AsJson, RunDirectory, answer, app
from karat.errors import ConfigError


@app.command(epilog="Example: karat verify runs/demo")
def verify(run_dir: RunDirectory, as_json: AsJson = False) -> None:
    """Hash every recorded file of a run again and name whatever was altered; exit code 1 if anything was."""
    from karat.ledger.manifest import read_manifests, verify_run

    problems = verify_run(run_dir)
    fatal = [problem for problem in problems if problem.fatal]
    lines = [f"{problem.kind:<10} {problem.path}  ({problem.detail}; {problem.stage})" for problem in problems]
    if not fatal:
        manifests = read_manifests(run_dir)
        n_outputs = sum(len(manifest.outputs) for manifest in manifests)
        lines.append(f"{run_dir}: {len(manifests)} stages, {n_outputs} artefacts, every recorded byte as it was")
    content = {"run": str(run_dir), "ok": not fatal, "problems": [dataclasses.asdict(problem) for problem in problems]}
    answer(as_json, content, lines)
    if fatal:
        raise typer.Exit(1)


@app.command(epilog="Example: karat trace runs/demo models/ppo --judgements")
def trace(
    run_dir: RunDirectory,
    artefact: Annotated[
        str | None, typer.Argument(help="A path, hash, stage or stage/name; none = all final artefacts.")
    ] = None,
    judgements: Annotated[bool, typer.Option("--judgements", help="List the judgements of each snapshot.")] = False,
    affected: Annotated[bool, typer.Option("--affected", help="The other way: what was made from it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what an artefact was made from, down to the votes."""
    from karat.ledger import lineage
    from karat.ledger.manifest import read_manifests, trace_run

    if affected:
        if artefact is None:
            raise ConfigError("trace --affected: found no artefact; expected a path, hash, stage or stage/name")
        made = lineage.affected(read_manifests(run_dir), artefact)
        rows = [{"stage": stage, "path": reference.path, "hash": reference.hash} for stage, reference in made]
        lines = [f"{row['path']}  [{lineage.short(row['hash'])}] written by {row['stage']}" for row in rows]
        answer(as_json, {"artefact": artefact, "affected": rows}, lines or [f"{artefact}: nothing was made from it"])
        return
    nodes = trace_run(run_dir, artefact, describe=lambda ref, place: _snapshot_facts(ref.kind, place, judgements))
    answer(as_json, {"trees": [dataclasses.asdict(node) for node in nodes]}, lineage.trace_lines(nodes))


def _snapshot_facts(kind: str, place: Path, with_ids: bool) -> Mapping[str, Any]:
    if kind != "snapshot" or not place.is_dir():
        return {}
    from karat.feedback.snapshot import read_snapshot

    snapshot = read_snapshot(place)
    ids = sorted([vote.judgement_id for vote in snapshot.votes] + [judgement.id for judgement in snapshot.judgements])
    facts = {"root": snapshot.root, "votes": len(snapshot.votes), "raters": len(snapshot.annotators)}
    return facts | ({"judgements": ids} if with_ids else {})
