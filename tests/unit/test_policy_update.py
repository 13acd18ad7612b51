"""The update: its gradient against an independent plain computation, and that cutting, padding and skipping are inert."""

import math
from dataclasses import replace

import pytest
import torch

from karat.errors import InvariantError
from karat.policy.advantages import Advantages
from karat.policy.epochs import StepCounts, UpdateStats, check_optimiser_steps
from karat.policy.ppo import _train_state, rollout_advantages, rollout_rewards
from karat.policy.settings import PPOConfig, RolloutSettings, UpdateSettings, ValueSettings
from karat.policy.update import _Update, cut_minibatch, minibatch_losses, update_on_rollout
from policy_toys import toy_actor, toy_rollout

RATES = {"policy": 1e-3, "critic": 1e-3}


def config(value=None, **update):
    settings = {"n_epochs": 1, "n_minibatches": 1, "token_budget": 60} | update
    return PPOConfig(
        rollout=RolloutSettings(n_prompts=4, n_samples=3, max_new_tokens=6),
        update=UpdateSettings(**settings),
        value=value or ValueSettings(zero_head=False),
    )


def prepared(dtype=torch.float64, *, critic=False, **options):
    actor = toy_actor(dtype, critic=critic)
    settings = config(ValueSettings(critic="separate") if critic else None, **options)
    state = _train_state(actor, settings, {"steps": StepCounts()})
    rollout = toy_rollout(actor)
    targets = rollout_advantages(rollout, rollout_rewards(rollout, rollout.scores, settings, kl_coef=0.1), settings)
    return actor, state, rollout, targets, settings


def run(parts, *, seed=0, **options):
    actor, state, rollout, targets, settings = parts
    generator = torch.Generator().manual_seed(seed)
    return update_on_rollout(
        actor, state, rollout, targets, settings, learning_rates=RATES, generator=generator, **options
    )


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def oracle_loss(actor, rollout, targets, eps=0.2):
    """Clipped policy loss + 0.1 · clipped value loss, response by response through transformers' own forward."""
    total, n = 0.0, int(rollout.response_mask.sum())
    row = 0
    for tree in rollout.trees:
        for branch in tree.branches:
            ids = torch.tensor([[*tree.prompt, *branch]])
            output = actor.lm.model(input_ids=ids, output_hidden_states=True)
            table = output.logits[0].log_softmax(-1)
            values = actor.value_head(output.hidden_states[-1][0])[:, 0]
            for t, token in enumerate(branch):
                at = len(tree.prompt) - 1 + t
                ratio = (table[at, token] - rollout.logprobs[row, t]).exp()
                adv = targets.advantages[row, t]
                total = total - torch.minimum(ratio * adv, ratio.clamp(1 - eps, 1 + eps) * adv)
                old, target = rollout.values[row, t], targets.returns[row, t]
                near = old + (values[at] - old).clamp(-eps, eps)
                total = total + 0.1 * 0.5 * torch.maximum((values[at] - target) ** 2, (near - target) ** 2)
            row += 1
    return total / n


def test_gradient_equals_a_plain_computation_whatever_the_micro_batches():
    actor, _, rollout, targets, settings = prepared(ratio_tolerance=1e9)
    with torch.no_grad():  # away from π_old, so that clips are active
        rng = torch.Generator().manual_seed(0)
        for parameter in actor.lm.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype))
    parameters = [*actor.lm.model.parameters(), *actor.value_head.parameters()]
    expected = torch.autograd.grad(oracle_loss(actor, rollout, targets), parameters)
    for budget in (10_000, 30):
        minibatch = cut_minibatch(rollout, [2, 0, 3, 1], budget)
        assert (len(minibatch.batches) > 1) == (budget == 30)
        stats = UpdateStats()
        update = _Update(actor, rollout, targets, settings, True, stats)
        losses = sum(minibatch_losses(update, minibatch, "policy"))
        found = torch.autograd.grad(losses, parameters)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-7)
        assert stats.n_clipped > 0
        assert stats.n_value_clipped > 0
        assert minibatch.n_tokens == int(rollout.response_mask.sum())


def test_micro_batches_do_not_change_the_update():
    results = []
    for budget in (10_000, 30):
        parts = prepared(token_budget=budget, n_epochs=2, n_minibatches=2)
        stats = run(parts)
        assert stats.n_minibatches == 4
        results.append((weights(parts[0].lm.model), weights(parts[0].value_head), stats.metrics(with_policy=True)))
    for a, b in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
    assert results[0][2] == pytest.approx(results[1][2], abs=1e-9)


def test_ratio_is_one_before_the_first_update_and_checked():
    stats = run(prepared(torch.float32, n_epochs=2, n_minibatches=2))
    assert 0 <= stats.ratio_error_first < 1e-4
    assert stats.ratio_max > 1.001  # later minibatches have moved
    actor, state, rollout, targets, settings = prepared(torch.float32)
    before = weights(actor.lm.model)
    shifted = replace(rollout, logprobs=rollout.logprobs + 0.01)
    with pytest.raises(InvariantError, match=r"ratio differs from 1 by 0\.0099"):
        run((actor, state, shifted, targets, settings))
    assert torch.equal(weights(actor.lm.model), before)  # nothing was stepped


