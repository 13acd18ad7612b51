"""The comparison at equal KL: gains read off lines in the root of KL, and what lies beyond them."""

from __future__ import annotations

import pytest
from bench.methods_study import METHODS, gain_at, table

from karat.config import apply_overrides, build, load_yaml
from karat.pipeline.configured import DEMO
from karat.pipeline.settings import RunConfig


def test_gains_lie_on_a_line_in_the_root_of_kl() -> None:
    points = [(4.0, 3.0), (1.0, 2.0)]
    assert gain_at(points, 0.25) == pytest.approx(1.0)
    assert gain_at(points, 2.25) == pytest.approx(2.5)
    assert gain_at(points, 4.0) == 3.0
    assert gain_at(points, 4.1) is None


def test_the_table_keeps_seeds_apart_and_counts_best_of_n_once_a_seed() -> None:
    def row(seed: int, method: str, gold: float) -> dict:
        figures = {"sft": {"kl": [0.0], "gold": [-1.0]}, "best_of_4": {"kl": [1.0], "gold": [0.0]}}
        return {"seed": seed, "policies": figures | {method: {"kl": [1.0], "gold": [gold]}}}

    found = {line["method"]: line for line in table([row(0, "ppo", 0.0), row(1, "ppo", 0.5), row(0, "dpo", -0.5)])}
    assert found["ppo"]["gain at 1.0 nats"][0] == pytest.approx(1.25)
    assert found["ppo"]["gain at 0.25 nats"][0] == pytest.approx(0.625)
    assert found["ppo"]["gain at 1.5 nats"] is None
    assert found["dpo"]["gain at 1.0 nats"] == [pytest.approx(0.5), None, None, 1]
    assert found["best_of_n"]["points"] == {0: [(1.0, 1.0)], 1: [(1.0, 1.0)]}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_configuration_that_reads(method: str) -> None:
    section, common, strengths = METHODS[method]
    for strength in strengths:
        own = [f"{section}.{each}" for each in (*common, strength)]
        build(RunConfig, apply_overrides(load_yaml(DEMO), [f"algorithm={method}", *own]))
