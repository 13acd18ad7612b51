"""TRL's PPOTrainer on the prompts and weights of the bench; one turn = one iteration.

Run inside TRL's own environment: python -m bench.peers.trl_ppo WORK.json

WORK.json: {model, classifier, prompts: [[ids], …], n_samples, max_new_tokens, n_epochs, n_minibatches, learning_rate,
kl_coef, n_iterations, reward: "model" | "letters", seed, threads, output}. TRL has no several samples a prompt: the
prompts are repeated. A device batch is the whole rollout, and no gradients are accumulated, because the trainer steps
once in `gradient_accumulation_steps` micro-batches whatever `num_mini_batches` is (trl#5645): this way every minibatch
is one optimiser step, as it is meant.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
import trl
from bench.letters import LETTER, SCORE_OF_ONE
from bench.turns import Finished, Turns
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class LetterBackbone(nn.Module):
    """Counts a letter from `n_prompt` on; looks like a backbone with one hidden number a position."""

    def __init__(self, tokenizer, n_prompt: int) -> None:
        super().__init__()
        special = set(tokenizer.all_special_ids)
        counts = [0 if i in special else tokenizer.decode([i]).count(LETTER) for i in range(len(tokenizer))]
        self.register_buffer("counts", torch.tensor(counts, dtype=torch.float32))
        self.n_prompt = n_prompt

    def forward(self, input_ids, attention_mask, **named):  # noqa: ARG002
        hits = self.counts[input_ids] * attention_mask
        hits[:, : self.n_prompt] = 0
        return SimpleNamespace(hidden_states=[hits.cumsum(1).unsqueeze(-1)])


class LetterReward(nn.Module):
    """A reward model in the shape that the trainer expects, whose score is a function of the text."""

    base_model_prefix = "backbone"

    def __init__(self, tokenizer, n_prompt: int) -> None:
        super().__init__()
        self.backbone = LetterBackbone(tokenizer, n_prompt)

    def score(self, hidden):
        return hidden * SCORE_OF_ONE


class IterationClock(TrainerCallback):
    """Ends a turn after each iteration and waits for the next."""

    def __init__(self, turns: Turns, n_sequences: int) -> None:
        self.turns, self.n_sequences, self.score, self.optimiser = turns, n_sequences, float("nan"), None

    def on_log(self, args, state, control, logs=None, **named):  # noqa: ARG002
        self.score = (logs or {}).get("objective/scores", self.score)

    def on_step_end(self, args, state, control, **named):  # noqa: ARG002
        steps = max((int(entry["step"]) for entry in self.optimiser.state.values()), default=0)
        self.turns.done(self.n_sequences, score=self.score, n_steps_so_far=steps)
        self.turns.begin()


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    torch.manual_seed(work["seed"])  # of the value model's head, where the checkpoint has none
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    prompts = [ids for ids in work["prompts"] for _ in range(work["n_samples"])]

    def classifier():
        return AutoModelForSequenceClassification.from_pretrained(work["classifier"], num_labels=1, dtype=torch.float32)

    reward = classifier() if work["reward"] == "model" else LetterReward(tokenizer, max(map(len, prompts)))
    config = PPOConfig(
        output_dir=work["output"],
        per_device_train_batch_size=len(prompts),
        gradient_accumulation_steps=1,
        num_mini_batches=work["n_minibatches"],
        num_ppo_epochs=work["n_epochs"],
        total_episodes=len(prompts) * work["n_iterations"],
        learning_rate=work["learning_rate"],
        kl_coef=work["kl_coef"],
        response_length=work["max_new_tokens"],
        temperature=1.0,
        stop_token="eos",
        gradient_checkpointing=False,  # on by default; off is faster
        bf16=False,
        use_cpu=True,
        seed=work["seed"],
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    clock = IterationClock(turns, len(prompts))
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        reward_model=reward,
        value_model=classifier(),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts]),
        eval_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts[:1]]),
        callbacks=[clock],
    )
    clock.optimiser = trainer.optimizer
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    turns.begin(ready=versions)
    trainer.train()


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
