"""All that people gave, made ready for reward training: from a snapshot, or from a store by `karat reward --store`.

Knows snapshots, checkpoints and the reward room's recipes; draws nothing itself.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat import devices
from karat.aggregator_names import aggregator_named
from karat.belief import ScoreScale, training_scale
from karat.config import plain
from karat.destinations import check_directory_place
from karat.devices import on_device
from karat.errors import ConfigError, InputError
from karat.feedback.snapshot import Snapshot, read_snapshot, snapshot_place, write_snapshot
from karat.feedback.store import open_store
from karat.ledger.artifacts import ref_of
from karat.lm.ways import in_ways
from karat.pipeline.beside import fit_token_rewards
from karat.pipeline.beside_settings import beside_finding, check_beside_read
from karat.pipeline.calibrating import Slices, calibration_slices, slice_findings, slice_rows
from karat.pipeline.data import check_raters, one_rater
from karat.pipeline.gating import GATE_FRAC, Texts, calibration_bins, gate_split, main_votes
from karat.pipeline.kept_raters import panel_findings, without_panel
from karat.pipeline.model_settings import Dtype
from karat.pipeline.populations import OF_GROUPS, check_population, fit_population, judged_samples
from karat.pipeline.stages import Output, StageResult, jsonable, record, utc_now
from karat.pipeline.trunks import check_trunk, open_trunk
from karat.pipeline.unfamiliar import judge_reward
from karat.process_settings import Attending, named
from karat.progress import Progress
from karat.reading import Said, statements_of
from karat.records import Finding, Response, Vote
from karat.reward.contributions import contribution_rows
from karat.reward.cooling import CrossedScorer, cooled_on_new_prompts
from karat.reward.data import check_objectives, feedback_data, split_votes, spoken_objectives
from karat.reward.fit import FittedReward, fit_reward, n_steps_done, n_steps_planned, optimised_scorer, save_fitted
from karat.reward.gate import gate_verdict
from karat.reward.mark_quality import MarkQuality, mark_rows
from karat.reward.objectives import ObjectivesConfig
from karat.reward.people_fit import PluralismConfig
from karat.reward.score import CARD, Scorer, aggregate
from karat.reward.settings import RewardConfig
from karat.reward.thresholds import GateSettings
from karat.reward.trunk import DecoderTrunk, Trunk
from karat.rowfiles import prompt_in, read_rows
from karat.seeding import numpy_generator
from karat.statements import Marked, Statement

MARKS_APART = "reward.marks"
NOT_ASKED = (
    "train nothing: they say nothing about whole responses, and token-level rewards take a decoder "
    "(in a run, `dense.weights` too)"
)
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
    samples: Path | None = None
    """What the newest policy writes, as `karat generate` leaves it: demonstrations are held against these responses, on
    prompts that have some; None = against all of the policy's in the store."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How it is trained."""
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    """What the optimiser gets of several objectives."""
    gate: GateSettings = field(default_factory=GateSettings)
    """What the gate asks for."""
    pluralism: PluralismConfig = field(default_factory=PluralismConfig)
    """The people beside it: whether a population is fitted, and what is asked of it."""
    aggregator: str = "mean_score"
    """What an optimiser will make of it; for one of groups (worst_group, jury_median) groups can differ whatever held-out
    votes say."""
    gate_frac: float = GATE_FRAC
    """Share of the prompts that is kept for the gate, [0, 0.9]; 0, or where `gate.min_votes` comparisons are not to be had on
    them, everything is trained on, and the gate is not measured."""
    seed: int = 0
    """Everything random follows from it."""
    dtype: Dtype = "float32"
    """Of the matrix products in training: float32 or bfloat16. Weights, moments and what is saved are float32 in any case."""
    device: str = "auto"
    """Where models work: auto = the accelerator that torch reports, else the processor; or cpu, cuda, cuda:1, mps, xpu."""
    attention: Attending = "auto"
    """Over trees: auto = FlexAttention on CUDA and XPU where its trial agrees; plain = never."""
    allow_one_rater: bool = False
    """True = fit the reward although one rater gave everything."""

    def __post_init__(self) -> None:
        if (self.store is None) == (self.snapshot is None):
            raise ConfigError("reward: found both or neither of --store and --snapshot; expected one of them")
        if not 0 <= self.gate_frac <= 0.9:
            raise ConfigError(f"gate_frac: found {self.gate_frac:g}; expected a share from 0 to 0.9")
        _ = aggregator_named(self.aggregator), named(self.device)
        if self.aggregator in OF_GROUPS and not self.pluralism.enabled:
            raise ConfigError(f"aggregator: found {self.aggregator} without people; expected pluralism.enabled: true")

    @property
    def training(self) -> Path:
        """Where its checkpoints are while it is trained."""
        return self.out.with_name(f".training-{self.out.name}")


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


