"""People's blind votes in a run's evaluation: the figure, where it is shown, and what it is traced to."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feedback_cases import vote
from karat import cli
from karat.errors import InputError
from karat.feedback.people import standing
from karat.feedback.snapshot import read_snapshot
from karat.feedback.store import open_store
from karat.feedback.work.arena import arena, arena_result, balanced_win_rate, make_arena, name_checkpoints
from karat.ledger import artifacts
from karat.ledger.lineage import affected
from karat.ledger.manifest import Manifest, read_manifests, trace_run, verify_run, write_manifest
from karat.pipeline.arenas import report_run
from karat.progress import open_progress
from karat.records import Annotator, Estimate, user_prompt

NOW = 1.8e9
RATE = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 40, "method": "against sft, judged by gold, ties ½"}


def manifest_of(stage: str, inputs: list, outputs: list, at: int) -> Manifest:
    when = f"2026-01-01T00:00:0{at}Z"
    metrics = {"kept_step": 1, "stop_reason": "", "n_iterations": 1} if stage == "ppo" else {}
    return Manifest(
        "r", stage, tuple(inputs), tuple(outputs), {}, {"run": 0}, {}, None, when, when, 1.0, metrics=metrics
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run as its manifests say: two policies, a reward, and an evaluation by gold."""
    run = tmp_path / "r"
    for name in ("sft", "ppo", "reward"):
        artifacts.write_text(run / "models" / name / "weights", name)
    sft, ppo, reward = (artifacts.ref_of(run, Path("models") / one, "model") for one in ("sft", "ppo", "reward"))
    artifacts.write_text(run / "data" / "prompts.jsonl", "")
    prompts = artifacts.ref_of(run, Path("data/prompts.jsonl"), name="prompts")
    evaluation = {
        "optimised": "ppo", "policies": {"sft": {"win_rate": RATE | {"value": 0.5}}, "ppo": {"win_rate": RATE}},
        "frontier": [], "training": [], "equal_kl": {}, "shown": [],
    }  # fmt: skip
    artifacts.write_text(run / "evaluation.json", json.dumps(evaluation))
    for at, (stage, outputs) in enumerate(
        {"source": [prompts], "sft": [sft], "reward": [reward], "ppo": [ppo]}.items()
    ):
        write_manifest(run, manifest_of(stage, [], outputs, at))
    done = artifacts.ref_of(run, Path("evaluation.json"))
    write_manifest(run, manifest_of("evaluate", [sft, ppo, reward, prompts], [done], 5))
    artifacts.write_text(run / "config.json", json.dumps({"title": "t", "unsafe": [], "seed": 0, "config": {}}))
    return run


def votes_into(address: Path, run: Path, *, first: str = "ppo", second: str = "sft", n: int = 20) -> list[float]:
    """An arena `a` of the run's two policies, and what five people said: the first wins on 3 of 4 prompts."""
    with open_store(address) as store:
        store.add_annotators([Annotator(f"r{i}") for i in range(5)])
        weights = {one: artifacts.content_hash(run / "models" / one) for one in (first, second)}
        name_checkpoints(store, "a", weights, now=NOW)
        samples = {one: [(user_prompt(f"q {i}"), f"{one} says {i}") for i in range(n)] for one in (first, second)}
        make_arena(store, "a", samples, now=NOW, overlap=2)
        rng, wins = np.random.default_rng(0), []
        for i, task in enumerate(store.tasks(batch="arena:a")):
            ours = arena(store, "a").written_by[task.id][0]
            for rater in rng.choice(5, 2, replace=False):
                win = 0.5 if i % 5 == 4 else float(i % 4 != 3)
                wins.append(win)
                level = 1 if win == 0.5 else 2 if (task.response_ids[0] == ours) == (win == 1.0) else 0
                order = (0, 1) if rng.random() < 0.5 else (1, 0)
                store.submit(vote(task, f"r{rater}", level=level, shown_order=order))
    return wins


def reported(run: Path, **rest) -> dict:
    with open_progress(quiet=True) as progress:
        return report_run(run, progress=progress, **rest)


