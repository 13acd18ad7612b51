"""TRL's RLOOTrainer and GRPOTrainer on responses that were drawn before: everything but the sampling is TRL's.

Run inside TRL's own environment: python -m bench.peers.trl_replay WORK.json

WORK.json: what `bench.peers.trl_group` reads, and {responses: file with [iteration][response] as token ids, weights: directory
that gets the trained model}. One turn an iteration, and one more that writes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch
import transformers
import trl
from bench.peers.trl_group import IterationClock, reward_function, text_scores, trainer_of
from bench.turns import Finished, Turns
from transformers import AutoTokenizer


class ReplayClock(IterationClock):
    """Also says the KL that the trainer logged last."""

    trainer = None

    def on_step_end(self, args, state, control, **named):  # noqa: ARG002
        self.turns.done(self.n_sequences, score=self.score, kl=self.trainer._metrics["train"]["kl"][-1])
        self.turns.begin()


def main() -> None:
    """Load, train turn by turn, write."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    clock = ReplayClock(turns, len(work["prompts"]) * work["n_samples"], 1)
    trainer = trainer_of(work, tokenizer, reward_function(text_scores(work, tokenizer), clock), clock)
    clock.trainer = trainer
    iterations = iter(json.loads(Path(work["responses"]).read_text(encoding="utf-8")))
    grpo = work["method"] == "grpo"
    # GRPO's trainer also asks for the sampler's log-probabilities, and has none without vLLM
    trainer._generate_single_turn = lambda *_, **__: (next(iterations), None) if grpo else next(iterations)
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    turns.begin(ready=versions)
    trainer.train()
    trainer.model.save_pretrained(work["weights"])
    turns.done(0)


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
