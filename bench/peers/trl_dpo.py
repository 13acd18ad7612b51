"""TRL's DPOTrainer on the pairs, order and weights of the bench; one turn = one step.

Run inside TRL's own environment: python -m bench.peers.trl_dpo WORK.json

WORK.json: {model, triples: [[prompt ids, chosen ids, rejected ids], …] in training order, pairs_per_step, n_steps,
learning_rate, beta, precompute, max_grad_norm, threads, output}.
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
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class InOrder(DPOTrainer):
    """The same trainer, given token ids, reading them in order and keeping each step's loss unrounded."""

    last_loss = float("nan")

    def _prepare_dataset(self, dataset, *arguments, **named):  # noqa: ARG002
        return dataset

    def _get_train_sampler(self, *arguments, **named):  # noqa: ARG002
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, *arguments, **named):
        loss = super().compute_loss(*arguments, **named)
        self.last_loss = float(loss.detach())
        return loss


class StepClock(TrainerCallback):
    """Ends a turn after each step and waits for the next."""

    def __init__(self, turns: Turns, pairs_per_step: int) -> None:
        self.turns, self.pairs_per_step, self.trainer = turns, pairs_per_step, None

    def on_step_end(self, args, state, control, **named):  # noqa: ARG002
        self.turns.done(self.pairs_per_step, loss=self.trainer.last_loss)
        self.turns.begin()


def main() -> None:
    """Load, then train turn by turn; reference log-probabilities that are computed before belong to no turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])

    def model():
        return AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32)

    config = DPOConfig(
        output_dir=work["output"],
        per_device_train_batch_size=work["pairs_per_step"],
        max_steps=work["n_steps"],
        learning_rate=work["learning_rate"],
        beta=work["beta"],
        precompute_ref_log_probs=work["precompute"],
        weight_decay=0.0,
        max_grad_norm=work["max_grad_norm"],
        max_length=1024,
        gradient_checkpointing=False,  # on by default; off is faster
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    clock = StepClock(turns, work["pairs_per_step"])
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer = InOrder(
        model=model(),
        ref_model=None if work["precompute"] else model(),
        args=config,
        train_dataset=Dataset.from_list([dict(zip(names, triple, strict=True)) for triple in work["triples"]]),
        processing_class=AutoTokenizer.from_pretrained(work["model"]),
        callbacks=[clock],
    )
    clock.trainer = trainer
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    turns.begin(ready=versions)
    trainer.train()


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
