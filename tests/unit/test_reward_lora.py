"""A reward model on a frozen trunk: only adapters and heads move, and what is saved scores like what was trained."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from karat.belief import mean_score
from karat.errors import LedgerError
from karat.lm.adapters import add_lora
from karat.lm.load import load_lm
from karat.lm.logprobs import trunk_of
from karat.records import user_prompt
from karat.reward.model import HeadConfig
from karat.reward.score import load_scorer, save_reward, scorer_of
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

CONFIG = RewardConfig(heads=HeadConfig(n_heads=2), learning_rate=1e-2, head_learning_rate=1e-2, n_refits=1, n_epochs=2)
PROMPTS = [user_prompt("q1"), user_prompt("another question")]
TEXTS = ["abc", "aaaa bb"]


def fitted(path, directory=None, rank=4):
    lm = load_lm(path)
    adapted = dataclasses.replace(lm, model=add_lora(lm.model, rank, 8.0, seed=1))
    votes, prompts, responses = planted_votes(4)
    config = dataclasses.replace(CONFIG, checkpoint_every=1)
    return train_reward(DecoderTrunk(adapted), votes, prompts, responses, config=config, seed=0, directory=directory)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_adapters_learn_while_the_trunk_stays_and_the_saved_model_scores_the_same(kind, tmp_path):
    base = tiny_checkpoint(kind, tmp_path / "base")
    fit = fitted(base)
    now = dict(fit.model.trunk_module.named_parameters())
    moved = {name for name, parameter in now.items() if parameter.requires_grad}
    assert moved
    assert all("lora_" in name for name in moved)
    assert any(bool(now[name].abs().max() > 0) for name in moved if "lora_B" in name)  # they began at 0
    before = dict(load_lm(base).model.base_model.named_parameters())
    for name, parameter in before.items():
        assert any(
            torch.equal(parameter, other) for key, other in now.items() if key.replace("base_layer.", "") == name
        )
    path = save_reward(fit, tmp_path / "rm", metadata={"run_id": "r1"})
    expected = mean_score(scorer_of(fit)(PROMPTS, TEXTS))
    assert torch.allclose(mean_score(load_scorer(path)(PROMPTS, TEXTS)), expected, atol=1e-5, rtol=0)
    untouched = AutoModelForSequenceClassification.from_pretrained(path)  # loads without peft and without karat
    assert not any("lora_" in name for name, _ in untouched.named_parameters())


def test_a_checkpoint_under_adapters_of_another_rank_is_refused_by_that_name(tmp_path):
    base = tiny_checkpoint("qwen3", tmp_path / "base")
    fitted(base, tmp_path / "kept")
    with pytest.raises(LedgerError, match=r"lora\.rank: 4 there, 2 here"):
        fitted(base, tmp_path / "kept", rank=2)


def policy(path, rank=4, alpha=8.0):
    lm = load_lm(path)
    return dataclasses.replace(lm, model=add_lora(lm.model, rank, alpha, seed=7))


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_reward_with_adapters_stands_on_the_frozen_weights_of_the_policy(kind, tmp_path):
    base = tiny_checkpoint(kind, tmp_path / "base")
    path = save_reward(fitted(base), tmp_path / "rm", metadata={"run_id": "r1"})
    lm = policy(base)
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    alone, borrowed = load_scorer(path), load_scorer(path, on=lm)
    theirs = dict(trunk_of(lm.model).named_parameters())
    own = dict(borrowed.model.trunk_module.named_parameters())
    assert own.keys() == theirs.keys()
    assert any("lora_" in name for name in own)
    for name, parameter in own.items():
        assert (parameter.data_ptr() == theirs[name].data_ptr()) is ("lora_" not in name)
        assert not parameter.requires_grad
    expected = alone.every(PROMPTS, TEXTS)
    torch.testing.assert_close(borrowed.every(PROMPTS, TEXTS), expected, atol=1e-5, rtol=0)
    with torch.no_grad():  # as the policy learns, its reward stays
        for name, parameter in theirs.items():
            if "lora_" in name:
                parameter.add_(0.1)
    torch.testing.assert_close(borrowed.every(PROMPTS, TEXTS), expected, atol=1e-5, rtol=0)
    now = dict(lm.model.named_parameters())
    assert all(torch.equal(now[name], before[name]) for name in before if "lora_" not in name)
    assert all(
        p.requires_grad is ("lora_" in name) for name, p in now.items()
    )  # scoring has not stopped it from learning


def test_a_reward_keeps_its_own_trunk_where_the_policy_is_another(tmp_path):
    base, other = (tiny_checkpoint("qwen3", tmp_path / name, seed=seed) for name, seed in (("base", 0), ("other", 1)))
    path = save_reward(fitted(base), tmp_path / "rm", metadata={"run_id": "r1"})
    expected = load_scorer(path).every(PROMPTS, TEXTS)
    plain = load_lm(base, for_training=True)
    for lm in (plain, policy(other), policy(base, rank=2), policy(base, alpha=4.0)):
        scorer = load_scorer(path, on=lm)
        theirs = {p.data_ptr() for p in lm.model.parameters()}
        assert not any(p.data_ptr() in theirs for p in scorer.model.trunk_module.parameters())
        assert torch.equal(scorer.every(PROMPTS, TEXTS), expected)
    assert all(p.requires_grad for p in plain.model.parameters())


def test_a_resumed_fit_with_adapters_is_the_same_to_the_bit(tmp_path):
    base = tiny_checkpoint("qwen3", tmp_path / "base")
    whole = fitted(base)
    fitted(base, tmp_path / "loop")
    again = fitted(base, tmp_path / "loop")  # nothing left to do but to read the last checkpoint
    assert torch.equal(whole.model.weight, again.model.weight)
    pairs = zip(whole.model.trunk_module.parameters(), again.model.trunk_module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
