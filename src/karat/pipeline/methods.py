"""Which method a run's `algorithm` names: its settings, its data, and the call of its recipe.

Knows the recipes of `policy` and what a run leaves on disk; knows nothing about how a policy is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat.errors import InputError
from karat.feedback.snapshot import Snapshot
from karat.lm.load import LoadedLM
from karat.lm.loop import Reporter
from karat.pipeline.data import Texts
from karat.pipeline.settings import RunConfig
from karat.policy.beside import Beside
from karat.policy.course import Evaluate
from karat.policy.direct import train_direct
from karat.policy.expert import train_expert
from karat.policy.group import train_group
from karat.policy.ilql import train_ilql
from karat.policy.offline_data import LabelledResponse, Preference, ScoredResponse
from karat.policy.online_dpo import train_online_dpo
from karat.policy.ppo import train_ppo
from karat.policy.scores import score_responses
from karat.policy.watcher import Watcher
from karat.reading import statements_of
from karat.records import Prompt, ScoreFn
from karat.statements import PREFERENCE, Labelled, Rated, Statement


@dataclass(frozen=True)
class Material:
    """What a method may learn from."""

    prompts: Sequence[Prompt]
    """Prompts to practise on."""
    score: ScoreFn
    """What the optimiser is paid."""
    snapshot: Snapshot
    """The votes."""
    samples: Texts
    """Responses of the supervised policy."""
    beside: Beside = field(default_factory=Beside)
    """Costs and rewards inside responses; nothing by default."""
    labels: Snapshot | None = None
    """Judgements of single responses from elsewhere, for KTO."""
    measuring: frozenset[str] = frozenset()
    """Prompt.id of prompts that only measure: nothing is learned from them."""


@dataclass(frozen=True)
class Trained:
    """What a method ended with."""

    lm: LoadedLM
    """The policy as it ended; for ilql, the guided one."""
    n_steps: int
    """Iterations, or optimiser steps of the offline methods."""
    stop_reason: str | None
    """Which rule ended it early."""
    best_step: int | None
    """Step of the watcher's best."""
    best_path: Path | None
    """Where that lies."""
    n_skipped: int
    """Optimiser steps whose gradient was not finite."""


@dataclass(frozen=True)
class Around:
    """Seed, checkpoints and who looks on."""

    seed: int
    """Of the recipe."""
    directory: Path
    """Checkpoints."""
    reporters: Sequence[Reporter]
    """Hear of every step."""
    watcher: Watcher
    """Keeps the best and stops."""
    evaluate: Evaluate
    """Measures along the way."""

    @property
    def options(self) -> dict[str, Any]:
        """As every recipe takes them."""
        return {
            "seed": self.seed,
            "directory": self.directory,
            "reporters": self.reporters,
            "watcher": self.watcher,
            "evaluate": self.evaluate,
        }


def run_method(config: RunConfig, lm: LoadedLM, material: Material, around: Around) -> Trained:
    """Call the recipe that the configuration names."""
    settings, options = config.method, around.options
    name = config.algorithm
    if name == "kto":
        labels = labels_in(material)
        found = train_direct(lm, preferences_in(material, least=not labels), settings, labels=labels, **options)
    elif name in ("dpo", "ipo"):
        found = train_direct(lm, preferences_in(material), settings, **options)
    elif name == "ilql":
        result = train_ilql(lm, scored_samples(material), settings, **options)
        found, lm = result.run, result.guided
    elif name == "ppo":
        ppo = train_ppo(lm, material.prompts, material.score, settings, beside=material.beside, **options)
        return Trained(lm, ppo.n_iterations, ppo.stop_reason, ppo.best_step, ppo.best_path, ppo.n_skipped)
    else:
        recipe = ONLINE[name]
        # a method that neither keeps a bound nor pays inside responses is told what pays it all the same
        found = recipe(lm, material.prompts, material.score, settings, beside=material.beside, **options)
    return Trained(lm, found.n_steps, found.stop_reason, found.best_step, found.best_path, found.n_skipped)


