"""A decoder block as one operation: matrix products, and between them one pass over memory each.

A block of Llama's kind is some hundred operations of PyTorch with its gradient, each of which reads and writes all numbers
and takes a few microseconds of Python and of starting threads. Here what lies between two products is one call of a compiled
function (`native`), which also rounds. Low-rank updates are added behind the products. Knows tensors and layouts; knows
nothing about modules, or of what is learnt.

Dimension letters: L flat positions, n of them that are read, d hidden size, H query heads, K key heads, D head size, m MLP
size, r rank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.lm.fused_attention import Frame, Sizes, attend, attend_back
from karat.lm.kernels import matmul
from karat.lm.low_rank import NO_UPDATES, SharedInput, TrainedLowRank
from karat.lm.narrow import stacked
from karat.lm.native import address, library
from karat.lm.trees import TreeLayout

N_WEIGHTS = 11
"""Of a block; behind them come the two narrow weights of each of its seven updates."""


def fused(
    x: Float[Tensor, "1 L d"],
    angles: tuple[Tensor, Tensor],
    known: tuple[TreeLayout, torch.dtype, Sizes],
    weights: tuple[Tensor | None, ...],
    updates: Sequence[TrainedLowRank | None] = NO_UPDATES,
    rows: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "1 L d"]:
    """A block's output by the fused way.

    Args:
        angles: cosines and sines [1, L, D].    known: layout, dtype of the products, sizes of the block.
        weights: norm before attention, queries, keys, values, output, norm before the MLP, gate, up, down, norms of
            queries and keys (or None).    updates: of the seven that multiply, in that order.
        rows: at which the output is read, ascending; None = everywhere.
    """
    layout, products, sizes = known
    call = library(products)
    assert call is not None
    turns = (angle.detach().reshape(-1, sizes.size).contiguous() for angle in angles)
    frame = Frame(call, layout, sizes, products, *turns)
    scales = tuple(0.0 if one is None else one.scale for one in updates)
    narrow = [part for one in updates for part in ((None, None) if one is None else (one.down, one.up))]
    return _Block.apply(x.contiguous(), rows, frame, scales, *weights, *narrow)


class _Block(torch.autograd.Function):
    """x + attention(norm(x)), then + MLP(norm(·))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "1 L d"],
        rows: Int[Tensor, " n"] | None,
        frame: Frame,
        scales: tuple[float, ...],
        *weights: Tensor,
    ) -> Float[Tensor, "1 L d"]:
        """Args: rows: at which the output is read; None = all.    weights: as `fused` orders them, then those of updates."""
        norm, wq, wk, wv, wo, norm_mlp, gate, up, down, norm_q, norm_k = weights[:N_WEIGHTS]
        call, products, eps = frame.call, frame.products, frame.sizes.eps
        n_positions, d = x.shape[1:]
        of_heads, of_output, of_gates, of_last = _updates(frame, d, len(gate), weights[N_WEIGHTS:], scales)
        normed, scale = x.new_empty(n_positions, d, dtype=products), x.new_empty(n_positions)
        _norm(call, x, None, None, norm, eps[0], None, normed, scale)
        of_qkv = stacked((wq, wk, wv), products)
        qkv = matmul(normed, of_qkv.t())
        low_qkv = of_heads.add_to(qkv, normed)
        attended, kept = attend(frame, qkv, (norm_q, norm_k), rows)
        if rows is not None:
            attended = attended.index_select(0, rows)
        of_o, of_both, of_down = (stacked(own, products) for own in ((wo,), (gate, up), (down,)))
        n, m, change = len(attended), len(gate), matmul(attended, of_o.t())
        low_o = of_output.add_to(change, attended)
        between, normed_mlp, scale_mlp = x.new_empty(n, d), normed.new_empty(n, d), x.new_empty(n)
        _norm(call, x, change, rows, norm_mlp, eps[3], between, normed_mlp, scale_mlp)
        both = matmul(normed_mlp, of_both.t())
        low_both = of_gates.add_to(both, normed_mlp)
        gated = both.new_empty(n, m)
        call.gate_forward(address(both), address(both, m), 2 * m, n, m, address(gated))
        output, change = torch.empty_like(x) if rows is None else torch.zeros_like(x), matmul(gated, of_down.t())
        low_down = of_last.add_to(change, gated)
        call.add_rows(address(between), address(change), address(rows), n, d, address(output))
        ctx.save_for_backward(
            x, rows, norm, norm_mlp, norm_q, norm_k, of_qkv, qkv, attended, of_o, between, of_both, both, of_down,
            low_qkv, low_o, low_both, low_down, *weights[N_WEIGHTS:], *kept,
        )  # fmt: skip
        ctx.frame, ctx.scales = frame, scales
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the weights; what was gated is made again in the place of its gradient."""
        (
            x, rows, norm, norm_mlp, norm_q, norm_k, of_qkv, qkv, attended, of_o, between, of_both, both, of_down,
            low_qkv, low_o, low_both, low_down, *more,
        ) = ctx.saved_tensors  # fmt: skip
        narrow, kept = more[:14], more[14:]
        call, learns, eps = ctx.frame.call, ctx.needs_input_grad[4:], ctx.frame.sizes.eps
        grad, (n_positions, d), (n, m2) = grads[0].contiguous(), x.shape[1:], both.shape
        of_heads, of_output, of_gates, of_last = _updates(ctx.frame, d, m2 // 2, narrow, ctx.scales)
        # 1. the MLP
        narrow_grad = both.new_empty(n, d)
        call.narrow_rows(address(grad), address(rows), n, d, address(narrow_grad), d)
        of_gated, grad_both = matmul(narrow_grad, of_down), torch.empty_like(both)
        of_low_down = of_last.back(narrow_grad, of_gated)
        call.gate_backward(address(both), address(of_gated), n, m2 // 2, address(grad_both), address(of_gated))
        found: dict[str, Tensor | None] = {"down": _of_weight(narrow_grad, of_gated, learns[8])}
        updates_down = of_last.gradients(narrow_grad, of_gated, low_down, of_low_down)
        del of_gated
        normed_mlp, scale_mlp = _normed(call, between, norm_mlp, eps[3], both.dtype)
        of_both_weights = _of_weight(grad_both, normed_mlp, learns[6] or learns[7])
        of_between, narrow_between = torch.empty_like(between), both.new_empty(n, d)
        of_norm_mlp, of_normed = torch.empty_like(norm_mlp), matmul(grad_both, of_both)
        updates_both = of_gates.gradients(grad_both, normed_mlp, low_both, of_gates.back(grad_both, of_normed))
        call.norm_backward(
            address(between), address(scale_mlp), n, d, address(norm_mlp), address(of_normed), address(grad),
            address(rows), address(of_between), address(narrow_between), address(of_norm_mlp),
        )  # fmt: skip
        del grad_both, of_normed, normed_mlp
        # 2. attention
        found["o"] = _of_weight(narrow_between, attended, learns[4])
        of_attended = matmul(narrow_between, of_o)
        updates_o = of_output.gradients(
            narrow_between, attended, low_o, of_output.back(narrow_between, of_attended)
        )  # fmt: skip
        places = None
        if rows is not None:
            of_attended = both.new_zeros(n_positions, of_attended.shape[1]).index_copy_(0, rows, of_attended)
            places = torch.full((n_positions,), -1, dtype=torch.int64)
            places[rows] = torch.arange(n)
        grad_qkv, of_norms = attend_back(ctx.frame, of_attended, qkv, (norm_q, norm_k), (kept, rows))
        normed, scale = _normed(call, x, norm, eps[0], both.dtype)
        of_qkv_weights = _of_weight(grad_qkv, normed, any(learns[1:4]))
        # 3. what came in; of a lowest block with adapters nobody asks for it
        below = ctx.needs_input_grad[0] or learns[0]
        of_normed = matmul(grad_qkv, of_qkv) if below else None
        updates_qkv = of_heads.gradients(grad_qkv, normed, low_qkv, of_heads.back(grad_qkv, of_normed))
        of_x = of_norm = None
        if of_normed is not None:
            of_x, of_norm = torch.empty_like(x), torch.empty_like(norm)
            call.norm_backward(
                address(x), address(scale), n_positions, d, address(norm), address(of_normed), address(of_between),
                address(places), address(of_x), None, address(of_norm),
            )  # fmt: skip
        cut = (None,) * 3 if of_qkv_weights is None else of_qkv_weights.split(ctx.frame.sizes.widths)
        halves = (None,) * 2 if of_both_weights is None else of_both_weights.split(m2 // 2)
        return (
            of_x, None, None, None,
            of_norm, *(_wide(part) for part in cut), _wide(found["o"]), of_norm_mlp,
            *(_wide(part) for part in halves), _wide(found["down"]), *of_norms,
            *updates_qkv, *updates_o, *updates_both, *updates_down,
        )  # fmt: skip


def _updates(
    frame: Frame, d: int, m: int, narrow: Sequence[Tensor | None], scales: Sequence[float]
) -> tuple[SharedInput, SharedInput, SharedInput, SharedInput]:
    """Low-rank updates by what their layers read: normed x, what was attended, normed again, what was gated."""
    found, begin = [], 0
    for widths in (frame.sizes.widths, (d,), (m, m), (d,)):
        end = begin + len(widths)
        found.append(SharedInput(widths, narrow[2 * begin : 2 * end], scales[begin:end], frame.products))
        begin = end
    return tuple(found)


def _norm(
    call: ctypes.CDLL,
    x: Tensor,
    change: Tensor | None,
    rows: Tensor | None,
    weight: Tensor,
    eps: float,
    total: Tensor | None,
    *made: Tensor,
) -> None:
    """x (+ change) normed into made[0], its scales into made[1]."""
    n, d = made[0].shape
    call.norm_forward(
        address(x), address(change), address(rows), n, d, address(weight), eps, address(total), *map(address, made)
    )


def _normed(
    call: ctypes.CDLL, x: Float[Tensor, "*1 n d"], weight: Tensor, eps: float, products: torch.dtype
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """x normed once more for the gradient, and its scales: to keep them would take as much as x itself."""
    n, d = x.shape[-2:]
    made = x.new_empty(n, d, dtype=products), x.new_empty(n)
    _norm(call, x, None, None, weight, eps, None, *made)
    return made


def _of_weight(grad: Tensor, factor: Tensor, wanted: bool) -> Tensor | None:
    return matmul(grad.t(), factor) if wanted else None


def _wide(tensor: Tensor | None) -> Tensor | None:
    """The same in float32."""
    return None if tensor is None else tensor.to(torch.float32)
