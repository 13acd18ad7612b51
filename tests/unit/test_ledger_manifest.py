"""Manifests: written last, readable only if untouched, and every altered byte is named."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from karat.errors import InputError, LedgerError
from karat.ledger import artifacts
from karat.ledger.manifest import (
    Manifest,
    code_commit,
    code_hash,
    finished_stage,
    is_run,
    lock_run,
    package_versions,
    read_manifest,
    read_manifests,
    trace_run,
    verify_run,
    write_manifest,
)
from karat.records import Estimate, Finding


def manifest_of(stage: str, inputs: list, outputs: list, *, started: int = 0, **changes) -> Manifest:
    values = {
        "run_id": "demo",
        "config": {"steps": 3, "rate": 1e-4, "layers": (1, 2)},
        "seeds": {"data": 1},
        "versions": {"python": "3.11"},
        "commit": None,
        "started_at": f"2026-01-01T00:00:0{started}Z",
        "finished_at": f"2026-01-01T00:00:0{started}Z",
        "seconds": 1.5,
    }
    references = {"inputs": tuple(inputs), "outputs": tuple(outputs)}
    return Manifest(stage=stage, **(values | references | changes))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three stages: collect → reward → ppo, with an outside file under it."""
    run = tmp_path / "runs" / "demo"
    artifacts.write_text(tmp_path / "votes.jsonl", "votes")
    source = artifacts.ref_of(run, tmp_path / "votes.jsonl", name="votes")
    artifacts.write_text(run / "snapshots" / "main" / "votes.jsonl", "1\n2\n")
    artifacts.write_text(run / "snapshots" / "main" / "root.json", "{}")
    snapshot = artifacts.ref_of(run, Path("snapshots/main"), "snapshot", "snapshot")
    write_manifest(run, manifest_of("collect", [source], [snapshot]))
    artifacts.write_text(run / "models" / "reward" / "weights", "r")
    reward = artifacts.ref_of(run, Path("models/reward"), "model", "reward_model")
    write_manifest(run, manifest_of("reward", [snapshot], [reward], started=1))
    artifacts.write_text(run / "models" / "ppo" / "weights", "p")
    policy = artifacts.ref_of(run, Path("models/ppo"), "model", "policy")
    write_manifest(run, manifest_of("ppo", [reward, snapshot], [policy], started=2))
    return run


def test_a_manifest_comes_back_with_its_id_and_everything_in_it(tmp_path: Path):
    finding = Finding("gate.length", "Better than length?", "pass", Estimate(0.7, 0.6, 0.8, 40, "Wilson 95 %"))
    manifest = manifest_of(
        "reward", [], [], metrics={"accuracy": 0.71, "n": 40}, findings=(finding,), notes=("unsafe",)
    )
    path = write_manifest(tmp_path, manifest)
    assert path == tmp_path / "manifests" / "reward.json"
    back = read_manifest(tmp_path, "reward")
    assert back.id == manifest.id
    assert back.key == manifest.key
    assert back.findings[0]["estimate"]["high"] == 0.8
    assert back.config == {"steps": 3, "rate": 1e-4, "layers": [1, 2]}
    assert back.notes == ("unsafe",)


def test_a_metric_that_is_no_number_gets_no_manifest(tmp_path: Path):
    with pytest.raises(InputError, match="finite"):
        write_manifest(tmp_path, manifest_of("reward", [], [], metrics={"accuracy": float("nan")}))
    assert not is_run(tmp_path)


def test_a_manifest_is_refused_when_an_output_is_missing_or_was_changed_meanwhile(tmp_path: Path):
    artifacts.write_text(tmp_path / "model", "one")
    model = artifacts.ref_of(tmp_path, Path("model"))
    artifacts.write_text(tmp_path / "model", "two")
    with pytest.raises(LedgerError, match="changed after its hash was taken"):
        write_manifest(tmp_path, manifest_of("sft", [], [model]))
    (tmp_path / "model").unlink()
    with pytest.raises(LedgerError, match="is not there"):
        write_manifest(tmp_path, manifest_of("sft", [], [model]))
    with pytest.raises(LedgerError, match="no file name"):
        write_manifest(tmp_path, manifest_of("../sft", [], []))
    assert not is_run(tmp_path)


