"""KL estimators: exact on a small distribution, masked, and the gradients that decide which is reward and which loss."""

import math

import pytest
import torch

from karat.errors import InputError, MaskError
from karat.policy.kl import k1, k2, k3, kl_summary, sequence_kl

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
EXACT = sum(p * math.log(p / q) for p, q in zip(P.tolist(), Q.tolist(), strict=True))


def test_k1_and_k3_are_unbiased_under_the_policy():
    assert float((P * k1(P.log(), Q.log())).sum()) == pytest.approx(EXACT, abs=1e-12)
    assert float((P * k3(P.log(), Q.log())).sum()) == pytest.approx(EXACT, abs=1e-12)


def test_by_hand():
    new, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert float(k1(new, ref)) == pytest.approx(math.log(2), abs=1e-6)
    assert float(k2(new, ref)) == pytest.approx(math.log(2) ** 2 / 2, abs=1e-6)
    assert float(k3(new, ref)) == pytest.approx(-0.5 + math.log(2), abs=1e-6)


def test_expected_gradients_say_which_may_be_a_loss():
    """With the sampling distribution held fixed: k1's gradient is 0, k2's is the true one, k3's another (row 11)."""
    logits = P.log().clone().requires_grad_()
    true = torch.autograd.grad((logits.softmax(-1) * k1(logits.log_softmax(-1), Q.log())).sum(), logits)[0]
    found = {
        name: torch.autograd.grad((P * f(logits.log_softmax(-1), Q.log())).sum(), logits)[0]
        for name, f in (("k1", k1), ("k2", k2), ("k3", k3))
    }
    assert float(found["k1"].abs().max()) < 1e-12
    torch.testing.assert_close(found["k2"], true, atol=1e-12, rtol=0)
    assert float((found["k3"] - true).abs().max()) > 0.05


def test_small_divergences_keep_their_digits():
    # k3 is 5e-9 up to r³/6 < 2e-13; float32 keeps 1e-4 to steps of 2⁻³⁷ = 7.3e-12, of which two operations lose one each
    assert 5e-9 - 1.5e-11 < float(k3(torch.tensor([1e-4]), torch.tensor([0.0]))) < 5e-9 + 1.5e-11
    assert float(k3(torch.zeros(1), torch.zeros(1))) == 0


def test_summary_is_masked_unclamped_and_uses_two_denominators():
    new = torch.tensor([[0.0, -1.0, torch.nan], [30.0, torch.nan, torch.nan]])
    ref = torch.tensor([[-1.0, -1.5, 5.0], [0.0, torch.nan, 7.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    result = kl_summary(new, ref, mask)
    assert result.k1_per_sequence == pytest.approx((1.5 + 30) / 2)
    assert result.k1_per_token == pytest.approx(31.5 / 3)
    assert result.k2_per_sequence == pytest.approx((0.5 + 0.125 + 450) / 2)
    expected_k3 = (math.exp(-1) - 1 + 1) + (math.exp(-0.5) - 1 + 0.5) + (math.exp(-30) - 1 + 30)
    assert result.k3_per_sequence == pytest.approx(expected_k3 / 2)
    assert result.k3_per_token == pytest.approx(expected_k3 / 3)
    assert result.k2_per_token == pytest.approx(450.625 / 3)


def test_refuses_bad_input():
    ones = torch.ones(2, 2)
    with pytest.raises(InputError, match="'k4'"):
        sequence_kl(ones, ones, ones.bool(), estimator="k4")
    with pytest.raises(MaskError, match="row 0"):
        sequence_kl(ones, ones, ~ones.bool())
