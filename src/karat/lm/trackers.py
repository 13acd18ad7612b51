"""Hands the metrics of training on to TensorBoard, Weights & Biases, MLflow or trackio, each step once.

The trackers are accelerate's; a tracker's package is imported where it is used and nowhere else. What was sent is noted
beside the checkpoints, so that a run that was killed and continued goes on in the same tracked run and sends no step
twice. The JSON lines of `loop.JsonlReporter` stay the record; a tracker is a view of it. Knows names and numbers;
knows nothing about what is being trained.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from karat.errors import ConfigError

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
PROJECT = "karat"
"""Project (W&B, trackio) or experiment (MLflow) of every run."""


class Tracker(Protocol):
    """What is needed of accelerate's trackers."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Metrics of one step."""
        ...

    def finish(self) -> None:
        """Close it."""
        ...


@dataclass
class Mark:
    """What of one stage was sent, and to where: a small file beside the stage's checkpoints."""

    path: Path
    """The file."""
    identity: str
    """Content hash of the stage's inputs and settings: other settings are another tracked run."""
    run: str
    """Name of the tracked run: run, stage and the moment of its first start."""
    sent: int = -1
    """Last step that was sent; −1 = none."""
    ids: dict[str, str] = field(default_factory=dict)
    """What a tracker calls the run, where it chooses itself."""

    @classmethod
    def read(cls, path: Path, *, identity: str, run: str) -> Mark:
        """The mark in a file if it is of this identity, else a fresh one."""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["identity"] == identity:
                return cls(path, identity, str(kept["run"]), int(kept["sent"]), dict(kept["ids"]))
        except (FileNotFoundError, LookupError, TypeError, ValueError):
            pass  # a mark that cannot be read marks nothing
        return cls(path, identity, run)

    def write(self) -> None:
        """Replace the file, complete or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        kept = {"identity": self.identity, "run": self.run, "sent": self.sent, "ids": self.ids}
        partial.write_text(json.dumps(kept), encoding="utf-8")
        os.replace(partial, self.path)


class TrackerReporter:
    """A reporter of the training loop that sends each step to every tracker once, whatever was killed and repeated.

    A step is noted before it is sent: a kill between the two loses one point of a curve (the JSON lines have it)
    rather than doubling it.
    """

    def __init__(self, trackers: Sequence[Tracker], mark: Mark) -> None:
        self.trackers = trackers
        self.mark = mark

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a finished step unless they were sent before."""
        if step <= self.mark.sent:
            return
        self.mark.sent = step
        self.mark.write()
        for tracker in self.trackers:
            tracker.log({name: float(value) for name, value in metrics.items()}, step=step)


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError when the package of a tracker is not installed, before any work is done for it."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, such as the one in which wandb keeps its runs
            raise ConfigError(
                f"tracking: found {name}, whose package is not installed; pip install {name}, or leave it out "
                "(the metrics are written as JSON lines anyway)"
            )


@contextlib.contextmanager
def open_trackers(
    names: Sequence[TrackerName],
    *,
    run: str,
    stage: str,
    identity: str,
    mark: Path,
    directory: Path,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[list[TrackerReporter]]:
    """Trackers of one stage while it trains; an empty list where none is asked for.

    Args:
        run, stage: name and group the tracked run.    identity: content hash of what decides the stage's result.
        mark: the file that notes what was sent; it should live and die with the stage's checkpoints.
        directory: where trackers that write files put them (TensorBoard: `tensorboard/<tracked run>`).
        settings: what the stage was told, by which runs are compared; `flat_settings` says under which names.
    Raises: ConfigError for a tracker that is not installed or does not start.
    """
    if not names:
        yield []
        return
    check_trackers(names)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    noted = Mark.read(mark, identity=identity, run=f"{run}-{stage}-{stamp}")
    started: list[Tracker] = []
    try:
        for name in names:
            tracker = _start(name, noted, group=run, directory=directory)
            started.append(tracker)
            _tell(name, tracker, flat_settings(settings or {}))
        noted.write()
        yield [TrackerReporter(started, noted)]
    finally:
        for tracker in started:
            tracker.finish()


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as one table: `{"reward": {"kl_coef": 0.1}}` is `{"reward.kl_coef": 0.1}`.

    Of a list of sections each has its place for a name (`settings.0.epochs`); other lists and None are JSON.
    """
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
            value = {str(i): one for i, one in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return flat


def _tell(name: TrackerName, tracker: Any, settings: Mapping[str, bool | int | float | str]) -> None:
    """Give a tracker the settings of its run. A continued run has the same: it hears them again."""
    if not settings:
        return
    try:
        if name == "tensorboard":  # accelerate's way makes a further run of no steps, at each start another
            from torch.utils.tensorboard.summary import hparams

            for summary in hparams(dict(settings), {}):
                tracker.writer.file_writer.add_summary(summary)
        else:
            tracker.store_init_configuration(dict(settings))
    except Exception as error:  # as at the start
        raise ConfigError(f"tracking: {name} did not take the settings: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _start(name: TrackerName, mark: Mark, *, group: str, directory: Path) -> Tracker:
    """A tracker of accelerate, begun or continued."""
    from accelerate import tracking
    from accelerate.state import PartialState

    PartialState()  # accelerate's trackers write debug lines, which need it
    directory.mkdir(parents=True, exist_ok=True)
    try:
        if name == "tensorboard":
            tracker: Any = tracking.TensorBoardTracker(mark.run, str(directory / "tensorboard"))
        elif name == "wandb":
            tracker = tracking.WandBTracker(
                PROJECT, id=mark.run, name=mark.run, group=group, resume="allow", dir=str(directory)
            )
        elif name == "mlflow":
            tracker = tracking.MLflowTracker(PROJECT, run_id=mark.ids.get(name), run_name=mark.run)
        else:
            tracker = tracking.TrackioTracker(PROJECT, name=mark.run, group=group, resume="allow")
        tracker.start()
    except Exception as error:  # every tracker has errors of its own; none of them may look like one of training
        raise ConfigError(f"tracking: {name} did not start: {_first_line(error)}") from error
    if name == "mlflow":
        mark.ids[name] = tracker.tracker.info.run_id
    return tracker
