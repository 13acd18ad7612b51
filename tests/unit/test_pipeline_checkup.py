"""What a configuration comes to before it is run, and what would stop it; the memory estimate against a measured peak."""

import json
import re
from pathlib import Path

import pytest
import torch

import memory_peaks
from children import WAIT_S, context
from karat.cli import main
from karat.config import build, plain
from karat.errors import CheckpointError, ConfigError
from karat.lm.load import load_lm
from karat.lm.memory import Work, lora_parameters, size_of, training_bytes
from karat.pipeline import checkup
from karat.pipeline.dead import cautions, contradictions, dead_settings
from karat.pipeline.derived import PADDED, Counts, Derived, derived
from karat.pipeline.payment import payment_problems
from karat.pipeline.settings import RunConfig
from tiny_models import tiny_checkpoint

SIZE_FACTOR = 1.4
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
    asked = config(watch={"panel": {"candidates": 3}})
    assert {one.name: one.value for one in derived(asked, counts, size)}["disk"] == found[
        "disk"
    ] + 3 * size.weight_bytes
    of_three = {one.name: one.value for one in derived(whole, counts, size)}
    assert of_three["reward.steps"] == 3 * found["reward.steps"]


ROLLOUT = {"n_iterations": 7, "rollout": {"n_prompts": 8, "n_samples": 3, "max_new_tokens": 20},
           "update": {"n_epochs": 2, "n_minibatches": 4, "token_budget": 100}}  # fmt: skip
GIVEN = {"batch_size": 10, "epochs": 2, "token_budget": 150}


@pytest.mark.parametrize(
    ("algorithm", "section", "expected"),
    [
        # a tree of 30 + 3·20 tokens: one of the two prompts at a time; the best of each alone is 50 long: two
        *((name, "group", {"rollout": 24, "minibatch": 6, "micro_batches": 2, "steps": 56, "tokens": 3360, "passes": 200})
          for name in ("rloo", "grpo", "reinforce_pp")),
        ("online_dpo", "online_dpo", {"minibatch": 6, "micro_batches": 2, "steps_an_iteration": 8}),
        ("expert_iteration", "expert", {"rollout": 24, "minibatch": 2, "micro_batches": 1, "steps": 56}),
        # pairs of 30 + 2·40 tokens one at a time, responses of 30 + 40 two at a time
        ("dpo", "direct", {"examples": 400, "minibatch": 10, "micro_batches": 10, "steps_an_epoch": 40, "steps": 80}),
        ("ipo", "direct", {"examples": 400, "steps": 80}),
        ("kto", "direct", {"examples": 800, "micro_batches": 5, "steps": 160}),
        ("ilql", "ilql", {"examples": 200, "micro_batches": 5, "steps": 40}),
    ],
)  # fmt: skip
def test_batches_and_steps_of_every_method(tmp_path, algorithm, section, expected):
    settings = config(algorithm=algorithm, **{section: GIVEN if section in ("direct", "ilql") else ROLLOUT})
    counts = Counts(demonstrations=100, policy_prompts=28, collect_prompts=50, votes=400, longest_prompt=30)
    size = size_of(load_lm(tiny_checkpoint("llama", tmp_path)).model.config, 1000)
    found = {one.name: one.value for one in derived(settings, counts, size)}
    assert {key: found[f"{section}.{key}"] for key in expected} == expected
    # the reward model and a reference beside it; KTO's reference point needs one of its own
    n_tokens, n_copies = (150 if "examples" in expected else 100), (3 if algorithm == "kto" else 2)
    new = 40 if "examples" in expected else 20
    work = Work(n_tokens, n_keys=round(PADDED * (30 + new)))
    counted = training_bytes(size, n_trained=1000, work=work, n_copies=n_copies, n_before=2)
    assert found[f"memory.{section}"] == counted
    assert not [name for name in found if "ppo" in name]


