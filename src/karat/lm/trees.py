"""Prompts with their branches as token sequences, and how several of them become one batch.

A tree is one prompt and the responses that continue it. `pack_trees` lays trees end to end in a flat row, so that each
prompt occurs once and no position is padding; `padded_batch` is the plain form, one right-padded row a branch. Both
carry the same indices, so that whoever reads hidden states at `predict_index` need not know which form it has.
Knows nothing about models, text or attention.

Dimension letters: L all flat positions, B branches, n response tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from karat.errors import InputError


@dataclass(frozen=True)
class Tree:
    """One prompt and the responses that continue it, as token ids."""

    prompt: tuple[int, ...]
    """Token ids of the prompt, at least one (the first response token is predicted from its last)."""
    branches: tuple[tuple[int, ...], ...]
    """Token ids of each response, at least one branch and one token each."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InputError("Tree: the prompt has no token; expected at least one (a BOS or template token will do)")
        if not self.branches or not all(self.branches):
            found = "no branch" if not self.branches else f"an empty branch at {self.branches.index(())}"
            raise InputError(f"Tree: found {found}; expected one or more branches of at least one token")

    @property
    def n_tokens(self) -> int:
        """Positions this tree takes in a packed row."""
        return len(self.prompt) + sum(len(branch) for branch in self.branches)


@dataclass(frozen=True)
class TreeSpan:
    """Where one tree lies in a flat row: its prompt, directly followed by its branches."""

    start: int
    """Flat position of the first prompt token."""
    n_prompt: int
    """Prompt tokens."""
    branch_lengths: tuple[int, ...]
    """Tokens of each branch, in row order."""

    @property
    def stop(self) -> int:
        """Flat position after the last branch."""
        return self.start + self.n_prompt + sum(self.branch_lengths)


@dataclass(frozen=True)
class TreeLayout:
    """Where all trees lie in a flat row; positions beyond the last tree are filler that nothing attends to."""

    spans: tuple[TreeSpan, ...]
    """One entry a tree, ascending and without gaps."""
    n_positions: int
    """Length L of the row."""