ONLINE: Mapping[str, Callable[..., Any]] = {
    "rloo": train_group,
    "grpo": train_group,
    "reinforce_pp": train_group,
    "online_dpo": train_online_dpo,
    "expert_iteration": train_expert,
}


def n_steps(config: RunConfig, material: Material) -> int:
    """Steps that the method will take unless it stops early."""
    settings: Any = config.method
    if config.algorithm in ("dpo", "ipo"):
        return settings.n_steps(len(preferences_in(material)))
    if config.algorithm == "kto":
        labels = labels_in(material)
        return settings.n_steps(2 * len(preferences_in(material, least=not labels)) + len(labels))
    if config.algorithm == "ilql":
        return settings.n_steps(sum(map(len, material.samples.texts)))
    return settings.n_iterations


def labels_in(material: Material) -> list[LabelledResponse]:
    """Responses judged by themselves: "both good" or "both bad" of a vote, good or bad labels, and ratings.

    A rating above the middle of its scale is good, one below it bad, one in the middle says nothing. Of the run's own
    votes those on prompts to practise on count, of the given labels all but those on prompts that measure.
    """
    practice = {prompt.id for prompt in material.prompts}
    found = []
    for snapshot, own in ((material.snapshot, True), (material.labels, False)):
        if snapshot is None:
            continue
        single = [one for one in snapshot.judgements if one.kind in ("label", "rating") and "missing" not in one.value]
        said = statements_of(snapshot.votes, single, snapshot.responses)
        for one in said.statements:
            good = _good(one)
            measured = one.prompt_id not in practice if own else one.prompt_id in material.measuring
            if good is not None and not measured:
                text = said.responses[one.response_ids[0]].text
                found.append(LabelledResponse(snapshot.prompts[one.prompt_id], text, good))
    return found


def _good(statement: Statement) -> bool | None:
    """Whether a statement calls a single response good; None = it does not say."""
    if getattr(statement, "objective", PREFERENCE) != PREFERENCE:
        return None
    if isinstance(statement, Labelled):
        return statement.good
    middle = (statement.low + statement.high) / 2 if isinstance(statement, Rated) else 0.0
    return statement.value > middle if isinstance(statement, Rated) and statement.value != middle else None


def preferences_in(material: Material, *, least: bool = True) -> list[Preference]:
    """The decided comparisons among the votes on prompts to practise on, one each; ties decide nothing.

    Args:
        least: False = none is enough.
    Raises: InputError where there is none.
    """
    practice = {prompt.id for prompt in material.prompts}
    snapshot, found = material.snapshot, []
    for vote in snapshot.votes:
        doubled = 2 * vote.level - (vote.n_levels - 1)
        a, b = (snapshot.responses[side].text for side in (vote.a, vote.b))
        if doubled == 0 or vote.prompt_id not in practice or a == b:
            continue
        better, worse = (a, b) if doubled > 0 else (b, a)
        found.append(Preference(snapshot.prompts[vote.prompt_id], better, worse))
    if not found and least:
        raise InputError(
            f"preferences: found no decided comparison among {len(snapshot.votes)} votes; expected at least one"
        )
    return found


def scored_samples(material: Material) -> list[ScoredResponse]:
    """The supervised policy's responses with their scores: the static data of offline reinforcement learning."""
    practice = {prompt.id for prompt in material.prompts}
    rows = [
        (prompt, text)
        for prompt, texts in zip(material.samples.prompts, material.samples.texts, strict=True)
        for text in texts
        if prompt.id in practice
    ]
    if not rows:
        raise InputError("ilql: found no samples of prompts to practise on; expected some")
    scores = score_responses(material.score, [prompt for prompt, _ in rows], [text for _, text in rows])
    return [ScoredResponse(prompt, text, score) for (prompt, text), score in zip(rows, scores, strict=True)]
