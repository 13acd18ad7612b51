"""A reward model on a frozen trunk: only adapters and heads move, and what is saved scores like what was trained."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from karat.belief import mean_score
from karat.lm.adapters import add_lora
from karat.lm.load import load_lm
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


def fitted(path, directory=None):
    lm = load_lm(path)
    adapted = dataclasses.replace(lm, model=add_lora(lm.model, 4, 8.0, seed=1))
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


def test_a_resumed_fit_with_adapters_is_the_same_to_the_bit(tmp_path):
    base = tiny_checkpoint("qwen3", tmp_path / "base")
    whole = fitted(base)
    fitted(base, tmp_path / "loop")
    again = fitted(base, tmp_path / "loop")  # nothing left to do but to read the last checkpoint
    assert torch.equal(whole.model.weight, again.model.weight)
    pairs = zip(whole.model.trunk_module.parameters(), again.model.trunk_module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
