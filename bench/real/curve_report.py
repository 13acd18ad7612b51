"""Table and picture of the curves of the argument data. Knows figures as JSON holds them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.real.curve import REFERENCES
from bench.real.report import difference, figure

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGE, PICTURE = DOCS / "reward.md", DOCS / "images" / "ukp_curve.svg"
START, END = "<!-- ukp_curve: begin -->", "<!-- ukp_curve: end -->"
SHOWN = ("plain", "karat")
COLOURS = {"plain": "#bf5700", "karat": "#1f6feb", "before": "#555555"}
NAMES = {"plain": "plain fine-tune", "karat": "karat's reward", "before": "a plain fine-tune, known before"}
BOX, MARGIN = (460, 300), 52


def write(found: Mapping[str, Any]) -> None:
    """Put the table between its marks in docs/reward.md, and the picture beside the others."""
    page = PAGE.read_text(encoding="utf-8")
    if START not in page or END not in page:
        sys.exit(f"ukp_curve: found no marks {START} … {END} in {PAGE.name}; put them where the table belongs")
    before, rest = page.split(START)
    PAGE.write_text(before + START + "\n\n" + table(found) + "\n" + END + rest.split(END)[1], encoding="utf-8")
    PICTURE.write_text(picture(found), encoding="utf-8")


def table(found: Mapping[str, Any]) -> str:
    """Overall accuracy at matched accuracy where the shorter won, the area, and each fold's choice."""
    figures = found["figures"]
    others = [name for name in figures if "−" not in name and name not in SHOWN and name != "plain: own"]
    head = ["", *SHOWN, "karat − plain", "known before", *(name for name in others if name != "karat: own")]
    rows = [
        (f"overall where the shorter won in {_share(short)}", f"overall at {short:g}", _share(known))
        for short, known in REFERENCES
    ]
    rows += [("area under the curve", "area", ""), ("overall, its own length term", "overall", "")]
    rows += [
        ("shorter won, its own length term", "shorter_won", ""),
        ("overall, without length term", "overall_without", ""),
    ]
    rows += [("shorter won, without length term", "shorter_won_without", "")]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for title, key, known in rows:
        cells = [figure(figures[name][key]) for name in SHOWN]
        cells += [difference(figures["karat − plain"][key]), known]
        cells += [figure(figures[name][key]) for name in others if name != "karat: own"]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    lines += ["", _folds(found)]
    return "\n".join(lines) + "\n"


def _folds(found: Mapping[str, Any]) -> str:
    chosen = "; ".join(
        f"fold {row['fold']}: " + ", ".join(f"{way} {row[way]['setting']} ({row[way]['head']})" for way in SHOWN)
        for row in found["folds"]
    )
    seconds = {way: sum(row[way]["seconds"][1] for row in found["folds"]) for way in SHOWN}
    return (
        f"{found['n_pairs']:,} pairs, {found['n_topics']} topics, seed {found['seed']}, {found['threads']} thread of "
        f"{found['machine']['processor'].strip()}, shared. Chosen (learning rate x epochs): {chosen}. Processor seconds of the "
        f"four outer fits: {seconds['plain']:,} and {seconds['karat']:,}."
    )


def picture(found: Mapping[str, Any]) -> str:
    """An SVG: accuracy where the shorter won to the right, overall accuracy upwards; a dot a factor of the length term."""
    curves = {way: [(one["shorter_won"], one["overall"]) for one in found["points"][way]] for way in SHOWN}
    curves["before"] = list(REFERENCES)
    every = [point for curve in curves.values() for point in curve]
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    low_y, high_y = min(y for _, y in every), max(y for _, y in every)

    def place(x: float, y: float) -> tuple[float, float]:
        across = MARGIN + BOX[0] * (x - low_x) / (high_x - low_x or 1)
        return across, MARGIN / 2 + BOX[1] * (1 - (y - low_y) / (high_y - low_y or 1))

    width, height = BOX[0] + 2 * MARGIN, BOX[1] + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<rect x="{MARGIN}" y="{MARGIN / 2}" width="{BOX[0]}" height="{BOX[1]}" fill="none" stroke="#999999"/>',
    ]
    lines += _ticks(low_x, high_x, low_y, high_y, place)
    for name, curve in curves.items():
        points = [place(x, y) for x, y in sorted(curve)]
        path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
        dash = ' stroke-dasharray="5 4"' if name == "before" else ""
        lines.append(f'<path d="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.5"{dash}/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{COLOURS[name]}"/>' for x, y in points]
    for number, name in enumerate(curves):
        x = MARGIN + 150 * number
        lines.append(f'<text x="{x}" y="{height - 8}" fill="{COLOURS[name]}">● {NAMES[name]}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _ticks(low_x: float, high_x: float, low_y: float, high_y: float, place: Any) -> list[str]:
    lines = []
    bottom = MARGIN / 2 + BOX[1]
    for k in range(round(low_x * 10 + 0.5), int(high_x * 10) + 1):
        x, _ = place(k / 10, low_y)
        lines.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle" fill="#555555">{_share(k / 10)}</text>')
    for k in range(round(low_y * 50 + 0.5), int(high_y * 50) + 1):
        _, y = place(low_x, k / 50)
        lines.append(f'<text x="{MARGIN - 5}" y="{y + 4:.1f}" text-anchor="end" fill="#555555">{_share(k / 50)}</text>')
        lines.append(f'<path d="M{MARGIN} {y:.1f}h{BOX[0]}" stroke="#dddddd"/>')
    lines.append(
        f'<text x="{MARGIN}" y="{MARGIN / 2 - 8}" fill="#222222">accuracy overall, over accuracy where the shorter argument won</text>'
    )
    return lines


def _share(value: float) -> str:
    return f"{value:.3f}".rstrip("0").replace("0.", ".", 1)


__all__: Sequence[str] = ("picture", "table", "write")
