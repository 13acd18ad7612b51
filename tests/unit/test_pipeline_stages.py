"""A stage that is tried again under other settings leaves its record whole until the new work is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from karat.errors import LedgerError
from karat.ledger.manifest import read_manifest, verify_run
from karat.lm.loop import JsonlReporter
from karat.pipeline.stages import Output, Run, StageResult, Workplace
from karat.progress import open_progress


def grown(place: Workplace, words: str, *, fails: bool) -> StageResult:
    """Work that writes as it goes: a metrics file, and a file of its own."""
    JsonlReporter(place.metrics_path).log(1, {"value": float(len(words))})
    path = place.beside(place.directory / "data" / "drawn.jsonl")
    path.parent.mkdir(exist_ok=True)
    path.write_text(words, encoding="utf-8")
    if fails:
        raise LedgerError("refused")
    return StageResult([Output("metrics", place.metrics_path), Output("drawn", path)])


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
    assert [one.path for one in read_manifest(tmp_path, "ppo").outputs] == ["metrics/ppo.jsonl", "data/drawn.jsonl"]
