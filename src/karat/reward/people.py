"""The people beside a reward model: the features that it reads, the population fitted on them, and its files.

    ψ(x, y) = [mean score in logits, P·φ(x, y)]        r_g(x, y) = (θ + Vᵀμ_g)·ψ(x, y), on a common scale for all groups

What is saved stands in the reward model's own directory, so that whoever has the reward has its people. Knows scorers,
texts and a fitted population; knows nothing about votes, commands or how a population is fitted.

Dimension letters: S draws, B responses, G groups, U people, k directions, r rank.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from karat.belief import Belief, ScoreScale
from karat.damaged import damage_named
from karat.errors import CheckpointError, InputError
from karat.lm.headers import read_tensors, write_tensors
from karat.records import Prompt
from karat.reward.jury import JuryComposition, empanel
from karat.reward.model import RewardModel
from karat.reward.personal import Limits
from karat.reward.score import Scorer
from karat.reward.side import SideFeatures, SideReward, load_side, save_side, side_features, side_reward
from karat.reward.users import Posterior, UserModel

CARD, TENSORS, SIDE = "people_card.json", "people.safetensors", "people_beside.safetensors"
CARD_FORMAT = 1
TOKEN_BUDGET = 4096
CHUNK = 256
"""Texts encoded at a time; changes memory, never the result."""
N_DRAWS = 16
"""Draws of the groups' means, in pairs of opposite signs: their mean is the mean itself."""
References = Callable[[Sequence[Prompt]], Sequence[Sequence[str]]]
"""Reference responses of prompts, a function of the prompt alone: what a group's score is measured from."""


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """From the reward's features, the trunk's and those beside it, to the few that people are fitted on."""

    directions: np.ndarray
    """[k, width] P: principal directions of differences within prompts, each of within-prompt sd 1; the trunk's part of them."""
    centre: np.ndarray
    """[1 + k] mean of ψ over the training responses: the reference where a prompt has none."""
    side: SideReward | None = None
    """What the reward's plain features beside the trunk add to each direction, [k] draws; None = it reads none."""


@dataclass(frozen=True, eq=False)
class PeopleModel:
    """A population with the reward model whose features it was fitted on."""

    features: FeatureMap
    """How a text becomes numbers."""
    users: UserModel
    """What is shared, how people differ, and the groups' means."""
    people: Posterior
    """Each rater's posterior."""
    annotators: tuple[str, ...]
    """Annotator.id of each."""
    group: np.ndarray
    """[U] index into users.groups."""
    group_scale: np.ndarray
    """[G] what each group's scores are multiplied by, so that all have one within-prompt sd."""
    limits: Limits = field(default_factory=lambda: Limits({}))
    """What personal taste cannot override."""
    scale: ScoreScale | None = None
    """The optimiser's scale of the groups' or the jury's score; None = not fitted, as where there is one group."""
    person_scale: np.ndarray | None = None
    """[U] the same as `group_scale` for each rater, who may sit on a jury; None = fitted before they were kept."""

    def group_theta(self) -> np.ndarray:
        """[G, 1 + k] weights of each group, on the common scale."""
        return (self.users.shared + self.users.mean @ self.users.basis) * self.group_scale[:, None]

    def members(self) -> dict[str, list[int]]:
        """Group → rows of its people."""
        return {name: np.flatnonzero(self.group == g).tolist() for g, name in enumerate(self.users.groups)}

    def person_theta(self) -> np.ndarray:
        """[U, 1 + k] most probable weights of each rater."""
        return self.users.shared + self.people.mean @ self.users.basis


def in_chunks(prompts: Sequence[Prompt], texts: Sequence[str]) -> Iterator[tuple[Sequence[Prompt], Sequence[str]]]:
    """Texts and their prompts, CHUNK of them at a time: what is read of many texts is read so, and progress is seen."""
    for start in range(0, len(texts), CHUNK):
        yield prompts[start : start + CHUNK], texts[start : start + CHUNK]


