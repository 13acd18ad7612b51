"""Commands of the place where people work: the server, its arenas and experiments, studies of other platforms.

Every one of them takes a store: a file, a database address, or the directory of a run.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from karat.cli.accounts import people
from karat.cli.links import link_begins
from karat.cli.options import (
    MOST,
    MOST_PROCESSES,
    PEOPLE,
    AsJson,
    Decoding,
    Device,
    MaxNewTokens,
    StoreOrRun,
    answer,
    app,
    at_work,
    store_address,
    store_or_new,
)
from karat.errors import ConfigError
from karat.figures import figure


@app.command(rich_help_panel=PEOPLE, epilog="Example: karat serve runs/demo")
def serve(
    run_or_store: StoreOrRun,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need --public-url.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 = any free one.")] = 8000,
    public_url: Annotated[str, typer.Option(help="What people type: https://… of the proxy in front.")] = "",
    trusted_proxy: Annotated[list[str] | None, typer.Option(help="A proxy's address or network; repeatable.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            max=MOST_PROCESSES, help="Processes that answer; by default one a core, at least 2 and at most 4."
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="A checkpoint whose samples keep the queue filled.")] = None,
    arena: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Two checkpoints, blind: raters ask them and judge; with --prompts their queue is filled too."
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts for --policy or --arena.")] = None,
    keep: Annotated[int, typer.Option(max=MOST, help="Tasks that should be waiting, of either.")] = 20,
    max_new_tokens: MaxNewTokens = None,
    runs: Annotated[
        list[Path] | None, typer.Option(help="Runs, or directories of runs, that an erasure looks through; repeatable.")
    ] = None,
    device: Device = "auto",
    decode: Decoding = "auto",
) -> None:
    """Let people judge: the page for raters, experts, auditors and admins. Ctrl-C ends it; nothing is lost."""
    from karat.feedback.web.serve import serve as run_server
    from karat.feedback.web.settings import ServerSettings

    if (policy is not None and prompts is None) or (prompts is not None and policy is None and arena is None):
        raise ConfigError(
            "serve: found --policy without --prompts, or --prompts alone; expected --policy P --prompts F"
        )
    settings = ServerSettings(
        host=host, port=port, public_url=public_url, trusted_proxies=tuple(trusted_proxy or ()),
        runs=_run_directories(run_or_store, runs or []),
    )  # fmt: skip
    address = store_or_new(run_or_store)
    if policy is None and arena is None:
        run_server(address, settings, workers=workers, say=typer.echo)
        return
    from karat.pipeline.asking import Asking
    from karat.pipeline.serving import beside, filler, live_policies, policy_names
    from karat.prompts.sources import read_prompts

    asked = read_prompts(prompts) if prompts is not None else []
    jobs: dict[str, Any] = {}
    with at_work(device, decode):
        if arena is not None:
            settings = dataclasses.replace(settings, arena=policy_names(arena))
            asking = Asking(n_tasks=keep, n_samples=2, max_new_tokens=max_new_tokens)
            jobs["the arena"] = live_policies(arena, asked, asking, n_waiting_least=keep)
        if policy is not None:
            asking = Asking(n_tasks=keep, max_new_tokens=max_new_tokens, batch=f"live:{policy.name}")
            jobs["the filling of the queue"] = filler(policy, asked, asking, n_waiting_least=keep)
        with beside(address, jobs, lambda line: typer.echo(line, err=True)):
            run_server(address, settings, workers=workers, say=typer.echo)


def _run_directories(run_or_store: str, runs: list[Path]) -> tuple[str, ...]:
    """Where an erasure looks: the run that is served, and those that were named. Raises: ConfigError for no directory."""
    if missing := [run for run in runs if not run.is_dir()]:
        raise ConfigError(f"serve: found --runs {missing[0]}, which is no directory; expected a run, or one of runs")
    served = [Path(run_or_store)] if "://" not in run_or_store and Path(run_or_store).is_dir() else []
    return tuple(str(path.resolve()) for path in [*served, *runs])


@app.command("arena", rich_help_panel=PEOPLE, epilog="Example: karat arena karat.db live --json")
def arena_results(
    run_or_store: StoreOrRun,
    name: Annotated[str, typer.Argument(metavar="NAME", help="An arena; empty = all of them.")] = "",
    as_json: AsJson = False,
) -> None:
    """Win rates of the blind comparisons of two policies, with intervals over prompts and over raters."""
    import numpy as np

    from karat.feedback.store import open_store
    from karat.feedback.work.arena import arena_figures, arenas

    with open_store(store_address(run_or_store), create=False) as store:
        found = [arena_figures(store, one, np.random.default_rng(0)) for one in ([name] if name else arenas(store))]
    lines = [line for one in found for line in _arena_lines(one)]
    answer(as_json, {"arenas": found}, lines or ["no arena was set up in this store"])


def _words(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return str(rate["method"])
    return f"{figure(rate['value'], rate['low'], rate['high'])}, {rate['n']} units; {rate['method']}"


def _arena_lines(figures: dict[str, Any]) -> list[str]:
    first, second = figures["policies"]
    votes = f"{figures['n_wins']} won, {figures['n_ties']} ties, {figures['n_losses']} lost"
    return [
        f"{figures['name']}: {first} against {second}; {votes}, {figures['n_missing']} without a verdict",
        f"  win rate      {_words(figures['win_rate'])}",
        f"  over prompts  {_words(figures['by_prompt'])}",
        f"  over raters   {_words(figures['by_rater'])}",
        f"  ties left out {_words(figures['decided'])}",
        f"  shown first   {_words(figures['shown_first'])}",
    ]


def _n_of(n: int, unit: str) -> str:
    return f"{n} {unit}{'s' if n != 1 else ''}"


def _effect_lines(effect: Any) -> list[str]:
    """One outcome of an experiment: what each arm did, and what can be said of its difference from the first."""

    def words(found: Any) -> str:
        between = found.method.partition("; ")[2] if found.low is None else f"[{found.low:.3f}, {found.high:.3f}]"
        return f"{found.value:.3f} {between}"

    arms = effect.report.arms
    lines = [f"{effect.experiment}, {effect.outcome} ({_n_of(effect.report.n_raters, effect.unit)}):"]
    for one in arms:
        lines.append(f"  {one.arm:<20} {words(one.mean)}, {_n_of(one.mean.n, effect.unit)}")
        if one.difference is not None:
            gap = f"difference from {arms[0].arm} {words(one.difference)}, p = {one.p_value:.2g}"
            lines.append(f"  {'':<20} {gap}: {one.verdict}")
    return [*lines, *(f"  {arm:<20} no {effect.unit} yet: nothing to compare with" for arm in effect.without)]


def _experiment_line(one: Any) -> str:
    """An experiment with its arms, as a person reads it."""
    arms = [f"{arm} ({n:,} {one.unit}{'s' * (n != 1)})" for arm, n in one.drawn.items()]
    return f"{one.experiment}: {'running' if one.running else 'ended'}; {', '.join(arms)}"


@app.command(
    rich_help_panel=PEOPLE,
    epilog='Example: karat experiment karat.db scale --arm "seven" --arm "binary = 1: levels = 2"',
)
def experiment(
    run_or_store: StoreOrRun,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An experiment; empty = the effects of all of them.")
    ] = "",
    arm: Annotated[
        list[str] | None, typer.Option(help="NAME = WEIGHT: KEY = VALUE, …; give two or more to set it up.")
    ] = None,
    unit: Annotated[Literal["rater", "task"], typer.Option(help="What is drawn into the arms.")] = "rater",
    end: Annotated[bool, typer.Option("--end", help="End it; what was recorded stays.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set up or end an experiment (scale, tie, layout, reasons, guideline, pay), or say what its arms did."""
    import numpy as np

    from karat.feedback.arm_changes import read_arm
    from karat.feedback.people.accounts import log
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.store import open_store
    from karat.feedback.work.experiments import end_experiment, list_experiments, make_experiment

    if (arm or end) and not name:
        raise ConfigError("experiment: found no name; expected karat experiment STORE NAME …")
    if arm and end:
        raise ConfigError("experiment: found --arm and --end; expected one of them: set it up, or end it")
    with open_store(store_address(run_or_store), create=False) as store:
        if arm or end:
            now = time.time()
            if arm:
                make_experiment(store, name, [read_arm(one) for one in arm], unit=unit, now=now)
            else:
                end_experiment(store, name, now=now)
            done = "experiment made" if arm else "experiment ended"
            log(store, COMMAND_LINE, done, name, "; ".join(arm or ())[:1000], now=now)
            answer(as_json, {"experiment": name, "done": done}, [f"{name}: {done}"])
            return
        listed = [one for one in list_experiments(store, np.random.default_rng(0)) if name in ("", one.experiment)]
    if name and not listed:
        raise ConfigError(f"experiment: found none by the name {name!r}; `karat experiment {run_or_store}` lists them")
    found = [effect for one in listed for effect in one.effects]
    lines = [_experiment_line(one) for one in listed]
    lines += [line for one in found for line in _effect_lines(one)]
    if found:
        methods = dict.fromkeys(one.report.method for one in found)
        lines += [*methods, "several outcomes are looked at: one small p among many is to be expected"]
    answer(as_json, {"experiments": [dataclasses.asdict(one) for one in listed]}, lines or ["no experiment yet"])


