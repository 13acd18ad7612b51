"""All that people gave, made ready for reward training: from a snapshot, or from a store by `karat reward --store`.

Knows snapshots, checkpoints and the reward room's recipes; draws nothing itself.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat.belief import training_scale
from karat.errors import ConfigError, InputError
from karat.feedback.snapshot import Snapshot, read_snapshot, write_snapshot
from karat.feedback.store import open_store
from karat.lm.load import load_encoder, load_lm
from karat.pipeline.beside import fit_token_rewards
from karat.pipeline.data import check_raters, one_rater
from karat.pipeline.gating import GATE_FRAC, calibration_bins, gate_split, main_votes, through_gate
from karat.pipeline.model_settings import PRODUCTS, Dtype
from karat.progress import Progress
from karat.reading import Said, statements_of
from karat.records import Finding, Response, Vote
from karat.reward.contributions import contribution_rows
from karat.reward.cooling import CrossedScorer, cooled_on_new_prompts
from karat.reward.data import check_objectives, feedback_data, split_votes
from karat.reward.fit import fit_reward, n_steps_done, n_steps_planned, optimised_scorer, save_fitted
from karat.reward.gate import gate_checks
from karat.reward.mark_quality import MarkQuality, mark_rows
from karat.reward.objectives import ObjectivesConfig
from karat.reward.score import aggregate
from karat.reward.settings import RewardConfig
from karat.reward.thresholds import GateSettings
from karat.reward.trunk import DecoderTrunk, EncoderTrunk, Trunk
from karat.seeding import child_seed
from karat.statements import Statement

MARKS_APART = "reward.marks"
NAMED = 3
"""Judgements that a finding names, of those that do not fit."""


@dataclass(frozen=True)
class RewardRequest:
    """What `karat reward --store` or `--snapshot` is to do."""

    model: Path
    """A decoder's directory, or an encoder's: the trunk."""
    out: Path
    """Where the reward model goes."""
    store: str | None = None
    """The feedback store; its snapshot is kept beside `out`."""
    snapshot: Path | None = None
    """A snapshot's directory, instead of a store."""
    batch: str | None = None
    """Only tasks of this batch; None = all."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How it is trained."""
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    """What the optimiser gets of several objectives."""
    gate: GateSettings = field(default_factory=GateSettings)
    """What the gate asks for."""
    gate_frac: float = GATE_FRAC
    """Share of the prompts that is kept for the gate, [0, 0.9]; 0, or where `gate.min_votes` comparisons are not to be had on
    them, everything is trained on, and the gate is not measured."""
    seed: int = 0
    """Everything random follows from it."""
    dtype: Dtype = "float32"
    """Of the matrix products in training: float32 or bfloat16. Weights, moments and what is saved are float32 in any case."""
    allow_one_rater: bool = False
    """True = fit the reward although one rater gave everything."""

    def __post_init__(self) -> None:
        if (self.store is None) == (self.snapshot is None):
            raise ConfigError("reward: found both or neither of --store and --snapshot; expected one of them")
        if not 0 <= self.gate_frac <= 0.9:
            raise ConfigError(f"gate_frac: found {self.gate_frac:g}; expected a share from 0 to 0.9")


def said_in(
    snapshot: Snapshot,
    reward: RewardConfig,
    objectives: ObjectivesConfig,
    *,
    samples: Mapping[str, Sequence[Response]] | None = None,
) -> Said:
    """Everything a snapshot says, of the kinds that the configuration asks for.

    Args:
        samples: Prompt.id → the policy's newest responses, which demonstrations are held against; prompts that it
            does not name keep those of the snapshot.
    Raises: InputError for what does not fit, and for an objective that is wanted and has no feedback.
    """
    wanted = set(reward.kinds)
    unfit = snapshot.misfits
    votes = [vote for vote in snapshot.votes if (not wanted or vote.kind in wanted) and vote.judgement_id not in unfit]
    judgements = [
        judgement
        for judgement in snapshot.judgements
        if (not wanted or judgement.kind in wanted)
        and judgement.id not in unfit
        and not (judgement.kind == "comparison" and "missing" not in judgement.value)
    ]
    against: dict[str, Sequence[Response]] | None = None
    if samples is not None:
        against = {}
        for response in snapshot.responses.values():
            against[response.prompt_id] = [*against.get(response.prompt_id, ()), response]
        against |= samples
    said = statements_of(votes, judgements, snapshot.responses, objective_of=objectives.names, samples=against)
    if not said.statements:
        kinds = f" of the kinds {', '.join(reward.kinds)}" if wanted else ""
        raise InputError(
            f"reward: found no judgement{kinds} that says anything about whole responses "
            f"(silent: {dict(said.silent) or 'none'}; {len(unfit)} do not fit what was asked); expected at least one"
        )
    check_objectives(said.statements, objectives.wanted)
    return dataclasses.replace(said, misfits=unfit)


def said_findings(said: Said) -> list[Finding]:
    """What was not trained on, in words: silent judgements by reason, and marks inside responses."""
    findings = [
        Finding("reward.silent", "Which judgements say nothing about the reward?", "info", detail=f"{n} × {reason}")
        for reason, n in sorted(said.silent.items())
    ]
    if said.misfits:
        some = [f"{one}: {why}" for one, why in sorted(said.misfits.items())[:NAMED]]
        more = f"; and {len(said.misfits) - NAMED} more" if len(said.misfits) > NAMED else ""
        detail = f"{len(said.misfits)} left out; {'; '.join(some)}{more}"
        findings.append(Finding("reward.misfits", "Which judgements do not fit what was asked?", "warn", detail=detail))
    if said.marks:
        detail = f"marks inside {len(said.marks)} responses train token-level rewards, not this one"
        findings.append(Finding(MARKS_APART, "Which feedback is about parts of responses?", "info", detail=detail))
    return findings


