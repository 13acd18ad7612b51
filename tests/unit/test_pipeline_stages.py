"""A stage that is tried again under other settings leaves its record whole until the new work is done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from karat.errors import LedgerError
from karat.ledger.artifacts import take_place
from karat.ledger.manifest import read_manifest, verify_run
from karat.lm.loop import JsonlReporter
from karat.pipeline import stages
from karat.pipeline.stages import Output, Run, StageResult, Workplace
from karat.progress import open_progress


def grown(place: Workplace, words: str, *, fails: bool) -> StageResult:
    """Work that writes as it goes: a metrics file, and a file of its own."""
    JsonlReporter(place.metrics_path).log(1, {"value": float(len(words))})
    path = place.beside(place.directory / "data" / "drawn.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words, encoding="utf-8")
    if fails:
        raise LedgerError("refused")
    model = place.model_directory("ppo")
    model.mkdir(parents=True, exist_ok=True)
    (model / "weights").write_text(words, encoding="utf-8")
    return StageResult([Output("metrics", place.metrics_path), Output("drawn", path), Output("model", model, "model")])


def tried(directory: Path, words: str, *, fails: bool = False) -> None:
    with open_progress() as progress:
        run = Run(directory, 0, progress)
        run.stage("ppo", inputs=(), config=words, work=lambda place: grown(place, words, fails=fails))


def test_a_refused_try_under_other_settings_leaves_the_old_record_whole(tmp_path):
    tried(tmp_path, "first")
    before = (tmp_path / "metrics/ppo.jsonl").read_bytes()
    with pytest.raises(LedgerError, match="refused"):
        tried(tmp_path, "the second", fails=True)
    assert verify_run(tmp_path) == []
    assert (tmp_path / "metrics/ppo.jsonl").read_bytes() == before
    assert (tmp_path / "data/drawn.jsonl").read_text() == "first"
    assert sorted(one.name for one in (tmp_path / "metrics").iterdir()) == ["ppo.jsonl"]  # no half-grown file beside it
    tried(tmp_path, "first")  # is kept
    assert read_manifest(tmp_path, "ppo").config == {"settings": "first"}


def test_when_the_new_work_is_done_it_takes_the_place_of_the_old(tmp_path):
    tried(tmp_path, "first")
    with pytest.raises(LedgerError, match="refused"):
        tried(tmp_path, "the second", fails=True)
    tried(tmp_path, "the second")
    assert verify_run(tmp_path) == []
    assert (tmp_path / "data/drawn.jsonl").read_text() == "the second"
    assert '"value": 10.0' in (tmp_path / "metrics/ppo.jsonl").read_text()
    assert sorted(path.name for path in tmp_path.rglob("*.jsonl")) == ["drawn.jsonl", "ppo.jsonl"]
    assert [one.path for one in read_manifest(tmp_path, "ppo").outputs] == [
        "metrics/ppo.jsonl", "data/drawn.jsonl", "models/ppo",
    ]  # fmt: skip


def test_a_stage_stopped_while_its_files_took_their_places_is_told_from_tampering(tmp_path, monkeypatch):
    tried(tmp_path, "first")
    monkeypatch.setattr(stages, "write_manifest", stopped)  # all files are in their places, the manifest is not
    with pytest.raises(KeyboardInterrupt):
        tried(tmp_path, "the second")
    monkeypatch.undo()
    problems = verify_run(tmp_path)
    assert {(one.kind, one.path, one.stage) for one in problems} == {
        ("interrupted", path, "ppo") for path in ("data/drawn.jsonl", "metrics/ppo.jsonl", "models/ppo")
    }
    assert all(one.fatal and "run the same command again" in one.detail for one in problems)
    (tmp_path / "models/ppo/weights").write_text("planted")
    (tmp_path / "data/drawn.jsonl").write_text("planted")
    assert {one.path: one.kind for one in verify_run(tmp_path)} == {
        "data/drawn.jsonl": "altered", "metrics/ppo.jsonl": "interrupted", "models/ppo/weights": "altered",
    }  # fmt: skip
    tried(tmp_path, "the second")
    assert verify_run(tmp_path) == []
    assert (tmp_path / "models/ppo/weights").read_text() == "the second"


@pytest.mark.parametrize("n_moved", [0, 1, 2])
@pytest.mark.parametrize("back", [False, True], ids=["the same again", "the old settings again"])
def test_a_stage_stopped_between_two_of_its_files_is_finished_or_given_up(tmp_path, monkeypatch, n_moved, back):
    tried(tmp_path, "first")
    moved = []

    def slow(new, path):
        if len(moved) == n_moved:
            raise KeyboardInterrupt
        moved.append(path)
        take_place(new, path)

    monkeypatch.setattr(stages, "take_place", slow)
    with pytest.raises(KeyboardInterrupt):
        tried(tmp_path, "the second")
    monkeypatch.undo()
    assert [one.kind for one in verify_run(tmp_path)] == ["interrupted"] * n_moved
    tried(tmp_path, "first" if back else "the second")
    assert verify_run(tmp_path) == []
    assert (tmp_path / "data/drawn.jsonl").read_text() == ("first" if back else "the second")
    assert sorted(one.name for one in (tmp_path / "manifests").iterdir()) == ["ppo.json"]


def test_a_directory_that_had_just_left_its_place_is_no_missing_one(tmp_path, monkeypatch):
    tried(tmp_path, "first")
    monkeypatch.setattr(stages, "write_manifest", stopped)
    with pytest.raises(KeyboardInterrupt):
        tried(tmp_path, "the second")
    shutil.rmtree(tmp_path / "models/ppo")
    assert {one.path: one.kind for one in verify_run(tmp_path)}["models/ppo"] == "interrupted"
    # what was announced excuses only itself
    (tmp_path / "manifests/ppo.next").write_text("{}")
    assert {one.path: one.kind for one in verify_run(tmp_path)}["models/ppo"] == "missing"


def test_figures_of_training_steps_are_recorded_of_every_stage(tmp_path):
    def work(place: Workplace) -> StageResult:
        JsonlReporter(place.metrics_path).log(1, {"loss": 1.0})
        return StageResult([])

    with open_progress() as progress:
        run = Run(tmp_path, 0, progress)
        manifest = run.stage("sft", inputs=(), config="a", work=work)
        assert [(one.path, one.kind) for one in manifest.outputs] == [("metrics/sft.jsonl", "metrics")]
        file = tmp_path / "metrics/sft.jsonl"
        file.write_text(file.read_text().replace("1.0", "0.1"))
        assert [(one.kind, one.path) for one in verify_run(tmp_path)] == [("altered", "metrics/sft.jsonl")]
        run.stage("sft", inputs=(), config="b", work=lambda _: StageResult([]))  # a stage that trains nothing
    assert verify_run(tmp_path) == []
    assert not file.exists()


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_later_round_is_named_where_its_work_is_shown(tmp_path, capsys):
    def work(place: Workplace) -> StageResult:
        with place.progress.stage("votes"):
            return StageResult([])

    with open_progress() as progress:
        run = Run(tmp_path, 0, progress)
        for number in (1, 2):
            run.stage("collect", inputs=(), config="x", work=work, round_number=number)
    assert [line for line in capsys.readouterr().err.splitlines() if "started" in line] == [
        "votes: started", "votes, round 2: started",
    ]  # fmt: skip
