"""Settings that were written down but have no effect, or that contradict one another, found before hours are spent.

Pure: a configuration and the keys that its file names. A configuration that cannot be built at all is refused earlier,
by the dataclasses themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from karat.config import build, plain
from karat.pipeline.settings import RunConfig

METHOD_SECTIONS = ("ppo", "group", "online_dpo", "expert", "direct", "ilql")


def named_keys(values: Mapping[str, Any], *, at: str = "") -> Iterator[str]:
    """Every dotted key that a configuration file names.

    >>> sorted(named_keys({"a": {"b": 1, "c": {}}}))
    ['a', 'a.b', 'a.c']
    """
    for key, value in values.items():
        dotted = f"{at}.{key}" if at else str(key)
        yield dotted
        if isinstance(value, Mapping):
            yield from named_keys(value, at=dotted)


def dead_settings(config: RunConfig, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, why it has no effect) of keys that the file names and nothing reads.

    What is as it would be without the file is not named: a file of `karat init` writes every key down.

    Args:
        given: the file's mapping, overrides applied.
    """
    keys = set(named_keys(given))
    own, usual = plain(config), plain(build(RunConfig, {"sandbox": {}}))
    found = [(key, why) for key, dead, why in _rules(config) if dead and key in keys]
    return [(key, why) for key, why in found if _at(own, key) != _at(usual, key)]


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _rules(config: RunConfig) -> list[tuple[str, bool, str]]:
    ppo = config.ppo
    given = config.preferences is not None
    separate = ppo.value.critic == "separate"
    found = [(f"collect.{key}", given, "the votes of `preferences` are given, nothing is asked")
             for key in ("n_tasks", "overlap", "people", "stop_after", "principle", "tie_width")]  # fmt: skip
    found += [
        ("collect.tie_width", config.people is not None, "people decide themselves what a tie is"),
        ("collect.people", config.people is not None, "a run of `people` asks people for all answers"),
        ("base", config.sandbox is None, "only the sandbox trains a base model"),
        ("ppo.value.vf_coef", separate, "a separate critic has its own loss and optimiser"),
        ("ppo.value.head_lr_scale", separate, "a separate critic has its own learning rate"),
        ("reward.patience", config.reward.holdout_frac == 0 or config.reward.n_epochs == 1,
         "there are no held-out votes, or only one epoch, to be patient with"),
    ]  # fmt: skip
    found.append(("watch.odd_quantile", config.section == "direct", f"{config.algorithm} asks for no scores"))
    found.append(("labels", config.algorithm != "kto", "only kto reads labels"))
    alone = not config.pluralism.enabled
    found.append(("pluralism.target", alone, "pluralism.enabled is false, no population is fitted"))
    for name in ("ppo", "group"):
        fixed = getattr(config, name).reward.kl_controller == "fixed"
        found += [(f"{name}.reward.{key}", fixed, "kl_controller is fixed") for key in ("kl_target", "kl_horizon")]
    found += [(f"expert.reward.{key}", True, "expert iteration has no KL penalty")
              for key in ("kl_coef", "kl_target", "kl_horizon", "kl_controller")]  # fmt: skip
    used = f"algorithm is {config.algorithm}, whose settings are in `{config.section}`"
    return found + [(name, name != config.section, used) for name in METHOD_SECTIONS]


def contradictions(config: RunConfig) -> list[str]:
    """What would stop the run later, or quietly make it another one than was asked for."""
    found = []
    if config.reward.heads.n_heads == 1 and config.reward.posterior == "heads":
        found.append(
            "reward.heads.n_heads is 1: the watcher's lower bound needs the spread of at least 2 heads; set it ≥ 2"
        )
    if config.reward.dropout > 0:
        found.append("reward.dropout is above 0: a decoder has none; set it to 0")
    method: Any = config.method
    if config.rollout is not None and method.update.lr_warmup_iterations >= method.n_iterations:
        found.append(
            f"{config.section}.update.lr_warmup_iterations is {method.update.lr_warmup_iterations} of "
            f"{method.n_iterations} iterations: the learning rate would never reach its value; lower it"
        )
    if config.watch.kl_budget is None and config.kl_coef == 0 and not config.allow_ungated_reward:
        name = f"{config.section}.reward.kl_coef" if hasattr(config.method, "reward") else f"β of {config.algorithm}"
        found.append(
            f"{name} is 0 and watch.kl_budget null: the gate asks for one of the two; set one, or allow_ungated_reward"
        )
    return found


def cautions(config: RunConfig) -> list[str]:
    """What is allowed and probably not meant."""
    method: Any = config.method
    name, found = config.section, []
    stages = {"base": config.base, "sft": config.sft, "reward": config.reward, name: method}
    for stage, every in stages.items():
        if every.checkpoint_every == 0 and (stage != "base" or config.sandbox is not None):
            found.append(f"{stage}.checkpoint_every is 0: when interrupted, this stage starts again from its beginning")
    n = getattr(method, "n_iterations", None)
    if n is not None and method.evaluate_every >= n and config.watch.keep == "best":
        found.append(
            f"{name}.evaluate_every is {method.evaluate_every} of {n} iterations: the best policy is chosen "
            "among the first and the last only"
        )
    return found
