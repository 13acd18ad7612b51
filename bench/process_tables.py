"""The tables of docs/process.md from the results of process_study.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.pages import put_between
from bench.process_study import TIME

MARKS = ("<!-- process_study: begin -->", "<!-- process_study: end -->")


def figure(one: Sequence[float | None], *, sign: bool = False) -> str:
    """`.812 [.803, .821]`, with a sign where it is a difference."""
    value, low, high = (short(number, sign=sign and k == 0) for k, number in enumerate(one))
    return f"{value} [{low}, {high}]"


def short(number: float | None, *, sign: bool = False) -> str:
    """Three digits behind the point, none before it where that would be 0."""
    if number is None:
        return "–"
    text = f"{abs(number):.3f}".removeprefix("0")
    return ("−" if number < 0 else "+" if sign else "") + text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def text(found: Mapping[str, Any]) -> str:
    """All tables."""
    worlds = {name: one["summary"] for name, one in found["worlds"].items()}
    n = min(one["seeds"] for one in worlds.values())
    main = f"{TIME:g} s"
    lines = [
        f"{n} seeds a world; mean and 95 % t interval over seeds, differences paired by seed; {found['machine']['processor']}, 1 thread."
    ]
    lines += ["", f"Annotation time {main}, an outcome in the time of {found['ratio']:g} steps:", ""]
    rows = []
    for name, one in worlds.items():
        for system, own in one[main].items():
            rows.append([
                name, system, figure(own["auroc"]), figure(own["auroc within"]),
                "" if system == "labels" else figure(own["auroc within − labels"], sign=True),
                figure(own["localised"]) if "localised" in own else "",
            ])  # fmt: skip
    head = ["world", "reward of", "AUROC", "within a question", "− labels, within", "first error found"]
    lines += [
        *table(head, rows),
        "",
        "Best of n, the same time: share of questions in which the chain picked is right:",
        "",
    ]
    picks = [key for key in next(iter(worlds.values()))[main]["labels"] if key.startswith("best of") and "−" not in key]
    rows = [
        [
            name,
            system,
            *(short(own[pick][0]) for pick in picks),
            "" if system == "labels" else figure(own[f"{picks[-1]} − labels"], sign=True),
        ]
        for name, one in worlds.items()
        for system, own in one[main].items()
    ]
    head = [
        "world",
        "reward of",
        *(pick.removeprefix("best of ") for pick in picks),
        f"{picks[-1].removeprefix('best of ')}, − labels",
    ]
    lines += [*table(head, rows), "", "Steps − labels, AUROC within a question, by time:", ""]
    lines += [*gains(worlds, " s"), "", f"The same at {main}, by the time of an outcome in marks of steps:", ""]
    return "\n".join([*lines, *gains(worlds, "ratio ")])


def gains(worlds: Mapping[str, Any], sign: str) -> list[str]:
    """Steps − labels within a question, a row a world and a column a condition in whose name the sign stands."""
    conditions = [name for name in next(iter(worlds.values())) if sign in name]
    rows = [
        [name, *(figure(one[at]["steps"]["auroc within − labels"], sign=True) for at in conditions)]
        for name, one in worlds.items()
    ]
    return table(["world", *(at.removeprefix("ratio ") for at in conditions)], rows)


def write_tables(found: Mapping[str, Any], page: Path) -> None:
    """Put them between the marks of the page."""
    put_between(page, MARKS, text(found))
