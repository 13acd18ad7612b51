"""Experiments with randomised arms (pay, guideline, interface): set up, ended, and what they did to raters' answers.

Whatever was drawn into an arm, a rater or a task, is the unit. Knows settings, arms and judgements; what an arm changes
is `karat.feedback.arm_changes`', the tests are `karat.feedback.quality.arms`'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import select

from karat.errors import InputError
from karat.feedback.arm_changes import RATER, TASK, ArmChange
from karat.feedback.documents import GUIDELINE, ProjectSettings, document, project_settings, put_settings
from karat.feedback.people.standing import quarantined
from karat.feedback.people_tables import arms
from karat.feedback.quality.arms import ArmReport, arm_effect
from karat.feedback.quality.rater_health import peer_agreement
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.feedback.work.matching import gist
from karat.records import Judgement, vote_of

N_DRAWS = 2_000
"""Permutations of a test while somebody waits for a page: p-values down to 0.0005."""


@dataclass(frozen=True)
class Effect:
    """One experiment's effect on one outcome."""

    experiment: str
    """Its name in the settings."""
    outcome: str
    """What was measured of each rater."""
    report: ArmReport
    """The arms, compared."""
    unit: str = RATER
    """What was drawn into the arms, and is compared: rater or task."""
    without: tuple[str, ...] = ()
    """Arms of the settings in which nobody (or no task) has this outcome yet, so that there is nothing to compare with."""


@dataclass(frozen=True)
class Experiment:
    """One experiment, whether or not anybody was drawn into its arms yet."""

    experiment: str
    """Its name."""
    unit: str
    """What is drawn into the arms: rater or task."""
    running: bool
    """False = it was ended; what was recorded stays."""
    arms: Mapping[str, Mapping[str, Any]]
    """Weight and change of each arm; {} once it was ended."""
    drawn: Mapping[str, int]
    """How many raters were drawn into each arm, or how many tasks were answered in it."""
    effects: tuple[Effect, ...]
    """Its effect on every outcome that can be measured so far."""


def drawn_arms(store: Store) -> dict[str, dict[str, str]]:
    """The arm of each rater, by experiment."""
    found: dict[str, dict[str, str]] = {}
    with store.connection() as connection:
        for row in connection.execute(
            select(arms.c.experiment, arms.c.annotator, arms.c.arm).order_by(arms.c.experiment)
        ):
            found.setdefault(row.experiment, {})[row.annotator] = row.arm
    return found


def make_experiment(
    store: Store, name: str, arms: Sequence[tuple[str, float, ArmChange]], *, unit: str = RATER, now: float
) -> ProjectSettings:
    """Set up an experiment: from now on everybody (or every task) is drawn into one of its arms, and its page follows.

    Args:
        arms: name, weight > 0 and change of each (`arm_changes.read_arm`), two or more.    unit: what is drawn.
    Returns: the settings that are in force now.
    Raises: InputError for a name that was used, fewer than two arms, a guideline version that is not there, pay where
        the settings have none, or what `check_experiments` refuses.
    """
    settings, name = project_settings(store), name.strip()
    if not 0 < len(name) <= 64:
        raise InputError(f"experiment: found a name of {len(name)} characters; expected 1 to 64")
    if name in settings.experiments or name in drawn_arms(store):
        raise InputError(
            f"experiment: {name!r} was used before, and its raters stay in their arms; choose another name"
        )
    names = [arm for arm, _, _ in arms]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"experiment: found the arms {', '.join(names) or 'none'}; expected two or more different ones"
        )
    for arm, _, change in arms:
        if change.guideline and document(store, GUIDELINE, change.guideline) is None:
            raise InputError(f"arm {arm!r}: found no guideline of version {change.guideline!r}; write it first")
        if change.pay is not None and settings.pay is None:
            raise InputError(
                f"arm {arm!r}: found pay = {change.pay:g} where nothing is paid; set currency and unit first"
            )
    bodies = {arm: {field: getattr(change, field) for field in change.names} for arm, _, change in arms}
    found = replace(
        settings,
        experiments={**settings.experiments, name: {arm: weight for arm, weight, _ in arms}},
        arm_changes={**settings.arm_changes, name: {arm: body for arm, body in bodies.items() if body}},
        arm_units={**settings.arm_units, name: unit},
    )
    put_settings(store, found, now=now)
    return found


def end_experiment(store: Store, name: str, *, now: float) -> None:
    """Take an experiment out of the settings: pages are as they were, what was recorded and its effect stay.

    Raises: InputError where it does not run.
    """
    settings = project_settings(store)
    if name not in settings.experiments:
        raise InputError(f"experiment: found none by the name {name[:60]!r} that runs")
    kept = [
        {one: value for one, value in fields.items() if one != name}
        for fields in (settings.experiments, settings.arm_changes, settings.arm_units)
    ]
    put_settings(store, replace(settings, experiments=kept[0], arm_changes=kept[1], arm_units=kept[2]), now=now)


