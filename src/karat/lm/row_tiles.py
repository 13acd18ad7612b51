"""A flat row cut into tiles of as many neighbouring positions each, whatever texts they belong to.

Texts are of any length, but all tiles ask alike many queries of one of few numbers of keys, so that products that are
compiled for every shape meet few of them. Knows layouts; knows nothing about queries, models or losses.

Dimension letters: L flat positions; of a tile: q queries, k keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from karat.lm.dense_attention import pieces_of
from karat.lm.shapes import FEW_PARTS, even_number
from karat.lm.trees import TreeLayout

QUERIES = 128
"""Of a tile; also what numbers of keys are multiples of."""


@dataclass(frozen=True, eq=False)
class RowTile:
    """Neighbouring queries and the keys that they see: some of a prompt that ends before, then neighbouring ones."""

    start: int
    """First flat position that asks."""
    stop: int
    """Flat position after the last; the queries behind it up to `start` + q are filler."""
    first: int
    """First flat position of the prompt's keys …"""
    n_first: int
    """… and how many of them; 0 = none."""
    own: int
    """First flat position of the other keys …"""
    n_own: int
    """… and how many of them; they may end behind the row."""
    seen: Int[Tensor, "q 4"]
    """Of the tile's keys a query sees [a, b) and [c, d), int32; all 0 for filler."""

    @property
    def n_keys(self) -> int:
        """Keys in all."""
        return self.n_first + self.n_own


@dataclass(frozen=True, eq=False)
class RowTiles:
    """The tiles of a layout."""

    tiles: tuple[RowTile, ...]
    """In the row's order, each position in one of them."""
    n_rows: int
    """Rows that a buffer must have so that no tile reads beyond it; those behind the row's positions must be finite."""


@lru_cache(maxsize=16)
def row_tiles(layout: TreeLayout, window: int | None) -> RowTiles:
    """The tiles of a layout; kept, as each layer of a model asks for the same."""
    ranges, tiles = _seen(layout, window), []
    for start in range(0, layout.spans[-1].stop, QUERIES):
        stop = min(start + QUERIES, layout.spans[-1].stop)
        lower, upper = ranges[start:stop, 0::2], ranges[start:stop, 1::2]
        own, first, n_first = int(lower[:, 1].min()), 0, 0
        # only the tree of the first query can have its prompt before all else that is seen
        before = (upper[:, 0] > lower[:, 0]) & (lower[:, 0] < own)
        if before.any():
            first, end = int(lower[before, 0].min()), int(upper[before, 0].max())
            if own - end < QUERIES:  # to leave them out would be a copy
                own = first
            else:
                n_first = end - first
        shift = np.where(before & (n_first > 0), first, own - n_first)
        seen = np.zeros((QUERIES, 4), dtype=np.int32)
        some = upper[:, 0] > lower[:, 0]
        seen[: stop - start, 0] = np.where(some, lower[:, 0] - shift, 0)
        seen[: stop - start, 1] = np.where(some, upper[:, 0] - shift, 0)
        seen[: stop - start, 2:] = np.stack([lower[:, 1], upper[:, 1]], 1) - own + n_first
        n_own = n_keys(n_first + stop - own) - n_first
        tiles.append(RowTile(start, stop, first, n_first, own, n_own, torch.from_numpy(seen)))
    most = max(max(tile.start + QUERIES, tile.own + tile.n_own) for tile in tiles)
    return RowTiles(tuple(tiles), max(most, layout.n_positions))


def n_keys(n: int) -> int:
    """How many keys a tile takes where n are wanted: the next multiple of QUERIES, and of those one of few."""
    return even_number(-(-n // QUERIES) * QUERIES, FEW_PARTS)


def read_by(tiles: tuple[RowTile, ...], read: Int[Tensor, " n"] | None) -> list[RowTile]:
    """The tiles in which a position is read, of ascending ones; None = all."""
    if read is None:
        return list(tiles)
    edges = torch.tensor([[tile.start, tile.stop] for tile in tiles])
    before = torch.searchsorted(read, edges)
    return [tile for tile, some in zip(tiles, (before[:, 1] > before[:, 0]).tolist(), strict=True) if some]


def _seen(layout: TreeLayout, window: int | None) -> np.ndarray:
    """[L, 4]: the flat positions that each sees, [a, b) of a prompt apart (a ≥ b: none) and [c, d) up to itself."""
    ranges = np.zeros((layout.n_positions, 4), dtype=np.int64)
    for piece in pieces_of(layout):
        rows = slice(piece.start, piece.stop)
        ranges[rows, 0] = piece.prompt_start
        ranges[rows, 1] = piece.prompt_start + piece.n_prompt
        ranges[rows, 2] = piece.start
        ranges[rows, 3] = np.arange(piece.start, piece.stop) + 1
    if window is not None:  # the last so many of both together
        too_many = np.maximum((ranges[:, 1::2] - ranges[:, 0::2]).sum(1) - window, 0)
        of_prompt = np.minimum(too_many, ranges[:, 1] - ranges[:, 0])
        ranges[:, 0] += of_prompt
        ranges[:, 2] += too_many - of_prompt
    return ranges
