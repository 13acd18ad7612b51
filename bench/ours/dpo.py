"""Our side of the row dpo: `train_direct` on the pairs, order and weights of the bench; one turn = one step.

    python -m bench.ours.dpo WORK.json

WORK.json: {n_steps, pairs_per_step, learning_rate, beta, precompute, threads, …}.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from bench.inputs import hh_pairs
from bench.models import SEED, checkpoint
from bench.turns import Finished, Turns

from karat.lm.load import load_lm
from karat.policy.direct import train_direct
from karat.policy.method_settings import DirectConfig
from karat.policy.offline_data import Preference


class StepClock:
    """A reporter that ends a turn after each step and waits for the next."""

    def __init__(self, turns: Turns, units: int, loss: str) -> None:
        self.turns, self.units, self.loss = turns, units, loss

    def log(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002 - the protocol of reporters
        """Called by the training loop."""
        self.turns.done(self.units, loss=metrics[self.loss])
        self.turns.begin()


def main() -> None:
    """Load, then train turn by turn; what is computed before the first step is no part of a turn on either side."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    pairs = hh_pairs(work["n_steps"] * work["pairs_per_step"])
    preferences = [
        Preference(pairs.prompts[vote.prompt_id], pairs.responses[vote.a].text, pairs.responses[vote.b].text)
        for vote in pairs.votes
    ]
    config = DirectConfig(
        loss="dpo",
        beta=work["beta"],
        batch_size=work["pairs_per_step"],
        learning_rate=work["learning_rate"],
        warmup_frac=0.0,
        adam_eps=1e-8,
        max_grad_norm=work["max_grad_norm"],
        token_budget=work["token_budget"],
        precompute_reference=work["precompute"],
        shuffle=False,
        checkpoint_every=0,
    )
    clock = StepClock(turns, work["pairs_per_step"], "direct/loss")

    def begin(lm: object, step: int) -> dict[str, float]:
        """The first turn begins when the reference's log-probabilities are there."""
        del lm
        if step == 0:
            turns.begin(ready={"torch": torch.__version__, "transformers": transformers.__version__})
        return {}

    class FromFirstStep:
        """Passes on what is logged after a step; what is logged before the first belongs to no turn."""

        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            """Called by the training loop."""
            if step:
                clock.log(step, metrics)

    lm = load_lm(checkpoint("medium"), for_training=True)
    train_direct(lm, preferences, config, seed=SEED, reporters=[FromFirstStep()], evaluate=begin)


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
