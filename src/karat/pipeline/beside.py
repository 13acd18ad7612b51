"""What a run's optimiser is handed beside the score function: rewards inside responses, and the costs of a constraint.

Knows saved reward models and the policy room's `Beside`; knows nothing about how a policy is updated.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from karat.belief import to_reference
from karat.config import plain
from karat.errors import ConfigError, InputError
from karat.figures import figure
from karat.ledger.artifacts import ArtifactRef
from karat.pipeline.beside_settings import ConstraintConfig, DenseSettings, beside_finding
from karat.pipeline.settings import RunConfig
from karat.policy.beside import Beside
from karat.policy.score_sources import HttpSettings, asked_once, named_score, source_hash
from karat.policy.scores import score_responses
from karat.records import Finding, Prompt, Response, ScoreFn
from karat.reward.dense import (
    DENSE,
    DenseReward,
    TokenHeads,
    dense_score_fn,
    fit_read,
    load_dense,
    marked_tokens,
    save_dense,
)
from karat.reward.mark_quality import MarkQuality, held_out_quality
from karat.reward.mark_ridges import fit_beside, rows_of, with_side
from karat.reward.objectives import ObjectivesConfig
from karat.reward.people import GroupScorer
from karat.reward.score import Scorer
from karat.reward.settings import RewardConfig
from karat.reward.side import Beside as SideBlock
from karat.reward.trunk import DecoderTrunk, Trunk
from karat.statements import Marked

TRUNK_ALONE = RewardConfig()
"""Heads of marks that read nothing beside the trunk."""


def beside_the_score(
    scorer: Scorer | GroupScorer,
    reward: Path,
    dense: DenseSettings,
    constraint: ConstraintConfig | None,
    *,
    http: HttpSettings | None = None,
) -> Beside:
    """What the configuration asks for; nothing where it asks for nothing.

    Args:
        scorer: of the reward model in the directory `reward`.    http: how a cost at an address is asked for.
    Raises: ConfigError for an objective that the reward does not have, or a cost function that is not there;
        CheckpointError for a reward without token rewards.
    """
    own = scorer.scorer if isinstance(scorer, GroupScorer) else scorer
    cost = None if constraint is None else cost_fn(own, constraint, http=http)
    if not dense.weights:
        return Beside(cost_fn=cost)
    heads = load_dense(reward, _decoder(own.model.trunk))
    _check_marked(dense, heads.names)
    return Beside(cost_fn=cost, dense_fn=dense_score_fn(heads, dense.weights, step_pay=dense.step_pay))


def paid_by(config: RunConfig, reward: ArtifactRef) -> dict[str, Any]:
    """What decides what the policy is paid, by name: an interrupted optimiser never goes on under another reward.

    Args:
        reward: the reward model that the run has.
    """
    found = {"reward model": reward.hash, "aggregator": config.aggregator, "score": config.score or "the reward model"}
    if config.score:
        found["source of score"] = source_hash(config.score)
    if config.dense.weights:
        found["dense.weights"] = plain(config.dense.weights)
        if config.dense.step_pay != "mean":
            found["dense.step_pay"] = config.dense.step_pay
    if config.constraint is not None:
        found["constraint"] = plain(config.constraint)
        if config.constraint.cost:
            found["source of constraint.cost"] = source_hash(config.constraint.cost)
    return found


def cost_fn(scorer: Scorer, constraint: ConstraintConfig, *, http: HttpSettings | None = None) -> ScoreFn:
    """The cost of each response: what is bounded, turned so that less is better.

        c(x, y) = ∓ mean over draws of r_objective(x, y) − its mean on the reference responses

    Raises: ConfigError as `beside_the_score` has it.
    """
    if constraint.cost:
        named = named_score(constraint.cost, key="constraint.cost", http=http)
        measure = asked_once(named, what="cost function", name=constraint.cost)
    else:
        names = scorer.model.objectives
        if constraint.objective not in names:
            raise ConfigError(
                f"constraint.objective: found {constraint.objective!r}; expected one of the reward's: {', '.join(names)}"
            )
        measure = _objective(scorer, names.index(constraint.objective))

    def cost(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        figures = score_responses(measure, prompts, responses, what="cost function")
        return [constraint.sign * figure for figure in figures]

    return cost


def keep_token_rewards(
    settings: DenseSettings,
    trunk: Trunk,
    marks: Sequence[Marked],
    texts: tuple[Mapping[str, Prompt], Mapping[str, Response]],
    directory: Path,
    *,
    metadata: Mapping[str, str],
    kept: Sequence[Marked] = (),
    reward: RewardConfig = TRUNK_ALONE,
    seed: int = 0,
    given: Path | None = None,
) -> list[Finding]:
    """Fit the token rewards that the configuration weighs, or take a given reward's, and keep them beside the model.

    Args:
        marks: those that may be trained on.    texts: prompts and responses by id.    directory: of the reward model.
        kept: marks on prompts that nothing was trained on; they say how well the others predict them.
        reward: its `beside` names the plain features that the heads read beside the trunk's.
        given: of the reward model that it was copied from; its token rewards count where nothing was marked.
    Returns: findings; none where the configuration weighs nothing.
    Raises: InputError where neither has marks; ConfigError for a class that was never marked.
    """
    if not settings.weights:
        return []
    decoder = _decoder(trunk)
    if marks:
        heads, quality = fit_token_rewards(
            decoder, marks, kept, texts, directory, metadata=metadata, seed=seed, beside=reward.beside
        )
        where = "; ".join([f"{len(marks)} marked responses", *map(gain_words, quality)])
    elif given is not None and (given / DENSE).is_file():
        shutil.copyfile(given / DENSE, directory / DENSE)
        heads, where = load_dense(directory, decoder), f"the marks behind {given.name}"
    else:
        raise InputError(
            "dense.weights: found no span marks, step marks or corrections among the judgements; expected some "
            "(collect.n_step_marks, n_span_marks), or a reward_model that was trained on marks"
        )
    _check_marked(settings, heads.names)
    detail = f"{where}; weights " + ", ".join(f"{name} {weight:g}" for name, weight in settings.weights.items())
    if settings.step_pay == "every":
        detail += "; every step paid at its end by log P(not wrong)"
    read = [] if not marks else beside_finding(reward, heads.names)
    return [
        Finding("reward.dense", "Which parts of a response are paid where they stand?", "info", detail=detail),
        *read,
    ]


def _objective(scorer: Scorer, place: int) -> ScoreFn:
    plain = scorer.with_objectives(ObjectivesConfig())

    def measure(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return to_reference(plain(prompts, responses)).mean(0)[:, place].tolist()

    return measure


def _check_marked(settings: DenseSettings, names: Sequence[str]) -> None:
    if unknown := [name for name in settings.weights if name not in names]:
        raise ConfigError(f"dense.weights: found {unknown[0]!r}; expected classes that were marked: {', '.join(names)}")


def fit_token_rewards(
    trunk: DecoderTrunk,
    marks: Sequence[Marked],
    kept: Sequence[Marked],
    texts: tuple[Mapping[str, Prompt], Mapping[str, Response]],
    directory: Path,
    *,
    metadata: Mapping[str, str],
    seed: int,
    beside: Sequence[SideBlock] = (),
) -> tuple[DenseReward, list[MarkQuality]]:
    """Fit token rewards, keep them beside the model, and say how well they predict the marks that were kept apart.

    Args:
        beside: plain features that they read beside the trunk's.
    """
    asked_at_random = [mark for mark in kept if mark.strategy == "random"]
    read, read_kept = ([marked_tokens(trunk, mark, *texts) for mark in side] for side in (marks, asked_at_random))
    heads: DenseReward | TokenHeads
    if beside:
        rows, rows_kept = (rows_of(trunk, side, *texts) for side in (marks, asked_at_random))
        dense, heads, side = fit_beside(trunk, marks, read, rows, beside)
        read, read_kept = with_side(side, read, rows), with_side(side, read_kept, rows_kept)
    else:
        heads = dense = fit_read(trunk, marks, read)
    save_dense(dense, directory, metadata=metadata)
    annotators = [mark.annotator for mark in asked_at_random]
    return dense, held_out_quality(heads, dense.names, read, read_kept, annotators, seed=seed)


def gain_words(quality: MarkQuality) -> str:
    """`step: 0.120 [0.080, 0.160] nats gained over equal scores on prompts kept from training`, or why it is not known."""
    gain = quality.gain
    if gain.value is None:
        return f"{quality.name}: {gain.method}"
    return f"{quality.name}: {figure(gain.value, gain.low, gain.high)} nats gained over equal scores on prompts kept from training"


def _decoder(trunk: Trunk) -> DecoderTrunk:
    if not isinstance(trunk, DecoderTrunk):
        raise ConfigError(f"dense.weights: found a reward on a trunk of kind {trunk.kind}; expected a decoder")
    return trunk
