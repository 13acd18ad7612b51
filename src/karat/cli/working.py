"""The work of a command of the river: its configuration read first, then done in this process or several, then shown.

Knows configurations and processes; knows no command.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from karat.cli import processes as launching
from karat.cli.options import MOST, answer
from karat.errors import ConfigError
from karat.ranks import launched, speaks

TOKEN = "KARAT_TOKEN"
"""Environment variable of an admin's token: on a command line others would read it."""


@dataclass(frozen=True)
class Task:
    """What a command of the river has to do."""

    read: Callable[[], None]
    """Reads its configuration and raises what is wrong with it; waits for no library of models."""
    work: Callable[[Any], Any]
    """Does it, given a progress; returns what summary.json holds, plus `directory`."""


def configured(
    config: Path,
    seeds: str,
    sweep: list[str] | None,
    overrides: list[str] | None,
    *,
    until: str | None,
    server: str = "",
) -> Task:
    """The work of a configuration."""
    numbers = parse_seeds(seeds) if seeds else None
    said, swept = overrides or [], sweep or []
    admin = admin_of(server) if server else None

    def read() -> None:
        from karat.pipeline.configured import read_configs

        read_configs(config, said, sweep=swept, until=until)

    def work(progress: Any) -> Any:
        from karat.pipeline.runs import run_config

        with admin or contextlib.nullcontext() as desk:
            return run_config(
                config, overrides=said, seeds=numbers, sweep=swept, until=until, progress=progress, desk=desk
            )

    return Task(read, work)


def admin_of(server: str) -> Any:
    """A client of a server under the admin's token of the environment."""
    from karat.feedback.client import AdminClient

    token = os.environ.get(TOKEN, "")
    if not token:
        raise ConfigError(f"--server: found no {TOKEN} in the environment; `karat people token STORE ADMIN` prints one")
    return AdminClient(server, token)


def together(context: typer.Context, processes: int, task: Task, as_json: bool, fsdp: bool) -> None:
    """The work in this process, or in one of several; `--processes` starts those and waits for them."""
    several = launching.wanted(processes)
    in_shards = not several and launching.in_shards(fsdp)
    if launched() == 1:  # of several processes all would say what is wrong: there the work itself does, once
        task.read()
    if several:
        raise typer.Exit(launching.start(context.obj, processes))
    if launched() == 1:
        shown(task.work, as_json)
        return
    from karat.lm import parallel

    with parallel.joined(in_shards=in_shards):
        shown(task.work, as_json)


def check_alone(command: str, processes: int, fsdp: bool) -> None:
    """Raise ConfigError where a command without a configuration is told to share its work."""
    if processes != 1 or launched() != 1 or fsdp:
        raise ConfigError(f"{command} --model: found several processes; expected one, or a configuration")


def shown(work: Callable[[Any], Any], as_json: bool) -> None:
    """Do the work and show it; each work returns what summary.json holds, plus `directory`."""
    from karat.progress import open_progress

    first = speaks()
    with open_progress(silent=not first) as progress:
        summary = work(progress)
    if first:
        answer(as_json, summary, _summary_lines(summary))
    if summary.get("refused"):  # a check that failed, in some of the runs
        raise typer.Exit(1)


def parse_seeds(text: str) -> list[int]:
    """The numbers in `0`, `0-4` or `0,3,7`.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
            raise ConfigError(f"--seeds {text}: expected numbers like 0, 0-4 or 0,3,7")
        if int(last or first) - int(first) >= MOST:
            raise ConfigError(f"--seeds {text}: expected at most {MOST:,} seeds")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    from karat.report.table import summary_lines

    return summary_lines(summary)