def reward_from(request: RewardRequest, *, progress: Progress) -> dict[str, Any]:
    """Train a reward on everything in a store or snapshot, save it, and say what each kind contributed.

    With `reward.checkpoint_every` an interrupted call goes on where it was; of an ensemble, what each kind contributed and
    the rewards of single tokens are its first model's.

    Returns: plain values: out, counts, metrics, contributions, findings, and which classes of marks have token rewards.
    Raises: InputError, StoreError, LedgerError or CheckpointError for what cannot be used.
    """
    # 1. what was said
    snapshot = _snapshot(request)
    check_raters(one_rater(snapshot.annotators), allow_one=request.allow_one_rater)
    said = said_in(snapshot, request.reward, request.objectives)
    trained, gate = kept_for_gate(said.statements, request.gate_frac, request.gate.min_votes)
    train, held, _ = split_votes(trained, holdout_frac=request.reward.holdout_frac)
    # 2. fit
    texts = (snapshot.prompts, said.responses)
    n_steps = n_steps_planned(train, *texts, config=request.reward, seed=request.seed)
    training = request.out.with_name(f".training-{request.out.name}")
    with progress.stage("reward model", n_steps, "steps") as bar:
        if request.reward.checkpoint_every:
            bar.reach(n_steps_done(request.reward, training))
        fitted = fit_reward(
            lambda: open_trunk(request.model, request.dtype), train, *texts, config=request.reward, seed=request.seed,
            validation=held or None, directory=training, reporters=[bar],
        )  # fmt: skip
    fitted, factors, cooling = cooled_on_new_prompts(fitted, gate, *texts)
    fit = fitted.members[0]
    # 3. the optimiser's scale, on the training responses: there is no policy yet
    scorer = optimised_scorer(fitted, request.objectives)
    scale = fitted.scorer.scale
    if request.objectives.combines:
        data = feedback_data(train, *texts)
        belief = scorer(data.prompts, data.texts)
        scale = training_scale(aggregate(belief, "mean_score"), belief.prompt_index)
    metadata = {"stage": "reward", "snapshot_root": snapshot.root}
    save_fitted(fitted, request.out, metadata=metadata, scale=scale, objectives=request.objectives)
    shutil.rmtree(training, ignore_errors=True)
    # 4. the gate: what an optimiser would be told to make more of
    crossed = CrossedScorer(scorer, factors)
    with progress.stage("gate", unit="checks") as bar:
        checks, words = through_gate(
            crossed, main_votes(train), gate, texts, priors=fit.vote_model.priors, settings=request.gate,
            seed=child_seed(request.seed, "gate"), progress=lambda n_done: bar.reach(n_done),
        )  # fmt: skip
    findings = [*fitted.findings, cooling, *said_findings(said), *checks]
    # 5. rewards of single tokens, on the trained trunk held fixed
    quality: list[MarkQuality] = []
    marks, kept = gate_split(said.marks, frac=request.gate_frac if gate else 0.0)
    if marks and isinstance(fit.model.trunk, DecoderTrunk):
        _, quality = fit_token_rewards(
            fit.model.trunk, marks, kept, texts, request.out, metadata=metadata, seed=request.seed
        )
    return {
        "out": str(request.out),
        "posterior": fitted.kind,
        "objectives": list(fit.model.objectives),
        "n_judgements": said.n_judgements,
        "silent": said.silent,
        "marked": [one.name for one in quality],
        "marks": mark_rows(quality),
        "metrics": fitted.metrics,
        "contributions": contribution_rows(fit.contributions),
        "gate": gate_verdict(findings),
        "n_gate": len(gate),
        "suspects": words,
        "calibration": calibration_bins(crossed, gate, texts),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def kept_for_gate(statements: Sequence[Statement], frac: float, n_least: int) -> tuple[list[Statement], list[Vote]]:
    """(what is trained on, comparisons on prompts that the gate keeps, those drawn at random).

    What only these prompts speak about, an objective, is trained on all the same: it would have no output. Where fewer than
    n_least comparisons would be kept, which decide nothing, none is: everything is trained on.
    """
    trained, kept = gate_split(statements, frac=frac)
    known = {one.objective for one in trained}
    unknown = [one for one in kept if one.objective not in known]
    gate = main_votes([one for one in kept if one.objective in known and one.strategy == "random"])
    return (list(statements), []) if len(gate) < n_least else ([*trained, *unknown], gate)


def gate_verdict(findings: Sequence[Finding]) -> str:
    """pass, fail, or not measured: the worst of the gate's checks."""
    found = {finding.status for finding in gate_checks(findings)}
    return next((status for status in ("fail", "not measured") if status in found), "pass")


def open_trunk(path: Path, dtype: Dtype = "float32") -> Trunk:
    """A decoder as a trunk, or an encoder where the checkpoint says that it is a bare model (`BertModel`).

    Raises: CheckpointError for a directory that holds neither.
    """
    config = path / "config.json"
    named = json.loads(config.read_text(encoding="utf-8")).get("architectures") if config.is_file() else None
    kind = named[0] if named else ""
    if kind.endswith("Model") and not kind.endswith("LMHeadModel"):
        return EncoderTrunk(load_encoder(path, products=PRODUCTS[dtype]))
    return DecoderTrunk(load_lm(path, for_training=True, products=PRODUCTS[dtype]))


def _snapshot(request: RewardRequest) -> Snapshot:
    if request.snapshot is not None:
        return read_snapshot(request.snapshot)
    assert request.store is not None
    with open_store(request.store) as store:
        path = request.out.with_name(f"{request.out.name}-snapshot")
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_snapshot(store, path, batch=request.batch)
