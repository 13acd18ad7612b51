"""Fine-tuning in one of several processes, for `tests/unit/test_lm_parallel.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from karat.lm import parallel
from karat.lm.load import load_lm
from karat.lm.loop import JsonlReporter
from karat.records import Demonstration, user_prompt
from karat.sft import train as recipe
from karat.sft.train import SFTConfig, train_sft
from tiny_models import tiny_checkpoint


def fine_tune(directory: str, rank: int, count: int) -> None:
    """Train on eight demonstrations, four a step; leaves metrics, weights and the count of this process's micro-batches."""
    torch.set_num_threads(1)
    place = Path(directory)
    model = tiny_checkpoint(
        "qwen3", place / f"model-{rank}"
    )  # in a group transformers lets the first process save only
    if count > 1:
        rendezvous = f"file://{place}/rendezvous"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=count)
    lm = load_lm(model, for_training=True)
    seen = []
    whole = recipe.response_logprobs

    def counted(*arguments, **options):
        seen.append(1)
        return whole(*arguments, **options)

    recipe.response_logprobs = counted
    shown = [Demonstration(user_prompt(f"say {i}"), f"{i} it is", "test") for i in range(8)]
    config = SFTConfig(epochs=4, batch_size=4, learning_rate=1e-2, checkpoint_every=4)
    reporters = [JsonlReporter(place / "metrics.jsonl")] if parallel.is_main() else []
    train_sft(lm, shown, config, seed=5, directory=place / "loop", reporters=reporters)
    save_file({name: p.detach().contiguous() for name, p in lm.model.named_parameters()}, place / f"weights-{rank}")
    (place / f"micro-batches-{rank}").write_text(str(len(seen)))
    if count > 1:
        torch.distributed.destroy_process_group()
