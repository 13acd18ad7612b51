"""The reward station: a model of the votes, its scale on the policy's own responses, its gate, its calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from karat.belief import ScoreScale
from karat.errors import ConfigError, InputError
from karat.feedback.snapshot import Snapshot, read_snapshot
from karat.ledger.artifacts import ArtifactRef
from karat.lm import parallel
from karat.lm.checksums import note_further
from karat.pipeline.beside import keep_token_rewards
from karat.pipeline.calibrating import calibration_slices, slice_findings, slice_rows
from karat.pipeline.data import Texts, read_prompts, read_texts
from karat.pipeline.gating import calibration_bins, gate_split, main_votes
from karat.pipeline.kept_raters import panel_findings, without_panel
from karat.pipeline.mixture import said_findings, said_in
from karat.pipeline.models import load_for_training
from karat.pipeline.populations import check_population, fit_population
from karat.pipeline.settings import RunConfig
from karat.pipeline.sources import Source
from karat.pipeline.stages import Output, Run, StageResult, Workplace, training_reporters
from karat.pipeline.unfamiliar import judge_reward
from karat.reading import Said
from karat.records import Finding, Prompt, Response, Vote
from karat.reward.classifier import ClassifierTrunk, fit_vote_model, given_fit, one_head_finding
from karat.reward.contributions import contribution_findings, contribution_rows
from karat.reward.cooling import CrossedScorer, cooled_on_new_prompts
from karat.reward.data import check_objectives, split_votes, spoken_objectives, vote_data
from karat.reward.fit import (
    FittedReward,
    fit_reward,
    member_name,
    n_steps_done,
    n_steps_planned,
    optimised_scorer,
    save_fitted,
)
from karat.reward.gate import sycophancy_finding
from karat.reward.length_use import length_slope
from karat.reward.objectives import ObjectivesConfig, check_known
from karat.reward.score import Scorer, joined_scorer, load_scorer, reference_scale, scorer_of
from karat.reward.trunk import DecoderTrunk
from karat.seeding import child_seed, numpy_generator
from karat.statements import Marked, Statement

SCALE_PROMPTS = 512
"""Prompts whose samples set the optimiser's scale: of four samples each it is then known to about 2 %."""


@dataclass(frozen=True, eq=False)
class VoteParts:
    """What a snapshot says by what it may be used for; the votes are those of its largest scale."""

    snapshot: Snapshot
    """Prompts, responses and root."""
    train: list[Vote]
    """For gradients."""
    validation: list[Vote]
    """For early stopping and temperature: whole raters."""
    gate: list[Vote]
    """For the gate and the last temperature: whole prompts."""
    how: str
    """How raters were held out."""
    said: Said
    """Everything that was said, of every kind, with the responses that raters wrote."""
    fit: list[Statement]
    """What gradients see: `train` and all other kinds and scales."""
    held: list[Statement]
    """What early stopping sees: `validation` and all other kinds and scales."""
    gate_said: list[Statement]
    """`gate` and all other kinds and scales on its prompts, the random arm."""
    marks: list[Marked]
    """What was marked inside responses, on prompts that the gate does not keep."""
    gate_marks: list[Marked]
    """The same on those that it keeps."""
    panel: list[Vote]
    """Comparisons of the raters who are kept for evaluation, the random arm; they are in none of the above."""


