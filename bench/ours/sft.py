"""Our side of the row sft: `train_on_pairs` on the conversations and weights of the bench; one turn = one step.

    python -m bench.ours.sft WORK.json

WORK.json: {texts: [[ids], …], texts_per_step, n_steps, learning_rate, max_grad_norm, token_budget, threads}. Every token
but a text's first is learnt, on both sides.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from bench.models import SEED, checkpoint
from bench.turns import Finished, Turns

from karat.lm.load import load_lm
from karat.sft.train import SFTConfig, train_on_pairs


class TokenClock:
    """A reporter that ends a turn after each step, in tokens learnt, and waits for the next."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def log(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002 - the protocol of reporters
        """Called by the training loop."""
        self.turns.done(metrics["n_tokens"], loss=metrics["nll_per_token"])
        self.turns.begin()


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    lm = load_lm(checkpoint("medium"), for_training=True)
    pairs = [(ids[:1], ids[1:]) for ids in work["texts"]]
    config = SFTConfig(
        epochs=work["n_steps"] * work["texts_per_step"] / len(pairs),
        batch_size=work["texts_per_step"],
        learning_rate=work["learning_rate"],
        warmup_frac=0.0,
        weight_decay=0.0,
        max_grad_norm=work["max_grad_norm"],
        token_budget=work["token_budget"],
    )
    turns.begin(ready={"torch": torch.__version__, "transformers": transformers.__version__})
    train_on_pairs(lm, pairs, config, seed=SEED, reporters=[TokenClock(turns)])


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
