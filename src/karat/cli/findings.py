"""Findings as lines of a terminal: what somebody must know of, and what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from karat.figures import figure


def finding_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each finding that somebody must know of: all but those that only inform, and those that passed."""
    lines = []
    for one in findings:
        if one["status"] not in ("info", "pass"):
            estimate = one["estimate"] or {}
            said = one["detail"] or estimate.get("method") or one["question"]
            lines.append(f"{one['status']:<12} {one['name']}: {said}")
    return lines


def people_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each figure about the people behind a reward, which was asked for and is no warning."""
    told = [one for one in findings if one["name"].startswith("people.") and one["status"] == "info"]
    return [f"{one['name']}: {_joined(_figure(one['estimate']), one['detail'])}" for one in told]


CALIBRATION = "reward.calibration."


def calibration_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each group of raters and kind of feedback: the temperature that its held-out judgements would choose."""
    lines = []
    for one in findings:
        if one["name"].startswith(CALIBRATION) and one["status"] == "info":  # warnings are lines of `finding_lines`
            of = one["name"].removeprefix(CALIBRATION).replace(".", " ", 1)
            lines.append(f"calibration of {of}: {_joined(_figure(one['estimate']), one['detail'])}")
    return lines


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _figure(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    if estimate["value"] is None:
        return f"not estimable ({estimate['method']})"
    return f"{figure(estimate['value'], estimate['low'], estimate['high'])}, n = {estimate['n']}"


def noises(kinds: Any) -> str:
    """What is known of the noise of ratings and labels, where they share the time."""
    said = []
    for kind, noise in (("rating", kinds.rating_sd), ("label", kinds.label_scale)):
        if kind not in kinds.shares:
            continue
        if noise.value is None:
            said.append(f"noise of {kind}s not known yet ({noise.method})")
        else:
            said.append(f"noise of a {kind} {noise.value:.2f} logits [{noise.low:.2f}, {noise.high:.2f}] on {noise.n}")
    return "".join(f", {one}" for one in said)


def gain_line(gain: Any, caution: str = "") -> str:
    """What choosing is expected to gain, in one line, and why the belief is not one to choose by."""
    if gain.value is None:
        why = gain.method.removeprefix("not estimable: ")
        return f"expected gain of a chosen question over a random one: not estimable: {why}"
    width = gain.high - gain.low
    digits = 3 if width == 0 else min(max(3, 1 - math.floor(math.log10(width))), 6)  # two of the interval's width
    shown = [f"{value:+.{digits}f}" for value in (gain.value, gain.low, gain.high)]
    return (
        f"expected gain of a chosen question over a random one: {shown[0]} bits "
        f"[{shown[1]}, {shown[2]}], {gain.n} questions" + (f"; {caution}" if caution else "")
    )
