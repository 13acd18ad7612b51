"""Attention over trees of long texts between two products, tile by tile, as flash attention does it.

Norms, angles and softmax are compiled passes (`native`). One tile of scores exists at a time; for the gradient heads and
probabilities are made again from the projections. Knows queries, keys and tiles; knows nothing about models, tokens or losses.

Dimension letters: L flat positions, R rows of a buffer (L and what tiles read beyond), H query heads, K key heads, G = H/K,
D head size; of a tile: q queries, k keys.

Source: Dao et al. 2022, arXiv:2205.14135, the probabilities that are made again; whole rows of scores instead of a running sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.lm.fused_attention import Frame, turned_back, turned_heads
from karat.lm.kernels import matmul
from karat.lm.native import address
from karat.lm.row_tiles import QUERIES, RowTile, RowTiles, read_by


def attend_tiles(
    frame: Frame,
    tiles: RowTiles,
    qkv: Float[Tensor, "L (H+2K)*D"],
    norms: Sequence[Tensor | None],
    read: Int[Tensor, " n"] | None,
) -> tuple[Float[Tensor, "L H*D"], list[Tensor]]:
    """What attention gives each position, and what its gradient needs beside qkv.

    Args: read: ascending positions at which the output is used; elsewhere it means nothing. None = everywhere.
    """
    H, K, D = frame.sizes.heads, frame.sizes.key_heads, frame.sizes.size
    turned, scales = turned_heads(frame, qkv, norms)
    q, k, v = _by_key_head(frame, tiles, turned, qkv)
    del turned
    output, asked = qkv.new_zeros(len(qkv), K, H // K * D), read_by(tiles.tiles, read)
    for head in range(K):
        for tile in asked:
            probs = _probs(frame, _rows_of(q[head], tile, D), _seen(k[head], tile), tile)
            found = matmul(probs, _seen(v[head], tile)).view(QUERIES, -1)
            output[tile.start : tile.stop, head] = found[: tile.stop - tile.start]
    return output.view(len(qkv), H * D), scales


def attend_tiles_back(
    frame: Frame,
    tiles: RowTiles,
    grad: Float[Tensor, "L H*D"],
    qkv: Float[Tensor, "L (H+2K)*D"],
    norms: Sequence[Tensor | None],
    read: Int[Tensor, " n"] | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of what `attend_tiles` was given: of [queries, keys, values], and of the norms' weights."""
    H, K, D = frame.sizes.heads, frame.sizes.key_heads, frame.sizes.size
    turned, scales = turned_heads(frame, qkv, norms)
    q, k, v = _by_key_head(frame, tiles, turned, qkv)
    del turned
    given = _with_filler(grad.view(len(grad), K, -1).transpose(0, 1), tiles.n_rows)
    of_queries, asked = qkv.new_zeros(len(qkv), K, H // K * D), read_by(tiles.tiles, read)
    # as [D, R]: queries and gradients are less to turn round than scores
    of_keys, of_values = (frame.cosine.new_zeros(K, D, tiles.n_rows) for _ in range(2))
    for head in range(K):
        for tile in asked:
            own, seen, grad_output = _rows_of(q[head], tile, D), _seen(k[head], tile), _rows_of(given[head], tile, D)
            probs = _probs(frame, own, seen, tile)
            _add(of_values[head], matmul(grad_output.t().contiguous(), probs), tile)
            scores = matmul(grad_output, _seen(v[head], tile).t())
            frame.call.attend_backward(address(probs), address(scores), len(scores), tile.n_keys, frame.sizes.scale)
            _add(of_keys[head], matmul(own.t().contiguous(), scores), tile)
            found = matmul(scores, seen).view(QUERIES, -1)
            of_queries[tile.start : tile.stop, head] = found[: tile.stop - tile.start]
    del q, k, v, given
    by_row = (of[:, :, : len(qkv)].permute(2, 0, 1).contiguous() for of in (of_keys, of_values))
    places = torch.arange(len(qkv) * H)
    return turned_back(frame, qkv, norms, scales, (of_queries, places), *by_row)


def _by_key_head(
    frame: Frame, tiles: RowTiles, turned: Sequence[Tensor], qkv: Tensor
) -> tuple[Float[Tensor, "K R G*D"], Float[Tensor, "K R D"], Float[Tensor, "K R D"]]:
    """Queries, keys and values by the key head that they share."""
    n, K = len(qkv), frame.sizes.key_heads
    values = qkv[:, (frame.sizes.heads + K) * frame.sizes.size :]
    return tuple(_with_filler(one.view(n, K, -1).transpose(0, 1), tiles.n_rows) for one in (*turned, values))


def _with_filler(states: Float[Tensor, "K L w"], n_rows: int) -> Float[Tensor, "K R w"]:
    found = states.new_empty(len(states), n_rows, states.shape[2])
    found[:, : states.shape[1]] = states
    found[:, states.shape[1] :] = 0
    return found


def _rows_of(states: Float[Tensor, "R G*D"], tile: RowTile, size: int) -> Float[Tensor, "q*G D"]:
    return states[tile.start : tile.start + QUERIES].view(-1, size)


def _seen(states: Float[Tensor, "R D"], tile: RowTile) -> Float[Tensor, "k D"]:
    own = states[tile.own : tile.own + tile.n_own]
    return torch.cat([states[tile.first : tile.first + tile.n_first], own]) if tile.n_first else own


def _probs(
    frame: Frame, q: Float[Tensor, "q*G D"], keys: Float[Tensor, "k D"], tile: RowTile
) -> Float[Tensor, "q*G k"]:
    scores = matmul(q, keys.t())
    group = len(q) // QUERIES
    frame.call.attend_tile(address(scores), QUERIES, group, tile.n_keys, address(tile.seen), frame.sizes.scale)
    return scores


def _add(total: Float[Tensor, "D R"], part: Float[Tensor, "D k"], tile: RowTile) -> None:
    total[:, tile.first : tile.first + tile.n_first] += part[:, : tile.n_first]
    total[:, tile.own : tile.own + tile.n_own] += part[:, tile.n_first :]
