"""Artefacts are written whole or not at all, and known by their content."""

import errno
import json
import os
from pathlib import Path

import pytest

from karat.errors import InputError, LedgerError
from karat.identity import bytes_hash
from karat.ledger import artifacts


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_text_and_json_come_back_and_no_part_file_stays(tmp_path: Path):
    artifacts.write_text(tmp_path / "deep" / "a.txt", "Größe")
    artifacts.write_json(tmp_path / "deep" / "b.json", {"b": 1, "a": (0.1, None)})
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "Größe"
    assert json.loads((tmp_path / "deep" / "b.json").read_text()) == {"a": [0.1, None], "b": 1}
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.txt", "b.json"]


def test_a_number_that_is_none_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(InputError, match="finite number"):
        artifacts.write_json(tmp_path / "x.json", {"gold": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_full_disk_is_one_line_and_leaves_the_old_content(tmp_path: Path, monkeypatch, broken: str):
    path = tmp_path / "summary.json"
    artifacts.write_text(path, "old")
    monkeypatch.setattr(os, broken, full_disk)
    with pytest.raises(LedgerError, match="the disk is full; nothing was half-written") as error:
        artifacts.write_text(path, "new")
    assert "\n" not in str(error.value)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_an_interruption_leaves_the_old_content(tmp_path: Path, monkeypatch):
    path = tmp_path / "summary.json"
    artifacts.write_text(path, "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifacts.write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_what_a_killed_process_left_is_overwritten_not_collected(tmp_path: Path):
    (tmp_path / ".a.txt.part").write_text("half")
    artifacts.write_text(tmp_path / "a.txt", "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_in_the_way_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be written"):
        artifacts.write_text(tmp_path / "file" / "below.txt", "x")


def test_staged_directory_appears_whole_and_replaces_the_old_one(tmp_path: Path):
    place = tmp_path / "model"
    for content in ("one", "two"):
        with artifacts.staged_directory(place) as staging:
            (staging / "weights").write_text(content)
            (staging / content).write_text("")
            assert not (place / content).exists()
    assert sorted(file.name for file in place.iterdir()) == ["two", "weights"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_staged_directory_keeps_the_old_one_when_the_block_fails(tmp_path: Path, monkeypatch):
    place = tmp_path / "model"
    with artifacts.staged_directory(place) as staging:
        (staging / "weights").write_text("old")
    with pytest.raises(FileNotFoundError), artifacts.staged_directory(place) as staging:
        (staging / "nowhere" / "weights").read_text()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(LedgerError, match="disk is full"), artifacts.staged_directory(place) as staging:
        (staging / "weights").write_text("new")
    assert (place / "weights").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_staged_directory_brings_the_old_one_back_when_the_second_rename_fails(tmp_path: Path, monkeypatch):
    place = tmp_path / "model"
    with artifacts.staged_directory(place) as staging:
        (staging / "weights").write_text("old")
    rename = os.replace

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if str(source).endswith(".part"):
            full_disk()
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new_one)
    with pytest.raises(LedgerError, match="disk is full"), artifacts.staged_directory(place) as staging:
        (staging / "weights").write_text("new")
    assert (place / "weights").read_text() == "old"


def test_directory_hash_knows_names_and_contents_but_not_the_order_of_writing(tmp_path: Path):
    for name, order in (("one", ("a", "b")), ("two", ("b", "a"))):
        for file in order:
            artifacts.write_text(tmp_path / name / "sub" / file, file)
    first = artifacts.directory_hash(tmp_path / "one")
    assert first == artifacts.directory_hash(tmp_path / "two")
    (tmp_path / "two" / "sub" / "a").rename(tmp_path / "two" / "sub" / "c")
    assert first != artifacts.directory_hash(tmp_path / "two")
    with pytest.raises(LedgerError, match="found no directory"):
        artifacts.directory_hash(tmp_path / "three")


def test_references_are_relative_inside_the_run_and_absolute_outside(tmp_path: Path):
    run = tmp_path / "runs" / "demo"
    artifacts.write_text(run / "models" / "sft" / "weights", "w")
    artifacts.write_text(tmp_path / "votes.jsonl", "v")
    inside = artifacts.ref_of(run, Path("models/sft"), "model")
    assert (inside.name, inside.path, inside.kind) == ("sft", "models/sft", "model")
    assert inside.files == (("weights", bytes_hash(b"w")),)
    assert inside.hash == artifacts.directory_hash(run / "models" / "sft")
    outside = artifacts.ref_of(run, tmp_path / "votes.jsonl", name="votes")
    assert outside.path == (tmp_path / "votes.jsonl").resolve().as_posix()
    assert (outside.name, outside.hash, outside.files) == ("votes", bytes_hash(b"v"), ())
    with pytest.raises(LedgerError, match="nothing is there"):
        artifacts.ref_of(run, Path("models/ppo"))


def test_a_copy_is_whole_or_not_there(tmp_path: Path, monkeypatch):
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "one").write_bytes(os.urandom(5000))
    (source / "below" / "two").write_bytes(b"")
    (source / "one").chmod(0o600)
    artifacts.copy_in(source, tmp_path / "copy")
    assert (tmp_path / "copy/one").read_bytes() == (source / "one").read_bytes()
    assert (tmp_path / "copy/below/two").read_bytes() == b""
    assert (tmp_path / "copy/one").stat().st_mode & 0o777 == 0o600

    def refuse(*_) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    artifacts.copy_in(source / "one", tmp_path / "elsewhere" / "one")
    assert (tmp_path / "elsewhere/one").read_bytes() == (source / "one").read_bytes()

    def full(*_) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    for given in (source, source / "one"):
        with pytest.raises(LedgerError, match="the disk is full"):
            artifacts.copy_in(given, tmp_path / "none")
        assert sorted(one.name for one in tmp_path.iterdir()) == ["copy", "elsewhere", "source"]
    with pytest.raises(LedgerError, match="nothing is there; expected a file or directory to copy"):
        artifacts.copy_in(tmp_path / "missing", tmp_path / "none")