def test_shards_part_what_is_trained_but_the_whole_is_read_between_steps(tmp_path):
    lm = load_lm(tiny_checkpoint("llama", tmp_path))
    size = size_of(lm.model.config, 100_000_000)  # beside which activations are nothing
    options = {"n_trained": size.parameters, "work": Work(1), "n_copies": 1}
    alone, apart = (training_bytes(size, n_shards=n, **options) for n in (1, 4))
    weights = size.weight_bytes
    assert 5 * weights <= alone < 6 * weights  # weights, gradients, moments, a copy
    assert apart >= 3 * weights  # its quarter of four, the whole weights to read, the copy
    assert apart < alone
    counts = Counts(demonstrations=100, policy_prompts=28, collect_prompts=50, votes=400, longest_prompt=30)
    whole, parted = ({one.name: one for one in derived(config(), counts, size, n_shards=n)} for n in (1, 4))
    for name in ("memory.sft", "memory.reward", "memory.ppo"):
        assert parted[name].value < whole[name].value
        assert "of each process" in parted[name].how


def test_doctor_counts_the_memory_of_several_processes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(json.dumps({"sandbox": {"n_base_texts": 50, "n_demonstrations": 40}}))
    wanted = {}
    for options in ((), ("--processes", "2"), ("--processes", "2", "--fsdp")):
        main(["doctor", "c.yaml", *options, "--json"])
        found = json.loads(capsys.readouterr().out)
        (check,) = (one for one in found["checks"] if one["name"] == "memory")
        wanted[options] = found["derived"]["memory.sft"]["value"]
        assert ("by 2 processes" in check["found"]) == bool(options)
    alone, both, parted = wanted.values()
    assert alone == both > parted
    for given, says in (
        (["c.yaml", "--fsdp"], "found --processes 1 with --fsdp; expected at least 2"),
        (["c.yaml", "--processes", "0"], "found --processes 0; expected at least 1"),
        (["--processes", "2"], "found --processes without a CONFIG"),
    ):
        assert main(["doctor", *given]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("decode", "device", "wanted"),
    [("auto", "cuda", 7), ("graph", "cuda", 7), ("plain", "cuda", 5), ("auto", "cpu", 5)],
)
def test_buffers_that_recorded_steps_keep_are_counted_beside_what_learns(decode, device, wanted, monkeypatch):
    gib = 1 << 30
    numbers = [
        Derived(f"memory.{name}", n * gib, "bytes", "") for name, n in (("sft", 5), ("ppo", 4), ("decode_cache", 2))
    ]
    monkeypatch.setattr(checkup, "memory_bytes", lambda _: (9 * gib, 9 * gib))
    found = checkup._memory(numbers, 1, torch.device(device), decode).found
    assert found.startswith(f"about {wanted:.2f} GiB wanted")


def test_the_count_of_adapters_is_that_of_peft(tmp_path):
    from karat.lm.adapters import add_lora

    lm = load_lm(tiny_checkpoint("llama", tmp_path))
    adapted = add_lora(lm.model, 4, 8.0)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert lora_parameters(size_of(lm.model.config, 0), 4) == trained


def test_with_adapters_critic_and_reward_are_counted_without_a_trunk_of_their_own(tmp_path):
    counts = Counts(demonstrations=100, policy_prompts=28, collect_prompts=50, votes=400, longest_prompt=30)
    size = size_of(load_lm(tiny_checkpoint("llama", tmp_path)).model.config, 1000)

    def more(**lora):
        shared, separate = (
            {one.name: one.value for one in derived(config(ppo={"value": {"critic": critic}}, **lora), counts, size)}
            for critic in ("shared", "separate")
        )
        return separate["memory.ppo"] - shared["memory.ppo"]

    def held(**given):
        return {one.name: one.value for one in derived(config(**given), counts, size)}["memory.ppo"]

    # a reward model from elsewhere is a second trunk, one that learnt by adapters is not
    lora = {"lora": {"rank": 4, "alpha": 8.0}}
    assert held(**lora, reward_model="elsewhere") - held(**lora) == size.weight_bytes
    # weights, gradient and Adam's two moments
    assert more() == 4 * size.weight_bytes
    assert more(lora={"rank": 4, "alpha": 8.0}) == 4 * lora_parameters(size, 4) * size.bytes_per_number


proc_tells_the_peak = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is measured through /proc"
)


