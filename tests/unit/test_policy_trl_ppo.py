"""PPO's rewards, advantages and losses, and online DPO's, are those of TRL's trainers on one batch."""

import json
import math
from pathlib import Path

import torch

from karat.policy.advantages import gae_advantages
from karat.policy.objectives import ppo_policy_loss, ppo_value_loss
from karat.policy.preference_objectives import dpo_loss, ipo_loss
from karat.policy.selection import scored_pairs
from karat.policy.shaping import token_rewards
from karat.tensors import whiten

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "trl_ppo.json").read_text(encoding="utf-8"))
GIVEN = GOLDEN["settings"]


def wide(values):
    return torch.tensor(values, dtype=torch.float64)


BATCH = {name: wide(rows) for name, rows in GOLDEN["batch"].items()}
EARNED = {name: wide(rows) for name, rows in GOLDEN["rollout"].items()}
WHOLE = torch.ones(4, 5, dtype=torch.bool)
MASK = torch.arange(5) < torch.tensor(GIVEN["lengths"]).unsqueeze(1)


def assert_equal(found, expected):
    torch.testing.assert_close(found, wide(expected), atol=1e-12, rtol=0)


def test_rewards_advantages_and_returns_are_trls():
    log_ratio = BATCH["old_logprobs"] - BATCH["ref_logprobs"]
    rewards = token_rewards(wide(GIVEN["scores"]), log_ratio, WHOLE, kl_coef=GIVEN["kl_coef"])
    assert_equal(rewards, GOLDEN["rollout"]["rewards"])
    found = gae_advantages(rewards, BATCH["values"], WHOLE, gamma=GIVEN["gamma"], gae_lambda=GIVEN["gae_lambda"])
    assert_equal(found.advantages, GOLDEN["rollout"]["advantages"])
    assert_equal(found.returns, GOLDEN["rollout"]["returns"])
    # TRL divides by the unbiased deviation of the 20 tokens, whose factor it has in float32; OpenAI's code and ours by the
    # biased one
    biased = float(found.advantages.var(correction=0))
    factor = math.sqrt((biased + 1e-8) / (biased * float(torch.tensor(20) / 19) + 1e-8))
    assert_equal(factor * whiten(found.advantages, WHOLE, center=True), GOLDEN["rollout"]["whitened"])


def test_policy_and_value_losses_and_their_gradients_are_trls():
    n, expected = int(MASK.sum()), GOLDEN["update"]
    new, values = (BATCH[name].clone().requires_grad_() for name in ("logprobs", "new_values"))
    options = {"denominator": n, "clip_range": GIVEN["clip_range"]}
    policy = ppo_policy_loss(new, BATCH["old_logprobs"], EARNED["whitened"], MASK, **options)
    value = ppo_value_loss(values, BATCH["values"], EARNED["returns"], MASK, **options)
    assert int(policy.n_clipped) > 0  # the clip is in the comparison, in both losses
    assert int(value.n_clipped) > 0
    loss = policy.loss + GIVEN["vf_coef"] * value.loss
    loss.backward()
    assert_equal(
        torch.stack([policy.loss, value.loss, loss]).detach(), [expected[k] for k in ("policy", "value", "loss")]
    )
    assert_equal(new.grad, expected["policy_grad"])
    assert_equal(values.grad, expected["value_grad"])


def test_online_dpo_on_the_better_of_two_is_trls():
    # there the rows are first responses, then second ones; here a prompt's responses are neighbours
    scores = wide(GIVEN["scores"]).unflatten(0, (2, -1)).T
    for name, loss_of in (("online_dpo", dpo_loss), ("online_ipo", ipo_loss)):
        new = BATCH["logprobs"].clone().requires_grad_()
        ratios = torch.where(MASK, new - BATCH["ref_logprobs"], 0.0).sum(1).unflatten(0, (2, -1)).T.flatten()
        pairs = scored_pairs(scores, "extremes")
        found = loss_of(ratios[pairs.better], ratios[pairs.worse], beta=GIVEN["beta"], denominator=2).loss
        found.backward()
        assert_equal(found.detach(), GOLDEN[name]["loss"])
        assert_equal(new.grad, GOLDEN[name]["grad"])
