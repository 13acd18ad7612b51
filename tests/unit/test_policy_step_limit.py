"""The limit on one optimiser step: what it measures, what it leaves of a step that is too long, and what it must not touch."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from karat.lm.adapters import add_lora
from karat.policy.advantages import Advantages
from karat.policy.epochs import StepCounts
from karat.policy.expert import train_expert
from karat.policy.group import train_group
from karat.policy.method_settings import ExpertConfig, GroupConfig, OnlineDPOConfig, StepSettings
from karat.policy.online_dpo import train_online_dpo
from karat.policy.ppo import _train_state, rollout_advantages, rollout_rewards, train_ppo
from karat.policy.settings import PPOConfig, RolloutSettings, UpdateSettings, ValueSettings
from karat.policy.step_limit import HeldWeights, shortened
from karat.policy.update import update_on_rollout
from policy_toys import PROMPTS, share_of_w3, toy_actor, toy_lm, toy_rollout

LIMIT, LONG = 1e-3, 0.1
ROLLOUT = RolloutSettings(n_prompts=4, n_samples=3, max_new_tokens=6)


def update(limit, *, rate=LONG, critic=False, broken=False, dtype=torch.float64, **options):
    """One update of PPO; what was trained, its weights before, the rollout and the statistics."""
    actor = toy_actor(dtype, critic=critic)
    own = {"n_epochs": 1, "n_minibatches": 1, "token_budget": 60, "max_step_kl": limit} | options
    value = ValueSettings(critic="separate") if critic else ValueSettings(zero_head=False)
    settings = PPOConfig(rollout=ROLLOUT, update=UpdateSettings(**own), value=value)
    state = _train_state(actor, settings, {"steps": StepCounts()})
    rollout = toy_rollout(actor)
    targets = rollout_advantages(rollout, rollout_rewards(rollout, rollout.scores, settings, kl_coef=0.1), settings)
    if broken:
        targets = Advantages(torch.full_like(targets.advantages, math.inf), targets.returns)
    before = weights(actor.lm.model)
    stats = update_on_rollout(
        actor, state, rollout, targets, settings,
        learning_rates={"policy": rate, "critic": rate}, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return actor, before, rollout, stats


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def plain_kl(actor, rollout) -> float:
    """Mean of ρ − 1 − log ρ over the rollout's tokens, ρ = π/π_rollout, token by token through transformers' own forward."""
    found, row = [], 0
    for tree in rollout.trees:
        for branch in tree.branches:
            with torch.no_grad():
                table = actor.lm.model(input_ids=torch.tensor([[*tree.prompt, *branch]])).logits[0].log_softmax(-1)
            for t, token in enumerate(branch):
                log_ratio = float(table[len(tree.prompt) - 1 + t, token] - rollout.logprobs[row, t])
                found.append(math.exp(log_ratio) - 1 - log_ratio)
            row += 1
    return sum(found) / len(found)


def test_a_step_that_is_too_long_ends_within_the_limit_on_the_same_line():
    whole, start, rollout, _ = update(None)
    actor, _, _, stats = update(LIMIT)
    (move,) = stats.moves
    assert move.kl_asked == pytest.approx(plain_kl(whole, rollout), rel=1e-9)
    assert move.kl_asked > 10 * LIMIT
    assert move.kl == pytest.approx(plain_kl(actor, rollout), rel=1e-9)
    assert LIMIT / 2 < move.kl <= LIMIT
    expected = start + move.share * (weights(whole.lm.model) - start)
    torch.testing.assert_close(weights(actor.lm.model), expected, atol=1e-12, rtol=0)
    figures = stats.metrics()
    assert {name: figures[f"policy/{name}"] for name in ("step_kl", "step_share", "step_shortened_frac")} == {
        "step_kl": move.kl,
        "step_share": move.share,
        "step_shortened_frac": 1.0,
    }


def test_without_a_limit_and_with_one_that_is_never_reached_the_bits_are_the_same():
    off, far = update(None, dtype=torch.float32), update(1e6, dtype=torch.float32)
    assert torch.equal(weights(off[0].lm.model), weights(far[0].lm.model))
    assert [move.share for move in far[3].moves] == [1.0]
    assert not off[3].moves
    assert not any("step_" in name for name in off[3].metrics())


def test_micro_batches_and_the_order_of_prompts_do_not_change_what_is_left():
    runs = [update(LIMIT, n_epochs=2, n_minibatches=2, token_budget=budget) for budget in (10_000, 30)]
    for a, b in zip(*(run[3].moves for run in runs), strict=True):
        assert (a.kl_asked, a.kl, a.share) == pytest.approx((b.kl_asked, b.kl, b.share), rel=1e-6)
        assert a.kl <= LIMIT
    torch.testing.assert_close(*(weights(run[0].lm.model) for run in runs), atol=1e-9, rtol=0)
    assert len(runs[0][3].moves) == 4


def test_every_step_is_measured_from_where_the_one_before_ended():
    moves = update(LIMIT, n_epochs=4)[3].moves
    assert len(moves) == 4
    assert all(LIMIT / 4 < move.kl <= LIMIT < move.kl_asked for move in moves)


def test_a_critic_of_its_own_keeps_its_whole_step():
    off, on = update(None, critic=True), update(LIMIT, critic=True)
    assert torch.equal(weights(off[0].critic), weights(on[0].critic))
    assert not torch.equal(weights(off[0].lm.model), weights(on[0].lm.model))


def test_a_step_that_was_skipped_is_not_measured():
    actor, before, _, stats = update(LIMIT, broken=True, dtype=torch.float32)
    assert torch.equal(weights(actor.lm.model), before)
    assert not stats.moves


@pytest.mark.parametrize("wild", [math.inf, math.nan])
def test_a_step_that_is_wild_at_any_length_is_taken_back_to_the_bit(wild):
    layer = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1.0)
    start, held = weights(layer), HeldWeights(optimiser)
    layer(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    assert not torch.equal(weights(layer), start)
    move = shortened(held, [torch.zeros(2)], lambda: [torch.tensor([0.0, wild])], n_tokens=2, limit=1.0)
    assert (move.kl_asked, move.kl, move.share) == (math.inf, 0.0, 0.0)
    assert torch.equal(weights(layer), start)


def test_adapters_alone_are_shortened():
    lm = toy_lm()
    lm = replace(lm, model=add_lora(lm.model.requires_grad_(False), 2, 4.0, seed=1))
    frozen = [p.detach().clone() for p in lm.model.parameters() if not p.requires_grad]
    figures = run_method(train_group, GroupConfig(method="rloo", **small()), lm)
    assert all(f["policy/step_kl"] <= LIMIT for f in figures)
    assert any(f["policy/step_shortened_frac"] for f in figures)
    for a, b in zip(frozen, (p for p in lm.model.parameters() if not p.requires_grad), strict=True):
        assert torch.equal(a, b)


def small(**own):
    update = StepSettings(learning_rate=LONG, max_step_kl=LIMIT, **own)
    return {"n_iterations": 2, "rollout": ROLLOUT, "update": update}


def run_method(recipe, config, lm=None):
    """The figures of each iteration."""
    figures = []

    class Kept:
        def log(self, _, metrics):
            figures.append(metrics)

    recipe(lm or toy_lm(), PROMPTS, share_of_w3, config, seed=0, reporters=[Kept()])
    return figures


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("method", ["rloo", "grpo", "reinforce_pp", "online_dpo", "expert", "ppo"])
def test_every_online_method_keeps_to_it(method, steps):
    settings = small(n_minibatches=steps)
    if method == "ppo":
        own = UpdateSettings(n_epochs=1, n_minibatches=steps, learning_rate=LONG, max_step_kl=LIMIT)
        recipe, config = train_ppo, PPOConfig(**settings | {"update": own})
    elif method in ("online_dpo", "expert"):
        kinds = {"online_dpo": (train_online_dpo, OnlineDPOConfig), "expert": (train_expert, ExpertConfig)}
        recipe, kind = kinds[method]
        config = kind(**settings)
    else:
        recipe, config = train_group, GroupConfig(method=method, **settings)
    for figures in run_method(recipe, config):
        assert 0 < figures["policy/step_kl"] <= LIMIT < figures["policy/step_kl_asked"]
        assert 0 < figures["policy/step_share"] < 1
        assert figures["policy/step_shortened_frac"] == 1


def test_products_in_bfloat16_keep_to_it_too():
    figures = run_method(train_group, GroupConfig(method="rloo", **small()), toy_lm(products=torch.bfloat16))
    assert all(0 < f["policy/step_kl"] <= LIMIT for f in figures)


def test_while_the_critic_alone_learns_nothing_is_measured():
    own = UpdateSettings(n_epochs=1, n_minibatches=1, learning_rate=LONG, max_step_kl=LIMIT)
    config = PPOConfig(n_iterations=2, rollout=ROLLOUT, update=own, value=ValueSettings(warmup_iterations=1))
    first, second = run_method(train_ppo, config)
    assert "policy/step_kl" not in first
    assert 0 < second["policy/step_kl"] <= LIMIT