@dataclass(frozen=True)
class TreeBatch:
    """Trees packed into one flat row."""

    input_ids: Int[Tensor, "1 L"]
    """Token ids."""
    position_ids: Int[Tensor, "1 L"]
    """Positions; each branch continues at its prompt's end."""
    layout: TreeLayout
    """Which positions belong together."""
    predict_index: Int[Tensor, " n"]
    """Flat position whose hidden state predicts response token j."""
    target_ids: Int[Tensor, " n"]
    """The response tokens, branch after branch in row order."""
    branch_of: Int[Tensor, " n"]
    """Row-order number of the branch that response token j belongs to."""
    offset_of: Int[Tensor, " n"]
    """Place of response token j within its branch, from 0."""
    last_index: Int[Tensor, " B"]
    """Flat position of each branch's last token."""
    branch_id: Int[Tensor, " B"]
    """Number of each branch as the caller counts them: over trees in the order given, then over branches."""
    lengths: Int[Tensor, " B"]
    """Tokens of each branch."""

    @property
    def n_tokens(self) -> int:
        """Positions a model computes for this batch."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> TreeBatch:
        """The same batch with its tensors on a device."""
        return _moved(self, device)


@dataclass(frozen=True)
class PaddedBatch:
    """One right-padded row a branch; indices run over the flattened [B·L] positions."""

    input_ids: Int[Tensor, "B L"]
    """Token ids; `pad_id` behind the end of a row."""
    attention_mask: Bool[Tensor, "B L"]
    """True = a token of the sequence."""
    position_ids: Int[Tensor, "B L"]
    """0 … length − 1, then repeated 0."""
    predict_index: Int[Tensor, " n"]
    """Flattened position whose hidden state predicts response token j."""
    target_ids: Int[Tensor, " n"]
    """The response tokens, branch after branch."""
    branch_of: Int[Tensor, " n"]
    """Row of response token j."""
    offset_of: Int[Tensor, " n"]
    """Place of response token j within its branch, from 0."""
    last_index: Int[Tensor, " B"]
    """Flattened position of each branch's last token."""
    branch_id: Int[Tensor, " B"]
    """Number of each branch as the caller counts them (here 0 … B − 1)."""
    lengths: Int[Tensor, " B"]
    """Tokens of each branch."""

    @property
    def n_tokens(self) -> int:
        """Positions a model computes for this batch, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> PaddedBatch:
        """The same batch with its tensors on a device."""
        return _moved(self, device)


Batch = TreeBatch | PaddedBatch
AnyBatch = TypeVar("AnyBatch", TreeBatch, PaddedBatch)


def _moved(batch: AnyBatch, device: torch.device | str) -> AnyBatch:
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: t.to(device) for name, t in tensors.items() if isinstance(t, Tensor)})


def pack_trees(
    trees: Sequence[Tree], *, token_budget: int, pad_to: int | None = None, pad_id: int = 0
) -> list[TreeBatch]:
    """Pack trees into flat rows of at most `token_budget` positions, longest first into the fullest row that holds it.

    The result depends on the trees and the budget only: equal lengths keep the caller's order. Every tree appears
    exactly once, and `branch_id` restores the caller's numbering.

    Args:
        token_budget: positions a row; a tree longer than it gets a row of its own.
        pad_to: fill each row with `pad_id` to a multiple of this (static shapes for compiled kernels); None = no filler.
    Returns: rows, the longest trees first.
    Raises: InputError for no tree or a budget below 1.
    """
    if not trees or token_budget < 1:
        raise InputError(f"pack_trees: found {len(trees)} trees, budget {token_budget}; expected ≥ 1 of each")
    first_branch = [0]
    for tree in trees:
        first_branch.append(first_branch[-1] + len(tree.branches))
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(trees)), key=lambda i: -trees[i].n_tokens):
        need = trees[index].n_tokens
        fitting = [row for row in range(len(rows)) if room[row] >= need]
        if fitting:
            row = min(fitting, key=lambda r: (room[r], r))
        else:
            row = len(rows)
            rows.append([])
            room.append(token_budget)
        rows[row].append(index)
        room[row] -= need
    return [_tree_batch([trees[i] for i in row], [first_branch[i] for i in row], pad_to, pad_id) for row in rows]


def empty_batch(device: torch.device | str = "cpu") -> TreeBatch:
    """A row that nothing is read from: a pass over it gives losses of 0, with gradients of 0 for every weight."""
    row = _tree_batch([Tree((0,), ((0,),))], [0], None, 0)
    nothing = torch.zeros(0, dtype=torch.long)
    names = ("predict_index", "target_ids", "branch_of", "offset_of", "last_index", "branch_id", "lengths")
    return replace(row, **dict.fromkeys(names, nothing)).to(device)


def filled(batch: TreeBatch, n_positions: int) -> TreeBatch:
    """The same row with filler up to so many positions: a tree of its own, from which nothing is read.

    Args: n_positions: not fewer than there are.
    """
    n_filler = n_positions - batch.layout.n_positions
    if not n_filler:
        return batch
    more = torch.arange(n_filler, device=batch.input_ids.device)[None]
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, batch.input_ids[:, -1:].expand(1, n_filler)], dim=1),
        position_ids=torch.cat([batch.position_ids, more], dim=1),
        layout=TreeLayout((*batch.layout.spans, TreeSpan(batch.layout.n_positions, 0, (n_filler,))), n_positions),
    )


def cut_trees(trees: Sequence[Tree], token_budget: int) -> list[Tree]:
    """The same branches in the same order in trees that fit the budget: a larger tree becomes several with its prompt.

    Returns: trees as they were where they fit; a branch that does not fit with its prompt is alone in its tree.
    """
    pieces: list[Tree] = []
    for tree in trees:
        cut: list[list[Sequence[int]]] = []
        used = 0
        for branch in tree.branches:
            if not cut or used + len(branch) > token_budget:
                cut.append([])
                used = len(tree.prompt)
            cut[-1].append(branch)
            used += len(branch)
        pieces += [tree] if len(cut) == 1 else [Tree(tree.prompt, tuple(part)) for part in cut]
    return pieces


def _tree_batch(trees: list[Tree], first_branch: list[int], pad_to: int | None, pad_id: int) -> TreeBatch:
    ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    targets: list[int] = []
    last: list[int] = []
    branch_id: list[int] = []
    lengths: list[int] = []
    spans: list[TreeSpan] = []
    for tree, first in zip(trees, first_branch, strict=True):
        start, n_prompt = len(ids), len(tree.prompt)
        ids.extend(tree.prompt)
        positions.extend(range(n_prompt))
        for number, branch in enumerate(tree.branches):
            begin = len(ids)
            predict.append(start + n_prompt - 1)
            predict.extend(range(begin, begin + len(branch) - 1))
            ids.extend(branch)
            positions.extend(range(n_prompt, n_prompt + len(branch)))
            targets.extend(branch)
            last.append(len(ids) - 1)
            branch_id.append(first + number)
            lengths.append(len(branch))
        spans.append(TreeSpan(start, n_prompt, tuple(len(branch) for branch in tree.branches)))
    if pad_to is not None:
        filler = -len(ids) % pad_to
        ids.extend([pad_id] * filler)
        positions.extend([0] * filler)
    branch_of, offset_of = _token_places(lengths)
    return TreeBatch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        layout=TreeLayout(tuple(spans), len(ids)),
        predict_index=torch.tensor(predict),
        target_ids=torch.tensor(targets),
        branch_of=branch_of,
        offset_of=offset_of,
        last_index=torch.tensor(last),
        branch_id=torch.tensor(branch_id),
        lengths=torch.tensor(lengths),
    )


def padded_batch(trees: Sequence[Tree], pad_id: int) -> PaddedBatch:
    """The plain form: each branch behind its own copy of the prompt, right-padded to the longest.

    Raises: InputError for no tree.
    """
    if not trees:
        raise InputError("padded_batch: found no tree; expected at least one")
    rows = [(tree.prompt, branch) for tree in trees for branch in tree.branches]
    width = max(len(prompt) + len(branch) for prompt, branch in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    predict: list[int] = []
    for row, (prompt, branch) in enumerate(rows):
        n = len(prompt) + len(branch)
        ids[row, :n] = torch.tensor(prompt + branch)
        mask[row, :n] = True
        positions[row, :n] = torch.arange(n)
        first = row * width + len(prompt) - 1
        predict.extend(range(first, first + len(branch)))
    lengths = [len(branch) for _, branch in rows]
    branch_of, offset_of = _token_places(lengths)
    return PaddedBatch(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        predict_index=torch.tensor(predict),
        target_ids=torch.tensor([token for _, branch in rows for token in branch]),
        branch_of=branch_of,
        offset_of=offset_of,
        last_index=torch.tensor([r * width + len(p) + len(b) - 1 for r, (p, b) in enumerate(rows)]),
        branch_id=torch.arange(len(rows)),
        lengths=torch.tensor(lengths),
    )


def _token_places(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    counts = torch.tensor(lengths)
    branch_of = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    offset_of = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts)[branch_of]
    return branch_of, offset_of


def to_rows(
    flat: Float[Tensor, " n"], batch: Batch, *, n_branches: int, max_len: int
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Per-token values of one batch as rows in the caller's branch numbering.

    Args:
        flat: one value a response token, in batch order.
        n_branches: rows B of the result, over all batches of the caller.    max_len: columns T.
    Returns: values [B, T], 0 where nothing is; response_mask [B, T], True where this batch has a token.
    """
    return rows_of([flat], [batch], n_branches=n_branches, max_len=max_len)


