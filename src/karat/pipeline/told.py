"""What each station of a run is told: the part of its configuration that decides whether its work was done already.

The one place where a station's keys are declared. A test records what the work of a station reads of a configuration and
fails where that is neither here, for this station or one before it, nor in `lendable`. Knows configurations; knows nothing
about the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from karat.pipeline.model_settings import dtype_key
from karat.pipeline.settings import RunConfig
from karat.pipeline.taking import Lendable
from karat.policy.score_sources import source_hash

POLICY = "policy"
"""The station that `algorithm` names."""


def told(station: str, config: RunConfig) -> dict[str, Any]:
    """What `Run.stage` is told of a station: `settings_of` and `lendable`.

    Args:
        station: as `settings_of` has it.
    """
    return {"config": settings_of(station, config), "lendable": lendable(station, config)}


def settings_of(station: str, config: RunConfig) -> list[Any]:
    """The settings of a station, in plain order; equal ones, with equal inputs and seeds, mean the same work.

    What an earlier version did not have enters only where it is used, so that stages done before stay done.

    Args:
        station: source, base, sft, collect, reward, POLICY or evaluate.
    """
    return SETTINGS[station](config)


def _source(config: RunConfig) -> list[Any]:
    # prompts that were given have to leave room for the longest response
    room = max(config.collect.max_new_tokens, config.policy_tokens)
    return _asked(config) + ([] if config.sandbox is not None else [{"room": room}])


def _asked(config: RunConfig) -> list[Any]:
    given = next(one for one in (config.sandbox, config.people, config.preferences) if one is not None)
    return [given, config.collect.n_prompts, config.watch.n_prompts, config.evaluate.n_prompts]


def _base(config: RunConfig) -> list[Any]:
    assert config.sandbox is not None
    return [config.sandbox.world, config.sandbox.model, config.base, *dtype_key(config.dtype)]


def _sft(config: RunConfig) -> list[Any]:
    return [config.sft, config.lora, *dtype_key(config.dtype)]


def _collect(config: RunConfig) -> list[Any]:
    return [_asked(config), config.collect.key]


def _reward(config: RunConfig) -> list[Any]:
    settings = [config.reward, config.objectives, config.aggregator, config.gate, config.pluralism]
    settings += ([config.lora] if config.lora else []) + dtype_key(config.dtype)
    return settings + ([config.dense] if config.dense.weights else [])


def _policy(config: RunConfig) -> list[Any]:
    settings: list[Any] = [config.method, config.lora, config.watch, config.aggregator, config.allow_ungated_reward]
    settings += [config.score, source_hash(config.score)] if config.score else []
    settings += ([config.dense] if config.dense.weights else []) + dtype_key(config.dtype)
    settings += [config.constraint] if config.constraint is not None else []
    cost = config.constraint.cost if config.constraint is not None else ""
    return settings + ([source_hash(cost)] if cost else [])


def _evaluate(config: RunConfig) -> list[Any]:
    return [config.evaluate, config.aggregator]


SETTINGS: Mapping[str, Callable[[RunConfig], list[Any]]] = {
    "source": _source, "base": _base, "sft": _sft, "collect": _collect, "reward": _reward, POLICY: _policy,
    "evaluate": _evaluate,
}  # fmt: skip


def lendable(station: str, config: RunConfig) -> Lendable | None:
    """Whether another run can take a station's work over, and what it has to look at before; None = it does it itself.

    None is what asks somebody (people, a panel, a server, a function from outside), and what leaves more than its outputs.
    """
    if station == "source":
        return Lendable(with_store=config.preferences is not None)
    if station == "collect":
        # what people said lies in one store, under one roof of consent and erasure; a copy would be another
        asks_people = config.preferences is None and config.n_people > 0
        return None if asks_people else Lendable(with_store=True)
    if station == POLICY:
        paid_elsewhere = config.score or (config.constraint is not None and config.constraint.cost)
        leaves_more = config.watch.panel is not None or config.watch.odd_quantile is not None
        return None if paid_elsewhere or leaves_more else Lendable(also=lambda: list(config.unsafe))
    if station == "evaluate":
        return None if config.evaluate.served else Lendable(also=lambda: config.rounds)
    return Lendable()
