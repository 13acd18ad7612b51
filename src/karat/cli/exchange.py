"""Commands that bring votes in and out of a store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from karat.cli.options import AsJson, Out, StorePath, answer, app, counts
from karat.errors import ConfigError, StoreError

ImportFormat = Literal["votes", "preferences", "hh", "ukp"]
ExportFormat = Literal["conversational", "standard", "votes"]


@app.command("import", epilog="Example: karat import votes.jsonl.gz --format votes --store karat.db")
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, plain or gzip.")],
    kind: Annotated[ImportFormat, typer.Option("--format", help="How the file is written (docs/votes-format.md).")],
    store: StorePath = "karat.db",
    texts: Annotated[Path | None, typer.Option(help="The texts that votes name by id (votes, ukp).")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring votes from a file into a store: all of them or, where a row is wrong, none."""
    from karat.feedback import importers
    from karat.feedback.store import open_store

    if kind == "ukp" and texts is None:
        raise ConfigError("import --format ukp: found no --texts; expected the file of arguments")
    with open_store(store) as opened:
        if kind == "ukp":
            done = importers.import_ukp(opened, path, texts or "")
        elif kind == "votes":
            done = importers.import_votes(opened, path, texts)
        elif kind == "hh":
            done = importers.import_hh(opened, path)
        else:
            done = importers.import_preferences(opened, path)
    answer(as_json, {"store": store, **dataclasses.asdict(done)}, [f"{store}: {counts(done)}"])


@app.command(epilog="Example: karat export runs/demo/snapshots/votes --format conversational --out preferences.jsonl")
def export(
    source: Annotated[Path, typer.Argument(help="A snapshot (a directory) or a store (a file).")],
    out: Out,
    kind: Annotated[ExportFormat, typer.Option("--format", help="standard or conversational: chosen and rejected.")],
    as_json: AsJson = False,
) -> None:
    """Write votes to a file: as preference trainers read them, or all that is known in the votes format (a store)."""
    from karat.feedback import exporters
    from karat.feedback.snapshot import read_snapshot
    from karat.feedback.store import open_store

    if not source.exists():
        raise StoreError(f"{source}: nothing is there; expected the directory of a snapshot or the file of a store")
    if (kind == "votes") == source.is_dir():
        expected = "a store (a file)" if kind == "votes" else "a snapshot (a directory)"
        raise ConfigError(f"export --format {kind}: found {source}; expected {expected}")
    if kind == "votes":
        with open_store(source) as opened:
            done = exporters.export_votes(opened, out)
    else:
        done = exporters.export_preferences(read_snapshot(source), out, style=kind)
    answer(as_json, {"out": str(out), **dataclasses.asdict(done)}, [f"{out}: {counts(done)}"])
