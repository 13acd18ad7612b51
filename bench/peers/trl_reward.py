"""TRL's RewardTrainer on the pairs, order and weights of the bench; one turn = one step.

Run inside TRL's own environment: python -m bench.peers.trl_reward WORK.json

WORK.json: {classifier, pairs: [[chosen ids, rejected ids], …] in training order, pairs_per_step, rankings_per_step
(what pairs_per_step say, where it is not 0), n_steps, learning_rate, max_grad_norm, threads, output}.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch
import transformers
import trl
from bench.turns import Finished, Turns
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer


class InOrder(RewardTrainer):
    """The same trainer, reading the pairs in the order given and keeping each step's loss unrounded."""

    last_loss = float("nan")

    def _get_train_sampler(self, *arguments, **named):  # noqa: ARG002
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, *arguments, **named):
        loss = super().compute_loss(*arguments, **named)
        self.last_loss = float(loss.detach())
        return loss


class StepClock(TrainerCallback):
    """Ends a turn after each step and waits for the next."""

    def __init__(self, turns: Turns, units_per_step: int) -> None:
        self.turns, self.units_per_step, self.trainer = turns, units_per_step, None

    def on_step_end(self, args, state, control, **named):  # noqa: ARG002
        self.turns.done(self.units_per_step, loss=self.trainer.last_loss)
        self.turns.begin()


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    model = AutoModelForSequenceClassification.from_pretrained(work["classifier"], num_labels=1, dtype=torch.float32)
    config = RewardConfig(
        output_dir=work["output"],
        per_device_train_batch_size=work["pairs_per_step"],
        max_steps=work["n_steps"],
        learning_rate=work["learning_rate"],
        weight_decay=0.0,
        max_grad_norm=work["max_grad_norm"],
        max_length=1024,
        gradient_checkpointing=False,  # on by default; off is faster
        bf16=work.get("peer_dtype") == "bfloat16",
        use_cpu=work.get("device", "cpu") == "cpu",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    clock = StepClock(turns, work["rankings_per_step"] or work["pairs_per_step"])
    trainer = InOrder(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{"chosen_ids": a, "rejected_ids": b} for a, b in work["pairs"]]),
        processing_class=AutoTokenizer.from_pretrained(work["classifier"]),
        callbacks=[clock],
    )
    clock.trainer = trainer
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    turns.begin(ready=versions)
    trainer.train()


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
