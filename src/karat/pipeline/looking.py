"""The station that looks inside a reward model, of a finished run or fitted to a store; a report shows what it found."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from karat.audit.inside import Inside, LookedAt, LookSettings, look_inside
from karat.config import build
from karat.errors import ConfigError, LedgerError
from karat.evaluate.measure import draw, texts_of
from karat.feedback.snapshot import read_snapshot
from karat.ledger.artifacts import ArtifactRef, ref_of, write_json
from karat.ledger.manifest import Manifest, lock_run, read_manifests
from karat.lm.load import load_lm
from karat.pipeline.current import current, newest_round
from karat.pipeline.data import read_prompts, read_texts
from karat.pipeline.recorded import AGAIN, run_settings, vouch_for
from karat.pipeline.reporting import optimised, write_report
from karat.pipeline.rewarding import flat_texts
from karat.pipeline.runs import source_of
from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import Output, Run, StageResult, Workplace, jsonable, output
from karat.progress import Progress
from karat.records import Prompt
from karat.reward.score import Scorer, load_scorer
from karat.seeding import child_seed

STAGE = "inside"
N_REFERENCE = 900
"""Responses of the supervised policy that are looked at, whole prompts."""
N_POLICY = 300
"""Responses of the optimised policy, one a prompt, where there is one."""


def inspect_run(directory: Path, settings: LookSettings, *, progress: Progress) -> dict[str, Any]:
    """Look inside the reward model of a run, keep the findings with a manifest, and write the report again.

    Args:
        directory: of a run; or of a reward model that `karat reward --store` wrote, on the responses that were judged: what
            is found is kept in a directory beside it, `…-inside`, for nothing is added to a model that was recorded.
    Returns: {"findings", "report", "directory"}.
    Raises: LedgerError where the run has no reward model; ConfigError for a run of given votes, which has no samples.
    """
    directory = directory.resolve()
    # a policy of an earlier reward would make this stage stale at once
    stages, _ = current(read_manifests(directory), {})
    done = {manifest.stage: manifest for manifest in stages}
    if "reward" in done and output(done["reward"], "model").path == ".":
        return _inspect_fitted(directory, done["reward"], settings, progress)
    if "reward" not in done:
        raise LedgerError(
            f"{directory}: found no finished reward model; expected a run up to its reward, `karat reward`"
        )
    about = run_settings(directory)
    if "votes" in about["config"]:
        raise ConfigError(
            f"{directory}: found a run of given votes; expected one with a policy, whose samples are looked at"
        )
    config = build(RunConfig, about["config"])
    done = {manifest.stage: manifest for manifest in current(stages, about["config"])[0]}
    reward = done[newest_round(done, "reward")]
    if gone := [one for one in ("source", "collect") if one not in done]:
        raise LedgerError(f"{directory / 'manifests' / gone[0]}.json: found no such manifest; expected {AGAIN}")
    with lock_run(directory):
        run = Run(directory, about["seed"], progress)
        inputs = [
            output(reward, "model"),
            output(done["collect"], "samples"),
            output(done["source"], "prompts"),
        ]
        for read, stage in zip(inputs[1:], (done["collect"], done["source"]), strict=True):
            vouch_for(directory, read.path, stage)
        name = optimised(done)
        policy = output(done[newest_round(done, name)], "model") if name in done else None
        work = partial(_look, run, config, settings, reward, None if policy is None else (name, policy))
        manifest = run.stage(STAGE, inputs=(*inputs, *([policy] if policy else [])), config=settings, work=work)
        summary = write_report(directory)
    return {"findings": list(manifest.findings), "report": summary["report"], "directory": str(directory)}


def _inspect_fitted(directory: Path, reward: Manifest, settings: LookSettings, progress: Progress) -> dict[str, Any]:
    """The same for a reward that stands for itself, in a small run of its own beside it."""
    place = directory.with_name(f"{directory.name}-inside")
    judged = next(directory / one.path for one in reward.inputs if one.kind == "snapshot")
    seed = reward.seeds["reward"]
    with lock_run(place):
        about = {"title": f"Inside the reward {directory.name}", "unsafe": [], "config": {}, "seed": seed}
        write_json(place / "config.json", about)
        inputs = [ref_of(place, directory, "model", "reward"), ref_of(place, judged.resolve(), "snapshot")]
        work = partial(_look_at_judged, directory, judged, settings, reward)
        manifest = Run(place, seed, progress).stage(STAGE, inputs=inputs, config=settings, work=work)
        summary = write_report(place)
    return {"findings": list(manifest.findings), "report": summary["report"], "directory": str(place)}


def _look_at_judged(
    directory: Path, judged: Path, settings: LookSettings, reward: Manifest, place: Workplace
) -> StageResult:
    """Look at what raters were shown, prompts in the order of their hashes, whole."""
    snapshot = read_snapshot(judged)
    shown = sorted(snapshot.responses.values(), key=lambda one: (one.prompt_id, one.id))[:N_REFERENCE]
    if not shown:
        raise LedgerError(f"{judged}: found no response in the snapshot; expected some to look at")
    seen = LookedAt(
        [snapshot.prompts[one.prompt_id] for one in shown], [one.text for one in shown],
        [one.source or UNKNOWN_WRITER for one in shown], None, tuple(reward.metrics.get("suspects", ())),
    )  # fmt: skip
    return _looked(load_scorer(directory), seen, settings, place)


UNKNOWN_WRITER = "unknown"


def _look(
    run: Run, config: RunConfig, settings: LookSettings, reward: Manifest,
    policy: tuple[str, ArtifactRef] | None, place: Workplace,
) -> StageResult:  # fmt: skip
    scorer = load_scorer(run.directory / output(reward, "model").path)
    prompts, texts = flat_texts(read_texts(run.directory / "data" / "sft_samples.jsonl"))
    prompts, texts = prompts[:N_REFERENCE], texts[:N_REFERENCE]
    sources = ["sft"] * len(texts)
    if policy is not None:
        asked = read_prompts(place.directory / "data" / "prompts.jsonl")["policy"][:N_POLICY]
        name, model = policy
        written = _written(run, config, model, asked, place)
        prompts, texts, sources = prompts + asked, texts + written, sources + [name] * len(asked)
    gold = source_of(config, run.seed).gold
    seen = LookedAt(
        prompts, texts, sources, None if gold is None else [gold(p, t) for p, t in zip(prompts, texts, strict=True)],
        tuple(reward.metrics.get("suspects", ())),
    )  # fmt: skip
    return _looked(scorer, seen, settings, place)


def _looked(scorer: Scorer, seen: LookedAt, settings: LookSettings, place: Workplace) -> StageResult:
    """Look, and write down what was found."""
    parts: dict[str, int] = {}
    with place.progress.stage("look inside", unit="texts") as bar:

        def tell(what: str, n_done: int, _: int) -> None:
            parts[what] = n_done
            bar.reach(sum(parts.values()), **{what.replace(" ", "_"): n_done})

        found = look_inside(scorer, seen, settings, progress=tell)
    target = place.beside(place.directory / "inside.json")
    write_json(target, jsonable(_record(found)))
    metrics = {"n_texts": len(seen.texts), "explained_frac": found.atlas.explained_frac}
    return StageResult([Output("inside", target)], metrics, found.findings)


def _written(run: Run, config: RunConfig, policy: ArtifactRef, prompts: list[Prompt], place: Workplace) -> list[str]:
    lm = load_lm(run.directory / policy.path)
    with place.progress.stage("policy", len(prompts), "responses") as bar:
        drawn = draw(
            lm, prompts, n_samples=1, max_new_tokens=config.policy_tokens, seed=child_seed(run.seed, STAGE),
            progress=lambda _, n_done, __: bar.reach(n_done),
        )  # fmt: skip
    return [group[0] for group in texts_of(lm, drawn)]


def _record(found: Inside) -> dict[str, Any]:
    cells = [{**dataclasses.asdict(cell), "excess": cell.excess} for cell in found.atlas.cells]
    return {
        "cells": cells,
        "explained_frac": found.atlas.explained_frac,
        "attributed": [dataclasses.asdict(one) for one in found.attributed],
    }
