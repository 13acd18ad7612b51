"""The short table at the end of a run, as text for a terminal. Knows what summary.json holds, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from karat.records import Estimate
from karat.report.card import POLICY_COLUMNS
from karat.report.page import format_estimate
from karat.report.titles import COLUMNS, policy_title

SHOWN = ("value", "low", "high", "n", "method")


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """What a person reads when a run has ended: unsafe options, policies, difference, gate, where the report is.

    Args:
        summary: the content of summary.json; `directory` (the run), `table` (rows of a sweep), `runs` (its directories)
            and `refused` (those that a gate ended, and why) are used if there.
    """
    lines = [f"UNSAFE: {note}" for note in summary.get("unsafe", ())]
    lines += [f"REFUSED, not in the table: {run}: {why}" for run, why in summary.get("refused", {}).items()]
    if summary.get("policies"):
        lines += [*policy_table(summary["policies"]), ""]
    lines += [f"note: {one}" for one in summary.get("left_out", ())]
    if summary.get("verdict"):
        lines.append(summary["verdict"])
    key = next((name for name in summary if name.endswith("_minus_sft")), "")
    difference = summary.get(key, {}).get("gold")
    if difference and difference.get("value") is not None:
        value, interval = format_estimate(_estimate(difference))
        lines.append(
            f"{policy_title(key.removesuffix('_minus_sft'))} − SFT, gold reward: {value} (95 % interval {interval}, n = {difference['n']})"
        )
    for row in summary.get("arenas", ()):
        value, interval = format_estimate(_estimate(row["win_rate"]))
        won, ties, lost, _ = row["votes"]
        lines.append(
            f"people, blind: {row['policies'][0]} against {row['policies'][1]}, win rate {value} (95 % interval {interval}; "
            f"{won} won, {ties} ties, {lost} lost)"
        )
    lines += _watched(summary)
    gate = summary.get("gate", {}).get("findings", ())
    lines += [_gate_line(gate)] if gate else []
    if summary.get("table"):
        names = list(dict.fromkeys(name for row in summary["table"] for name in row))
        lines += aligned(
            [
                [_heading(name) for name in names],
                *([_cell(row.get(name)) for name in names] for row in summary["table"]),
            ]
        )
    lines += [f"run: {directory}, its report: {directory}/report.html" for directory in summary.get("runs", ())]
    place = f"{summary['directory']}/" if summary.get("directory") else ""
    lines += [f"{name}: {place}{summary[name]}" for name in ("policy", "report") if summary.get(name)]
    return lines


def _gate_line(findings: Sequence[Mapping[str, Any]]) -> str:
    """What failed first; a check without a threshold decides nothing, and is counted only."""
    names: dict[str, list[str]] = {}
    for finding in findings:
        own = names.setdefault(finding["status"], [])
        name = finding["name"].removeprefix("gate.")
        own += [name] if name not in own else []  # each optimised policy has a leash of its own
    said = [
        f"{words} {', '.join(names[status])}"
        for status, words in (
            ("fail", "failed"),
            ("warn", "warned of"),
            ("pass", "passed"),
            ("not measured", "not measured"),
        )
        if status in names
    ]
    n_more = len(names.get("info", ()))
    return "gate: " + "; ".join([*said, *([f"{n_more} without a threshold, see the report"] if n_more else [])])


def _watched(summary: Mapping[str, Any]) -> list[str]:
    """What the watcher did to the optimiser, and how to get the labels that it asks for."""
    watcher, name = summary.get("watcher", {}), summary.get("algorithm", "")
    raised = [alarm for alarm in watcher.get("alarms", ()) if alarm["action"] == "raise_kl"]
    times = "time" if len(raised) == 1 else "times"
    lines = [f"watcher: raised β {len(raised)} {times}, last to {raised[-1]['kl_coef']:g}"] if raised else []
    kept, n_steps = watcher.get("kept_step"), watcher.get("n_iterations")
    if kept is not None and n_steps is not None and kept < n_steps:
        lines.append(
            f"watcher: kept the policy of step {kept} of {n_steps}, the best that it saw; all figures are of that one"
        )
    if reason := watcher.get("stop_reason"):
        lines.append(f"watcher: {name} ended after {watcher['n_iterations']} steps, {reason}")
        if any(alarm["action"] == "ask" for alarm in watcher.get("alarms", ())):
            lines.append("to ask raters about what it writes now: karat run CONFIG with one round more (--rounds)")
    return lines


def policy_table(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Policies by row, figures by column, each `value (low to high)`."""
    columns = [name for name in POLICY_COLUMNS if any(_measured(values.get(name)) for values in policies.values())]
    head = ["", *(COLUMNS[name][0] for name in columns)]
    rows = [
        [name.replace("_", " "), *(_cell(values.get(column)) for column in columns)]
        for name, values in policies.items()
    ]
    return aligned([head, *rows])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns under one another."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _heading(name: str) -> str:
    """`ppo win_rate` of a sweep's rows as the table of a run has it: `ppo win rate`."""
    policy, _, column = name.rpartition(" ")
    return f"{policy} {COLUMNS[column][0]}" if policy and column in COLUMNS else name


def _cell(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "–" if value is None else str(value)
    if not _measured(value):
        return "–"
    shown, interval = format_estimate(_estimate(value))
    return f"{shown} ({interval})" if value.get("low") is not None else shown


def _measured(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("value") is not None


def _estimate(fields: Mapping[str, Any]) -> Estimate:
    return Estimate(**{name: fields.get(name) for name in SHOWN})
