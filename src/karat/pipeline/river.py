"""The whole river on one page: demonstrations → votes → reward → policy → measurement → report.

Each station reads what the one before left on disk and ends with a manifest. Where the prompts, the base model and
the votes come from is the source's business; from the reward model on there is one way for all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from karat.evaluate.measure import draw, texts_of
from karat.feedback.snapshot import snapshot_place, write_snapshot
from karat.feedback.store import open_store
from karat.identity import content_id
from karat.ledger.artifacts import ArtifactRef, content_hash, ref_of, write_json
from karat.ledger.manifest import Manifest
from karat.lm import parallel
from karat.lm.adapters import merged
from karat.lm.load import load_lm, save_lm
from karat.pipeline import evaluation, optimise, rewarding, rounds
from karat.pipeline.data import (
    Texts,
    check_raters,
    practised,
    read_demonstrations,
    read_prompts,
    read_texts,
    vote_figures,
    write_texts,
)
from karat.pipeline.models import load_for_training, model_refs
from karat.pipeline.round_questions import Advice, ask_round
from karat.pipeline.settings import RunConfig
from karat.pipeline.sources import Source
from karat.pipeline.stages import (
    Output,
    Run,
    StageResult,
    Workplace,
    findings_of,
    output,
    training_reporters,
)
from karat.pipeline.told import POLICY, told
from karat.prompts.splits import check_no_leakage
from karat.records import Finding, Prompt
from karat.reward.gate import check_gate, gate_checks
from karat.reward.score import load_scorer
from karat.seeding import child_seed
from karat.sft.train import train_sft


def run_river(run: Run, source: Source, config: RunConfig, *, until: str | None = None) -> dict[str, Manifest]:
    """Every stage in order; stages that are done are kept. Returns the manifests by stage.

    Args:
        until: the last stage to run; None = all.
    Raises: GateError when the reward model fails its gate and `allow_ungated_reward` is not set.
    """
    done: dict[str, Manifest] = {}
    # 1. prompts and demonstrations
    # a file that is not there is the source's to complain about
    files = tuple(ref_of(run.directory, path.resolve(), name=path.name) for path in source.given if path.is_file())
    done["source"] = run.stage("source", inputs=files, work=source.write, **told("source", config))
    prompts, demonstrations = output(done["source"], "prompts"), output(done["source"], "demonstrations")
    optimise.check_demonstrations(config, run.directory / demonstrations.path)
    # 2. the model to start from
    bases = source.base(run, done["source"])
    base = bases[-1]
    # 3. supervised fine-tuning
    work = partial(fine_tune, run, base, config)
    done["sft"] = run.stage("sft", inputs=(*bases, demonstrations), work=work, together=True, **told("sft", config))
    sft = output(done["sft"], "model")
    if until == "sft":
        return done
    # 4. votes on what it writes, or votes that were given
    given = () if config.reward_model is None else model_refs(run.directory, config.reward_model, "reward_model")
    adviser = given[-1] if given and config.collect.acquisition != "random" else None
    work = partial(collect, run, sft, source, config, adviser=adviser)
    own = [reference for reference in done["source"].outputs if reference.name == "judgements"]
    own += given if adviser is not None else ()
    done["collect"] = run.stage(
        "collect", inputs=(sft, prompts, *own), work=work, together=True, **told("collect", config)
    )
    snapshot, samples = output(done["collect"], "snapshot"), output(done["collect"], "samples")
    if until == "collect":
        return done
    check_raters(done["collect"].metrics.get("one_rater", False), allow_one=config.allow_one_rater)
    # 5. the reward model and its gate
    station, start = (rewarding.take, given) if given else (rewarding.train, (sft,))
    work = partial(station, run, config, source, start[-1], snapshot, samples)
    inputs = (*start, snapshot, samples)
    done["reward"] = run.stage("reward", inputs=inputs, work=work, together=True, **told("reward", config))
    reward = output(done["reward"], "model")
    checks = [*gate_checks(findings_of(done["reward"])), optimise.leash_finding(config)]
    check_gate(checks, allow_ungated=config.allow_ungated_reward)
    if until == "reward":
        return done
    # 6. the policy, watched
    name = config.algorithm
    made = {"sft": sft, "reward": reward, "prompts": prompts, "samples": samples, "snapshot": snapshot}
    made |= {"demonstrations": demonstrations, **optimise.given_labels(run, config)}
    work = partial(optimise.train, run, config, made, source)
    inputs = optimise.reads(config, made)
    done[name] = run.stage(name, inputs=inputs, work=work, together=True, **told(POLICY, config))
    if until == name:
        return done
    policies = {"sft": sft, name: output(done[name], "model")}
    # 7. further rounds: votes on what the policy writes now, the reward fitted anew, the policy optimised anew
    if config.rounds > 1:
        later = rounds.run_rounds(run, source, config, done, collect=collect)
        policies, reward, done = {"sft": sft, **later.policies}, later.reward, done | dict(later.manifests)
    # 8. what came of it
    return done | {"evaluate": compare(run, source, config, policies, reward, prompts)}


def compare(
    run: Run,
    source: Source,
    config: RunConfig,
    policies: Mapping[str, ArtifactRef],
    reward: ArtifactRef,
    prompts: ArtifactRef,
) -> Manifest:
    """The measuring station over some policies, the fine-tuned one first."""
    work = partial(evaluation.measure, run, config, policies, reward, source)
    inputs = (*policies.values(), reward, prompts)
    return run.stage("evaluate", inputs=inputs, work=work, together=True, **told("evaluate", config))


def fine_tune(run: Run, base: ArtifactRef, config: RunConfig, place: Workplace) -> StageResult:
    """Fine-tune the base model on the demonstrations; some prompts are kept out to measure it."""
    demonstrations = read_demonstrations(place.directory / "data" / "demonstrations.jsonl")
    about = {"run_id": run.id, "stage": "sft"}
    if not demonstrations:
        parallel.from_main(
            lambda: save_lm(load_lm(run.directory / base.path), place.model_directory("sft"), metadata=about)
        )
        return StageResult(
            [Output("model", place.model_directory("sft"), "model")],
            {"n_demonstrations": 0},
            notes=["without demonstrations the supervised policy is the checkpoint itself"],
        )
    train, held_out = practised(demonstrations)
    lm = load_for_training(
        run.directory / base.path, config.lora, seed=child_seed(run.seed, "sft", "lora"), dtype=config.dtype
    )
    with training_reporters(place, "sft", config.sft.n_steps(len(train))) as reporters:
        result = train_sft(
            lm, train, config.sft, seed=child_seed(run.seed, "sft"), held_out=held_out, directory=place.training,
            reporters=reporters,
        )  # fmt: skip
    parallel.from_main(lambda: save_lm(merged(lm), place.model_directory("sft"), metadata=about))
    metrics = {
        "n_demonstrations": result.n_demonstrations,
        "nll_per_token": result.last_nll,
        "held_out_nll": result.held_out_nll,
    }
    return StageResult([Output("model", place.model_directory("sft"), "model")], metrics)


def collect(
    run: Run,
    policy: ArtifactRef,
    source: Source,
    config: RunConfig,
    place: Workplace,
    *,
    number: int = 1,
    adviser: ArtifactRef | None = None,
    answered: Collection[str] = (),
) -> StageResult:
    """Sample the policy, put questions about the samples into the store, have them answered, take the snapshot.

    Args:
        number: of the round; from the second on the policy is the one that the round before ended with.
        adviser: the reward model that questions and kinds are chosen with; None = all are drawn at random.
        answered: judgements of the rounds before, by which `kinds: auto` parts the time.
    """
    splits = read_prompts(place.directory / "data" / "prompts.jsonl")
    check_no_leakage(*([prompt.id for prompt in splits[name]] for name in ("policy", "evaluation")))
    name = f"samples{place.suffix}.jsonl" if number > 1 else "sft_samples.jsonl"
    path = place.beside(place.directory / "data" / name)
    later = [number] if number > 1 else []
    samples = policy_samples(run, policy, splits["collect"], config, place, path=path, purpose=["samples", *later])
    work = partial(
        judge, run, source, config, samples, place, path=path, number=number, adviser=adviser, answered=answered
    )
    return parallel.from_main(work)


def judge(
    run: Run,
    source: Source,
    config: RunConfig,
    samples: Texts,
    place: Workplace,
    *,
    path: Path,
    number: int,
    adviser: ArtifactRef | None,
    answered: Collection[str] = (),
) -> StageResult:
    """Put questions about samples into the store, have them answered, take the snapshot.

    Args:
        path: of the samples.    number, adviser, answered: as `collect` has them.
    """
    later = [number] if number > 1 else []
    metrics: dict[str, Any] = {"stopped_frac": _mean([flag for row in samples.stopped for flag in row])}
    # other settings under the same name are another batch of questions; the votes on the old ones stay in the store
    by = [adviser.hash] if adviser is not None else []
    batch = content_id("batch", [samples.texts, config.collect.key, run.seed, *later, *by])
    findings: list[Finding] = []
    with open_store(place.directory / "karat.db") as store:
        if source.asks:
            writer = "sft" if number == 1 else f"ppo-{number - 1}"
            scorer = load_scorer(run.directory / adviser.path) if adviser is not None else None
            advice = Advice(scorer, answered)
            findings, asked_kinds = ask_round(
                store, samples, config, seed=run.seed, batch=batch, writer=writer, advice=advice
            )
            metrics |= {"kinds": asked_kinds} if asked_kinds else {}
        metrics |= source.votes(store, place, batch)
        first = not source.asks or store.tasks()[0].batch == batch
        name = "votes" if first else f"votes-{batch[-12:]}"
        asked, only = (batch, None) if source.asks else (None, source.judgement_ids(place))
        snapshot_path = snapshot_place(store, place.directory / "snapshots" / name, batch=asked, only=only)
        snapshot = write_snapshot(store, snapshot_path, batch=asked, only=only)
    metrics |= vote_figures(snapshot, run.seed)
    outputs = [
        Output("snapshot", snapshot_path, "snapshot"),
        Output("samples", path),
    ]
    return StageResult(outputs, metrics, findings)


def policy_samples(
    run: Run,
    policy: ArtifactRef,
    prompts: list[Prompt],
    config: RunConfig,
    place: Workplace,
    *,
    path: Path,
    purpose: Sequence[str | int],
) -> Texts:
    """Responses of a policy: what raters compare; those of the first round are also the zero of the reward's scale.

    They are drawn once: who waits for people and starts again asks about the very same texts, whatever the machine's
    arithmetic would make of them the second time.

    Args:
        path: where they are written.    purpose: of the draws.
    """
    mark = place.checkpoints / f"{path.stem}.json"
    kept = parallel.from_main(lambda: _drawn_before(path, mark, place.identity))
    if kept is not None:
        place.progress.note("samples: drawn before, kept")
        return kept
    lm = load_lm(run.directory / policy.path)
    settings = config.collect
    with place.progress.stage("samples", len(prompts) * settings.n_samples, "responses") as bar:
        drawn = draw(
            lm, prompts, n_samples=settings.n_samples, max_new_tokens=settings.max_new_tokens,
            seed=child_seed(run.seed, *purpose), progress=lambda _, done, __: bar.reach(done),
        )  # fmt: skip
    samples = Texts(
        tuple(prompts),
        tuple(map(tuple, texts_of(lm, drawn))),
        tuple(tuple(len(one.response_tokens) for one in group) for group in drawn),
        tuple(tuple(one.stopped for one in group) for group in drawn),
    )

    def write() -> None:
        write_texts(path, samples)
        write_json(mark, {"stage": place.identity, "samples": content_hash(path)})

    parallel.from_main(write)
    return samples


def _drawn_before(path: Path, mark: Path, identity: str) -> Texts | None:
    """The samples that an interrupted try of this very stage has written; None = there are none."""
    if not (mark.exists() and path.exists()):
        return None
    try:
        said = json.loads(mark.read_text(encoding="utf-8"))
    except ValueError:  # a mark that cannot be read marks nothing: they are drawn anew, and come out the same
        return None
    return read_texts(path) if said == {"stage": identity, "samples": content_hash(path)} else None


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
