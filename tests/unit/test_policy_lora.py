"""PPO with adapters: policy, critic and reference are one frozen trunk in memory, and only what is small learns."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from karat.lm.adapters import add_lora, trunk_beside
from karat.lm.logprobs import response_logprobs, trunk_of
from karat.policy.actor import pack, reference_logprobs
from karat.policy.ppo import train_ppo
from karat.policy.rollout import draw_responses
from karat.policy.settings import PPOConfig, RewardSettings, RolloutSettings, UpdateSettings, ValueSettings
from policy_toys import PROMPTS, share_of_w3, toy_lm

SEPARATE = PPOConfig(
    n_iterations=4,
    checkpoint_every=2,
    rollout=RolloutSettings(n_prompts=4, n_samples=4, max_new_tokens=6),
    reward=RewardSettings(kl_coef=0.05),
    update=UpdateSettings(n_epochs=2, n_minibatches=2, learning_rate=3e-3, token_budget=200),
    value=ValueSettings(critic="separate"),
)


def adapted():
    lm = toy_lm()
    return replace(lm, model=add_lora(lm.model, 2, 8.0))


def plain_name(name):
    return name.replace("base_model.model.", "").replace("base_layer.", "")


def test_a_critic_with_lora_learns_by_adapters_of_its_own_on_the_policys_frozen_trunk():
    lm = adapted()
    before = {name: p.detach().clone() for name, p in toy_lm().model.named_parameters()}
    places = {name: p.data_ptr() for name, p in trunk_of(lm.model).named_parameters()}
    actor = train_ppo(lm, PROMPTS, share_of_w3, SEPARATE, seed=0).actor
    n_adapters = 0
    theirs = dict(trunk_of(lm.model).named_parameters())
    for name, parameter in actor.critic.named_parameters():
        if "lora_" in name:
            n_adapters += 1
            assert parameter.requires_grad
            assert parameter.data_ptr() != places[name]  # its own
            assert not torch.equal(parameter, theirs[name])
        else:
            assert not parameter.requires_grad
            assert parameter.data_ptr() == places[name]  # the policy's, not a copy
    assert n_adapters > 0
    assert n_adapters == sum("lora_" in name for name in theirs)
    after = {plain_name(name): p for name, p in lm.model.named_parameters() if "lora_" not in name}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert bool(actor.value_head.weight.any())
    assert all(bool(p.any()) for name, p in actor.critic.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_reference_is_the_base_model_before_and_after_training_and_no_copy(critic):
    lm = adapted()
    drawn = draw_responses(toy_lm(), PROMPTS[:4], SEPARATE.rollout, seed=1)
    (batch,) = pack(drawn.trees, 4096, lm.model.device)
    with torch.no_grad():
        base = response_logprobs(toy_lm().model, batch, temperature=1.0).logprobs
        expected = response_logprobs(lm.model, batch, temperature=1.0).logprobs
        # not to the bit: a model without adapters may have compiled passes, which add in another order
        torch.testing.assert_close(expected, base, rtol=0, atol=1e-5)
    config = replace(SEPARATE, value=ValueSettings(critic=critic))
    actor = train_ppo(lm, PROMPTS, share_of_w3, config, seed=0).actor
    assert actor.reference is None
    assert torch.equal(reference_logprobs(actor, batch, temperature=1.0), expected)
    with torch.no_grad():
        assert not torch.equal(response_logprobs(lm.model, batch, temperature=1.0).logprobs, expected)


def test_a_killed_run_with_a_critic_of_adapters_resumes_to_the_bit_from_adapters_alone(tmp_path):
    straight = train_ppo(adapted(), PROMPTS, share_of_w3, SEPARATE, seed=5)
    calls = []

    def dies(prompts, texts):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return share_of_w3(prompts, texts)

    with pytest.raises(KeyboardInterrupt):
        train_ppo(adapted(), PROMPTS, dies, SEPARATE, seed=5, directory=tmp_path)
    continued = train_ppo(adapted(), PROMPTS, share_of_w3, SEPARATE, seed=5, directory=tmp_path)
    for one, other in (
        (straight.actor.lm.model, continued.actor.lm.model),
        (straight.actor.critic, continued.actor.critic),
        (straight.actor.value_head, continued.actor.value_head),
    ):
        ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for key in ("score/mean", "kl/k1_per_sequence", "value/loss", "policy/approx_kl"):
        assert straight.last_metrics[key] == continued.last_metrics[key]
    (last,) = tmp_path.glob("step-*")
    saved = load_file(last / "critic.module")
    now = dict(continued.actor.critic.named_parameters())
    adapters = {name: tensor for name, tensor in saved.items() if name in now}
    assert set(adapters) == {name for name in now if "lora_" in name}  # the trunk is in no checkpoint
    assert all(torch.equal(adapters[name], now[name]) for name in adapters)


def test_of_a_critic_that_comes_with_adapters_only_these_learn():
    lm, other = adapted(), adapted()
    given = trunk_beside(other.model).requires_grad_(False)  # as a reward model's is loaded
    before = {name: p.detach().clone() for name, p in given.named_parameters()}
    train_ppo(lm, PROMPTS, share_of_w3, SEPARATE, seed=0, critic=given)
    moved = {name for name, p in given.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
