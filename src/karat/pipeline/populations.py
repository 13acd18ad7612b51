"""The people behind a reward: the population fitted beside it, raked weights, and scorers of groups for the optimiser.

The reward room gets votes, declared groups and weights as numbers; raking is done here, by the feedback room's function.
Knows both rooms; computes nothing itself.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from karat.belief import fit_scale
from karat.errors import ConvergenceError, GateError, InputError
from karat.evaluate.measure import draw, texts_of
from karat.feedback.quality.population import rake
from karat.feedback.snapshot import Snapshot
from karat.lm.load import LoadedLM
from karat.pipeline.settings import RunConfig
from karat.records import Annotator, Finding, Prompt, Vote
from karat.reward.jury import JuryComposition, empanel
from karat.reward.people import CARD as PEOPLE_CARD
from karat.reward.people import (
    GroupScorer,
    PeopleModel,
    References,
    group_scorer,
    jury_scorer,
    load_people,
    save_people,
)
from karat.reward.people_fit import PluralismConfig, enough_votes, fit_people, groups_of
from karat.reward.people_report import not_measured, people_findings, people_metrics
from karat.reward.score import Scorer, aggregate, load_scorer
from karat.reward.train import RewardFit
from karat.seeding import child_seed

WORST_GROUP, JURY = "worst_group", "jury_median"
OF_GROUPS = (WORST_GROUP, JURY)
"""Aggregators whose objectives are people: groups, or the members of a jury."""
N_REFERENCES = 4
"""Responses of the reference policy from which a prompt's group scores are measured."""
JURY_PROMPTS = 200
"""Prompts whose responses the jury judges."""


Samples = Sequence[tuple[Prompt, Sequence[str]]]
"""Prompts with some responses to each."""


def fit_population(
    scorer: Scorer,
    fit: RewardFit,
    votes: Sequence[Vote],
    held_out: Sequence[Vote],
    snapshot: Snapshot,
    samples: Samples,
    *,
    pluralism: PluralismConfig,
    aggregator: str,
    seed: int,
    directory: Path,
    metadata: Mapping[str, str],
    given: Path | None = None,
) -> tuple[list[Finding], dict[str, Any]]:
    """Fit the population, save it beside the reward model, and say what is known of whom it serves.

    Args:
        scorer: of that fit, as it will be loaded.
        votes: of all raters, on prompts that are not held out.    held_out: votes on prompts nobody trained on.
        samples: the reference policy's responses, or what was judged where there is no policy yet: the jury's cases, and
            the zero of the groups' scale.
        aggregator: what the optimiser will maximise; where it is one of groups, they can differ whatever the votes say.
        given: a reward model from elsewhere that this one is a copy of; its population is taken where none is fitted.
    Returns: findings and metrics; one finding "not measured" where there is no population.
    """
    scales = Counter(vote.n_levels for vote in votes).most_common(1)  # cutpoints are those of one scale
    votes, held_out = ([vote for vote in some if vote.n_levels == scales[0][0]] for some in (votes, held_out))
    lacking = why_none(votes, pluralism)
    if lacking is None:
        bias = dict(zip(fit.annotators, fit.raters.side_bias.tolist(), strict=False))
        who = sorted({vote.annotator for vote in votes})
        try:
            found = fit_people(
                scorer, votes, held_out, snapshot.prompts, snapshot.responses,
                groups={name: snapshot.annotators[name].group for name in who}, side_bias=bias,
                weights=raked_weights(who, snapshot.annotators, pluralism), reference=some_samples(samples),
                config=pluralism, seed=child_seed(seed, "population"), group_rank=1 if aggregator in OF_GROUPS else 0,
            )  # fmt: skip
        except ConvergenceError as error:  # the reward stands without its population, and the report says why
            lacking = str(error)
        else:
            model = scaled(found.model, scorer, samples, aggregator, pluralism, seed=seed)
            save_people(model, directory, metadata=metadata)
            return people_findings(found), people_metrics(found)
    if given is None or not (given / PEOPLE_CARD).is_file():
        return not_measured(lacking), {}
    model = at_temperature(load_people(given), load_scorer(given), scorer)
    save_people(scaled(model, scorer, samples, aggregator, pluralism, seed=seed), directory, metadata=metadata)
    return taken_population(model, lacking)


