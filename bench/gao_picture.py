"""The picture of the study of Gao's curves: one panel for each way to optimise and reading, gold and proxy over √KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

PANEL, MARGIN, GAP = (230, 200), 44, 34
COLOURS = {500: "#bf5700", 2000: "#8250df", 8000: "#1f6feb"}
TITLES = {"best_of_n": "best of n", "rl": "PPO, β = 0"}
LOWEST = -4.0
"""Gold below this is cut, or its fall would flatten everything else."""


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG: solid lines are gold, dashed ones the proxy, one line a seed, a colour for each number of votes."""
    panels = [(law, reading) for law in TITLES for reading in dict.fromkeys(row["reading"] for row in rows)]
    width, height = MARGIN + len(panels) * (PANEL[0] + GAP), PANEL[1] + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for place, (law, reading) in enumerate(panels):
        lines += _panel(
            [row for row in rows if row["reading"] == reading], law, reading, MARGIN + place * (PANEL[0] + GAP)
        )
    legend = [f"● {votes:,} votes" for votes in COLOURS]
    for place, (text, colour) in enumerate(zip(legend, COLOURS.values(), strict=True)):
        lines.append(f'<text x="{MARGIN + 90 * place}" y="{height - 6}" fill="{colour}">{text}</text>')
    lines.append(f'<text x="{MARGIN + 300}" y="{height - 6}" fill="#222222">solid: gold   dashed: proxy</text>')
    return "\n".join([*lines, "</svg>", ""])


def _panel(rows: Sequence[Mapping[str, Any]], law: str, reading: str, left: float) -> list[str]:
    points = [point for row in rows for point in row["curves"][law]]
    far = max(math.sqrt(point[0]) for point in points) or 1.0
    low = max(min(min(point[1:]) for point in points), LOWEST)
    high = max(max(point[1:]) for point in points)

    def across(kl: float) -> float:
        return left + PANEL[0] * math.sqrt(kl) / far

    def down(value: float) -> float:
        return MARGIN + PANEL[1] * (1 - (max(value, low) - low) / (high - low or 1.0))

    title = f"{TITLES[law]}, {reading.replace('_', ' ')}"
    lines = [
        f'<rect x="{left}" y="{MARGIN}" width="{PANEL[0]}" height="{PANEL[1]}" fill="none" stroke="#999999"/>',
        f'<text x="{left}" y="{MARGIN - 8}" fill="#222222">{title}: gain over √KL</text>',
        f'<path d="M{left} {down(0):.1f}h{PANEL[0]}" stroke="#bbbbbb" stroke-dasharray="2 4"/>',
    ]
    lines += [
        f'<text x="{left - 5}" y="{down(value) + 4:.1f}" text-anchor="end" fill="#555555">{value}</text>'
        for value in range(math.ceil(low), math.floor(high) + 1)
    ]
    for d in range(0, math.floor(far) + 1, max(1, math.floor(far) // 5)):
        x = left + PANEL[0] * d / far
        lines.append(f'<text x="{x:.1f}" y="{MARGIN + PANEL[1] + 14}" text-anchor="middle" fill="#555555">{d}</text>')
    for row in rows:
        for column, dash in ((1, ' stroke-dasharray="5 4" opacity="0.6"'), (2, "")):
            path = " ".join(
                f"{'L' if i else 'M'}{across(point[0]):.1f} {down(point[column]):.1f}"
                for i, point in enumerate(sorted(row["curves"][law]))
            )
            colour = COLOURS.get(row["votes"], "#555555")
            lines.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
    return lines
