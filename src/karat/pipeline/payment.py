"""What pays and charges the policy, looked over before anything is run: functions, a given reward model, names, marks.

Knows the configuration and the files that it names; loads no weights. The same is checked again where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from karat.damaged import damage_named
from karat.errors import CheckpointError, ConfigError
from karat.lm.classifiers import is_classifier
from karat.lm.headers import read_header_metadata
from karat.pipeline.populations import floor_problem
from karat.pipeline.settings import RunConfig
from karat.policy.score_sources import named_score
from karat.reward.dense import DENSE
from karat.reward.score import CARD
from karat.statements import PREFERENCE


def check_payment(config: RunConfig) -> None:
    """Raise ConfigError for the first of `payment_problems`."""
    for problem in payment_problems(config):
        raise ConfigError(problem)


def payment_problems(config: RunConfig) -> Iterator[str]:
    """What would stop the run where the policy is to be paid, one line each.

    Raises: CheckpointError for a given reward model that cannot be read.

    Objectives and marks are only known before the run of a given reward model, of the sandbox's own raters and of a file
    of comparisons; of people's judgements they are found when they are read.
    """
    bound, given = config.constraint, config.reward_model
    for key, name in (("score", config.score), ("constraint.cost", bound.cost if bound is not None else "")):
        if name:
            try:
                named_score(name, key=key)
            except ConfigError as error:
                yield str(error)
    if config.labels is not None and not (config.labels.is_file() or (config.labels / "snapshot.json").is_file()):
        yield f"labels: found neither a store nor a snapshot in {config.labels}; expected a store's file, or a directory"
    if given is not None and not (given / CARD).is_file() and not is_classifier(given):
        yield f"reward_model: found no reward model in {given}; expected a directory of karat's, or a sequence classifier"
        return
    objectives, classes = _objectives(config), _classes(config)
    named = [("constraint.objective", bound.objective)] if bound is not None and bound.objective else []
    named += [("objectives", name) for name in config.objectives.wanted]
    for key, name in named:
        if objectives is not None and name not in objectives:
            yield f"{key}: found {name!r}; expected one of the reward's: {', '.join(objectives)}"
    for name in config.pluralism.floors if config.pluralism.enabled else ():
        if objectives is not None and name not in objectives:
            yield floor_problem(name, objectives)
    if not config.dense.weights or classes is None:
        return
    if not classes:
        yield (
            "dense.weights: nothing will be marked; expected collect.n_step_marks or n_span_marks above 0, or a "
            "reward_model that was trained on marks"
        )
    elif unknown := [name for name in config.dense.weights if name not in classes]:
        yield f"dense.weights: found {unknown[0]!r}; expected classes that will be marked: {', '.join(classes)}"


def _objectives(config: RunConfig) -> list[str] | None:
    """The reward's objectives; None = they depend on judgements that are not there yet."""
    if config.reward_model is None:
        compared = config.preferences is not None or (config.sandbox is not None and not config.n_people)
        return [PREFERENCE] if compared else None
    card = config.reward_model / CARD
    if not card.is_file():
        return None
    with damage_named(card, "the card of a reward model", CheckpointError):
        return list(json.loads(card.read_text(encoding="utf-8")).get("objectives", [PREFERENCE]))


def _classes(config: RunConfig) -> list[str] | None:
    """Classes of marks that token rewards can be fitted to; None = not known yet."""
    steps, spans = config.collect.n_step_marks, config.collect.n_span_marks
    if steps or spans:
        return ["step"] * bool(steps) + ["wrong", "good"] * bool(spans)
    if config.reward_model is not None and _kept(config.reward_model):
        return _kept(config.reward_model)
    return [] if config.sandbox is not None and not config.n_people else None


def _kept(reward: Path) -> list[str]:
    path = reward / DENSE
    if not path.is_file():
        return []
    try:
        return read_header_metadata(path)["names"].split("\n")
    except KeyError:
        raise CheckpointError(f"{path}: the header names no classes; expected a file that karat wrote") from None