def newest_samples(path: Path, snapshot: Snapshot) -> dict[str, list[Response]]:
    """Responses of a file by Prompt.id, of the snapshot's prompts; the others have nothing to be held against.

    Raises: InputError naming file and line, or where no prompt of the file is one of the snapshot's.
    """
    found: dict[str, list[Response]] = {}
    rows = read_rows(path)
    for number, row in enumerate(rows):
        prompt_id = prompt_in(row).id
        if prompt_id in snapshot.prompts:
            found.setdefault(prompt_id, []).append(Response(prompt_id, row.need("response", str), "policy", number))
    if not found:
        raise InputError(
            f"{path}: found {len(rows)} responses, none to one of the {len(snapshot.prompts)} prompts that were judged; "
            "expected responses to some of them (karat generate)"
        )
    return found


def said_findings(said: Said, *, marks_train: bool) -> list[Finding]:
    """What was not trained on, in words: silent judgements by reason, and marks inside responses.

    Args:
        marks_train: whether rewards of single tokens are fitted to the marks; else nothing is.
    """
    findings = [
        Finding("reward.silent", "Which judgements say nothing about the reward?", "info", detail=f"{n} × {reason}")
        for reason, n in sorted(said.silent.items())
    ]
    if said.misfits:
        some = [f"{one}: {why}" for one, why in sorted(said.misfits.items())[:NAMED]]
        more = f"; and {len(said.misfits) - NAMED} more" if len(said.misfits) > NAMED else ""
        detail = f"{len(said.misfits)} left out; {'; '.join(some)}{more}"
        findings.append(Finding("reward.misfits", "Which judgements do not fit what was asked?", "warn", detail=detail))
    if said.unspoken:
        some = [f"{name!r} (did you mean {near!r}?)" if near else repr(name) for name, near in said.unspoken.items()]
        detail = f"objectives.names: found {', '.join(some)}, which no judgement gives; expected attributes, flags or aspects"
        findings.append(
            Finding("reward.names", "Do all names speak of something that was said?", "warn", detail=detail)
        )
    if said.marks:
        what = "train token-level rewards, not this one" if marks_train else NOT_ASKED
        detail = f"marks inside {len(said.marks)} responses {what}"
        findings.append(Finding(MARKS_APART, "Which feedback is about parts of responses?", "info", detail=detail))
    return findings


def reward_from(request: RewardRequest, *, progress: Progress) -> dict[str, Any]:
    """Train a reward on everything in a store or snapshot, save it, and say what each kind contributed.

    With `reward.checkpoint_every` an interrupted call goes on where it was; of an ensemble, what each kind contributed and
    the rewards of single tokens are its first model's. The manifest beside it names the snapshot that it was fitted to.

    Returns: plain values: out, counts, metrics, contributions, findings, and which classes of marks have token rewards.
    Raises: InputError, StoreError, LedgerError or CheckpointError for what cannot be used.
    """
    check_directory_place(request.out, CARD)
    check_trunk(request.model)
    with on_device(request.device), in_ways(attention=request.attention):
        return _reward_from(request, progress)


