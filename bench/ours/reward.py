"""Our side of the reward and ranking rows: `train_reward` on what the bench says, in its order; one turn = one step.

    python -m bench.ours.reward WORK.json

WORK.json: {n_steps, pairs_per_step, rankings_per_step (0 = pairs), learning_rate, threads, size (medium if absent), dtype,
device, …}.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
import transformers
from bench.inputs import hh_pairs, hh_rankings
from bench.models import PLAIN_HEAD, SEED, checkpoint
from bench.ours.scores import given_work, on_its_device, products_of
from bench.turns import Finished, Turns

from karat.lm.load import load_lm
from karat.reward.raters import RaterPriors
from karat.reward.settings import RewardConfig
from karat.reward.train import train_reward
from karat.reward.trunk import DecoderTrunk


class StepClock:
    """A reporter that ends a turn after each step and waits for the next."""

    def __init__(self, turns: Turns, units_per_step: int) -> None:
        self.turns, self.units_per_step = turns, units_per_step

    def log(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002 - the protocol of reporters
        """Called by the training loop."""
        self.turns.done(self.units_per_step, loss=metrics["loss"])
        self.turns.begin()


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = given_work()
    torch.set_num_threads(work["threads"])
    n_rankings = work["rankings_per_step"]
    if n_rankings:
        ranked = hh_rankings(work["n_steps"] * n_rankings)
        given, n_responses = (ranked.said, ranked.prompts, ranked.responses), 4 * n_rankings
    else:
        pairs = hh_pairs(work["n_steps"] * work["pairs_per_step"])
        given, n_responses = (pairs.votes, pairs.prompts, pairs.responses), 2 * work["pairs_per_step"]
    trunk = DecoderTrunk(load_lm(checkpoint(work.get("size", "medium")), for_training=True, products=products_of(work)))
    config = RewardConfig(
        heads=PLAIN_HEAD,
        raters=RaterPriors(modelled=False),
        bootstrap="none",
        batch_responses=n_responses,
        token_budget=work["token_budget"],
        learning_rate=work["learning_rate"],
        head_learning_rate=work["learning_rate"],
        weight_decay=0.0,
        warmup_frac=0.0,
        max_grad_norm=work["max_grad_norm"],
        n_refits=0,
        holdout_frac=0.0,
        shuffle=False,
    )
    clock = StepClock(turns, n_rankings or work["pairs_per_step"])
    turns.begin(ready={"torch": torch.__version__, "transformers": transformers.__version__})
    train_reward(trunk, *given, config=config, seed=SEED, reporters=[clock])


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        on_its_device(main)
