"""The report's charts of what a run measured, from its metrics and evaluation.json; computes no result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from karat.ledger.manifest import Manifest
from karat.pipeline.current import newest_round
from karat.pipeline.recorded import recorded_rows
from karat.records import Estimate
from karat.report.figures import Panel, Role, Series, estimates_series
from karat.report.page import Curve
from karat.report.titles import policy_title

MEASURES: Mapping[Literal["gold", "proxy"], str] = {"gold": "gold reward", "proxy": "learned score"}
"""What the two are called in charts, as in the table."""
ROLES: Mapping[str, Role] = {**{said: role for role, said in MEASURES.items()}, "KL": "kl"}


def curves(directory: Path, by_stage: Mapping[str, Manifest], optimised: str) -> list[Curve]:
    """What the optimiser, the reward model and the fine-tuning measured while they ran.

    Args:
        optimised: the method whose policy the run ended with.
    Raises: LedgerError for metrics that are damaged, or not as their stage wrote them.
    """
    found = []
    name = optimised
    rows = _rows(directory, by_stage, name)
    if rows:
        kl = "kl/k1_per_sequence" if any("kl/k1_per_sequence" in row for row in rows) else "validation/kl"
        length = "response/length_mean" if kl.startswith("kl/") else "validation/length"
        panels = (
            _panel(
                "on validation prompts",
                rows,
                {MEASURES["proxy"]: "validation/proxy", MEASURES["gold"]: "validation/gold"},
            ),
            _panel("KL, nats per response", rows, {"KL": kl}),
            _panel("share of the panel's votes against the fine-tuned policy", rows, {"panel": "validation/panel"}),
            _panel("ensemble disagreement, logits", rows, {"disagreement": "validation/disagreement"}),
            _panel("share of responses unlike those judged", rows, {"unfamiliar": "validation/novel_frac"}),
            _panel("response tokens", rows, {"length": length}),
        )
        unit = "rollouts" if kl.startswith("kl/") else "optimiser steps"
        kept_at, kept = _kept(by_stage[newest_round(by_stage, name)].metrics, unit)
        found.append(
            Curve(
                policy_title(name),
                unit,
                tuple(one for one in panels if one.series),
                "Where the learned score rises and gold falls, the reward is exploited." + kept,
                kept_at,
            )
        )
    for stage, title, metric in (("reward", "Reward model", "loss"), ("sft", "Fine-tuning", "nll_per_token")):
        if rows := _rows(directory, by_stage, stage):
            found.append(Curve(title, "optimiser steps", (_panel("loss, nats", rows, {"loss": metric}),)))
    return found


def _kept(metrics: Mapping[str, Any], unit: str) -> tuple[float | None, str]:
    """Where along the training the policy stands that was kept, and the sentence that says so; (None, "") = at its end."""
    kept, last = metrics.get("kept_step"), metrics.get("n_iterations")
    if kept is None or last is None or kept >= last:
        return None, ""
    if not kept:
        return 0.0, " What was kept is the fine-tuned policy itself, at the dotted line: the watcher saw none better."
    return float(kept), (
        f" The dotted line: the policy that was kept, after {kept} of {last} {unit}, the best that the watcher saw. "
        "What the rest of this page says of the policy is of that one."
    )


def _rows(directory: Path, by_stage: Mapping[str, Manifest], name: str) -> list[dict[str, Any]]:
    """The training steps of a stage's last round."""
    stage = newest_round(by_stage, name)
    return recorded_rows(directory, f"metrics/{stage}.jsonl", by_stage[stage]) if name in by_stage else []


def _panel(title: str, rows: Sequence[Mapping[str, Any]], series: Mapping[str, str]) -> Panel:
    drawn = []
    for name, metric in series.items():
        points = [(row["step"], row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
        if points:
            role: Role = ROLES.get(name, "plain")
            drawn.append(Series(name, tuple(x for x, _ in points), tuple(y for _, y in points), role=role))
    return Panel(title, tuple(drawn))


def frontier(evaluation: Mapping[str, Any]) -> tuple[Panel, ...]:
    """Gold and learned score against KL, of best-of-n and along the optimiser's training; () where nothing was evaluated."""
    if not evaluation:
        return ()
    panels = []
    optimiser = policy_title(evaluation.get("optimised", "ppo"))
    for value, measure in MEASURES.items():
        series = []
        path = f"{optimiser} along training, {measure}"
        kinds: tuple[tuple[str, str, Role], ...] = (("best of n", "frontier", "baseline"), (path, "training", value))
        for name, key, role in kinds:
            rows = [row for row in evaluation[key] if row[value] is not None]
            if rows:
                series.append(
                    Series(
                        name,
                        tuple(max(row["kl"], 0.0) for row in rows),
                        tuple(row[value] for row in rows),
                        labels=tuple(row["name"] for row in rows),
                        role=role,
                        points=role == "baseline",
                    )
                )
        series += _where_it_ended(evaluation, optimiser, value)
        if series:
            panels.append(Panel(measure, tuple(series)))
    return tuple(panels)


def _where_it_ended(evaluation: Mapping[str, Any], optimiser: str, value: Literal["gold", "proxy"]) -> list[Series]:
    """The policy that was kept, measured like best-of-n: a point with its interval."""
    figures = evaluation["policies"].get(evaluation.get("optimised", "ppo"), {})
    at, found = figures.get("kl", {}).get("value"), figures.get(value, {})
    if at is None or found.get("value") is None:
        return []
    point = (max(at, 0.0), Estimate(**found), optimiser)
    return [estimates_series(f"{optimiser} as kept, {MEASURES[value]}", [point], role=value, points=True)]


def at_equal_kl(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """What best-of-n and the optimiser bought at one and the same distance from the reference, a sentence each."""
    notes = []
    for name, row in evaluation.get("equal_kl", {}).items():
        gold = evaluation["policies"][name]["gold"]["value"]
        name_of = evaluation.get("optimised", "ppo")
        ppo = row[f"{name_of}_gold"]
        if gold is not None:
            title = policy_title(name_of)
            said = (
                f"{title} {ppo:.2f}, interpolated along its training"
                if ppo is not None
                else f"{title} never went so far"
            )
            line = f"At equal KL ({row['kl']:.2f} nats): {policy_title(name)} has gold {gold:.2f}; {said}."
            notes.append(line.replace(" -", " −"))  # as in the table above it
    return tuple(notes)
