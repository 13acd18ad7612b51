"""Charts as plain data for plotly.js: traces and a layout, colours by role, so that a page can be light or dark.

Knows series of numbers and how they are drawn; computes none of them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from karat.errors import InputError
from karat.records import Estimate

Role = Literal["gold", "proxy", "kl", "baseline", "plain"]
PANEL_PIXELS = 190
FRAME_PIXELS = 90
TITLE_CHARACTERS = 24  # of a vertical title beside the lowest of panels
# A colour is a name with `@`: the page's script replaces it by the theme's value and draws again on a change.
COLOURS: dict[Role, str] = {
    "gold": "@gold", "proxy": "@proxy", "kl": "@kl", "baseline": "@baseline", "plain": "@plain",
}  # fmt: skip
PLAIN_COLOURS = ("@plain", "@baseline", "@kl", "@proxy")


@dataclass(frozen=True)
class Series:
    """One line or one set of points."""

    name: str
    """As in the legend."""
    x: tuple[float, ...]
    """Positions."""
    y: tuple[float | None, ...]
    """Values; None leaves a gap."""
    low: tuple[float | None, ...] = ()
    """Lower ends of the intervals; () = none are drawn."""
    high: tuple[float | None, ...] = ()
    """Upper ends of the intervals."""
    labels: tuple[str, ...] = ()
    """What to say of each point (`best of 16`)."""
    role: Role = "plain"
    """Decides the colour."""
    points: bool = False
    """True = points, False = a line."""

    def __post_init__(self) -> None:
        for name in ("y", "low", "high", "labels"):
            values = getattr(self, name)
            if len(values) != len(self.x) and (name == "y" or values):
                raise InputError(
                    f"Series {self.name!r}: found {len(values)} {name} for {len(self.x)} x; expected as many"
                )


@dataclass(frozen=True)
class Panel:
    """Series that share a vertical axis."""

    title: str
    """What the vertical axis shows, with its unit."""
    series: tuple[Series, ...]
    """What is drawn."""


@dataclass(frozen=True)
class Bin:
    """One bin of a calibration plot."""

    predicted: float
    """Mean predicted probability."""
    observed: float
    """Share of votes that went this way."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end of its interval."""
    n: int
    """Votes in the bin."""


@dataclass(frozen=True)
class AtlasCell:
    """One cell of the activation atlas."""

    x: float
    """First principal component."""
    y: float
    """Second principal component."""
    n: int
    """Responses in it."""
    reward: float
    """Mean reward, sd."""
    gold: float | None
    """Mean gold reward, sd; None = not known."""
    texts: tuple[str, ...]
    """Responses from its middle."""
    words: tuple[str, ...]
    """What is typical of it."""
    source_fracs: tuple[tuple[str, float], ...] = ()
    """Share of its responses by who wrote them."""


def atlas_figure(cells: Sequence[AtlasCell]) -> dict[str, Any]:
    """Cells as points on two principal components, coloured by reward − gold where gold is known, else by reward.

    Buttons choose among reward − gold, reward and gold. Hovering over a cell shows its responses.
    """
    known = all(cell.gold is not None for cell in cells)
    measures: dict[str, list[float]] = {}
    if known:
        measures["reward − gold"] = [cell.reward - (cell.gold or 0.0) for cell in cells]
    measures["reward"] = [cell.reward for cell in cells]
    if known:
        measures["gold"] = [cell.gold or 0.0 for cell in cells]
    largest = max(cell.n for cell in cells)
    widest = max((abs(value) for values in measures.values() for value in values), default=1.0) or 1.0
    first = next(iter(measures))
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [cell.x for cell in cells],
        "y": [cell.y for cell in cells],
        "text": [_cell_text(cell) for cell in cells],
        "hovertemplate": "%{text}<extra></extra>",
        "hoverlabel": {"bgcolor": "@surface", "bordercolor": "@line", "font": {"color": "@text"}, "align": "left"},
        "marker": {
            "size": [9 + 27 * math.sqrt(cell.n / largest) for cell in cells],
            "color": measures[first],
            "cmin": -widest,
            "cmax": widest,
            "colorscale": [[0, "@proxy"], [0.5, "@line"], [1, "@bad"]],
            "line": {"color": "@muted", "width": 1},
            "colorbar": {  # below: beside the cells it would take half of a phone
                "title": {"text": f"{first}, sd", "side": "top"}, "thickness": 12, "outlinewidth": 0,
                "orientation": "h", "x": 0.5, "y": -0.16, "yanchor": "top",
            },
        },
    }  # fmt: skip
    layout = _layout(600, "first principal component")
    layout["yaxis"] = _scale("second principal component")
    # plotly paints the active button in a light blue that no theme can change: the colour bar says what is shown instead
    layout["updatemenus"] = [{
        "type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "pad": {"l": -48},  # as far left as the labels
        "y": 1.12, "yanchor": "top", "showactive": False,
        "bgcolor": "@surface", "bordercolor": "@line", "font": {"color": "@muted", "size": 11},
        "buttons": [
            {
                "label": name, "method": "restyle",
                "args": [{"marker.color": [values], "marker.colorbar.title.text": f"{name}, sd"}],
            }
            for name, values in measures.items()
        ],
    }]  # fmt: skip
    layout["margin"] = {**layout["margin"], "t": 64, "b": 120}
    return {"data": [trace], "layout": layout}