def test_peoples_votes_are_in_the_evaluation_the_report_and_the_card_and_trace_to_themselves(run, capsys):
    wins = votes_into(run / "karat.db", run)
    summary = reported(run)
    [shown] = summary["arenas"]
    with open_store(run / "karat.db") as store:
        expected = arena_result(store, "a", np.random.default_rng(0))
    assert shown["policies"] == ["ppo", "sft"]
    assert shown["win_rate"]["value"] == expected.win_rate.value
    assert shown["win_rate"]["low"] < expected.win_rate.value < shown["win_rate"]["high"]
    assert "40 votes of 5 raters on 20 prompts" in shown["win_rate"]["method"]
    assert "ties ½, both positions alike" in shown["win_rate"]["method"]
    assert shown["votes"] == [wins.count(1.0), wins.count(0.5), wins.count(0.0), 0]
    assert (shown["measured"]["value"], shown["raters"]) == (0.7, [["person", 5]])
    assert summary["policies"]["ppo"]["win_rate_people"] == shown["win_rate"]
    assert "win_rate_people" not in summary["policies"]["sft"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Blind comparisons by people" in page
    assert shown["win_rate"]["method"].split(";")[1].strip() in page
    card = json.loads((run / "card.json").read_text(encoding="utf-8"))["policy"]["win_rate_people"]
    assert (card["value"], card["stage"]) == (expected.win_rate.value, "arena-a")
    # traced, down to the votes, and to the models that were compared
    [tree] = trace_run(run, "arena-a/arena")
    assert {one.artefact.path for one in tree.fed_by} == {"models/ppo", "models/sft", "snapshots/arena-a"}
    assert len(read_snapshot(run / "snapshots" / "arena-a").votes) == 40
    made = affected(read_manifests(run), "snapshots/arena-a")
    assert [one.path for _, one in made] == ["arenas/a.json"]
    assert verify_run(run) == []
    # the table on the terminal
    assert cli.main(["report", str(run)]) == 0
    assert "people, blind: ppo against sft, win rate" in capsys.readouterr().out


def test_new_votes_and_a_quarantine_change_the_figure_and_nothing_else_does(run):
    votes_into(run / "karat.db", run)
    first = reported(run)
    kept = read_manifests(run)
    assert reported(run) == first
    assert read_manifests(run) == kept
    with open_store(run / "karat.db") as store:
        standing.quarantine(store, "r1", reason="x", by="admin", now=NOW)
    second = reported(run)
    assert sum(second["arenas"][0]["votes"]) < sum(first["arenas"][0]["votes"])
    assert [one.name for one in (run / "snapshots").iterdir()] == ["arena-a"]  # no copy of votes is left behind
    assert verify_run(run) == []


def test_the_baseline_may_be_the_first_policy_of_the_arena(run):
    votes_into(run / "karat.db", run, first="sft", second="ppo")
    summary = reported(run)
    [shown], people = summary["arenas"], summary["policies"]["ppo"]["win_rate_people"]
    assert shown["policies"] == ["sft", "ppo"]
    assert (people["value"], people["low"]) == (1 - shown["win_rate"]["value"], 1 - shown["win_rate"]["high"])
    assert shown["measured"]["value"] == pytest.approx(0.3, abs=1e-12)


def test_another_store_counts_where_the_weights_are_the_runs(run, tmp_path):
    votes_into(tmp_path / "judged.db", run)
    assert "arenas" not in reported(run)
    [shown] = reported(run, stores=[str(tmp_path / "judged.db")])["arenas"]
    assert shown["stage"] == "arena-judged-a"
    assert len(reported(run)["arenas"]) == 1  # what was taken in stays
    artifacts.write_text(run / "models" / "ppo" / "weights", "trained anew")
    again = artifacts.ref_of(run, Path("models/ppo"), "model")
    sft = artifacts.ref_of(run, Path("models/sft"), "model")
    with open_store(tmp_path / "other.db"):
        pass
    with pytest.raises(InputError, match="other: found no votes on a model of r"):
        reported(run, stores=[str(tmp_path / "other.db")])
    old = next(one for one in read_manifests(run) if one.stage == "evaluate")
    write_manifest(run, replace(old, inputs=(sft, again, *old.inputs[2:])))
    [still] = reported(run, stores=[str(tmp_path / "judged.db")])["arenas"]
    assert still["policies"][1] == "sft"
    manifest = next(one for one in read_manifests(run) if one.stage == "arena-judged-a")
    assert [one.path for one in manifest.inputs] == ["models/sft"]  # the new ppo is not the one that was judged


def test_other_weights_under_the_same_names_are_another_arena(tmp_path):
    with open_store(tmp_path / "a.db") as store:
        name_checkpoints(store, "a", {"x": "tree:1", "y": "tree:2"}, now=NOW)
        name_checkpoints(store, "a", {"x": "tree:1", "y": "tree:2"}, now=NOW)
        with pytest.raises(InputError, match="found other weights than when it was set up"):
            name_checkpoints(store, "a", {"x": "tree:1", "y": "tree:3"}, now=NOW)
        assert arena(store, "a").checkpoints == {"x": "tree:1", "y": "tree:2"}


def test_a_side_that_raters_like_lifts_neither_policy(tmp_path):
    """Shown first 30 times of 40 and preferred wherever it is first: .75 of the votes, and no better."""
    with open_store(tmp_path / "a.db") as store:
        store.add_annotators([Annotator(f"r{i}") for i in range(4)])
        samples = {one: [(user_prompt(f"q {i}"), f"{one} {i}") for i in range(40)] for one in ("x", "y")}
        make_arena(store, "a", samples, now=NOW)
        for i, task in enumerate(store.tasks(batch="arena:a")):
            x_is_a, x_first = task.response_ids[0] == arena(store, "a").written_by[task.id][0], i % 4 != 0
            order = (0, 1) if x_is_a == x_first else (1, 0)
            store.submit(vote(task, f"r{i // 4 % 4}", level=2 if order == (0, 1) else 0, shown_order=order))
        found = arena_result(store, "a", np.random.default_rng(0))
    assert (found.by_prompt.value, found.win_rate.value) == (0.75, 0.5)
    assert (found.shown_first.value, dict(found.raters)) == (1.0, {"person": 4})
    assert balanced_win_rate(()) == Estimate(None, None, None, 0, "not estimable: no votes yet")
