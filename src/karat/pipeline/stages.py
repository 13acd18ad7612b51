"""How a stage is run once: reused when its manifest stands, resumed when it was interrupted, recorded when done.

A stage is a name, what it reads (artefacts), its configuration and a function that writes files. Everything it
hands on goes over the disk, so that a run that was killed and continued reads the very bytes that an uninterrupted
run would have read. Knows nothing about language models or votes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat import devices
from karat.config import plain
from karat.identity import content_id
from karat.ledger.artifacts import ArtifactRef, ref_of, take_place
from karat.ledger.lineage import METRICS
from karat.ledger.manifest import (
    Manifest,
    announce,
    code_commit,
    finished_stage,
    outputs_of,
    package_versions,
    withdraw,
    write_manifest,
)
from karat.lm import parallel
from karat.lm.checkpoints import newest_step
from karat.lm.loop import JsonlReporter, Reporter
from karat.lm.trackers import TrackerName, open_trackers
from karat.pipeline import taking, tries
from karat.pipeline.taking import Lendable, Wanted
from karat.progress import Progress, in_round
from karat.records import Finding
from karat.report.card import finding_of

GROWN = "grown"
"""Folder among a stage's checkpoints where files and directories grow that are to replace what stands."""


@dataclass(frozen=True)
class Output:
    """A file or directory that a stage wrote."""

    name: str
    """What it is to later stages: `model`, `snapshot`, `samples`."""
    path: Path
    """Where it is."""
    kind: str = "file"
    """file, directory, or a narrower word."""


@dataclass(frozen=True)
class StageResult:
    """What a stage's work came to; the runner turns it into a manifest."""

    outputs: Sequence[Output]
    """Everything that later stages read."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Figures: plain values, or Estimates."""
    findings: Sequence[Finding] = ()
    """Answers for the report."""
    notes: Sequence[str] = ()
    """What a reader must know."""


