"""Places of results are looked at beforehand; nothing that was there is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from karat import destinations
from karat.destinations import check_directory_place, check_file_place, filled_directory
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


def fill(place: Path, error: BaseException | None) -> None:
    with filled_directory(place) as partial:
        partial.mkdir()
        (partial / "weights").write_text("half" if error else "whole")
        if error:
            raise error


def test_a_directory_that_could_not_be_filled_leaves_nothing(tmp_path: Path):
    place = tmp_path / "model"
    with pytest.raises(OSError, match="No space left"):
        fill(place, OSError(28, "No space left on device"))
    assert not list(tmp_path.iterdir())
    fill(place, None)
    with pytest.raises(KeyboardInterrupt):  # what stands there stays
        fill(place, KeyboardInterrupt())
    assert (place / "weights").read_text() == "whole"
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