def train(
    run: Run,
    config: RunConfig,
    source: Source,
    sft: ArtifactRef,
    votes: ArtifactRef,
    samples: ArtifactRef,
    place: Workplace,
    *,
    newest: ArtifactRef | None = None,
) -> StageResult:
    """Fit the reward model to the snapshot's votes, starting from the fine-tuned policy's trunk, and judge it.

    Args:
        samples: what the policy wrote before it was optimised; they set the optimiser's scale.
        newest: what the newest policy wrote, which demonstrations are held against; None = `samples`.
    Raises: before training, ConfigError for a jury of objectives, InputError for groups and floors that do not fit.
    """
    parts = vote_parts(run, config, votes, samples if newest is None else newest, place)
    check_jury(parts.fit, config)
    check_bound(parts.fit, config)
    voted = [*parts.train, *parts.validation]
    check_population(voted, parts.snapshot.annotators, config.pluralism, spoken_objectives(parts.fit))
    prompts, responses = parts.snapshot.prompts, parts.said.responses
    seed = child_seed(run.seed, "reward")
    path, lora_seed = run.directory / sft.path, child_seed(seed, "lora")
    n_steps = n_steps_planned(parts.fit, prompts, responses, config=config.reward, seed=seed)
    n_done = n_steps_done(config.reward, place.training)
    with training_reporters(place, "reward model", n_steps, n_done=n_done) as reporters:
        fitted = fit_reward(
            lambda: DecoderTrunk(load_for_training(path, config.lora, seed=lora_seed, dtype=config.dtype)), parts.fit, prompts, responses,
            config=config.reward, seed=seed, validation=parts.held or None, directory=place.training,
            reporters=reporters, progress=place.progress if parallel.is_main() else None,
        )  # fmt: skip
    return parallel.from_main(lambda: judged(run, config, source, fitted, parts, samples, place))


def take(
    run: Run,
    config: RunConfig,
    source: Source,
    given: ArtifactRef,
    votes: ArtifactRef,
    samples: ArtifactRef,
    place: Workplace,
) -> StageResult:
    """Take a reward model from elsewhere instead of training one: find its scale in the votes, and judge it like any other."""
    return parallel.from_main(lambda: _taken(run, config, source, given, votes, samples, place))


def _taken(
    run: Run,
    config: RunConfig,
    source: Source,
    given: ArtifactRef,
    votes: ArtifactRef,
    samples: ArtifactRef,
    place: Workplace,
) -> StageResult:
    path = run.directory / given.path
    scorer = load_scorer(path)
    # where the run says nothing of objectives those on the model's card hold, and votes need not speak of all of them
    own = config.objectives if config.objectives.combines else scorer.objectives
    check_known(own, scorer.model.objectives)
    names = ObjectivesConfig(names=config.objectives.names)
    parts = vote_parts(run, replace(config, objectives=names), votes, samples, place)
    config = replace(config, objectives=own)
    data = vote_data([*parts.train, *parts.validation], parts.snapshot.prompts, parts.snapshot.responses)
    vote_model, findings = scorer.vote_model, []
    if scorer.model.trunk.kind == ClassifierTrunk.kind:
        findings.append(one_head_finding(path))
    if scorer.model.trunk.kind == ClassifierTrunk.kind or vote_model.n_levels != data.n_levels:
        if scorer.members:
            raise InputError(
                f"reward_model: found an ensemble for votes of {vote_model.n_levels} levels; expected votes of "
                f"{data.n_levels} levels, or one model, whose scale can be found anew"
            )
        raw = scorer.logits(data.prompts, data.texts) * float(scorer.model.temperature)
        vote_model = fit_vote_model(scorer.model, raw.mean(0), data)
    fits = tuple(
        replace(
            given_fit(one.model, vote_model, one.scale, one.every(data.prompts, data.texts), findings), side=one.side
        )
        for one in scorer.members or (scorer,)
    )
    joint = scorer_of(fits[0])
    if scorer.members:
        joint = joined_scorer([scorer_of(fit) for fit in fits], vote_model, scorer.scale)
    kind = "ensemble" if scorer.members else "heads"
    fitted = FittedReward(kind, fits, joint, {}, findings)
    return judged(run, config, source, fitted, parts, samples, place, given=path)


