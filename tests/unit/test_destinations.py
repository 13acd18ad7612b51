"""Places of results are looked at beforehand; nothing that was there is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from karat import destinations
from karat.destinations import check_directory_place, check_file_place
from karat.errors import InputError


def test_places_that_are_free_or_hold_an_earlier_result(tmp_path: Path):
    (tmp_path / "old.jsonl").write_text("kept")
    check_file_place(tmp_path / "old.jsonl")
    check_file_place(tmp_path / "new.jsonl")
    check_directory_place(tmp_path / "a/b/c", "card.json")
    (tmp_path / "empty").mkdir()
    check_directory_place(tmp_path / "empty", "card.json")
    (tmp_path / "empty/card.json").write_text("")
    (tmp_path / "empty/more").write_text("")
    check_directory_place(tmp_path / "empty", "card.json", "another.json")
    assert (tmp_path / "old.jsonl").read_text() == "kept"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["empty", "old.jsonl"]


def test_a_place_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(destinations.tempfile, "TemporaryFile", refuse)
    for check in (check_file_place, check_directory_place):
        with pytest.raises(InputError, match=r"out: cannot be written \(Permission denied\)"):
            check(tmp_path / "out")
