"""The setting `device`: what a name comes to on a machine, and that models, messages and records follow it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from karat import devices
from karat.cli import main
from karat.config import build
from karat.errors import ConfigError
from karat.lm.load import load_encoder, load_lm
from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import Output, Run, StageResult
from karat.progress import open_progress
from pretend_device import pretend_device
from tiny_models import tiny_checkpoint, tiny_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint("qwen3", tmp_path_factory.mktemp("model"))


def test_auto_is_the_processor_where_there_is_nothing_else():
    assert devices.chosen("auto") == devices.chosen("cpu") == torch.device("cpu")
    assert devices.current() == torch.device("cpu")
    assert devices.backends() == "gloo"


def test_auto_is_the_accelerator_where_there_is_one_and_cpu_stays_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    with pretend_device():
        assert devices.chosen("auto") == devices.chosen("pretend") == torch.device("pretend:0")
        assert devices.chosen("pretend:1") == torch.device("pretend:1")
        assert devices.chosen("cpu") == torch.device("cpu")
        with devices.on_device("auto"):
            assert devices.current().type == "pretend"
            with devices.on_device("cpu"):
                assert devices.current().type == "cpu"
        assert devices.current().type == "cpu"
        assert "no card at all" in devices.described(torch.device("pretend:0"))
        assert devices.card(torch.device("pretend:0")) == "no card at all"
    assert devices.card(torch.device("cpu")) == "cpu"
    with pretend_device():
        assert "3.0 of 4.0 GiB free" in devices.described(torch.device("pretend:0"))


def test_a_card_is_asked_for_its_name_once(monkeypatch):
    with pretend_device():
        names = iter(["no card at all"])
        monkeypatch.setattr(torch.get_device_module("pretend"), "get_device_name", lambda _: next(names))
        assert devices.described(torch.device("pretend:0")) == "pretend:0 (no card at all), 3.0 of 4.0 GiB free"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("gpu", "device: found 'gpu'; expected auto, cpu, or an accelerator as torch names it: cuda, cuda:1"),
        ("cuda:x", "found 'cuda:x'"),
        ("meta", "found 'meta'"),
        ("cpu:3", "found 'cpu:3'"),
        ("cuda", r"found cuda, and of accelerators there is none that this build of torch can use \(torch"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(asked, says):
    with pytest.raises(ConfigError, match=says) as caught, devices.on_device(asked):
        pass
    assert "\n" not in str(caught.value)
    assert devices.current() == torch.device("cpu")


def test_a_wrong_name_is_refused_with_the_configuration_and_an_absent_card_only_where_it_is_wanted():
    with pytest.raises(ConfigError, match="found 'gpu'"):
        build(RunConfig, {"sandbox": {}, "device": "gpu"})
    assert build(RunConfig, {"sandbox": {}, "device": "cuda:1"}).device == "cuda:1"
    assert build(RunConfig, {"sandbox": {}}).device == "auto"


def test_a_card_beyond_the_last_and_another_kind_are_refused():
    with pretend_device():
        with pytest.raises(ConfigError, match="this machine has 2 of them; expected a number of 0 … 1"):
            devices.chosen("pretend:2")
        with pytest.raises(ConfigError, match=r"there is only pretend .* or pretend$"):
            devices.chosen("cuda")


def test_each_of_several_processes_gets_its_own_card(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")  # the second process of the second machine
    with pretend_device():
        assert devices.chosen("auto") == torch.device("pretend:1")
        assert devices.chosen("cpu") == torch.device("cpu")
        with pytest.raises(ConfigError, match="found pretend:0 for 4 processes, each of which needs a card"):
            devices.chosen("pretend:0")
        monkeypatch.setenv("LOCAL_RANK", "2")
        with pytest.raises(ConfigError, match="found 2 pretend devices for 3 or more processes"):
            devices.chosen("auto")


def test_messages_go_by_the_accelerators_own_backend_beside_gloo(monkeypatch):
    with pretend_device():
        assert devices.backends() == "gloo"  # nobody has named one for it
        known = torch.distributed.Backend.default_device_backend_map
        monkeypatch.setitem(known, "pretend", "nccl")
        assert devices.backends() == "cpu:gloo,pretend:nccl"


def test_models_go_where_the_process_works(checkpoint, tmp_path):
    with pretend_device(), devices.on_device("auto"):
        lm = load_lm(checkpoint)
        assert {p.device.type for p in lm.model.parameters()} == {"pretend"}
        assert load_lm(checkpoint, device="cpu").model.device.type == "cpu"
    assert load_lm(checkpoint).model.device.type == "cpu"
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    encoder = tmp_path / "encoder"
    BertModel(config).save_pretrained(encoder)
    tiny_tokenizer("gpt2").save_pretrained(encoder)
    with pretend_device(), devices.on_device("auto"):
        assert load_encoder(encoder).model.device.type == "pretend"


def test_a_stage_says_where_it_was_worked_out_and_goes_on_elsewhere(tmp_path):
    def work(place):
        (place.directory / "x").write_text("x")
        if interrupted:
            raise KeyboardInterrupt
        return StageResult([Output("x", place.directory / "x")])

    with open_progress(quiet=True) as progress:
        said = []
        progress.note = said.append
        run = Run(tmp_path, 0, progress)
        interrupted = True
        with pytest.raises(KeyboardInterrupt):
            run.stage("sft", inputs=(), config={}, work=work)
        interrupted = False
        with pretend_device(), devices.on_device("auto"):
            manifest = run.stage("sft", inputs=(), config={}, work=work)
            assert run.stage("base", inputs=(), config={}, work=work).notes == ("worked out on pretend",)
        assert run.stage("other", inputs=(), config={}, work=work).notes == ()
        assert run.stage("sft", inputs=(), config={}, work=work).id == manifest.id  # done is done, wherever
    assert manifest.notes == ("worked out on cpu, then on pretend",)
    assert any("sft: worked out on cpu, then on pretend: equal to rounding, not to the bit" in line for line in said)


def test_doctor_prints_the_device_and_its_memory(tmp_path, capsys, checkpoint):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(200)))
    config = tmp_path / "config.yaml"
    config.write_text(f"people:\n  prompts: {rows}\n  model: {checkpoint}\ncollect: {{max_new_tokens: 8}}\n")

    def checks(*further):
        code = main(["doctor", str(config), "--json", "--set", "ppo.rollout.max_new_tokens=8", *further])
        found = json.loads(capsys.readouterr().out)
        return code, {one["name"]: one for one in found["checks"]}

    _, found = checks()
    assert found["device"]["found"].startswith("cpu, ")
    code, found = checks("--set", "device=cuda")
    assert code == 1
    assert not found["device"]["ok"]
    with pretend_device():
        _, found = checks()
        assert found["device"]["found"] == "pretend:0 (no card at all), 3.0 of 4.0 GiB free"
        assert "3.00 GiB free" in found["memory"]["found"]
        assert main(["doctor", "--json"]) == 0
        assert "pretend:1 (no card at all)" in json.loads(capsys.readouterr().out)["accelerator"]["found"]


@pytest.mark.parametrize(
    "command",
    [
        "generate M P --out o", "best-of-n M P --score R --out o", "score R P --out o", "chat M", "personalise R P",
        "compare M R --rater ann", "collect --model M --prompts P --store s.db", "audit RUN --look-inside",
        "serve s.db --arena M N", "reward --model M --store s.db --set device=cuda",
    ],
)  # fmt: skip
def test_every_command_that_loads_a_model_takes_a_device(command, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "say one", "response": "one"}\n')
    given = {"M": str(checkpoint), "P": str(prompts), "R": str(tmp_path)}
    words = [given.get(word, word) for word in command.split()]
    assert main([*words, *([] if "device=cuda" in words else ["--device", "cuda"])]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("karat: device: found cuda, and of accelerators there is none")
    assert "\n" not in said


def test_a_run_of_a_configuration_works_where_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in (("run", "sandbox: {}\n"), ("votes", "votes: {path: v.jsonl}\n")):
        config = tmp_path / f"{name}.yaml"
        config.write_text(text)
        assert main(["run", str(config), "--set", "device=cuda"]) == 2
        assert "device: found cuda, and of accelerators there is none" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("listing", "maker"),
    [
        (
            "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n\nprocessor\t: 1\nvendor_id\t: GenuineIntel\n",
            devices.INTEL,
        ),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "AuthenticAMD"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n", ""),
        ("", ""),
    ],
)
def test_the_processors_maker_is_what_linux_says_of_it(listing: str, maker: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(listing, encoding="utf-8")
    assert devices.processor_maker(tmp_path / "cpuinfo") == maker


def test_without_linux_listing_the_maker_stands_behind_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "Intel64 Family 6 Model 85 Stepping 4, GenuineIntel")
    assert devices.processor_maker(tmp_path / "none") == devices.INTEL