@people.command(
    "study",
    epilog="Example: karat people study karat.db pilot --url https://judge.example.org --completed C1A2 --screened S3B4",
)
def people_study(
    run_or_store: StoreOrRun,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study here.")],
    close: Annotated[bool, typer.Option("--close", help="Let nobody in by its link any more.")] = False,
    url: Annotated[
        str, typer.Option(help="Address that the link begins with; empty = the one given before, or the server's.")
    ] = "",
    completed: Annotated[
        str | None, typer.Option(help="Completion address or code of who has done what there was; '' = forget it.")
    ] = None,
    no_work: Annotated[str | None, typer.Option(help="Of who found nothing to do; else as completed.")] = None,
    screened: Annotated[str | None, typer.Option(help="Of who did not qualify; else as completed.")] = None,
    declined: Annotated[str | None, typer.Option(help="Of who does not agree to the consent text.")] = None,
    as_json: AsJson = False,
) -> None:
    """Open a study for raters of another platform (Prolific and its like), and print the link to give to it."""
    from karat.feedback.people.accounts import log
    from karat.feedback.people.roles import COMMAND_LINE
    from karat.feedback.people.studies import ENDS, close_study, open_study
    from karat.feedback.store import open_store

    given = dict(zip(ENDS, (completed, no_work, screened, declined), strict=True))
    ends = {end: out.strip() for end, out in given.items() if out is not None}
    now = time.time()
    with open_store(store_or_new(run_or_store)) as store:
        study = (close_study if close else open_study)(store, name, now=now, ends=ends, url=url)
        log(store, COMMAND_LINE, "study closed" if close else "study opened", name, ", ".join(ends), now=now)
        begins = link_begins(store, study.url)
    query = "PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}"
    link = f"{begins}/study/{study.token}?{query}"
    ways_out = [f"{end}: {out}" for end, out in study.ends.items()]
    lines = [link if study.is_open else f"{name}: closed", *ways_out]
    answer(as_json, {"study": name, "open": study.is_open, "link": link, "ends": dict(study.ends)}, lines)


