"""The application that commands register with, the options that several of them take, and how they answer.

Knows typer and JSON; knows no command and no room.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from karat.errors import StoreError

app = typer.Typer(
    name="karat",
    help="Reinforcement learning from human feedback, end to end, and the audit of it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
START, STATIONS, METHODS = "Start", "Runs and their stations", "Runs up to a policy, by method"
MODELS, PEOPLE, RECORD = "Models", "People and their judgements", "The record"
"""Panels of the help, in the order in which their first commands are registered."""
RUNS = Path("runs")

AsJson = Annotated[bool, typer.Option("--json", help="One machine-readable object on standard output.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.SUB=VALUE", help="Override a configuration key; repeatable.")
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A configuration; `karat init` writes one.")]
RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run, runs/<name>.")]
StorePath = Annotated[str, typer.Option("--store", help="The feedback store: a file or a database address.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Seeds: 0, 0-4 or 0,3,7; empty = the configuration's.")]
MOST_PROCESSES = 1_024
Processes = Annotated[
    int,
    typer.Option(
        "--processes", max=MOST_PROCESSES, help="Processes on this machine that share the work, see docs/processes.md."
    ),
]
InShards = Annotated[
    bool, typer.Option("--fsdp", help="Of what is trained each process holds a shard, see docs/processes.md.")
]
Server = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="A running server of the store, to work through instead of the store; KARAT_TOKEN holds an admin's token.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="Where models work: auto, cpu, cuda, cuda:1, mps …; see docs/processes.md.")
]
Decoding = Annotated[
    str,
    typer.Option("--decode", help="How tokens are drawn: auto, plain, steps, compiled, graph; see docs/processes.md."),
]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
MAX_NEW_TOKENS = 128
MOST = 1_000_000
"""Of whatever a command is told to make many of: more is a slip of the hand, and would fill the memory before it is seen."""
MaxNewTokens = Annotated[int | None, typer.Option(max=MOST, help="Longest response; none = 128, or what fits.")]


@contextmanager
def at_work(device: str, decode: str) -> Iterator[None]:
    """Within: models work on that device, and draw tokens in that way. Raises: ConfigError where they cannot."""
    from karat.devices import on_device
    from karat.lm.ways import in_ways

    with on_device(device), in_ways(decode):
        yield


def answer(as_json: bool, content: Any, lines: Iterable[str]) -> None:
    """Print the one object, or the lines for a person."""
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, default=_plain, allow_nan=False))
        return
    for line in lines:
        typer.echo(line)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def counts(summary: Any) -> str:
    """The counts of a summary in words: `12 votes, 1 rater`."""
    counts = dataclasses.asdict(summary).items()
    named = ((name.removeprefix("n_").replace("_", " "), count) for name, count in counts if isinstance(count, int))
    return ", ".join(so_many(count, name) for name, count in named)


def so_many(n: int, counted: str) -> str:
    """A number and what it counts.

    >>> so_many(2, "ties left out"), so_many(1, "ties left out"), so_many(1200, "raters")
    ('2 ties left out', '1 tie left out', '1,200 raters')
    """
    first, _, rest = counted.partition(" ")
    return f"{n:,} {first.removesuffix('s') if n == 1 else first} {rest}".rstrip()


StoreOrRun = Annotated[
    str, typer.Argument(metavar="RUN_OR_STORE", help="A run's directory, a store's file, or a database address.")
]


def store_address(run_or_store: str) -> str:
    """The address of the store of a run, or the address itself.

    Raises: StoreError for a directory without a store, and for a snapshot, which is none.
    """
    place = Path(run_or_store)
    snapshot = next((one for one in (place, place.parent) if (one / "snapshot.json").is_file()), None)
    if "://" not in run_or_store and snapshot is not None and place.suffix != ".db":
        run = snapshot.parent.parent
        store = f", {run}" if (run / "karat.db").is_file() else ""
        raise StoreError(f"{place}: found a snapshot; expected the store or run that it was taken from{store}")
    if "://" in run_or_store or not place.is_dir():
        return run_or_store
    if not (place / "karat.db").is_file():
        raise StoreError(f"{place}: found no karat.db in this directory; expected a run that has collected, or a store")
    return str(place / "karat.db")


def store_or_new(run_or_store: str) -> str:
    """The address of a store that is made where there is none yet; a run has to be there.

    Raises: StoreError for a directory without a store, and for a path that looks like a run's and is not there.
    """
    address = store_address(run_or_store)
    if "://" not in address and not Path(address).suffix and not Path(address).exists():
        raise StoreError(
            f"{address}: found neither a run nor a store; expected a run that `karat run` has begun, or a store's file, "
            f"which is made where it has an ending, as in {address}.db"
        )
    if "://" not in address and Path(address).name == "karat.db":  # of a run that is about to begin
        with suppress(OSError):  # opening it says what is wrong
            Path(address).parent.mkdir(parents=True, exist_ok=True)
    return address
