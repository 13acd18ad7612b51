"""The compiled attention over trees against a loop over positions in float64."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from karat.lm import native
from karat.lm.dense_attention import pieces_of
from karat.lm.fused_attention import Frame, Sizes, attend, attend_back
from karat.lm.trees import TreeLayout, TreeSpan

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(native.library(torch.float32) is None, reason="no C compiler")


def layout_of(*trees: tuple[int, tuple[int, ...]], filler: int = 0) -> TreeLayout:
    spans, start = [], 0
    for n_prompt, branches in trees:
        spans.append(TreeSpan(start, n_prompt, branches))
        start = spans[-1].stop
    return TreeLayout(tuple(spans), start + filler)


def framed(layout: TreeLayout, heads: int, key_heads: int, size: int, window: int | None, dtype: torch.dtype) -> Frame:
    """Angles of 0: heads are attended as they are given."""
    ones, zeros = torch.ones(layout.n_positions, size), torch.zeros(layout.n_positions, size)
    sizes = Sizes(heads, key_heads, size, 1 / math.sqrt(size), (1e-6,) * 4, window)
    call = native.library(dtype)
    assert call is not None
    return Frame(call, layout, sizes, dtype, ones, zeros)


def slowly(qkv: Tensor, frame: Frame) -> Tensor:
    """Position by position: softmax over what it sees, the last `window` of it."""
    sizes = frame.sizes
    H, K, D = sizes.heads, sizes.key_heads, sizes.size
    q, k, v = qkv.split(sizes.widths, dim=1)
    outputs = torch.zeros(len(qkv), H * D, dtype=qkv.dtype)
    for piece in pieces_of(frame.layout):
        for i in range(piece.start, piece.stop):
            seen = [*range(piece.prompt_start, piece.prompt_start + piece.n_prompt), *range(piece.start, i + 1)]
            seen = seen[-sizes.window :] if sizes.window else seen
            for h in range(H):
                own, at = q[i, h * D : (h + 1) * D], h // (H // K) * D
                share = torch.softmax(k[seen, at : at + D] @ own * sizes.scale, 0)
                outputs[i, h * D : (h + 1) * D] = share @ v[seen, at : at + D]
    return outputs


ROWS = {
    "one position": layout_of((1, (0,))),
    "branches": layout_of((7, (5, 1, 12)), (1, (3,)), (20, (2, 2, 2, 2))),
    "filler": layout_of((4, (9,)), (3, (1, 6)), filler=5),
    "long": layout_of((70, (40, 33)), (2, (61,))),
}
SHAPES = [(1, 1, 2), (4, 2, 8), (3, 1, 20), (14, 2, 64), (31, 1, 16), (6, 6, 33)]


@pytest.mark.parametrize("window", [None, 1, 6, 50])
@pytest.mark.parametrize("row", ROWS)
def test_values_and_gradients_are_those_of_a_slow_loop(row, window):
    layout, generator = ROWS[row], torch.Generator().manual_seed(len(row))
    for heads, key_heads, size in SHAPES if row != "long" else SHAPES[1::2]:
        frame = framed(layout, heads, key_heads, size, window, torch.float32)
        if size % 2:  # angles come in pairs, and a head turns whole
            continue
        qkv = 2 * torch.randn(layout.n_positions, sum(frame.sizes.widths), generator=generator)
        grad = torch.randn(layout.n_positions, heads * size, generator=generator)
        exact = qkv.double().requires_grad_()
        expected = slowly(exact, frame)
        (wanted,) = torch.autograd.grad(expected, exact, grad.double())
        found, kept = attend(frame, qkv, (None, None), None)
        of_qkv, _ = attend_back(frame, grad, qkv, (None, None), (kept, None))
        assert (found - expected).abs().max() < 1e-5
        assert (of_qkv - wanted).abs().max() < 2e-5 * max(1, wanted.abs().max())
        assert not found[layout.spans[-1].stop :].any()


def test_what_is_not_read_neither_counts_nor_is_computed():
    layout, generator = ROWS["long"], torch.Generator().manual_seed(3)
    frame = framed(layout, 4, 2, 8, None, torch.float32)
    qkv = torch.randn(layout.n_positions, sum(frame.sizes.widths), generator=generator)
    read = torch.tensor(sorted(random.Random(0).sample(range(150, layout.n_positions), 3)))
    whole, _ = attend(frame, qkv, (None, None), None)
    found, kept = attend(frame, qkv, (None, None), read)
    assert torch.equal(found[read], whole[read])
    assert not found[:120].any()  # nothing near is read
    grad = torch.zeros_like(whole)
    grad[read] = torch.randn(len(read), 32, generator=generator)
    exact = qkv.double().requires_grad_()
    (wanted,) = torch.autograd.grad(slowly(exact, frame), exact, grad.double())
    of_qkv, _ = attend_back(frame, grad, qkv, (None, None), (kept, read))
    assert (of_qkv - wanted).abs().max() < 1e-5


def test_in_bfloat16_only_what_enters_and_leaves_is_rounded():
    layout, generator = ROWS["branches"], torch.Generator().manual_seed(4)
    frame = framed(layout, 4, 2, 64, None, BF16)
    qkv = torch.randn(layout.n_positions, sum(frame.sizes.widths), generator=generator).to(BF16)
    grad = torch.randn(layout.n_positions, 256, generator=generator).to(BF16)
    exact = qkv.double().requires_grad_()
    expected = slowly(exact, frame)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    found, kept = attend(frame, qkv, (None, None), None)
    of_qkv, _ = attend_back(frame, grad, qkv, (None, None), (kept, None))
    for own, truth in ((found, expected), (of_qkv, wanted)):
        # half a unit in the last of eight places, and float32's own rounding where that decides
        assert ((own.double() - truth).abs() <= truth.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("key_heads", [2, 1])
@pytest.mark.parametrize("trees", [[(60 + i, (40, 30 + i)) for i in range(5)], [(700, (100, 61))]])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_any_number_of_threads_gives_the_same_bits(dtype, trees, key_heads):
    layout, generator = layout_of(*trees), torch.Generator().manual_seed(5)
    frame = framed(layout, 4, key_heads, 64, 90, dtype)
    qkv = torch.randn(layout.n_positions, sum(frame.sizes.widths), generator=generator).to(dtype)
    grad = torch.randn(layout.n_positions, 256, generator=generator).to(dtype)
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 3, 5):  # several share the one long tree
            torch.set_num_threads(n_threads)
            output, kept = attend(frame, qkv, (None, None), None)
            found.append((output, attend_back(frame, grad, qkv, (None, None), (kept, None))[0]))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_scores_of_any_size_leave_no_infinity():
    layout = ROWS["branches"]
    frame = framed(layout, 4, 2, 8, None, torch.float32)
    qkv = 200 * torch.randn(layout.n_positions, sum(frame.sizes.widths), generator=torch.Generator().manual_seed(6))
    found, kept = attend(frame, qkv, (None, None), None)
    of_qkv, _ = attend_back(frame, found, qkv, (None, None), (kept, None))
    assert (found - slowly(qkv.double(), frame)).abs().max() < 1e-2  # of 600: scores of 1e5 have an error of .01
    assert of_qkv.isfinite().all()