def _cell_text(cell: AtlasCell) -> str:
    gold = "" if cell.gold is None else f", gold {cell.gold:+.2f}, reward − gold {cell.reward - cell.gold:+.2f}"
    who = ", ".join(f"{name} {share:.0%}" for name, share in cell.source_fracs)
    lines = [f"<b>{cell.n} responses</b>{f' ({who})' if who else ''}", f"reward {cell.reward:+.2f}{gold} (sd)"]
    lines += [f"typical: {', '.join(cell.words)}"] if cell.words else []
    lines += [f"“{text[:96]}{'…' if len(text) > 96 else ''}”" for text in cell.texts]
    head, *rest = lines
    return "<br>".join([head, *(_plain(line) for line in rest)])


def panels_figure(
    panels: Sequence[Panel], *, x_title: str, square_root: bool = False, marked: float | None = None
) -> dict[str, Any]:
    """Panels one above the other on one horizontal axis.

    Args:
        x_title: what the horizontal axis shows.
        square_root: True = positions are drawn at their square roots, as is usual for a KL.
        marked: a position with a dotted line through all panels; None = none.
    """
    n = len(panels)
    gap = 0.0 if n == 1 else 0.30 / n
    height = (1 - gap * (n - 1)) / n
    layout = _layout(FRAME_PIXELS + PANEL_PIXELS * n + (50 if n == 1 else 0), x_title)
    layout["xaxis"]["anchor"] = _axis("y", n - 1)
    if marked is not None:
        layout["shapes"] = [{
            "type": "line", "x0": marked, "x1": marked, "yref": "paper", "y0": 0, "y1": 1,
            "line": {"color": "@muted", "dash": "dot", "width": 1.5},
        }]  # fmt: skip
    traces: list[dict[str, Any]] = []
    named: set[str] = set()
    colours = _colours(panels)
    for i, panel in enumerate(panels):
        top = 1 - i * (height + gap)
        layout[_axis("yaxis", i)] = {"domain": [max(top - height, 0.0), top], **_scale(panel.title)}
        for series in panel.series:
            for trace in _series_traces(series, colours[series.name, series.role], square_root=square_root):
                # the only line of a panel is named by the panel's title; points are named by nothing else
                told = len(panel.series) > 1 or series.points
                shown = trace.pop("legend_entry") and told and series.name not in named
                named |= {series.name} if shown else set()
                traces.append({**trace, "yaxis": _axis("y", i), "showlegend": shown})
    return {"data": traces, "layout": layout}


def calibration_figure(bins: Sequence[Bin]) -> dict[str, Any]:
    """Predicted probability against what was observed, with the diagonal of a calibrated model."""
    largest = max((entry.n for entry in bins), default=1)
    diagonal = {
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "name": "calibrated",
        "line": {"color": "@muted", "dash": "dot", "width": 1}, "hoverinfo": "skip",
    }  # fmt: skip
    points = {
        "type": "scatter",
        "mode": "markers",
        "name": "held-out votes",
        "x": [entry.predicted for entry in bins],
        "y": [entry.observed for entry in bins],
        "error_y": {
            "type": "data", "symmetric": False, "color": "@proxy", "thickness": 1.2, "width": 0,
            "array": [entry.high - entry.observed for entry in bins],
            "arrayminus": [entry.observed - entry.low for entry in bins],
        },
        "marker": {"color": "@proxy", "size": [6 + 12 * math.sqrt(entry.n / largest) for entry in bins]},
        "text": [f"{entry.n} votes" for entry in bins],
        "hovertemplate": "predicted %{x:.2f}<br>observed %{y:.2f}<br>%{text}<extra></extra>",
    }  # fmt: skip
    layout = _layout(360, "predicted probability")
    layout["xaxis"] |= {"range": [-0.02, 1.02]}
    layout["yaxis"] = {**_scale("observed share"), "range": [-0.02, 1.02]}
    return {"data": [diagonal, points], "layout": layout}


