"""The replay of our responses by TRL's trainer: its distance by hand, what is recorded, and what the docs say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from bench import replay_study as study
from bench import seeds_study as seeds
from bench.ours import replay as ours


def test_the_distance_between_two_trainings_by_hand() -> None:
    start = {"a": torch.zeros(2), "b": torch.ones(1)}
    moved = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([5.0])}
    other = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([3.0])}
    # ours went √(3² + 4²) = 5, the other ended √(1² + 2²) away from it
    assert study.weight_gap(start, moved, other) == pytest.approx(5**0.5 / 5)
    assert study.weight_gap(start, moved, moved) == 0
    with pytest.raises(SystemExit, match="2, 2 and 1 tensors"):
        study.weight_gap(start, moved, {"a": other["a"]})
    with pytest.raises(SystemExit, match="did not move"):
        study.weight_gap(start, start, other)


def test_responses_are_written_down_in_the_order_of_the_prompts(monkeypatch) -> None:
    first, second = SimpleNamespace(id="p"), SimpleNamespace(id="q")
    trees = (SimpleNamespace(branches=((7, 1), (8,))), SimpleNamespace(branches=((5,), (6, 1))))
    drawn = SimpleNamespace(prompts=(second, first), trees=trees)
    monkeypatch.setattr(ours, "collect_rollout", lambda actor, *, seed: drawn)  # noqa: ARG005
    recorder = ours.Recorder([first, second])
    assert recorder("actor", seed=1) is drawn
    assert recorder.responses == [[[5], [6, 1], [7, 1], [8]]]


def test_the_page_says_what_was_replayed() -> None:
    found = study.load()
    assert {one["method"] for one in found} == set(study.KL_LOGGED)
    start, end = study.MARKS
    written = study.DOCS.read_text(encoding="utf-8")
    assert written.split(start)[1].split(end)[0].strip() == study.page(found)
    for one in found:
        by_hand = max(abs(a - b) for a, b in zip(*one["scores"].values(), strict=True))
        assert one["largest_score_gap"] == pytest.approx(by_hand, abs=2e-5)
        assert one["weight_gap"] < 1e-3


def test_seeds_are_put_together_by_setting() -> None:
    key = dict(zip(seeds.KEY, ("rloo", "length", 1e-3, 1, 1e-8, 4), strict=True))
    ends = {0: [0.0, 1.0, 2.0, 3.0], 1: [9.0, 3.0, 4.0, 5.0]}
    runs = [{**key, "seed": seed, "scores": scores, "lengths": [40.0, 12.4]} for seed, scores in ends.items()]
    lines = seeds.table([*runs, {**runs[0], "adam_eps": 1e-5}]).splitlines()
    # (1 + 2 + 3)/3 and (3 + 4 + 5)/3; their deviation is √2
    assert lines[2].endswith("| lr 0.001, 1 steps | 1e-08 | 0, 1 | 2.0, 4.0 | 3.0 ± 1.4 | 12, 12 |")
    assert lines[3].endswith("| 1e-05 | 0 | 2.0 | 2.0 | 12 |")
    found = seeds.load()
    assert len({(*(one[name] for name in seeds.KEY), one["seed"]) for one in found}) == len(found) > 0
