"""PPO's settings: the sources' defaults, contradictions, and the size of the configuration."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from karat.config import build
from karat.errors import ConfigError
from karat.pipeline.watch_settings import WatchSettings
from karat.policy.method_settings import (
    DirectConfig,
    ExpertConfig,
    GroupConfig,
    ImplicitQConfig,
    OnlineDPOConfig,
    StepSettings,
)
from karat.policy.settings import (
    ConstraintSettings,
    PPOConfig,
    RewardSettings,
    RolloutSettings,
    UpdateSettings,
    ValueSettings,
)
from karat.policy.watcher import WatchRules

SOURCE = Path(__file__).parents[2] / "src" / "karat" / "policy"


def test_defaults_are_those_of_the_sources():
    config = PPOConfig()
    update, value, reward = config.update, config.value, config.reward
    assert (update.gamma, update.gae_lambda, update.clip_range, update.adam_eps) == (1.0, 0.95, 0.2, 1e-5)
    assert (value.clip_range, value.vf_coef) == (0.2, 0.1)
    assert (reward.kl_coef, reward.kl_target, reward.kl_horizon) == (0.15, 6.0, 10_000)
    assert (config.rollout.temperature, update.n_epochs, update.n_minibatches) == (1.0, 4, 4)
    assert config.n_sequences == 256
    assert config.steps_per_iteration == 16


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("reward", {"missing_eos_penalty": 1.0, "missing_eos_score": -1.0}, "one rule for truncated responses"),
        ("reward", {"missing_eos_penalty": 1.0, "bootstrap_truncated": True}, "one rule for truncated responses"),
        ("reward", {"missing_eos_score": -1.0, "bootstrap_truncated": True}, "one rule for truncated responses"),
        ("reward", {"kl_coef": -0.1}, r"kl_coef=-0\.1"),
        ("reward", {"kl_controller": "adaptive", "kl_coef": 0.0}, "stays 0"),
        ("reward", {"score_clip": 0.0}, r"reward\.score_clip: found 0"),
        ("update", {"n_minibatches": 5}, "64 prompts a rollout do not divide into 5"),
        ("update", {"gae_lambda": 1.1}, r"gae_lambda=1\.1"),
        ("update", {"dual_clip": 0.9}, r"dual_clip=0\.9"),
        ("update", {"max_approx_kl": 0.0}, r"update\.max_approx_kl: found 0"),
        ("update", {"learning_rte": 1.0}, r"did you mean 'update\.learning_rate'"),
        ("value", {"critic_learning_rate": 1e-4}, "for a separate critic"),
        ("value", {"warmup_iterations": 100}, "leave none of 100"),
        ("rollout", {"temperature": 0.0}, r"rollout\.temperature: found 0"),
        ("rollout", {"n_samples": 0}, r"rollout\.n_samples: found 0"),
    ],
)
def test_contradictions(section, values, message):
    with pytest.raises(ConfigError, match=message):
        build(PPOConfig, {section: values})


def test_every_setting_is_read_somewhere_and_no_part_is_large():
    declared = ("settings.py", "method_settings.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.glob("*.py") if path.name not in declared)
    # controllers are made where their settings are; everything else there only checks
    own = (SOURCE / "settings.py").read_text(encoding="utf-8")
    text += "".join(re.findall(r"def (?:controller|multiplier)\(.*?\n\n\n", own, flags=re.DOTALL))
    own = (SOURCE / "method_settings.py").read_text(encoding="utf-8")
    text += "".join(re.findall(r"def (?:choices|n_steps)\(.*?\n\n", own, flags=re.DOTALL))
    parts = (PPOConfig, RolloutSettings, RewardSettings, UpdateSettings, ValueSettings, ConstraintSettings, StepSettings,
             GroupConfig, OnlineDPOConfig, ExpertConfig, DirectConfig, ImplicitQConfig)  # fmt: skip
    for part in parts:
        names = [f.name for f in dataclasses.fields(part)]
        assert len(names) <= 25
        unread = [name for name in names if not re.search(rf"\.{name}\b", text)]
        assert unread == []


@pytest.mark.parametrize("name", ["disagreement_quantile", "entropy_floor", "diversity_floor"])
@pytest.mark.parametrize("share", [0, 1])
def test_a_floor_that_the_watcher_would_refuse_is_refused_before_anything_is_trained(name, share):
    with pytest.raises(ConfigError, match=f"watch.{name}: found {share}; expected between 0 and 1, or null for never"):
        WatchSettings(**{name: share})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kl_budget": 0}, "watch.kl_budget: found 0; expected above 0, or null for never"),
        ({"length_limit_sd": 0}, "watch.length_limit_sd: found 0; expected above 0, or null for never"),
        (
            {"on_alarm": "raise_kl", "kl_factor": 1.0},
            "watch.kl_factor: found 1; expected above 1, or β would not rise",
        ),
    ],
)
def test_limits_that_the_watcher_would_refuse_are_refused_as_early(given, says):
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        WatchSettings(**given)
    assert WatchSettings(kl_factor=1.0).on_alarm == "stop"


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 1.0, 1.5, math.inf, math.nan])
@pytest.mark.parametrize(
    "name",
    ["kl_budget", "length_limit_sd", "disagreement_quantile", "entropy_floor", "diversity_floor", "max_novel_frac", "kl_factor"],
)  # fmt: skip
def test_settings_and_the_rules_made_of_them_refuse_the_same_limits(name, value):
    said = []
    for part, kind, more in (
        ("watch", WatchSettings, {}),
        ("WatchRules", WatchRules, {"reference_lengths": (1.0, 2.0)}),
    ):
        try:
            kind(**{name: value}, **more)
            said.append("")
        except ConfigError as error:
            said.append(str(error).removeprefix(f"{part}.").replace("null", "None"))
    assert said[0] == said[1]
