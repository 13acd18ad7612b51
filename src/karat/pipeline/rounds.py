"""Further rounds: the policy's own samples are judged, the reward is fitted to all votes so far, the policy anew.

Every round starts its policy and its reward from the fine-tuned policy, so that the KL means the same in all of them and
no round inherits what the one before exploited; the votes of all rounds are replayed. Before the reward is fitted anew,
the old one is held against the votes on what the policy made of it: that is its accuracy where it was optimised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from karat.feedback.snapshot import Snapshot, read_snapshot, snapshot_place, write_snapshot
from karat.feedback.store import open_store
from karat.ledger.artifacts import ArtifactRef
from karat.ledger.manifest import Manifest
from karat.lm import parallel
from karat.pipeline import optimise, rewarding
from karat.pipeline.collect_settings import AUTO
from karat.pipeline.data import vote_figures
from karat.pipeline.gating import gate_split
from karat.pipeline.settings import RunConfig
from karat.pipeline.sources import Source
from karat.pipeline.stages import Output, Run, StageResult, Workplace, findings_of, output
from karat.pipeline.told import POLICY, settings_of
from karat.records import Estimate, Finding, Vote
from karat.reward.calibration import decided_probs, predicted_probs
from karat.reward.data import vote_data
from karat.reward.gate import check_gate, gate_checks
from karat.reward.length_use import correct
from karat.reward.score import Scorer, load_scorer
from karat.stats import mean_estimate, not_estimable

Collect = Callable[..., StageResult]


@dataclass(frozen=True)
class Later:
    """What the rounds after the first came to."""

    manifests: Mapping[str, Manifest]
    """By stage, as `reward-2`."""
    policies: Mapping[str, ArtifactRef]
    """The policy of each round: `ppo_round_1` …, the last one under the method's own name."""
    reward: ArtifactRef
    """The reward model of the last round."""


def run_rounds(
    run: Run, source: Source, config: RunConfig, first: Mapping[str, Manifest], *, collect: Collect
) -> Later:
    """Rounds 2 … `config.rounds`.

    Args:
        first: manifests of the first round.    collect: samples a policy and has the samples judged.
    Raises: GateError when a round's reward fails its gate and `allow_ungated_reward` is not set.
    """
    sft, prompts = output(first["sft"], "model"), output(first["source"], "prompts")
    samples = output(first["collect"], "samples")
    made: dict[str, Manifest] = {}
    name = config.algorithm
    collected, policies, rewards = (
        [first["collect"]],
        [output(first[name], "model")],
        [output(first["reward"], "model")],
    )
    for number in range(2, config.rounds + 1):
        # 1. votes on what the policy of the round before writes, and what they say of its reward
        stage = partial(run.stage, round_number=number)
        work = partial(
            judged, run, config, source, collected, policy=policies[-1], reward=rewards[-1], collect=collect,
            number=number,
        )  # fmt: skip
        inputs = (policies[-1], rewards[-1], prompts, *(output(one, "snapshot") for one in collected))
        done = stage("collect", inputs=inputs, config=settings_of("collect", config), work=work, together=True)
        collected.append(done)
        # 2. the reward, fitted to the votes of all rounds
        replay = output(done, "replay")
        newest = output(done, "samples")
        work = partial(rewarding.train, run, config, source, sft, replay, samples, newest=newest)
        inputs = (sft, replay, samples, newest)
        fitted = stage("reward", inputs=inputs, config=settings_of("reward", config), work=work, together=True)
        rewards.append(output(fitted, "model"))
        findings = [*gate_checks(findings_of(fitted)), optimise.leash_finding(config)]
        check_gate(findings, allow_ungated=config.allow_ungated_reward)
        # 3. the policy, from its reference
        given = {"sft": sft, "reward": rewards[-1], "prompts": prompts, "samples": samples, "snapshot": replay}
        given["demonstrations"] = output(first["source"], "demonstrations")
        given |= optimise.given_labels(run, config)
        work = partial(optimise.train, run, config, given, source)
        inputs = optimise.reads(config, given)
        moved = stage(name, inputs=inputs, config=settings_of(POLICY, config), work=work, together=True)
        policies.append(output(moved, "model"))
        made |= {one.stage: one for one in (done, fitted, moved)}
    named = {f"{name}_round_{number}": policy for number, policy in enumerate(policies[:-1], 1)}
    return Later(made, {**named, name: policies[-1]}, rewards[-1])