def _reward_from(request: RewardRequest, progress: Progress) -> dict[str, Any]:
    started_at, begun = utc_now(), time.monotonic()
    # 1. what was said
    place, snapshot = _snapshot(request)
    check_raters(one_rater(snapshot.annotators), allow_one=request.allow_one_rater)
    newest = None if request.samples is None else newest_samples(request.samples, snapshot)
    said = said_in(snapshot, request.reward, request.objectives, samples=newest)
    said, panel = without_panel(said, request.reward.panel_frac)
    trained, gate = kept_for_gate(said.statements, request.gate_frac, request.gate.min_votes)
    check_beside_read(request.reward, marks=bool(said.marks))
    train, held, _ = split_votes(trained, holdout_frac=request.reward.holdout_frac)
    voted = main_votes([*train, *held])
    check_population(
        voted, snapshot.annotators, request.pluralism, spoken_objectives(said.statements), of_groups=request.aggregator
    )
    # 2. fit
    texts = (snapshot.prompts, said.responses)
    fitted, factors, cooling = cooled_on_new_prompts(_fit(request, train, held, texts, progress), gate, *texts)
    fit, scorer = fitted.members[0], optimised_scorer(fitted, request.objectives)
    metadata = {"stage": "reward", "snapshot_root": snapshot.root}
    scale = _scale(fitted, scorer, train, texts, request.objectives)
    save_fitted(fitted, request.out, metadata=metadata, scale=scale, objectives=request.objectives)
    shutil.rmtree(request.training, ignore_errors=True)
    # 3. the gate: what an optimiser would be told to make more of
    crossed = CrossedScorer(scorer, factors)
    checks, words = judge_reward(
        fit, crossed, main_votes(train), gate, texts, settings=request.gate, directory=request.out,
        metadata=metadata, seed=request.seed, progress=progress,
    )  # fmt: skip
    slices = _slices(request, fitted, crossed, gate, said, snapshot)
    by_token = isinstance(fit.model.trunk, DecoderTrunk)
    findings = [*fitted.findings, cooling, *said_findings(said, marks_train=by_token), *checks, *slice_findings(slices)]
    if request.reward.panel_frac:
        apart, rng = {vote.prompt_id for vote in gate}, numpy_generator(request.seed, "panel of raters")
        findings += panel_findings(crossed, panel, apart, texts, rng)
    # 4. the people behind it, and rewards of single tokens, on the trained trunk held fixed
    people: dict[str, Any] = {}
    if request.pluralism.enabled:
        with progress.stage("people", unit="fits"):
            about, people = fit_population(
                scorer, fit, voted, gate, snapshot, judged_samples(voted, snapshot), pluralism=request.pluralism,
                aggregator=request.aggregator, seed=request.seed, directory=request.out, metadata=metadata,
            )  # fmt: skip
        findings += about
    quality = _token_rewards(request, fit.model.trunk, said.marks, texts, metadata, kept=bool(gate))
    if said.marks:
        findings += beside_finding(request.reward, [one.name for one in quality])
    result = {
        "posterior": fitted.kind, "objectives": list(fit.model.objectives), "n_judgements": said.n_judgements,
        "silent": said.silent, "marked": [one.name for one in quality], "marks": mark_rows(quality),
        "metrics": fitted.metrics, "contributions": contribution_rows(fit.contributions),
        "gate": gate_verdict(findings), "n_gate": len(gate), "suspects": words, "people": jsonable(people),
        "calibration": calibration_bins(crossed, gate, texts), "calibration_slices": slice_rows(slices),
    }  # fmt: skip
    _record(request, place, StageResult((), result, findings), started_at, time.monotonic() - begun)
    return {"out": str(request.out), **result, "findings": [dataclasses.asdict(finding) for finding in findings]}