def experiment_effects(store: Store, rng: np.random.Generator) -> list[Effect]:
    """Every experiment on every outcome that can be measured; raters in quarantine and those without work are left out.

    Only answers given in one of its arms count: what a rater gave before it began or after it ended was nobody's arm.

    Raters are compared where raters were drawn, tasks where tasks were: what was not drawn by itself does not count by
    itself.

    Args:
        rng: permutes arms among raters, or among tasks.
    """
    by_rater, left_out = drawn_arms(store), quarantined(store)
    current = [record.judgement for record in current_judgements(store.records())[0]]
    mine = [one for one in current if one.annotator not in left_out and one.annotator != UNKNOWN_ANNOTATOR]
    by_task = _drawn_tasks(mine, set(by_rater))
    planned = project_settings(store).experiments
    found = []
    for experiment, arm_of in {**by_rater, **by_task}.items():
        under = [one for one in mine if _arm(one, experiment) is not None]
        rows_of = outcomes(under) if experiment in by_rater else task_outcomes(under, experiment)
        for outcome, values in rows_of.items():
            rows = [(who, value) for who, value in values if who in arm_of]
            if rows:
                names, numbers = [who for who, _ in rows], [value for _, value in rows]
                unit = RATER if experiment in by_rater else TASK
                report = arm_effect(numbers, names, arm_of, rng, n_draws=N_DRAWS, unit=unit)
                there = {each.arm for each in report.arms}
                without = tuple(sorted(set(planned.get(experiment, ())) - there))
                found.append(Effect(experiment, outcome, report, unit, without))
    return found


def list_experiments(store: Store, rng: np.random.Generator) -> list[Experiment]:
    """Every experiment that runs, then those that were ended; `rng` as `experiment_effects` has it."""
    settings, effects = project_settings(store), experiment_effects(store, rng)
    by_rater = drawn_arms(store)
    answered = _drawn_tasks([record.judgement for record in store.records()], set(by_rater))
    ended = dict.fromkeys([*by_rater, *answered])
    found = []
    for name in dict.fromkeys([*settings.experiments, *ended]):
        weights, changes = settings.experiments.get(name, {}), settings.arm_changes.get(name, {})
        unit = settings.arm_units.get(name, TASK if name in answered else RATER)
        drawn = Counter({**by_rater, **answered}.get(name, {}).values())
        arms = {arm: {"weight": weight, "change": dict(changes.get(arm, {}))} for arm, weight in weights.items()}
        counts = {arm: drawn[arm] for arm in dict.fromkeys([*arms, *sorted(drawn)])}
        mine = tuple(one for one in effects if one.experiment == name)
        found.append(Experiment(name, unit, bool(weights), arms, counts, mine))
    return found


def outcomes(judgements: Sequence[Judgement]) -> Mapping[str, list[tuple[str, float]]]:
    """What is measured of raters: (rater, number) rows by name of the outcome.

    Returns: active seconds, share without an answer, share of others' votes on the same pairs that are equal, strength
        of votes from 0 (a tie) to 1, share of ties, and characters of reasons.
    """
    votes = [vote for one in judgements if one.kind == "comparison" and (vote := vote_of(one))]
    peers = peer_agreement(votes)
    return {
        **_plain_outcomes(judgements, lambda one: one.annotator),
        "agreement with others": [(who, float(found.value)) for who, found in peers.items() if found.value is not None],
    }


def task_outcomes(judgements: Sequence[Judgement], experiment: str) -> Mapping[str, list[tuple[str, float]]]:
    """The same of tasks, from answers given in its arms: (task in an arm, number) rows; agreement is the share of pairs of its answers that are equal."""
    said: dict[str, list] = {}
    for one in judgements:
        meaning = gist(one.kind, one.value)
        if meaning is not None:
            said.setdefault(_drawn(one, experiment), []).append(meaning)
    pairs = {
        task: [a == b for i, a in enumerate(gists) for b in gists[i + 1 :]]
        for task, gists in said.items()
        if len(gists) > 1
    }
    return {
        **_plain_outcomes(judgements, lambda one: _drawn(one, experiment)),
        "agreement of raters": [(task, sum(equal) / len(equal)) for task, equal in pairs.items()],
    }


def _plain_outcomes(
    judgements: Sequence[Judgement], unit_of: Callable[[Judgement], str]
) -> dict[str, list[tuple[str, float]]]:
    votes = [(one, vote) for one in judgements if one.kind == "comparison" and (vote := vote_of(one))]
    tops = [(unit_of(one), 2 * vote.level - (vote.n_levels - 1), vote.n_levels - 1) for one, vote in votes]
    return {
        "seconds of activity": [(unit_of(one), one.active_s) for one in judgements if one.active_s is not None],
        "share without an answer": [(unit_of(one), float("missing" in one.value)) for one in judgements],
        "strength of votes": [(unit, abs(lean) / top) for unit, lean, top in tops],
        "share of ties": [(unit, float(lean == 0)) for unit, lean, _ in tops],
        "characters of reasons": [(unit_of(one), float(len(one.reason or ""))) for one in judgements],
    }


def _arm(judgement: Judgement, experiment: str) -> str | None:
    return judgement.shown.get("arms", {}).get(experiment)


def _drawn(judgement: Judgement, experiment: str) -> str:
    # weights that change may move a task: what it was in another arm is another unit
    return f"{judgement.task_id} {_arm(judgement, experiment)}"


def _drawn_tasks(judgements: Sequence[Judgement], by_rater: set[str]) -> dict[str, dict[str, str]]:
    """The arm of each task, by experiment, as their judgements say."""
    found: dict[str, dict[str, str]] = {}
    for one in judgements:
        for experiment, arm in one.shown.get("arms", {}).items():
            if experiment not in by_rater:
                found.setdefault(experiment, {})[_drawn(one, experiment)] = arm
    return found