def judged(
    run: Run,
    config: RunConfig,
    source: Source,
    before: list[Manifest],
    place: Workplace,
    *,
    policy: ArtifactRef,
    reward: ArtifactRef,
    collect: Collect,
    number: int,
) -> StageResult:
    """The votes of a round, the snapshot of all rounds' votes, and how well the old reward predicts the new votes.

    Args:
        before: manifests of the rounds' votes so far.    policy, reward: of the round before.
    """
    chosen = config.collect.acquisition != "random" or AUTO in config.collect.time_shares
    result = collect(
        run, policy, source, config, place, number=number, adviser=reward if chosen else None,
        answered=_judgement_ids(read_snapshot(run.directory / _so_far(before, number).path)),
    )  # fmt: skip
    return parallel.from_main(partial(_with_old_reward, run, before, place, result, reward=reward, number=number))


def _with_old_reward(
    run: Run, before: list[Manifest], place: Workplace, result: StageResult, *, reward: ArtifactRef, number: int
) -> StageResult:
    new = read_snapshot(next(one.path for one in result.outputs if one.name == "snapshot"))
    old = read_snapshot(run.directory / _so_far(before, number).path)
    ids = _judgement_ids(old) | _judgement_ids(new)
    path = place.directory / "snapshots" / f"replay{place.suffix}"
    with open_store(place.directory / "karat.db") as store:
        path = snapshot_place(store, path, only=ids)
        replayed = write_snapshot(store, path, only=ids)
    figures = online_figures(load_scorer(run.directory / reward.path), old, new)
    findings = [
        Finding(f"rounds.{number}.{name}", QUESTIONS[name], "info", estimate) for name, estimate in figures.items()
    ]
    outputs = [*result.outputs, Output("replay", path, "snapshot")]
    metrics = {**result.metrics, **figures, "all_rounds": vote_figures(replayed, run.seed)}
    return StageResult(outputs, metrics, [*result.findings, *findings], result.notes)


QUESTIONS = {
    "online_accuracy": "How often did the reward predict decided votes on what its own policy wrote?",
    "offline_accuracy": "How often did it predict decided votes on what it was not optimised against?",
    "gap": "How much better was it there than here, on the same prompts?",
}


def online_figures(scorer: Scorer, old: Snapshot, new: Snapshot) -> dict[str, Estimate]:
    """Accuracy of a reward on the votes of prompts that it was never trained on: before and after it was optimised.

    Args:
        old: the votes it was fitted to; only those on the gate's prompts are used.    new: votes on its policy's samples.
    Returns: online_accuracy, offline_accuracy, and gap = offline − online, paired by prompt.
    """
    before, after = _gate_votes(old), _gate_votes(new)
    online = prompt_accuracy(scorer, after, new)
    offline = prompt_accuracy(scorer, before, old)
    both = sorted(online.keys() & offline.keys())
    gaps = [offline[prompt] - online[prompt] for prompt in both]
    return {
        "online_accuracy": _over_prompts(list(online.values())),
        "offline_accuracy": _over_prompts(list(offline.values())),
        "gap": _over_prompts(gaps),
    }


def _so_far(before: list[Manifest], number: int) -> ArtifactRef:
    """The snapshot of everything that was said before a round."""
    return output(before[-1], "replay" if number > 2 else "snapshot")


def _judgement_ids(snapshot: Snapshot) -> set[str]:
    return {vote.judgement_id for vote in snapshot.votes} | {judgement.id for judgement in snapshot.judgements}


def _gate_votes(snapshot: Snapshot) -> list[Vote]:
    """Votes of the random arm on prompts that the gate keeps, which no gradient saw; the same prompts in every round."""
    return gate_split([vote for vote in snapshot.votes if vote.strategy == "random"])[1]


def prompt_accuracy(scorer: Scorer, votes: list[Vote], snapshot: Snapshot) -> dict[str, float]:
    """By prompt: the share of decided votes whose winner the reward gives more than ½; exactly ½ counts half."""
    if not votes:
        return {}
    data = vote_data(votes, snapshot.prompts, snapshot.responses)
    probs = predicted_probs(scorer.logits(data.prompts, data.texts), data.columns, scorer.vote_model)
    p, outcome, rows = decided_probs(probs, data.columns)
    right = correct(p, outcome)
    prompts: dict[str, list[float]] = {}
    for row, value in zip(np.flatnonzero(rows) if rows.dtype == bool else rows, right, strict=True):
        prompts.setdefault(data.votes[int(row)].prompt_id, []).append(float(value))
    return {prompt: float(np.mean(values)) for prompt, values in prompts.items()}


def _over_prompts(values: list[float]) -> Estimate:
    if not values:
        return not_estimable("no decided vote on a prompt that the gate keeps", 0)
    found = mean_estimate(np.asarray(values))
    return Estimate(
        found.value, found.low, found.high, found.n, f"decided votes, by prompt; {found.method} over prompts"
    )