@torch.no_grad()
def trunk_features(scorer: Scorer, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
    """[B, width] φ of each text, in the order given."""
    model, found = scorer.model, []
    model.eval()
    for some_prompts, some in in_chunks(prompts, texts):
        encoded = model.trunk.encode(some_prompts, some)
        found.append(model.features(encoded, token_budget=TOKEN_BUDGET).float().cpu().numpy())
    return np.concatenate(found).astype(float)


def reward_features(
    scorer: Scorer, prompts: Sequence[Prompt], texts: Sequence[str]
) -> tuple[np.ndarray, SideFeatures | None]:
    """[B, width + q] what the reward is linear in: the trunk's φ, and its plain features beside it at the scales that it gives them.

    Returns: the features, and the plain ones as these texts have them: basis, mean and spread; None = it reads none.
    """
    phi = trunk_features(scorer, prompts, texts)
    if scorer.side is None:
        return phi, None
    side = side_features(scorer.side.names, prompts, texts).scaled(scorer.side.scales)
    return np.concatenate([phi, side.of(prompts, texts)], axis=1), side


def fit_feature_map(
    phi: np.ndarray, scores: np.ndarray, prompt_index: np.ndarray, n_directions: int, side: SideFeatures | None = None
) -> tuple[FeatureMap, np.ndarray]:
    """Principal directions of the differences within prompts, whitened, and where the texts stand in them, [N, k].

    Args:
        phi: [N, width], of which the last columns are `side`'s, as `reward_features` has them.
        scores: [N] mean logits.    prompt_index: [N] which prompt each text answers.
    Returns: at most as many directions as vary by more than 10⁻⁴ of the first.
    Raises: InputError where no prompt has two different texts.
    """
    _, code = np.unique(prompt_index, return_inverse=True)
    counts = np.bincount(code)
    means = np.zeros((len(counts), phi.shape[1]))
    np.add.at(means, code, phi)
    centred = phi - (means / counts[:, None])[code]
    free = int((counts - 1).sum())
    if free < 1 or not np.abs(centred).max() > 0:
        raise InputError("people: no prompt has two responses with different features; expected some to compare")
    values, vectors = np.linalg.eigh(centred.T @ centred / free)
    order = np.argsort(-values)[:n_directions]
    order = order[values[order] > 1e-8 * values.max()]
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(0), order])
    directions = vectors.T / np.sqrt(values[order])[:, None]
    width = phi.shape[1] - (0 if side is None else side.width)
    beside = None if side is None else side_reward(side, directions[:, width:])
    centre = np.concatenate([[scores.mean()], directions @ phi.mean(0)])
    return FeatureMap(directions[:, :width], centre, beside), phi @ directions.T


