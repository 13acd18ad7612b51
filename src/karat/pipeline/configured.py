"""What a configuration file, its overrides and a sweep come to: one checked configuration for each point.

Reads one file and waits for no library of models, so that a wrong key is said at once. Knows nothing about how a run goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from karat.config import apply_overrides, build, load_yaml
from karat.errors import ConfigError
from karat.pipeline.settings import RunConfig
from karat.pipeline.votes_settings import VotesConfig

DEMO = Path(__file__).parent / "demo.yaml"
FAULTS: Mapping[str, Sequence[str]] = {
    "no-kl": (
        "ppo.reward.kl_coef=0.0", "watch.kl_budget=null", "watch.disagreement_quantile=null", "watch.keep=last",
        "allow_ungated_reward=true",
    ),
    "unchecked-facts": (
        "sandbox.raters.attention=0.0", "sandbox.raters.belief_trust=1.2", "sandbox.raters.agreement_liking=0.3",
        "allow_ungated_reward=true",
    ),
}  # fmt: skip
"""What each fault of the demo switches; its point is to finish, so the gate is told to let it pass."""


def demo_config(name: str, overrides: Sequence[str] = (), *, fault: str | None = None) -> RunConfig:
    """The demo's settings under another name, with a fault of `FAULTS` switched on.

    Raises: ConfigError for an unknown fault.
    """
    if fault is not None and fault not in FAULTS:
        raise ConfigError(f"--fault {fault}: expected one of {', '.join(FAULTS)}")
    overrides = [*FAULTS.get(fault or "", ()), *overrides]
    return build(RunConfig, apply_overrides(load_yaml(DEMO), list(overrides)) | {"name": name})


def read_configs(
    path: Path, overrides: Sequence[str], *, sweep: Sequence[str] = (), until: str | None = None
) -> dict[tuple[str, ...], RunConfig] | VotesConfig:
    """The configuration at every point of a sweep, () where there is none; or that of a run of given votes.

    Args:
        sweep: `key=v1,v2`, every combination is a point.    until: the last station asked for; None = all.
    Raises: ConfigError for anything wrong with them that no data has to be read for.
    """
    settings = load_yaml(path)
    if "votes" in settings:
        _refuse_for_votes(path, sweep, until)
        return build(VotesConfig, apply_overrides(settings, overrides))
    return {point: build(RunConfig, apply_overrides(settings, [*overrides, *point])) for point in sweep_points(sweep)}


def _refuse_for_votes(path: Path, sweep: Sequence[str], until: str | None) -> None:
    """A run of given votes ends with its reward and compares no policies, so a sweep has no table to fill."""
    if sweep:
        raise ConfigError(
            f"{path}: found --sweep {sweep[0]} for a configuration of `votes`; expected none: give each value with --set"
        )
    if until not in (None, "reward"):
        raise ConfigError(
            f"{path}: found the station {until!r} for a configuration of `votes`; expected `karat run` or `karat reward`"
        )


def sweep_points(sweep: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of the values of `key=v1,v2` options, as overrides.

    >>> sweep_points(["a=1,2", "b=x"])
    [('a=1', 'b=x'), ('a=2', 'b=x')]
    """
    axes: list[list[str]] = []
    for option in sweep:
        key, separator, values = option.partition("=")
        if not key or not separator or not values:
            raise ConfigError(f"--sweep {option}: expected key=value,value")
        given = values.split(",")
        if "" in given or len(set(given)) < len(given):
            what = "an empty value" if "" in given else f"{next(one for one in given if given.count(one) > 1)} twice"
            raise ConfigError(f"--sweep {option}: found {what}; expected each value once")
        if key in ("seed", "name"):
            how = f"--seeds {values}" if key == "seed" else "another key: each run of a sweep is named by its values"
            raise ConfigError(f"--sweep {option}: expected {how}")
        if any(axis[0].startswith(f"{key}=") for axis in axes):
            raise ConfigError(f"--sweep {option}: found {key} in two sweeps; expected all of its values in one")
        axes.append([f"{key}={value}" for value in given])
    return [tuple(point) for point in itertools.product(*axes)]
