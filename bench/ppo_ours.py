"""One PPO iteration of karat on the bench model "small": responses a second, and seconds by part.

48 response tokens, 4 epochs, float32; 64 different prompts × 1 sample, or 16 prompts × 4 samples. Prints one JSON object.
Usage: python bench/ppo_ours.py --prompts 16 --samples 4 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Sequence

MAX_PROMPT_TOKENS, MAX_NEW_TOKENS, N_EPOCHS = 96, 48, 4


class Laps:
    """A reporter that keeps metrics and the time between iterations."""

    def __init__(self) -> None:
        self.began, self.cpu_began = time.perf_counter(), time.process_time()
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One finished iteration."""
        now, cpu_now = time.perf_counter(), time.process_time()
        laps = {"seconds/all": now - self.began, "seconds/processor": cpu_now - self.cpu_began}
        self.rows.append({**metrics, "step": step, **laps})
        self.began, self.cpu_began = now, cpu_now


def bench_prompts(tokenizer, n: int) -> list:
    """The first n opening questions of the HH dialogues that fit."""
    from karat.lm.chat import prompt_tokens
    from karat.records import user_prompt
    from models import hh_rows

    prompts: dict[str, object] = {}
    for row in hh_rows():
        question = row["chosen"].split("\n\nAssistant:")[0].removeprefix("\n\nHuman:").strip()
        prompt = user_prompt(question) if question else None
        if prompt is not None and len(prompt_tokens(tokenizer, prompt.turns)) <= MAX_PROMPT_TOKENS:
            prompts.setdefault(prompt.id, prompt)
        if len(prompts) == n:
            break
    return list(prompts.values())


def share_of_vowels(prompts: Sequence[object], texts: Sequence[str]) -> list[float]:
    """A reward that costs nothing to compute."""
    assert len(prompts) == len(texts)
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in texts]


def main() -> None:
    """Measure and print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64, help="prompts a rollout")
    parser.add_argument("--samples", type=int, default=1, help="responses a prompt")
    parser.add_argument("--minibatches", type=int, default=4, help="optimiser steps an epoch")
    parser.add_argument("--repeats", type=int, default=3, help="measured iterations after one that warms up")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--token-budget", type=int, default=4096, help="positions in one forward pass")
    options = parser.parse_args()

    import torch
    import transformers

    from karat.lm.load import load_lm
    from karat.policy.ppo import train_ppo
    from karat.policy.settings import PPOConfig, RolloutSettings, UpdateSettings
    from models import checkpoint

    torch.set_num_threads(options.threads)
    lm = load_lm(checkpoint("small"), for_training=True)
    prompts = bench_prompts(lm.tokenizer, options.prompts)
    config = PPOConfig(
        n_iterations=1 + options.repeats,
        checkpoint_every=0,
        rollout=RolloutSettings(len(prompts), options.samples, MAX_NEW_TOKENS),
        update=UpdateSettings(
            n_epochs=N_EPOCHS, n_minibatches=options.minibatches, token_budget=options.token_budget, learning_rate=1e-5
        ),
    )
    laps = Laps()
    train_ppo(lm, prompts, share_of_vowels, config, seed=0, reporters=[laps])
    measured = laps.rows[1:]
    parts = {
        name.removeprefix("seconds/"): round(statistics.median(row[name] for row in measured), 4)
        for name in measured[0]
        if name.startswith("seconds/")
    }
    row = {
        "work": f"ppo {len(prompts)}x{options.samples}",
        "unit": "responses/s",
        "ours": round(config.n_sequences / parts["all"], 2),
        "seconds": parts,
        "response_tokens_mean": round(statistics.mean(row["response/length_mean"] for row in measured), 2),
        "optimiser_steps": config.steps_per_iteration,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": options.threads,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
