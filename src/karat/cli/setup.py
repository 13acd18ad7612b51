"""Commands for whoever begins: a configuration to start from, and what this machine offers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from karat.cli.options import RUNS, START, AsJson, InShards, Overrides, Processes, answer, app
from karat.errors import ConfigError

if TYPE_CHECKING:
    from karat.doctor import Check

InitSource = Literal["sandbox", "preferences", "people", "votes"]
SANDBOX_HEAD = """\
# The settings of `karat demo`. The sandbox's model begins from nothing: it needs higher learning rates, more passes and more
# votes than the defaults give, which suit pretrained checkpoints. Where they differ the default is named.

"""


@app.command(rich_help_panel=START, epilog="Example: karat init config.yaml && karat run config.yaml")
def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write.")] = Path("config.yaml"),
    source: Annotated[InitSource, typer.Option(help="Where prompts and votes come from.")] = "sandbox",
    as_json: AsJson = False,
) -> None:
    """Write a commented configuration with every key and its default; in the sandbox with the demo's settings."""
    if path.exists():
        raise ConfigError(f"{path}: is already there; choose another name, or remove it first")
    from karat.config import PLACEHOLDER
    from karat.ledger.artifacts import write_text
    from karat.pipeline.configured import demo_config
    from karat.pipeline.settings import RunConfig
    from karat.pipeline.votes_settings import VotesConfig
    from karat.starter import commented_yaml

    if source == "votes":
        text = commented_yaml(VotesConfig)
    elif source == "sandbox":  # whose model is new: of the defaults, for a pretrained one, it would learn nothing
        text = SANDBOX_HEAD + commented_yaml(RunConfig, choose=source, filled=demo_config(RunConfig.name))
    else:
        text = commented_yaml(RunConfig, choose=source)
    write_text(path, text)
    blanks = [f"{source}.{line.split(':')[0].strip()}" for line in text.splitlines() if _is_blank(line, PLACEHOLDER)]
    todo = f"fill in {' and '.join(blanks)}" if blanks else "change what you need"
    answer(as_json, {"written": str(path), "fill_in": blanks}, [f"{path}: written; {todo}, then: karat run {path}"])


def _is_blank(line: str, placeholder: str) -> bool:
    return line.endswith(placeholder) and not line.startswith("#")


@app.command(rich_help_panel=START, epilog="Example: karat doctor config.yaml --set ppo.n_iterations=200 --json")
def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A configuration to look over.")] = None,
    overrides: Overrides = None,
    processes: Processes = 1,
    fsdp: InShards = False,
    as_json: AsJson = False,
) -> None:
    """Say what this machine offers, or what a configuration comes to and what would stop it; exit code 1 if anything."""
    from karat.doctor import examine

    if processes < 1 or (fsdp and processes == 1):
        raise ConfigError(f"doctor: found --processes {processes}{' with --fsdp' * fsdp}; expected at least {1 + fsdp}")
    if config is not None:
        _check_config(config, overrides or [], processes, fsdp, as_json)
        return
    if overrides or processes > 1:
        given = "--set" if overrides else "--processes"
        raise ConfigError(f"doctor: found {given} without a CONFIG; expected a configuration to look over")
    checks = examine()
    verdicts = {check.name: "ok" if check.ok else "missing" if check.needed else "optional" for check in checks}
    lines = [f"{verdicts[check.name]:<8} {check.name}: {check.found}" for check in checks]
    answer(as_json, {check.name: dataclasses.asdict(check) for check in checks}, lines)
    if not all(check.ok for check in checks if check.needed):
        raise typer.Exit(1)


def _check_config(config: Path, overrides: list[str], processes: int, fsdp: bool, as_json: bool) -> None:
    from karat.pipeline.configured import read_configs

    read_configs(config, overrides)  # what is wrong is said before a library of models is waited for
    from karat.pipeline.checkup import check_config
    from karat.progress import open_progress

    with open_progress() as progress:
        found = check_config(config, overrides, directory=RUNS, progress=progress, processes=processes, in_shards=fsdp)
    lines = [f"{one.name:<24} {one.value:>16,} {one.unit}   ({one.how})" for one in found.derived]
    lines += [f"{_verdict(check):<8} {check.name}: {check.found}" for check in found.checks]
    derived = {one.name: {"value": one.value, "unit": one.unit, "how": one.how} for one in found.derived}
    ok = all(check.ok for check in found.checks if check.needed)
    content = {"ok": ok, "derived": derived, "checks": [dataclasses.asdict(check) for check in found.checks]}
    answer(as_json, content, lines)
    if not ok:
        raise typer.Exit(1)


def _verdict(check: Check) -> str:
    return "ok" if check.ok else "wrong" if check.needed else "look"
