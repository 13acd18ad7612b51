"""A run whose kept policy is chosen by a panel: interrupted and continued, and traced from the policy to the votes."""

from __future__ import annotations

import json
from pathlib import Path

from journeys import SANDBOX, inside, karat, weights, write_config

from karat import progress

PANEL = {"n_votes": 12, "candidates": 2}
WATCHED = {
    "ppo": SANDBOX["ppo"] | {"n_iterations": 6, "reward": {"kl_coef": 0.0}},
    "watch": SANDBOX["watch"] | {"panel": PANEL, "kl_budget": None, "disagreement_quantile": None},
}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_panel_keeps_an_earlier_policy_through_an_interruption(here: Path, monkeypatch):
    config = write_config(SANDBOX, **WATCHED)
    assert karat("run", config).code == 0
    whole = here / "runs" / "tiny"
    ppo = json.loads((whole / "manifests" / "ppo.json").read_text(encoding="utf-8"))
    looks = rows(whole / "metrics" / "watch.jsonl")
    assert [row["step"] for row in looks] == list(range(7))
    assert all(0 <= row["curve/near_top"] <= 1 for row in looks)
    assert looks[0]["curve/share"] == 0.5
    kept = ppo["metrics"]["kept_step"]
    assert 0 <= kept <= 6
    assert 0 < ppo["metrics"]["kept_near_top"] <= 1
    # what was kept was made from the votes of every look
    votes = {one for row in rows(whole / "metrics" / "panel.jsonl") for one in row["judgements"]}
    assert votes
    traced = karat("trace", whole, "models/ppo", "--judgements").out
    assert all(one in traced for one in votes)
    assert karat("verify", whole).code == 0

    reach, seen = progress._LineStage._reach, []

    def stop(bar: progress._LineStage, done: float, figures) -> None:
        reach(bar, done, figures)
        seen.append(bar.name)
        if seen.count("ppo") == 4:
            raise KeyboardInterrupt

    (here / "again").mkdir()
    with inside(here / "again") as other:
        config = write_config(SANDBOX, **WATCHED)
        with monkeypatch.context() as patch:
            patch.setattr(progress._LineStage, "_reach", stop)
            assert karat("run", config).code == 130
        assert karat("run", config).code == 0
        run = other / "runs" / "tiny"
    assert weights(run / "models" / "ppo") == weights(whole / "models" / "ppo")
    for file in ("metrics/watch.jsonl", "metrics/panel.jsonl", "evaluation.json"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
