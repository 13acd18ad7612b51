"""The rewards that the benches give to PPO, on a tiny checkpoint in place of the bench's own."""

from __future__ import annotations

import pytest
from bench.models import PLAIN_HEAD, SEED
from bench.ours import ppo

from karat.lm.load import load_lm
from karat.records import user_prompt
from karat.reward.model import RewardModel
from karat.reward.trunk import DecoderTrunk
from tiny_models import tiny_checkpoint


def test_the_row_ppo_scores_with_the_reward_models_raw_numbers(tmp_path, monkeypatch) -> None:
    model = RewardModel(DecoderTrunk(load_lm(tiny_checkpoint("qwen3", tmp_path))), PLAIN_HEAD, seed=SEED)
    monkeypatch.setattr(ppo, "plain_reward_model", lambda _size: model)
    prompts, texts = [user_prompt("hi"), user_prompt("why?")], ["so", "because it is"]
    raw = model.features(model.trunk.encode(prompts, texts), token_budget=100) @ model.mean_weight().squeeze(0)
    assert ppo.model_score()(prompts, texts) == pytest.approx(raw.tolist(), abs=1e-5)
    assert ppo.letter_score(prompts, ["e", "bee"])[1] == 2 * ppo.letter_score(prompts, ["e", "bee"])[0]
