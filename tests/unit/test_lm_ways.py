"""The settings `decode` and `attention`: what they come to, where they are obeyed, and one line where one cannot work."""

import contextlib
import json

import pytest
import torch

import policy_toys
from karat import devices
from karat.cli import main
from karat.config import build
from karat.errors import ConfigError
from karat.feedback.store import open_store
from karat.lm import attention, decoder, flex_trees, fused_block, segments, ways
from karat.lm.logprobs import response_logprobs
from karat.lm.trees import Tree, pack_trees
from karat.lm.ways import in_ways
from karat.pipeline.settings import RunConfig
from karat.pipeline.votes import VotesConfig
from pretend_device import pretend_device
from tiny_models import tiny_checkpoint


@pytest.mark.parametrize(
    ("decode", "device", "says"),
    [
        ("graphs", "cpu", "decode: found 'graphs'; expected one of auto, plain, steps, compiled, graph"),
        ("graph", "cpu", "decode: found graph on cpu; expected a CUDA device, whose graphs it records: plain, or auto"),
        ("compiled", "cpu", "decode: found compiled without a C.. compiler on this machine"),
        ("compiled", "pretend", "decode: found compiled on pretend without Triton; expected it installed, or plain"),
        (
            "steps",
            "single",
            "decode: found steps on pretend, which has no float64 to draw with; expected plain, or auto",
        ),
    ],
)
def test_a_way_that_cannot_work_is_one_line(decode, device, says, monkeypatch):
    monkeypatch.setattr(ways, "_has_cpp_compiler", lambda: False)
    monkeypatch.setattr(ways, "_has_triton", lambda: False)
    with contextlib.ExitStack() as there:
        if device != "cpu":
            there.enter_context(pretend_device(double=device != "single"))
            there.enter_context(devices.on_device("auto"))
        with pytest.raises(ConfigError, match=says) as caught, in_ways(decode):
            pass
    assert "\n" not in str(caught.value)
    assert ways.current() == ways.Ways()


def test_auto_is_plain_on_a_processor_and_a_graph_on_cuda():
    assert ways.decode_on(torch.device("cpu")) == "plain"
    assert ways.decode_on(torch.device("mps")) == "plain"
    assert ways.decode_on(torch.device("cuda")) == "graph"
    with in_ways("plain"):
        assert ways.decode_on(torch.device("cuda")) == "plain"
        with in_ways("steps", "plain"):
            assert ways.current() == ways.Ways("steps", "plain")
        assert ways.current().attention == "auto"


def test_trees_are_attended_plainly_where_that_is_asked_for(monkeypatch):
    lm, batch = policy_toys.toy_lm(), pack_trees([Tree((3, 4, 5), ((6, 7), (8, 9)))], token_budget=64)[0]
    asked = []
    monkeypatch.setattr(flex_trees, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused_block, "_suits", lambda *_: False)  # a fused block has its own attention
    monkeypatch.setattr(attention, "_flex_works", lambda *_: asked.append(1))
    with torch.no_grad(), in_ways(attention="plain"):
        plain = response_logprobs(lm.model, batch).logprobs
    assert not asked
    with torch.no_grad():
        assert torch.equal(response_logprobs(lm.model, batch).logprobs, plain)  # its trial said no
    assert asked


def test_configurations_have_the_keys_and_refuse_other_words():
    found = build(RunConfig, {"sandbox": {}, "decode": "graph", "attention": "plain"})
    assert (found.decode, found.attention) == ("graph", "plain")
    assert build(RunConfig, {"sandbox": {}}).decode == build(VotesConfig, {"votes": {"path": "v"}}).attention == "auto"
    with pytest.raises(ConfigError, match="decode"):
        build(RunConfig, {"sandbox": {}, "decode": "fast"})


