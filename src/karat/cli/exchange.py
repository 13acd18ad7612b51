"""Commands that bring votes in and out of a store."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from karat.cli.options import PEOPLE, AsJson, Out, StorePath, answer, app, counts, store_address
from karat.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from karat.feedback.store import Store

ImportFormat = Literal[
    "answers", "votes", "preferences", "hh", "ukp", "judgements", "parquet", "datasets", "argilla", "label-studio"
]
ExportFormat = Literal[
    "conversational", "standard", "answers", "votes", "judgements", "parquet", "datasets", "argilla", "label-studio"
]
SNAPSHOT_FORMATS = ("conversational", "standard")
FOREIGN = ("argilla", "label-studio")
OPTIONS_OF = {
    "texts": ("answers", "votes", "ukp"),
    **dict.fromkeys(("prompt-field", "response-fields", "scale"), FOREIGN),
}
"""Options of an import → the formats that read them."""
ROWS = ("votes", "preferences", "hh", "ukp", "judgements")
"""Formats of JSON lines alone."""


@app.command(
    "import", rich_help_panel=PEOPLE, epilog="Example: karat import votes.jsonl.gz --format votes --store karat.db"
)
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, plain or gzip; or what the format says.")],
    kind: Annotated[ImportFormat, typer.Option("--format", help="How the file is written (docs/votes-format.md).")],
    store: StorePath = "karat.db",
    texts: Annotated[Path | None, typer.Option(help="The texts that votes name by id (answers, votes, ukp).")] = None,
    prompt_field: Annotated[str, typer.Option(help="argilla, label-studio: the field of the prompt.")] = "",
    response_fields: Annotated[str, typer.Option(help="argilla, label-studio: the responses' fields, a,b,…")] = "",
    scale: Annotated[str, typer.Option(help="argilla, label-studio: ends of the ratings' scale; empty = 1-5.")] = "",
    as_json: AsJson = False,
) -> None:
    """Bring votes and judgements from a file into a store: all of them or, where a row is wrong, none."""
    from karat.feedback.store import store_to_fill
    from karat.progress import open_progress

    _check_fit(
        kind, path, {"texts": texts, "prompt-field": prompt_field, "response-fields": response_fields, "scale": scale}
    )
    names = _field_names(prompt_field, response_fields, scale or "1-5")
    with open_progress() as progress, store_to_fill(store) as opened, _all_kept():
        opened.progress = progress
        done = _importers(kind, texts, names)(opened, path)
    answer(as_json, {"store": opened.address, **dataclasses.asdict(done)}, [f"{opened.address}: {counts(done)}"])


@app.command(
    rich_help_panel=PEOPLE,
    epilog="Example: karat export runs/demo/snapshots/votes --format conversational --out preferences.jsonl",
)
def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A snapshot (a directory), or a store: a file, a run or a URL.")
    ],
    out: Out,
    kind: Annotated[ExportFormat, typer.Option("--format", help="standard, conversational: chosen and rejected.")],
    as_json: AsJson = False,
) -> None:
    """Write votes to a file: as preference trainers read them (a snapshot), or all that is known (a store)."""
    from karat.feedback.exchange import exporters
    from karat.feedback.snapshot import read_snapshot

    place = Path(source)
    if kind in SNAPSHOT_FORMATS:
        if not place.exists():
            raise StoreError(f"{place}: nothing is there; expected the directory of a snapshot")
        if place.is_file() and not (place.parent / "snapshot.json").is_file():
            raise ConfigError(f"export --format {kind}: found {place}; expected a snapshot (a directory)")
        summary = exporters.export_preferences(read_snapshot(place), out, style=kind)  # type: ignore[arg-type]
        answer(as_json, {"out": str(out), **dataclasses.asdict(summary)}, [f"{out}: {counts(summary)}"])
        return
    with _store_of(source, kind) as opened:
        if kind in ("answers", "votes"):
            summary = (exporters.export_votes if kind == "votes" else exporters.export_answers)(opened, out)
            answer(as_json, {"out": str(out), **dataclasses.asdict(summary)}, [f"{out}: {counts(summary)}"])
            return
        n_rows = _exporter(kind)(opened, out)
    answer(as_json, {"out": str(out), "n_rows": n_rows}, [f"{out}: {n_rows:,} rows"])


@contextlib.contextmanager
def _all_kept() -> Iterator[None]:
    """Within: nobody looks for rubbish, since what is read stays to the end; looking through it all took a fifth of an import."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _store_of(source: str, kind: str) -> Store:
    """The store to be exported. Raises: StoreError where there is none; of a snapshot with what can be had of it."""
    from karat.feedback.store import open_store

    try:
        address = store_address(source)
    except StoreError as error:
        formats = " or ".join(SNAPSHOT_FORMATS)
        more = f"; of a snapshot itself there is --format {formats}" if "found a snapshot" in str(error) else ""
        raise StoreError(f"export --format {kind}: {error}{more}") from None
    return open_store(address, create=False)


def _check_fit(kind: str, path: Path, options: Mapping[str, Any]) -> None:
    """Raises: ConfigError for an option that the format would not read, one that it lacks, or a table that it cannot read."""
    unread = [name for name, value in options.items() if value and kind not in OPTIONS_OF[name]]
    if unread:
        raise ConfigError(
            f"import --format {kind}: found --{unread[0]}; expected it with {', '.join(OPTIONS_OF[unread[0]])} alone"
        )
    if kind == "ukp" and options["texts"] is None:
        raise ConfigError("import --format ukp: found no --texts; expected the file of arguments")
    if kind in ROWS and path.name.removesuffix(".gz").endswith((".csv", ".tsv")):
        raise ConfigError(
            f"import --format {kind}: found the table {path}; expected JSON lines (--format answers reads tables)"
        )


def _importers(kind: str, texts: Path | None, names: Any) -> Callable[[Any, Path], Any]:
    from karat.feedback.exchange import answers, events, foreign, importers, tabular
    from karat.rowfiles import read_rows

    return {
        "answers": lambda store, path: answers.import_answers(store, path, texts),
        "votes": lambda store, path: importers.import_votes(store, path, texts),
        "preferences": importers.import_preferences,
        "hh": importers.import_hh,
        "ukp": lambda store, path: importers.import_ukp(store, path, texts or ""),
        "judgements": lambda store, path: events.import_event_rows(store, read_rows(path)),
        "parquet": tabular.import_parquet,
        "datasets": tabular.import_dataset,
        "argilla": lambda store, path: foreign.import_argilla(store, path, names),
        "label-studio": lambda store, path: foreign.import_label_studio(store, path, names),
    }[kind]


def _exporter(kind: str) -> Callable[[Any, Path], int]:
    from karat.feedback.exchange import events, foreign, tabular
    from karat.rowfiles import write_rows

    return {
        "judgements": lambda store, path: write_rows(path, events.event_rows(store)),
        "parquet": tabular.export_parquet,
        "datasets": tabular.export_dataset,
        "argilla": foreign.export_argilla,
        "label-studio": foreign.export_label_studio,
    }[kind]


def _field_names(prompt: str, responses: str, scale: str) -> Any:
    from karat.feedback.exchange.foreign import FieldNames

    low, _, high = scale.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) < int(high)):
        raise ConfigError(f"--scale {scale}: expected two numbers like 1-5")
    named = tuple(name.strip() for name in responses.split(",") if name.strip())
    return FieldNames(prompt or None, named, int(low), int(high))