@people.command("participants", epilog="Example: karat people participants karat.db pilot --out came.csv")
def people_participants(
    run_or_store: StoreOrRun,
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study here; empty = of all of them.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write a table (CSV) with all columns; keep it as private as the ids.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Who came by a study's link: the platform's ids beside pseudonym, state, answers and pay."""
    from karat.feedback.store import open_store
    from karat.feedback.work.participants import Came, participants

    with open_store(store_address(run_or_store), create=False) as store:
        found = participants(store, study)
    lines = [
        f"{one.participant:<26} {one.annotator:<20} {one.state:<18} {one.n_answers:>5} answers"
        + ("" if one.earned is None else f" {one.earned:>9.2f} earned")
        for one in found
    ]
    if out is not None:
        _write_table(out, [one.name for one in dataclasses.fields(Came)], [dataclasses.astuple(one) for one in found])
        lines = [f"{out}: {len(found)} participants; keep it private"]
    answer(as_json, {"participants": [dataclasses.asdict(one) for one in found]}, lines or ["nobody came by it yet"])


def _write_table(out: Path, names: list[str], rows: list[tuple[Any, ...]]) -> None:
    """A CSV file that only its owner can read, in which no cell is a formula. Raises: ConfigError where it is there."""
    import csv
    import os

    from karat.feedback.web.cells import cell

    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); give a new path") from None
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *([cell(one) for one in row] for row in rows)])
