"""GAE against the double sum of the paper, by hand, and under padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.errors import ConfigError, InputError, MaskError
from karat.policy.advantages import explained_variance, gae_advantages
from reference import ppo_loops


def case(seed: int, n_rows: int = 4, n_tokens: int = 6):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, n_tokens + 1, (n_rows,), generator=rng)
    mask = torch.arange(n_tokens) < lengths[:, None]
    draw = lambda: torch.randn(n_rows, n_tokens, generator=rng, dtype=torch.float64)  # noqa: E731
    return draw(), draw(), mask


def test_by_hand():
    # γ = 0.5, λ = 0.5: δ₁ = 2 − 1 = 1, δ₀ = 1 + 0.5·1 − 2 = −0.5; Â₀ = −0.5 + 0.25·1 = −0.25
    mask = torch.tensor([[True, True, False]])
    result = gae_advantages(
        torch.tensor([[1.0, 2.0, 7.0]]), torch.tensor([[2.0, 1.0, 7.0]]), mask, gamma=0.5, gae_lambda=0.5
    )
    assert result.advantages.tolist() == [[-0.25, 1.0, 0.0]]
    assert result.returns.tolist() == [[1.75, 2.0, 0.0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 0.9]), st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.booleans())
def test_equals_the_double_sum(seed, gamma, lam, bootstraps):
    rewards, values, mask = case(seed)
    after = torch.tensor([0.3, 0.0, -1.0, 2.0], dtype=torch.float64) if bootstraps else None
    result = gae_advantages(rewards, values, mask, gamma=gamma, gae_lambda=lam, bootstrap_values=after)
    expected = ppo_loops.gae(
        rewards.tolist(), values.tolist(), mask.tolist(), gamma, lam, after.tolist() if bootstraps else None
    )
    torch.testing.assert_close(result.advantages, torch.tensor(expected[0], dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(result.returns, torch.tensor(expected[1], dtype=torch.float64), atol=1e-12, rtol=0)


def test_lambda_one_is_monte_carlo():
    rewards, values, mask = case(1)
    counted = torch.where(mask, rewards, torch.zeros_like(rewards))
    to_go = counted.flip(1).cumsum(1).flip(1)
    result = gae_advantages(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    torch.testing.assert_close(result.returns, torch.where(mask, to_go, 0.0), atol=1e-12, rtol=0)


def test_padding_holds_anything_and_any_width():
    rewards, values, mask = case(2)
    wide = lambda t, fill: torch.cat([t, torch.full((4, 3), fill, dtype=t.dtype)], 1)  # noqa: E731
    plain = gae_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    padded = gae_advantages(
        wide(rewards.where(mask, torch.nan), torch.nan),
        wide(values.where(mask, torch.inf), torch.inf),
        wide(mask, False),
        gamma=0.9,
        gae_lambda=0.8,
    )
    assert torch.equal(padded.advantages[:, :6], plain.advantages)
    assert torch.equal(padded.returns[:, :6], plain.returns)
    assert not padded.advantages[:, 6:].any()


def test_refuses_bad_input():
    rewards, values, mask = case(3)
    with pytest.raises(MaskError, match="row 1 does not count its first token"):
        gae_advantages(rewards, values, mask & (torch.arange(4) != 1)[:, None], gamma=1.0, gae_lambda=0.95)
    with pytest.raises(ConfigError, match=r"γ in \(0, 1\]"):
        gae_advantages(rewards, values, mask, gamma=0.0, gae_lambda=0.95)
    with pytest.raises(InputError, match="one shape"):
        gae_advantages(rewards[:, :5], values, mask, gamma=1.0, gae_lambda=0.95)


def test_explained_variance():
    returns = torch.tensor([[1.0, 2.0, 3.0, 50.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.zeros_like(returns), returns, mask) == pytest.approx(0.0)
    # values 2, 2, 5: errors −1, 0, −2, variance 2/3 = Var(R)
    assert explained_variance(torch.tensor([[2.0, 2.0, 5.0, 0.0]]), returns, mask) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(returns, torch.ones_like(returns), mask) is None