def vote_parts(run: Run, config: RunConfig, votes: ArtifactRef, samples: ArtifactRef, place: Workplace) -> VoteParts:
    """What was said: whole prompts for the gate, whole raters for early stopping and temperature, the rest to train on."""
    snapshot = read_snapshot(run.directory / votes.path)
    practice = {prompt.id for prompt in read_prompts(place.directory / "data" / "prompts.jsonl")["policy"]}
    written = read_texts(run.directory / samples.path)
    newest = {
        prompt.id: [Response(prompt.id, text, "policy", number) for number, text in enumerate(texts)]
        for prompt, texts in zip(written.prompts, written.texts, strict=True)
    }
    said = said_in(snapshot, config.reward, config.objectives, samples=newest)
    said, apart = without_panel(said, config.reward.panel_frac)
    panel = [one for one in apart if one.prompt_id in practice]
    kept = [one for one in said.statements if one.prompt_id in practice]
    trained, kept_back = gate_split(kept)
    marks = gate_split([one for one in said.marks if one.prompt_id in practice])
    fit, held, how = split_votes(trained, holdout_frac=config.reward.holdout_frac)
    gate = [one for one in kept_back if one.strategy == "random"]  # chosen questions are no fair sample
    return VoteParts(snapshot, *map(main_votes, (fit, held, gate)), how, said, fit, held, gate, *marks, panel)


def check_jury(said: Sequence[Statement], config: RunConfig) -> None:
    """Refuse a jury whose jurors would be objectives: they share no scale. Raises: ConfigError."""
    objectives = sorted({one.objective for one in said})
    if config.aggregator == "jury_median" and len(objectives) > 1:
        raise ConfigError(
            f"aggregator: found jury_median and the objectives {', '.join(objectives)}; expected one objective, whose "
            "jurors are people"
        )


def check_bound(said: Sequence[Statement], config: RunConfig) -> None:
    """Refuse a bound on an objective that the reward will not score. Raises: InputError."""
    if config.constraint is not None and config.constraint.objective:
        check_objectives(said, [config.constraint.objective])


def judged(
    run: Run,
    config: RunConfig,
    source: Source,
    fitted: FittedReward,
    parts: VoteParts,
    samples: ArtifactRef,
    place: Workplace,
    *,
    given: Path | None = None,
) -> StageResult:
    """Set the optimiser's scale, save the model, and hold it against the gate; of an ensemble, all models as one.

    What is read from features, and what is known of single raters and kinds, is the first model's.

    Args:
        given: the reward model's directory where it comes from elsewhere.
    """
    snapshot = parts.snapshot
    fitted, factors, cooling = cooled_on_new_prompts(fitted, parts.gate, snapshot.prompts, snapshot.responses)
    fit = fitted.members[0]
    # 1. the optimiser's scale, from what the policy writes before it is optimised
    scorer = optimised_scorer(fitted, config.objectives)
    written = flat_texts(thinned(read_texts(run.directory / samples.path), SCALE_PROMPTS))
    removed = removed_length(scorer, *written) if config.gate.remove_length else 0.0
    scale = reference_scale(scorer.less_length(removed), *written, config.aggregator)
    metadata = {"run_id": run.id, "stage": "reward", "snapshot_root": snapshot.root}
    directory = save_fitted(
        fitted, place.model_directory("reward"), metadata=metadata, scale=scale, length_removed=removed,
        objectives=config.objectives,
    )  # fmt: skip
    dense = keep_token_rewards(
        config.dense, fit.model.trunk, parts.marks, (snapshot.prompts, parts.said.responses), directory,
        metadata=metadata, kept=parts.gate_marks, reward=config.reward, seed=run.seed, given=given,
    )  # fmt: skip
    # 2. the gate, on prompts never trained on; it looks at the whole reward, length included
    crossed = CrossedScorer(scorer, factors)  # each prompt at the temperature of the other half's votes
    texts = (snapshot.prompts, snapshot.responses)
    findings, words = judge_reward(
        fit, crossed, parts.train, parts.gate, texts, settings=config.gate, directory=directory, metadata=metadata,
        seed=run.seed, progress=place.progress, probes=source.probes,
    )  # fmt: skip
    pairs = source.wrong_belief_pairs() if source.wrong_belief_pairs else ()
    findings.append(sycophancy_finding(scorer, pairs, config.gate.max_sycophancy))
    findings += _of_the_panel(run, config, crossed, parts)
    # 3. the people behind it
    about_people, people = fit_population(
        scorer.less_length(removed), fit, [*parts.train, *parts.validation], parts.gate, snapshot,
        by_prompt(read_texts(run.directory / samples.path)), pluralism=config.pluralism, aggregator=config.aggregator,
        seed=run.seed, directory=directory, metadata=metadata, given=given,
    )  # fmt: skip
    if config.pluralism.enabled and about_people[0].status == "not measured":
        place.progress.note(f"no population stands beside the reward: {about_people[0].detail}")
    metrics = _metrics(fitted, scale, parts, seed=child_seed(run.seed, "reward"))
    metrics |= {"length_removed": removed, "suspects": words}
    metrics["calibration"] = calibration_bins(crossed, parts.gate, texts)
    slices = calibration_slices(
        crossed, fit, parts.gate, parts.gate_said,
        (snapshot.prompts, parts.said.responses), snapshot.annotators, ordinal=config.reward.ratings == "ordinal",
    )  # fmt: skip
    metrics["calibration_slices"] = slice_rows(slices)
    metrics["contributions"] = contribution_rows(fit.contributions)
    metrics["people"] = people
    found = [
        *fitted.findings,
        cooling,
        *dense,
        *said_findings(parts.said, marks_train=bool(config.dense.weights)),
        *contribution_findings(fit.contributions),
        *findings,
        *slice_findings(slices),
        *about_people,
    ]
    note_further(directory)  # what was laid beside the model since it was saved, too
    return StageResult(_outputs(fitted, directory), metrics, found)


