"""Our side of the PPO rows: `train_ppo` on the prompts and weights of the bench; one turn = one iteration.

    python -m bench.ours.ppo WORK.json

WORK.json: {model, n_prompts, n_samples, max_new_tokens, n_epochs, n_minibatches, learning_rate, kl_coef,
n_iterations, reward: "model" | "letters", seed, threads, …}; docs/benchmarks.md says what they mean.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from bench.inputs import hh_prompts
from bench.letters import LETTER, SCORE_OF_ONE
from bench.models import plain_reward_model
from bench.turns import Finished, Turns

from karat.belief import ScoreScale
from karat.lm.load import load_lm
from karat.policy.ppo import train_ppo
from karat.policy.settings import PPOConfig, RewardSettings, RolloutSettings, UpdateSettings
from karat.records import Prompt, ScoreFn
from karat.reward.calibration import VoteModel
from karat.reward.raters import RaterPriors
from karat.reward.score import Scorer, score_fn


class IterationClock:
    """A reporter that ends a turn after each iteration and waits for the next."""

    def __init__(self, turns: Turns, n_sequences: int) -> None:
        self.turns, self.n_sequences = turns, n_sequences

    def log(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002 - the protocol of reporters
        """Called by the training loop."""
        parts = {name.removeprefix("seconds/"): value for name, value in metrics.items() if name.startswith("seconds/")}
        figures = {"score": metrics["score/mean"], "n_steps": metrics["update/n_optimiser_steps"], "parts": parts}
        figures["length_mean"] = metrics["response/length_mean"]
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
            n_epochs=work["n_epochs"], n_minibatches=work["n_minibatches"], learning_rate=work["learning_rate"]
        ),
    )


def model_score() -> ScoreFn:
    """The reward model of the bench as a score function, raw scores."""
    model = plain_reward_model("small").requires_grad_(False).eval()
    return score_fn(Scorer(model, VoteModel(RaterPriors(), (0.0,)), ScoreScale(0.0, 1.0), torch.zeros(1, 1)))


def letter_score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:  # noqa: ARG001 - a ScoreFn
    """How often the letter occurs, in units of SCORE_OF_ONE."""
    return [SCORE_OF_ONE * text.count(LETTER) for text in responses]


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    lm = load_lm(work["model"], for_training=True)
    prompts, _ = hh_prompts(work["n_prompts"])
    config = ppo_config(work)
    score = model_score() if work["reward"] == "model" else letter_score
    clock = IterationClock(turns, config.n_sequences)
    turns.begin(ready={"torch": torch.__version__, "transformers": transformers.__version__})
    train_ppo(lm, prompts, score, config, seed=work["seed"], reporters=[clock])


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
