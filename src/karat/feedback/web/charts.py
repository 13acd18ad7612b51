"""Small charts as inline SVG, made on the server: no script, no inline style, colours by class.

Every chart has a title and a description for those who do not see it; the table with the same numbers stands beside
it on the page. Knows numbers and labels; knows nothing about where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from karat.records import Estimate

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640.0, 160.0, 34.0, 22.0, 8.0
ROW = 46.0
"""Height of one row of an interval chart, in its own units."""


@dataclass(frozen=True)
class Bar:
    """One bar."""

    label: str
    """Below the bar, and in its tooltip."""
    value: float
    """Its height, ≥ 0."""
    key: str = ""
    """By which a script finds it to change its height; "" = it never changes."""


@dataclass(frozen=True)
class Whisker:
    """One figure with its interval."""

    label: str
    """To its left."""
    estimate: Estimate
    """Point and interval; nothing is drawn where the value is None."""
    mark: bool = False
    """True = drawn in the colour that asks to be looked at."""


def bar_chart(name: str, title: str, bars: Sequence[Bar], *, every: int = 4) -> Markup:
    """Bars from left to right, with one label in `every`.

    Args:
        name: unique on its page, letters and hyphens.    title: what is counted.
    """
    top = _ceiling(max((bar.value for bar in bars), default=0.0))
    inner_width, inner_height = WIDTH - LEFT, HEIGHT - BOTTOM - TOP
    step = inner_width / max(len(bars), 1)
    parts = [_line(LEFT, TOP + inner_height, WIDTH, TOP + inner_height, "axis")]
    for share in (0.5, 1.0):
        y = TOP + inner_height * (1 - share)
        parts += [_line(LEFT, y, WIDTH, y, "grid"), _text(LEFT - 5, y + 4, _number(top * share), "end")]
    for i, bar in enumerate(bars):
        height = inner_height * bar.value / top
        x = LEFT + i * step + step * 0.12
        key = Markup(' data-bar="{}"').format(bar.key) if bar.key else Markup("")
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1.5"{}>'
                "<title>{}: {}</title></rect>"
            ).format(x, TOP + inner_height - height, step * 0.76, height, key, bar.label, _number(bar.value))
        )
        if i % every == 0:
            parts.append(_text(LEFT + i * step + step / 2, HEIGHT - 6, bar.label, "middle"))
    whole = sum(bar.value for bar in bars)
    highest = max(bars, key=lambda bar: bar.value, default=None)
    said = f"{len(bars)} bars, {_number(whole)} in all"
    said += f"; the highest is {_number(highest.value)} at {highest.label}" if highest and highest.value else ""
    scale = Markup(' data-top="{:g}" data-floor="{:g}" data-height="{:g}"').format(
        top, TOP + inner_height, inner_height
    )
    return _svg(name, title, said, parts, HEIGHT, scale)


def whisker_chart(
    name: str, title: str, rows: Sequence[Whisker], *, low: float, high: float, reference: float | None = None
) -> Markup:
    """Figures with their intervals, one a row, on one scale.

    Args:
        low, high: ends of the scale; an interval that goes beyond ends in an arrow there.
        reference: a value to compare with, drawn as a line.
    """
    left, right = 8.0, WIDTH - 12.0
    height = ROW * len(rows) + BOTTOM

    def across(value: float) -> float:
        return left + (right - left) * (min(max(value, low), high) - low) / (high - low)

    ticks = _ticks(low, high)
    parts = [_line(across(tick), 0, across(tick), height - BOTTOM, "grid") for tick in ticks]
    anchors = ["start", *["middle"] * (len(ticks) - 2), "end"]
    for tick, anchor in zip(ticks, anchors, strict=True):
        parts.append(_text(across(tick), height - 6, f"{tick:g}".replace("-", "−"), anchor))
    if reference is not None:
        parts.append(_line(across(reference), 0, across(reference), height - BOTTOM, "reference"))
    for i, row in enumerate(rows):
        known = row.estimate.value is not None
        parts.append(_text(0, ROW * i + 17, row.label if known else f"{row.label}: undefined", "start"))
        parts += _whisker(row, ROW * i + 32, across, (low, high))
    drawn = [row for row in rows if row.estimate.value is not None]
    said = f"{len(drawn)} of {len(rows)} figures with their intervals; the table has the numbers"
    return _svg(name, title, said, parts, height)


def share_bar(name: str, title: str, share: float | None) -> Markup:
    """A bar that is filled from the left by a share in [0, 1]; empty where it is None."""
    filled = 0.0 if share is None else min(max(share, 0.0), 1.0)
    said = "nothing is asked for" if share is None else f"{filled:.0%}"
    parts = [
        Markup('<rect class="track" x="0" y="0" width="100" height="8" rx="4"></rect>'),
        Markup('<rect class="bar" x="0" y="0" width="{:.1f}" height="8" rx="4"></rect>').format(100 * filled),
    ]
    return Markup(
        '<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-labelledby="{0}-t {0}-d">'
        '<title id="{0}-t">{1}</title><desc id="{0}-d">{2}</desc>{3}</svg>'
    ).format(name, title, said, Markup("").join(parts))


def _whisker(row: Whisker, y: float, across: Callable[[float], float], ends: tuple[float, float]) -> list[Markup]:
    estimate, look = row.estimate, "noted" if row.mark else "point"
    if estimate.value is None:
        return []
    parts = []
    if estimate.low is not None and estimate.high is not None:
        parts.append(_line(across(estimate.low), y, across(estimate.high), y, f"whisker {look}"))
        for end, beyond in ((estimate.low, estimate.low < ends[0]), (estimate.high, estimate.high > ends[1])):
            if beyond:
                x, turn = across(end), 1 if end > ends[1] else -1
                points = f"{x:.1f},{y:.1f} {x - 6 * turn:.1f},{y - 4:.1f} {x - 6 * turn:.1f},{y + 4:.1f}"
                parts.append(Markup('<polygon class="arrow {}" points="{}"></polygon>').format(look, points))
            else:
                parts.append(_line(across(end), y - 4, across(end), y + 4, f"whisker {look}"))
    said = f"{row.label}: {estimate.value:.2f}".replace("-", "−")
    parts.append(
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
            look, across(estimate.value), y, said
        )
    )
    return parts


def _svg(
    name: str, title: str, said: str, parts: Sequence[Markup], height: float, rest: Markup | None = None
) -> Markup:
    return Markup(
        '<svg class="chart" id="{0}" viewBox="0 0 {1:g} {2:g}" role="img" aria-labelledby="{0}-t {0}-d"{5}>'
        '<title id="{0}-t">{3}</title><desc id="{0}-d">{4}</desc>{6}</svg>'
    ).format(name, WIDTH, height, title, said, rest or Markup(""), Markup("").join(parts))


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"></line>').format(
        look, x1, y1, x2, y2
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))


def _ticks(low: float, high: float) -> list[float]:
    """Where a scale is marked: both ends, and between them the multiples of a round step, 0 among them where it lies inside.

    >>> _ticks(0.0, 1.0), _ticks(-0.2, 1.0)
    ([0.0, 0.25, 0.5, 0.75, 1.0], [-0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    """
    for step in (0.25, 0.2, 0.5, 0.1):
        first, last = low / step, high / step
        if abs(first - round(first)) < 1e-9 and abs(last - round(last)) < 1e-9 and last - first < 7:
            return [round(step * n, 9) for n in range(round(first), round(last) + 1)]
    return [low + (high - low) * share for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _ceiling(value: float) -> float:
    """The next round number: 1, 2, 5 times a power of ten, and at least 2 so that half of it is whole."""
    step = 1.0
    while True:
        for factor in (2, 4, 10):
            if step * factor >= value:
                return step * factor
        step *= 10


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 10 or value == int(value) else f"{value:.1f}"