def features_of(scorer: Scorer, features: FeatureMap, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
    """[B, 1 + k] ψ of each text."""
    scores = scorer.logits(prompts, texts).mean(0).double().numpy()
    found = trunk_features(scorer, prompts, texts) @ features.directions.T
    if features.side is not None:
        found = found + features.side.scores(prompts, texts)[..., 0].double().numpy().T
    return np.concatenate([scores[:, None], found], axis=1)


def common_group_scale(theta: np.ndarray, psi: np.ndarray, prompt_index: np.ndarray) -> np.ndarray:
    """[G] factors that give every group's scores the groups' mean within-prompt sd.

    A group that is more decided would else never be the worst or always: logits of different people cannot be compared.
    """
    _, code = np.unique(prompt_index, return_inverse=True)
    counts = np.bincount(code)
    scores = psi @ theta.T
    means = np.zeros((len(counts), theta.shape[0]))
    np.add.at(means, code, scores)
    sd = np.sqrt(((scores - (means / counts[:, None])[code]) ** 2).sum(0) / max(int((counts - 1).sum()), 1))
    return np.where(sd > 1e-12, sd.mean() / np.maximum(sd, 1e-12), 1.0)


@dataclass(frozen=True, eq=False)
class GroupScorer:
    """Scores texts as a belief whose objectives are the groups, or the members of a jury."""

    scorer: Scorer
    """The reward model."""
    people: PeopleModel
    """Its people."""
    draws: np.ndarray
    """[S, G, 1 + k] joint draws of the weights of each group or juror, on the common scale."""
    voices: tuple[str, ...]
    """[G] whose they are: the groups' names, or the seats of a jury."""
    scale: ScoreScale
    """The optimiser's scale of the aggregate that it is used with."""
    references: References | None = None
    """Where each prompt's reference responses come from; None = the mean of the training responses for all."""
    known: dict[str, np.ndarray] = field(default_factory=dict)
    """Prompt.id → mean ψ of its references, as they are met; a function of the prompt, so it only saves work."""

    @property
    def model(self) -> RewardModel:
        """Trunk and heads, as of a Scorer."""
        return self.scorer.model

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Belief:
        """Joint draws [S, B, G], one axis a group, measured from each prompt's reference responses."""
        if len(prompts) != len(texts) or not texts:
            raise InputError(f"score: found {len(prompts)} prompts and {len(texts)} texts; expected one of each a row")
        by_id = {prompt.id: prompt for prompt in prompts}
        rows = self._references(by_id)
        place = {name: column for column, name in enumerate(by_id)}
        psi = features_of(self.scorer, self.people.features, prompts, texts)
        index = torch.tensor([place[prompt.id] for prompt in prompts])
        one = torch.ones(len(self.voices))  # their scales have brought them to one within-prompt sd
        return Belief(self._scores(psi), self._scores(rows), index, self.voices, one)

    def with_references(self, references: References) -> GroupScorer:
        """The same scorer, measured from these responses."""
        return dataclasses.replace(self, references=references, known={})

    def with_scale(self, scale: ScoreScale) -> GroupScorer:
        """The same scorer with another optimiser's scale."""
        return dataclasses.replace(self, scale=scale)

    def _scores(self, psi: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.einsum("sgk,bk->sbg", self.draws, psi)).float()

    def _references(self, by_id: Mapping[str, Prompt]) -> np.ndarray:
        if self.references is None:
            return np.tile(self.people.features.centre, (len(by_id), 1))
        new = [prompt for name, prompt in by_id.items() if name not in self.known]
        if new:
            written = self.references(new)
            flat = [(prompt, text) for prompt, texts in zip(new, written, strict=True) for text in texts]
            psi = features_of(self.scorer, self.people.features, [p for p, _ in flat], [t for _, t in flat])
            start = 0
            for prompt, texts in zip(new, written, strict=True):
                self.known[prompt.id] = psi[start : start + len(texts)].mean(0)
                start += len(texts)
        return np.stack([self.known[name] for name in by_id])


def group_draws(model: PeopleModel, rng: np.random.Generator, n_draws: int = N_DRAWS) -> np.ndarray:
    """[S, G, 1 + k] weights drawn from the posterior of each group's mean, in pairs that mirror each other.

    θ and V are taken as known, so the spread is that of who happened to be asked.
    """
    users, half = model.users, n_draws // 2
    noise = rng.standard_normal((half, len(users.groups), users.rank))
    root = np.linalg.cholesky(users.mean_cov + 1e-12 * np.eye(users.rank)) if users.rank else users.mean_cov
    moved = np.einsum("gij,sgj->sgi", root, noise)
    w = np.concatenate([users.mean + moved, users.mean - moved])
    return (users.shared + w @ users.basis) * model.group_scale[:, None]


def group_scorer(scorer: Scorer, model: PeopleModel, *, seed: int = 0) -> GroupScorer:
    """The scorer of a population's groups; the draws follow from the seed."""
    draws = group_draws(model, np.random.default_rng(seed))
    return GroupScorer(scorer, model, draws, model.users.groups, scorer.scale)


def jury_scorer(scorer: Scorer, model: PeopleModel, composition: JuryComposition | None, *, seed: int) -> GroupScorer:
    """The scorer of one jury: people drawn to a composition, each with her own posterior; they follow from the seed.

        w_u ~ N(m_u, C_u)        r_u(x, y) = (θ + Vᵀw_u)·ψ(x, y), on one within-prompt scale for all

    Args:
        composition: None = equal seats for all groups.
    Raises: InputError for a seat of a group that nobody is in; CheckpointError for a population without scales of persons.
    """
    if model.person_scale is None:
        raise CheckpointError("jury: this population was fitted before persons had a scale; fit the reward again")
    rng = np.random.default_rng(seed)
    composition = composition or JuryComposition(dict.fromkeys(model.users.groups, 1.0))
    jurors = empanel(composition, model.members(), rng)
    who, seat = np.unique(jurors, return_inverse=True)  # whoever sits twice is of one mind
    users, people, half = model.users, model.people, N_DRAWS // 2
    root = np.linalg.cholesky(people.cov[who] + 1e-12 * np.eye(users.rank)) if users.rank else people.cov[who]
    moved = np.einsum("uij,suj->sui", root, rng.standard_normal((half, len(who), users.rank)))
    w = np.concatenate([people.mean[who] + moved, people.mean[who] - moved])
    draws = (users.shared + w @ users.basis) * model.person_scale[who][:, None]
    names = tuple(f"{model.users.groups[model.group[one]]}, seat {n}" for n, one in enumerate(jurors.tolist(), 1))
    return GroupScorer(scorer, model, draws[:, seat], names, scorer.scale)


def save_people(model: PeopleModel, directory: Path, *, metadata: Mapping[str, str]) -> None:
    """Write the population into the directory of its reward model; the card last."""
    users, people = model.users, model.people
    tensors = {
        "directions": model.features.directions, "centre": model.features.centre, "shared": users.shared,
        "basis": users.basis, "mean": users.mean, "mean_cov": users.mean_cov, "cov": users.cov, "steps": users.steps,
        "person_mean": people.mean, "person_cov": people.cov, "n_votes": people.n_votes, "group": model.group,
        "group_scale": model.group_scale,
    } | ({} if model.person_scale is None else {"person_scale": model.person_scale})  # fmt: skip
    write_tensors({name: np.ascontiguousarray(one) for name, one in tensors.items()}, directory / TENSORS, metadata)
    if model.features.side is not None:
        save_side(model.features.side, directory, metadata=metadata, name=SIDE)
    card = {
        "format": CARD_FORMAT,
        "metadata": dict(metadata),
        "n_levels": users.n_levels,
        "rank": users.rank,
        "groups": list(users.groups),
        "annotators": list(model.annotators),
        "n_votes": people.n_votes.tolist(),
        "sd_between_people": np.sqrt(np.maximum(np.diag(users.cov), 0.0)).tolist(),
        "limits": limits_fields(model.limits),
        "beside": [] if model.features.side is None else list(model.features.side.names),
        "scale": None if model.scale is None else dataclasses.asdict(model.scale),
        "not_expressed": ["the uncertainty of what is shared and of the directions in which people differ"],
    }
    text = json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False)
    (directory / CARD).write_text(text + "\n", encoding="utf-8")


