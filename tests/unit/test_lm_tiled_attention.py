"""Attention of long rows in tiles: who sees whom, values and gradients against whole matrices, and what is left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tiny_models
from karat.lm import tiled_attention
from karat.lm.attention import tree_attention, tree_layout
from karat.lm.load import load_lm
from karat.lm.logprobs import hidden_at, hidden_states
from karat.lm.tiled_attention import MOST_WASTE, QUERIES, TiledTreeAttention, suits, tiles_of
from karat.lm.trees import Tree, TreeLayout, TreeSpan, pack_trees

LONG = TreeLayout((TreeSpan(0, 300, (150, 90, 20, 30)), TreeSpan(590, 20, (9, 8)), TreeSpan(627, 5, (140, 260))), 1040)
spans = st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), max_size=5))


def seen_by_definition(layout: TreeLayout) -> Tensor:
    """[L, L], True = the row's position sees the column's: its prompt, and its own branch up to itself."""
    seen = torch.zeros(layout.n_positions, layout.n_positions, dtype=torch.bool)
    for span in layout.spans:
        begin = behind = span.start + span.n_prompt
        for place in range(span.start, behind):
            seen[place, span.start : place + 1] = True
        for length in span.branch_lengths:
            for place in range(begin, begin + length):
                seen[place, span.start : behind] = True
                seen[place, begin : place + 1] = True
            begin += length
    return seen


def whole(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float) -> Tensor:
    """[1, L, H, D] by one matrix of scores a head."""
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scale
    scores = scores.masked_fill(~seen_by_definition(layout), -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)  # filler sees nothing
    return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2)


def states(n_heads: int, n_key_heads: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n_heads)
    shapes = [(1, n, LONG.n_positions, 16) for n in (n_heads, n_key_heads, n_key_heads)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def output_and_gradients(attend, drawn: list[Tensor], weights: Tensor) -> list[Tensor]:
    own = [one.clone().requires_grad_() for one in drawn]
    output = attend(*own)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), own)]


@settings(max_examples=60, deadline=None)
@given(st.lists(spans, min_size=1, max_size=3), st.integers(1, 3), st.sampled_from([2, 8, 128]))
def test_tiles_ask_once_for_every_position_and_see_what_the_definition_says(sizes, group, at_most):
    placed, start = [], 0
    for n_prompt, branches in sizes:
        placed.append(TreeSpan(start, n_prompt, tuple(branches)))
        start = placed[-1].stop
    layout = TreeLayout(tuple(placed), start + 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_attention, "QUERIES", at_most)
        patch.setattr(tiled_attention, "FREE_WASTE", 0)
        tiles_of.cache_clear()
        tiles = tiles_of(layout, group, torch.float64)
        tiles_of.cache_clear()
    assert [place for tile in tiles for place in range(tile.start, tile.stop)] == list(range(start))
    found = torch.zeros(layout.n_positions, layout.n_positions, dtype=torch.bool)
    for tile in tiles:
        assert tile.n_queries <= at_most
        keys = [*range(tile.first, tile.first + tile.n_first), *range(tile.own, tile.stop)]
        assert len(set(keys)) == len(keys) == tile.n_keys
        seen = torch.ones(tile.n_queries, tile.n_keys, dtype=torch.bool)
        seen[:, tile.n_keys - tile.mask.shape[1] :] = tile.mask == 0
        found[tile.start : tile.stop, keys] = seen
    assert torch.equal(found, seen_by_definition(layout))


def test_long_sequences_are_cut_into_tiles_of_one_size_and_short_branches_share_a_tile():
    tiles = tiles_of(TreeLayout((TreeSpan(0, 1000, (24, *[40] * 6)),), 1264), 2, torch.float32)
    assert [tile.n_queries for tile in tiles] == [QUERIES] * 8 + [120, 120]
    assert [tile.n_keys for tile in tiles] == [*range(QUERIES, 1025, QUERIES), 1120, 1120]
    longer = tiles_of(TreeLayout((TreeSpan(0, 1, (299,)),), 300), 2, torch.float32)
    assert [(tile.n_queries, tile.n_keys) for tile in longer] == [(QUERIES, 128), (QUERIES, 256), (44, 300)]
    apart = tiles_of(TreeLayout((TreeSpan(0, 4, (100, 60, 60)),), 224), 2, torch.float32)
    assert [tile.n_queries for tile in apart] == [104, 120]  # 120² scores instead of 2 · 60², within FREE_WASTE
    assert MOST_WASTE * 2 * 60 * 64 < 120 * 124


@pytest.mark.parametrize(("n_heads", "n_key_heads"), [(2, 2), (4, 2), (16, 1)])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_values_and_gradients_are_those_of_whole_matrices(n_heads, n_key_heads, dtype, most):
    drawn = states(n_heads, n_key_heads, dtype)
    weights = torch.randn(1, LONG.n_positions, n_heads, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)
    weights[:, LONG.spans[-1].stop :] = 0

    def tiled(*own: Tensor) -> Tensor:
        return TiledTreeAttention.apply(*own, LONG, 0.3, None)

    found = output_and_gradients(tiled, drawn, weights)
    wide = [one.double() for one in drawn]
    expected = output_and_gradients(lambda *own: whole(*own, LONG, 0.3), wide, weights.double())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=most)
    for one, again in zip(found, output_and_gradients(tiled, drawn, weights), strict=True):
        assert torch.equal(one, again)


def test_where_only_some_positions_are_read_the_rest_costs_nothing_and_changes_nothing():
    drawn, read = states(4, 2, torch.float64), torch.tensor([130, 299, 300, 460, 640])
    weights = torch.zeros(1, LONG.n_positions, 4, 16, dtype=torch.float64)
    weights[:, read] = torch.randn(len(read), 4, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    every, some = (
        output_and_gradients(lambda *own, r=rows: TiledTreeAttention.apply(*own, LONG, 0.3, r), drawn, weights)
        for rows in (None, read)
    )
    assert torch.equal(every[0][:, read], some[0][:, read])
    assert not some[0][:, :100].any()
    for one, other in zip(every[1:], some[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_the_route_is_taken_by_long_float32_rows_where_onednn_is_fast_and_no_window_cuts(monkeypatch):
    query, key = torch.zeros(1, 8, LONG.n_positions, 64), torch.zeros(1, 2, LONG.n_positions, 64)
    monkeypatch.setattr(tiled_attention, "onednn_is_faster", lambda: True)
    assert suits(query, key, LONG, None)
    assert suits(query, key, LONG, 450)
    assert not suits(query, key, LONG, 449)
    assert not suits(query.double(), key.double(), LONG, None)
    assert not suits(query[..., :8], key[..., :8], LONG, None)  # products too small to be worth a call
    monkeypatch.setattr(tiled_attention, "onednn_is_faster", lambda: False)
    assert not suits(query, key, LONG, None)


def test_a_row_with_one_long_piece_goes_through_tiles(monkeypatch):
    calls = []
    monkeypatch.setattr("karat.lm.tiled_attention.suits", lambda *_: True)
    plain = tiled_attention._probs
    monkeypatch.setattr("karat.lm.tiled_attention._probs", lambda *given: calls.append(given) or plain(*given))
    drawn = states(4, 2, torch.float32)
    with tree_layout(LONG):
        found, _ = tree_attention(nn.Identity(), *drawn, None, scaling=0.3)
    assert len(calls) == 2 * len(tiles_of(LONG, 2, torch.float32))
    torch.testing.assert_close(found.double(), whole(*(one.double() for one in drawn), LONG, 0.3), rtol=0, atol=1e-5)


def test_a_last_block_computed_alone_attends_only_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("karat.lm.dense_attention.MOST_KEYS", 0)
    monkeypatch.setattr("karat.lm.tiled_attention.suits", lambda *_: True)
    monkeypatch.setattr("karat.lm.tiled_attention.QUERIES", 4)
    tiles_of.cache_clear()
    lm = load_lm(
        tiny_models.tiny_checkpoint("qwen3", tmp_path, dtype=torch.float64), dtype=torch.float64, for_training=True
    )
    rows = []
    plain = tiled_attention._probs
    monkeypatch.setattr(tiled_attention, "_probs", lambda *given: rows.append(len(given[0])) or plain(*given))
    (batch,) = pack_trees([Tree(tuple(range(5, 45)), ((50, 51, 52), (53, 54)))], token_budget=100)

    def read(hidden: Tensor) -> tuple[list[Tensor], int]:
        n_rows = sum(rows)
        lm.model.zero_grad()
        hidden.square().sum().backward()
        grads = [p.grad.clone() for p in lm.model.parameters() if p.grad is not None]
        rows.clear()
        return [hidden.detach(), *grads], n_rows

    every, n_every = read(hidden_states(lm.model, batch)[batch.last_index])
    some, n_some = read(hidden_at(lm.model, batch, batch.last_index))
    assert n_some < 0.7 * n_every  # of two blocks one, but for two tiles
    for one, other in zip(every, some, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    tiles_of.cache_clear()