def _fit(
    request: RewardRequest, train: Sequence[Statement], held: Sequence[Statement], texts: Texts, progress: Progress
) -> FittedReward:
    """Train what the request asks for, where it was left."""
    n_steps = n_steps_planned(train, *texts, config=request.reward, seed=request.seed)
    with progress.stage("reward model", n_steps, "steps") as bar:
        if request.reward.checkpoint_every:
            bar.reach(n_steps_done(request.reward, request.training))
        return fit_reward(
            lambda: open_trunk(request.model, request.dtype), train, *texts, config=request.reward, seed=request.seed,
            validation=held or None, directory=request.training, reporters=[bar], progress=progress,
        )  # fmt: skip


def _slices(
    request: RewardRequest,
    fitted: FittedReward,
    crossed: CrossedScorer,
    gate: Sequence[Vote],
    said: Said,
    snapshot: Snapshot,
) -> Slices:
    """Calibration by group of raters and by kind, on what the gate keeps, of the random arm."""
    kept: list[Statement] = []
    if gate:
        kept = [one for one in gate_split(said.statements, frac=request.gate_frac)[1] if one.strategy == "random"]
    texts = (snapshot.prompts, said.responses)
    ordinal = request.reward.ratings == "ordinal"
    return calibration_slices(crossed, fitted.members[0], gate, kept, texts, snapshot.annotators, ordinal=ordinal)


def _scale(
    fitted: FittedReward, scorer: Scorer, train: Sequence[Statement], texts: Texts, objectives: ObjectivesConfig
) -> ScoreScale:
    """The optimiser's scale, on the training responses: there is no policy yet."""
    if not objectives.combines:
        return fitted.scorer.scale
    data = feedback_data(train, *texts)
    belief = scorer(data.prompts, data.texts)
    return training_scale(aggregate(belief, "mean_score"), belief.prompt_index)


def _token_rewards(
    request: RewardRequest,
    trunk: Trunk,
    marked: Sequence[Marked],
    texts: Texts,
    metadata: Mapping[str, str],
    *,
    kept: bool,
) -> list[MarkQuality]:
    """Fit and save rewards of single tokens where something was marked and the trunk has tokens in order."""
    marks, apart = gate_split(marked, frac=request.gate_frac if kept else 0.0)
    if not marks or not isinstance(trunk, DecoderTrunk):
        check_beside_read(request.reward, marks=False)
        return []
    _, quality = fit_token_rewards(
        trunk, marks, apart, texts, request.out, metadata=metadata, seed=request.seed, beside=request.reward.beside
    )
    return quality


def _record(request: RewardRequest, snapshot: Path, result: StageResult, started_at: str, seconds: float) -> None:
    """The manifest of the reward, in its own directory: the last thing that is written."""
    out = request.out.resolve()
    read = [ref_of(out, request.model.resolve(), "model", "base"), ref_of(out, snapshot.resolve(), "snapshot")]
    read += [] if request.samples is None else [ref_of(out, request.samples.resolve(), name="samples")]
    asked = {
        key: value
        for key, value in plain(request).items()
        if key not in ("model", "out", "store", "snapshot", "samples", "seed", "device")
    }
    result = dataclasses.replace(result, outputs=(Output("model", out, "model"),))
    record(
        out, result, run_id=out.name, stage="reward", inputs=read, settings={"settings": asked},
        seeds={"reward": request.seed}, started_at=started_at, seconds=seconds, notes=devices.notes((devices.current().type,)),
    )  # fmt: skip


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


def _snapshot(request: RewardRequest) -> tuple[Path, Snapshot]:
    if request.snapshot is not None:
        return request.snapshot, read_snapshot(request.snapshot)
    assert request.store is not None
    with open_store(request.store, create=False) as store:
        request.out.parent.mkdir(parents=True, exist_ok=True)
        path = snapshot_place(store, request.out.with_name(f"{request.out.name}-snapshot"), batch=request.batch)
        return path, write_snapshot(store, path, batch=request.batch)
