"""How far a stage has come, on standard error: a live bar in a terminal, a line every few seconds elsewhere.

Knows names, counts and clocks; nothing about what is counted. Standard output is never touched, so that `--json`
and pipes stay clean.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

SHOWN_FIGURES = 4
LINE_INTERVAL_S = 5.0
BESIDE_FIGURES = 90
"""Columns of a terminal that a bar takes with its name, amount and pace."""


class StageProgress(Protocol):
    """The progress of one stage while it runs."""

    def advance(self, n: float = 1, **figures: float) -> None:
        """n more units are done; the figures (`kl=0.3`) are shown beside the bar."""
        ...

    def reach(self, done: float, *, of: float | None = None, **figures: float) -> None:
        """`done` units of this stage are done in all, and `of` are to be done: what counting work calls."""
        ...

    def resume(self, done: float) -> None:
        """`done` units were done before this stage began: they count, but not into its rate."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (counted from 1, also after a resume) is finished: what a training loop calls."""
        ...


class Progress(Protocol):
    """Where stages show their progress."""

    def stage(
        self, name: str, total: float | None = None, unit: str = "steps", *, announced: bool = True
    ) -> contextlib.AbstractContextManager[StageProgress]:
        """The progress of one stage, closed with a line that says how long it took.

        Args:
            announced: False = no line before there is progress, for a command that reads its input within the stage:
                a mistake found there is to be the only line.
        """
        ...

    def note(self, text: str) -> None:
        """One line for the person who watches."""
        ...


def in_round(progress: Progress, number: int) -> Progress:
    """The same display, in which the stages of a later round say so; of the first round as it is."""
    return progress if number == 1 else _InRound(progress, number)


@dataclass(frozen=True)
class _InRound:
    progress: Progress
    number: int

    def stage(
        self, name: str, total: float | None = None, unit: str = "steps", *, announced: bool = True
    ) -> contextlib.AbstractContextManager[StageProgress]:
        return self.progress.stage(f"{name}, round {self.number}", total, unit, announced=announced)

    def note(self, text: str) -> None:
        self.progress.note(text)


@contextlib.contextmanager
def counted(
    progress: Progress | None, name: str, unit: str, *, announced: bool = True
) -> Iterator[Callable[[int, int], None] | None]:
    """A stage that begins when something is first counted: for work which may have nothing to count.

    Args: progress: None = nobody watches.    announced: as `Progress.stage` has it.
    Returns: what hears how many of how many are done; None where nobody watches.
    """
    if progress is None:
        yield None
        return
    with contextlib.ExitStack() as begun:
        bars: list[StageProgress] = []

        def count(done: int, of: int) -> None:
            if not bars:
                bars.append(begun.enter_context(progress.stage(name, of, unit, announced=announced)))
            bars[0].reach(done, of=of)

        yield count


@contextlib.contextmanager
def open_progress(
    *, quiet: bool = False, silent: bool = False, stream: TextIO | None = None, interval_s: float = LINE_INTERVAL_S
) -> Iterator[Progress]:
    """The progress display that fits the stream: bars for a terminal, otherwise lines.

    Args:
        quiet: True = no bars even in a terminal.    silent: True = nothing at all.    stream: standard error unless given.
        interval_s: seconds between two lines of one stage where there is no terminal.
    """
    if silent:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield LineDisplay(nowhere, interval_s)
        return
    target = stream or sys.stderr
    if quiet or not target.isatty():
        yield LineDisplay(target, interval_s)
        return
    console = Console(file=target)
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("[bold]{task.description:<14}"),
        BarColumn(bar_width=28),
        _Amount(),
        _Pace(),
        TextColumn("[dim]{task.fields[figures]}"),
    )
    room = max(0, console.width - BESIDE_FIGURES)
    with Bars(*columns, console=console, transient=True) as bars:
        yield BarDisplay(bars, room)


@dataclass
class LineDisplay:
    """One plain line every few seconds: for files, pipes and logs."""

    stream: TextIO
    """Where the lines go."""
    interval_s: float = LINE_INTERVAL_S
    """Seconds between two lines of one stage."""
    clock: Callable[[], float] = time.monotonic
    """Seconds from any origin."""

    @contextlib.contextmanager
    def stage(
        self, name: str, total: float | None = None, unit: str = "steps", *, announced: bool = True
    ) -> Iterator[StageProgress]:
        """A line at the start, every `interval_s`, and at the end."""
        if announced:
            self.note(f"{name}: started" + (f", {_number(total)} {unit}" if total is not None else ""))
        progress = _LineStage(self, name, total, unit, started=self.clock(), printed=self.clock())
        yield progress
        self.note(f"{name}: done in {duration(self.clock() - progress.started)}{progress.end()}")

    def note(self, text: str) -> None:
        """One line."""
        print(text, file=self.stream, flush=True)