def test_one_optimiser_step_a_minibatch_and_the_count_is_checked():
    parts = prepared(n_epochs=3, n_minibatches=2)
    run(parts)
    state = parts[1]
    assert {int(entry["step"]) for entry in state.optimisers["policy"].state.values()} == {6}
    check_optimiser_steps(state, expected=6)
    with pytest.raises(InvariantError, match="6 optimiser steps were asked for; expected 4"):
        check_optimiser_steps(state, expected=4)
    state.controllers["steps"].add("policy", skipped=False)
    with pytest.raises(InvariantError, match="made 6 steps; expected 7"):
        check_optimiser_steps(state, expected=None)


def test_gradients_are_clipped_and_adam_is_as_stated():
    parts = prepared(max_grad_norm=1e-3)
    stats = run(parts)
    assert stats.grad_norms[0] > 1e-2
    optimiser = parts[1].optimisers["policy"]
    moments = torch.cat([entry["exp_avg"].flatten() for entry in optimiser.state.values()])
    assert float(moments.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)  # first moment = (1 − β₁)·clipped gradient
    assert [group["eps"] for group in optimiser.param_groups] == [1e-5, 1e-5]
    assert [group["lr"] for group in optimiser.param_groups] == [1e-3, 1e-3]


def test_head_has_its_own_learning_rate():
    actor = toy_actor()
    settings = config(ValueSettings(head_lr_scale=10.0))
    state = _train_state(actor, settings, {"steps": StepCounts()})
    rollout = toy_rollout(actor)
    run(
        (
            actor,
            state,
            rollout,
            rollout_advantages(rollout, rollout_rewards(rollout, rollout.scores, settings, kl_coef=0.1), settings),
            settings,
        )
    )
    assert [group["lr"] for group in state.optimisers["policy"].param_groups] == [1e-3, pytest.approx(1e-2)]


def test_inner_epochs_end_when_the_policy_has_moved_enough():
    stats = run(prepared(n_epochs=4, n_minibatches=2, max_approx_kl=1e-7))
    assert stats.ended_early
    assert stats.n_minibatches == 2  # the first sees ratio 1; the second sees what the first did
    assert not run(prepared(n_epochs=1, n_minibatches=2, max_approx_kl=1e3)).ended_early


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    actor, state, rollout, targets, settings = prepared(torch.float32)
    broken = Advantages(targets.advantages.clone(), targets.returns)
    broken.advantages[0, 0] = math.inf
    before = weights(actor.lm.model)
    stats = run((actor, state, rollout, broken, settings))
    assert state.n_skipped == 1
    assert torch.equal(weights(actor.lm.model), before)
    assert stats.metrics(with_policy=True)["update/finite_grad_frac"] == 0
    check_optimiser_steps(state, expected=1)


def test_warm_up_moves_the_head_alone():
    parts = prepared(n_epochs=2)
    actor = parts[0]
    trunk, head = weights(actor.lm.model), weights(actor.value_head)
    stats = run(parts, train_policy=False)
    assert torch.equal(weights(actor.lm.model), trunk)
    assert not torch.equal(weights(actor.value_head), head)
    assert "policy/approx_kl" not in stats.metrics(with_policy=False)
    check_optimiser_steps(parts[1], expected=2)


def test_a_separate_critic_learns_apart_from_the_policy():
    parts = prepared(critic=True)
    actor = parts[0]
    before = [weights(m) for m in (actor.lm.model, actor.critic, actor.value_head)]
    run(parts)
    after = [weights(m) for m in (actor.lm.model, actor.critic, actor.value_head)]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    check_optimiser_steps(parts[1], expected=1)
    # the policy's step does not see the value loss: other returns, same policy
    other = prepared(critic=True)
    run((*other[:3], Advantages(other[3].advantages, other[3].returns + 3.0), other[4]))
    assert torch.equal(weights(other[0].lm.model), after[0])
    assert not torch.equal(weights(other[0].critic), after[1])
    # warm-up leaves the policy alone
    warm = prepared(critic=True)
    run(warm, train_policy=False)
    assert torch.equal(weights(warm[0].lm.model), before[0])
    assert not torch.equal(weights(warm[0].critic), before[1])


def test_minibatches_are_dealt_anew_and_keep_prompts_whole():
    _, _, rollout, _, _ = prepared(torch.float32)
    minibatch = cut_minibatch(rollout, [3, 1], 10_000)
    assert minibatch.rows.tolist() == [9, 10, 11, 3, 4, 5]
    assert len(minibatch.batches[0].layout.spans) == 2
    assert minibatch.n_tokens == int(rollout.lengths[[3, 4, 5, 9, 10, 11]].sum())
    first, second = (prepared(torch.float32, n_minibatches=2) for _ in range(2))
    run(first, seed=1)
    run(second, seed=2)
    assert not torch.equal(weights(first[0].lm.model), weights(second[0].lm.model))
