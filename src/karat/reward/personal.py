"""A person's own reward: which question to ask her next, what her answers say, and what she may not decide.

    w ~ N(m, S) before a question;  information(x) = I(answer; w) = H(E[P(y | η)]) − E[H(P(y | η))],  η ~ N(·, zᵀSz)

An answer tells of w only through η = (θ + Vᵀw)·x, so one quadrature over η is exact. Limits stand above taste: they come
from expert principles, and no response that breaks one can win. Knows a population, differences of features and answers;
knows nothing about texts, models or terminals.

Dimension letters: C questions (comparisons), B responses, O objectives, d features, r rank, K levels.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, xlogy

from karat.errors import InputError
from karat.reward.linear_votes import NODES, WEIGHTS, LinearVotes, level_probs, slopes
from karat.reward.users import Posterior, UserModel, posterior_of

MOSTLY_HERS = 0.5
"""Below this share of the variance explained, what is said of a person is said to rest on the population mostly."""


@dataclass(frozen=True, eq=False)
class PersonReward:
    """One person's posterior, and the answers it rests on."""

    mean: np.ndarray
    """[r] most probable w."""
    cov: np.ndarray
    """[r, r] its covariance."""
    group: int
    """Index of her group in the population, whose mean she starts from; −1 = she declared none."""
    x: np.ndarray
    """[n, d] differences of features of the questions she answered."""
    level: np.ndarray
    """[n] her answers."""

    @property
    def n_votes(self) -> int:
        """Answers it rests on."""
        return len(self.level)


MISSPELT = 0.8
"""Share of letters in common (difflib's ratio) from which a label is taken for a misspelt principle."""


@dataclass(frozen=True)
class Limits:
    """What personal taste cannot override."""

    floors: Mapping[str, float]
    """Objective → lowest acceptable score, relative to the reference."""
    principles: tuple[str, ...] = ()
    """Labelled principles: a response labelled with one of them is out."""

    def __post_init__(self) -> None:
        wrong = [name for name, floor in self.floors.items() if not math.isfinite(floor)]
        if wrong:
            raise InputError(
                f"limits: found the floor {self.floors[wrong[0]]} of {wrong[0]!r}; expected a finite number"
            )


@dataclass(frozen=True, eq=False)
class Ruling:
    """What the limits say of some responses."""

    allowed: np.ndarray
    """[B] True = within all limits."""
    shortfall: np.ndarray
    """[B] how far below its floors, summed; a broken principle counts as infinite."""
    reasons: tuple[str, ...]
    """Why a response is out, in words; "" where it is not."""


def prior_of(model: UserModel, group: int) -> UserModel:
    """The population as somebody of one group belongs to it; −1 = of whom no group is known: all groups mixed.

        no group: mean 0, Σ + (1/G)·Σ_g μ_g·μ_gᵀ

    Raises: InputError for a group that the population does not have.
    """
    if not -1 <= group < len(model.groups):
        raise InputError(
            f"person: found group {group}; expected 0 … {len(model.groups) - 1} ({', '.join(model.groups)})"
        )
    if group >= 0:
        rows = slice(group, group + 1)
        return replace(model, mean=model.mean[rows], mean_cov=model.mean_cov[rows], groups=(model.groups[group],))
    between = model.mean.T @ model.mean / len(model.groups)
    none = np.zeros((1, model.rank))
    return replace(
        model, mean=none, mean_cov=np.zeros((1, model.rank, model.rank)), cov=model.cov + between, groups=("all",)
    )  # fmt: skip


def new_person(model: UserModel, group: int = -1) -> PersonReward:
    """Somebody of whom nothing is known but her group: the population's prior, said so by n_votes = 0."""
    prior, d = prior_of(model, group), model.shared.shape[0]
    return PersonReward(prior.mean[0].copy(), prior.cov.copy(), group, np.zeros((0, d)), np.zeros(0, dtype=np.int64))


def updated(model: UserModel, person: PersonReward, x: np.ndarray, level: np.ndarray) -> PersonReward:
    """The person after more answers: the Laplace posterior of all of them, so that their order does not matter.

    Args:
        x: [n, d] differences of features.    level: [n] answers on the population's scale.
    """
    rows = np.concatenate([person.x, np.atleast_2d(x)])
    levels = np.concatenate([person.level, np.atleast_1d(level)]).astype(np.int64)
    votes = LinearVotes(rows, levels, model.n_levels, np.zeros(len(levels), dtype=np.int64), 1)
    found = posterior_of(prior_of(model, person.group), votes)
    return PersonReward(found.mean[0], found.cov[0], person.group, rows, levels)