def rows_of(
    flats: Sequence[Float[Tensor, " n"]], batches: Sequence[Batch], *, n_branches: int, max_len: int
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Per-token values of several batches as rows in the caller's branch numbering; differentiable.

    Raises: InputError when a response is longer than `max_len` or a branch number lies beyond `n_branches`.
    """
    longest = max(int(batch.lengths.max()) for batch in batches)
    highest = max(int(batch.branch_id.max()) for batch in batches)
    if longest > max_len or highest >= n_branches:
        raise InputError(
            f"rows_of: found a response of {longest} tokens and branch number {highest}; expected at most {max_len} "
            f"tokens and numbers below {n_branches}"
        )
    flat = torch.cat(list(flats))
    row = torch.cat([batch.branch_id[batch.branch_of] for batch in batches])
    column = torch.cat([batch.offset_of for batch in batches])
    values = flat.new_zeros((n_branches, max_len)).index_put((row, column), flat)
    mask = torch.zeros((n_branches, max_len), dtype=torch.bool, device=flat.device)
    mask[row, column] = True
    return values, mask


def flat_of(rows: Tensor, batch: Batch) -> Tensor:
    """The entries of `rows` [B, T] (caller's numbering) that belong to the response tokens of `batch`, as [n]."""
    return rows[batch.branch_id[batch.branch_of], batch.offset_of]


def branch_sums(flat: Float[Tensor, " n"], batch: Batch) -> Float[Tensor, " B"]:
    """The sum over each branch of per-token values in batch order; branches in row order. Differentiable."""
    return flat.new_zeros(batch.lengths.shape[0]).index_add(0, batch.branch_of, flat)
