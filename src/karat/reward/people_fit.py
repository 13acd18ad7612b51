"""From votes to a population: features, rank, kinds, groups, and what a reader must know of whom the reward serves.

The population is fitted to the votes that the reward was trained on, by all raters, and judged on votes on prompts that
nobody trained on. Knows scorers, votes and declared groups; knows nothing about where they are kept.

Dimension letters: C comparisons, N texts, U people, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from karat.records import Prompt, Response, Vote
from karat.reward.data import VoteData, vote_data
from karat.reward.jury import JuryComposition, Verdicts, verdicts
from karat.reward.linear_votes import LinearVotes
from karat.reward.mixtures import KindsChoice, Mixture, choose_kinds, fit_mixture
from karat.reward.people import (
    FeatureMap,
    PeopleModel,
    common_group_scale,
    features_of,
    fit_feature_map,
    reward_features,
)
from karat.reward.people_settings import PluralismConfig
from karat.reward.population import MOST_FLIPS, SideBySide, named_flips, side_by_side
from karat.reward.score import Scorer
from karat.reward.served import Served, correct, predicted_side, served
from karat.reward.user_em import RankChoice, UserPriors, choose_rank, fit_users
from karat.reward.users import posterior_of, predicted_probs
from karat.seeding import numpy_generator

EVERYBODY = "all"
UNDECLARED = "undeclared"


@dataclass(frozen=True, eq=False)
class PeopleFit:
    """A population and all that is known of it."""

    model: PeopleModel
    """What is saved."""
    rank: RankChoice
    """How the rank was chosen."""
    kinds: KindsChoice
    """How the number of kinds was chosen."""
    mixture: Mixture
    """The kinds."""
    one_reward: Served | None
    """Whom the reward model's own score serves, on held-out votes; None without such votes."""
    own_reward: Served | None
    """The same for everybody's own reward."""
    verdicts: Verdicts | None
    """What a jury and elections would change; None without declared groups of reference responses."""
    raking: SideBySide | None = None
    """The unweighted and the raked fit; None without a target."""
    flipped: tuple[dict[str, Any], ...] = ()
    """The pairs whose preference flips between them, the largest changes first, at most MOST_FLIPS."""


@dataclass(frozen=True, eq=False)
class PeopleData:
    """Votes of some people as differences of features."""

    votes: LinearVotes
    """One row a vote."""
    psi: np.ndarray
    """[N, 1 + k] features of the texts."""
    prompt_index: np.ndarray
    """[N] which prompt each answers."""
    data: VoteData
    """The votes with their texts."""


def enough_votes(votes: Sequence[Vote], config: PluralismConfig) -> str | None:
    """Why no population is fitted to these votes; None = there are enough."""
    counts = np.unique([vote.annotator for vote in votes], return_counts=True)[1] if votes else np.zeros(0)
    if len(counts) < 4:
        return f"{len(counts)} raters; a population needs at least 4"
    if np.median(counts) < config.min_votes:
        return f"a median of {np.median(counts):g} votes a rater; a population needs {config.min_votes:g}"
    if not any(vote.strategy == "random" for vote in votes):
        return "no vote on a question drawn at random; only those can be held out"
    return None


def fit_people(
    scorer: Scorer,
    votes: Sequence[Vote],
    held_out: Sequence[Vote],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    groups: Mapping[str, str | None],
    side_bias: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
    reference: tuple[Sequence[Prompt], Sequence[str]] | None = None,
    config: PluralismConfig,
    seed: int,
    group_rank: int = 0,
) -> PeopleFit:
    """Fit and judge the people behind some votes.

    Args:
        votes: what is fitted.    held_out: votes of the same people on other prompts, for the figures.
        groups: Annotator.id → declared group, None = undeclared.    side_bias: Annotator.id → logits; missing = 0.
        weights: Annotator.id → weight from raking, which is the caller's work; None = no raked fit.
        reference: prompts and responses that the jury judges; None = no jury.
        group_rank: least rank, so that groups can differ even where held-out votes do not ask for it.
    Raises: InputError for ids that are unknown; ConvergenceError.
    """
    rng = numpy_generator(seed, "people")
    data = vote_data(votes, prompts, responses)
    index = _prompt_index(data)
    phi, side = reward_features(scorer, data.prompts, data.texts)
    scores = scorer.logits(data.prompts, data.texts).mean(0).double().numpy()
    features, found = fit_feature_map(phi, scores, index, config.n_features, side)
    psi = np.concatenate([scores[:, None], found], axis=1)
    mine = people_data(data, psi, side_bias)
    names, code = groups_of(data.annotators, groups)
    priors = UserPriors(shared_mean=(1.0, *[0.0] * len(features.directions)))
    # 1. how people differ
    ranks = range(config.max_rank + 1)
    drawn = np.array([vote.strategy == "random" for vote in data.votes])  # chosen questions are no fair sample
    rank = choose_rank(mine.votes, list(ranks), rng, priors=priors, group=code, groups=names, eligible=drawn)
    used = min(max(rank.rank, group_rank), psi.shape[1])
    users = fit_users(mine.votes, used, priors=priors, group=code, groups=names)
    people = posterior_of(users, mine.votes, code)
    bare = PeopleModel(features, users, people, data.annotators, code, np.ones(len(names)), config.limits)
    scale = common_group_scale(bare.group_theta(), psi, index)
    own = common_group_scale(bare.person_theta(), psi, index)
    model = PeopleModel(features, users, people, data.annotators, code, scale, config.limits, person_scale=own)
    # 2. kinds, whatever anybody declared
    prior = {"prior_mean": np.array(priors.shared_mean), "precision": 1.0, "n_starts": config.n_starts}
    most = min(config.max_kinds, mine.votes.n_users)
    kinds = choose_kinds(mine.votes, list(range(1, most + 1)), rng, eligible=drawn, **prior)
    mixture = fit_mixture(mine.votes, kinds.n_kinds, rng, **prior)
    # 3. whom it serves
    one, own = _whom_it_serves(scorer, model, held_out, prompts, responses, side_bias, rng)
    jury = _jury(scorer, model, reference, config, rng)
    raking, flipped = None, ()
    if weights is not None:
        weight = np.array([weights[name] for name in data.annotators])
        raking, flipped = _raked(data, psi, mine.votes, weight, rng, np.array(priors.shared_mean))
    return PeopleFit(model, rank, kinds, mixture, one, own, jury, raking, flipped)


