"""Which keys of a run's configuration are read by which stage, and which files it leaves beside its outputs, written down.

Knows dataclasses, files and `Run.stage`; knows nothing about what a key means.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import Run

NOBODY = ""
"""Whose reads are not written down."""


class Reads:
    """The keys that were read, by whoever `during` says is reading."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.reader = config, NOBODY
        self.found: dict[str, set[str]] = {}
        self.left: dict[str, set[str]] = {}  # by stage the files that its work made or changed, its outputs aside
        self.places: dict[int, str] = {}  # of sections, which the configuration keeps alive
        self.kinds: dict[type, set[str]] = {}
        self._walk(config, "")

    def _walk(self, section: Any, at: str) -> None:
        self.places[id(section)] = at
        self.kinds.setdefault(type(section), set()).add(at)
        for one in dataclasses.fields(section):
            value = object.__getattribute__(section, one.name)
            if dataclasses.is_dataclass(value):
                self._walk(value, f"{at}{one.name}.")

    @contextlib.contextmanager
    def during(self, reader: str) -> Iterator[set[str]]:
        """Write down what is read within the block as read by somebody."""
        before, self.reader = self.reader, reader
        try:
            yield self.found.setdefault(reader, set())
        finally:
            self.reader = before

    def note(self, section: Any, name: str, value: Any) -> None:
        """A read of a field. A section that was replaced counts as the one that it stands for, where its kind says which."""
        if self.reader == NOBODY:
            return
        at = self.places.get(id(section))
        for place in self.kinds[type(section)] if at is None else {at}:
            # a section says by itself nothing but that it is there: its keys are read one by one
            if not dataclasses.is_dataclass(value):
                self.found[self.reader].add(f"{place}{name}")


@contextlib.contextmanager
def recorded_reads(config: RunConfig) -> Iterator[Reads]:
    """Within the block reads of such a configuration are written down, those of a stage's work under its name."""
    reads = Reads(config)
    with pytest.MonkeyPatch.context() as patch:
        for kind in reads.kinds:
            patch.setattr(kind, "__getattribute__", _telling(reads, {one.name for one in dataclasses.fields(kind)}))
        stage = Run.stage

        def watched(run: Run, name: str, *, work: Callable[..., Any], **how: Any) -> Any:
            def read(place: Any) -> Any:
                with reads.during(f"{name}{place.suffix}"):
                    return work(place)

            before = _files(run.directory)
            done = stage(run, name, work=read, **how)
            changed = {path for path, state in _files(run.directory).items() if before.get(path) != state}
            outputs = [one.path for one in done.outputs]
            reads.left[done.stage] = {
                path for path in changed if not any(path == one or path.startswith(f"{one}/") for one in outputs)
            }
            return done

        patch.setattr(Run, "stage", watched)
        yield reads


def _files(run: Path) -> dict[str, tuple[int, int]]:
    """Files of a run but what is there only while a stage is worked on, with when they were written and how long they are."""
    paths = {path.relative_to(run).as_posix(): path.stat() for path in run.rglob("*") if path.is_file()}
    working = (".lock", "manifests/", "checkpoints/")
    return {path: (one.st_mtime_ns, one.st_size) for path, one in paths.items() if not path.startswith(working)}


def _telling(reads: Reads, fields: set[str]) -> Callable[[Any, str], Any]:
    def read(section: Any, name: str) -> Any:
        value = object.__getattribute__(section, name)
        if name in fields:
            reads.note(section, name, value)
        return value

    return read
