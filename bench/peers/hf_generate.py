"""`generate` of transformers with `num_return_sequences` on the prompts and weights of the bench; one turn = all prompts.

Run inside a peer's environment: python -m bench.peers.hf_generate WORK.json

WORK.json: {model, prompts: [[ids], …], n_samples, max_new_tokens, eos_id, pad_id, threads}.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch
import transformers
from bench.endings import raise_end_token
from bench.turns import Finished, Turns
from transformers import AutoModelForCausalLM


def main() -> None:
    """Load, then sample turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval()
    raise_end_token(model, work["eos_id"])
    width = max(map(len, work["prompts"]))
    input_ids = torch.full((len(work["prompts"]), width), work["pad_id"])
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(work["prompts"]):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    turns.begin(ready={"torch": torch.__version__, "transformers": transformers.__version__})
    while True:
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=work["n_samples"],
            max_new_tokens=work["max_new_tokens"],
            eos_token_id=work["eos_id"],
            pad_token_id=work["pad_id"],
        )
        ends = (output[:, width:] == work["eos_id"]).cumsum(1)
        # up to and including the first end token
        n_tokens = int((ends == 0).sum()) + int((ends[:, -1] > 0).sum())
        turns.done(n_tokens)
        turns.begin()


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