def person_scores(model: UserModel, person: PersonReward, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B] mean and sd of a person's reward, for features measured from a reference response.

    Args:
        features: [B, d] φ(x, y) − φ(reference); θ and V are taken as known.
    """
    z = features @ model.basis.T
    spread = np.sqrt(np.maximum(np.einsum("bi,ij,bj->b", z, person.cov, z), 0.0))
    return features @ model.shared + z @ person.mean, spread


def information(model: UserModel, person: PersonReward, x: np.ndarray, cov: np.ndarray | None = None) -> np.ndarray:
    """[C] bits that her answer to each question is expected to give about w; at most log₂ K.

    Args:
        x: [C, d] differences of features.    cov: instead of the person's, while a batch is put together.
    Source: Houlsby et al. 2011, arXiv:1112.5745 (BALD), with an ordinal answer.
    """
    z = x @ model.basis.T
    mean = x @ model.shared + z @ person.mean
    var = np.maximum(np.einsum("ci,ij,cj->c", z, person.cov if cov is None else cov, z), 0.0)
    eta = mean[:, None] + np.sqrt(var)[:, None] * NODES
    each = np.diff(expit(model.cuts - eta[..., None]), axis=-1)
    known = -xlogy(each, each).sum(-1) @ WEIGHTS
    mixed = level_probs(mean, var, model.cuts)
    return np.maximum((-xlogy(mixed, mixed).sum(-1) - known) / math.log(2), 0.0)


def choose_questions(model: UserModel, person: PersonReward, x: np.ndarray, n: int) -> np.ndarray:
    """Positions of the n questions to ask together, the most informative first.

    One after another: after each the covariance shrinks by what its answer is expected to say, S⁻¹ + E[−∂²log P/∂η²]·zzᵀ.

    Args:
        x: [C, d] the questions there are.    n: how many; more than there are = all.
    Returns: different positions.
    """
    z = x @ model.basis.T
    cov, open_mask, chosen = person.cov, np.ones(len(x), dtype=bool), []
    for _ in range(min(n, len(x))):
        bits = np.where(open_mask, information(model, person, x, cov), -1.0)
        best = int(bits.argmax())
        chosen.append(best)
        open_mask[best] = False
        reach = cov @ z[best]
        sharp = expected_curvature(float(x[best] @ model.shared + z[best] @ person.mean), float(z[best] @ reach), model)
        cov = cov - np.outer(reach, reach) * (sharp / (1 + sharp * float(z[best] @ reach)))
    return np.array(chosen, dtype=np.int64)


def expected_curvature(mean: float, var: float, model: UserModel) -> float:
    """E over η ~ N(mean, var) and the answer of −∂² log P/∂η²."""
    eta = mean + math.sqrt(max(var, 0.0)) * NODES
    each = np.diff(expit(model.cuts - eta[:, None]), axis=-1)
    bend = np.stack(
        [-slopes(eta, np.full(len(eta), level), model.cuts).second for level in range(model.n_levels)], axis=-1
    )
    return float(WEIGHTS @ (each * bend).sum(-1))


def ruling(limits: Limits, objectives: Mapping[str, np.ndarray], broken: Sequence[Sequence[str]]) -> Ruling:
    """What is within the limits.

    Args:
        objectives: name → [B] scores relative to the reference; every floor's must be there.
        broken: [B] the principles that each response was labelled as breaking, in upper or lower case; labels that are
            far from every principle say nothing.
    Raises: InputError for a floor on an objective that was not scored, or a label that is nearly a principle: a limit that
        cannot be checked is not passed over.
    """
    n = len(broken)
    missing = [name for name in limits.floors if name not in objectives]
    if missing:
        raise InputError(
            f"limits: found a floor on {missing[0]!r} and scores of {', '.join(objectives) or 'nothing'}; "
            "expected a score of every objective with a floor"
        )
    shortfall, reasons = np.zeros(n), [[] for _ in range(n)]
    for name, floor in limits.floors.items():
        below = np.maximum(floor - np.asarray(objectives[name], dtype=float), 0.0)
        shortfall += below
        for row in np.flatnonzero(below > 0):
            reasons[row].append(f"{name} is {below[row]:.3g} below its floor")
    for row, labels in enumerate(broken):
        for name in broken_principles(limits, labels):
            shortfall[row] = np.inf
            reasons[row].append(f"breaks {name}")
    return Ruling(shortfall == 0, shortfall, tuple("; ".join(said) for said in reasons))


def broken_principles(limits: Limits, labels: Sequence[str]) -> list[str]:
    """The principles that labels of one response name, in upper or lower case.

    Raises: InputError for a label that is nearly a principle.
    """
    known, found = {_plain(name): name for name in limits.principles}, []
    for label in dict.fromkeys(map(_plain, labels)):
        if label in known:
            found.append(known[label])
        elif near := difflib.get_close_matches(label, known, n=1, cutoff=MISSPELT):
            raise InputError(
                f"labels: found {label!r}, which is no principle; did you mean {known[near[0]]!r}? A misspelt label would "
                "let the response win"
            )
    return found


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def ranked(scores: np.ndarray, verdict: Ruling) -> np.ndarray:
    """Positions from best to worst: lexical, whatever is within the limits before whatever is not.

    Within the limits her scores decide; outside them the smaller shortfall, and never her scores.
    """
    by_taste = np.where(verdict.allowed, -np.asarray(scores, dtype=float), 0.0)
    return np.lexsort((by_taste, verdict.shortfall))


def winner(scores: np.ndarray, verdict: Ruling) -> int | None:
    """The response that wins for this person; None where none is within the limits."""
    return int(ranked(scores, verdict)[0]) if verdict.allowed.any() else None


def standing(model: UserModel, person: PersonReward) -> str:
    """In words, on how much the person's reward rests."""
    if model.rank == 0:
        return (
            "the population has rank 0: its votes do not show that people differ; no answer would change anything, and "
            "everybody gets the shared reward"
        )
    prior, own = np.trace(prior_of(model, person.group).cov), np.trace(person.cov)
    known = 1 - own / prior
    told = (
        f"{person.n_votes} answer{'s' * (person.n_votes != 1)}; {known:.0%} of the variance between people is explained"
    )
    return told + ("; this is mostly the population's reward" if known < MOSTLY_HERS else "")


def as_posterior(people: Sequence[PersonReward]) -> Posterior:
    """Several persons as one posterior, in the order given."""
    return Posterior(
        np.stack([one.mean for one in people]), np.stack([one.cov for one in people]),
        np.array([one.n_votes for one in people]),
    )  # fmt: skip