@dataclass
class _LineStage:
    display: LineDisplay
    name: str
    total: float | None
    unit: str
    started: float
    printed: float
    done: float = 0.0
    first: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    said: tuple[float, float | None, Mapping[str, float]] | None = None

    def advance(self, n: float = 1, **figures: float) -> None:
        self._reach(self.done + n, figures)

    def reach(self, done: float, *, of: float | None = None, **figures: float) -> None:
        self.total = self.total if of is None else of
        self._reach(done, figures)

    def resume(self, done: float) -> None:
        self.done = self.first = done

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.first is None:  # a resumed stage must not count the steps done before
            self.first = float(step - 1)
        self._reach(float(step), metrics)

    def end(self) -> str:
        return f"; {_shown(self.figures)}" if self.figures else ""

    def _reach(self, done: float, figures: Mapping[str, float]) -> None:
        self.done = done
        self.figures = figures or self.figures
        now, news = self.display.clock(), (done, self.total, self.figures)
        if now - self.printed < self.display.interval_s or news == self.said:
            return  # who waits for people waits for hours: the same line again tells nothing
        self.printed, self.said = now, news
        amount = _number(done) + (f"/{_number(self.total)}" if self.total is not None else "")
        pace = _pace(done - (self.first or 0.0), now - self.started, self.total, done)
        self.display.note(f"{self.name}: {amount} {self.unit}{pace}{self.end()}")


@dataclass
class BarDisplay:
    """Live bars with rate and time left."""

    bars: Bars
    """The rich display, already started."""
    room: int = 1_000
    """Characters for the figures beside a bar: more would break the line into a column of words."""

    @contextlib.contextmanager
    def stage(
        self, name: str, total: float | None = None, unit: str = "steps", *, announced: bool = True
    ) -> Iterator[StageProgress]:
        """A bar while the stage runs, then one line."""
        del announced  # a bar that ends in an error leaves nothing behind
        task = self.bars.add_task(name, total=total, unit=unit, figures="", first=0.0)
        started = time.monotonic()
        try:
            stage = _BarStage(self.bars, task, self.room)
            yield stage
            self.note(f"{name:<14} {duration(time.monotonic() - started):>8}  [dim]{stage.figures}")
        finally:
            self.bars.remove_task(task)

    def note(self, text: str) -> None:
        """One line above the bars."""
        self.bars.console.print(text, highlight=False)


@dataclass
class _BarStage:
    bars: Bars
    task: TaskID
    room: int
    begun: bool = False
    figures: str = ""

    def advance(self, n: float = 1, **figures: float) -> None:
        self.begun = True
        self.bars.update(self.task, advance=n)
        if figures:
            self.bars.update(self.task, figures=self._fitting(figures))

    def reach(self, done: float, *, of: float | None = None, **figures: float) -> None:
        self.begun = True
        self.bars.update(self.task, completed=done, total=of, figures=self._fitting(figures))  # None leaves the total

    def resume(self, done: float) -> None:
        self.begun = True
        self.bars.update(self.task, completed=done, first=done)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self.begun:
            self.begun = True
            self.bars.update(self.task, first=float(step - 1))
        self.bars.update(self.task, completed=step, figures=self._fitting(metrics))

    def _fitting(self, figures: Mapping[str, float]) -> str:
        self.figures = _shown(figures)
        return self.figures if len(self.figures) <= self.room else self.figures[: max(0, self.room - 1)] + "…"


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = f"/{_number(task.total)}" if task.total is not None else ""
        return Text(f"{_number(task.completed)}{total} {task.fields['unit']}")


class _Pace(ProgressColumn):
    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["first"]
        return Text(_pace(done, task.elapsed or 0.0, task.total, task.completed).lstrip(", "), style="cyan")


def duration(seconds: float) -> str:
    """Seconds as people say them: `8.2 s`, `3 min 05 s`, `2 h 10 min`.

    >>> duration(8.24), duration(185), duration(7_800)
    ('8.2 s', '3 min 05 s', '2 h 10 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _pace(done: float, elapsed_s: float, total: float | None, reached: float) -> str:
    if done <= 0 or elapsed_s <= 0:
        return ""
    rate = done / elapsed_s
    # people answer slowly: so many a minute or an hour is read at a glance, 0.0028 a second is not
    scale, unit = (1, "s") if rate >= 0.1 else (60, "min") if rate >= 0.1 / 60 else (3_600, "h")
    text = f", {rate * scale:.3g}/{unit}"
    if total is not None and total > reached:
        text += f", {duration((total - reached) / rate)} left"
    return text


def _shown(figures: Mapping[str, float]) -> str:
    shown = list(figures.items())[:SHOWN_FIGURES]
    return " ".join(f"{name} {value:,.0f}" if abs(value) >= 1_000 else f"{name} {value:.3g}" for name, value in shown)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