def why_none(votes: Sequence[Vote], pluralism: PluralismConfig) -> str | None:
    """Why no population is fitted to these votes, in words; None = one is."""
    if not pluralism.enabled:
        return "pluralism.enabled is false"
    return enough_votes(votes, pluralism) if votes else "no votes"


def check_population(
    votes: Sequence[Vote],
    annotators: Mapping[str, Annotator],
    pluralism: PluralismConfig,
    objectives: Sequence[str],
    *,
    of_groups: str = "",
) -> None:
    """Say before training what would go wrong after it: a floor on an objective that will not be scored, a target or a
    jury of groups that these raters are not in, votes too few for the groups that an aggregator needs.

    Args:
        objectives: what was spoken about, which the reward will score.
        of_groups: the aggregator that the reward is for, where it is not to be trained without the groups that this needs.
    Raises: InputError.
    """
    for name in pluralism.floors if pluralism.enabled else ():
        if name not in objectives:
            raise InputError(floor_problem(name, objectives))
    check_groups(votes, pluralism, of_groups, objectives)
    if why_none(votes, pluralism) is not None:
        return
    who = sorted({vote.annotator for vote in votes})
    with contextlib.suppress(ConvergenceError):  # said where it is fitted: the reward can do without
        raked_weights(who, annotators, pluralism)
    names, code = groups_of(who, {name: annotators[name].group for name in who})
    if pluralism.jury is not None:
        members = {name: np.flatnonzero(code == number).tolist() for number, name in enumerate(names)}
        empanel(JuryComposition(pluralism.jury, pluralism.n_jurors), members, np.random.default_rng(0))


def check_groups(votes: Sequence[Vote], pluralism: PluralismConfig, aggregator: str, objectives: Sequence[str]) -> None:
    """Say before training that there will be no groups to aggregate over.

    Args:
        objectives: what was spoken about; several of them stand in the groups' place (`has_groups`).
    Raises: InputError.
    """
    if aggregator not in OF_GROUPS or len(objectives) > 1:
        return
    if (lacking := why_none(votes, pluralism)) is not None:
        raise InputError(
            f"aggregator: found {aggregator} and too few votes for groups of people ({lacking}); expected enough for a "
            "population: ask for more a rater, lower pluralism.min_votes, or choose an aggregator without groups"
        )


def floor_problem(name: str, objectives: Sequence[str]) -> str:
    """What is said of a floor that could never be checked: a limit on what nothing scores."""
    return (
        f"pluralism.floors: found {name!r}, which the reward will not score; expected one of {', '.join(objectives)}: a "
        "floor needs feedback about its objective"
    )


def judged_samples(votes: Sequence[Vote], snapshot: Snapshot) -> list[tuple[Prompt, list[str]]]:
    """The responses that were compared, by prompt: what people are measured on where no policy has written yet."""
    by_prompt: dict[str, dict[str, None]] = {}
    for vote in votes:
        texts = dict.fromkeys(snapshot.responses[one].text for one in (vote.a, vote.b))
        by_prompt[vote.prompt_id] = by_prompt.get(vote.prompt_id, {}) | texts
    return [(snapshot.prompts[name], list(texts)) for name, texts in by_prompt.items()]


def at_temperature(model: PeopleModel, before: Scorer, after: Scorer) -> PeopleModel:
    """A population of one scorer for the same reward at another temperature: nobody's taste changes with it.

    ψ₀ = logits, which the temperature divides, so that the weights of ψ₀ are multiplied by T_after/T_before
    """
    ratio = float(after.model.temperature / before.model.temperature)
    shared, basis, centre = model.users.shared.copy(), model.users.basis.copy(), model.features.centre.copy()
    shared[0], basis[:, 0], centre[0] = shared[0] * ratio, basis[:, 0] * ratio, centre[0] / ratio
    users = replace(model.users, shared=shared, basis=basis)
    return replace(model, users=users, features=replace(model.features, centre=centre))


def taken_population(model: PeopleModel, reason: str) -> tuple[list[Finding], dict[str, Any]]:
    """What is said of a population that came with a given reward."""
    detail = f"that of the given reward, {len(model.annotators)} raters; none fitted here: {reason}"
    metrics = {"n_people": len(model.annotators), "groups": list(model.users.groups), "rank": model.users.rank}
    return [Finding("people.given", "Whose population is it?", "info", detail=detail)], metrics | {"given": True}


