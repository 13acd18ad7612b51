"""PPO's losses against case-by-case loops, finite differences, and the known optimum of the KL-regularised problem."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.errors import ConfigError, InputError
from karat.policy.advantages import gae_advantages
from karat.policy.objectives import ppo_policy_loss, ppo_value_loss
from karat.policy.shaping import token_rewards
from reference import ppo_loops


def case(seed: int, n: int = 12, spread: float = 0.5):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda scale: scale * torch.randn(n, generator=rng, dtype=torch.float64)  # noqa: E731
    old = draw(1.0) - 2
    return old + draw(spread), old, draw(1.0), torch.rand(n, generator=rng) < 0.8


def test_policy_loss_by_hand():
    # ρ = 1.5, Â = 2, ε = 0.2: max(−3, −2.4) = −2.4; ρ = 0.5, Â = −1: max(0.5, 0.8) = 0.8; sum −1.6 over 4
    logprobs = torch.tensor([1.5, 0.5]).log()
    result = ppo_policy_loss(
        logprobs, torch.zeros(2), torch.tensor([2.0, -1.0]), torch.tensor([True, True]), denominator=4
    )
    assert float(result.loss) == pytest.approx(-0.4)
    assert float(result.n_clipped) == 2
    assert float(result.approx_kl_sum) == pytest.approx((0.5 - math.log(1.5)) + (-0.5 - math.log(0.5)), abs=1e-6)
    assert float(result.ratio_max) == pytest.approx(1.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 1.5, 3.0]), st.sampled_from([0.1, 0.2]))
def test_policy_loss_equals_the_loop(seed, dual, eps):
    new, old, advantages, mask = case(seed)
    result = ppo_policy_loss(new, old, advantages, mask, denominator=7, clip_range=eps, dual_clip=dual)
    expected, clipped = ppo_loops.policy_loss(
        new.tolist(), old.tolist(), advantages.tolist(), mask.tolist(), 7, eps, dual
    )
    assert float(result.loss) == pytest.approx(expected, abs=1e-12)
    assert int(result.n_clipped) == clipped


@pytest.mark.parametrize("dual", [None, 1.5])
def test_policy_gradient_by_finite_differences(dual):
    new, old, advantages, mask = case(5)
    loss = lambda x: ppo_policy_loss(x, old, advantages, mask, denominator=9, dual_clip=dual).loss  # noqa: E731
    assert torch.autograd.gradcheck(loss, new.clone().requires_grad_(), eps=1e-6, atol=1e-7)


def test_first_step_gradient_is_the_policy_gradient():
    new, old, advantages, mask = case(6, spread=0.0)
    new = new.requires_grad_()
    result = ppo_policy_loss(new, old, advantages, mask, denominator=10)
    result.loss.backward()
    torch.testing.assert_close(new.grad, torch.where(mask, -advantages / 10, 0.0), atol=1e-12, rtol=0)
    assert float(result.ratio_error) == 0


def test_blown_up_ratio_stays_finite_and_padding_is_inert():
    new = torch.tensor([500.0, -0.5, torch.nan, -torch.inf], requires_grad=True)
    mask = torch.tensor([True, True, False, False])
    result = ppo_policy_loss(new, torch.zeros(4), torch.tensor([-1.0, 1.0, torch.nan, 1.0]), mask, denominator=2)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert new.grad[0] == 0  # beyond the clamp
    assert new.grad[1] != 0
    assert new.grad[2:].tolist() == [0, 0]
    assert math.isinf(float(result.ratio_max))  # reported unclamped


def test_value_loss_by_hand_and_loop():
    # v = 1, v_old = 0, R = 2, ε = 0.2: v̂ = 0.2, max(1, 3.24)/2 = 1.62
    one = torch.ones(1)
    result = ppo_value_loss(one, 0 * one, 2 * one, one.bool(), denominator=1)
    assert float(result.loss) == pytest.approx(1.62)
    assert float(result.n_clipped) == 1
    for seed, eps in itertools.product(range(10), (0.2, None)):
        new, old, returns, mask = case(seed)
        found = ppo_value_loss(new, old, returns, mask, denominator=5, clip_range=eps)
        expected = ppo_loops.value_loss(new.tolist(), old.tolist(), returns.tolist(), mask.tolist(), 5, eps)
        assert float(found.loss) == pytest.approx(expected, abs=1e-12)


def test_value_gradient_by_finite_differences():
    new, old, returns, mask = case(9)
    loss = lambda x: ppo_value_loss(x, old, returns, mask, denominator=5).loss  # noqa: E731
    assert torch.autograd.gradcheck(loss, new.clone().requires_grad_(), eps=1e-6, atol=1e-7)


def test_cutting_the_minibatch_changes_nothing():
    new, old, advantages, mask = case(11)
    n = int(mask.sum())
    whole = ppo_policy_loss(new, old, advantages, mask, denominator=n).loss
    for cut in (1, 5):
        parts = [slice(0, cut), slice(cut, None)]
        pieces = [ppo_policy_loss(new[s], old[s], advantages[s], mask[s], denominator=n).loss for s in parts]
        assert float(sum(pieces)) == pytest.approx(float(whole), abs=1e-14)
        values = [ppo_value_loss(new[s], old[s], advantages[s], mask[s], denominator=n).loss for s in parts]
        total = ppo_value_loss(new, old, advantages, mask, denominator=n).loss
        assert float(sum(values)) == pytest.approx(float(total), abs=1e-14)


def test_refuses_bad_input():
    new, old, advantages, mask = case(0)
    with pytest.raises(InputError, match="denominator 0"):
        ppo_policy_loss(new, old, advantages, mask, denominator=0)
    with pytest.raises(InputError, match="one shape"):
        ppo_value_loss(new, old[:3], advantages, mask, denominator=1)
    with pytest.raises(ConfigError, match=r"clip_range=1\.5"):
        ppo_policy_loss(new, old, advantages, mask, denominator=1, clip_range=1.5)
    with pytest.raises(ConfigError, match=r"dual_clip=0\.5"):
        ppo_policy_loss(new, old, advantages, mask, denominator=1, dual_clip=0.5)
    with pytest.raises(ConfigError, match="expected > 0 or None"):
        ppo_value_loss(new, old, advantages, mask, denominator=1, clip_range=0.0)


# The KL-regularised problem over all 9 sequences of 2 words out of 3, solved by enumeration.

WORDS, BETA = 3, 0.7
SEQUENCES = list(itertools.product(range(WORDS), repeat=2))
PREFIXES = [(), (0,), (1,), (2,)]


def problem():
    rng = torch.Generator().manual_seed(3)
    ref = torch.randn(4, WORDS, generator=rng, dtype=torch.float64)
    score = torch.randn(len(SEQUENCES), generator=rng, dtype=torch.float64)
    optimum = ppo_loops.tilted(
        {p: ref[i].tolist() for i, p in enumerate(PREFIXES)},
        {s: float(score[i]) for i, s in enumerate(SEQUENCES)},
        BETA,
    )
    return ref, score, torch.tensor([optimum[p] for p in PREFIXES], dtype=torch.float64)


def sequence_logprobs(logits: torch.Tensor) -> torch.Tensor:
    table = logits.log_softmax(-1)
    return torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a, b in SEQUENCES])


def expected_loss(logits: torch.Tensor, old_logits: torch.Tensor, ref: torch.Tensor, score: torch.Tensor):
    """PPO's loss with every sequence in the batch, weighted by its probability: no sampling noise, no whitening."""
    new, old, base = (sequence_logprobs(x) for x in (logits, old_logits, ref))
    mask = torch.ones_like(new, dtype=torch.bool)
    rewards = token_rewards(score, old - base, mask, kl_coef=BETA)
    advantages = gae_advantages(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0).advantages
    weight = old.sum(1, keepdim=True).exp()
    return ppo_policy_loss(new, old, weight * advantages, mask, denominator=1).loss


def test_gradient_is_zero_at_the_tilted_reference():
    ref, score, optimum = problem()
    logits = optimum.log().requires_grad_()
    expected_loss(logits, logits.detach(), ref, score).backward()
    assert float(logits.grad.abs().max()) < 1e-6
    start = ref.clone().requires_grad_()
    expected_loss(start, ref, ref, score).backward()
    assert float(start.grad.abs().max()) > 0.05  # the test can fail: elsewhere the gradient is not 0


def test_iterated_ppo_converges_to_the_tilted_reference():
    ref, score, optimum = problem()
    logits = ref.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.05)
    for iteration in range(120):
        old = logits.detach().clone()
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - iteration / 120)
        for _ in range(4):
            optimiser.zero_grad()
            expected_loss(logits, old, ref, score).backward()
            optimiser.step()
    distance = 0.5 * (logits.detach().softmax(-1) - optimum).abs().sum(1)  # total variation at each prefix
    assert float(distance.max()) < 1e-3
    assert float((0.5 * (ref.softmax(-1) - optimum).abs().sum(1)).max()) > 0.1
