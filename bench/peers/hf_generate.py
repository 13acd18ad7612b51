"""transformers' generate on the prompts and weights of the bench; run in any environment with transformers.

    python hf_generate.py WORK.json RESULT.json

WORK.json: {model, prompts: [[ids], …], n_samples, max_new_tokens, eos_id, pad_id, eos_boost, repeats, threads}.
"""

import json
import resource
import sys
import time

import torch
import transformers
from transformers import AutoModelForCausalLM

work = json.load(open(sys.argv[1]))
torch.set_num_threads(work["threads"])
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval()
width = max(map(len, work["prompts"]))
ids = torch.full((len(work["prompts"]), width), work["pad_id"])
mask = torch.zeros_like(ids)
for row, prompt in enumerate(work["prompts"]):
    ids[row, width - len(prompt) :] = torch.tensor(prompt)
    mask[row, width - len(prompt) :] = 1
resident_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def once():
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=work["n_samples"], max_new_tokens=work["max_new_tokens"],
            eos_token_id=work["eos_id"], pad_token_id=work["pad_id"],
        )  # fmt: skip
    seconds = time.perf_counter() - start
    responses = out[:, width:]
    ended = (responses == work["eos_id"]).cumsum(1)
    n_tokens = int(((ended == 0) | ((ended == 1) & (responses == work["eos_id"]))).sum())
    return n_tokens, seconds


once()
runs = [once() for _ in range(work["repeats"])]
json.dump(
    {
        "tokens_per_s": sorted(n / s for n, s in runs),
        "n_tokens": [n for n, _ in runs],
        "resident_mib": resident_mib,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    },
    open(sys.argv[2], "w"),
)
