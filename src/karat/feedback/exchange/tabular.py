"""Judgements as tables: Parquet files, and directories of Hugging Face `datasets`; nothing is lost on the way.

What people filter by is a column of its own; what is nested without a fixed shape is JSON text in a column. Knows
pyarrow and datasets (extra `data`, imported where used) and the rows of `events`; nothing about what they mean.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from karat.errors import ConfigError, InputError
from karat.feedback.exchange.events import EventSummary, event_rows, import_event_rows
from karat.feedback.store import Store
from karat.ledger.artifacts import staged_directory
from karat.rowfiles import Row, appearing

PLAIN = ("format", "id", "erased", "prompt", "topic", "responses")
"""Parts of a row that are columns as they are."""
NESTED = ("task", "question", "annotator", "judgement")
"""Parts of a row that become one column of JSON text each, in full."""


def export_parquet(store: Store, path: str | Path) -> int:
    """Every judgement of a store as one row of a Parquet file, which appears whole or not at all. Returns: rows.

    Raises: ConfigError without pyarrow; InputError where the file cannot be written.
    """
    pyarrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    path, rows = Path(path), [_flat(row) for row in event_rows(store)]
    table = pyarrow.Table.from_pylist(rows, schema=_schema(pyarrow))
    with appearing(path) as file:
        parquet.write_table(table, file, compression="zstd")
    return len(rows)


def import_parquet(store: Store, path: str | Path) -> EventSummary:
    """Bring a file of `export_parquet` into a store: all of it or nothing.

    Raises: ConfigError without pyarrow; InputError for a file that is not one, naming file and row.
    """
    pyarrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: found {'a directory' if path.is_dir() else 'no such file'}; expected a Parquet file")
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from None
    return import_event_rows(store, _rows(table.to_pylist(), path))


def export_dataset(store: Store, path: str | Path) -> int:
    """Every judgement of a store as a directory that `datasets.load_from_disk` opens, whole or not at all. Returns: rows.

    Raises: ConfigError without datasets; InputError where the directory is there already; LedgerError where it cannot
        be written.
    """
    datasets, pyarrow = _module("datasets"), _module("pyarrow")
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: is already there; choose another name, or remove it first")
    table = pyarrow.Table.from_pylist([_flat(row) for row in event_rows(store)], schema=_schema(pyarrow))
    data = datasets.Dataset(table)
    with staged_directory(path) as staging, _no_bars(datasets):
        staging.chmod(0o700)  # people's words: for whoever exports them
        data.save_to_disk(str(staging))
    return len(data)


def import_dataset(store: Store, path: str | Path) -> EventSummary:
    """Bring a directory of `export_dataset` into a store: all of it or nothing.

    Raises: ConfigError without datasets; InputError for a directory that is not one, naming it and the row.
    """
    datasets = _module("datasets")
    path = Path(path)
    if not path.is_dir():
        raise InputError(
            f"{path}: found {'a file' if path.exists() else 'no such directory'}; expected one of datasets"
        )
    try:
        with _no_bars(datasets):
            data = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be opened by datasets ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(data, datasets.Dataset):
        raise InputError(f"{path}: found {len(data)} splits; expected one: give the directory of a split")
    return import_event_rows(store, _rows(data.to_list(), path))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    event, task = row["judgement"], row["task"]
    return {
        **{name: row[name] for name in PLAIN},
        "kind": task["kind"],
        "rater": row["annotator"]["id"],
        "guideline": event["guideline"],
        "created_at": event["created_at"],
        "active_s": event["active_s"],
        "shown_order": list(event["shown_order"]),
        **{name: json.dumps(row[name], ensure_ascii=False, sort_keys=True) for name in NESTED},
    }


def _rows(rows: Sequence[Mapping[str, Any]], path: Path) -> Iterator[Row]:
    if not rows:
        raise InputError(f"{path}: found no rows; expected a table that karat wrote")
    for number, values in enumerate(rows, start=1):
        if missing := {*PLAIN, *NESTED} - set(values):
            raise InputError(f"{path}: row {number} has no column {min(missing)!r}; expected a table that karat wrote")
        try:
            nested = {name: json.loads(values[name]) for name in NESTED}
        except (TypeError, ValueError):
            raise InputError(
                f"{path}: row {number} holds no JSON where it should; expected a table that karat wrote"
            ) from None
        yield Row({name: values[name] for name in PLAIN} | nested, path, number)


def _schema(pyarrow: Any) -> Any:
    text, whole = pyarrow.string(), pyarrow.int64()
    turn = pyarrow.struct([("role", text), ("content", text)])
    response = pyarrow.struct([("text", text), ("source", text), ("sample", whole)])
    return pyarrow.schema(
        [
            ("format", text), ("id", text), ("erased", pyarrow.bool_()), ("prompt", pyarrow.list_(turn)),
            ("topic", text), ("responses", pyarrow.list_(response)), ("kind", text), ("rater", text),
            ("guideline", text), ("created_at", text), ("active_s", pyarrow.float64()),
            ("shown_order", pyarrow.list_(whole)), *((name, text) for name in NESTED),
        ]
    )  # fmt: skip


@contextlib.contextmanager
def _no_bars(datasets: Any) -> Iterator[None]:
    """Without the library's own bars, which would stand in what a command prints."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"{name.split('.')[0]} is not installed; expected the extra: pip install 'karat[data]'"
        ) from None
