"""Our side of the sampling row: `sample` on the prompts and weights of the bench; one turn = all prompts once.

    python -m bench.ours.sample WORK.json

WORK.json: {model, prompts: [[ids], …], n_samples, max_new_tokens, threads, …}.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from pathlib import Path

import torch
import transformers
from bench.endings import raise_end_token
from bench.turns import Finished, Turns

from karat.lm.generate import SamplingConfig, sample
from karat.lm.load import load_lm


def main() -> None:
    """Load, then sample turn by turn, each with another seed."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    lm = load_lm(work["model"])
    raise_end_token(lm.model, lm.eos_ids[0])
    config = SamplingConfig(work["max_new_tokens"])
    turns.begin(ready={"torch": torch.__version__, "transformers": transformers.__version__})
    for seed in itertools.count():
        groups = sample(lm, work["prompts"], n_samples=work["n_samples"], config=config, seed=seed)
        turns.done(sum(len(one.response_tokens) for group in groups for one in group))
        turns.begin()


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
