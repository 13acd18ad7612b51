"""Losses of the critic-free methods against TRL's numbers on one batch, finite differences, and by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

from karat.errors import ConfigError, InputError
from karat.policy.controllers import LagrangeMultiplier
from karat.policy.group_advantages import STD_FLOOR, grpo_advantages, reinforce_pp_advantages, rloo_advantages
from karat.policy.implicit_q import implicit_q_losses, value_guided_logits
from karat.policy.objectives import kl_penalty_loss, ppo_policy_loss
from karat.policy.preference_objectives import dpo_loss, ipo_loss, kto_loss, mismatched_kl
from karat.policy.selection import best_indices, scored_pairs

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "trl_losses.json").read_text(encoding="utf-8"))
BATCH = {name: torch.tensor(value) for name, value in GOLDEN["batch"].items()}
BATCH |= {name: torch.tensor(GOLDEN["batch"][name], dtype=torch.float64) for name in
          ("logprobs", "old_logprobs", "ref_logprobs", "advantages")}  # fmt: skip
MASK, LENGTHS = BATCH["mask"], BATCH["mask"].sum(1)


def sums(rows):
    return torch.where(MASK, rows, 0.0).sum(1)


def assert_as_golden(name, loss_of):
    """The loss and its gradient are TRL's to the last digits of float64."""
    x = BATCH["logprobs"].clone().requires_grad_()
    loss = loss_of(x)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(GOLDEN[name]["loss"], abs=1e-12)
    torch.testing.assert_close(x.grad, torch.tensor(GOLDEN[name]["grad"], dtype=torch.float64), atol=1e-12, rtol=0)


def test_dpo_and_ipo_are_trls():
    def ratios(x):
        return sums(x) - sums(BATCH["ref_logprobs"])

    assert_as_golden("dpo", lambda x: dpo_loss(*ratios(x).chunk(2), beta=0.3, denominator=2).loss)
    means = lambda x: (ratios(x) / LENGTHS).chunk(2)  # noqa: E731
    assert_as_golden("ipo", lambda x: ipo_loss(*means(x), beta=0.3, denominator=2).loss)


def test_kto_is_trls():
    ref = sums(BATCH["ref_logprobs"])
    kl = mismatched_kl(torch.tensor(GOLDEN["kto"]["kl_logprobs"], dtype=torch.float64), ref)
    assert float(kl) > 0
    options = {"beta": 0.3, "denominator": 4, "good_weight": 1.2, "bad_weight": 0.8}
    assert_as_golden("kto", lambda x: kto_loss(sums(x) - ref, BATCH["good"], kl, **options).loss)


def token_loss(x, weights, denominator):
    advantages = weights * BATCH["advantages"].unsqueeze(1)
    return ppo_policy_loss(x, BATCH["old_logprobs"], advantages, MASK, denominator=denominator).loss


def test_grpo_is_trls_in_each_normalisation():
    means, ones = (1 / LENGTHS.double()).unsqueeze(1).expand(4, 5), torch.ones(4, 5, dtype=torch.float64)

    def published(x):
        penalty = kl_penalty_loss(
            x, BATCH["old_logprobs"], BATCH["ref_logprobs"], MASK, estimator="k3", denominator=4, importance=False,
            weights=means,
        )  # fmt: skip
        return token_loss(x, means, 4) + 0.04 * penalty.loss

    assert_as_golden("grpo", published)
    assert_as_golden("dr_grpo", lambda x: token_loss(x, ones, 4 * 5))
    assert_as_golden("dapo", lambda x: token_loss(x, ones, int(MASK.sum())))


def test_the_gradient_of_trls_default_penalty_is_that_of_k2():
    # there k3 is weighted by the ratio with its gradient: ρ·k3·∇log π + ρ·∇k3 = ρ·(log π − log π_ref)·∇log π
    means = (1 / LENGTHS.double()).unsqueeze(1).expand(4, 5)
    x = BATCH["logprobs"].clone().requires_grad_()
    penalty = kl_penalty_loss(
        x, BATCH["old_logprobs"], BATCH["ref_logprobs"], MASK, estimator="k2", denominator=4, weights=means
    )
    (token_loss(x, means, 4) + 0.04 * penalty.loss).backward()
    expected = torch.tensor(GOLDEN["grpo_default"]["grad"], dtype=torch.float64)
    torch.testing.assert_close(x.grad, expected, atol=1e-12, rtol=0)
    assert not torch.allclose(expected, torch.tensor(GOLDEN["grpo"]["grad"], dtype=torch.float64), atol=1e-4)


