"""Configuration: types converted, unknown keys answered with the nearest name, nothing silently dropped."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from karat.config import apply_overrides, build, load_yaml, plain
from karat.errors import ConfigError
from karat.pipeline.settings import RunConfig


@dataclass(frozen=True)
class Part:
    rate: float = 0.1
    """A number."""
    names: tuple[str, ...] = ()
    """Some names."""


@dataclass(frozen=True)
class Whole:
    steps: int
    """Required."""
    part: Part = field(default_factory=Part)
    """A section."""
    path: Path | None = None
    """Optional."""
    on: bool = False
    """A switch."""


def test_sections_types_and_defaults():
    whole = build(Whole, {"steps": 3, "part": {"rate": "1e-4", "names": ["a"]}, "path": "x/y"})
    assert whole == Whole(3, Part(1e-4, ("a",)), Path("x/y"))
    assert plain(whole) == {"steps": 3, "part": {"rate": 1e-4, "names": ["a"]}, "path": "x/y", "on": False}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1, "part": {"rte": 1}}, "unknown configuration key 'part.rte'; did you mean 'part.rate'"),
        ({}, "missing configuration key 'steps'"),
        ({"steps": "many"}, "steps: found 'many'; expected a whole number"),
        ({"steps": True}, "steps: found true; expected a whole number"),
        ({"steps": 1, "on": 1}, "on: found 1; expected true or false"),
        ({"steps": 1, "part": 3}, "part: found 3; expected a section"),
        ({"steps": 1, "part": {"names": "a"}}, r"part.names: found 'a'; expected a list"),
        ({"steps": 1, "part": {"rate": "nan"}}, "part.rate: found 'nan'; expected a number"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(Whole, values)
    assert "\n" not in str(caught.value)


def test_overrides_reach_sections_and_leave_the_original_alone():
    original = {"part": {"rate": 1.0}}
    assert apply_overrides(original, ["part.rate=0.5", "part.names=[x, y]", "steps=2"]) == {
        "part": {"rate": 0.5, "names": ["x", "y"]},
        "steps": 2,
    }
    assert original == {"part": {"rate": 1.0}}


@pytest.mark.parametrize("override", ["part.rate", "=3", "steps.x=1"])
def test_a_broken_override_is_named(override):
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"steps": 1}, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "found a list at the top"),
        ("a: [", "not readable as YAML"),
        ("a: 1\nb: {c: 1}\na: 2\n", "c.yaml: found the key 'a' on line 1 and again on line 3; expected it once"),
        ("a: {b: 1, b: 2}\n", "found the key 'b' on line 1 and again on line 1"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_yaml(tmp_path / "c.yaml")


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_part_of_a_key(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfname: x\r\nsft: {epochs: 2}\r\n")
    assert load_yaml(tmp_path / "c.yaml") == {"name": "x", "sft": {"epochs": 2}}


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="no such file; `karat init` writes"):
        load_yaml(tmp_path / "none.yaml")


def test_an_override_that_is_not_yaml_is_one_line():
    with pytest.raises(ConfigError, match=r"--set a=\[1,: not readable as YAML") as caught:
        apply_overrides({}, ["a=[1,"])
    assert "\n" not in str(caught.value)


RANGES = [
    "direct.learning_rate=1e30", "ilql.learning_rate=1e30", "ppo.update.learning_rate=2", "group.update.learning_rate=0",
    "sft.learning_rate=1e30", "reward.learning_rate=1e30", "ppo.value.critic_learning_rate=1e30",
    "sft.warmup_frac=1.5", "sft.weight_decay=-1", "sft.max_grad_norm=0", "base.checkpoint_every=-1",
    "reward.learning_rate=-1", "reward.n_refits=-1", "reward.max_grad_norm=-1", "reward.raters.gain_sd=0",
    "watch.n_prompts=0", "watch.kl_budget=-1", "watch.odd_quantile=1.5", "watch.kl_factor=0.5",
    "collect.n_samples=1", "collect.stop_after=-1", "collect.n_tasks=0", "pluralism.max_rank=-1", "pluralism.min_votes=-1",
    "collect.n_tasks=1000000000000", "ppo.rollout.n_prompts=10000001", "evaluate.best_of=[1000000000000]", "rounds=-10000001",
    "sandbox.n_base_texts=0", "sandbox.n_demonstrations=-1", "sandbox.model.layers=0",
    "ppo.update.lr_warmup_iterations=-1", "group.update.lr_warmup_iterations=-1", "direct.checkpoint_every=-1",
    "ilql.checkpoint_every=-1", "preferences={path: a, model: b, limit: 0}", "people={prompts: a, model: b, max_prompt_tokens: 0}",
]  # fmt: skip


@pytest.mark.parametrize("override", RANGES)
def test_a_number_out_of_range_is_named(override: str):
    key = override.split(":")[-2].split(", ")[-1] if "{" in override else override.partition("=")[0].split(".")[-1]
    source = {} if override.startswith(("preferences", "people")) else {"sandbox": {}}
    with pytest.raises(ConfigError, match=rf"{key}.*found|found.*{key}") as caught:
        build(RunConfig, apply_overrides(source, [override]))
    assert len(str(caught.value)) < 200


def test_a_seed_may_be_any_whole_number():
    assert build(RunConfig, {"sandbox": {}, "seed": 2**40}).seed == 2**40