@dataclass(frozen=True)
class Workplace:
    """Where a stage's work is done and how it reports."""

    directory: Path
    """The run's directory."""
    checkpoints: Path
    """This stage's checkpoints; removed once the manifest stands."""
    metrics_path: Path
    """metrics/<stage>.jsonl."""
    progress: Progress
    """Live progress."""
    clock: Clock
    """Counts the seconds; one of the loop's reporters."""
    identity: str = ""
    """Content hash of what the stage reads and was told."""
    tracking: tuple[TrackerName, ...] = ()
    """Trackers that hear of every step, beside the metrics file."""
    suffix: str = ""
    """Ends the names of what a later round writes: `-2`; "" = the first round."""
    standing: frozenset[Path] = frozenset()
    """Files and directories that the stage wrote under other settings, and that its manifest still vouches for."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """Settings and seed of the stage, for those who hear of its training."""

    @property
    def grown(self) -> Path:
        """The folder of what is to replace something that stands; it goes with the checkpoints."""
        return self.checkpoints / GROWN

    def beside(self, path: Path) -> Path:
        """Where a file or directory grows while the work goes on: its own place, or, where something stands there, among
        the checkpoints until the work is done."""
        return self.grown / path.relative_to(self.directory) if path in self.standing else path

    @property
    def training(self) -> Path:
        """Where the training loop keeps its checkpoints."""
        return self.checkpoints / "loop"

    def model_directory(self, stage: str) -> Path:
        """Where a stage leaves its model, to become models/<stage>; later rounds have their own."""
        return self.beside(self.directory / "models" / f"{stage}{self.suffix}")


@dataclass(frozen=True)
class Run:
    """A run: a directory, a seed and the way to tell how far it is."""

    directory: Path
    """runs/<name>."""
    seed: int
    """The seed from which every stage derives its own."""
    progress: Progress
    """Live progress."""
    tracking: tuple[TrackerName, ...] = ()
    """Trackers that hear of every training step; no result depends on them."""
    lenders: tuple[Path, ...] = ()
    """Directories of runs that this one may take finished stages over from."""
    gone: list[Manifest] = field(default_factory=list, compare=False)
    """The stages gone through so far."""

    @property
    def id(self) -> str:
        """The run's name."""
        return self.directory.name

    def stage(
        self,
        name: str,
        *,
        inputs: Sequence[ArtifactRef],
        config: Any,
        work: Callable[[Workplace], StageResult],
        round_number: int = 1,
        together: bool = False,
        lendable: Lendable | None = None,
    ) -> Manifest:
        """Do the work of a stage unless a manifest says that this very work is done; returns the manifest.

        Where a manifest of one of the lenders says so, what that run did is taken over.

        Of several processes the first looks for the manifest, does the work and writes the manifest, and the others
        wait; all of them call `work` where it is done together.

        Args:
            inputs: what it reads.    config: a dataclass or plain values; decides, with inputs and seed, on reuse.
            work: writes the outputs; called only where there is work to do.
            round_number: of the stage; from the second on it is part of the stage's name.
            together: True = `work` shares its work out by `parallel`, and lets the first process write.
            lendable: what of it another run can take over; None = nothing.
        """
        suffix = f"-{round_number}" if round_number > 1 else ""
        # how it is worked out matters to others alone, and takes a moment to find out
        here = taking.circumstances() if self.lenders and lendable is not None else {}
        wanted = Wanted(
            name + suffix,
            tuple(inputs),
            {"settings": plain(config)},
            {"run": self.seed},
            lendable if here else None,
            here,
        )
        found = parallel.from_main(lambda: self._done_before(wanted)) or self._worked_out(
            wanted, work, suffix=suffix, together=together
        )
        self.gone.append(found)
        return found

    def _done_before(self, wanted: Wanted) -> Manifest | None:
        """The manifest of a stage that was done here, or in another run that lends it; None = nobody has done it."""
        name, directory = wanted.stage, self.directory
        done = finished_stage(directory, name, wanted.inputs, wanted.settings, wanted.seeds)
        if done is not None:
            withdraw(directory, name)
            self.progress.note(f"{name}: done before, kept")
            return done
        if wanted.lendable is None:
            return None
        place = self._place(wanted, outputs_of(directory, name))
        started_at = utc_now()
        taken = taking.take_over(
            directory, self.lenders, wanted, self.gone, beside=place.beside, note=self.progress.note
        )
        if taken is None:
            return None
        # when it took its place here; which of two stages ended last is read from that
        taken = dataclasses.replace(taken, started_at=started_at, finished_at=utc_now())
        put(directory, taken, place.grown)
        self._tidy(place)
        return taken

    def _place(self, wanted: Wanted, standing: frozenset[Path], suffix: str = "") -> Workplace:
        checkpoints = self.directory / "checkpoints" / wanted.stage
        read = [[one.name, one.hash] for one in wanted.inputs]
        identity = content_id("stage", [read, wanted.settings, wanted.seeds])
        metrics = self.directory / "metrics" / f"{wanted.stage}.jsonl"
        return Workplace(self.directory, checkpoints, metrics, in_round(self.progress, int(suffix[1:] or 1)),
                         Clock(checkpoints), identity, self.tracking, suffix, standing, {"seed": self.seed} | wanted.settings)  # fmt: skip

    def _worked_out(
        self, wanted: Wanted, work: Callable[[Workplace], StageResult], *, suffix: str, together: bool
    ) -> Manifest:
        """Do the work, and write the manifest."""
        name, started_at = wanted.stage, utc_now()
        place = self._place(wanted, parallel.from_main(lambda: outputs_of(self.directory, name)), suffix)
        checkpoints, metrics_path = place.checkpoints, place.metrics_path
        told = {"inputs": {one.name: one.hash for one in wanted.inputs}, **wanted.settings, "seeds": wanted.seeds}
        growing = None if metrics_path in place.standing else metrics_path
        if note := parallel.from_main(lambda: tries.take_up(checkpoints, place.identity, told, growing)):
            self.progress.note(f"{name}: {note}")
        place = dataclasses.replace(place, clock=Clock(checkpoints), metrics_path=place.beside(metrics_path))
        begun = parallel.from_main((checkpoints / "devices").exists)
        marks = parallel.from_main(lambda: taking.marked(checkpoints, wanted.here, begun=begun)) if wanted.here else ()
        kinds = parallel.from_main(lambda: devices.marked(checkpoints / "devices", devices.current().type))
        if len(kinds) > 1:
            self.progress.note(f"{name}: {' and '.join(devices.notes(kinds))}: equal to rounding, not to the bit")
        shards = ("what is trained in shards",) if parallel.in_shards() else ()
        notes = (f"worked out by {parallel.count()} processes", *shards) if together and parallel.count() > 1 else ()
        shared = work(place) if together else None

        def recorded() -> Manifest:
            result = with_metrics(work(place) if shared is None else shared, place.metrics_path)
            if wanted.here:
                how = {taking.WORKED_OUT: wanted.worked_out(self.directory, marks)}
                result = dataclasses.replace(result, metrics={**result.metrics, **how})
            manifest = record(
                self.directory, result, run_id=self.id, stage=name, inputs=wanted.inputs, settings=wanted.settings,
                seeds=wanted.seeds, started_at=started_at, seconds=place.clock.seconds(),
                notes=(*notes, *devices.notes(kinds)), grown=place.grown,
            )  # fmt: skip
            self._tidy(place)
            return manifest

        return parallel.from_main(recorded)

    def _tidy(self, place: Workplace) -> None:
        """Remove what only an unfinished stage needs."""
        metrics = self.directory / "metrics" / f"{place.checkpoints.name}.jsonl"
        if metrics in place.standing and metrics not in outputs_of(self.directory, place.checkpoints.name):
            metrics.unlink(missing_ok=True)  # of a training that the stage no longer has
        tries.drop_all(place.checkpoints)


