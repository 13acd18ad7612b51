"""Tiles of a flat row: each position asks once, sees what the definition says, and numbers of keys are few."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from karat.lm import row_tiles
from karat.lm.row_tiles import QUERIES, RowTiles, n_keys, read_by
from karat.lm.trees import TreeLayout, TreeSpan

spans = st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=5))


def layout_of(sizes: list[tuple[int, list[int]]], filler: int = 0) -> TreeLayout:
    placed, start = [], 0
    for n_prompt, branches in sizes:
        placed.append(TreeSpan(start, n_prompt, tuple(branches)))
        start = placed[-1].stop
    return TreeLayout(tuple(placed), start + filler)


def seen_by_definition(layout: TreeLayout, window: int | None) -> Tensor:
    """[L, L], True = the row's position sees the column's, in loops."""
    seen = torch.zeros(layout.n_positions, layout.n_positions, dtype=torch.bool)
    for span in layout.spans:
        begin = span.start + span.n_prompt
        for length in (0, *span.branch_lengths):
            before = list(range(span.start, span.start + span.n_prompt))
            whole = before + list(range(begin, begin + length))
            for place, own in enumerate(whole):
                first = 0 if window is None else max(0, place + 1 - window)
                seen[own, whole[first : place + 1]] = True
            begin += length
    return seen


def seen_in(found: RowTiles, layout: TreeLayout) -> Tensor:
    seen = torch.zeros(layout.n_positions, found.n_rows, dtype=torch.bool)
    for tile in found.tiles:
        keys = [*range(tile.first, tile.first + tile.n_first), *range(tile.own, tile.own + tile.n_own)]
        assert len(set(keys)) == len(keys) == tile.n_keys
        for number, (a, b, c, d) in enumerate(tile.seen.tolist()):
            assert 0 <= a <= b
            assert 0 <= c <= d <= tile.n_keys
            assert b <= c or a == b or c == d
            if tile.start + number < tile.stop:
                seen[tile.start + number, keys[a:b] + keys[c:d]] = True
            else:
                assert (a, b, c, d) == (0, 0, 0, 0)
    return seen


@settings(max_examples=80, deadline=None)
@given(
    st.lists(spans, min_size=1, max_size=4),
    st.none() | st.integers(1, 50),
    st.sampled_from([2, 8, 128]),
    st.integers(0, 5),
)
@example([(40, [3, 30, 30, 2]), (5, [1, 9])], None, 4, 3)
@example([(40, [3, 30, 30, 2]), (5, [1, 9])], 33, 4, 0)
def test_each_position_asks_once_and_sees_what_the_definition_says(sizes, window, queries, filler):
    layout = layout_of(sizes, filler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_tiles, "QUERIES", queries)
        patch.setattr(row_tiles, "n_keys", lambda n: -(-n // queries) * queries)
        found = row_tiles.row_tiles.__wrapped__(layout, window)
        assert [place for tile in found.tiles for place in range(tile.start, tile.stop)] == list(
            range(layout.spans[-1].stop)
        )
        for tile in found.tiles:
            assert max(tile.start + queries, tile.own + tile.n_own) <= found.n_rows
        seen = seen_in(found, layout)
    assert torch.equal(seen[:, : layout.n_positions], seen_by_definition(layout, window))
    assert not seen[:, layout.n_positions :].any()


def test_a_prompt_far_before_its_branch_is_a_part_of_its_own():
    found = row_tiles.row_tiles(layout_of([(100, [300, 300, 28])]), None)
    assert [(tile.first, tile.n_first, tile.own) for tile in found.tiles][-2:] == [(0, 100, 400), (0, 100, 400)]
    assert {tile.n_first for tile in found.tiles[:4]} == {0}


def test_texts_of_any_length_ask_for_few_numbers_of_keys():
    numbers = {n_keys(n) for n in range(1, 4096)}
    assert len(numbers) == 24
    assert {n for n in numbers if n <= 1024} == set(range(QUERIES, 1025, QUERIES))
    assert all(n_keys(n) >= n for n in range(1, 4096))


def test_only_tiles_with_a_position_that_is_read_are_taken():
    found = row_tiles.row_tiles(layout_of([(1, [600])]), None)
    assert read_by(found.tiles, None) == list(found.tiles)
    assert [tile.start for tile in read_by(found.tiles, torch.tensor([127, 300, 383]))] == [0, 256]
