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
from karat.policy.beside import Beside
from karat.policy.direct import train_direct
from karat.policy.expert import train_expert
from karat.policy.group import train_group
from karat.policy.ilql import train_ilql
from karat.policy.method_settings import (
    DirectConfig,
    ExpertConfig,
    GroupConfig,
    ImplicitQConfig,
    OnlineDPOConfig,
    StepSettings,
)
from karat.policy.offline_data import Preference, ScoredResponse
from karat.policy.online_dpo import train_online_dpo
from karat.policy.settings import ConstraintSettings, RolloutSettings
from karat.records import Demonstration, user_prompt
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from karat.sft.train import SFTConfig, train_sft
from policy_toys import PROMPTS, share_of_w3, toy_lm
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

DOCS = Path(__file__).parents[2] / "docs"


def documented(section: str, page: str = "metrics") -> set[str]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    part = next(part for part in text.split("\n## ") if part.startswith(section))
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


def test_figures_of_the_methods_beside_those_of_ppo():
    """Every method with all that it may log, a step each; what PPO logs is held against its own page where PPO is tested."""
    drawn = RolloutSettings(n_prompts=4, n_samples=2, max_new_tokens=4, exact_kl=True, exact_entropy=True)
    update = StepSettings(n_epochs=1, n_minibatches=2, max_step_kl=1.0, ptx_coef=0.1, ptx_batch=2)
    online = {"n_iterations": 1, "checkpoint_every": 0, "rollout": drawn}
    beside = Beside(
        cost_fn=share_of_w3, dense_fn=lambda prompts, texts: [[(len(text), 0.1)] for text in texts],  # noqa: ARG005
        demonstrations=[Demonstration(prompt, "w3", "test") for prompt in PROMPTS],
    )  # fmt: skip
    pairs = [Preference(prompt, "w3", "w4") for prompt in PROMPTS]
    scored = [ScoredResponse(prompt, text, score) for prompt in PROMPTS for text, score in (("w3", 1.0), ("w4", 0.0))]
    names = Names()
    rest = {"seed": 0, "reporters": [names], "evaluate": lambda *_: {}}
    limit = ConstraintSettings(limit=0.1)
    for algorithm, kl in (("rloo", "loss_k2"), ("grpo", "loss_k3"), ("reinforce_pp", "reward")):
        config = GroupConfig(algorithm, kl=kl, update=update, constraint=limit, **online)
        train_group(toy_lm(), PROMPTS, share_of_w3, config, beside=beside, **rest)
    paired = OnlineDPOConfig(update=replace(update, ptx_coef=0.0), **online)
    train_online_dpo(toy_lm(), PROMPTS, share_of_w3, paired, **rest)
    best = ExpertConfig(update=replace(update, ptx_coef=0.0), **online)
    train_expert(toy_lm(), PROMPTS, share_of_w3, best, **rest)
    for loss in ("dpo", "ipo", "kto"):
        train_direct(toy_lm(), pairs, DirectConfig(loss, batch_size=16), **rest)
    train_ilql(toy_lm(), scored, ImplicitQConfig(batch_size=16), **rest)
    ppo, more = documented("Metrics of an iteration", "ppo"), documented("Metrics beside", "optimisers")
    assert names.seen - ppo == more - {"validation/kl"}  # the watcher's, as the test below has it


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
