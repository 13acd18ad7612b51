"""Masked reductions and whitening against plain numpy, and the one mask polarity."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from karat.errors import MaskError
from karat.tensors import check_response_mask, gather_logprobs, masked_mean, masked_variance, whiten


@st.composite
def masked_values(draw):
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    numbers = draw(st.lists(st.floats(-50, 50), min_size=rows * columns, max_size=rows * columns))
    mask = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns).filter(any))
    return torch.tensor(numbers, dtype=torch.float64).view(rows, columns), torch.tensor(mask).view(rows, columns)


@given(masked_values())
def test_masked_moments_are_those_of_the_counted_entries(case):
    values, mask = case
    counted = values[mask].numpy()
    assert float(masked_mean(values, mask)) == pytest.approx(np.mean(counted), abs=1e-9)
    assert float(masked_variance(values, mask)) == pytest.approx(np.var(counted), abs=1e-8)


@given(masked_values(), st.floats(-1e6, 1e6))
def test_what_does_not_count_changes_nothing(case, noise):
    values, mask = case
    disturbed = torch.where(mask, values, torch.full_like(values, noise))
    assert torch.equal(whiten(values, mask, center=True), whiten(disturbed, mask, center=True))


def test_whitened_has_mean_zero_and_variance_one_and_keeps_its_mean_on_request():
    values = torch.randn(7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 5
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    centred, kept = whiten(values, mask, center=True)[mask], whiten(values, mask, center=False)[mask]
    assert float(centred.mean()) == pytest.approx(0, abs=1e-12)
    assert float(centred.var(unbiased=False)) == pytest.approx(1, abs=1e-8)
    assert float(kept.mean()) == pytest.approx(float(values[mask].mean()), abs=1e-12)


def test_the_mean_of_nothing_is_an_error():
    with pytest.raises(MaskError, match="counts no entry"):
        masked_mean(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))


def test_gather_logprobs_is_log_softmax_in_float32_even_for_bfloat16():
    logits = torch.randn(3, 4, 11, generator=torch.Generator().manual_seed(2))
    ids = torch.randint(0, 11, (3, 4), generator=torch.Generator().manual_seed(3))
    expected = torch.log_softmax(logits, -1).gather(-1, ids[..., None])[..., 0]
    assert torch.allclose(gather_logprobs(logits, ids), expected, atol=1e-6)
    assert gather_logprobs(logits.bfloat16(), ids).dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[True, False, True]], "row 0 counts a token after a gap"),
        ([[True, True], [False, False]], "row 1 does not count its first token"),
    ],
)
def test_a_broken_response_mask_is_named(rows, message):
    with pytest.raises(MaskError, match=message):
        check_response_mask(torch.tensor(rows), "test")


def test_a_float_mask_is_refused():
    with pytest.raises(MaskError, match=r"dtype torch.float32; expected bool with True = counts"):
        check_response_mask(torch.ones(1, 2), "test")
