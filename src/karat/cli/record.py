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
def verify(
    what: Annotated[str, typer.Argument(metavar="RUN", help="A run, a store, a backup or an auditor's bundle.")],
    published: Annotated[
        list[str] | None, typer.Option(help="A line that `karat seal` printed, noted elsewhere; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a run's files, a store's judgements and seals, or a bundle, and name whatever was altered; exit code 1 then."""
    place = Path(what)
    if "://" in what or place.is_file():
        content, lines = _verified_store(what, published or [])
    elif (place / "bundle.json").is_file():
        content, lines = _verified_bundle(place, published or [])
    else:
        content, lines = _verified_run(place, published or [])
    answer(as_json, content, lines)
    if not content["ok"]:
        raise typer.Exit(1)


def _verified_run(place: Path, published: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The files of the manifests, and the store beside them where there is one."""
    from karat.ledger.manifest import read_manifests, verify_run

    problems = verify_run(place)
    fatal = [problem for problem in problems if problem.fatal]
    lines = [f"{problem.kind:<10} {problem.path}  ({problem.detail}; {problem.stage})" for problem in problems]
    if not fatal:
        manifests = read_manifests(place)
        n_outputs = sum(len(manifest.outputs) for manifest in manifests)
        lines.append(f"{place}: {len(manifests)} stages, {n_outputs} artefacts, every recorded byte as it was")
    content = {"run": str(place), "ok": not fatal, "problems": [dataclasses.asdict(problem) for problem in problems]}
    if (place / "karat.db").is_file():
        of_store, more = _verified_store(str(place / "karat.db"), published)
        content = content | {"ok": content["ok"] and of_store["ok"], "store": of_store}
        lines += more
    return content, lines


def _verified_store(address: str, published: list[str]) -> tuple[dict[str, Any], list[str]]:
    from karat.feedback.record.seals import seals
    from karat.feedback.store import open_store

    with open_store(address) as store:
        problems, chain, n = store.verify(published), seals(store), store.n_judgements()
        sealed = f"{len(chain)} seals through judgement {chain[-1].last_judgement}" if chain else "nothing sealed yet"
        shown = store.address
    return _checked(shown, problems, f"{n:,} judgements as they were submitted, {sealed}")


def _verified_bundle(place: Path, published: list[str]) -> tuple[dict[str, Any], list[str]]:
    from karat.feedback.record.bundle import read_bundle, verify_bundle

    problems = verify_bundle(place, published)
    about = "" if problems else f"{read_bundle(place).n_judgements:,} judgements as the seals say"
    return _checked(str(place), problems, about)


def _checked(name: str, problems: list[Any], about: str) -> tuple[dict[str, Any], list[str]]:
    found = [{"judgement": one.judgement_id, "what": one.what} for one in problems]
    lines = [f"{one['judgement']}  {one['what']}" for one in found] or [f"{name}: {about}"]
    return {"store": name, "ok": not found, "problems": found}, lines


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
    from karat.ledger.lineage import SNAPSHOTS

    if kind not in SNAPSHOTS or not place.is_dir():
        return {}
    from karat.feedback.snapshot import read_snapshot

    snapshot = read_snapshot(place)
    ids = sorted([vote.judgement_id for vote in snapshot.votes] + [judgement.id for judgement in snapshot.judgements])
    facts = {"root": snapshot.root, "votes": len(snapshot.votes), "raters": len(snapshot.annotators)}
    return facts | ({"judgements": ids} if with_ids else {})