def _of_the_panel(run: Run, config: RunConfig, scorer: CrossedScorer, parts: VoteParts) -> list[Finding]:
    """How well raters are predicted who are kept for evaluation, where some are."""
    if not config.reward.panel_frac:
        return []
    texts, rng = (parts.snapshot.prompts, parts.snapshot.responses), numpy_generator(run.seed, "panel of raters")
    return panel_findings(scorer, parts.panel, {vote.prompt_id for vote in parts.gate}, texts, rng)


def removed_length(scorer: Scorer, prompts: Sequence[Prompt], texts: Sequence[str]) -> float:
    """The slope of the scores on log-length within prompts, on the policy's own responses; 0 where they are equally long."""
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.id, []).append(index)
    return length_slope(scorer.logits(prompts, texts).mean(0), texts, list(groups.values())) or 0.0


def thinned(samples: Texts, n_prompts: int) -> Texts:
    """Every k-th prompt with its responses, at most so many: files are often sorted, so the first ones would be no sample."""
    keep = slice(None, None, -(-len(samples.prompts) // n_prompts) or 1)
    columns = (samples.prompts, samples.texts, samples.lengths, samples.stopped)
    return Texts(*(column[keep] for column in columns))


def by_prompt(samples: Texts) -> list[tuple[Prompt, Sequence[str]]]:
    """Each prompt with its responses."""
    return list(zip(samples.prompts, samples.texts, strict=True))


def flat_texts(samples: Texts) -> tuple[list[Prompt], list[str]]:
    """One prompt and one text a response."""
    prompts = [prompt for prompt, texts in zip(samples.prompts, samples.texts, strict=True) for _ in texts]
    return prompts, [text for texts in samples.texts for text in texts]


def _outputs(fitted: FittedReward, directory: Path) -> list[Output]:
    """The reward model; of an ensemble also each of its models."""
    names = [member_name(number) for number in range(len(fitted.members))] if len(fitted.members) > 1 else []
    return [Output("model", directory, "model"), *(Output(name, directory / name, "model") for name in names)]


def _metrics(fitted: FittedReward, scale: ScoreScale, parts: VoteParts, *, seed: int) -> dict[str, Any]:
    """Figures of the fit; of an ensemble also those of each model, with the seed that it can be trained again from."""
    counts = {"train": len(parts.train), "validation": len(parts.validation), "gate": len(parts.gate)}
    counts |= {"panel": len(parts.panel)} if parts.panel else {}
    metrics: dict[str, Any] = {**fitted.metrics, "scale": {"shift": scale.shift, "scale": scale.scale}}
    metrics["votes"] = counts | {"split": parts.how}
    if len(fitted.members) > 1:
        metrics["members"] = {
            member_name(number): {"seed": child_seed(seed, "member", number), **fit.metrics}
            for number, fit in enumerate(fitted.members)
        }
    return metrics
