"""Commands of the record: what a run wrote, whether it is as it was written, and what fed on what."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from karat.cli.options import RECORD, AsJson, Out, RunDirectory, StoreOrRun, answer, app, so_many, store_address
from karat.errors import ConfigError
from karat.ledger.lineage import Manifest
from karat.lm.checksums import SUMS, altered_files, is_listed
from karat.records import KINDS


@app.command(rich_help_panel=RECORD, epilog="Example: karat verify runs/demo")
def verify(
    what: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, a model, a store, a backup or an auditor's bundle.")
    ],
    published: Annotated[
        list[str] | None, typer.Option(help="A line that `karat seal` printed, noted elsewhere; repeatable.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Of a store: a bundle that was taken away earlier.")] = None,
    opened: Annotated[Path | None, typer.Option(help="Of a bundle: records that `karat disclose` opened.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a run's files, a model's, a store's judgements and seals, a backup or a bundle, and name whatever was altered; exit code 1 then."""
    place, lines = Path(what), published or []
    is_bundle, is_store = (place / "bundle.json").is_file(), "://" in what or place.is_file()
    if not is_store and not place.exists():
        raise ConfigError(
            f"{what}: nothing is there; expected a run, a model, a store, a backup or an auditor's bundle"
        )
    if opened is not None and not is_bundle:
        raise ConfigError(f"verify --opened: found {what}; expected an auditor's bundle")
    if against is not None and not is_store:
        raise ConfigError(f"verify --against: found {what}; expected a store")
    if is_store:
        content, said = _verified_store(what, lines, against)
    elif is_bundle:
        content, said = _verified_bundle(place, lines, opened)
    elif (place / "manifest.json").is_file() and (place / "judgements.jsonl").is_file():
        content, said = _verified_backup(place, lines)
    elif is_listed(place) and not (place / "manifests").is_dir():
        content, said = _verified_model(place)
    else:
        content, said = _verified_run(place, lines)
    answer(as_json, content, said)
    if not content["ok"]:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=RECORD,
    epilog="Example: karat disclose karat.db 17 18 --out opened.jsonl && karat verify bundle --opened opened.jsonl",
)
def disclose(
    run_or_store: StoreOrRun,
    numbers: Annotated[list[int], typer.Argument(metavar="NUMBER", help="Numbers (seq) of records of a bundle.")],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Open records for an auditor who doubts them: what was answered, by whom, in which words, and the salt that proves it."""
    from karat.feedback.record.bundle import open_record
    from karat.feedback.store import open_store
    from karat.rowfiles import write_rows

    with open_store(store_address(run_or_store), create=False) as store:
        n = write_rows(out, [open_record(store, number) for number in numbers])
    answer(
        as_json,
        {"out": str(out), "n_records": n},
        [f"{out}: {so_many(n, 'records')} with their words; give it to the auditor only"],
    )


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


def _verified_store(
    address: str, published: list[str], against: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    from karat.feedback.record.bundle import compare_with_bundle, read_bundle
    from karat.feedback.record.seals import seals
    from karat.feedback.store import open_store

    with open_store(address, create=False) as store:
        problems, chain, n = store.verify(published), seals(store), store.n_judgements()
        if against is not None:
            read_bundle(against)  # says what is wrong with it before it is believed
            problems = [*problems, *compare_with_bundle(store, against)]
        n_seals = f"{len(chain)} seal{'s' * (len(chain) != 1)}"
        sealed = f"{n_seals} through judgement {chain[-1].last_judgement}" if chain else "nothing sealed yet"
        shown = store.address
    return _checked(shown, problems, f"{n:,} judgements as they were submitted, {sealed}")


def _verified_bundle(place: Path, published: list[str], opened: Path | None) -> tuple[dict[str, Any], list[str]]:
    """The bundle, and records that were opened: a bundle alone shows that none is missing, added or exchanged."""
    from karat.feedback.record.bundle import opened_problems, read_bundle, verify_bundle
    from karat.rowfiles import read_rows

    problems = verify_bundle(place, published)
    rows = [] if opened is None or problems else [row.values for row in read_rows(opened)]
    problems += opened_problems(place, rows)
    found = read_bundle(place)
    about = f"{found.n_judgements:,} judgements, none added, removed or exchanged since they were sealed"
    about += f"; {len(rows):,} opened and as they were given" if rows else ""
    hint = "; what each one says is fixed by its commitment: ask for some to be opened (karat disclose)"
    return _checked(str(place), problems, about + ("" if rows else hint))


def _verified_backup(place: Path, published: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Every file of a backup against its hash, and the store that it would restore."""
    from karat.feedback.record.backup import restore
    from karat.feedback.store import open_store

    with tempfile.TemporaryDirectory() as scratch:
        address = Path(scratch) / "restored.db"
        made = restore(place, address)
        problems = list(made.problems)
        if published:
            with open_store(address, create=False) as store:
                problems = list(store.verify(published))
    return _checked(str(place), problems, f"{made.rows.get('judgements', 0):,} judgements, restored and checked")


def _verified_model(place: Path) -> tuple[dict[str, Any], list[str]]:
    """The files of a model against the checksums beside them, those of an ensemble's members too."""
    places = {file.parent for kind in (SUMS, "*.safetensors") for file in place.rglob(kind)}
    found = [f"{(each / said).relative_to(place)}" for each in sorted(places) for said in altered_files(each)]
    content = {"model": str(place), "ok": not found, "problems": found}
    return content, found or [f"{place}: every file as karat wrote it"]


def _checked(name: str, problems: list[Any], about: str) -> tuple[dict[str, Any], list[str]]:
    found = [{"judgement": one.judgement_id, "what": one.what} for one in problems]
    lines = [f"{one['judgement']}  {one['what']}" for one in found] or [f"{name}: {about}"]
    return {"store": name, "ok": not found, "problems": found}, lines


@app.command(rich_help_panel=RECORD, epilog="Example: karat trace runs/demo models/ppo --judgements")
def trace(
    run_dir: RunDirectory,
    artefact: Annotated[
        str | None,
        typer.Argument(metavar="ARTEFACT", help="A path, hash, stage or stage/name; none = all final artefacts."),
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
    by_stage = {manifest.stage: manifest for manifest in read_manifests(run_dir)}

    def describe(reference: Any, place: Path, reader: str | None) -> Mapping[str, Any]:
        return _snapshot_facts(reference.kind, place, judgements, kinds_read(by_stage.get(reader or "")))

    nodes = trace_run(run_dir, artefact, describe=describe)
    answer(as_json, {"trees": [dataclasses.asdict(node) for node in nodes]}, lineage.trace_lines(nodes))


def _snapshot_facts(kind: str, place: Path, with_ids: bool, kinds: Collection[str] | None) -> Mapping[str, Any]:
    """What a stage read in a snapshot.

    Args:
        kinds: it read what these kinds of judgements say, and nothing that does not fit its question; None = all.
    """
    from karat.ledger.lineage import SNAPSHOTS

    if kind not in SNAPSHOTS or not place.is_dir():
        return {}
    from karat.feedback.snapshot import read_snapshot

    snapshot = read_snapshot(place)
    said = [(vote.judgement_id, vote.kind) for vote in snapshot.votes]
    said += [(judgement.id, judgement.kind) for judgement in snapshot.judgements]
    facts: dict[str, Any] = {"root": snapshot.root, "votes": len(snapshot.votes), "raters": len(snapshot.annotators)}
    if len(snapshot.by_origin) > 1:  # whose they are, where people were not alone
        for origin, n in snapshot.by_origin.items():
            facts[f"of origin {origin}"] = f"{n['votes']} votes by {n['raters']}"
    used = sorted(
        one for one, its_kind in said
        if kinds is None or (its_kind in (kinds or KINDS) and one not in snapshot.misfits)
    )  # fmt: skip
    if len(used) < len(said):
        facts["used"] = f"{len(used)} of {len(said)} judgements" + (f": {', '.join(kinds)}" if kinds else "")
    return facts | ({"judgements": used} if with_ids else {})


def kinds_read(reader: Manifest | None) -> Collection[str] | None:
    """`reward.kinds` of the stage that trained a reward on a snapshot; None = the stage trained none."""
    if reader is None or reader.stage.partition("-")[0] != "reward":
        return None
    settings = reader.config.get("settings")
    own = settings.get("reward") if isinstance(settings, Mapping) else settings[0] if settings else None
    return own.get("kinds") if isinstance(own, Mapping) else None