def test_a_run_and_a_command_say_at_once_that_a_way_cannot_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("sandbox: {}\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "say one"}\n')
    checkpoint = tiny_checkpoint("qwen3", tmp_path / "model")
    capsys.readouterr()
    for words in (
        ["run", "run.yaml", "--set", "decode=graph"],
        ["generate", str(checkpoint), "p.jsonl", "--out", "o.jsonl", "--decode", "graph"],
        ["best-of-n", str(checkpoint), "p.jsonl", "--score", "x:y", "--out", "o.jsonl", "--decode", "graph"],
        ["chat", str(checkpoint), "--turns", "p.jsonl", "--decode", "graph"],
        ["compare", str(checkpoint), "other", "--rater", "ann", "--prompts", "p.jsonl", "--decode", "graph"],
        ["collect", "--model", str(checkpoint), "--prompts", "p.jsonl", "--decode", "graph"],
        ["serve", "k.db", "--policy", str(checkpoint), "--prompts", "p.jsonl", "--decode", "graph"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err.strip()
        assert said.endswith(
            "decode: found graph on cpu; expected a CUDA device, whose graphs it records: plain, or auto"
        )
        assert "\n" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "one", "p.jsonl", "--out", "o.jsonl", "--samples", "2"],
        ["chat", "one", "--turns", "turns.txt"],
        ["compare", "one", "two", "--rater", "ann", "--prompts", "p.jsonl", "--answers", "votes.txt"],
        ["collect", "--model", "one", "--prompts", "p.jsonl", "--tasks", "2", "--samples", "3"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_draws_the_same_by_either_way(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "say one"}\n{"prompt": "and why?"}\n')
    (tmp_path / "turns.txt").write_text("say one\nand why?\n")
    (tmp_path / "votes.txt").write_text("1\nt\n")
    for seed, name in enumerate(("one", "two")):
        tiny_checkpoint("qwen3", tmp_path / name, seed=seed)
    used, found, plainly = [], [], segments.Segments.draw

    def noted(self, *given):
        used.append(self.way)
        return plainly(self, *given)

    def written():
        if (tmp_path / "o.jsonl").is_file():
            return (tmp_path / "o.jsonl").read_text()
        if (tmp_path / "karat.db").is_file():
            with open_store(str(tmp_path / "karat.db"), create=False) as store:
                return sorted(one.text for one in store.responses().values())
        return said

    monkeypatch.setattr(segments.Segments, "draw", noted)
    assert decoder.Segments is segments.Segments
    for way in ("auto", "steps"):
        capsys.readouterr()
        assert main([*words, "--max-new-tokens", "6", "--decode", way]) == 0
        said = capsys.readouterr().out
        assert bool(used) == (way == "steps")
        found.append(written())
        for left in tmp_path.glob("karat.db*"):
            left.unlink()
    assert found[0] == found[1] != []


def test_a_configuration_says_itself_how_tokens_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("sandbox: {}\n")
    for option in (["--decode", "plain"], ["--device", "cpu"]):
        assert main(["collect", "run.yaml", *option]) == 2
        said = capsys.readouterr().err.strip()
        assert said == "karat: collect: found --device or --decode with CONFIG; expected its keys: --set decode=plain"


def test_doctor_says_how_tokens_will_be_drawn(tmp_path, capsys):
    checkpoint = tiny_checkpoint("qwen3", tmp_path / "model")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(200)))
    config = tmp_path / "config.yaml"
    config.write_text(f"people:\n  prompts: {rows}\n  model: {checkpoint}\ncollect: {{max_new_tokens: 8}}\n")

    def found(*further):
        code = main(["doctor", str(config), "--json", "--set", "ppo.rollout.max_new_tokens=8", *further])
        checks = {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
        return code, checks["decode"]["ok"], checks["decode"]["found"]

    assert found()[1:] == (True, "plain")
    code, ok, said = found("--set", "decode=graph")
    assert (code, ok) == (1, False)
    assert said.startswith("decode: found graph on cpu")