def test_rloo_is_trls():
    every = torch.ones(4, dtype=torch.bool)
    old = sums(BATCH["old_logprobs"])
    assert_as_golden("rloo", lambda x: ppo_policy_loss(sums(x), old, BATCH["advantages"], every, denominator=4).loss)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])
    assert rloo_advantages(rewards).tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]
    assert grpo_advantages(rewards, scale="none").tolist() == [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]
    sigma = math.sqrt((4 + 1 + 9) / 2) + STD_FLOOR
    torch.testing.assert_close(
        grpo_advantages(rewards, scale="group"), torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]) / sigma
    )
    whole = math.sqrt(float(((rewards - 3) ** 2).sum()) / 5) + STD_FLOOR
    torch.testing.assert_close(
        grpo_advantages(rewards, scale="batch"), torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]) / whole
    )


def test_reinforce_pp_returns_by_hand_and_normalised():
    rewards = torch.tensor([[1.0, 2.0, 9.0], [0.0, 0.0, 4.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    options = {"n_samples": 2, "group_baseline": False}
    plain = reinforce_pp_advantages(rewards, mask, normalise=False, **options)
    assert plain.tolist() == [[3.0, 2.0, 0.0], [4.0, 4.0, 4.0]]
    based = reinforce_pp_advantages(rewards, mask, n_samples=2, group_baseline=True, normalise=False)
    assert based.tolist() == [[-0.5, -1.5, 0.0], [0.5, 0.5, 0.5]]
    white = reinforce_pp_advantages(rewards, mask, normalise=True, **options)
    counted = white[mask]
    assert float(counted.mean()) == pytest.approx(0, abs=1e-6)
    assert float(counted.square().mean()) == pytest.approx(1, abs=1e-4)
    assert float(white[0, 2]) == 0


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "k2", "k3", "sequence"])
def test_gradients_by_finite_differences(name):
    rng = torch.Generator().manual_seed(3)
    x, y, z = (torch.randn(6, generator=rng, dtype=torch.float64) for _ in range(3))
    mask = torch.tensor([True, True, False, True, True, True])
    good = torch.tensor([True, False, True, True, False, False])
    of = {
        "dpo": lambda v: dpo_loss(v[:3], v[3:], beta=0.4, denominator=3, label_smoothing=0.1).loss,
        "ipo": lambda v: ipo_loss(v[:3], v[3:], beta=0.4, denominator=3).loss,
        "kto": lambda v: kto_loss(v, good, torch.tensor(0.3).double(), beta=0.4, denominator=6, bad_weight=0.7).loss,
        "k2": lambda v: kl_penalty_loss(v, y, z, mask, estimator="k2", denominator=5, importance=False).loss,
        "k3": lambda v: kl_penalty_loss(v, y, z, mask, estimator="k3", denominator=5, importance=False).loss,
        "sequence": lambda v: ppo_policy_loss(v, y, z, mask, denominator=5, clip_range=None).loss,
    }[name]
    assert torch.autograd.gradcheck(of, x.requires_grad_(), eps=1e-6, atol=1e-7)


def test_importance_weights_of_the_penalty_are_those_of_the_policy_and_carry_no_gradient():
    new, old, ref = (torch.tensor([v], dtype=torch.float64) for v in (-1.0, -1.5, -2.0))
    every = torch.tensor([True])
    x = new.clone().requires_grad_()
    found = kl_penalty_loss(x, old, ref, every, estimator="k2", denominator=1)
    found.loss.backward()
    ratio = math.exp(0.5)
    assert float(found.loss.detach()) == pytest.approx(ratio * 0.5)
    assert float(x.grad) == pytest.approx(ratio * 1.0)  # ρ·(log π − log π_ref), not the derivative of ρ too
    masked = kl_penalty_loss(
        torch.tensor([-1.0, torch.nan]), torch.tensor([-1.0, torch.inf]), torch.tensor([-2.0, 0.0]),
        torch.tensor([True, False]), estimator="k3", denominator=1,
    )  # fmt: skip
    assert float(masked.loss) == pytest.approx(math.exp(-1) - 1 + 1)


def test_implicit_q_by_hand_and_by_finite_differences():
    q = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    slow, values = torch.tensor([0.5, 1.5]).double(), torch.tensor([1.0, 1.0]).double()
    after, rewards = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 3.0]).double()
    taken = torch.tensor([0, 1])
    options = {"gamma": 0.5, "expectile": 0.8, "denominator": 2}
    found = implicit_q_losses(q, slow, values, after, rewards, taken, **options)
    assert float(found.q) == pytest.approx(0.5 * ((1 - 0.5) ** 2 + (2 - 3) ** 2) / 2)
    assert float(found.v) == pytest.approx(0.5 * (0.2 * 0.25 + 0.8 * 0.25) / 2)
    assert float(found.conservative) == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2)

    def total(x):
        parts = implicit_q_losses(x[:, :2], slow, x[:, 2], after, rewards, taken, **options)
        return parts.q + parts.v + parts.conservative

    x = torch.cat([q, values.unsqueeze(1)], dim=1).requires_grad_()
    assert torch.autograd.gradcheck(total, x, eps=1e-6, atol=1e-7)