def voices_of(
    scorer: Scorer, model: PeopleModel, aggregator: str, pluralism: PluralismConfig, *, seed: int
) -> GroupScorer:
    """The scorer of what an aggregator of people goes by: one jury of persons, drawn to the composition, or the groups."""
    if aggregator != JURY:
        return group_scorer(scorer, model)
    shares = pluralism.jury or dict.fromkeys(model.users.groups, 1.0)
    return jury_scorer(scorer, model, JuryComposition(shares, pluralism.n_jurors), seed=child_seed(seed, "jury"))


def scaled(
    model: PeopleModel, scorer: Scorer, samples: Samples, aggregator: str, pluralism: PluralismConfig, *, seed: int
) -> PeopleModel:
    """The population with the optimiser's scale of its aggregator, on the reference policy's own responses.

    For an aggregator that is none of people the scale is the worst group's, where there are groups.
    """
    if aggregator != JURY and len(model.users.groups) < 2:
        return model
    written = {prompt.id: texts for prompt, texts in samples}
    voices = voices_of(scorer, model, aggregator, pluralism, seed=seed)
    voices = voices.with_references(lambda asked: [written[p.id] for p in asked])
    prompts = [prompt for prompt, texts in samples for _ in texts]
    belief = voices(prompts, [text for _, own in samples for text in own])
    used = aggregator if aggregator in OF_GROUPS else WORST_GROUP
    return replace(model, scale=fit_scale(aggregate(belief, used), belief.prompt_index))


def raked_weights(
    who: Sequence[str], annotators: Mapping[str, Annotator], pluralism: PluralismConfig
) -> dict[str, float] | None:
    """Weights of the raters for the target population; None where none is given.

    Raises: InputError for fields other than `group`, or categories that raters lack; ConvergenceError.
    """
    if pluralism.target is None:
        return None
    raking = rake({"group": [annotators[name].group for name in who]}, pluralism.target)
    return dict(zip(who, raking.weights.tolist(), strict=True))


def some_samples(samples: Samples) -> tuple[list[Prompt], list[str]]:
    """The first prompts with all their different responses, one row a response."""
    rows = [(prompt, text) for prompt, texts in samples[:JURY_PROMPTS] for text in dict.fromkeys(texts)]
    return [prompt for prompt, _ in rows], [text for _, text in rows]


def sampled_references(lm: LoadedLM, *, max_new_tokens: int, seed: int) -> References:
    """Reference responses by the reference policy, a function of seed and prompt alone, so that a resumed run agrees."""

    def references(prompts: Sequence[Prompt]) -> Sequence[Sequence[str]]:
        drawn = draw(lm, prompts, n_samples=N_REFERENCES, max_new_tokens=max_new_tokens, seed=seed)
        return texts_of(lm, drawn)

    return references


def open_scorer(
    reward: Path, config: RunConfig, reference: Callable[[], LoadedLM], seed: int, *, on: LoadedLM | None = None
) -> Scorer | GroupScorer:
    """What the optimiser and the measurement score with: the reward, or its groups where the aggregator is one of groups.

    Args:
        reference: loads the reference policy; called only where references have to be sampled.
        seed: of the run.    on: as in `load_scorer`.
    Raises: GateError for an aggregator of groups and a reward without a population: like a reward that fails its gate it
        is what the votes came to, and no fault of the file.
    """
    scorer = load_scorer(reward, on=on)
    if config.aggregator not in OF_GROUPS or not has_groups(scorer):
        return scorer
    if not (reward / PEOPLE_CARD).is_file():
        raise GateError(
            f"aggregator: found {config.aggregator} and, in {reward}, a reward without groups of people; expected votes enough "
            "for a population (the report says how many there are): ask for more a rater, lower pluralism.min_votes, or "
            "choose an aggregator without groups"
        )
    model = load_people(reward)
    references = sampled_references(
        reference(), max_new_tokens=config.policy_tokens, seed=child_seed(seed, "references")
    )  # fmt: skip
    voices = voices_of(scorer, model, config.aggregator, config.pluralism, seed=seed).with_references(references)
    return voices if model.scale is None else voices.with_scale(model.scale)


def has_groups(scorer: Scorer) -> bool:
    """Whether the groups must come from a population: a reward with one objective says nothing about groups."""
    return len(getattr(scorer.model, "objectives", ("preference",))) == 1
