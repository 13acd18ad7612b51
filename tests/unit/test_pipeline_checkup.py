"""What a configuration comes to before it is run, and what would stop it; the memory estimate against a measured peak."""

import ctypes
import gc
import json
import re
from pathlib import Path

import pytest

from karat.cli import main
from karat.config import build
from karat.lm.fresh import DecoderShape, word_tokenizer, write_fresh_decoder
from karat.lm.load import load_lm
from karat.lm.memory import lora_parameters, size_of, training_bytes
from karat.pipeline.dead import cautions, contradictions, dead_settings
from karat.pipeline.derived import Counts, derived
from karat.pipeline.settings import RunConfig
from karat.sft.train import SFTConfig, train_on_pairs
from tiny_models import tiny_checkpoint

SIZE_FACTOR = 1.5
"""How far the estimate of a training step may be from its measured peak (docs/checking.md)."""


def config(**sections):
    return build(RunConfig, {"sandbox": {}} | sections)


def test_batches_and_steps_follow_from_the_settings(tmp_path):
    settings = config(
        sft={"epochs": 2, "batch_size": 10},
        ppo={"n_iterations": 7, "rollout": {"n_prompts": 8, "n_samples": 3, "max_new_tokens": 20},
             "update": {"n_epochs": 2, "n_minibatches": 4, "token_budget": 100}},
    )  # fmt: skip
    counts = Counts(demonstrations=100, policy_prompts=28, collect_prompts=50, votes=400, longest_prompt=30)
    size = size_of(load_lm(tiny_checkpoint("llama", tmp_path)).model.config, 1000)
    found = {one.name: one.value for one in derived(settings, counts, size)}
    assert found["sft.demonstrations"] == 95
    assert found["sft.steps"] == settings.sft.n_steps(95) == 19
    assert found["ppo.rollout"] == 24
    assert found["ppo.minibatch"] == 6
    assert found["ppo.micro_batches"] == 2  # a tree of 30 + 3·20 tokens: one of the two prompts at a time
    assert found["ppo.steps"] == 7 * 2 * 4
    assert found["ppo.tokens"] == 7 * 24 * 20
    assert found["ppo.passes"] == 200
    whole = config(reward={"posterior": "ensemble", "ensemble": {"models": 3}})
    of_three = {one.name: one.value for one in derived(whole, counts, size)}
    assert of_three["reward.steps"] == 3 * found["reward.steps"]


def test_the_count_of_adapters_is_that_of_peft(tmp_path):
    from karat.lm.adapters import add_lora

    lm = load_lm(tiny_checkpoint("llama", tmp_path))
    adapted = add_lora(lm.model, 4, 8.0)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert lora_parameters(size_of(lm.model.config, 0), 4) == trained


def memory(key: str) -> int:
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is measured through /proc")
def test_the_memory_estimate_is_within_its_factor_of_a_measured_peak(tmp_path):
    shape = DecoderShape(hidden=256, mlp=704, layers=4, heads=4, kv_heads=2, head_size=64, context=256)
    write_fresh_decoder(tmp_path, word_tokenizer([f"w{i}" for i in range(4000)]), shape, seed=0)
    pairs = [([7 + row] * 32, [*range(100, 131), 1]) for row in range(32)]

    def train(n_pairs, budget):
        lm = load_lm(tmp_path, for_training=True)
        train_on_pairs(lm, pairs[:n_pairs], SFTConfig(batch_size=n_pairs, token_budget=budget), seed=0)
        return lm

    train(1, 64)  # what libraries keep from their first use is not what is estimated
    gc.collect()
    # what earlier tests freed goes back to the system: reused, it would be missing from the peak
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    lm = train(32, 2048)
    measured = memory("VmHWM") - before
    n = sum(p.numel() for p in lm.model.parameters())
    estimate = training_bytes(size_of(lm.model.config, n), n_trained=n, n_tokens=2048)
    assert measured / SIZE_FACTOR < estimate < measured * SIZE_FACTOR


def test_settings_without_effect_are_named_only_where_they_were_written():
    given = {"ppo": {"reward": {"kl_target": 3.0}, "value": {"critic": "separate", "vf_coef": 0.2}}}
    settings = config(**given)
    assert dict(dead_settings(settings, given)).keys() == {"ppo.reward.kl_target", "ppo.value.vf_coef"}
    assert dead_settings(settings, {}) == []
    adaptive = {"ppo": {"reward": {"kl_target": 3.0, "kl_controller": "adaptive"}}}
    assert dead_settings(config(**adaptive), adaptive) == []


def test_contradictions_and_cautions():
    assert contradictions(config()) == []
    (one,) = contradictions(config(reward={"heads": {"n_heads": 1}}))
    assert re.match(r"reward\.heads\.n_heads is 1: .*set it ≥ 2", one)
    assert contradictions(config(ppo={"n_iterations": 5, "update": {"lr_warmup_iterations": 5}}))
    assert contradictions(config(ppo={"reward": {"kl_coef": 0.0}}, watch={"kl_budget": None}))
    said = cautions(config(ppo={"checkpoint_every": 0, "n_iterations": 5, "evaluate_every": 5}))
    assert sum("ppo." in text for text in said) == 2


def outcome(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def write_prompts(path: Path, n: int = 60, words: int = 3) -> Path:
    rows = [{"prompt": f"say {'w ' * words}{i}"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_doctor_reads_files_model_and_context(tmp_path, capsys):
    prompts, model = write_prompts(tmp_path / "p.jsonl"), tiny_checkpoint("qwen3", tmp_path / "m")
    file = tmp_path / "c.yaml"
    file.write_text(f"people: {{prompts: {prompts}, model: {model}}}\nppo: {{rollout: {{n_prompts: 4}}}}\n")
    code, out, _ = outcome(capsys, "doctor", str(file), "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (0, True)
    assert found["derived"]["ppo.rollout"]["value"] == 16
    assert found["derived"]["model.parameters"]["value"] == sum(p.numel() for p in load_lm(model).model.parameters())
    code, out, _ = outcome(capsys, "doctor", str(file), "--set", "ppo.rollout.max_new_tokens=127")
    assert code == 1
    assert "response tokens; expected at most 128 in all" in out


def test_doctor_says_what_would_stop_the_run(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(f"people: {{prompts: {tmp_path}/none.jsonl, model: {tmp_path}/none}}\ntracking: [mlflow]\n")
    code, out, _ = outcome(capsys, "doctor", str(file))
    assert code == 1
    assert re.search(r"^wrong    source: .*none: found no directory; expected a model directory", out, re.MULTILINE)
    assert re.search(r"^wrong    tracking: tracking: found mlflow", out, re.MULTILINE)
