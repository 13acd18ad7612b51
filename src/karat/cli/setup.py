"""Commands for whoever begins: a configuration to start from, and what this machine offers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from karat.cli.options import AsJson, answer, app
from karat.errors import ConfigError

InitSource = Literal["sandbox", "preferences", "people", "votes"]


@app.command(epilog="Example: karat init config.yaml && karat run config.yaml")
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("config.yaml"),
    source: Annotated[InitSource, typer.Option(help="Where prompts and votes come from.")] = "sandbox",
    as_json: AsJson = False,
) -> None:
    """Write a commented configuration with every key and its default."""
    if path.exists():
        raise ConfigError(f"{path}: is already there; choose another name, or remove it first")
    from karat.ledger.artifacts import write_text
    from karat.pipeline.settings import RunConfig
    from karat.pipeline.votes import VotesConfig
    from karat.starter import commented_yaml

    write_text(path, commented_yaml(VotesConfig) if source == "votes" else commented_yaml(RunConfig, choose=source))
    answer(as_json, {"written": str(path)}, [f"{path}: written; change what you need, then: karat run {path}"])


@app.command(epilog="Example: karat doctor --json")
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine offers and what is missing; exit code 1 where something needed is."""
    from karat.doctor import examine

    checks = examine()
    lines = [f"{'ok' if check.ok else 'missing':<8} {check.name}: {check.found}" for check in checks]
    answer(as_json, {check.name: dataclasses.asdict(check) for check in checks}, lines)
    if not all(check.ok for check in checks if check.needed):
        raise typer.Exit(1)