def _raked(
    data: VoteData, psi: np.ndarray, votes: LinearVotes, weight: np.ndarray, rng: np.random.Generator, prior: np.ndarray
) -> tuple[SideBySide, tuple[dict[str, Any], ...]]:
    """The two fits side by side over the pairs that were judged, each once whichever way round, and what flips."""
    both = np.stack([data.columns.a.numpy(), data.columns.b.numpy()], axis=1)
    pairs = np.unique(np.sort(both, axis=1), axis=0)
    differences = psi[pairs[:, 0]] - psi[pairs[:, 1]]
    side = side_by_side(votes, weight, differences, rng, prior_mean=prior, precision=1.0)
    names = [{"prompt": data.prompts[a].text, "a": data.texts[a], "b": data.texts[b]} for a, b in pairs.tolist()]
    return side, tuple(named_flips(side, differences, names, MOST_FLIPS))


def people_data(
    data: VoteData, psi: np.ndarray, side_bias: Mapping[str, float], annotators: Sequence[str] | None = None
) -> PeopleData:
    """Votes as differences of features, a rater's side bias as a known offset.

    Args:
        annotators: whose indices are used; None = the data's own.
    """
    columns = data.columns
    names = data.annotators if annotators is None else annotators
    place = {name: i for i, name in enumerate(names)}
    user = np.array([place[data.annotators[i]] for i in columns.annotator.tolist()])
    bias = np.array([side_bias.get(name, 0.0) for name in names])
    a, b = columns.a.numpy(), columns.b.numpy()
    votes = LinearVotes(
        psi[a] - psi[b], columns.level.numpy(), columns.n_levels, user, len(names), bias[user] * columns.side.numpy()
    )  # fmt: skip
    return PeopleData(votes, psi, _prompt_index(data), data)


def _whom_it_serves(
    scorer: Scorer,
    model: PeopleModel,
    held_out: Sequence[Vote],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    side_bias: Mapping[str, float],
    rng: np.random.Generator,
) -> tuple[Served | None, Served | None]:
    known = set(model.annotators)
    kept = [vote for vote in held_out if vote.annotator in known]
    if not kept:
        return None, None
    data = vote_data(kept, prompts, responses)
    psi = features_of(scorer, model.features, data.prompts, data.texts)
    rows = people_data(data, psi, side_bias, model.annotators).votes
    found = []
    for predicted in (
        0.5 + 0.5 * np.sign(rows.x[:, 0]),
        predicted_side(predicted_probs(model.users, model.people, rows)),
    ):
        right, place = correct(predicted, rows.level, rows.n_levels)
        who = rows.user[place]
        has_groups = len(model.users.groups) > 1
        found.append(
            served(
                right, who, rng, group=model.group if has_groups else None,
                groups=model.users.groups if has_groups else (),
            )
        )  # fmt: skip
    return found[0], found[1]


def _jury(
    scorer: Scorer,
    model: PeopleModel,
    reference: tuple[Sequence[Prompt], Sequence[str]] | None,
    config: PluralismConfig,
    rng: np.random.Generator,
) -> Verdicts | None:
    if reference is None or not len(reference[1]):
        return None
    names = model.users.groups
    composition = JuryComposition(config.jury or dict.fromkeys(names, 1.0), config.n_jurors)
    prompts, texts = reference
    psi = features_of(scorer, model.features, prompts, texts)
    ids = {name: i for i, name in enumerate(dict.fromkeys(prompt.id for prompt in prompts))}
    index = np.array([ids[prompt.id] for prompt in prompts])
    return verdicts(model.person_theta() @ psi.T, psi[:, 0], index, composition, model.members(), rng)


def groups_of(annotators: Sequence[str], declared: Mapping[str, str | None]) -> tuple[tuple[str, ...], np.ndarray]:
    """The groups that some people declared, and which one each is in; one of everybody where fewer than two were named."""
    said = [declared.get(name) for name in annotators]
    if len({one for one in said if one is not None}) < 2:
        return (EVERYBODY,), np.zeros(len(annotators), dtype=np.int64)
    named = [UNDECLARED if one is None else one for one in said]
    names = tuple(sorted(set(named)))
    return names, np.array([names.index(one) for one in named])


def _prompt_index(data: VoteData) -> np.ndarray:
    index = np.empty(len(data.texts), dtype=np.int64)
    for number, members in enumerate(data.groups):
        index[list(members)] = number
    return index


__all__ = ["FeatureMap", "PeopleFit", "PluralismConfig", "enough_votes", "fit_people", "groups_of"]
