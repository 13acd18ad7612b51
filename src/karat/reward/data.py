"""Votes as the reward model reads them: checked, indexed, grouped by prompt and cut into minibatches.

A minibatch holds whole prompts, so that everything said about a prompt is encoded once and used by all its votes.
Knows votes, prompts and responses; knows nothing about models.

Dimension letters: C comparisons, N texts, A annotators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from karat.choice import VoteBatch, vote_batch
from karat.errors import InputError
from karat.records import Prompt, Response, Vote


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
class Minibatch:
    """What one optimiser step reads."""

    groups: tuple[tuple[int, ...], ...]
    """Texts by prompt; votes never cross groups."""
    votes: Int[Tensor, " C"]
    """Positions of the votes in VoteData."""


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
    response_index: dict[str, int] = {}
    annotator_index = {name: index for index, name in enumerate(annotators or ())}
    for vote in votes:
        if vote.prompt_id not in prompts:
            raise InputError(f"vote {vote.judgement_id}: prompt {vote.prompt_id!r} is unknown; expected an id given")
        for response_id in (vote.a, vote.b):
            response = responses.get(response_id)
            if response is None:
                raise InputError(f"vote {vote.judgement_id}: response {response_id!r} is unknown; expected an id given")
            if response.prompt_id != vote.prompt_id:
                raise InputError(
                    f"vote {vote.judgement_id}: response {response_id!r} answers {response.prompt_id!r}; "
                    f"expected an answer to {vote.prompt_id!r}"
                )
            response_index.setdefault(response_id, len(response_index))
        if annotators is None:
            annotator_index.setdefault(vote.annotator, len(annotator_index))
    ids = tuple(response_index)
    by_prompt: dict[str, list[int]] = {}
    for index, response_id in enumerate(ids):
        by_prompt.setdefault(responses[response_id].prompt_id, []).append(index)
    return VoteData(
        votes=tuple(votes),
        columns=vote_batch(votes, response_index, annotator_index),
        response_ids=ids,
        prompts=tuple(prompts[responses[i].prompt_id] for i in ids),
        texts=tuple(responses[i].text for i in ids),
        annotators=tuple(annotator_index),
        groups=tuple(tuple(members) for members in by_prompt.values()),
    )


def check_informative(data: VoteData) -> None:
    """Raise InputError when every vote is a tie: nothing says what is better."""
    k = data.n_levels
    if k % 2 == 1 and bool((data.columns.level == (k - 1) // 2).all()):
        raise InputError(
            f"reward: all {len(data.votes)} votes are ties; expected some that prefer a response. "
            "Nothing can be learned from ties alone; ask for more comparisons"
        )


def split_votes(votes: Sequence[Vote], *, holdout_frac: float) -> tuple[list[Vote], list[Vote], str]:
    """Training and held-out votes: whole raters by hash, or whole pairs where there is only one rater.

    Only votes on questions drawn at random are held out; the others stay in training.

    Args:
        holdout_frac: share of the raters (or pairs) held out, [0, 1); 0 = none.
    Returns: training votes, held-out votes, and in words by what was split.
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
        pairs = sorted({_pair(vote) for vote in votes}, key=_digest)
        chosen = set(pairs[: min(max(1, round(holdout_frac * len(pairs))), len(pairs) - 1)])
        train, held = _partition(votes, lambda vote: _pair(vote) in chosen)
        how = f"one rater only: {len(chosen)} of {len(pairs)} pairs held out by hash"
    return train, [vote for vote in held if vote.strategy == "random"], how


def plan_epoch(data: VoteData, *, batch_responses: int, rng: np.random.Generator | None) -> list[Minibatch]:
    """Cut an epoch into minibatches of about `batch_responses` texts, whole prompts together.

    A prompt with more texts than that is cut into parts, and its votes are dealt out pair by pair, so that every vote
    occurs exactly once.

    Args:
        rng: order of prompts and pairs; None = the order given.
    """
    votes_of: dict[int, list[int]] = {}
    group_of = {text: number for number, members in enumerate(data.groups) for text in members}
    for position, text in enumerate(data.columns.a.tolist()):
        votes_of.setdefault(group_of[text], []).append(position)
    order = list(votes_of) if rng is None else [list(votes_of)[i] for i in rng.permutation(len(votes_of))]
    minibatches: list[Minibatch] = []
    groups: list[tuple[int, ...]] = []
    votes: list[int] = []
    for number in order:
        for members, positions in _parts(data, data.groups[number], votes_of[number], batch_responses, rng):
            if groups and sum(map(len, groups)) + len(members) > batch_responses:
                minibatches.append(Minibatch(tuple(groups), torch.tensor(votes)))
                groups, votes = [], []
            groups.append(members)
            votes.extend(positions)
    minibatches.append(Minibatch(tuple(groups), torch.tensor(votes)))
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
    data: VoteData, members: tuple[int, ...], positions: list[int], limit: int, rng: np.random.Generator | None
) -> list[tuple[tuple[int, ...], list[int]]]:
    if len(members) <= limit:
        return [(members, positions)]
    pairs: dict[tuple[int, int], list[int]] = {}
    for position in positions:
        a, b = int(data.columns.a[position]), int(data.columns.b[position])
        pairs.setdefault((min(a, b), max(a, b)), []).append(position)
    keys = list(pairs) if rng is None else [list(pairs)[i] for i in rng.permutation(len(pairs))]
    parts: list[tuple[tuple[int, ...], list[int]]] = []
    texts: dict[int, None] = {}
    chosen: list[int] = []
    for key in keys:
        new = [text for text in key if text not in texts]
        if texts and len(texts) + len(new) > limit:
            parts.append((tuple(texts), chosen))
            texts, chosen = {}, []
        texts.update(dict.fromkeys(key))
        chosen.extend(pairs[key])
    return [*parts, (tuple(texts), chosen)]


def _partition(votes: Sequence[Vote], held: Callable[[Vote], bool]) -> tuple[list[Vote], list[Vote]]:
    train, out = [], []
    for vote in votes:
        (out if held(vote) else train).append(vote)
    return train, out


def _pair(vote: Vote) -> str:
    return "\x1f".join(sorted((vote.a, vote.b)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
