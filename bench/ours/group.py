"""Our side of the rows rloo and grpo: `train_group` on the prompts and weights of the bench; one turn = one iteration.

    python -m bench.ours.group WORK.json

WORK.json: {method, model, n_prompts, n_samples, max_new_tokens, n_minibatches, learning_rate, kl_coef, n_iterations,
reward: "model" or a name of text_rewards, adam_eps, seed, threads, …}, and where they are not the defaults dtype, max_grad_norm, max_step_kl, level and normalise. With `probes` (responses as token ids) it also
says how it scores those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from bench.inputs import hh_prompts
from bench.ours.ppo import IterationClock
from bench.ours.scores import given_work, on_its_device, probe_scores, products_of, score_of
from bench.turns import Finished, Turns

from karat.lm.load import load_lm
from karat.policy.group import train_group
from karat.policy.method_settings import GroupConfig, StepSettings
from karat.policy.settings import RewardSettings, RolloutSettings


def group_config(work: Mapping[str, Any]) -> GroupConfig:
    """The product's configuration for a WORK.json: each method as published, one pass over each rollout."""
    return GroupConfig(
        method=work["method"],
        n_iterations=work["n_iterations"],
        checkpoint_every=0,
        rollout=RolloutSettings(work["n_prompts"], work["n_samples"], work["max_new_tokens"]),
        reward=RewardSettings(kl_coef=work["kl_coef"]),
        update=StepSettings(
            n_minibatches=work["n_minibatches"],
            learning_rate=work["learning_rate"],
            adam_eps=work["adam_eps"],
            max_grad_norm=work.get("max_grad_norm", 1.0),
            max_step_kl=work.get("max_step_kl"),
        ),
        level=work.get("level"),
        normalise=work.get("normalise"),
    )


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = given_work()
    torch.set_num_threads(work["threads"])
    lm = load_lm(work["model"], for_training=True, products=products_of(work))
    prompts, _ = hh_prompts(work["n_prompts"])
    config = group_config(work)
    score = score_of(work["reward"], work.get("size", "small"))
    clock = IterationClock(turns, config.n_sequences)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    turns.begin(ready=versions, probe_scores=probe_scores(lm, prompts, score, work))
    train_group(lm, prompts, score, config, seed=work["seed"], reporters=[clock])


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        on_its_device(main)
