"""Our side of the PPO rows: `train_ppo` on the prompts and weights of the bench; one turn = one iteration.

    python -m bench.ours.ppo WORK.json

WORK.json: {model, n_prompts, n_samples, max_new_tokens, n_epochs, n_minibatches, learning_rate, kl_coef,
n_iterations, reward: "model" or a name of text_rewards, adam_eps, seed, threads, dtype of the products (float32 if absent), …};
docs/benchmarks.md says what they mean. Where they are not the product's defaults also max_step_kl, gae_lambda, critic and value_clip (null = off).
With `probes` (responses as token ids) it also says how it scores those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from bench.inputs import hh_prompts
from bench.ours.scores import given_work, on_its_device, probe_scores, products_of, score_of
from bench.turns import Finished, Turns

from karat.lm.load import load_lm
from karat.policy.ppo import train_ppo
from karat.policy.settings import PPOConfig, RewardSettings, RolloutSettings, UpdateSettings, ValueSettings


class IterationClock:
    """A reporter that ends a turn after each iteration and waits for the next."""

    def __init__(self, turns: Turns, n_sequences: int) -> None:
        self.turns, self.n_sequences = turns, n_sequences

    def log(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002 - the protocol of reporters
        """Called by the training loop."""
        parts = {name.removeprefix("seconds/"): value for name, value in metrics.items() if name.startswith("seconds/")}
        figures = {"score": metrics["score/mean"], "n_steps": metrics["update/n_optimiser_steps"], "parts": parts}
        figures |= {
            "length_mean": metrics["response/length_mean"],
            "kl": {k: metrics[f"kl/{k}_per_token"] for k in ("k1", "k3")},
        }
        self.turns.done(self.n_sequences, **figures)
        self.turns.begin()


def ppo_config(work: Mapping[str, Any]) -> PPOConfig:
    """The product's configuration for a WORK.json."""
    return PPOConfig(
        n_iterations=work["n_iterations"],
        checkpoint_every=0,
        rollout=RolloutSettings(work["n_prompts"], work["n_samples"], work["max_new_tokens"]),
        reward=RewardSettings(kl_coef=work["kl_coef"]),
        update=UpdateSettings(
            n_epochs=work["n_epochs"],
            n_minibatches=work["n_minibatches"],
            learning_rate=work["learning_rate"],
            adam_eps=work["adam_eps"],
            max_step_kl=work.get("max_step_kl"),
            gae_lambda=work.get("gae_lambda", UpdateSettings.gae_lambda),
        ),
        value=ValueSettings(
            critic=work.get("critic", ValueSettings.critic),
            clip_range=work.get("value_clip", ValueSettings.clip_range),
        ),
    )


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = given_work()
    torch.set_num_threads(work["threads"])
    lm = load_lm(work["model"], for_training=True, products=products_of(work))
    prompts, _ = hh_prompts(work["n_prompts"])
    config = ppo_config(work)
    score = score_of(work["reward"], work.get("size", "small"))
    clock = IterationClock(turns, config.n_sequences)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    turns.begin(ready=versions, probe_scores=probe_scores(lm, prompts, score, work))
    train_ppo(lm, prompts, score, config, seed=work["seed"], reporters=[clock])


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        on_its_device(main)