def with_metrics(result: StageResult, path: Path) -> StageResult:
    """The result of work that is done, with the figures of its training steps among the outputs where it wrote any."""
    if not path.exists() or any(one.path == path for one in result.outputs):
        return result
    return dataclasses.replace(result, outputs=(*result.outputs, Output("metrics", path, METRICS)))


@contextlib.contextmanager
def training_reporters(
    place: Workplace, name: str, n_steps: int | None, *, n_done: int | None = None
) -> Iterator[Sequence[Reporter]]:
    """Who hears of every step: the metrics file, the progress bar, the clock, and the trackers that were asked for.

    Only the first process reports.

    Args:
        n_steps: in all; None = unknown.    n_done: steps that checkpoints hold; None = as the stage's folder says.
    """
    if not parallel.is_main():
        yield []
        return
    trackers = open_trackers(
        place.tracking, run=place.directory.name, stage=place.checkpoints.name, identity=place.identity,
        mark=place.checkpoints / "trackers.json", directory=place.directory / "tracking", settings=place.told,
    )  # fmt: skip
    with trackers as tracked, place.progress.stage(name, n_steps) as bar:
        done = newest_step(place.training) if n_done is None else n_done
        written = JsonlReporter(place.metrics_path, resumed_step=done)
        yield [written, bar, place.clock, *tracked]


def record(
    directory: Path,
    result: StageResult,
    *,
    run_id: str,
    stage: str,
    inputs: Sequence[ArtifactRef],
    settings: Mapping[str, Any],
    seeds: Mapping[str, int],
    started_at: str,
    seconds: float,
    notes: Sequence[str] = (),
    grown: Path | None = None,
) -> Manifest:
    """Write the manifest of a finished stage: what it read, what it wrote and was told, its figures and findings.

    Args:
        grown: outputs in this folder replace what stands in the run under the same names: first it is written down what
            will stand there, then they take their places, then the manifest is written.
    """
    refs = tuple(_ref_in_place(directory, one, grown) for one in result.outputs)
    manifest = Manifest(
        run_id=run_id,
        stage=stage,
        inputs=tuple(inputs),
        outputs=refs,
        config=settings,
        seeds=seeds,
        versions=package_versions(),
        commit=code_commit(),
        started_at=started_at,
        finished_at=utc_now(),
        seconds=round(seconds, 3),
        metrics=jsonable(result.metrics),
        findings=tuple(jsonable(dataclasses.asdict(finding)) for finding in result.findings),
        notes=(*result.notes, *notes),
    )
    put(directory, manifest, grown)
    return manifest


def put(directory: Path, manifest: Manifest, grown: Path | None) -> None:
    """Write a manifest, once what has grown for it stands in its place.

    Args:
        grown: the folder of outputs that replace what stands in the run under the same names; None = there are none.
    """
    if grown is not None and grown.exists():
        announce(directory, manifest)
        for one in manifest.outputs:
            if not one.outside and (grown / one.path).exists():  # one inside another has moved with it
                take_place(grown / one.path, directory / one.path)
    write_manifest(directory, manifest)
    withdraw(directory, manifest.stage)


def _ref_in_place(directory: Path, one: Output, grown: Path | None) -> ArtifactRef:
    """The reference of an output, by the path that it will have."""
    if grown is None or not one.path.is_relative_to(grown):
        return ref_of(directory, one.path, one.kind, one.name)
    return ref_of(grown, one.path, one.kind, one.name)


def output(manifest: Manifest, name: str) -> ArtifactRef:
    """The artefact that a stage wrote under a name."""
    return next(reference for reference in manifest.outputs if reference.name == name)


def findings_of(manifest: Manifest) -> list[Finding]:
    """The findings recorded in a manifest."""
    return [finding_of(fields) for fields in manifest.findings]


def jsonable(value: Any) -> Any:
    """Plain JSON values of nested metrics; Estimates become their fields, arrays become lists, NaN becomes text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: jsonable(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and value != value:
        return "nan"
    return str(value) if isinstance(value, Path) else value


class Clock:
    """Wall-clock seconds of work on a stage; an interrupted try counts up to its last sign of life."""

    def __init__(self, directory: Path) -> None:
        self.file, self.before = directory / "seconds", 0.0
        with contextlib.suppress(FileNotFoundError, ValueError):  # a kill may have left it empty, or cut
            self.before = float(self.file.read_text())
        self.start = self.written = time.monotonic()

    def seconds(self) -> float:
        """Seconds so far, all tries together."""
        return self.before + time.monotonic() - self.start

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A sign of life, as a Reporter of the training loop; written at most once a second."""
        del step, metrics
        if time.monotonic() - self.written > 1:
            self.written = time.monotonic()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(f"{self.seconds():.3f}")


def utc_now() -> str:
    """The time as manifests have it, ISO 8601 to the millisecond."""
    # which of two stages ended last is read from this, and small ones follow one another within a second
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