def test_pairs_and_best_of_scores():
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    assert best_indices(scores).tolist() == [1, 0]
    extremes = scored_pairs(scores, "extremes")
    assert extremes.better.tolist() == [1, 4]
    assert extremes.worse.tolist() == [3, 7]
    assert extremes.difference.tolist() == [3.0, 0.0]
    every = scored_pairs(scores, "all")
    assert len(every.better) == 12
    assert (every.difference >= 0).all()
    assert (scores.flatten()[every.better] - scores.flatten()[every.worse] == every.difference).all()


def test_the_price_of_a_constraint():
    price = LagrangeMultiplier(0.5, limit=1.0, learning_rate=0.5, largest=2.0)
    price.update(2.0)
    assert price.coef == 1.0
    price.update(-10.0)
    assert price.coef == 0.0  # never below
    price.update(100.0)
    assert price.coef == 2.0  # never above
    other = LagrangeMultiplier(0.0, limit=1.0, learning_rate=0.5)
    other.load_state_dict(price.state_dict())
    assert other.coef == 2.0
    with pytest.raises(InputError, match="mean cost nan"):
        price.update(math.nan)


def test_refuses_bad_input():
    one = torch.zeros(1)
    with pytest.raises(ConfigError, match="expected k2 or k3"):
        kl_penalty_loss(one, one, one, one.bool(), estimator="k1", denominator=1)
    with pytest.raises(ConfigError, match="beta=0"):
        dpo_loss(one, one, beta=0, denominator=1)
    with pytest.raises(ConfigError, match=r"label_smoothing=0\.5"):
        dpo_loss(one, one, beta=1, denominator=1, label_smoothing=0.5)
    with pytest.raises(InputError, match="no smoothing beside it"):
        dpo_loss(one, one, beta=1, denominator=1, label_smoothing=0.1, better_prob=one)
    with pytest.raises(InputError, match="denominator 0"):
        ipo_loss(one, one, beta=1, denominator=0)
    with pytest.raises(InputError, match=r"expected \[B\] and \[B\]"):
        kto_loss(one, torch.zeros(2).bool(), one[0], beta=1, denominator=1)
    with pytest.raises(InputError, match="at least 2 responses"):
        rloo_advantages(torch.zeros(3, 1))
    with pytest.raises(ConfigError, match="none, group or batch"):
        grpo_advantages(torch.zeros(3, 2), scale="prompt")
    with pytest.raises(InputError, match="multiple of the samples"):
        reinforce_pp_advantages(torch.zeros(3, 1), torch.ones(3, 1).bool(), n_samples=2, group_baseline=False,
                                normalise=False)  # fmt: skip
    with pytest.raises(InputError, match="K ≥ 2"):
        scored_pairs(torch.zeros(2, 1), "all")
    with pytest.raises(ConfigError, match="strength=-1"):
        value_guided_logits(one, one, strength=-1)
    with pytest.raises(ConfigError, match=r"τ=1"):
        implicit_q_losses(torch.zeros(1, 2), one, one, one, one, torch.zeros(1, dtype=torch.long), gamma=1.0,
                          expectile=1.0, denominator=1)  # fmt: skip
