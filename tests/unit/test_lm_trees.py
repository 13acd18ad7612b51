"""Trees: packing, indices, and attention over flat rows against loops written from the definition."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from karat.errors import InputError, InvariantError
from karat.lm.attention import tree_attention, tree_layout
from karat.lm.dense_attention import FREE_WASTE, MOST_WASTE, grouped, pieces_of, plan_of
from karat.lm.tiled_attention import tiles_of
from karat.lm.trees import Tree, TreeBatch, cut_trees, flat_of, pack_trees, padded_batch, rows_of, to_rows
from reference.tree_attention import tree_attention_by_loops

TREES = [
    Tree((1, 2, 3), ((4, 5), (6,))),
    Tree((7,), ((8,),)),
    Tree((9, 10), ((11, 12, 13), (14,), (15, 16))),
]
token_lists = st.lists(st.integers(1, 50), min_size=1, max_size=6).map(tuple)
tree_lists = st.lists(
    st.builds(Tree, token_lists, st.lists(token_lists, min_size=1, max_size=4).map(tuple)), min_size=1, max_size=6
)


def test_tree_without_prompt_or_with_empty_branch_is_refused() -> None:
    with pytest.raises(InputError, match="the prompt has no token"):
        Tree((), ((1,),))
    with pytest.raises(InputError, match="found no branch"):
        Tree((1,), ())
    with pytest.raises(InputError, match="an empty branch at 1"):
        Tree((1,), ((2,), ()))


@given(tree_lists, st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_cutting_keeps_every_branch_behind_its_prompt_and_within_the_budget(trees: list[Tree], budget: int) -> None:
    pieces = cut_trees(trees, budget)
    whole, cut = ([(tree.prompt, branch) for tree in some for branch in tree.branches] for some in (trees, pieces))
    assert cut == whole
    assert all(piece.n_tokens <= budget or len(piece.branches) == 1 for piece in pieces)
    assert [piece for piece in pieces if piece in trees] == pieces or len(pieces) > len(trees)


def test_cutting_leaves_alone_what_fits_and_fills_each_piece() -> None:
    assert cut_trees(TREES, 8) == TREES
    first, last = Tree((9, 10), ((11, 12, 13), (14,))), Tree((9, 10), ((15, 16),))
    assert cut_trees(TREES, 6) == [*TREES[:2], first, last]


def test_packing_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="found 0 trees, budget 8"):
        pack_trees([], token_budget=8)
    with pytest.raises(InputError, match="found 1 trees, budget 0"):
        pack_trees(TREES[:1], token_budget=0)
    with pytest.raises(InputError, match="found no tree"):
        padded_batch([], 0)


def test_one_row_has_the_indices_written_out_by_hand() -> None:
    (batch,) = pack_trees([Tree((1, 2, 3), ((4, 5), (6,)))], token_budget=6)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.predict_index.tolist() == [2, 3, 2]
    assert batch.target_ids.tolist() == [4, 5, 6]
    assert batch.branch_of.tolist() == [0, 0, 1]
    assert batch.offset_of.tolist() == [0, 1, 0]
    assert batch.last_index.tolist() == [4, 5]
    assert batch.lengths.tolist() == [2, 1]


def test_filler_reaches_a_multiple_and_changes_no_index() -> None:
    (plain,) = pack_trees(TREES[:1], token_budget=6)
    (filled,) = pack_trees(TREES[:1], token_budget=6, pad_to=8, pad_id=99)
    assert filled.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 99, 99]]
    assert filled.predict_index.tolist() == plain.predict_index.tolist()


def test_a_tree_beyond_the_budget_gets_its_own_row() -> None:
    rows = pack_trees(TREES, token_budget=7)
    assert [row.n_tokens for row in rows] == [8, 6, 2]
    assert [row.branch_id.tolist() for row in rows] == [[3, 4, 5], [0, 1], [2]]


@settings(max_examples=30, deadline=None)
@given(tree_lists, st.integers(1, 40))
def test_every_response_token_occurs_once_whatever_the_packing(trees: list[Tree], budget: int) -> None:
    branches = [branch for tree in trees for branch in tree.branches]
    longest = max(map(len, branches))
    expected = torch.zeros(len(branches), longest)
    for row, branch in enumerate(branches):
        expected[row, : len(branch)] = torch.tensor(branch)
    for batches in (pack_trees(trees, token_budget=budget), [padded_batch(trees, 0)]):
        flats = [batch.target_ids.float() for batch in batches]
        rows, mask = rows_of(flats, batches, n_branches=len(branches), max_len=longest)
        assert torch.equal(rows, expected)
        assert torch.equal(mask, expected > 0)
        for batch, flat in zip(batches, flats, strict=True):
            assert torch.equal(flat_of(rows, batch), flat)
            flat_ids = batch.input_ids.flatten()
            last = [branches[i][-1] for i in batch.branch_id.tolist()]
            assert flat_ids[batch.last_index].tolist() == last
            fits = batch.n_tokens <= budget or len(batch.layout.spans) == 1 if isinstance(batch, TreeBatch) else True
            assert fits


def test_rows_refuse_a_response_that_does_not_fit() -> None:
    batch = padded_batch(TREES, 0)
    with pytest.raises(InputError, match="a response of 3 tokens and branch number 5"):
        to_rows(batch.target_ids.float(), batch, n_branches=6, max_len=2)


def test_rows_pass_gradients_through() -> None:
    batch = pack_trees(TREES, token_budget=100)[0]
    flat = torch.randn(len(batch.target_ids), requires_grad=True)
    rows, mask = to_rows(flat, batch, n_branches=6, max_len=4)
    (rows * 3).sum().backward()
    assert torch.equal(flat.grad, torch.full_like(flat, 3.0))
    assert int(mask.sum()) == flat.numel()


@pytest.fixture(params=["short pieces", "long pieces", "small groups", "tiles", "small tiles"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batched products for short pieces, the same with hardly anything a group, the kernel for long ones, and tiles."""
    if request.param in ("long pieces", "tiles", "small tiles"):
        monkeypatch.setattr("karat.lm.dense_attention.MOST_KEYS", 0)
    if request.param == "small groups":
        monkeypatch.setattr("karat.lm.dense_attention.MOST_SCORES", 40)
        monkeypatch.setattr("karat.lm.dense_attention.FREE_WASTE", 0)
    if "tiles" in request.param:
        monkeypatch.setattr("karat.lm.tiled_attention.suits", lambda *given: given[-1] is None)
    if request.param == "small tiles":
        monkeypatch.setattr("karat.lm.tiled_attention.QUERIES", 2)
        monkeypatch.setattr("karat.lm.tiled_attention.FREE_WASTE", 0)
    for kept in (pieces_of, plan_of, tiles_of):
        kept.cache_clear()
    yield
    tiles_of.cache_clear()


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 0.7), (2, 0.7)])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_attention_of_a_row_equals_the_loops(window: int | None, softcap: float | None, heads: tuple[int, int]) -> None:
    (batch,) = pack_trees(TREES, token_budget=100, pad_to=20)
    generator = torch.Generator().manual_seed(1)
    n = batch.n_tokens
    query = torch.randn(1, heads[0], n, 4, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 1, heads[1], n, 4, generator=generator, dtype=torch.float64)
    with tree_layout(batch.layout):
        options = {"scaling": 0.6, "sliding_window": window, "softcap": softcap, "dropout": 0.0}
        found, weights = tree_attention(nn.Identity(), query, key, value, None, **options)
    shape = [(span.n_prompt, list(span.branch_lengths)) for span in batch.layout.spans]
    used = batch.layout.spans[-1].stop
    expected = tree_attention_by_loops(
        query[0, :, :used], key[0, :, :used], value[0, :, :used], shape, 0.6, window, softcap
    )
    assert weights is None
    torch.testing.assert_close(found[0, :used], expected, rtol=0, atol=1e-12)
    assert not found[0, used:].any()


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("window", [None, 3])
def test_attention_gradients_are_those_of_finite_differences(window: int | None) -> None:
    (batch,) = pack_trees([TREES[0], TREES[2]], token_budget=100, pad_to=16)
    generator = torch.Generator().manual_seed(2)
    tensors = [
        torch.randn(1, h, batch.n_tokens, 2, generator=generator, dtype=torch.float64, requires_grad=True)
        for h in (2, 1, 1)
    ]

    def output(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with tree_layout(batch.layout):
            return tree_attention(nn.Identity(), query, key, value, None, scaling=0.5, sliding_window=window)[0]

    assert torch.autograd.gradcheck(output, tensors, fast_mode=True)


@pytest.mark.parametrize("longest", [20, 30])
def test_groups_hold_every_piece_once_and_pad_little(longest: int) -> None:
    rng = random.Random(longest)
    trees = [
        Tree((1,) * rng.randint(1, longest), tuple((2,) * rng.randint(1, longest) for _ in range(rng.randint(1, 4))))
        for _ in range(40)
    ]
    (batch,) = pack_trees(trees, token_budget=10_000)
    groups = grouped(pieces_of(batch.layout), 2)
    assert sorted(piece.start for group in groups for piece in group) == [p.start for p in pieces_of(batch.layout)]
    for group in groups:
        largest = max(p.n_queries for p in group) * max(p.n_keys for p in group) * len(group)
        assert largest <= MOST_WASTE * sum(p.n_queries * p.n_keys for p in group) + FREE_WASTE
    assert len(groups) < len(pieces_of(batch.layout)) / 4


def test_a_window_that_hides_whole_blocks_of_keys_stays_finite() -> None:
    (batch,) = pack_trees([Tree((1,) * 1300, ((2,) * 3, (3,) * 4))], token_budget=2000)
    query, key, value = torch.randn(3, 1, 1, batch.n_tokens, 4, generator=torch.Generator().manual_seed(3))
    with tree_layout(batch.layout):
        found, _ = tree_attention(nn.Identity(), query, key, value, None, sliding_window=1)
    own = value[0].transpose(0, 1)  # with a window of one, every token sees itself alone
    torch.testing.assert_close(found[0], own, rtol=0, atol=1e-6)


def test_attention_refuses_what_it_would_have_to_ignore() -> None:
    (batch,) = pack_trees(TREES, token_budget=100)
    query = torch.zeros(1, 2, batch.n_tokens, 4)
    with tree_layout(batch.layout):
        with pytest.raises(InvariantError, match="the model passes 's_aux'"):
            tree_attention(nn.Identity(), query, query, query, None, s_aux=torch.zeros(2))
        with pytest.raises(InvariantError, match=r"found dropout 0.1; expected 0"):
            tree_attention(nn.Identity(), query, query, query, None, dropout=0.1)
        with pytest.raises(InvariantError, match=r"found queries \(1, 2, 3, 4\)"):
            tree_attention(nn.Identity(), query[:, :, :3], query, query, None)
