"""Token losses: sums with counts, one denominator for a minibatch however it is cut."""

from __future__ import annotations

import pytest
import torch

from karat.errors import MaskError
from karat.lm.losses import mean_nll, n_tokens_of, token_nll


def test_masked_tokens_add_neither_loss_nor_count_nor_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-4.0, torch.nan]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    loss = token_nll(logprobs, mask)
    loss.total.backward()
    assert (float(loss.total.detach()), loss.n_tokens) == (5.0, 2)
    assert logprobs.grad.tolist() == [[-1.0, 0.0], [-1.0, 0.0]]


def test_micro_batches_add_up_to_the_minibatch() -> None:
    flat = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [token_nll(flat[:1]), token_nll(flat[1:4]), token_nll(flat[4:])]
    assert n_tokens_of(parts) == 10
    assert mean_nll(parts) == pytest.approx(mean_nll([token_nll(flat)]), abs=1e-12)
    assert mean_nll(parts) == pytest.approx(-float(flat.mean()), abs=1e-12)


def test_a_loss_over_nothing_is_refused() -> None:
    with pytest.raises(MaskError, match=r"found no token that counts in shape \(3,\)"):
        token_nll(torch.zeros(3), torch.zeros(3, dtype=torch.bool))
