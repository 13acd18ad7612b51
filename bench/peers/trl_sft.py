"""TRL's SFTTrainer, packed, on the conversations and weights of the bench; one turn = one step.

Run inside TRL's own environment: python -m bench.peers.trl_sft WORK.json

WORK.json: {model, texts: [[ids], …], rows_per_step, row_tokens, n_steps, learning_rate, max_grad_norm, threads, output}.
Packing is TRL's "bfd": whole texts in rows of row_tokens. Without a flash-attention kernel the texts of a row see one
another, which saves the peer a mask and costs it correctness.
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
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class CountsTokens(SFTTrainer):
    """The same trainer, keeping each step's loss unrounded and its number of learnt tokens."""

    last_loss, n_tokens = float("nan"), 0

    def compute_loss(self, model, inputs, *arguments, **named):
        self.n_tokens = int((inputs["labels"][:, 1:] != -100).sum())
        loss = super().compute_loss(model, inputs, *arguments, **named)
        self.last_loss = float((loss[0] if isinstance(loss, tuple) else loss).detach())
        return loss


class StepClock(TrainerCallback):
    """Ends a turn after each step, in tokens learnt, and waits for the next."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.trainer = turns, None

    def on_step_end(self, args, state, control, **named):  # noqa: ARG002
        self.turns.done(self.trainer.n_tokens, loss=self.trainer.last_loss)
        self.turns.begin()


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    config = SFTConfig(
        output_dir=work["output"],
        per_device_train_batch_size=work["rows_per_step"],
        max_steps=work["n_steps"],
        learning_rate=work["learning_rate"],
        weight_decay=0.0,
        max_grad_norm=work["max_grad_norm"],
        max_length=work["row_tokens"],
        packing=True,
        gradient_checkpointing=False,  # on by default; off is faster
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    clock = StepClock(turns)
    trainer = CountsTokens(
        model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in work["texts"]]),
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
