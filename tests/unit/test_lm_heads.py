"""Scalar heads: their distribution at the start, and their shape."""

from __future__ import annotations

import torch

from karat.lm.heads import ScalarHead


def test_weights_start_with_the_stated_spread_and_no_bias() -> None:
    head = ScalarHead(1023, 50, generator=torch.Generator().manual_seed(0))
    assert abs(float(head.weight.detach().std()) * 32 - 1) < 0.02  # 51,150 draws: five standard errors are 0.016
    assert not head.bias.any()


def test_the_same_generator_gives_the_same_head_and_none_gives_zero() -> None:
    first, second = (ScalarHead(8, 2, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert not ScalarHead(8, 2)(torch.ones(3, 8)).any()


def test_output_is_affine_in_the_heads_own_dtype() -> None:
    head = ScalarHead(4, 3, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = torch.einsum("btd,kd->btk", hidden.float(), head.weight) + head.bias
    torch.testing.assert_close(head(hidden), expected, rtol=0, atol=1e-6)
