"""One finished tiny run that every journey may read, and a place of its own for those that write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from journeys import SANDBOX, inside, karat, write_config


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which `karat run tiny.yaml` has been run to its end; not to be changed."""
    place = tmp_path_factory.mktemp("finished")
    with inside(place):
        outcome = karat("run", write_config(SANDBOX))
        assert outcome.code == 0, outcome.err
        (place / "output.txt").write_text(outcome.out, encoding="utf-8")
    return place


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """An empty directory to work in."""
    with inside(tmp_path) as place:
        yield place


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished run's directory, to be changed at will."""
    target = tmp_path / "copied"
    shutil.copytree(finished, target)
    with inside(target) as place:
        yield place
