"""TRL's PPOTrainer on the prompts and weights of the bench; one turn = one iteration.

Run inside TRL's own environment: python -m bench.peers.trl_ppo WORK.json

WORK.json: {model, classifier, prompts: [[ids], …], n_samples, max_new_tokens, n_epochs, n_minibatches, learning_rate,
kl_coef, n_iterations, reward: "model" or a name of text_rewards, seed, threads, output, peer_dtype: float32, or bfloat16 for
the trainer's mixed precision under float32 weights (float32 if absent)}. TRL has no several samples a
prompt: the prompts are repeated. A device batch is the whole rollout, and no gradients are accumulated, because the
trainer steps once in `gradient_accumulation_steps` micro-batches whatever `num_mini_batches` is (trl#5645): this way
every minibatch is one optimiser step, as it is meant. With `probes` (responses as token ids) it also says how it scores
those.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
import trl
from bench.peers.text_reward import TextReward
from bench.text_rewards import REWARDS
from bench.turns import Finished, Turns
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl.experimental.ppo.ppo_trainer import get_reward, truncate_response


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


def classifier(work):
    """A model of the policy's trunk with one score."""
    return AutoModelForSequenceClassification.from_pretrained(work["classifier"], num_labels=1, dtype=torch.float32)


def config_of(work, n_sequences: int) -> PPOConfig:
    """The trainer's configuration, everything that does not serve the work switched off."""
    return PPOConfig(
        output_dir=work["output"],
        per_device_train_batch_size=n_sequences,
        gradient_accumulation_steps=1,
        num_mini_batches=work["n_minibatches"],
        num_ppo_epochs=work["n_epochs"],
        total_episodes=n_sequences * work["n_iterations"],
        learning_rate=work["learning_rate"],
        kl_coef=work["kl_coef"],
        response_length=work["max_new_tokens"],
        temperature=1.0,
        stop_token="eos",
        gradient_checkpointing=False,  # on by default; off is faster
        bf16=work.get("peer_dtype") == "bfloat16",
        use_cpu=work.get("device", "cpu") == "cpu",
        seed=work["seed"],
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def probe_scores(work, tokenizer, reward, n_prompt: int) -> list[float]:
    """Scores of the probes as the trainer asks for them: behind a prompt, padded, cut after the end token."""
    probes = work.get("probes", ())
    if not probes:
        return []
    pad, width = tokenizer.pad_token_id, max(map(len, probes)) + 1
    responses = torch.tensor([ids + [pad] * (width - len(ids)) for ids in probes])
    prompt = max(work["prompts"], key=len)
    queries = torch.tensor([prompt]).expand(len(probes), -1)
    rows = torch.cat((queries, truncate_response(tokenizer.eos_token_id, pad, responses)), 1)
    with torch.no_grad():
        return get_reward(reward, rows, pad, n_prompt)[1].tolist()


def main() -> None:
    """Load, then train turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    torch.manual_seed(work["seed"])  # of the value model's head, where the checkpoint has none
    np.random.seed(work["seed"])  # noqa: NPY002 - the trainer deals its minibatches by it, and does not seed it
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    prompts = [ids for ids in work["prompts"] for _ in range(work["n_samples"])]
    n_prompt = max(map(len, prompts))
    name = work["reward"]
    reward = classifier(work) if name == "model" else TextReward(REWARDS[name], tokenizer, n_prompt)
    clock = IterationClock(turns, len(prompts))
    trainer = PPOTrainer(
        args=config_of(work, len(prompts)),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        reward_model=reward,
        value_model=classifier(work),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts]),
        eval_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts[:1]]),
        callbacks=[clock],
    )
    clock.optimiser = trainer.optimizer
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    turns.begin(ready=versions, probe_scores=probe_scores(work, tokenizer, reward, n_prompt))
    trainer.train()


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
