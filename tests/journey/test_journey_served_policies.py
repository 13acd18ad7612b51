"""A run whose policy is sampled by a server for its evaluation: the figures mean what they meant, and the report says who drew."""

import json
import threading

import pytest
from journeys import SANDBOX, inside, karat, write_config

from karat.evaluate.measure import draw, draw_served, sequence_kl, texts_of
from karat.lm.endpoint import Endpoint
from karat.lm.load import load_lm
from karat.records import Prompt, Turn, user_prompt
from local_server import Quiet, serving


@pytest.fixture
def served():
    """Serves the checkpoint that `checkpoint` names, as a chat server would; keeps what it was asked."""

    class Handler(Quiet):
        def do_POST(self):
            asked = json.loads(self.sent())
            with lock:
                server.seen.append(asked)
                lm = server.loaded = server.loaded or load_lm(server.checkpoint)
                prompt = Prompt(tuple(Turn(one["role"], one["content"]) for one in asked["messages"]))
                drawn = draw(lm, [prompt], n_samples=1, max_new_tokens=asked["max_tokens"], seed=asked["seed"])
            [[sample]], [[text]] = drawn, texts_of(lm, drawn)
            reason = "stop" if sample.stopped else "length"
            self.reply(200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}))

    lock = threading.Lock()
    with serving(Handler) as server:
        server.seen, server.loaded, server.checkpoint = [], None, None
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield server


def test_an_evaluation_whose_policy_is_served(copied, served):
    run = copied / "runs" / "tiny"
    before = json.loads((run / "summary.json").read_text(encoding="utf-8"))["policies"]
    served.checkpoint = run / "models" / "ppo"
    config = write_config(SANDBOX)
    place = json.dumps({"ppo": {"url": served.url, "model": "the-policy"}})
    done = karat("evaluate", config, "--set", f"evaluate.served={place}")
    assert done.code == 0, done.err
    assert len(served.seen) == 12 * 2
    assert {(one["model"], one["temperature"], one["max_tokens"]) for one in served.seen} == {("the-policy", 1.0, 24)}
    after = json.loads((run / "summary.json").read_text(encoding="utf-8"))["policies"]
    assert after["sft"] == before["sft"]  # drawn here as before
    for name in ("kl", "length", "proxy", "gold"):
        one, other = before["ppo"][name], after["ppo"][name]
        assert one["value"] != other["value"]  # other draws
        assert one["low"] < other["high"], name
        assert other["low"] < one["high"], name
    assert f"the-policy at {served.url}" in (run / "report.html").read_text(encoding="utf-8")
    assert karat("verify", run).code == 0


def test_tokens_and_probabilities_of_served_texts_are_the_checkpoints(copied, served):
    run = copied / "runs" / "tiny"
    served.checkpoint = run / "models" / "ppo"
    lm, reference = load_lm(served.checkpoint), load_lm(run / "models" / "sft")
    prompts = [user_prompt(f"Is {i} a number?") for i in range(4)]
    samples = draw_served(Endpoint(served.url, "m", 24), lm, prompts, n_samples=3, seed=5)
    for group in samples:
        drawn = sequence_kl(reference, [group])[0]
        # the same responses as trees of one branch each, their probabilities from one model minus the other
        for one, kl in zip(group, drawn, strict=True):
            again = draw_served(
                OnlyThis(texts_of(lm, [[one]])[0][0], one.stopped), lm, prompts[:1], n_samples=1, seed=0
            )
            assert again[0][0].response_tokens == one.response_tokens
            assert sum(one.logprobs) == pytest.approx(sum(_alone(lm, one)), abs=1e-3)
            assert kl == pytest.approx(sum(one.logprobs) - sum(_alone(reference, one)), abs=1e-3)
        assert all((one.response_tokens[-1] in lm.eos_ids) == one.stopped for one in group)


@pytest.mark.parametrize(
    ("served", "said"),
    [
        ({"dpo": {"url": "http://h/v1", "model": "m"}}, "found 'dpo'"),
        ({"ppo": {"url": "h", "model": "m"}}, "expected an address"),
    ],
)
def test_a_policy_or_address_that_is_none_is_one_line(tmp_path, served, said):
    with inside(tmp_path):
        done = karat("evaluate", write_config(SANDBOX), "--set", f"evaluate.served={json.dumps(served)}")
    assert said in done.complaint


class OnlyThis:
    """A server that always says one thing."""

    url = "http://127.0.0.1/v1"

    def __init__(self, text, stopped):
        self.text, self.stopped = text, stopped

    def replies(self, prompts, **_):
        from karat.lm.endpoint import EndpointReply

        return [[EndpointReply(self.text, self.stopped)] for _ in prompts]


def _alone(lm, sample):
    """log π of each response token of one row, by the model as transformers runs it."""
    import torch

    ids = torch.tensor([[*sample.prompt_tokens, *sample.response_tokens]])
    with torch.inference_mode():
        plain = type(lm.model).from_pretrained(lm.path, attn_implementation="eager", dtype=torch.float32)
        logprobs = plain(ids).logits[0].log_softmax(-1)
    at = len(sample.prompt_tokens)
    return [float(logprobs[at + i - 1, token]) for i, token in enumerate(sample.response_tokens)]
