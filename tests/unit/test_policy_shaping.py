"""Rewards per token: where the score lands, what truncation costs, and that padding is inert."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from karat.errors import ConfigError, InputError, MaskError
from karat.policy.shaping import final_scores, token_rewards
from reference import ppo_loops

STOPPED = torch.tensor([True, False])


def test_score_lands_on_the_last_counted_token():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    log_ratio = torch.tensor([[0.5, -1.0, torch.nan], [0.0, 0.0, 2.0]])
    rewards = token_rewards(torch.tensor([3.0, 5.0]), log_ratio, mask, kl_coef=0.1)
    expected = torch.tensor([[-0.05, 3.1, 0.0], [0.0, 0.0, 4.8]])
    torch.testing.assert_close(rewards, expected, atol=1e-6, rtol=0)


def test_equals_the_loop():
    rng = torch.Generator().manual_seed(0)
    new, ref = (torch.randn(5, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    scores = torch.randn(5, generator=rng, dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([1, 2, 3, 4, 4])[:, None]
    found = token_rewards(scores, new - ref, mask, kl_coef=0.3)
    expected = ppo_loops.rewards(scores.tolist(), new.tolist(), ref.tolist(), mask.tolist(), 0.3)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    # the sum over tokens is what the objective promises: score − β·KL estimate of the sequence
    kl = torch.where(mask, new - ref, 0.0).sum(1)
    torch.testing.assert_close(found.sum(1), scores - 0.3 * kl, atol=1e-12, rtol=0)


def test_a_score_spread_over_tokens_is_paid_where_it_was_earned_and_the_same_in_all():
    rng = torch.Generator().manual_seed(1)
    log_ratio, inside = (torch.randn(6, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    stopped = torch.tensor([True, False, True, False, True, False])
    mask = torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
    inside = torch.where(mask, inside, 0.0)
    for rule in ({}, {"score_clip": 0.5}, {"missing_eos_penalty": 1.5}, {"missing_eos_score": -1.0}):
        paid = final_scores(inside.sum(1), stopped, **rule)
        found = token_rewards(paid, log_ratio, mask, kl_coef=0.3, inside=inside)
        expected = ppo_loops.rewards_inside(
            paid.tolist(), inside.tolist(), log_ratio.tolist(), mask.tolist(), 0.3
        )  # fmt: skip
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
        scalar = token_rewards(paid, log_ratio, mask, kl_coef=0.3)
        torch.testing.assert_close(found.sum(1), scalar.sum(1), atol=1e-12, rtol=0)
        assert not torch.allclose(found, scalar)


@given(
    scores=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=5),
    stops=st.integers(0, 31),
    rule=st.sampled_from([{}, {"score_clip": 1.5}, {"missing_eos_penalty": 0.7}, {"missing_eos_score": -1.0}]),
    seed=st.integers(0, 1000),
)
def test_a_score_that_is_all_at_the_last_token_is_the_plain_score_to_the_bit(scores, stops, rule, seed):
    n, rng = len(scores), torch.Generator().manual_seed(seed)
    given_scores = torch.tensor(scores)
    lengths = torch.randint(1, 7, (n,), generator=rng)
    mask = torch.arange(6) < lengths[:, None]
    log_ratio = torch.randn(n, 6, generator=rng)
    stopped = torch.tensor([bool(stops >> i & 1) for i in range(n)])
    inside = torch.zeros(n, 6).scatter(1, lengths[:, None] - 1, given_scores[:, None])
    plain = token_rewards(final_scores(given_scores, stopped, **rule), log_ratio, mask, kl_coef=0.05)
    spread = final_scores(torch.zeros(n) + inside.sum(1), stopped, **rule)
    assert torch.equal(token_rewards(spread, log_ratio, mask, kl_coef=0.05, inside=inside), plain)


def test_truncated_responses():
    scores = torch.tensor([4.0, 4.0])
    assert final_scores(scores, STOPPED).tolist() == [4.0, 4.0]
    assert final_scores(scores, STOPPED, missing_eos_penalty=1.5).tolist() == [4.0, 2.5]
    assert final_scores(scores, STOPPED, missing_eos_score=-1.0).tolist() == [4.0, -1.0]
    assert final_scores(scores, STOPPED, score_clip=3.0, missing_eos_penalty=1.0).tolist() == [3.0, 2.0]
    assert final_scores(-scores, STOPPED, score_clip=3.0).tolist() == [-3.0, -3.0]


def test_refuses_bad_input():
    scores, mask = torch.ones(2), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ConfigError, match="choose one"):
        final_scores(scores, STOPPED, missing_eos_penalty=1.0, missing_eos_score=-1.0)
    with pytest.raises(ConfigError, match="expected ≥ 0"):
        final_scores(scores, STOPPED, missing_eos_penalty=-1.0)
    with pytest.raises(ConfigError, match="score_clip=0"):
        final_scores(scores, STOPPED, score_clip=0.0)
    with pytest.raises(ConfigError, match="kl_coef=-1"):
        token_rewards(scores, torch.zeros(2, 3), mask, kl_coef=-1.0)
    with pytest.raises(InputError, match=r"expected \[B\], \[B, T\]"):
        token_rewards(torch.ones(3), torch.zeros(2, 3), mask, kl_coef=0.1)
    with pytest.raises(InputError, match=r"found inside \(2, 2\); expected \(2, 3\)"):
        token_rewards(scores, torch.zeros(2, 3), mask, kl_coef=0.1, inside=torch.zeros(2, 2))
    with pytest.raises(MaskError, match="row 0"):
        token_rewards(scores, torch.zeros(2, 3), ~mask, kl_coef=0.1)
