"""TRL's RLOOTrainer and GRPOTrainer on the prompts and weights of the bench; one turn = one iteration.

Run inside TRL's own environment: python -m bench.peers.trl_group WORK.json

WORK.json: {method, model, classifier, prompts: [[ids], …], n_samples, max_new_tokens, n_minibatches, learning_rate,
kl_coef, n_iterations, reward: "model" or a name of text_rewards, eos_id, seed, threads, output}. Prompts are handed over
as numbers and turned into the bench's own token ids where the trainer would tokenise; the reward model reads token ids
too, in one batch, so that nothing is decoded and tokenised again. One generation an iteration; a device batch is a
minibatch, and n_minibatches of them are one optimiser step each. With `probes` (responses as token ids) it also says
how it scores those.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch
import transformers
import trl
from bench.text_rewards import REWARDS, response_text
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

    def __init__(self, turns: Turns, n_sequences: int, n_steps: int) -> None:
        self.turns, self.n_sequences, self.n_steps = turns, n_sequences, n_steps
        self.score, self.optimiser = float("nan"), None

    def on_step_end(self, args, state, control, **named):  # noqa: ARG002
        if state.global_step % self.n_steps:
            return  # in the middle of an iteration
        steps = max((int(entry["step"]) for entry in self.optimiser.state.values()), default=0)
        self.turns.done(self.n_sequences, score=self.score, n_steps_so_far=steps)
        self.turns.begin()


def model_scores(work):
    """The classifier's scores of prompt ⊕ completion, from token ids."""
    classifier = AutoModelForSequenceClassification.from_pretrained(work["classifier"], num_labels=1).eval()
    device = work.get("device", "cpu")
    narrow = torch.autocast(device, torch.bfloat16, enabled=work.get("peer_dtype") == "bfloat16")
    classifier.to(device)
    pad = classifier.config.pad_token_id or 0

    def scores(prompts, completion_ids):
        # our reward model reads a response with its end token, whether it was drawn or cut off
        ended = [[token for token in ids if token != work["eos_id"]] + [work["eos_id"]] for ids in completion_ids]
        rows = [work["prompts"][int(number)] + ids for number, ids in zip(prompts, ended, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        with torch.inference_mode(), narrow:
            hidden = classifier.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
            last = hidden[torch.arange(len(rows), device=device), mask.sum(1) - 1]
            return classifier.score(last).squeeze(1).tolist()

    return scores


def text_scores(work, tokenizer):
    """A reward of text_rewards, of the completions' texts."""
    reward = REWARDS[work["reward"]]

    def scores(prompts, completion_ids):  # noqa: ARG001
        return [reward(response_text(tokenizer, ids, work["eos_id"])) for ids in completion_ids]

    return scores


def reward_function(scores, clock: IterationClock):
    """The same scores as the trainer asks for them; the clock learns their mean."""

    def reward(prompts, completions, completion_ids, **named):  # noqa: ARG001
        found = scores(prompts, completion_ids)
        clock.score = sum(found) / len(found)
        return found

    return reward


def config_of(work, config_class, **more):
    """The trainer's configuration, everything that does not serve the work switched off."""
    n_sequences, n_steps = len(work["prompts"]) * work["n_samples"], work["n_minibatches"]
    return config_class(
        output_dir=work["output"],
        per_device_train_batch_size=n_sequences // n_steps,
        gradient_accumulation_steps=1,
        steps_per_generation=n_steps,
        num_iterations=1,
        num_generations=work["n_samples"],
        max_completion_length=work["max_new_tokens"],
        max_steps=work["n_iterations"] * n_steps,
        learning_rate=work["learning_rate"],
        beta=work["kl_coef"],
        max_grad_norm=work.get("max_grad_norm", 1.0),
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        gradient_checkpointing=False,  # on by default; off is faster
        bf16=work.get("peer_dtype") == "bfloat16",
        use_cpu=work.get("device", "cpu") == "cpu",
        seed=work["seed"],
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **more,
    )


def trainer_of(work, tokenizer, reward, clock: IterationClock):
    """The trainer of the method, on the bench's token ids."""
    grpo = work["method"] == "grpo"

    class GivenIds(GRPOTrainer if grpo else RLOOTrainer):
        """The same trainer, with the bench's token ids."""

        def _tokenize_prompts(self, prompts):
            return [list(work["prompts"][int(number)]) for number in prompts], None, {}

        def _get_train_sampler(self, dataset=None):  # noqa: ARG002
            k, n = work["n_samples"], len(work["prompts"])
            # each optimiser step takes a batch from the loader, the first of an iteration generates
            n_batches = work["n_iterations"] * work["n_minibatches"]
            return [number for _ in range(n_batches) for number in range(n) for _ in range(k)]

    # by default its KL is weighted by the ratio, whose gradient is another one than that of GRPO as published
    published = {"loss_type": "grpo", "use_bias_correction_kl": False}
    config = config_of(work, GRPOConfig, **published) if grpo else config_of(work, RLOOConfig)
    return GivenIds(
        model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(len(work["prompts"]))]),
        processing_class=tokenizer,
        callbacks=[clock],
    )


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    clock = IterationClock(turns, len(work["prompts"]) * work["n_samples"], work["n_minibatches"])
    scores = model_scores(work) if work["reward"] == "model" else text_scores(work, tokenizer)
    trainer = trainer_of(work, tokenizer, reward_function(scores, clock), clock)
    trainer.create_optimizer()
    clock.optimiser = trainer.optimizer
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    probes = work.get("probes", [])
    turns.begin(ready=versions, probe_scores=scores(["0"] * len(probes), probes) if probes else [])
    trainer.train()


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
