"""Each recipe as a function of a directory: small, with checkpoints at every step, to be killed and called again.

The functions run in processes of their own (see `tests/unit/test_exact_resume.py`); what they leave behind is the last
checkpoint and the metrics file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from karat.lm.adapters import add_lora
from karat.lm.checkpoints import newest_step
from karat.lm.load import load_lm
from karat.lm.loop import JsonlReporter, LoopConfig, TrainState, optimiser_step, run_loop
from karat.policy.controllers import AdaptiveKL
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
from karat.policy.ppo import train_ppo
from karat.policy.settings import PPOConfig, RewardSettings, RolloutSettings, UpdateSettings, ValueSettings
from karat.policy.watcher import Watcher, WatchRules
from karat.records import Demonstration, user_prompt
from karat.reward.model import HeadConfig
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from karat.seeding import torch_generator
from karat.sft.train import SFTConfig, train_sft
from policy_toys import PROMPTS, share_of_w3, toy_lm
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

N_STEPS = {"loop": 60, "sft": 16, "reward": 12, "reward-lora": 12, "ppo": 8, "ppo-lora": 8, "ppo-critic": 8}


def train(recipe: str, directory: str) -> None:
    """Run a recipe to its end, from its newest checkpoint if there is one."""
    torch.set_num_threads(1)
    place = Path(directory)
    metrics = JsonlReporter(place / "metrics.jsonl", resumed_step=newest_step(place / "loop"))
    RECIPES[recipe](place, metrics)


def _loop(place: Path, metrics: JsonlReporter) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    controller = AdaptiveKL(0.1, target=0.5, horizon=20)
    state = TrainState({"m": model}, {"m": torch.optim.AdamW(model.parameters(), lr=1e-2)}, {"kl": controller})

    def step(index: int) -> dict[str, float]:
        x = torch.randn(16, 8, generator=torch_generator(7, "step", index))
        loss = (model(x).squeeze(-1) - x.sum(1)).square().mean() * controller.coef
        norm = optimiser_step(state, "m", [loss], max_grad_norm=1.0, learning_rate=1e-2 / (index + 1))
        controller.update(float(loss.detach()), 16)
        return {"loss": float(loss.detach()), "norm": norm, "coef": controller.coef}

    run_loop(
        state, step, LoopConfig(N_STEPS["loop"], 1), directory=place / "loop", fingerprint="x", reporters=[metrics]
    )


def _checkpoint(place: Path) -> Path:
    model = place / "model"
    return model if (model / "tokenizer.json").exists() else tiny_checkpoint("qwen3", model)


def _sft(place: Path, metrics: JsonlReporter) -> None:
    shown = [Demonstration(user_prompt(f"say {i}"), f"{i} it is", "test") for i in range(8)]
    config = SFTConfig(epochs=N_STEPS["sft"] / 2, batch_size=4, learning_rate=1e-2, checkpoint_every=1)
    lm = load_lm(_checkpoint(place), for_training=True)
    train_sft(lm, shown, config, seed=5, directory=place / "loop", reporters=[metrics])


def _reward(place: Path, metrics: JsonlReporter, *, lora: bool = False) -> None:
    votes, prompts, responses = planted_votes(n_prompts=12)
    config = RewardConfig(
        heads=HeadConfig(n_heads=2), learning_rate=3e-3, batch_responses=12, n_epochs=3, patience=3, checkpoint_every=1
    )
    lm = load_lm(_checkpoint(place), for_training=not lora)
    if lora:
        lm = dataclasses.replace(lm, model=add_lora(lm.model, 2, 4.0, seed=1))
    train_reward(
        DecoderTrunk(lm),
        votes,
        prompts,
        responses,
        config=config,
        seed=0,
        directory=place / "loop",
        reporters=[metrics],
    )


def _ppo(
    place: Path,
    metrics: JsonlReporter,
    *,
    lora: bool = False,
    critic: bool = False,
    panel: bool = False,
    **loaded: torch.dtype,
) -> None:
    config = PPOConfig(
        n_iterations=N_STEPS["ppo"],
        checkpoint_every=1,
        evaluate_every=1 if panel else 2,
        rollout=RolloutSettings(n_prompts=4, n_samples=4, max_new_tokens=6),
        reward=RewardSettings(kl_controller="adaptive", kl_coef=0.05, kl_target=0.2, kl_horizon=100),
        update=UpdateSettings(n_epochs=2, n_minibatches=2, learning_rate=3e-3, token_budget=200),
        value=ValueSettings(critic="separate" if critic else "shared"),
    )
    lm = toy_lm(**loaded)
    if lora:
        lm = dataclasses.replace(lm, model=add_lora(lm.model.requires_grad_(False), 2, 4.0, seed=1))
    train_ppo(lm, PROMPTS, share_of_w3, config, **_around(place, metrics) | (_panel(place) if panel else {}))


def _panel(place: Path) -> dict:
    """Votes that first praise what they later take back: the best policy is an earlier one, of those on disk."""
    shares = (0.5, 0.55, 0.66, 0.6, 0.58, 0.69, 0.6, 0.5, 0.48)
    rules = WatchRules(best_metric="validation/panel", of_top=0.85, run_steps=N_STEPS["ppo"], candidates=2)
    return {
        "watcher": Watcher(rules, directory=place / "watcher"),
        "evaluate": lambda _, done: {"validation/panel": shares[done], "validation/panel_votes": 96.0},
    }


def _online(
    kind: type, recipe: Callable[..., object], *, limit: float | None = None, **own: object
) -> Callable[[Path, JsonlReporter], None]:
    """A method that draws its own responses."""

    def work(place: Path, metrics: JsonlReporter) -> None:
        config = kind(
            n_iterations=N_STEPS["ppo"],
            checkpoint_every=1,
            evaluate_every=2,
            rollout=RolloutSettings(n_prompts=4, n_samples=4, max_new_tokens=6),
            update=StepSettings(n_epochs=2, n_minibatches=2, learning_rate=3e-3, token_budget=200, max_step_kl=limit),
            **own,
        )
        recipe(toy_lm(), PROMPTS, share_of_w3, config, **_around(place, metrics))

    return work


def _direct(loss: str) -> Callable[[Path, JsonlReporter], None]:
    """A method that reads comparisons; KTO reads two labels in each."""

    def work(place: Path, metrics: JsonlReporter) -> None:
        given = [Preference(prompt, "w3 w4", f"w5 w6 w{i}") for i, prompt in enumerate(PROMPTS[:6])]
        epochs = N_STEPS["ppo"] / (4 if loss == "kto" else 2)
        config = DirectConfig(loss=loss, epochs=epochs, batch_size=3, learning_rate=3e-3, checkpoint_every=1)
        train_direct(toy_lm(), given, config, **_around(place, metrics))

    return work


def _ilql(place: Path, metrics: JsonlReporter) -> None:
    given = [ScoredResponse(prompt, "w3 w4 w5", float(i)) for i, prompt in enumerate(PROMPTS[:6])]
    config = ImplicitQConfig(epochs=N_STEPS["ppo"] / 2, batch_size=3, learning_rate=3e-3, checkpoint_every=1)
    train_ilql(toy_lm(), given, config, **_around(place, metrics))


def _around(place: Path, metrics: JsonlReporter) -> dict:
    return {
        "seed": 3,
        "directory": place / "loop",
        "reporters": [metrics],
        "watcher": Watcher(WatchRules(best_metric="validation/x"), directory=place / "watcher"),
        "evaluate": lambda _, done: {"validation/x": float(done % 3)},
    }


RECIPES: dict[str, Callable[[Path, JsonlReporter], None]] = {
    "loop": _loop,
    "sft": _sft,
    "reward": _reward,
    "reward-lora": lambda place, metrics: _reward(place, metrics, lora=True),
    "ppo": _ppo,
    "ppo-panel": lambda place, metrics: _ppo(place, metrics, panel=True),
    "ppo-lora": lambda place, metrics: _ppo(place, metrics, lora=True),
    "ppo-bfloat16": lambda place, metrics: _ppo(place, metrics, products=torch.bfloat16),
    "ppo-lora-critic": lambda place, metrics: _ppo(place, metrics, lora=True, critic=True),
    "ppo-critic": lambda place, metrics: _ppo(place, metrics, critic=True),
    "rloo": _online(GroupConfig, train_group, method="rloo"),
    "rloo-short-steps": _online(GroupConfig, train_group, method="rloo", limit=1e-4),
    "grpo": _online(GroupConfig, train_group, method="grpo"),
    "reinforce_pp": _online(GroupConfig, train_group, method="reinforce_pp"),
    "online_dpo": _online(OnlineDPOConfig, train_online_dpo),
    "expert_iteration": _online(ExpertConfig, train_expert),
    "dpo": _direct("dpo"),
    "ipo": _direct("ipo"),
    "kto": _direct("kto"),
    "ilql": _ilql,
}
