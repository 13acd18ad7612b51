"""Feedback as the reward model reads it: checked, indexed, grouped by prompt and cut into minibatches.

A minibatch holds whole prompts, so that everything said about a prompt is encoded once and used by all its statements.
Knows statements, prompts and responses; knows nothing about models.

Dimension letters: C comparisons, N texts, A annotators.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.choice import VoteBatch, vote_batch
from karat.errors import InputError
from karat.feedback_columns import FeedbackBatch, feedback_batch
from karat.records import Prompt, Response, Vote
from karat.statements import PREFERENCE, Preferred, Statement


@dataclass(frozen=True, eq=False)
class VoteData:
    """Votes with everything they refer to, as columns."""

    votes: tuple[Vote, ...]
    """The votes, in the order given."""
    columns: VoteBatch
    """The same as indices into `response_ids` and `annotators`."""
    response_ids: tuple[str, ...]
    """Response.id of every response voted on, each once, in order of first occurrence."""
    prompts: tuple[Prompt, ...]
    """The prompt of each response."""
    texts: tuple[str, ...]
    """The text of each response."""
    annotators: tuple[str, ...]
    """Annotator.id of every rater, in order of first occurrence."""
    groups: tuple[tuple[int, ...], ...]
    """Indices of the responses of each prompt."""

    @property
    def n_levels(self) -> int:
        """Levels of the scale."""
        return self.columns.n_levels


@dataclass(frozen=True, eq=False)
class FeedbackData:
    """Statements of every kind with everything they refer to, as columns."""

    statements: tuple[Statement, ...]
    """What was said, in the order given."""
    batch: FeedbackBatch
    """The same as columns; `Channel.place` is the position here."""
    shares: Float[Tensor, " statements"]
    """1/(statements of the same judgement): they sum to the number of judgements."""
    texts_of: tuple[tuple[int, ...], ...]
    """Indices of the texts that each statement is about."""
    objectives: tuple[str, ...]
    """What was spoken about; `preference` first, where anything was."""
    response_ids: tuple[str, ...]
    """Response.id of every response named, each once, in order of first occurrence."""
    prompts: tuple[Prompt, ...]
    """The prompt of each response."""
    texts: tuple[str, ...]
    """The text of each response."""
    annotators: tuple[str, ...]
    """Annotator.id of every rater, in order of first occurrence."""
    groups: tuple[tuple[int, ...], ...]
    """Indices of the responses of each prompt."""

    @property
    def n_judgements(self) -> int:
        """How many judgements the statements come from."""
        return round(float(self.shares.sum()))


@dataclass(frozen=True, eq=False)
class Minibatch:
    """What one optimiser step reads."""

    groups: tuple[tuple[int, ...], ...]
    """Texts by prompt; statements never cross groups."""
    statements: Int[Tensor, " statements"]
    """Positions of the statements in FeedbackData."""


def vote_data(
    votes: Sequence[Vote],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    annotators: Sequence[str] | None = None,
) -> VoteData:
    """Check votes against their texts and index them.

    Args:
        prompts: Prompt.id → Prompt.    responses: Response.id → Response.
        annotators: fixed order of raters; None = as they occur.
    Raises: InputError for no votes, an unknown id, a response to another prompt, or several scales at once.
    """
    if not votes:
        raise InputError("reward: found no votes; expected at least one comparison. Collect or import votes first")
    index = _index(votes, prompts, responses, annotators)
    return VoteData(
        votes=tuple(votes),
        columns=vote_batch(votes, index.responses, index.annotators),
        response_ids=tuple(index.responses),
        prompts=index.prompts,
        texts=index.texts,
        annotators=tuple(index.annotators),
        groups=index.groups,
    )


def feedback_data(
    statements: Sequence[Statement],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    objectives: Sequence[str] | None = None,
    ordinal: bool = False,
) -> FeedbackData:
    """Check statements against their texts and index them.

    Args:
        prompts: Prompt.id → Prompt.    responses: Response.id → Response, with those that raters wrote.
        objectives: names and their order; None = those that are spoken about, `preference` first, the others by name.
        ordinal: True = ratings are read as whole steps of a scale.
    Raises: InputError for no statements, an unknown id, a response to another prompt, or an objective that is not
        among `objectives`.
    """
    if not statements:
        raise InputError("reward: found no votes; expected at least one comparison. Collect or import votes first")
    index = _index(statements, prompts, responses, None)
    names = spoken_objectives(statements) if objectives is None else tuple(objectives)
    per_judgement = Counter(one.judgement_id for one in statements if not isinstance(one, Vote))
    per_judgement.update({one.judgement_id for one in statements if isinstance(one, Vote)} & per_judgement.keys())
    shares = [1 / max(1, per_judgement[one.judgement_id]) for one in statements]
    return FeedbackData(
        statements=tuple(statements),
        batch=feedback_batch(statements, index.responses, index.annotators, names, ordinal=ordinal),
        shares=torch.tensor(shares),
        texts_of=tuple(tuple(index.responses[i] for i in one.response_ids) for one in statements),
        objectives=names,
        response_ids=tuple(index.responses),
        prompts=index.prompts,
        texts=index.texts,
        annotators=tuple(index.annotators),
        groups=index.groups,
    )


def spoken_objectives(statements: Sequence[Statement]) -> tuple[str, ...]:
    """The objectives that are spoken about: `preference` first, where it is, the others by name."""
    names = {one.objective for one in statements}
    return (*(PREFERENCE,) * (PREFERENCE in names), *sorted(names - {PREFERENCE}))


def check_objectives(statements: Sequence[Statement], wanted: Sequence[str]) -> None:
    """Raise InputError, with its name, for an objective that nothing was said about."""
    found = spoken_objectives(statements)
    if lacking := [name for name in wanted if name not in found]:
        raise InputError(
            f"objective {lacking[0]!r}: found no feedback about it; expected ratings, labels or critiques that name it. "
            f"There is feedback about {', '.join(found)}"
        )


@dataclass(frozen=True, eq=False)
class _Index:
    responses: dict[str, int]
    annotators: dict[str, int]
    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]


def _index(
    statements: Sequence[Statement],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    annotators: Sequence[str] | None,
) -> _Index:
    response_index: dict[str, int] = {}
    annotator_index = {name: index for index, name in enumerate(annotators or ())}
    for one in statements:
        what = f"{'vote' if isinstance(one, Vote) else one.kind} {one.judgement_id}"
        if one.prompt_id not in prompts:
            raise InputError(f"{what}: prompt {one.prompt_id!r} is unknown; expected an id given")
        for response_id in one.response_ids:
            response = responses.get(response_id)
            if response is None:
                raise InputError(f"{what}: response {response_id!r} is unknown; expected an id given")
            if response.prompt_id != one.prompt_id:
                raise InputError(
                    f"{what}: response {response_id!r} answers {response.prompt_id!r}; "
                    f"expected an answer to {one.prompt_id!r}"
                )
            response_index.setdefault(response_id, len(response_index))
        if annotators is None:
            annotator_index.setdefault(one.annotator, len(annotator_index))
    by_prompt: dict[str, list[int]] = {}
    for response_id, index in response_index.items():
        by_prompt.setdefault(responses[response_id].prompt_id, []).append(index)
    return _Index(
        response_index,
        annotator_index,
        tuple(prompts[responses[i].prompt_id] for i in response_index),
        tuple(responses[i].text for i in response_index),
        tuple(tuple(members) for members in by_prompt.values()),
    )


def check_informative(statements: Sequence[Statement]) -> None:
    """Raise InputError when everything said is that two responses are equal: nothing says what is better."""
    if statements and all(isinstance(one, Vote) and 2 * one.level == one.n_levels - 1 for one in statements):
        raise InputError(
            f"reward: all {len(statements)} votes are ties; expected some that prefer a response. "
            "Nothing can be learned from ties alone; ask for more comparisons"
        )


S = TypeVar("S", bound=Statement)


def split_votes(votes: Sequence[S], *, holdout_frac: float) -> tuple[list[S], list[S], str]:
    """Training and held-out statements: whole raters by hash, or whole pairs where there is only one rater.

    Only answers to questions drawn at random are held out; what the held-out raters answered to chosen questions is used
    for neither, because training on it would make them known. What only the held-out speak about is trained on: an
    objective without training data would have no output.

    Args:
        votes: votes, or statements of every kind.
        holdout_frac: share of the raters (or pairs) held out, [0, 1); 0 = none.
    Returns: training statements, held-out statements, and in words by what was split.
    """
    if not votes or holdout_frac == 0:
        return list(votes), [], "nothing held out"
    raters = sorted({vote.annotator for vote in votes}, key=_digest)
    if len(raters) > 1:
        n_held = min(max(1, round(holdout_frac * len(raters))), len(raters) - 1)
        chosen = set(raters[:n_held])
        train, held = _partition(votes, lambda vote: vote.annotator in chosen)
        how = f"{n_held} of {len(raters)} raters held out by hash"
    else:
        pairs = sorted({_target(vote) for vote in votes}, key=_digest)
        chosen = set(pairs[: min(max(1, round(holdout_frac * len(pairs))), len(pairs) - 1)])
        train, held = _partition(votes, lambda vote: _target(vote) in chosen)
        how = f"one rater only: {len(chosen)} of {len(pairs)} pairs held out by hash"
    known = {vote.objective for vote in train}
    train += [vote for vote in held if vote.objective not in known]
    return train, [vote for vote in held if vote.strategy == "random" and vote.objective in known], how


def plan_epoch(data: FeedbackData, *, batch_responses: int, rng: np.random.Generator | None) -> list[Minibatch]:
    """Cut an epoch into minibatches of about `batch_responses` texts, whole prompts together.

    A prompt with more texts than that is cut into parts, and what was said about it is dealt out by the responses it
    is about, so that every statement occurs exactly once.

    Args:
        rng: order of prompts and of the sets of responses; None = the order given.
    """
    said_of: dict[int, list[int]] = {}
    group_of = {text: number for number, members in enumerate(data.groups) for text in members}
    for position, texts in enumerate(data.texts_of):
        said_of.setdefault(group_of[texts[0]], []).append(position)
    order = list(said_of) if rng is None else [list(said_of)[i] for i in rng.permutation(len(said_of))]
    minibatches: list[Minibatch] = []
    groups: list[tuple[int, ...]] = []
    said: list[int] = []
    for number in order:
        for members, positions in _parts(data, data.groups[number], said_of[number], batch_responses, rng):
            if groups and sum(map(len, groups)) + len(members) > batch_responses:
                minibatches.append(Minibatch(tuple(groups), torch.tensor(said)))
                groups, said = [], []
            groups.append(members)
            said.extend(positions)
    minibatches.append(Minibatch(tuple(groups), torch.tensor(said)))
    return minibatches


def topic_folds(topics: Sequence[str], n_folds: int) -> list[tuple[str, ...]]:
    """Topics dealt into folds in the order of their hashes: fixed before any vote is read.

    Raises: InputError for fewer topics than folds.
    """
    distinct = sorted(set(topics), key=_digest)
    if n_folds < 2 or len(distinct) < n_folds:
        raise InputError(f"topic_folds: found {len(distinct)} topics for {n_folds} folds; expected at least one each")
    return [tuple(distinct[fold::n_folds]) for fold in range(n_folds)]


def _parts(
    data: FeedbackData, members: tuple[int, ...], positions: list[int], limit: int, rng: np.random.Generator | None
) -> list[tuple[tuple[int, ...], list[int]]]:
    if len(members) <= limit:
        return [(members, positions)]
    sets: dict[tuple[int, ...], list[int]] = {}
    for position in positions:
        sets.setdefault(tuple(sorted(data.texts_of[position])), []).append(position)
    keys = list(sets) if rng is None else [list(sets)[i] for i in rng.permutation(len(sets))]
    parts: list[tuple[tuple[int, ...], list[int]]] = []
    texts: dict[int, None] = {}
    chosen: list[int] = []
    for key in keys:
        new = [text for text in key if text not in texts]
        if texts and len(texts) + len(new) > limit:
            parts.append((tuple(texts), chosen))
            texts, chosen = {}, []
        texts.update(dict.fromkeys(key))
        chosen.extend(sets[key])
    return [*parts, (tuple(texts), chosen)]


def _partition(votes: Sequence[S], held: Callable[[S], bool]) -> tuple[list[S], list[S]]:
    train, out = [], []
    for vote in votes:
        (out if held(vote) else train).append(vote)
    return train, out


def _target(statement: Statement) -> str:
    """What a statement is about; the comparisons of one demonstration stay together."""
    ids = statement.response_ids[:1] if isinstance(statement, Preferred) else sorted(statement.response_ids)
    return "\x1f".join(ids)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
