"""TRL's RewardTrainer on the pairs, order and weights of the bench; run inside TRL's own environment.

    python trl_reward.py WORK.json RESULT.json

WORK.json: {model, pairs: [[chosen ids, rejected ids], …] in training order, pairs_per_step, learning_rate,
max_grad_norm, weight_decay, n_warm_steps, threads}. The first n_warm_steps steps are not timed.
"""

import json
import resource
import sys
import time

import torch
import transformers
import trl
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer

work = json.load(open(sys.argv[1]))
torch.set_num_threads(work["threads"])
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(work["model"], num_labels=1, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(work["model"])
dataset = Dataset.from_list([{"chosen_ids": a, "rejected_ids": b} for a, b in work["pairs"]])
resident_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class InOrder(RewardTrainer):
    """The same trainer, reading the pairs in the order given."""

    def _get_train_sampler(self, *arguments, **named):
        return SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    """Times whole steps and keeps every loss."""

    def __init__(self):
        self.losses, self.marks = [], []

    def on_step_end(self, args, state, control, **named):
        self.marks.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **named):
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


clock = Clock()
n_steps = len(work["pairs"]) // work["pairs_per_step"]
config = RewardConfig(
    output_dir=sys.argv[2] + ".out",
    per_device_train_batch_size=work["pairs_per_step"],
    max_steps=n_steps,
    learning_rate=work["learning_rate"],
    lr_scheduler_type="constant",
    warmup_steps=0,
    weight_decay=work["weight_decay"],
    max_grad_norm=work["max_grad_norm"],
    adam_epsilon=1e-8,
    max_length=1024,
    gradient_checkpointing=False,
    bf16=False,
    use_cpu=True,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    dataloader_drop_last=False,
)
trainer = InOrder(model=model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[clock])
start = time.perf_counter()
trainer.train()
marks = [start, *clock.marks]
warm = work["n_warm_steps"]
seconds = marks[-1] - marks[warm]
json.dump(
    {
        "pairs_per_s": (n_steps - warm) * work["pairs_per_step"] / seconds,
        "losses": clock.losses,
        "step_s": [b - a for a, b in zip(marks, marks[1:])],
        "resident_mib": resident_mib,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    },
    open(sys.argv[2], "w"),
)
