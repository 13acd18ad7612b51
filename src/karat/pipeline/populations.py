"""The people behind a reward: the population fitted beside it, raked weights, and scorers of groups for the optimiser.

The reward room gets votes, declared groups and weights as numbers; raking is done here, by the feedback room's function.
Knows both rooms; computes nothing itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from karat.belief import ScoreScale, fit_scale
from karat.errors import ConvergenceError
from karat.evaluate.measure import draw, texts_of
from karat.feedback.quality.population import rake
from karat.feedback.snapshot import Snapshot
from karat.lm.load import LoadedLM
from karat.pipeline.data import Texts
from karat.pipeline.settings import RunConfig
from karat.records import Annotator, Finding, Prompt, Vote
from karat.reward.people import (
    GroupScorer,
    PeopleModel,
    References,
    group_scorer,
    load_people,
    save_people,
)
from karat.reward.people_fit import (
    enough_votes,
    fit_people,
    not_measured,
    people_findings,
    people_metrics,
)
from karat.reward.score import Scorer, aggregate, load_scorer
from karat.reward.train import RewardFit
from karat.seeding import child_seed

WORST_GROUP = "worst_group"
OF_GROUPS = (WORST_GROUP, "jury_median")
"""Aggregators whose objectives are groups of people."""
N_REFERENCES = 4
"""Responses of the reference policy from which a prompt's group scores are measured."""
JURY_PROMPTS = 200
"""Prompts whose responses the jury judges."""


def fit_population(
    scorer: Scorer,
    fit: RewardFit,
    votes: Sequence[Vote],
    held_out: Sequence[Vote],
    snapshot: Snapshot,
    samples: Texts,
    *,
    config: RunConfig,
    seed: int,
    directory: Path,
    metadata: Mapping[str, str],
) -> tuple[list[Finding], dict[str, Any]]:
    """Fit the population, save it beside the reward model, and say what is known of whom it serves.

    Args:
        scorer: of that fit, as it will be loaded.
        votes: of all raters, on prompts that are not held out.    held_out: votes on prompts nobody trained on.
        samples: the reference policy's responses: the jury's cases, and the zero of the groups' scale.
    Returns: findings and metrics; one finding "not measured" where the votes are too few.
    """
    if not config.pluralism.enabled or not votes:
        return not_measured("pluralism.enabled is false" if votes else "no votes"), {}
    scales = Counter(vote.n_levels for vote in votes).most_common(1)  # cutpoints are those of one scale
    votes, held_out = ([vote for vote in some if vote.n_levels == scales[0][0]] for some in (votes, held_out))
    lacking = enough_votes(votes, config.pluralism)
    if lacking is not None:
        return not_measured(lacking), {}
    bias = dict(zip(fit.annotators, fit.raters.side_bias.tolist(), strict=False))
    who = sorted({vote.annotator for vote in votes})
    weights = raked_weights(who, snapshot.annotators, config)
    try:
        found = fit_people(
            scorer, votes, held_out, snapshot.prompts, snapshot.responses,
            groups={name: snapshot.annotators[name].group for name in who}, side_bias=bias, weights=weights,
            reference=some_samples(samples), config=config.pluralism, seed=child_seed(seed, "population"),
            group_rank=1 if config.aggregator in OF_GROUPS else 0,
        )  # fmt: skip
    except ConvergenceError as error:  # the reward stands without its population, and the report says why there is none
        return not_measured(str(error)), {}
    model = found.model
    if len(model.users.groups) > 1:
        model = replace(model, scale=group_scale(scorer, model, samples, config.aggregator))
    save_people(model, directory, metadata=metadata)
    return people_findings(found), people_metrics(found)


def raked_weights(
    who: Sequence[str], annotators: Mapping[str, Annotator], config: RunConfig
) -> dict[str, float] | None:
    """Weights of the raters for the target population; None where none is given.

    Raises: InputError for fields other than `group`, or categories that raters lack; ConvergenceError.
    """
    target = config.pluralism.target
    if target is None:
        return None
    raking = rake({"group": [annotators[name].group for name in who]}, target)
    return dict(zip(who, raking.weights.tolist(), strict=True))


def some_samples(samples: Texts) -> tuple[list[Prompt], list[str]]:
    """The first prompts with all their different responses, one row a response."""
    rows = [
        (prompt, text)
        for prompt, texts in zip(samples.prompts[:JURY_PROMPTS], samples.texts[:JURY_PROMPTS], strict=True)
        for text in dict.fromkeys(texts)
    ]
    return [prompt for prompt, _ in rows], [text for _, text in rows]


def group_scale(scorer: Scorer, model: PeopleModel, samples: Texts, aggregator: str) -> ScoreScale:
    """The optimiser's scale of the groups' score, on the reference policy's own responses.

    Args:
        aggregator: the run's; that of the worst group where it is none of groups.
    """
    written = {prompt.id: texts for prompt, texts in zip(samples.prompts, samples.texts, strict=True)}
    scorer_of_groups = group_scorer(scorer, model).with_references(lambda asked: [written[p.id] for p in asked])
    prompts = [prompt for prompt, texts in zip(samples.prompts, samples.texts, strict=True) for _ in texts]
    texts = [text for own in samples.texts for text in own]
    belief = scorer_of_groups(prompts, texts)
    return fit_scale(aggregate(belief, aggregator if aggregator in OF_GROUPS else WORST_GROUP), belief.prompt_index)


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
    Raises: CheckpointError for an aggregator of groups and a reward without a population.
    """
    scorer = load_scorer(reward, on=on)
    if config.aggregator not in OF_GROUPS or not has_groups(scorer):
        return scorer
    model = load_people(reward)
    references = sampled_references(
        reference(), max_new_tokens=config.ppo.rollout.max_new_tokens, seed=child_seed(seed, "references")
    )  # fmt: skip
    groups = group_scorer(scorer, model).with_references(references)
    return groups if model.scale is None else groups.with_scale(model.scale)


def has_groups(scorer: Scorer) -> bool:
    """Whether the groups must come from a population: a reward with one objective says nothing about groups."""
    return len(getattr(scorer.model, "objectives", ("preference",))) == 1
