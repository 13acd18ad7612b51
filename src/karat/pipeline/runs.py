"""Whole runs: the demo, a configuration, and the replicate runner that every study uses.

A run is a directory `runs/<name>`; the same command continues it where it stopped.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from karat.config import plain
from karat.devices import on_device
from karat.errors import ConfigError, GateError
from karat.feedback.simulated import Desk
from karat.ledger.artifacts import ArtifactRef, write_json
from karat.ledger.manifest import Manifest, lock_run
from karat.lm import parallel
from karat.lm.trackers import check_trackers
from karat.lm.ways import in_ways
from karat.pipeline import people, preferences, sandbox, votes
from karat.pipeline.arenas import take_run_arenas
from karat.pipeline.configured import demo_config, read_configs
from karat.pipeline.counted_memory import check_memory
from karat.pipeline.models import measuring_files, model_refs
from karat.pipeline.payment import check_payment
from karat.pipeline.reporting import REPORT, write_report
from karat.pipeline.river import run_river
from karat.pipeline.settings import RunConfig
from karat.pipeline.sources import Source
from karat.pipeline.stages import Run, output
from karat.pipeline.told import told
from karat.pipeline.votes_settings import VotesConfig
from karat.progress import Progress
from karat.reward.gate import GateProbes
from karat.sandbox.rewording import meaning_preserving
from karat.stats import mean_estimate


def run_demo(
    name: str, *, fault: str | None, seed: int, directory: Path, overrides: Sequence[str], progress: Progress
) -> dict[str, Any]:
    """The sandbox from nothing to a report; returns the summary.

    Raises: ConfigError for an unknown fault.
    """
    config = demo_config(name, overrides, fault=fault)
    return run_once(config, seed=seed, directory=directory / name, progress=progress)


def run_config(
    path: Path,
    *,
    overrides: Sequence[str],
    seeds: Sequence[int] | None,
    sweep: Sequence[str],
    until: str | None,
    progress: Progress,
    desk: Desk | None = None,
) -> dict[str, Any]:
    """Run a configuration for every seed and every value of a sweep; a stage that runs share is done by the first of them.

    Args:
        seeds: None = the configuration's own.    sweep: `key=v1,v2`, every combination is run.
        desk: of `run_once`; a server has one store, so one run.
    Returns: the summary of the run; of several, a table with means and intervals over seeds, and which of them were
        refused by their reward's gate.
    Raises: ConfigError for a sweep or an earlier station of a configuration of `votes`, and for a desk with several runs
        or without simulated raters; GateError where no run got past its gate.
    """
    configs = read_configs(path, overrides, sweep=sweep, until=until)
    if desk is not None and (sweep or len(seeds or ()) > 1 or isinstance(configs, VotesConfig)):
        raise ConfigError(
            f"{path}: found --server for several runs or a configuration of `votes`; expected one run: a server has one store"
        )
    if isinstance(configs, VotesConfig):
        return votes.run_votes(configs, seeds=seeds, progress=progress)
    points = list(configs)
    results: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    refused: dict[str, str] = {}
    seeds = [next(iter(configs.values())).seed] if seeds is None else seeds
    several = len(points) > 1 or len(seeds) > 1
    targets = {
        (point, seed): Path("runs") / _named(configs[point], point, seed if several else None)
        for point, seed in itertools.product(points, seeds)
    }
    for stop, (n_begun, ((point, seed), target)) in itertools.product(
        _stops(configs.values(), until), enumerate(targets.items(), 1)
    ):
        if several:  # the stages of all runs have the same names
            first = ", its votes at first" if stop != until else ""
            progress.note(f"run {n_begun} of {len(targets)}{first}: {target}")
        others = tuple(path.resolve() for (_, its), path in targets.items() if its == seed and path != target)
        try:
            done = run_once(
                configs[point], seed=seed, directory=target, progress=progress, until=stop, desk=desk, lenders=others
            )
        except GateError as error:
            if not several:
                raise
            refused[str(target)] = str(error)  # a result like others: the rest of the runs says how often that is so
            progress.note(f"{target} ends here: {error}")
            continue
        if stop == until:
            results.setdefault(point, []).append(done)
    if not several:
        return results[points[0]][0]
    if not results:
        raise GateError(f"every one of {len(refused)} runs ended so. {next(iter(refused.values()))}")
    every = [one for group in results.values() for one in group]
    return {
        "runs": [one["directory"] for one in every],
        "refused": refused,
        "unsafe": list(dict.fromkeys(note for one in every for note in one["unsafe"])),
        "table": sweep_table(results),
    }


def _named(config: RunConfig, point: Sequence[str], seed: int | None) -> str:
    """A run's directory: the configuration's name, what the sweep says, and the seed where there are several runs."""
    return "-".join(
        [config.name, *(part.replace("/", "_") for part in point), *([] if seed is None else [f"seed-{seed}"])]
    )


def _stops(configs: Collection[RunConfig], until: str | None) -> list[str | None]:
    """How far all runs go before the first of them goes on: to their votes, where what follows asks for more votes.

    A store is taken over as the votes left it, and not once other questions are in it.
    """
    asked_later = any(config.rounds > 1 or config.watch.panel is not None for config in configs)
    waits = len(configs) > 1 and asked_later and until not in ("sft", "collect")
    return ["collect", until] if waits else [until]


def run_once(
    config: RunConfig,
    *,
    seed: int,
    directory: Path,
    progress: Progress,
    until: str | None = None,
    desk: Desk | None = None,
    lenders: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """One run of one seed, from its first missing stage to its report; returns the summary.

    Args:
        desk: where simulated raters work, an `AdminClient` of the server of the run's store; None = the store itself.
        lenders: directories of runs that this one may take finished stages over from.
    Raises: ConfigError for a desk where no rater is simulated; GateError, with a report, for a reward that fails its gate.
    """
    source = source_of(config, seed, desk)
    check_trackers(config.tracking)
    check_payment(config)
    check_memory(config)
    alone = lock_run(directory) if parallel.is_main() else contextlib.nullcontext()
    with on_device(config.device), in_ways(config.decode, config.attention), alone:
        about = {"title": config.title, "unsafe": list(config.unsafe)}
        plainly = {**about, "config": plain(config), "seed": seed}
        parallel.from_main(lambda: write_json(directory / "config.json", plainly))
        run = Run(directory.resolve(), seed, progress, config.tracking, lenders)
        try:
            done = run_river(run, source, config, until=until)
        except GateError as error:  # a refusal is a result: what was measured is there to be read
            parallel.from_main(lambda: write_report(directory))
            raise GateError(f"{error}. What was measured: {directory / REPORT}") from None
        if "evaluate" in done:
            take_run_arenas(run)
        return parallel.from_main(lambda: write_report(directory))


def source_of(config: RunConfig, seed: int, desk: Desk | None = None) -> Source:
    """Where the run's prompts, model and votes come from; `desk` is of `run_once`."""
    if desk is not None and (config.sandbox is None or config.collect.people == config.collect.overlap):
        raise ConfigError(
            "--server: found a configuration without simulated raters; expected a sandbox that they judge in"
        )
    if config.sandbox is not None:
        world = sandbox.open_world(config.sandbox, seed)
        return Source(
            write=partial(sandbox.write_source, config, seed),
            base=partial(_trained_base, config, seed),
            votes=partial(sandbox.collect_votes, config, seed, desk=desk),
            asks=True,
            panel=partial(sandbox.ask_panel, config, seed, desk=desk),
            gold=world.gold_reward,
            group_gold=sandbox.group_utilities(config.sandbox, world, seed),
            agrees=world.agrees_with_wrong_belief,
            probes=GateProbes(sandbox.PRAISE, meaning_preserving(world.grammar)),
            wrong_belief_pairs=partial(sandbox.wrong_belief_pairs, config, seed),
        )
    if config.people is not None:
        return Source(
            write=partial(people.write_source, config),
            base=partial(_given_base, config.people.model),
            votes=people.collect_from_people,
            asks=True,
            panel=people.collect_from_people,
            given=(config.people.prompts, *measuring_files(config.people.model)),
        )
    assert config.preferences is not None
    return Source(
        write=partial(preferences.write_source, config),
        base=partial(_given_base, config.preferences.model),
        votes=partial(preferences.import_votes, config),
        asks=False,
        judgement_ids=preferences.judgement_ids,
        given=(config.preferences.path, *measuring_files(config.preferences.model)),
    )