def load_people(directory: Path) -> PeopleModel:
    """The population that `save_people` wrote beside a reward model.

    Raises: CheckpointError (one line) where there is none, or it is damaged or of a newer format.
    """
    directory = Path(directory)
    try:
        card = json.loads((directory / CARD).read_text(encoding="utf-8"))
        found = {name: one.numpy() for name, one in read_tensors(directory / TENSORS).items()}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{directory}: found no {Path(error.filename or TENSORS).name}; expected a reward model with a population "
            "(pluralism.enabled, and raters with a median of pluralism.min_votes votes; see docs/people-models.md)"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{directory}: not readable as a population ({' '.join(str(error).split())})") from None
    with damage_named(directory / CARD, "a population", CheckpointError):
        return _people_of(directory, card, found)


def _people_of(directory: Path, card: Mapping[str, Any], found: Mapping[str, np.ndarray]) -> PeopleModel:
    if card.get("format") != CARD_FORMAT:
        raise CheckpointError(f"{directory}: found a population of format {card.get('format')}; expected {CARD_FORMAT}")
    users = UserModel(
        shared=found["shared"], basis=found["basis"], mean=found["mean"], mean_cov=found["mean_cov"], cov=found["cov"],
        steps=found["steps"], n_levels=card["n_levels"], groups=tuple(card["groups"]), bound=(),
    )  # fmt: skip
    people = Posterior(found["person_mean"], found["person_cov"], found["n_votes"])
    _check_covariances(directory, {"cov": users.cov[None], "person_cov": people.cov})
    side = load_side(directory, card.get("beside", ()), name=SIDE)
    return PeopleModel(
        FeatureMap(found["directions"], found["centre"], side), users, people, tuple(card["annotators"]), found["group"],
        found["group_scale"], limits_of(card["limits"], str(directory / CARD)),
        ScoreScale(**card["scale"]) if card["scale"] else None, found.get("person_scale"),
    )  # fmt: skip


def _check_covariances(directory: Path, covariances: Mapping[str, np.ndarray]) -> None:
    for name, blocks in covariances.items():
        if blocks.shape[-1] and not np.linalg.eigvalsh(blocks).min() > 0:
            raise CheckpointError(f"{directory}: {name} is not positive definite; the file is damaged, fit it again")


def limits_fields(limits: Limits) -> dict[str, Any]:
    """Plain values of some limits."""
    return {"floors": dict(limits.floors), "principles": list(limits.principles)}


def limits_of(fields: Any, where: str) -> Limits:
    """Limits from plain values {"floors": {objective: number}, "principles": [name]}.

    Raises: InputError that begins with `where`, for anything else.
    """
    known = isinstance(fields, Mapping) and set(fields) <= {"floors", "principles"}
    floors, principles = (fields.get("floors", {}), fields.get("principles", [])) if known else (None, None)
    good = (
        isinstance(floors, Mapping)
        and isinstance(principles, Sequence)
        and not isinstance(principles, str)
        and all(isinstance(one, int | float) and not isinstance(one, bool) for one in floors.values())
        and all(isinstance(one, str) for one in principles)
    )
    if not good:
        raise InputError(
            f'{where}: found {json.dumps(fields)[:120]}; expected {{"floors": {{objective: number}}, "principles": [name]}}'
        )
    return Limits({name: float(one) for name, one in floors.items()}, tuple(principles))