def test_a_full_disk_leaves_the_stage_unfinished(tmp_path: Path, monkeypatch):
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(LedgerError, match="disk is full"):
        write_manifest(tmp_path, manifest_of("sft", [], []))
    assert finished_stage(tmp_path, "sft", [], {}, {}) is None
    assert list((tmp_path / "manifests").iterdir()) == []


def test_an_untouched_run_verifies_and_manifests_come_in_order(run: Path):
    assert verify_run(run) == []
    assert [manifest.stage for manifest in read_manifests(run)] == ["collect", "reward", "ppo"]


def test_a_run_may_be_named_relative_to_where_one_stands(run: Path, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert verify_run(Path("demo")) == []
    manifest = read_manifest(Path("demo"), "reward")
    assert finished_stage(Path("demo"), "reward", manifest.inputs, manifest.config, manifest.seeds) is not None


def test_a_moved_run_still_verifies(run: Path, tmp_path: Path):
    run.rename(tmp_path / "elsewhere")
    assert verify_run(tmp_path / "elsewhere") == []


def test_every_flipped_byte_of_every_recorded_file_is_named(run: Path):
    files = sorted(path for path in run.rglob("*") if path.is_file())
    assert len(files) == 7
    for path in files:
        content = path.read_bytes()
        for position in {0, len(content) // 2, len(content) - 1}:
            flipped = bytearray(content)
            flipped[position] ^= 1
            path.write_bytes(bytes(flipped))
            shown = path.relative_to(run).as_posix()
            assert shown in [problem.path for problem in verify_run(run)], (shown, position)
        path.write_bytes(content)
    assert verify_run(run) == []


def test_missing_and_added_files_are_named(run: Path):
    (run / "snapshots" / "main" / "root.json").unlink()
    (run / "models" / "ppo" / "more").write_text("")
    found = {(problem.path, problem.kind) for problem in verify_run(run)}
    assert found == {("snapshots/main/root.json", "missing"), ("models/ppo/more", "added")}
    assert all(problem.fatal for problem in verify_run(run))


def test_an_outside_input_is_altered_where_it_is_and_unchecked_where_it_is_not(run: Path, tmp_path: Path):
    (tmp_path / "votes.jsonl").write_text("other")
    (problem,) = verify_run(run)
    assert (problem.kind, problem.fatal) == ("altered", True)
    (tmp_path / "votes.jsonl").unlink()
    (problem,) = verify_run(run)
    assert (problem.kind, problem.fatal) == ("unchecked", False)


def test_a_reformatted_manifest_and_a_forged_id_are_named(run: Path):
    path = run / "manifests" / "reward.json"
    content = path.read_text()
    path.write_text(json.dumps(json.loads(content)))
    assert "other bytes" in verify_run(run)[0].detail
    path.write_text(content.replace('"steps": 3', '"steps": 4'))
    (problem,) = verify_run(run)
    assert (problem.path, problem.kind) == ("manifests/reward.json", "manifest")
    with pytest.raises(LedgerError, match="altered; its content gives"):
        read_manifest(run, "reward")
    path.write_text(content[:100])
    with pytest.raises(LedgerError, match="damaged manifest"):
        read_manifests(run)
    path.write_text(content.replace('"format": 1', '"format": 9'))
    with pytest.raises(LedgerError, match="found manifest format 9; this karat reads 1"):
        read_manifest(run, "reward")


def test_a_rewritten_output_with_a_consistent_manifest_makes_its_readers_stale(run: Path):
    artifacts.write_text(run / "models" / "reward" / "weights", "other")
    reward = artifacts.ref_of(run, Path("models/reward"), "model", "reward_model")
    write_manifest(run, replace(read_manifest(run, "reward"), outputs=(reward,)))
    (problem,) = verify_run(run)
    assert (problem.path, problem.kind, problem.stage) == ("models/reward", "stale", "ppo")
    assert "run ppo again" in problem.detail


def test_a_finished_stage_is_reused_only_for_the_same_work_and_untouched_outputs(run: Path):
    manifest = read_manifest(run, "reward")
    same = (manifest.inputs, manifest.config, manifest.seeds)
    assert finished_stage(run, "reward", *same).id == manifest.id
    assert finished_stage(run, "reward", manifest.inputs, manifest.config, {"data": 2}) is None
    assert finished_stage(run, "reward", manifest.inputs, {"steps": 4}, manifest.seeds) is None
    assert finished_stage(run, "reward", (), manifest.config, manifest.seeds) is None
    assert finished_stage(run, "sft", *same) is None
    (run / "models" / "reward" / "weights").write_text("other")
    assert finished_stage(run, "reward", *same) is None


def test_what_is_not_a_run_says_so(tmp_path: Path):
    for function in (verify_run, read_manifests, trace_run):
        with pytest.raises(LedgerError, match="found no manifests; expected the directory of a run"):
            function(tmp_path)
    with pytest.raises(LedgerError, match="the stage has not finished"):
        read_manifest(tmp_path, "ppo")


def test_trace_run_describes_artefacts_through_the_caller(run: Path):
    def describe(reference, place: Path, reader: str | None) -> dict:
        if reference.kind != "snapshot":
            return {}
        return {"votes": len((place / "votes.jsonl").read_text().split()), "read by": reader}

    (policy,) = trace_run(run, describe=describe)
    assert policy.artefact.path == "models/ppo"
    reward, _ = policy.fed_by
    assert reward.fed_by[0].facts == {"votes": 2, "read by": "reward"}


def test_what_lies_beside_a_run_moves_with_it_and_what_lies_farther_away_does_not(tmp_path: Path):
    run, far = tmp_path / "place" / "runs" / "r", tmp_path / "far.txt"
    for path in (run / "made.txt", run.parent / "beside" / "given.txt", far):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words")
    beside, away = (artifacts.ref_of(run, path) for path in (run.parent / "beside", far))
    assert (beside.path, away.path) == ("../beside", str(far.resolve()))
    assert (beside.outside, away.outside) == (True, True)
    write_manifest(run, manifest_of("reward", [beside, away], [artifacts.ref_of(run, run / "made.txt")]))
    moved = tmp_path / "elsewhere"
    (tmp_path / "place").rename(moved)
    assert verify_run(moved / "runs" / "r") == []
    (moved / "runs" / "beside" / "given.txt").write_text("other")
    assert [one.kind for one in verify_run(moved / "runs" / "r")] == ["altered"]
    (moved / "runs" / "r").rename(tmp_path / "alone")
    assert [one.kind for one in verify_run(tmp_path / "alone")] == ["unchecked"]


def test_a_run_is_held_by_one_process(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from karat.ledger.manifest import lock_run\n"
        "try:\n  lock_run(Path(sys.argv[1])).__enter__()\nexcept Exception as error:\n  print(error)"
    )
    with lock_run(tmp_path / "run"):
        result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert "another karat process is working in this run" in result.stdout
    with lock_run(tmp_path / "run"):
        pass


def test_versions_and_commit_are_said_without_importing_what_computes(tmp_path: Path):
    assert {"python", "karat", "torch"} <= set(package_versions())
    assert package_versions(("no-such-package",)).keys() == {"python"}
    assert code_commit(tmp_path) is None
    assert code_hash() == code_hash()
    assert code_hash().startswith("tree:")
    code = "import sys, karat.ledger.manifest as m; m.package_versions(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
