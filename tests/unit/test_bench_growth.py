"""The study of growth: what it visits, and how it says that something grows faster than its arithmetic."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from bench import growth_study
from bench.growth_study import ALLOWED, PARTS, picture, points, study, summary


def rows(power: float) -> list[dict]:
    """Three points whose seconds are a power of their operations."""
    sizes = [1e9, 4e9, 16e9]
    part = [{"operations": x, "seconds": 1e-10 * x**power} for x in sizes]
    return [{"axis": "prompt", "value": str(i), **dict.fromkeys(PARTS, one)} for i, one in enumerate(part)]


@pytest.mark.parametrize(("power", "met"), [(1.0, True), (0.8, True), (1.2, False)])
def test_the_slope_and_the_cost_say_how_seconds_grow(power: float, met: bool) -> None:
    lines = summary(rows(power))
    assert [line["part"] for line in lines] == list(PARTS)
    for line in lines:
        assert (line["axis"], line["from"], line["to"], line["operations_ratio"]) == ("prompt", "0", "2", 16.0)
        assert line["slope"] == pytest.approx(power, abs=1e-3)
        assert line["cost_ratio"] == pytest.approx(16 ** (power - 1), abs=1e-3)
        assert line["met"] == met == (line["cost_ratio"] <= ALLOWED)


def test_every_axis_ascends_through_different_points() -> None:
    found = points(quick=False)
    assert len({point.key for point in found}) == len(found)
    for axis in ("prompt", "samples", "vocabulary", "model"):
        own = [point for point in found if point.axis == axis]
        for part in PARTS:
            counts = [point.operations(part) for point in own]
            assert counts == sorted(set(counts))


def test_the_picture_is_xml_with_a_line_for_each_part() -> None:
    paths = ET.fromstring(picture(rows(1.0))).findall("{http://www.w3.org/2000/svg}path")
    drawn = [path.get("d") for path in paths if path.get("stroke-width")]
    assert len(drawn) == len(PARTS)
    heights = {point.split()[-1] for path in drawn for point in path.replace("L", "M").split("M")[1:]}
    assert len(heights) == 1  # seconds an operation stand still


def test_only_what_is_missing_or_asked_for_again_is_measured(tmp_path, monkeypatch) -> None:
    asked: list[str] = []

    def measured(point: growth_study.Point, **_: int) -> dict:
        asked.append(point.key)
        one = {"operations": point.operations("update"), "seconds": 1.0}
        return {"axis": point.axis, "value": point.value, **dict.fromkeys(PARTS, one)}

    monkeypatch.setattr(growth_study, "measured", measured)
    keys = [point.key for point in points(quick=False)]
    for again, expected in (((), keys), ((), []), (("model",), keys[-4:])):
        asked.clear()
        study(out=tmp_path / "growth.json", plot=None, quick=False, again=again)
        assert asked == expected
        rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
        assert [f"{row['axis']}={row['value']}" for row in rows] == keys
