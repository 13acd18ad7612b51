"""`transformers serve` on this machine as sampler of best-of-n and as judge; `make test-long`, where its packages are."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from transformers.utils import import_utils

from feedback_cases import small_store
from karat.cli import main
from karat.lm.chat import prompt_tokens, response_text
from karat.lm.endpoint import Endpoint
from karat.lm.load import load_lm
from karat.records import user_prompt
from tiny_models import tiny_checkpoint

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not import_utils.is_serve_available(), reason="pip install transformers[serving]"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, directory) of a served tiny checkpoint."""
    directory = tiny_checkpoint("llama", tmp_path_factory.mktemp("served"))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    # without it the server takes a temperature and still gives the likeliest word
    drawing = json.loads((directory / "generation_config.json").read_text()) | {"do_sample": True}
    (directory / "generation_config.json").write_text(json.dumps(drawing))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    program = Path(sys.executable).with_name("transformers")
    log = (directory / "server.txt").open("w")
    server = subprocess.Popen(
        [program, *command, str(directory)], env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log
    )
    try:
        for _ in range(240):
            assert server.poll() is None, (directory / "server.txt").read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", directory
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def greedy(lm, prompt, n):
    tokens = prompt_tokens(lm.tokenizer, prompt.turns)
    drawn = []
    while len(drawn) < n and (not drawn or drawn[-1] not in lm.eos_ids):
        with torch.no_grad():
            drawn.append(int(lm.model(torch.tensor([[*tokens, *drawn]])).logits[0, -1].argmax()))
    return response_text(lm.tokenizer, drawn, lm.eos_ids).strip()


def test_its_likeliest_words_are_ours_and_its_draws_follow_the_seed(served):
    address, directory = served
    lm, prompts = load_lm(directory), [user_prompt("abc"), user_prompt("bax")]
    greedily = Endpoint(address, str(directory), 8, 0.0, n_parallel=1)
    assert greedily(prompts, n_samples=1, seed=0) == [[greedy(lm, prompt, 8)] for prompt in prompts]
    drawing = Endpoint(address, str(directory), 8, n_parallel=1)
    first = drawing(prompts, n_samples=4, seed=0)
    assert len(set(first[0])) > 1
    assert drawing(prompts, n_samples=4, seed=0) == first


def test_best_of_n_and_a_judge_work_through_it(served, tmp_path, monkeypatch, capsys):
    address, directory = served
    monkeypatch.chdir(tmp_path)
    Path("tastes_here.py").write_text("def count(prompts, texts):\n    return [text.count('a') for text in texts]\n")
    Path("p.jsonl").write_text('{"prompt": "abc"}\n{"prompt": "bax"}\n')
    options = ["--score", "tastes_here:count", "--out", "o.jsonl", "--n", "4", "--max-new-tokens", "8", "--json"]
    assert main(["best-of-n", str(directory), "p.jsonl", "--endpoint", address, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["kl_estimate"] <= found["kl_bound"] + 1e-9  # of a score that mostly ties
    assert found["score_mean"] >= found["sample_score_mean"]
    store = small_store(tmp_path / "s.db", n_tasks=4, overlap=1)
    assert main(["judge", "s.db", str(directory), "--endpoint", address, "--name", "tiny", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["n_votes"] + done["n_missing"] == 4  # a random model may say nothing that is a verdict
    assert {judgement.origin for judgement in store.judgements()} == {"ai"}
