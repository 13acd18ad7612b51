"""Every figure that a training stage logs is in the documentation, and nothing else is."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from karat.belief import Belief, ScoreScale
from karat.config import build
from karat.lm.adapters import add_lora
from karat.lm.load import load_lm
from karat.pipeline.optimise import looker
from karat.pipeline.settings import RunConfig
from karat.records import Demonstration, user_prompt
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from karat.sft.train import SFTConfig, train_sft
from policy_toys import PROMPTS, toy_lm
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def documented(section: str) -> set[str]:
    part = next(part for part in PAGE.split("\n## ") if part.startswith(section))
    return set(re.findall(r"^\| `([a-z_0-9/]+)` \|", part, flags=re.MULTILINE))


class Names:
    def __init__(self):
        self.seen = set()

    def log(self, _, metrics):
        self.seen |= set(metrics)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("documented"))


def test_figures_of_fine_tuning(checkpoint):
    names = Names()
    shown = [Demonstration(user_prompt("say red"), "red it is", "test")]
    train_sft(load_lm(checkpoint, for_training=True), shown, SFTConfig(batch_size=1), seed=0, reporters=[names])
    assert names.seen == documented("Fine-tuning")


def test_figures_of_the_reward_model(checkpoint):
    names = Names()
    votes, prompts, responses = planted_votes(n_prompts=3)
    trunk = DecoderTrunk(load_lm(checkpoint, for_training=True))
    train_reward(trunk, votes, prompts, responses, config=RewardConfig(), seed=0, reporters=[names])
    assert names.seen == documented("Reward")


class Unsure:
    """Stands for a scorer: two heads, one of which likes length."""

    scale = ScoreScale(shift=0.0, scale=1.0)

    def __call__(self, _, texts):
        draws = torch.tensor([[0.0] * len(texts), [float(len(text)) for text in texts]]).unsqueeze(-1)
        return Belief(draws, torch.zeros(2, 1, 1), torch.zeros(len(texts), dtype=torch.long))


def test_figures_of_the_watchers_look():
    config = build(RunConfig, {"sandbox": {}, "watch": {"n_samples": 2}, "ppo": {"rollout": {"max_new_tokens": 4}}})
    asked = {"validation/panel": 0.5, "validation/panel_votes": 4.0}
    look = looker(
        Unsure(), PROMPTS[:2], config, lambda *_: 1.0, seed=0, panel=lambda *_: asked, novel_frac=lambda *_: 0.0
    )
    assert set(look(toy_lm(), 0)) == documented("Optimiser")


def test_the_look_measures_the_kl_of_a_policy_with_adapters_from_the_model_without_them():
    config = build(RunConfig, {"sandbox": {}, "watch": {"n_samples": 2}, "ppo": {"rollout": {"max_new_tokens": 4}}})
    lm = toy_lm()
    lm = replace(lm, model=add_lora(lm.model, 2, 4.0))
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    found = [
        looker(Unsure(), PROMPTS[:2], config, None, seed=0, reference=reference)(lm, 0)["validation/kl"]
        for reference in (toy_lm(), lm)
    ]
    assert found[0] == found[1] != 0
