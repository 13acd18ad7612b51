"""What can only fail hours later is refused before anything is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from karat import cli
from karat.config import apply_overrides, build
from karat.errors import CheckpointError, ConfigError
from karat.lm.addresses import is_address
from karat.lm.endpoint import Endpoint
from karat.pipeline import counted_memory
from karat.pipeline.payment import check_payment
from karat.pipeline.settings import RunConfig
from karat.policy.score_sources import named_score
from tiny_models import tiny_checkpoint

ADDRESSES = {
    "http://127.0.0.1:8000/v1": True, "https://a.example": True, "http://[::1]:8000/x": True, "http://": False,
    "http://[::1": False, "http://a:port/": False, "ftp://a.example": False, "a.example": False, "": False,
}  # fmt: skip


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_that_nobody_can_be_asked_at(url: str):
    assert is_address(url) is ADDRESSES[url]
    if ADDRESSES[url]:
        Endpoint(url, "m")
        return
    with pytest.raises(ConfigError, match="endpoint: found"):
        Endpoint(url, "m")
    with pytest.raises(ConfigError, match="score: found"):
        named_score(url)


def test_a_function_of_other_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_functions.py").write_text(
        "def none(): ...\ndef one(texts): ...\ndef three(p, t, more): ...\n"
        "def two(p, t): ...\ndef any(*given): ...\ndef more(p, t, k=3): ...\nsmallest = min\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("none", "one", "three"):
        with pytest.raises(ConfigError, match=f"my_functions:{name} cannot be called with prompts and texts"):
            named_score(f"my_functions:{name}")
    for name in ("two", "any", "more", "smallest"):
        named_score(f"my_functions:{name}")


def run_config(*overrides: str) -> RunConfig:
    return build(RunConfig, apply_overrides({"sandbox": {}}, overrides))


def test_a_reward_trained_on_kinds_that_nobody_is_asked():
    with pytest.raises(ConfigError, match=r"reward\.kinds: found rating, of which nobody is asked any"):
        run_config("reward.kinds=[rating]")
    run_config("reward.kinds=[rating]", "collect.kinds={comparison: 0.5, rating: 0.5}")
    run_config("reward.kinds=[rating]", "collect.kinds=auto")
    run_config("reward.kinds=[comparison]")


def test_a_reward_model_that_is_a_policy(tmp_path: Path):
    tiny_checkpoint("qwen3", tmp_path / "model")
    with pytest.raises(ConfigError, match="reward_model: found no reward model in"):
        check_payment(run_config(f"reward_model={tmp_path / 'model'}"))
    (tmp_path / "model/config.json").write_text("{")
    with pytest.raises(CheckpointError, match="unsupported kind"):
        check_payment(run_config(f"reward_model={tmp_path / 'model'}"))


def test_yaml_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 3000)
    assert cli.main(["doctor", str(tmp_path / "deep.yaml")]) == 2
    assert "deep.yaml: not readable as YAML" in capsys.readouterr().err


def test_a_scale_of_one_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    row = {"kind": "rating", "prompt": "p", "response": "r", "score": 3, "low": 3, "high": 3, "annotator": "ann"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    assert cli.main(["import", "in.jsonl", "--format", "answers", "--store", "new.db"]) == 2
    assert "in.jsonl:1: rating: found a scale from 3 to 3; expected low < high" in capsys.readouterr().err


MANY = 9_000_000


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("sandbox.model", ["sandbox.model.hidden=9000000"]),
        ("sandbox.model", ["sandbox.model.layers=9000000"]),
        ("sandbox.n_base_texts", []),
        ("sandbox.n_demonstrations", []),
        ("collect.n_prompts", []),
        ("collect.n_samples", []),
        ("collect.n_tasks", []),
        ("collect.overlap", []),
        ("ppo.rollout.n_prompts", ["ppo.update.n_minibatches=1"]),
        ("ppo.rollout.n_samples", []),
        ("watch.n_prompts", []),
        ("watch.n_samples", []),
        ("evaluate.n_prompts", []),
        ("evaluate.n_samples", []),
        ("evaluate.n_best_of", []),
        ("reward.heads.n_heads", []),
        ("reward.laplace.n_draws", ["reward.posterior=laplace"]),
        ("reward.ensemble.models", ["reward.posterior=ensemble"]),
    ],
)
def test_a_count_that_alone_fills_the_memory_is_one_line_before_anything_is_made(
    key: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(counted_memory, "available_bytes", lambda: 4 << 30)
    counted_memory.check_memory(run_config())
    over = overrides if key == "sandbox.model" else [f"{key}={MANY}", *overrides]
    with pytest.raises(
        ConfigError, match=r"found [\d,]+, for which about [\d,.]+ GiB of memory are wanted, and 4\.0 GiB are free"
    ):
        counted_memory.check_memory(run_config(*over))
    monkeypatch.setattr(counted_memory, "available_bytes", lambda: None)
    counted_memory.check_memory(run_config(*over))


def test_doctor_and_run_say_so_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(counted_memory, "available_bytes", lambda: 4 << 30)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("sandbox: {}\ncollect: {n_tasks: 8000000}\n")
    says = "collect.n_tasks · overlap: found 16,000,000, for which about 44.7 GiB of memory are wanted, and 4.0 GiB are free"
    assert cli.main(["doctor", "c.yaml"]) == 1
    assert f"wrong    memory: {says}; expected fewer" in capsys.readouterr().out
    assert cli.main(["run", "c.yaml"]) == 2
    assert capsys.readouterr().err == f"karat: {says}; expected fewer\n"