@proc_tells_the_peak
@pytest.mark.parametrize("products", [None, torch.bfloat16])
@pytest.mark.parametrize("plain", [False, True])
def test_the_memory_estimate_is_within_its_factor_of_a_measured_peak(tmp_path, products, plain):
    process = context().Process(target=memory_peaks.measure, args=(str(tmp_path), products, plain))
    process.start()
    process.join(WAIT_S)
    assert process.exitcode == 0
    measured, estimate = json.loads((tmp_path / "peak.json").read_text())
    assert measured / SIZE_FACTOR < estimate < measured * SIZE_FACTOR


def test_settings_without_effect_are_named_only_where_they_were_written():
    given = {"ppo": {"reward": {"kl_target": 3.0}, "value": {"critic": "separate", "vf_coef": 0.2}}}
    settings = config(**given)
    assert dict(dead_settings(settings, given)).keys() == {"ppo.reward.kl_target", "ppo.value.vf_coef"}
    assert dead_settings(settings, {}) == []
    adaptive = {"ppo": {"reward": {"kl_target": 3.0, "kl_controller": "adaptive"}}}
    assert dead_settings(config(**adaptive), adaptive) == []


def test_settings_of_another_method_have_no_effect():
    given = {"algorithm": "rloo", "ppo": {"n_iterations": 3}, "group": {"reward": {"kl_target": 3.0}}}
    found = dict(dead_settings(config(**given), given))
    assert found == {
        "group.reward.kl_target": "kl_controller is fixed",
        "ppo": "algorithm is rloo, whose settings are in `group`",
    }
    queue = {"algorithm": "kto", "watch": {"odd_quantile": 0.9}}
    assert dict(dead_settings(config(**queue), queue)) == {"watch.odd_quantile": "kto asks for no scores"}
    other = {"group": {"n_iterations": 3}}
    assert "`ppo`" in dict(dead_settings(config(**other), other))["group"]


def test_a_file_that_writes_every_default_down_has_no_setting_without_effect():
    given = plain(config())
    assert dead_settings(config(), given) == []
    assert [key for key, _ in dead_settings(config(labels="labels.db"), given)] == ["labels"]


def test_contradictions_and_cautions():
    assert contradictions(config()) == []
    (one,) = contradictions(config(reward={"heads": {"n_heads": 1}}))
    assert re.match(r"reward\.heads\.n_heads is 1: .*set it ≥ 2", one)
    assert contradictions(config(ppo={"n_iterations": 5, "update": {"lr_warmup_iterations": 5}}))
    assert contradictions(config(ppo={"reward": {"kl_coef": 0.0}}, watch={"kl_budget": None}))
    (one,) = contradictions(
        config(algorithm="grpo", group={"n_iterations": 5, "update": {"n_minibatches": 4, "lr_warmup_iterations": 5}})
    )
    assert one.startswith("group.update.lr_warmup_iterations is 5 of 5")
    assert [text for text in cautions(config(algorithm="dpo", direct={"checkpoint_every": 0})) if "direct." in text]
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
    assert "Lower people.max_prompt_tokens, or collect.max_new_tokens and ppo.rollout.max_new_tokens" in out