def _trained_base(config: RunConfig, seed: int, run: Run, source: Manifest) -> tuple[ArtifactRef, ...]:
    inputs, work = (output(source, "base_texts"),), partial(sandbox.train_base, config, seed)
    manifest = run.stage("base", inputs=inputs, work=work, together=True, **told("base", config))
    return (output(manifest, "model"),)


def _given_base(model: Path, run: Run, source: Manifest) -> tuple[ArtifactRef, ...]:
    del source
    return model_refs(run.directory, model, "base")


def sweep_table(results: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row a point: means over seeds with 95 % t intervals; instability is a reported number."""
    rows = []
    for point, summaries in results.items():
        row: dict[str, Any] = {"setting": ", ".join(point) or "as configured", "seeds": len(summaries)}
        names = {_optimised(summary) for summary in summaries}
        name = names.pop() if len(names) == 1 else "policy"
        for policy, column in (("sft", "gold"), *((name, of) for of in ("gold", "proxy", "kl", "win_rate"))):
            values = [
                _value(summary, policy if policy == "sft" else _optimised(summary), column) for summary in summaries
            ]
            known = np.array([value for value in values if value is not None])
            if len(known):
                row[f"{policy} {column}"] = plain(mean_estimate(known))
        differences = [
            summary.get(f"{_optimised(summary)}_minus_sft", {}).get("gold", {}).get("value") for summary in summaries
        ]
        known = np.array([value for value in differences if value is not None])
        if len(known):
            row[f"{name} − sft gold"] = plain(mean_estimate(known))
        rows.append(row)
    return rows


def _optimised(summary: Mapping[str, Any]) -> str:
    return next((key.removesuffix("_minus_sft") for key in summary if key.endswith("_minus_sft")), "ppo")


def _value(summary: Mapping[str, Any], policy: str, column: str) -> float | None:
    return summary.get("policies", {}).get(policy, {}).get(column, {}).get("value")