def estimates_series(
    name: str, entries: Sequence[tuple[float, Estimate, str]], *, role: Role = "plain", points: bool = False
) -> Series:
    """A series from (position, Estimate, label) rows."""
    return Series(
        name,
        tuple(x for x, _, _ in entries),
        tuple(estimate.value for _, estimate, _ in entries),
        tuple(estimate.low for _, estimate, _ in entries),
        tuple(estimate.high for _, estimate, _ in entries),
        tuple(label for _, _, label in entries),
        role,
        points,
    )


def _colours(panels: Sequence[Panel]) -> dict[tuple[str, Role], str]:
    """Series without a role of their own get different colours, the same for one name in all panels."""
    colours: dict[tuple[str, Role], str] = {}
    n_plain = 0
    for series in (series for panel in panels for series in panel.series):
        key = (series.name, series.role)
        if key in colours:
            continue
        colours[key] = COLOURS[series.role]
        if series.role == "plain":
            colours[key] = PLAIN_COLOURS[n_plain % len(PLAIN_COLOURS)]
            n_plain += 1
    return colours


def _series_traces(series: Series, colour: str, *, square_root: bool) -> list[dict[str, Any]]:
    x = [math.sqrt(max(value, 0.0)) for value in series.x] if square_root else list(series.x)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers" if series.points else "lines" if len(x) > 40 else "lines+markers",
        "name": series.name,
        "x": x,
        "y": list(series.y),
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 9 if series.points else 5},
        "legendgroup": series.name,
        "legend_entry": True,
    }
    if series.points and series.role != "baseline":  # to be told from the points of a line in the same colour
        trace["marker"] |= {"symbol": "diamond", "size": 13, "line": {"color": "@text", "width": 1}}
    if series.labels:
        trace["text"] = list(series.labels)
        trace["hovertemplate"] = "%{text}<br>%{x:.3g}, %{y:.3g}<extra>" + _plain(series.name) + "</extra>"
    if not series.low:
        return [trace]
    if series.points:
        trace["error_y"] = _error_bars(series, colour)
        return [trace]
    return [_band(series, x, colour), trace]


def _error_bars(series: Series, colour: str) -> dict[str, Any]:
    up = [None if y is None or h is None else h - y for y, h in zip(series.y, series.high, strict=True)]
    down = [None if y is None or l is None else y - l for y, l in zip(series.y, series.low, strict=True)]  # noqa: E741
    return {
        "type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": colour, "thickness": 1.2, "width": 0,
    }  # fmt: skip


def _band(series: Series, x: Sequence[float], colour: str) -> dict[str, Any]:
    rows = [row for row in zip(x, series.low, series.high, strict=True) if row[1] is not None and row[2] is not None]
    there, back = [row[0] for row in rows], [row[0] for row in reversed(rows)]
    return {
        "type": "scatter", "mode": "lines", "fill": "toself", "hoverinfo": "skip", "name": series.name,
        "x": there + back, "y": [row[2] for row in rows] + [row[1] for row in reversed(rows)],
        "line": {"width": 0, "color": colour}, "fillcolor": f"{colour}-band", "legendgroup": series.name,
        "legend_entry": False,
    }  # fmt: skip


def _layout(height: int, x_title: str) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 34, "b": 48},
        "xaxis": {**_scale(x_title), "title": {"text": _plain(x_title)}},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12}},
        "hovermode": "closest",
    }


def _scale(title: str) -> dict[str, Any]:
    lines = textwrap.wrap(_plain(title), TITLE_CHARACTERS)  # a longer line would run into the panel above
    return {
        "title": {"text": "<br>".join(lines), "standoff": 8, "font": {"size": 12}},
        "automargin": True, "gridcolor": "@line", "zerolinecolor": "@line", "linecolor": "@line",
    }  # fmt: skip


def _axis(name: str, position: int) -> str:
    return name if position == 0 else f"{name}{position + 1}"


def _plain(text: str) -> str:
    """Text without the few HTML tags that plotly would interpret."""
    return text.replace("<", "‹").replace(">", "›")