def test_what_pays_the_policy_is_looked_over_before_anything_is_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tastes.py").write_text("def short(prompts, texts):\n    return [-len(text) for text in texts]\n")
    wrong = {
        "score": "nosuch:fn",
        "constraint": {"cost": "tastes:long"},
        "dense": {"weights": {"bogus": 1.0}},
        "objectives": {"weights": {"harmless": 1.0}},
    }
    found = list(payment_problems(config(**wrong)))
    assert [text.partition(":")[0] for text in found] == ["score", "constraint.cost", "objectives", "dense.weights"]
    assert "found no function 'long' in tastes" in found[1]
    (one,) = payment_problems(config(constraint={"objective": "nope"}))
    assert one == "constraint.objective: found 'nope'; expected one of the reward's: preference"
    (one,) = payment_problems(config(collect={"n_step_marks": 3}, dense={"weights": {"step": 1.0, "wrong": -1.0}}))
    assert one == "dense.weights: found 'wrong'; expected classes that will be marked: step"
    (one,) = payment_problems(config(reward_model=str(tmp_path / "nowhere")))
    assert one.startswith("reward_model: found no reward model in")
    given = tmp_path / "given"
    given.mkdir()
    (given / "config.json").write_text("{}")
    (given / "dense.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"dense\.safetensors: truncated or unreadable safetensors"):
        list(payment_problems(config(reward_model=str(given), dense={"weights": {"step": 1.0}})))
    floors = {"floors": {"preference": 0.0, "harmless": -1.0}}
    (one,) = payment_problems(config(pluralism={"enabled": True, **floors}))
    assert one.startswith(
        "pluralism.floors: found 'harmless', which the reward will not score; expected one of preference"
    )
    for idle in (floors, {"principles": ["no threats"]}):
        with pytest.raises(ConfigError, match=rf"pluralism\.{next(iter(idle))}: found it without a population"):
            config(pluralism=idle)
    target = {"target": {"group": {"a": 0.5, "b": 0.5}}}
    assert "pluralism.target" in dict(dead_settings(config(pluralism=target), {"pluralism": target}))
    right = {"score": "tastes:short", "constraint": {"objective": "preference"}, "collect": {"n_step_marks": 3}}
    assert list(payment_problems(config(**right, dense={"weights": {"step": 1.0}}))) == []
    # a run stops at once, and leaves nothing behind
    Path("c.yaml").write_text("sandbox: {}\nscore: tastes:long\n")
    code, _, err = outcome(capsys, "run", "c.yaml")
    assert code != 0
    assert "score: found no function 'long' in tastes" in err
    assert not Path("runs").exists()


def test_doctor_says_what_would_stop_the_run(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(f"people: {{prompts: {tmp_path}/none.jsonl, model: {tmp_path}/none}}\ntracking: [mlflow]\n")
    code, out, _ = outcome(capsys, "doctor", str(file))
    assert code == 1
    assert re.search(r"^wrong    source: .*none: found no directory; expected a model directory", out, re.MULTILINE)
    assert re.search(r"^wrong    source: .*none.jsonl: no such file; check the path", out, re.MULTILINE)
    assert re.search(r"^wrong    tracking: tracking: found mlflow", out, re.MULTILINE)
    file.write_text(f"preferences: {{path: {tmp_path}/none.jsonl, model: {tmp_path}/none}}\n")
    code, out, _ = outcome(capsys, "doctor", str(file))
    assert [line.partition("found no")[0] for line in out.splitlines() if line.startswith("wrong    source")] == [
        f"wrong    source: {tmp_path}/none: ", f"wrong    source: {tmp_path}/none.jsonl: no such file; check the path"
    ]  # fmt: skip


@pytest.mark.parametrize("source", ["people", "preferences"])
def test_a_text_that_is_too_long_for_the_model_is_found_before_anything_is_trained(
    source, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint("qwen3", tmp_path / "m")
    prompts = [f"say {i}" for i in range(60)]
    texts = ["w " * (60 if i % 2 else 2) + str(i) for i in range(60)]
    if source == "people":
        rows = [{"prompt": prompt, "response": text} for prompt, text in zip(prompts, texts, strict=True)]
        given, what = {"prompts": "rows.jsonl"}, "demonstration"
    else:
        rows = [
            {"prompt": prompt, "chosen": text, "rejected": "no"} for prompt, text in zip(prompts, texts, strict=True)
        ]
        given = {"path": "rows.jsonl", "format": "preferences"}
        what = "comparison"
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = rf"rows\.jsonl: found a {what} of \d+ prompt and \d+ response tokens.*; expected at most 128 in all, "
    short = {"rollout": {"n_prompts": 4, "max_new_tokens": 16}}
    content = {source: {**given, "model": "m"}, "collect": {"max_new_tokens": 16}, "ppo": short, "name": "long"}
    Path("c.yaml").write_text(json.dumps(content))
    code, out, _ = outcome(capsys, "doctor", "c.yaml")
    assert code == 1
    assert re.search(rf"^wrong    source: {said}", out, re.MULTILINE)
    code, _, err = outcome(capsys, "run", "c.yaml")
    assert code == 2
    assert re.search(f"^karat: {said}", err, re.MULTILINE)
    assert "started" not in err
