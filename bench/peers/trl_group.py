"""TRL's RLOOTrainer and GRPOTrainer on the prompts and weights of the bench; one turn = one iteration.

Run inside TRL's own environment: python -m bench.peers.trl_group WORK.json

WORK.json: {method, model, classifier, prompts: [[ids], …], n_samples, max_new_tokens, learning_rate, kl_coef,
n_iterations, eos_id, seed, threads, output}. Prompts are handed over as numbers and turned into the bench's own token ids
where the trainer would tokenise; the reward model reads token ids too, in one batch, so that nothing is decoded and
tokenised again. A device batch is the whole rollout: one generation, one optimiser step.
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
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer


class IterationClock(TrainerCallback):
    """Ends a turn after each iteration and waits for the next."""

    def __init__(self, turns: Turns, n_sequences: int) -> None:
        self.turns, self.n_sequences, self.score, self.optimiser = turns, n_sequences, float("nan"), None

    def on_step_end(self, args, state, control, **named):  # noqa: ARG002
        steps = max((int(entry["step"]) for entry in self.optimiser.state.values()), default=0)
        self.turns.done(self.n_sequences, score=self.score, n_steps_so_far=steps)
        self.turns.begin()


def reward_function(work, clock: IterationClock):
    """The classifier's score of prompt ⊕ completion, from token ids."""
    classifier = AutoModelForSequenceClassification.from_pretrained(work["classifier"], num_labels=1).eval()
    pad = classifier.config.pad_token_id or 0

    def reward(prompts, completions, completion_ids, **named):  # noqa: ARG001
        # our reward model reads a response with its end token, whether it was drawn or cut off
        ended = [[token for token in ids if token != work["eos_id"]] + [work["eos_id"]] for ids in completion_ids]
        rows = [work["prompts"][int(number)] + ids for number, ids in zip(prompts, ended, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.inference_mode():
            hidden = classifier.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
            last = hidden[torch.arange(len(rows)), mask.sum(1) - 1]
            scores = classifier.score(last).squeeze(1).tolist()
        clock.score = sum(scores) / len(scores)
        return scores

    return reward


def trainer_of(work, clock: IterationClock):
    """The trainer of the method, everything that does not serve the work switched off."""
    grpo = work["method"] == "grpo"
    base, config_of = (GRPOTrainer, GRPOConfig) if grpo else (RLOOTrainer, RLOOConfig)

    class GivenIds(base):
        """The same trainer, with the bench's token ids."""

        def _tokenize_prompts(self, prompts):
            return [list(work["prompts"][int(number)]) for number in prompts], None, {}

        def _get_train_sampler(self, dataset=None):  # noqa: ARG002
            k, n = work["n_samples"], len(work["prompts"])
            return [number for _ in range(work["n_iterations"]) for number in range(n) for _ in range(k)]

    n_sequences = len(work["prompts"]) * work["n_samples"]
    config = config_of(
        output_dir=work["output"],
        per_device_train_batch_size=n_sequences,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=1,
        num_generations=work["n_samples"],
        max_completion_length=work["max_new_tokens"],
        max_steps=work["n_iterations"],
        learning_rate=work["learning_rate"],
        beta=work["kl_coef"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        gradient_checkpointing=False,  # on by default; off is faster
        bf16=False,
        use_cpu=True,
        seed=work["seed"],
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **({"loss_type": "grpo"} if grpo else {}),
    )
    return GivenIds(
        model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        reward_funcs=reward_function(work, clock),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(len(work["prompts"]))]),
        processing_class=AutoTokenizer.from_pretrained(work["model"], padding_side="left"),
        callbacks=[clock],
    )


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    clock = IterationClock(turns, len(work["prompts"]) * work["n_samples"])
    trainer = trainer_of(work, clock)
    trainer.create_optimizer()
    clock.optimiser = trainer.optimizer
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    turns.begin(ready=versions)
    trainer.train()


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
